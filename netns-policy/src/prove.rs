//! The proof: for every packet, the compiled rules do what the policy says.
//!
//! The rules are run on *classes* of packets (`prove/machine.rs`), which they divide wherever they tell packets apart.
//! What comes out is compared, exactly and as sets, with what ought to pass (`prove/spec.rs`), which is written from the
//! README of this crate and reads the graph, the addresses and the host's network, and nothing of the compiler. So the
//! classes follow from the rules and from nothing else, and no packet is left out:
//!
//! - of every wire into the fabric each frame: any EtherType, tag, family, length, protocol, port, flag, fragment,
//!   routing header, source and destination, and every header that an ICMP error can embed;
//! - of every lock, the gateway and the host's table each datagram, on each link, in each state and direction that
//!   connection tracking can say, with limits exhausted or not; whatever the fabric may have handed over.
//!
//! # What follows for a packet on its whole way
//!
//! The gates are proved one by one, each for all packets, so a packet that root in `A` puts on the wire arrives in `B`
//! if, and only if, the panel hands it on (an edge from `A` to `B` covers its destination port; or an edge from `B` to
//! `A` covers its source port, and it is no opening of TCP; or it is an echo or an ICMP error of theirs), **and** `B`'s
//! lock takes it (new: along an edge to `B`; established: either direction; related: ICMP errors alone). What a program
//! in `A` sends has passed `A`'s own lock too. [`Proof`] says how many classes that were.
//!
//! # What is taken for granted
//!
//! The meaning of expressions ([`crate::ruleset::decide`], held against the kernel by other tests) and that conntrack
//! calls `established` and `related` only what is. What a rule can ask is taken to be independent of the rest, so that
//! there are rather more packets here than in the world. A rule that cannot be followed is refused, not skipped.

mod class;
mod compare;
mod index;
mod machine;
mod numbers;
mod spec;
#[cfg(test)]
mod tests;
mod witness;

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::address::AddressPlan;
use crate::desired::{Desired, GROUP};
use crate::graph::AllowGraph;
use crate::network::HostNetwork;
use crate::observed::Observed;
use crate::packet::Packet;
use crate::ruleset::compile::LEG;
use crate::ruleset::decide::conntrack::CtState;
use crate::ruleset::decide::{Env, hooks};
use crate::ruleset::{Chain, Expr, Family, Field, HookPoint, MetaKey, Reg, Rule, Ruleset, Table};
use crate::topology::{Place, leg_link};
use class::{Class, Ct, Ip, Var};
use compare::{Deviation, compare};
use machine::{At, Link, Machine, Outcome, Unreadable};
use numbers::Numbers;
use spec::{Facts, Spec};

/// That the rules do what the policy says, and into how many classes they divide packets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Proof {
    /// At the fabric.
    pub panel: usize,
    /// In the services.
    pub locks: usize,
    /// In the gateway `uplink`.
    pub gateway: usize,
    /// On the host.
    pub host: usize,
}

impl Proof {
    /// All of them.
    pub fn classes(&self) -> usize {
        self.panel + self.locks + self.gateway + self.host
    }
}

/// Packets with which rules do another thing than the policy says.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{gate} {what}")]
pub struct Counterexample {
    /// Which rules, where.
    pub gate: String,
    /// What they do with packets that ought to be dealt with otherwise.
    pub what: String,
    /// The class of packets, in words.
    pub class: String,
    /// One of them; none where a rule cannot be followed.
    pub packet: Option<Packet>,
    /// The rules and elements that it meets, in order.
    pub trace: Vec<String>,
}

/// Proves that `desired`, made from `graph`, does what `graph` says.
///
/// # Errors
///
/// A [`Counterexample`]: a mistake of the compiler.
pub fn prove(
    graph: &AllowGraph,
    addresses: &AddressPlan,
    host: &HostNetwork,
    desired: &Desired,
) -> Result<Proof, Box<Counterexample>> {
    let wires = desired.wires.iter().map(|(place, wire)| (place.clone(), wire.index)).collect();
    let facts = Facts::new(graph, addresses, host, wires);
    wired(&facts, desired)?;
    let mut proof = Proof { panel: panel(&facts, desired)?, ..Proof::default() };
    let none = Ruleset::default();
    for place in desired.wires.keys() {
        let rules = desired.locks.get(place).unwrap_or(&none);
        match place {
            Place::Relay | Place::Service(_) => proof.locks += lock(&facts, place, rules)?,
            Place::Uplink => proof.gateway += gateway(&facts, rules)?,
            Place::Host => {}
        }
    }
    if facts.has_host_table() {
        proof.host = on_host(&facts, desired.locks.get(&Place::Host).unwrap_or(&none))?;
    }
    Ok(proof)
}

/// The same of the rules that the kernel holds.
///
/// # Errors
///
/// A [`Counterexample`]: somebody has changed rules, or they are of another policy.
pub fn prove_observed(
    graph: &AllowGraph,
    addresses: &AddressPlan,
    observed: &Observed,
    desired: &Desired,
) -> Result<Proof, Box<Counterexample>> {
    let rules = |(place, wire): (&Place, &crate::desired::Wire)| {
        (place.clone(), observed.rules(place, wire.netns.as_deref()).cloned().unwrap_or_default())
    };
    let mut locks: BTreeMap<Place, Ruleset> = desired.wires.iter().map(rules).collect();
    locks.insert(Place::Host, observed.host_rules.clone());
    let fabric = observed.fabric.as_ref().map(|fabric| fabric.rules.clone()).unwrap_or_default();
    let foreign = observed.fabric.iter().flat_map(|fabric| &fabric.foreign_tables).next();
    if let Some((family, name)) = foreign {
        return Err(in_the_fabric(format!(
            "has a table {family} {name} of somebody else, which may come before the panel"
        )));
    }
    if let Some(chain) = unwired(&fabric, desired) {
        return Err(in_the_fabric(format!("has a chain {chain} at a link that is no wire of the policy")));
    }
    prove(graph, addresses, &observed.host, &Desired { fabric, locks, ..desired.clone() })
}

/// A chain of the fabric that hangs at a link to which nobody desires a wire.
fn unwired<'a>(fabric: &'a Ruleset, desired: &Desired) -> Option<&'a str> {
    let wires: BTreeSet<&str> = desired.wires.values().map(|wire| wire.outer.as_str()).collect();
    let mut chains = fabric.tables.values().flat_map(|table| &table.chains);
    let elsewhere = |chain: &Chain| match &chain.hook {
        Some(hook) => hook.device.as_deref().is_none_or(|device| !wires.contains(device)),
        None => false,
    };
    chains.find(|(_, chain)| elsewhere(chain)).map(|(name, _)| name.as_str())
}

/// What is in the fabric that is none of ours, and that no gate asks.
fn in_the_fabric(what: String) -> Box<Counterexample> {
    let class = "every packet that it takes".into();
    Box::new(Counterexample { gate: "the fabric".into(), what, class, packet: None, trace: vec![] })
}

/// Rules at one hook, of which something is asked.
struct Gate<'a> {
    /// Whose, for people.
    name: String,
    family: Family,
    rules: &'a Ruleset,
    machine: &'a Machine<'a>,
    at: At<'a>,
    /// By which address rights are told apart.
    key: Var,
    /// Whose wire has which index.
    wires: BTreeMap<u32, String>,
}

impl Gate<'_> {
    /// How many classes there are.
    fn holds(&self, packets: &[Class], spec: &Spec) -> Result<usize, Box<Counterexample>> {
        let mut count = 0;
        for class in packets {
            let leaves =
                self.machine.run(self.family, &self.at, class).map_err(|rule| unreadable(&self.name, &rule))?;
            if let Some(deviation) = compare(&leaves, spec, self.key) {
                return Err(self.counterexample(&deviation));
            }
            count += leaves.len();
        }
        Ok(count)
    }

    fn counterexample(&self, deviation: &Deviation) -> Box<Counterexample> {
        let Deviation { class, does, ought } = deviation;
        let point = witness::some_point(class);
        let packet = witness::packet(class.ip(), &point);
        let trace = self.trace(&packet, &point);
        let what = format!("{} what ought to {}", self.does(*does), self.ought(*ought));
        Box::new(Counterexample {
            gate: self.name.clone(),
            what,
            class: class.to_string(),
            packet: Some(packet),
            trace,
        })
    }

    fn wire(&self, index: u32) -> String {
        self.wires.get(&index).map_or_else(|| format!("a wire {index} that there is not"), Clone::clone)
    }

    fn does(&self, outcome: Option<Outcome>) -> String {
        match outcome {
            None => "drops".into(),
            Some(Outcome::Accept) => "lets pass".into(),
            Some(Outcome::Forward(index)) => format!("sends to {}", self.wire(index)),
            Some(Outcome::Masquerade) => "masquerades".into(),
            Some(Outcome::Redirect(_, Some(port))) => format!("redirects to port {port}"),
            Some(Outcome::Redirect(..)) => "redirects".into(),
        }
    }

    fn ought(&self, outcome: Option<Outcome>) -> String {
        match outcome {
            None => "be dropped".into(),
            Some(Outcome::Accept) => "pass as it is".into(),
            Some(Outcome::Forward(index)) => format!("go to {}", self.wire(index)),
            Some(Outcome::Masquerade) => "be masqueraded".into(),
            Some(Outcome::Redirect(_, Some(port))) => format!("be redirected to port {port}"),
            Some(Outcome::Redirect(..)) => "be redirected".into(),
        }
    }

    /// The rules and elements that a packet meets, said by the interpreter.
    fn trace(&self, packet: &Packet, point: &witness::Point) -> Vec<String> {
        let env = self.env(point);
        let outcome = hooks(self.rules, self.family, self.at.point, self.at.device, packet, &env);
        let mut trace: Vec<String> =
            outcome.trace.iter().map(|(chain, rule)| format!("chain {chain}, rule {}", rule + 1)).collect();
        for (name, key) in &outcome.elements {
            let set = self.rules.tables.values().find_map(|table| table.sets.get(*name));
            trace.extend(set.map(|set| format!("set {name}, element {}", set.key_in_words(key, &self.wires))));
        }
        trace
    }

    fn env(&self, point: &witness::Point) -> Env<'_> {
        let index = |link: Option<&Link>| link.map_or(0, |link| link.index);
        let group = |link: Option<&Link>| link.map(|link| link.group);
        let (iif, oif) = (index(self.at.iif), index(self.at.oif));
        let ct = Ct::ALL[point[Var::Ct as usize] as usize % Ct::ALL.len()];
        let ct = CtState { state: ct.state(), direction: ct.direction().unwrap_or_default(), status: 0 };
        let to = point[Var::Daddr as usize];
        let local = self.at.local.iter().any(|(_, local)| local.holds(to));
        Env {
            iif,
            iifname: self.at.iif.map_or("", |link| &link.name),
            oif,
            oifname: self.at.oif.map_or("", |link| &link.name),
            iifgroup: group(self.at.iif),
            oifgroup: group(self.at.oif),
            ct: (ct.state != CtState::INVALID).then_some(ct),
            fib_daddr_type: if local { crate::ruleset::decide::LOCAL } else { crate::ruleset::decide::UNICAST },
            limits_exhausted: point[Var::Exhausted as usize] == 1,
            connections: if point[Var::Crowded as usize] == 1 { u32::MAX } else { 0 },
            ..Env::default()
        }
    }
}

/// That everybody whom the policy gives a wire has just one, with addresses of its own and an index and a name that nobody
/// else's has: what is asked of the rules is asked wire by wire.
fn wired(facts: &Facts<'_>, desired: &Desired) -> Result<(), Box<Counterexample>> {
    let wrong = |what: String| {
        let gate = "the fabric".to_owned();
        Err(Box::new(Counterexample { gate, what, class: "every packet".into(), packet: None, trace: vec![] }))
    };
    let places = facts.places();
    if let Some(place) = places.iter().find(|place| !desired.wires.contains_key(*place)) {
        return wrong(format!("has no wire of {place}"));
    }
    let (mut indexes, mut names) = (BTreeMap::new(), BTreeMap::new());
    for (place, wire) in &desired.wires {
        if !places.contains(place) {
            return wrong(format!("has a wire of {place}, which the policy does not give it"));
        }
        if wire.place != *place || facts.addresses.of(place) != Some(wire.addresses) {
            return wrong(format!("has a wire of {place} with the addresses of somebody else"));
        }
        let twice = indexes.insert(wire.index, place).or(names.insert(&wire.outer, place));
        if let Some(other) = twice {
            return wrong(format!("has one wire of {other} and {place}"));
        }
    }
    Ok(())
}

fn unreadable(gate: &str, rule: &Unreadable) -> Box<Counterexample> {
    Box::new(Counterexample {
        gate: gate.to_owned(),
        what: format!("cannot be followed in chain {}, rule {}: {}", rule.chain, rule.rule + 1, rule.why),
        class: "every packet that comes so far".into(),
        packet: None,
        trace: vec![],
    })
}

fn panel(facts: &Facts<'_>, desired: &Desired) -> Result<usize, Box<Counterexample>> {
    let machine = Machine::new(&desired.fabric);
    let packets = Class::frames();
    let wires: BTreeMap<u32, String> =
        desired.wires.iter().map(|(place, wire)| (wire.index, place.to_string())).collect();
    let mut count = 0;
    for (place, wire) in &desired.wires {
        let link = Link { index: wire.index, name: wire.outer.to_string(), group: GROUP };
        let at = At {
            point: HookPoint::Ingress,
            device: Some(wire.outer.as_str()),
            iif: Some(&link),
            oif: None,
            local: &[],
        };
        let name = format!("the fabric, behind the wire of {place},");
        let wires = wires.clone();
        let gate = Gate {
            name,
            family: Family::Netdev,
            rules: &desired.fabric,
            machine: &machine,
            at,
            key: Var::Daddr,
            wires,
        };
        count += gate.holds(&packets, &facts.panel(place))?;
    }
    Ok(count)
}

/// A namespace with all its hooks.
struct Room<'a> {
    name: String,
    rules: &'a Ruleset,
    machine: Machine<'a>,
    links: Vec<Link>,
    local: Vec<(Ip, Numbers)>,
    packets: Vec<Class>,
}

impl<'a> Room<'a> {
    /// Of the addresses and links of its own it knows none yet, but for the links that its rules name, and `own`.
    fn new(name: String, rules: &'a Ruleset, own: &[&str], groups: &[u32]) -> Result<Self, Box<Counterexample>> {
        let links = links(rules, own, groups).map_err(|rule| unreadable(&name, &rule))?;
        Ok(Self { name, rules, machine: Machine::new(rules), links, local: vec![], packets: Class::datagrams() })
    }

    fn holds(
        &self,
        point: HookPoint,
        ways: (Option<&Link>, Option<&Link>),
        spec: &Spec,
    ) -> Result<usize, Box<Counterexample>> {
        let (iif, oif) = ways;
        let at = At { point, device: None, iif, oif, local: &self.local };
        let from = iif.map(|link| format!(" from {}", link.name)).unwrap_or_default();
        let by = oif.map(|link| format!(" by {}", link.name)).unwrap_or_default();
        let name = format!("{} at {}{from}{by}", self.name, word(point));
        let key = if point == HookPoint::Input { Var::Saddr } else { Var::Daddr };
        let gate = Gate {
            name,
            family: Family::Inet,
            rules: self.rules,
            machine: &self.machine,
            at,
            key,
            wires: BTreeMap::new(),
        };
        gate.holds(&self.packets, spec)
    }

    /// Asks of every link, or pair of links.
    fn all(&self, point: HookPoint, spec: impl Fn(&Link, &Link) -> Spec) -> Result<usize, Box<Counterexample>> {
        let mut count = 0;
        for one in &self.links {
            match point {
                HookPoint::Ingress | HookPoint::Prerouting | HookPoint::Input => {
                    count += self.holds(point, (Some(one), None), &spec(one, one))?;
                }
                HookPoint::Output => count += self.holds(point, (None, Some(one)), &spec(one, one))?,
                HookPoint::Forward | HookPoint::Postrouting => {
                    if point == HookPoint::Postrouting {
                        // What this namespace sends itself came from nowhere.
                        count += self.holds(point, (None, Some(one)), &spec(one, one))?;
                    }
                    for other in &self.links {
                        count += self.holds(point, (Some(one), Some(other)), &spec(one, other))?;
                    }
                }
            }
        }
        Ok(count)
    }
}

fn word(point: HookPoint) -> &'static str {
    match point {
        HookPoint::Ingress => "ingress",
        HookPoint::Prerouting => "prerouting",
        HookPoint::Input => "input",
        HookPoint::Forward => "forward",
        HookPoint::Output => "output",
        HookPoint::Postrouting => "postrouting",
    }
}

/// Every link that these rules, or what is asked of them, can tell from others: each index with each name and each group
/// that somebody names, and with one of each kind that nobody names. `own` are names that the question tells apart, `groups`
/// are groups that it does.
fn links(rules: &Ruleset, own: &[&str], groups: &[u32]) -> Result<Vec<Link>, Unreadable> {
    let mut told = Told {
        names: own.iter().map(|name| (*name).to_owned()).collect(),
        groups: groups.iter().copied().collect(),
        ..Told::default()
    };
    let mut asks_names = own.len() > 1;
    for table in rules.tables.values() {
        for (name, chain) in &table.chains {
            for (n, rule) in chain.rules.iter().enumerate().filter(|(_, rule)| machine::decides(rule)) {
                let asked = told.read(table, rule);
                asks_names |= asked.map_err(|why| Unreadable { chain: name.clone(), rule: n, why })?;
            }
        }
    }
    const LO: u32 = 1;
    let Told { mut names, mut indexes, mut groups } = told;
    indexes.remove(&LO);
    names.remove("lo");
    indexes.extend((LO + 1..).find(|index| !indexes.contains(index)));
    let unnamed = (0u32..).map(|n| format!("other{n}")).find(|name| !names.contains(name));
    names.extend(unnamed.filter(|_| asks_names));
    groups.extend((0..).find(|group| !groups.contains(group)));
    let mut links = vec![Link { index: LO, name: "lo".into(), group: 0 }];
    for index in indexes {
        for name in &names {
            links.extend(groups.iter().map(|group| Link { index, name: name.clone(), group: *group }));
        }
    }
    Ok(links)
}

/// Links that are told apart.
#[derive(Default)]
struct Told {
    names: BTreeSet<String>,
    indexes: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

impl Told {
    /// Adds what a rule compares links with. Whether it asks for names.
    fn read(&mut self, table: &Table, rule: &Rule) -> Result<bool, &'static str> {
        const ODD: &str = "it does more with a link than to compare it";
        let mut asks_names = false;
        // What was last loaded where: a register that was covered from another one on, the machine does not read.
        let mut loaded: BTreeMap<u8, MetaKey> = BTreeMap::new();
        for expr in rule.0.iter() {
            match expr {
                Expr::Meta { key, dreg } => {
                    let (name, number) = (is_name(*key), is_index(*key) || is_group(*key));
                    asks_names |= name;
                    if name || number {
                        loaded.insert(dreg.0, *key)
                    } else {
                        loaded.remove(&dreg.0)
                    };
                }
                Expr::Cmp { sreg, data, .. } => {
                    let Some(key) = loaded.get(&sreg.0) else { continue };
                    if is_name(*key) {
                        self.names.insert(name_of(data).ok_or(ODD)?);
                        continue;
                    }
                    let number = data[..].try_into().map(u32::from_ne_bytes).map_err(|_| ODD)?;
                    if is_index(*key) {
                        self.indexes.insert(number)
                    } else {
                        self.groups.insert(number)
                    };
                }
                Expr::Lookup { set, sreg, dreg, .. } => {
                    self.asked(table, set, *sreg, &loaded).ok_or(ODD)?;
                    loaded.retain(|register, _| dreg.is_none_or(|dreg| dreg.0 != *register));
                }
                Expr::Payload { dreg, .. }
                | Expr::RoutingHeaderExists { dreg }
                | Expr::FragmentHeaderExists { dreg }
                | Expr::Immediate { dreg, .. }
                | Expr::Ct { dreg, .. }
                | Expr::FibDaddrType { dreg }
                | Expr::RtTcpMss { dreg } => drop(loaded.remove(&dreg.0)),
                Expr::Bitwise { sreg, dreg, .. } => {
                    if loaded.contains_key(&sreg.0) {
                        return Err(ODD);
                    }
                    loaded.remove(&dreg.0);
                }
                // The machine refuses these, or knows where they lead only if it is a constant.
                Expr::Update { .. }
                | Expr::CountOver { .. }
                | Expr::CtCountOver { .. }
                | Expr::Fwd { .. }
                | Expr::Verdict(_)
                | Expr::Reject(_)
                | Expr::Log { .. }
                | Expr::Limit { .. }
                | Expr::Counter
                | Expr::Masquerade
                | Expr::Dnat { .. }
                | Expr::SetTcpMss { .. }
                | Expr::Unknown(_) => {}
            }
        }
        Ok(asks_names)
    }

    /// A set may be asked for an index where its key has one, for nothing else of a link.
    fn asked(&mut self, table: &Table, set: &str, sreg: Reg, loaded: &BTreeMap<u8, MetaKey>) -> Option<()> {
        // The machine refuses a set that is not there.
        let Some(set) = table.sets.get(set) else { return Some(()) };
        let mut at = 0;
        for field in &set.key {
            let register = sreg.0.checked_add(u8::try_from(at / 4).ok()?)?;
            if let Some(key) = loaded.get(&register) {
                if !is_index(*key) || *field != Field::IfaceIndex {
                    return None;
                }
                let here = set.elements.keys().filter_map(|key| key.from.get(at..at + 4)?.try_into().ok());
                self.indexes.extend(here.map(u32::from_ne_bytes));
            }
            at += field.padded_len();
        }
        Some(())
    }
}

fn is_name(key: MetaKey) -> bool {
    matches!(key, MetaKey::Iifname | MetaKey::Oifname)
}

fn is_index(key: MetaKey) -> bool {
    matches!(key, MetaKey::Iif | MetaKey::Oif)
}

fn is_group(key: MetaKey) -> bool {
    matches!(key, MetaKey::Iifgroup | MetaKey::Oifgroup)
}

/// A whole name, as it is compared: not the beginning of many.
fn name_of(data: &[u8]) -> Option<String> {
    let end = data.iter().position(|byte| *byte == 0)?;
    (data.len() == 16).then(|| String::from_utf8(data[..end].to_vec()).ok())?
}

fn lock(facts: &Facts<'_>, place: &Place, rules: &Ruleset) -> Result<usize, Box<Counterexample>> {
    let service = match place {
        Place::Service(name) => facts.graph.service(name.as_str()),
        _ => None,
    };
    let mut room = Room::new(format!("the lock of {place}"), rules, &["net0"], &[])?;
    room.machine.limits = service.map(|service| service.limits).unwrap_or_default();
    let mut count = room.all(HookPoint::Prerouting, |_, _| Spec::everything())?;
    count += room.all(HookPoint::Input, |from, _| facts.input(place, from))?;
    count += room.all(HookPoint::Forward, |_, _| Spec::default())?;
    count += room.all(HookPoint::Output, |by, _| match service {
        Some(service) => facts.output(service, by),
        None => facts.relay_output(by),
    })?;
    count += room.all(HookPoint::Postrouting, |_, _| Spec::everything())?;
    Ok(count)
}

fn gateway(facts: &Facts<'_>, rules: &Ruleset) -> Result<usize, Box<Counterexample>> {
    let room = Room::new("the gateway uplink".into(), rules, &["net0", LEG], &[])?;
    let mut count = room.all(HookPoint::Prerouting, |from, _| facts.gateway_prerouting(from))?;
    count += room.all(HookPoint::Input, |from, _| facts.gateway_input(from))?;
    count += room.all(HookPoint::Forward, |from, by| facts.gateway_forward(from, by))?;
    count += room.all(HookPoint::Output, |by, _| facts.gateway_output(by))?;
    count += room.all(HookPoint::Postrouting, |_, by| facts.gateway_postrouting(by))?;
    Ok(count)
}

fn on_host(facts: &Facts<'_>, rules: &Ruleset) -> Result<usize, Box<Counterexample>> {
    let network = &facts.graph.network().name;
    let (wire, leg) = (Place::Host.inner_link(network), leg_link(network));
    // Where forwarding was off is asked of the uplinks by name and of our links by group, whether or not a rule does.
    let uplinks = facts.host.uplinks4.iter().chain(&facts.host.uplinks6).map(String::as_str);
    let near = Ip::BOTH.into_iter().flat_map(|ip| facts.links_of_callers(ip));
    let own: Vec<&str> = [wire.as_str(), leg.as_str()].into_iter().chain(uplinks).chain(near).collect();
    let mut room = Room::new("the table on the host".into(), rules, &own, &[GROUP])?;
    room.local = facts.host_local();
    let mut count = room.all(HookPoint::Prerouting, |from, _| facts.host_prerouting(from))?;
    count += room.all(HookPoint::Input, |from, _| facts.host_input(from))?;
    count += room.all(HookPoint::Forward, |from, by| facts.host_forward(from, by))?;
    count += room.all(HookPoint::Output, |by, _| facts.host_output(by))?;
    count += room.all(HookPoint::Postrouting, |_, by| facts.host_postrouting(by))?;
    Ok(count)
}
