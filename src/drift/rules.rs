//! Two rulesets, compared: tables, chains, rules, sets, and elements in the words of edges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netns_policy::changes::{Change, Passage, joined, observed_names, passages};
use netns_policy::plan::Site;
use netns_policy::ruleset::compile::TABLE;
use netns_policy::ruleset::{Chain, Family, Field, Key, Members, Rule, Ruleset, Set, Table};
use netns_policy::topology::Place;

use super::words::shown;
use super::{Drift, Spot, steps};
use crate::orchestrator::Planned;

/// How many differences of the rules at one place are told one by one.
const MOST: usize = 64;

/// What the rules of one plan are compared with, and by which names.
pub(super) struct Sites<'a> {
    planned: &'a Planned,
    /// The wires' names by index, as they ought to be and as they are.
    links: BTreeMap<u32, String>,
    /// Indexes of wires that are whole: an element with another one went with its wire.
    whole: BTreeSet<u32>,
    /// The wires' ends in the fabric that are whole.
    standing: BTreeSet<&'a str>,
    /// Who has which address.
    owners: BTreeMap<IpAddr, String>,
    /// Edges that come or go, which are told as such.
    edges: Vec<&'a Passage>,
}

/// One table of both rulesets.
struct Pair<'a> {
    at: &'a Spot,
    table: String,
    old: &'a Table,
    new: &'a Table,
}

static EMPTY: Ruleset = Ruleset { tables: BTreeMap::new() };

impl<'a> Sites<'a> {
    pub(super) fn new(planned: &'a Planned) -> Self {
        let wires = planned.desired.wires.values();
        let whole = || wires.clone().filter(|wire| planned.observed.whole_wire(wire) == Some(wire.index));
        let mut links = observed_names(&planned.observed);
        links.extend(wires.clone().map(|wire| (wire.index, wire.place.long_name())));
        let own = wires
            .clone()
            .flat_map(|wire| wire.addresses.iter().map(|ip| (ip, wire.place.to_string())).collect::<Vec<_>>());
        let edges = planned.plan.changes.iter().filter_map(|change| match change {
            Change::AddEdge(passage) | Change::RemoveEdge(passage) => Some(passage),
            _ => None,
        });
        Self {
            planned,
            links,
            whole: whole().map(|wire| wire.index).collect(),
            standing: whole().map(|wire| wire.outer.as_str()).collect(),
            owners: own.collect(),
            edges: edges.collect(),
        }
    }

    /// What differs at `at`, where rules are to be changed.
    pub(super) fn rules(&self, at: &Site) -> Vec<Drift> {
        let spot = steps::spot(self.planned, at);
        let (observed, desired) = (&self.planned.observed, &self.planned.desired);
        let old = match at {
            Site::Fabric => observed.fabric.as_ref().map(|fabric| &fabric.rules),
            Site::Place(place) => observed.rules(place, spot.netns.as_deref()),
        };
        // A namespace that is not there has no rules, and that is told.
        let Some(old) = old else { return Vec::new() };
        let new = match at {
            Site::Fabric => &desired.fabric,
            Site::Place(place) => desired.locks.get(place).unwrap_or(&EMPTY),
        };
        let mut all = Vec::new();
        for (id, table) in &new.tables {
            let name = format!("{} {}", id.0, id.1);
            match old.tables.get(id) {
                None => all.push(Drift::MissingTable { at: spot.clone(), table: name }),
                Some(old) => all.extend(self.table(&Pair { at: &spot, table: name, old, new: table })),
            }
        }
        let extra = old.tables.keys().filter(|id| !new.tables.contains_key(*id));
        all.extend(
            extra.map(|(family, name)| Drift::UndeclaredTable { at: spot.clone(), table: format!("{family} {name}") }),
        );
        // Who is root in a service can put as much into its lock as the kernel takes.
        let more = all.len().saturating_sub(MOST);
        if more > 0 {
            all.truncate(MOST);
            all.push(Drift::MoreRules { at: spot, count: more });
        }
        all
    }

    fn table(&self, pair: &Pair) -> Vec<Drift> {
        let mut all = Vec::new();
        if pair.old.dormant {
            all.push(Drift::DormantTable { at: pair.at.clone(), table: pair.table.clone() });
        }
        all.extend(self.chains(pair));
        let (at, table) = (pair.at, &pair.table);
        for (name, new) in &pair.new.sets {
            let (at, table, set) = (at.clone(), table.clone(), name.clone());
            match pair.old.sets.get(name) {
                None => all.push(Drift::MissingSet { at, table, set }),
                Some(old) if !is_alike(old, new) => all.push(Drift::ChangedSet { at, table, set }),
                Some(old) if old.elements != new.elements => all.extend(self.elements(pair, name, old, new)),
                Some(_) => {}
            }
        }
        let extra = pair.old.sets.keys().filter(|name| !pair.new.sets.contains_key(*name));
        all.extend(extra.map(|set| Drift::UndeclaredSet { at: at.clone(), table: table.clone(), set: shown(set) }));
        all.extend(self.rights(pair));
        all
    }

    fn chains(&self, pair: &Pair) -> Vec<Drift> {
        let mut all = Vec::new();
        // A chain comes and goes with the wire that it hangs on.
        let hangs = |chain: &Chain| match chain.hook.as_ref().and_then(|hook| hook.device.as_deref()) {
            Some(device) => self.standing.contains(device),
            None => true,
        };
        let (at, table) = (pair.at, &pair.table);
        for (name, new) in pair.new.chains.iter().filter(|(_, chain)| hangs(chain)) {
            let (at, table, chain) = (at.clone(), table.clone(), name.clone());
            match pair.old.chains.get(name) {
                None => all.push(Drift::MissingChain { at, table, chain }),
                Some(old) if old.hook != new.hook => all.push(Drift::ChangedChain { at, table, chain }),
                Some(old) if old.rules != new.rules => {
                    let (gone, come) = (self.only(new, old, pair.new), self.only(old, new, pair.old));
                    all.push(Drift::ChangedRules { at, table, chain, gone, come });
                }
                Some(_) => {}
            }
        }
        let extra = pair.old.chains.iter().filter(|(name, chain)| !pair.new.chains.contains_key(*name) && hangs(chain));
        all.extend(extra.map(|(chain, _)| Drift::UndeclaredChain {
            at: at.clone(),
            table: table.clone(),
            chain: shown(chain),
        }));
        all
    }

    /// The rules of a chain that another one has not, as nft prints them in `table`.
    fn only(&self, of: &Chain, other: &Chain, table: &Table) -> Vec<String> {
        let mut left: Vec<&Rule> = other.rules.iter().collect();
        let mut only = Vec::new();
        for rule in &of.rules {
            match left.iter().position(|one| *one == rule) {
                Some(at) => {
                    left.swap_remove(at);
                }
                None => only.push(shown(&rule.display(table, &self.links))),
            }
        }
        only
    }

    /// Elements that stand for no edge by themselves, and those that say an edge otherwise than it ought to be said.
    fn elements(&self, pair: &Pair, name: &str, old: &Set, new: &Set) -> Option<Drift> {
        let edges = is_of_edges(&pair.at.place, name).then(|| {
            let version = if name.ends_with('6') { '6' } else { '4' };
            [pair.old, pair.new].map(|table| self.passages_of(&pair.at.place, &of_version(table, version)))
        });
        let is_said = |of: &Set, key: &Key, answer: &Option<Vec<u8>>| match &edges {
            _ if self.went_with_a_wire(pair, of, key, answer.as_deref()) => true,
            None => self.goes_with_an_edge(pair, of, key, answer.as_deref()),
            Some([old, new]) => {
                let alone = Set { elements: BTreeMap::from([(key.clone(), answer.clone())]).into(), ..of.clone() };
                let alone = BTreeMap::from([(name.to_owned(), alone)]);
                let said = self.passages_of(&pair.at.place, &of_sets(alone));
                said.iter().any(|one| self.has_edge(one) || old.contains(one) != new.contains(one))
            }
        };
        let only = |of: &Set, other: &Set| -> Vec<String> {
            let keys = of.elements.iter().filter(|(key, answer)| other.elements.get(*key) != Some(*answer));
            let keys = keys.filter(|(key, answer)| !is_said(of, key, answer));
            keys.map(|(key, _)| shown(&of.display(key, &self.links))).collect()
        };
        let (gone, come) = (only(new, old), only(old, new));
        let none = gone.is_empty() && come.is_empty();
        let (at, table, set) = (pair.at.clone(), pair.table.clone(), name.to_owned());
        (!none).then_some(Drift::ChangedElements { at, table, set, gone, come })
    }

    /// Whether an element of the panel is of a wire that is not whole, which is told.
    fn went_with_a_wire(&self, pair: &Pair, set: &Set, key: &Key, answer: Option<&[u8]>) -> bool {
        let of_wires = pair.at.place == "fabric" && set.key.first() == Some(&Field::IfaceIndex);
        of_wires && ends(key, answer).any(|end| !self.whole.contains(&end))
    }

    /// Whether an element comes or goes with an edge, which is told.
    fn goes_with_an_edge(&self, pair: &Pair, set: &Set, key: &Key, answer: Option<&[u8]>) -> bool {
        let joined = |a: &str, b: &str| self.edges.iter().any(|edge| joins(edge, a, b));
        if pair.at.place != "fabric" {
            let peer = address(&key.from, set.key.first()).and_then(|peer| self.owners.get(&peer));
            return peer.is_some_and(|peer| joined(&pair.at.place, peer));
        }
        if set.key.first() != Some(&Field::IfaceIndex) {
            return false;
        }
        let names: Vec<&String> = ends(key, answer).filter_map(|end| self.links.get(&end)).collect();
        match names.as_slice() {
            [a, b] => joined(a.trim_start_matches('+'), b.trim_start_matches('+')),
            _ => false,
        }
    }

    /// Edges and rights of this table that come or go, and are not told as edges of the whole network.
    fn rights(&self, pair: &Pair) -> Vec<Drift> {
        let all = |table, version| self.passages_of(&pair.at.place, &of_version(table, version));
        let [old, new] = [pair.old, pair.new].map(|table| VERSIONS.map(|version| all(table, version)));
        let mut drift = Vec::new();
        for (from, to, gone) in [(&new, &old, true), (&old, &new, false)] {
            let lost: [BTreeSet<Passage>; 2] = [0, 1].map(|v| from[v].difference(&to[v]).cloned().collect());
            let both: BTreeSet<Passage> = lost[0].union(&lost[1]).cloned().collect();
            // What the other family never had, or has lost too, is no matter of one family.
            let (half, whole): (BTreeSet<_>, _) =
                both.into_iter().filter(|one| !self.has_edge(one)).partition(|one| to.iter().any(|v| v.contains(one)));
            drift.extend(joined(whole).iter().map(|one| told(pair.at, one, gone, None)));
            for (v, family) in FAMILIES.iter().enumerate() {
                let half = half.intersection(&lost[v]).cloned().collect();
                drift.extend(joined(half).iter().map(|one| told(pair.at, one, gone, Some(family))));
            }
        }
        drift
    }

    /// The lock that knows for whom a way in is.
    fn gateway(&self) -> Option<&Ruleset> {
        self.planned.desired.locks.get(&Place::Uplink)
    }

    /// The edges that the elements of these rules stand for.
    fn passages_of(&self, place: &str, rules: &Ruleset) -> BTreeSet<Passage> {
        if place == "fabric" {
            return passages(rules, self.gateway(), &self.links);
        }
        let sets = rules.tables.values().flat_map(|table| table.sets.iter());
        let sets = sets.filter_map(|(name, set)| Some((right_of(name.trim_end_matches(VERSIONS))?, set)));
        sets.flat_map(|(right, set)| self.passages(place, right, set)).collect()
    }

    fn has_edge(&self, passage: &Passage) -> bool {
        let covers = |edge: &Passage| match (edge.ports, passage.ports) {
            (Some(edge), Some(own)) => {
                edge.protocol() == own.protocol() && edge.lo() <= own.lo() && own.hi() <= edge.hi()
            }
            (None, _) => true,
            (Some(_), None) => false,
        };
        self.edges.iter().any(|edge| edge.from == passage.from && edge.to == passage.to && covers(edge))
    }

    fn passages(&self, place: &str, right: Right, set: &Set) -> Vec<Passage> {
        let me = place.to_owned();
        let passage = |key: &Key| {
            let peer = address(&key.from, set.key.first());
            let named = |peer: IpAddr| self.owners.get(&peer).cloned().unwrap_or_else(|| peer.to_string());
            let ports = set.ports_in(key);
            match right {
                Right::In => Some(Passage { from: named(peer?), to: me.clone(), range: None, ports }),
                Right::Out => Some(Passage { from: me.clone(), to: named(peer?), range: None, ports }),
                Right::Wan => Some(Passage { from: me.clone(), to: "wan".into(), range: None, ports: None }),
                Right::Outside => {
                    let last = address(key.to.as_ref().unwrap_or(&key.from), set.key.first())?;
                    let range = if Some(last) == peer { last.to_string() } else { format!("{}-{last}", peer?) };
                    Some(Passage { from: me.clone(), to: "outside".into(), range: Some(range), ports })
                }
            }
        };
        let elements: &Members = &set.elements;
        elements.keys().filter_map(passage).collect()
    }
}

/// How names of sets end, and what that means.
const VERSIONS: [char; 2] = ['4', '6'];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// The sets of one family alone.
fn of_version(table: &Table, version: char) -> Ruleset {
    let own = table.sets.iter().filter(|(name, _)| name.ends_with(version));
    of_sets(own.map(|(name, set)| (name.clone(), set.clone())).collect())
}

fn of_sets(sets: BTreeMap<String, Set>) -> Ruleset {
    let table = Table { sets: sets.into(), ..Table::default() };
    Ruleset { tables: BTreeMap::from([((Family::Netdev, TABLE.to_owned()), table)]) }
}

/// Whether the elements of a set of that name stand for edges.
fn is_of_edges(place: &str, name: &str) -> bool {
    let stem = name.trim_end_matches(VERSIONS);
    match place {
        "fabric" => ["edges", "edge_ranges", "direct", "lan", "reach"].contains(&stem),
        _ => right_of(stem).is_some(),
    }
}

/// The indexes of the wires that an element of the panel names.
fn ends(key: &Key, answer: Option<&[u8]>) -> impl Iterator<Item = u32> {
    [index(&key.from), answer.and_then(index)].into_iter().flatten()
}

fn told(at: &Spot, passage: &Passage, gone: bool, family: Option<&'static str>) -> Drift {
    let edge = passage.to_string();
    match (at.place.as_str(), gone) {
        ("fabric", true) => Drift::MissingEdge { edge, family },
        ("fabric", false) => Drift::UndeclaredEdge { edge, family },
        (_, true) => Drift::MissingRight { at: at.clone(), edge, family },
        (_, false) => Drift::UndeclaredRight { at: at.clone(), edge, family },
    }
}

/// What an element of a lock gives.
#[derive(Clone, Copy)]
enum Right {
    In,
    Out,
    Wan,
    Outside,
}

fn right_of(stem: &str) -> Option<Right> {
    match stem {
        "in" | "in_ranges" => Some(Right::In),
        "out" | "out_ranges" => Some(Right::Out),
        "direct" => Some(Right::Wan),
        "lan" | "reach" => Some(Right::Outside),
        _ => None,
    }
}

/// Whether an edge leads from one of these to the other, whichever way; what is outside is behind the uplink.
fn joins(edge: &Passage, a: &str, b: &str) -> bool {
    let to = match edge.to.as_str() {
        "lan" | "wan" => "uplink",
        to => to,
    };
    (edge.from == a && to == b) || (edge.from == b && to == a)
}

/// Whether two sets take the same elements.
fn is_alike(old: &Set, new: &Set) -> bool {
    let shape = |set: &Set| (set.key.clone(), set.data, set.interval, set.dynamic, set.counter);
    shape(old) == shape(new)
}

fn index(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn address(key: &[u8], field: Option<&Field>) -> Option<IpAddr> {
    match field? {
        Field::Ipv4Addr => Some(<[u8; 4]>::try_from(key.get(..4)?).ok()?.into()),
        Field::Ipv6Addr => Some(<[u8; 16]>::try_from(key.get(..16)?).ok()?.into()),
        _ => None,
    }
}
