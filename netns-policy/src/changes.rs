//! What a plan means to the operator: services and edges that come and go, told from the kernel's own elements.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::address::Addresses;
use crate::desired::{Desired, Wire};
use crate::name::ServiceName;
use crate::observed::Observed;
use crate::port::Ports;
use crate::ruleset::{Chain, CtKey, Expr, Hook, Key, Rule, Ruleset, Set};
use crate::topology::Place;

/// One line of `nsctl plan`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Change {
    /// A service gets its namespace.
    AddService {
        /// Its name.
        name: ServiceName,
        /// Its addresses.
        addresses: Addresses,
    },
    /// A place gets other addresses, by a new wire.
    Renumber {
        /// A service, `host` or a gateway.
        name: String,
        /// What it has.
        from: Addresses,
        /// What it gets.
        to: Addresses,
    },
    /// A service loses its namespace.
    RemoveService {
        /// The name of the namespace.
        netns: String,
    },
    /// An edge opens.
    AddEdge(Passage),
    /// An edge closes.
    RemoveEdge(Passage),
    /// Something is not as it was made, and is made so again.
    Repair {
        /// What, in the operator's words.
        what: String,
    },
}

/// An edge as the panel knows it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Passage {
    /// The name of the wire it starts at; for a way in `lan` or `port`.
    pub from: String,
    /// The name of the wire it ends at, or `wan` or `lan`.
    pub to: String,
    /// The addresses there, as a prefix or `FIRST-LAST`; `None` for a wire and for the whole of `wan`.
    pub range: Option<String>,
    /// On these ports; `None` for everything (`direct`, `lan`).
    pub ports: Option<Ports>,
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.v4)?;
        self.v6.map_or(Ok(()), |v6| write!(f, " {v6}"))
    }
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)?;
        match (&self.range, self.ports) {
            (Some(range), Some(ports)) => write!(f, " {range} {ports}"),
            (Some(range), None) => write!(f, " {range}"),
            (None, Some(ports)) => write!(f, ":{ports}"),
            (None, None) => Ok(()),
        }
    }
}

/// The edges that stand in the maps of a panel, with the wires' names for their indexes. The lock of the gateway knows for
/// whom a way in is.
pub fn passages(fabric: &Ruleset, gateway: Option<&Ruleset>, names: &BTreeMap<u32, String>) -> BTreeSet<Passage> {
    passages_of(fabric, gateway, names, |_| true)
}

fn passages_of(
    fabric: &Ruleset,
    gateway: Option<&Ruleset>,
    names: &BTreeMap<u32, String>,
    wanted: fn(Word) -> bool,
) -> BTreeSet<Passage> {
    let sets = fabric.tables.values().flat_map(|table| &table.sets);
    sets.flat_map(|(name, set)| {
        let words = word(name).filter(|word| wanted(*word));
        set.elements.iter().filter_map(move |(key, out)| {
            let word = words?;
            let name = |bytes: &[u8]| Some(shown(names.get(&index(bytes)?)?).to_owned());
            let there = destination(set, key);
            let (from, to, range) = match word {
                Word::Edge => (name(&key.from)?, name(out.as_deref()?)?, None),
                Word::Wan => (name(&key.from)?, "wan".to_owned(), None),
                Word::Lan => (name(&key.from)?, "lan".to_owned(), there.map(|(first, last)| range(first, last))),
                Word::Somewhere => {
                    let (to, range) = outside(there?);
                    (name(&key.from)?, to, range)
                }
                Word::In => (way_in(gateway, key).to_owned(), name(out.as_deref()?)?, None),
            };
            Some(Passage { from, to, range, ports: set.ports_in(key) })
        })
    })
    .collect()
}

/// The relay keeps its sign: a service may be called so.
fn shown(name: &str) -> &str {
    if name == Place::Relay.long_name() { name } else { name.trim_start_matches('+') }
}

/// What a way in is called by the policy: `port` when everybody may come, as the gateway knows by who is called.
fn way_in(gateway: Option<&Ruleset>, key: &Key) -> &'static str {
    let called = key.from.get(4..).unwrap_or_default();
    let sets = gateway.into_iter().flat_map(|rules| rules.tables.values()).flat_map(|table| &table.sets);
    let mut keys = sets.filter(|(name, _)| stem(name) == "exposed").flat_map(|(_, set)| set.elements.keys());
    let for_all = |from: &[u8]| {
        let (caller, rest) = from.split_at(from.len().saturating_sub(called.len()));
        rest == called && caller.iter().all(|byte| *byte == 0)
    };
    if keys.any(|key| for_all(&key.from)) { "port" } else { "lan" }
}

fn stem(set: &str) -> &str {
    set.trim_end_matches(['4', '6'])
}

#[derive(Clone, Copy)]
enum Word {
    Edge,
    Wan,
    Lan,
    /// Addresses that the key holds: public ones are `wan`, others `lan`.
    Somewhere,
    /// From outside.
    In,
}

fn word(set: &str) -> Option<Word> {
    match stem(set) {
        "edges" | "edge_ranges" => Some(Word::Edge),
        "direct" => Some(Word::Wan),
        "lan" => Some(Word::Lan),
        "reach" => Some(Word::Somewhere),
        "exposed" => Some(Word::In),
        _ => None,
    }
}

/// The destination of an element whose key is interface, source, destination, and perhaps more.
fn destination(set: &Set, key: &Key) -> Option<(IpAddr, IpAddr)> {
    let width = |n: usize| set.key.iter().take(n).map(|field| field.padded_len()).sum::<usize>();
    let part = |bytes: &[u8]| address(bytes.get(width(2)..width(3))?);
    Some((part(&key.from)?, part(key.to.as_ref().unwrap_or(&key.from))?))
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

/// What a `reach` element is called. What lies between two private ranges is nobody's writing but a part of `wan`.
fn outside((first, last): (IpAddr, IpAddr)) -> (String, Option<String>) {
    let is_public = |address: IpAddr| match address {
        IpAddr::V4(v4) => crate::ruleset::compile::is_public(&v4.octets()),
        IpAddr::V6(v6) => crate::ruleset::compile::is_public(&v6.octets()),
    };
    let borders = |beside: Option<IpAddr>| beside.is_none_or(|beside| !is_public(beside));
    match is_public(first) {
        true if borders(beside(first, -1)) && borders(beside(last, 1)) => ("wan".to_owned(), None),
        true => ("wan".to_owned(), Some(range(first, last))),
        false => ("lan".to_owned(), Some(range(first, last))),
    }
}

/// The address `by` further on, if there is one.
fn beside(address: IpAddr, by: i8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add_signed(by.into()).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add_signed(by.into()).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// A prefix where the range is one, else both ends.
fn range(first: IpAddr, last: IpAddr) -> String {
    let width = if first.is_ipv4() { 32 } else { 128 };
    let prefixes = (0..=width).filter_map(|length| IpNetwork::new(first, length).ok());
    let is_range = |prefix: &IpNetwork| prefix.network() == first && end(prefix) == last;
    prefixes.into_iter().find(is_range).map_or_else(|| format!("{first}-{last}"), |prefix| prefix.to_string())
}

fn end(prefix: &IpNetwork) -> IpAddr {
    match prefix {
        IpNetwork::V4(prefix) => prefix.broadcast().into(),
        IpNetwork::V6(prefix) => prefix.broadcast().into(),
    }
}

/// The interface index that a key or an answer begins with.
pub(crate) fn index(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// Neighbouring single ports of one pair, as the one range they came from.
pub fn joined(passages: BTreeSet<Passage>) -> Vec<Passage> {
    let mut joined: Vec<Passage> = Vec::new();
    for next in passages {
        if let (Some(last), Some(ports)) = (joined.last_mut(), next.ports)
            && (last.from == next.from && last.to == next.to && last.range == next.range)
            && let Some(before) = last.ports
            && before.protocol() == ports.protocol()
            && u32::from(ports.lo()) <= u32::from(before.hi()) + 1
        {
            let hi = before.hi().max(ports.hi());
            last.ports = Ports::new(ports.protocol(), before.lo(), hi).ok();
            continue;
        }
        joined.push(next);
    }
    joined
}

/// The wires' names by index in the fabric.
fn wire_names<'a>(wires: impl Iterator<Item = &'a Wire>) -> BTreeMap<u32, String> {
    wires.map(|wire| (wire.index, wire.place.long_name())).collect()
}

/// The wires' names as the kernel has them: the altname where a name was shortened.
pub fn observed_names(observed: &Observed) -> BTreeMap<u32, String> {
    let links = observed.fabric.iter().flat_map(|fabric| &fabric.links);
    links
        .map(|(name, link)| {
            let full = link.alias.as_deref().and_then(|alias| alias.rsplit(':').next());
            (link.index, full.unwrap_or(name).to_owned())
        })
        .collect()
}

pub(crate) fn changes(observed: &Observed, desired: &Desired) -> Vec<Change> {
    let mut changes = Vec::new();
    for (place, wire) in &desired.wires {
        let known = wire.netns.as_ref().is_none_or(|netns| observed.namespaces.contains_key(netns));
        match place {
            Place::Service(name) if !known => {
                changes.push(Change::AddService { name: name.clone(), addresses: wire.addresses });
            }
            _ if known && observed.fabric.is_some() && observed.whole_wire(wire).is_none() => {
                let new_host_wire = *place == Place::Host && observed.inner_link(wire).is_none();
                if let Some(from) = renumbered(observed, wire) {
                    changes.push(Change::Renumber { name: place.to_string(), from, to: wire.addresses });
                } else if !new_host_wire {
                    changes.push(Change::Repair { what: format!("the wire of {place} is missing or changed") });
                }
            }
            _ => {}
        }
    }
    for netns in observed.namespaces.keys().filter(|netns| !netns.contains('+')) {
        if !desired.wires.values().any(|wire| wire.netns.as_ref() == Some(netns)) {
            changes.push(Change::RemoveService { netns: netns.clone() });
        }
    }
    let netns = Place::Uplink.netns(&desired.network);
    let gateways = [observed.rules(&Place::Uplink, netns.as_deref()), desired.locks.get(&Place::Uplink)];
    let names = [observed_names(observed), wire_names(desired.wires.values())];
    let both = |wanted: fn(Word) -> bool| {
        let old = observed.fabric.as_ref();
        let old = old.map(|fabric| passages_of(&fabric.rules, gateways[0], &names[0], wanted));
        (old.unwrap_or_default(), passages_of(&desired.fabric, gateways[1], &names[1], wanted))
    };
    let (old, new) = both(|_| true);
    let (ways_in, new_ways_in) = both(|word| matches!(word, Word::In));
    changes.extend(spoiled(observed, desired, ways_in != new_ways_in).map(|what| Change::Repair { what }));
    let gone = joined(old.difference(&new).cloned().collect());
    let come = joined(new.difference(&old).cloned().collect());
    changes.extend(gone.into_iter().map(Change::RemoveEdge));
    changes.extend(come.into_iter().map(Change::AddEdge));
    changes
}

/// The addresses that a wire has, if they are others than it ought to have and nobody took one away.
fn renumbered(observed: &Observed, wire: &Wire) -> Option<Addresses> {
    let has = &observed.inner_link(wire)?.addresses;
    let v4 = has.iter().find_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None })?;
    let global = |v6: &Ipv6Addr| !v6.is_unicast_link_local();
    let v6 = has.iter().find_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None }.filter(global));
    let from = Addresses { v4, v6 };
    let differs = v4 != wire.addresses.v4 || (v6.is_some() && wire.addresses.v6.is_some() && v6 != wire.addresses.v6);
    differs.then_some(from)
}

/// Rules that are there and are not as they were made; what only comes or goes with edges is told as edges, and so is
/// what comes or goes with ways in.
fn spoiled<'a>(
    observed: &'a Observed,
    desired: &'a Desired,
    ways_in_change: bool,
) -> impl Iterator<Item = String> + 'a {
    let locks = desired.locks.iter().filter_map(move |(place, new)| {
        let netns = desired.wires.get(place).and_then(|wire| wire.netns.as_deref());
        let old = observed.rules(place, netns)?;
        let was_made = *place != Place::Host || observed.host_links.contains_key(host_link(desired, place)?.as_str());
        let word = if *place == Place::Host { "the table on the host" } else { "the lock" };
        (was_made && chains_differ(old, new, ways_in_change)).then(|| match place {
            Place::Host => format!("{word} is missing or changed"),
            _ => format!("{word} of {place} is missing or changed"),
        })
    });
    let differs = move |rules: &Ruleset| panel_differs(rules, &desired.fabric, ways_in_change);
    let panel = observed.fabric.iter().filter(move |fabric| !desired.is_nothing() && differs(&fabric.rules));
    locks.chain(panel.map(|_| "the rules of the panel are missing or changed".to_owned()))
}

fn host_link(desired: &Desired, place: &Place) -> Option<crate::name::LinkName> {
    let leg = desired.leg.as_ref().map(|leg| leg.host_link.clone());
    desired.wires.get(place).map(|wire| wire.inner.clone()).or(leg)
}

/// Whether a chain's rules or hook differ. Rules depend on the policy's shape, so a policy that gained a feature
/// changes them too; an operator is told either way.
fn chains_differ(old: &Ruleset, new: &Ruleset, but_ways_in: bool) -> bool {
    new.tables.iter().any(|(id, table)| {
        old.tables.get(id).is_none_or(|old| match but_ways_in {
            true => without_ways_in(&old.chains) != without_ways_in(&table.chains),
            false => old.chains != table.chains,
        })
    })
}

/// The rules that stand whether or not there is a way in.
fn without_ways_in(chains: &BTreeMap<String, Chain>) -> BTreeMap<&str, (&Option<Hook>, Vec<&Rule>)> {
    let asks = |expr: &Expr| match expr {
        Expr::Lookup { set, .. } => matches!(stem(set), "exposed" | "exposed_back" | "ports"),
        _ => false,
    };
    let is_answer = |expr: &Expr| matches!(expr, Expr::Ct { key: CtKey::Direction, .. });
    let translates = |name: &str| matches!(name, "to_gateway" | "to_service");
    let others = chains.iter().filter(|(name, _)| !translates(name));
    others
        .map(|(name, chain)| {
            let own = |rule: &Rule| rule.0.iter().any(asks) || (name == "from_leg" && rule.0.iter().any(is_answer));
            (name.as_str(), (&chain.hook, chain.rules.iter().filter(|rule| !own(rule)).collect()))
        })
        .collect()
}

/// Like [`chains_differ`] for what wires share: their own chains come and go with them.
fn panel_differs(old: &Ruleset, new: &Ruleset, but_ways_in: bool) -> bool {
    new.tables.iter().any(|(id, table)| {
        let old = old.tables.get(id);
        if but_ways_in {
            let old = old.map(|old| without_ways_in(&old.chains)).unwrap_or_default();
            let shared = without_ways_in(&table.chains);
            return shared.iter().any(|(name, chain)| chain.0.is_none() && old.get(name) != Some(chain));
        }
        let shared = table.chains.iter().filter(|(_, chain)| chain.hook.is_none());
        let kept = |(name, chain): (&String, &Chain)| old.and_then(|old| old.chains.get(name)) == Some(chain);
        !shared.into_iter().all(kept)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    #[test]
    fn neighbouring_ports_are_shown_as_the_range_they_came_from() {
        let passage = |lo, hi| Passage {
            from: "a".into(),
            to: "b".into(),
            range: None,
            ports: Ports::new(Protocol::Tcp, lo, hi).ok(),
        };
        let set = BTreeSet::from([passage(1, 1), passage(2, 2), passage(3, 3), passage(9, 9)]);
        assert_eq!(joined(set), [passage(1, 3), passage(9, 9)]);
    }
    #[test]
    fn a_range_outside_is_told_as_it_is_written_and_the_whole_internet_by_its_name() {
        let named = |first: &str, last: &str| {
            let (to, range) = outside((first.parse().unwrap(), last.parse().unwrap()));
            format!("{to} {}", range.unwrap_or_default())
        };
        assert_eq!(named("192.168.1.20", "192.168.1.20"), "lan 192.168.1.20/32");
        assert_eq!(named("192.168.0.0", "192.168.255.255"), "lan 192.168.0.0/16");
        assert_eq!(named("10.0.0.0", "10.230.255.255"), "lan 10.0.0.0-10.230.255.255");
        assert_eq!(named("fd00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "lan fd00::/8");
        assert_eq!(named("1.0.0.0", "9.255.255.255"), "wan ");
        assert_eq!(named("8.8.8.0", "8.8.8.255"), "wan 8.8.8.0/24");
    }
}
