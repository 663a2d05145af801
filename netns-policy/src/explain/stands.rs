//! Where a right stands in the kernel: which element of which map, and the rule that asks for it.
//!
//! Read off what the compiler made, as `nft list` prints it, so that an operator finds with nft(8) what `why` names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::changes::index;
use crate::desired::{Desired, Wire};
use crate::exposure::Exposure;
use crate::port::{Ports, Protocol};
use crate::ruleset::compile::is_public;
use crate::ruleset::{Expr, Family, Key, Reject, Rule, Ruleset, Set, Table};
use crate::topology::Place;

/// One element, and the rule that asks for it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Stand {
    /// `fabric` for the panel; for a lock the service whose it is, or `host`.
    pub place: String,
    /// The namespace; nothing for the host's own.
    pub netns: Option<String>,
    /// Family and name of the table.
    pub table: String,
    /// The map or set.
    pub set: String,
    /// The element as nft(8) prints it.
    pub element: String,
    /// The chain with the rule.
    pub chain: String,
    /// The rule as nft(8) prints it.
    pub rule: String,
    /// How the kernel knows the element: table, set and key, for its counter.
    #[serde(skip)]
    pub id: (String, String, Key),
}

impl Stand {
    /// Of a way out, whether it leads to the internet; if not, to the local network. Nothing for a right inside.
    pub fn leads_to_wan(&self) -> Option<bool> {
        let (stem, version) = self.set.split_at(self.set.len() - 1);
        match stem {
            "direct" => return Some(true),
            "lan" => return Some(false),
            "reach" => {}
            _ => return None,
        }
        let width = if version == "4" { 4 } else { 16 };
        // In the panel the wire and the caller stand before.
        let at = if self.place == "fabric" { 4 + width } else { 0 };
        Some(is_public(self.id.2.from.get(at..at + width)?))
    }
}

/// The rule that a connection without a right meets.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Refusal {
    /// Whose lock it is.
    pub place: String,
    /// The namespace; nothing for the host's own.
    pub netns: Option<String>,
    /// Family and name of the table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule as nft(8) prints it.
    pub rule: String,
    /// The elements that would let it pass and are not there: of the panel, one a family.
    pub absent: Vec<String>,
}

/// Where the rights of `from` to open connections to `to` stand: in the panel, then in the lock of each end. `to` is the
/// uplink for what lies outside and for names. With `ports`, only those that open one of them.
pub fn stands(desired: &Desired, from: &Place, to: &Place, ports: Option<Ports>) -> Vec<Stand> {
    let (Some(client), Some(server)) = (desired.wires.get(from), desired.wires.get(to)) else { return Vec::new() };
    let kernel = Kernel { desired, links: links(desired) };
    let panel = desired.fabric.tables.iter().next();
    let Some(((family, name), table)) = panel else { return Vec::new() };
    let mut all = Vec::new();
    for (set_name, set) in &table.sets {
        let (stem, version) = set_name.split_at(set_name.len() - 1);
        if !["direct", "edge_ranges", "edges", "lan", "reach"].contains(&stem) {
            continue;
        }
        let wanted = |(key, answer): &(&Key, &Option<Vec<u8>>)| {
            index(&key.from) == Some(client.index)
                && answer.as_deref().and_then(index) == Some(server.index)
                && ports.is_none_or(|asked| set.ports_in(key).is_none_or(|own| own.overlaps(&asked)))
        };
        for (key, _) in set.elements.iter().filter(wanted) {
            let at = (*family, name.as_str(), table);
            all.extend(kernel.stand("fabric".into(), Some(desired.fabric_netns()), at, set_name, key));
            let width = if version == "4" { 4 } else { 16 };
            all.extend(kernel.behind(client, stem, version, &Ends::of(key, width)));
            all.extend(kernel.behind(server, "in", version, &Ends::of(key, width)));
        }
    }
    let rank = |stand: &Stand| match &stand.place {
        place if place == "fabric" => 0,
        place if *place == from.to_string() => 1,
        _ => 2,
    };
    all.sort_by(|a, b| (rank(a), &a.set, &a.element).cmp(&(rank(b), &b.set, &b.element)));
    all.dedup();
    all
}

/// Where a way in by a port of the host stands, in the order in which a call meets it: on the host, in the gateway, in the
/// panel, in the lock of the service; or of the relay, and then where the relay's own right stands. Nothing for other ways.
pub fn stands_of_way_in(desired: &Desired, exposure: &Exposure) -> Vec<Stand> {
    let Some(outside) = exposure.way.external().filter(|_| exposure.way.is_on_host()) else { return Vec::new() };
    let service = Place::Service(exposure.service.clone());
    let relayed = exposure.way.relay().is_some();
    let (entered, port) = if relayed { (Place::Relay, outside) } else { (service.clone(), exposure.ports.lo()) };
    let Some(wire) = desired.wires.get(&entered) else { return Vec::new() };
    let kernel = Kernel { desired, links: links(desired) };
    let protocol = exposure.ports.protocol();
    let single = |port| Ports::new(protocol, port, port).ok();
    let mut all = Vec::new();
    for place in [Place::Host, Place::Uplink] {
        let port = if place == Place::Host { outside } else { port };
        let netns = place.netns(&desired.network);
        let called = if place == Place::Host { None } else { Some(wire) };
        let Some(rules) = desired.locks.get(&place) else { continue };
        all.extend(kernel.entering(place.to_string(), netns, rules, single(port), called));
    }
    all.extend(kernel.entering(
        "fabric".into(),
        Some(desired.fabric_netns()),
        &desired.fabric,
        single(port),
        Some(wire),
    ));
    let lock = desired.locks.get(&entered).into_iter();
    all.extend(
        lock.flat_map(|rules| kernel.entering(entered.to_string(), wire.netns.clone(), rules, single(port), None)),
    );
    if relayed {
        all.extend(stands(desired, &Place::Relay, &service, Some(exposure.ports)));
    }
    all
}

/// What `from` meets when it opens a connection to `port` of `to` without a right: its own lock, which answers first.
pub fn refusal(desired: &Desired, from: &Place, to: &Place, protocol: Protocol, port: u16) -> Option<Refusal> {
    let client = desired.wires.get(from)?;
    let lock = desired.locks.get(from)?;
    let ((family, name), table) = lock.tables.iter().next()?;
    let (chain, rules) = ["output", "to_fabric"]
        .into_iter()
        .filter_map(|chain| Some((chain, &table.chains.get(chain)?.rules)))
        .find(|(_, rules)| rules.iter().any(is_rejection) || *from != Place::Host)?;
    let kernel = Kernel { desired, links: links(desired) };
    let meets = |rule: &&Rule| match rule.0.last() {
        Some(Expr::Reject(Reject::TcpReset)) => protocol == Protocol::Tcp,
        Some(Expr::Reject(_)) => true,
        _ => false,
    };
    // The limits reject too, and stand before.
    let last: Vec<&Rule> = rules.iter().rev().take(2).filter(meets).collect();
    let rule = last.last().map_or_else(|| "policy drop".to_owned(), |rule| rule.display(table, &kernel.links));
    Some(Refusal {
        place: from.to_string(),
        netns: client.netns.clone(),
        table: format!("{family} {name}"),
        chain: chain.to_owned(),
        rule,
        absent: absent(desired, &kernel.links, client, to, protocol, port),
    })
}

fn is_rejection(rule: &Rule) -> bool {
    matches!(rule.0.last(), Some(Expr::Reject(_)))
}

fn absent(
    desired: &Desired,
    links: &BTreeMap<u32, String>,
    client: &Wire,
    to: &Place,
    protocol: Protocol,
    port: u16,
) -> Vec<String> {
    let Some(server) = desired.wires.get(to).filter(|wire| wire.place != Place::Uplink) else { return Vec::new() };
    let sets = desired.fabric.tables.values().next().map(|table| &table.sets);
    let pairs = client.addresses.iter().zip(server.addresses.iter());
    let element = |(from, to): (IpAddr, IpAddr)| {
        let name = if from.is_ipv4() { "edges4" } else { "edges6" };
        let set = sets?.get(name)?;
        let mut bytes = client.index.to_ne_bytes().to_vec();
        for address in [from, to] {
            match address {
                IpAddr::V4(address) => bytes.extend(address.octets()),
                IpAddr::V6(address) => bytes.extend(address.octets()),
            }
        }
        bytes.extend([protocol.number(), 0, 0, 0]);
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, 0]);
        let key = Key { from: bytes, to: None };
        let answer = Some(server.index.to_ne_bytes().to_vec());
        let with = Set { elements: BTreeMap::from([(key.clone(), answer)]).into(), ..set.clone() };
        Some(format!("{name} {{ {} }}", with.display(&key, links)))
    };
    pairs.filter_map(element).collect()
}

/// The names of the wires in the fabric.
fn links(desired: &Desired) -> BTreeMap<u32, String> {
    desired.wires.values().map(|wire| (wire.index, wire.outer.to_string())).collect()
}

/// The parts of a panel's key that the locks ask for.
struct Ends {
    /// Who calls.
    from: Vec<u8>,
    /// Who is called, with what stands behind: protocol and ports.
    rest: Key,
    behind: Key,
}

impl Ends {
    fn of(key: &Key, width: usize) -> Self {
        let tail = |at: usize| Key {
            from: key.from.get(at..).unwrap_or_default().to_vec(),
            to: key.to.as_ref().map(|to| to.get(at..).unwrap_or_default().to_vec()),
        };
        Self {
            from: key.from.get(4..4 + width).unwrap_or_default().to_vec(),
            rest: tail(4 + width),
            behind: tail(4 + 2 * width),
        }
    }

    /// The key by which the server's lock knows the caller.
    fn caller(&self) -> Key {
        let with = |bytes: &Vec<u8>| [self.from.as_slice(), bytes].concat();
        Key { from: with(&self.behind.from), to: self.behind.to.as_ref().map(with) }
    }
}

struct Kernel<'a> {
    desired: &'a Desired,
    links: BTreeMap<u32, String>,
}

impl Kernel<'_> {
    /// The elements of one ruleset that let in who comes by a port of the host; with `called`, those whose key names it.
    fn entering(
        &self,
        place: String,
        netns: Option<String>,
        rules: &Ruleset,
        port: Option<Ports>,
        called: Option<&Wire>,
    ) -> Vec<Stand> {
        let Some(((family, name), table)) = rules.tables.iter().next() else { return Vec::new() };
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let names = |key: &Key, wire: &Wire| {
            let mut own = wire.addresses.iter().map(octets);
            own.any(|address| key.from.windows(address.len()).any(|bytes| bytes == address))
        };
        let sets = table.sets.iter().filter(|(set, _)| matches!(set.trim_end_matches(['4', '6']), "exposed" | "ports"));
        let elements = sets.flat_map(|(set_name, set)| set.elements.keys().map(move |key| (set_name, set, key)));
        let wanted =
            elements.filter(|(_, set, key)| set.ports_in(key) == port && called.is_none_or(|wire| names(key, wire)));
        wanted
            .filter_map(|(set_name, _, key)| {
                self.stand(place.clone(), netns.clone(), (*family, name.as_str(), table), set_name, key)
            })
            .collect()
    }

    /// The element of the lock at the end of `wire` that stands for the same right.
    fn behind(&self, wire: &Wire, stem: &str, version: &str, ends: &Ends) -> Option<Stand> {
        let lock: &Ruleset = self.desired.locks.get(&wire.place)?;
        let ((family, name), table) = lock.tables.iter().next()?;
        let (set_name, key) = match stem {
            "in" if ends.behind.to.is_some() => (format!("in_ranges{version}"), ends.caller()),
            "in" => (format!("in{version}"), ends.caller()),
            "edges" => (format!("out{version}"), ends.rest.clone()),
            "edge_ranges" => (format!("out_ranges{version}"), ends.rest.clone()),
            "direct" => {
                let set = format!("direct{version}");
                let key = table.sets.get(&set)?.elements.keys().next()?.clone();
                (set, key)
            }
            stem => (format!("{stem}{version}"), ends.rest.clone()),
        };
        let at = (*family, name.as_str(), table);
        self.stand(wire.place.to_string(), wire.netns.clone(), at, &set_name, &key)
    }

    fn stand(
        &self,
        place: String,
        netns: Option<String>,
        (family, name, table): (Family, &str, &Table),
        set: &str,
        key: &Key,
    ) -> Option<Stand> {
        let shape = table.sets.get(set).filter(|set| set.elements.contains_key(key))?;
        let (chain, rule) = asking(table, set)?;
        Some(Stand {
            place,
            netns,
            table: format!("{family} {name}"),
            set: set.to_owned(),
            element: shape.display(key, &self.links),
            chain: chain.to_owned(),
            rule: rule.display(table, &self.links),
            id: (name.to_owned(), set.to_owned(), key.clone()),
        })
    }
}

/// The rule that asks `set` of a packet that opens a connection. Fragments and embedded headers are asked about too.
fn asking<'a>(table: &'a Table, set: &str) -> Option<(&'a str, &'a Rule)> {
    let chains = table.chains.iter().filter(|(name, _)| !name.starts_with("fragments"));
    let asks = |rule: &Rule| rule.0.iter().any(|expr| matches!(expr, Expr::Lookup { set: asked, .. } if asked == set));
    let mut all = chains.flat_map(|(name, chain)| chain.rules.iter().map(move |rule| (name.as_str(), rule)));
    all.find(|(_, rule)| asks(rule))
}
