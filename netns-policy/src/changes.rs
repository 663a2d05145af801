//! What a plan means to the operator: services and edges that come and go, told from the kernel's own elements.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::address::Addresses;
use crate::desired::{Desired, Wire};
use crate::name::ServiceName;
use crate::observed::Observed;
use crate::port::{Ports, Protocol};
use crate::ruleset::{Field, Key, Ruleset, Set};
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
    /// The name of the wire it starts at.
    pub from: String,
    /// The name of the wire it ends at.
    pub to: String,
    /// On these ports; `None` for everything (`direct`, `lan`).
    pub ports: Option<Ports>,
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ports {
            Some(ports) => write!(f, "{} -> {}:{ports}", self.from, self.to),
            None => write!(f, "{} -> {}", self.from, self.to),
        }
    }
}

/// The edges that stand in the maps of a panel, with the wires' names for their indexes.
pub fn passages(fabric: &Ruleset, names: &BTreeMap<u32, String>) -> BTreeSet<Passage> {
    let sets = fabric.tables.values().flat_map(|table| &table.sets);
    sets.flat_map(|(name, set)| {
        let words = word(name);
        set.elements.iter().filter_map(move |(key, out)| {
            let word = words?;
            let from = names.get(&index(&key.from)?)?.clone();
            let to = match word {
                Word::Edge => names.get(&index(out.as_deref()?)?)?.trim_start_matches('+').to_owned(),
                Word::Outside(word) => word.to_owned(),
                Word::Somewhere => if is_public(set, key) { "wan" } else { "lan" }.to_owned(),
            };
            Some(Passage { from: from.trim_start_matches('+').to_owned(), to, ports: ports(set, key) })
        })
    })
    .collect()
}

#[derive(Clone, Copy)]
enum Word {
    Edge,
    Outside(&'static str),
    /// Addresses that the key holds: public ones are `wan`, others `lan`.
    Somewhere,
}

fn word(set: &str) -> Option<Word> {
    match set.trim_end_matches(['4', '6']) {
        "edges" | "edge_ranges" => Some(Word::Edge),
        "direct" => Some(Word::Outside("wan")),
        "lan" => Some(Word::Outside("lan")),
        "reach" => Some(Word::Somewhere),
        _ => None,
    }
}

/// Whether the destination of a `reach` element is public.
fn is_public(set: &Set, key: &Key) -> bool {
    // Interface, source, destination.
    let width = |n: usize| set.key.iter().take(n).map(|field| field.padded_len()).sum::<usize>();
    let to = key.from.get(width(2)..width(3)).unwrap_or_default();
    crate::ruleset::compile::is_public(to)
}

fn index(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn ports(set: &Set, key: &Key) -> Option<Ports> {
    let mut at = 0;
    let mut protocol = None;
    for field in &set.key {
        let take = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        match field {
            Field::InetProto => {
                protocol = match key.from.get(at)? {
                    6 => Some(Protocol::Tcp),
                    17 => Some(Protocol::Udp),
                    _ => None,
                }
            }
            Field::InetService => {
                return Ports::new(protocol?, take(&key.from)?, take(key.to.as_ref().unwrap_or(&key.from))?).ok();
            }
            _ => {}
        }
        at += field.padded_len();
    }
    None
}

/// Neighbouring single ports of one pair, as the one range they came from.
pub fn joined(passages: BTreeSet<Passage>) -> Vec<Passage> {
    let mut joined: Vec<Passage> = Vec::new();
    for next in passages {
        if let (Some(last), Some(ports)) = (joined.last_mut(), next.ports)
            && (last.from == next.from && last.to == next.to)
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
                if !new_host_wire {
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
    let old = match &observed.fabric {
        Some(fabric) => passages(&fabric.rules, &observed_names(observed)),
        None => BTreeSet::new(),
    };
    let new = passages(&desired.fabric, &wire_names(desired.wires.values()));
    changes.extend(spoiled(observed, desired).map(|what| Change::Repair { what }));
    let gone = joined(old.difference(&new).cloned().collect());
    let come = joined(new.difference(&old).cloned().collect());
    changes.extend(gone.into_iter().map(Change::RemoveEdge));
    changes.extend(come.into_iter().map(Change::AddEdge));
    changes
}

/// Rules that are there and are not as they were made; what only comes or goes with edges is told as edges.
fn spoiled<'a>(observed: &'a Observed, desired: &'a Desired) -> impl Iterator<Item = String> + 'a {
    let locks = desired.locks.iter().filter_map(|(place, new)| {
        let netns = desired.wires.get(place).and_then(|wire| wire.netns.as_deref());
        let old = observed.rules(place, netns)?;
        let was_made = *place != Place::Host || observed.host_links.contains_key(host_link(desired, place)?.as_str());
        let word = if *place == Place::Host { "the table on the host" } else { "the lock" };
        (was_made && chains_differ(old, new)).then(|| match place {
            Place::Host => format!("{word} is missing or changed"),
            _ => format!("{word} of {place} is missing or changed"),
        })
    });
    let panel =
        observed.fabric.iter().filter(|fabric| !desired.is_nothing() && panel_differs(&fabric.rules, &desired.fabric));
    locks.chain(panel.map(|_| "the rules of the panel are missing or changed".to_owned()))
}

fn host_link(desired: &Desired, place: &Place) -> Option<crate::name::LinkName> {
    let leg = desired.leg.as_ref().map(|leg| leg.host_link.clone());
    desired.wires.get(place).map(|wire| wire.inner.clone()).or(leg)
}

/// Whether a chain's rules or hook differ. Rules depend on the policy's shape, so a policy that gained a feature
/// changes them too; an operator is told either way.
fn chains_differ(old: &Ruleset, new: &Ruleset) -> bool {
    new.tables.iter().any(|(id, table)| old.tables.get(id).is_none_or(|old| old.chains != table.chains))
}

/// Like [`chains_differ`] for what wires share: their own chains come and go with them.
fn panel_differs(old: &Ruleset, new: &Ruleset) -> bool {
    new.tables.iter().any(|(id, table)| {
        let shared = table.chains.iter().filter(|(_, chain)| chain.hook.is_none());
        let kept = |(name, chain): (&String, &crate::ruleset::Chain)| {
            old.tables.get(id).and_then(|old| old.chains.get(name)) == Some(chain)
        };
        !shared.into_iter().all(kept)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_ports_are_shown_as_the_range_they_came_from() {
        let passage =
            |lo, hi| Passage { from: "a".into(), to: "b".into(), ports: Ports::new(Protocol::Tcp, lo, hi).ok() };
        let set = BTreeSet::from([passage(1, 1), passage(2, 2), passage(3, 3), passage(9, 9)]);
        assert_eq!(joined(set), [passage(1, 3), passage(9, 9)]);
    }
}
