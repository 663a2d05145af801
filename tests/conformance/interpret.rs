//! The interpreter half: what the compiled rules say of each pair, packet by packet, without a kernel.
//!
//! A connection is open when its first packet arrives and the answer comes back, each asked at every gate on its way.
//! One of the two alone is a failure of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use netns_policy::Source;
use netns_policy::address::{AddressBook, AddressPlan, Addresses};
use netns_policy::desired::Desired;
use netns_policy::graph::AllowGraph;
use netns_policy::network::HostNetwork;
use netns_policy::observed::Observed;
use netns_policy::packet::build::flag;
use netns_policy::packet::{Ends, Packet};
use netns_policy::port::Protocol;
use netns_policy::ruleset::compile::Capabilities;
use netns_policy::ruleset::decide::walk::{Arrival, Connections, Fate, Link, Sender, WAN as WORLD, World};
use netns_policy::topology;

use super::Refused;
use super::case::{OUTSIDERS, Pair};
use super::outside::{LAN, METADATA, WAN};

/// The host's own addresses, and what is on its links.
const HOST: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];
const ON_LINK: [&str; 3] = ["198.51.100.0/24", "192.168.77.0/24", "2001:db8:1::/64"];
const UPLINK: &str = "eth0";

/// An address that a wire would have if it had link-local ones.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 1);

/// A port of a client.
const EPHEMERAL: u16 = 40000;

/// The machine of the interpreter: what it remembers from step to step.
#[derive(Debug, Default)]
pub struct Machine {
    book: AddressBook,
    known: BTreeMap<String, Addresses>,
    now: Option<Model>,
}

/// One policy in force.
#[derive(Debug)]
struct Model {
    world: World,
    addresses: AddressPlan,
    host_wire: Option<Addresses>,
    host: BTreeSet<IpAddr>,
}

/// What one connection does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Seen {
    Open,
    Closed,
    /// The first packet arrives, the answer does not come back.
    Half,
}

impl Machine {
    /// Puts a policy in force; a refused one changes nothing. The addresses that changed are the lines that come back.
    pub fn apply(&mut self, policy: &str) -> Result<Vec<String>, Refused> {
        let graph = AllowGraph::parse(&[Source::json("policy.json", policy)])?.graph;
        let addresses = AddressPlan::assign(&graph, &self.book, 1, false)?;
        let observed = Observed { host: host(), ..Observed::default() };
        let (desired, next) = Desired::new(&graph, &addresses, &observed, Capabilities::default(), 0);
        self.book = AddressBook { next_index: next, ..addresses.book().clone() };
        let mut moved = Vec::new();
        for service in graph.services() {
            let (name, now) = (service.name.to_string(), addresses.service(service.name.as_str()));
            let before = now.and_then(|now| self.known.insert(name.clone(), now)).filter(|before| now != Some(*before));
            moved.extend(before.map(|before| format!("{name} had {before:?}, now it has {now:?}")));
        }
        self.now = Some(Model::new(&desired, addresses));
        Ok(moved)
    }

    /// What differs from `pairs`, a line for each.
    pub fn differences(&self, pairs: &[Pair]) -> Vec<String> {
        let Some(model) = &self.now else {
            return pairs.iter().filter(|pair| pair.open).map(|pair| line(pair, "nothing is in force")).collect();
        };
        let mut differences: Vec<String> = pairs.iter().flat_map(|pair| self.pair(model, pair)).collect();
        differences.extend(self.link_local(model, pairs));
        differences
    }

    fn pair(&self, model: &Model, pair: &Pair) -> Vec<String> {
        let tried = match (pair.from.as_str(), pair.to.as_str()) {
            (from, "host") => model.to_host(from, pair),
            (from, to @ ("wan" | "lan" | "metadata")) => model.to_outside(from, to, pair),
            (from @ ("wan" | "lan" | "metadata"), to) => model.inbound(from, self.known.get(to), pair),
            (from, to) => model.inside(from, self.known.get(to), pair),
        };
        let wrong = |(address, open, seen): &(IpAddr, bool, Seen)| {
            let fine = if *open { *seen == Seen::Open } else { *seen == Seen::Closed };
            (!fine).then(|| line(pair, &format!("{address} is {seen:?}")))
        };
        let nothing_tried = pair.open && !tried.iter().any(|(_, open, _)| *open);
        let mut lines: Vec<String> = tried.iter().filter_map(wrong).collect();
        lines.extend(nothing_tried.then(|| line(pair, "there is no address at which it could be open")));
        lines
    }

    /// Link-local addresses: closed always, whoever sends.
    fn link_local(&self, model: &Model, pairs: &[Pair]) -> Vec<String> {
        let inner = pairs.iter().filter(|pair| !OUTSIDERS.contains(&pair.from.as_str()));
        let mut lines = Vec::new();
        for pair in inner {
            let Some(v6) = model.addresses.service(&pair.from).and_then(|own| own.v6) else { continue };
            let ends = [(v6, LINK_LOCAL), (LINK_LOCAL, LINK_LOCAL)].map(|(from, to)| Ends::V6 { from, to });
            for (ends, sender) in ends.into_iter().flat_map(|e| [(e, Sender::Program), (e, Sender::Root)]) {
                let packet = first(ends, pair.protocol, pair.port);
                if model.world.carry(&pair.from, &packet, sender, &Connections::new()).is_delivered() {
                    lines.push(line(pair, "it is open at a link-local address"));
                }
            }
        }
        lines
    }
}

/// An address, whether it must be open there, and what was seen.
type Tried = Vec<(IpAddr, bool, Seen)>;

impl Model {
    fn new(desired: &Desired, addresses: AddressPlan) -> Self {
        let host_wire = desired.wires.get(&topology::Place::Host).map(|wire| wire.addresses);
        let leg = desired.leg.iter().flat_map(|leg| leg.host.iter());
        let host: BTreeSet<IpAddr> =
            host().addresses.into_iter().chain(leg).chain(host_wire.iter().flat_map(Addresses::iter)).collect();
        Self { world: World::of(desired, &self::host()), addresses, host_wire, host }
    }

    /// From a service or the host to where a service is, or was.
    fn inside(&self, from: &str, to: Option<&Addresses>, pair: &Pair) -> Tried {
        let mine = if from == "host" { self.host_wire } else { self.addresses.service(from) };
        let (Some(mine), Some(to)) = (mine, to) else { return unreachable(to, pair) };
        mine.iter()
            .zip(to.iter())
            .filter_map(|(mine, to)| {
                let ends = Ends::new(mine, to)?;
                Some((to, pair.open, self.talk(from, &pair.to, ends, pair)))
            })
            .collect()
    }

    fn talk(&self, from: &str, to: &str, ends: Ends, pair: &Pair) -> Seen {
        let packet = first(ends, pair.protocol, pair.port);
        let mut connections = Connections::new();
        if !self.world.send(from, &packet, Sender::Program, &mut connections).is_delivered() {
            // Without the client's own lock it must be closed too.
            let by_root = self.world.carry(from, &packet, Sender::Root, &Connections::new());
            return if by_root.is_delivered() { Seen::Half } else { Seen::Closed };
        }
        let answer = answer(ends.reversed(), pair.protocol, pair.port);
        let back = self.world.send(to, &answer, Sender::Program, &mut connections);
        if back.is_delivered() { Seen::Open } else { Seen::Half }
    }

    fn to_host(&self, from: &str, pair: &Pair) -> Tried {
        let Some(mine) = self.addresses.service(from) else { return Vec::new() };
        let on_wire = |address: &IpAddr| self.host_wire.is_some_and(|wire| wire.iter().any(|own| own == *address));
        self.host
            .iter()
            .filter_map(|address| {
                let ends = Ends::new(same_family(mine, *address)?, *address)?;
                // What the host answers stands on its own wire alone.
                let open = pair.open && on_wire(address);
                let seen = match self.leaves(from, ends, pair) {
                    Seen::Closed => Seen::Closed,
                    _ => self.talk(from, "host", ends, pair),
                };
                Some((*address, open, seen))
            })
            .collect()
    }

    fn to_outside(&self, from: &str, to: &str, pair: &Pair) -> Tried {
        let Some(mine) = self.addresses.service(from) else { return Vec::new() };
        let there = outside(to).into_iter();
        let ends = there.filter_map(|address| Some((address, Ends::new(same_family(mine, address)?, address)?)));
        ends.map(|(address, ends)| (address, pair.open, self.leaves(from, ends, pair))).collect()
    }

    /// Out through the gateway, if there is one, and the answer back in.
    fn leaves(&self, from: &str, ends: Ends, pair: &Pair) -> Seen {
        let packet = first(ends, pair.protocol, pair.port);
        let mut connections = Connections::new();
        let walk = self.world.send(from, &packet, Sender::Program, &mut connections);
        match walk.fate {
            Fate::Delivered(WORLD) => {}
            Fate::Delivered(_) => return Seen::Half,
            _ => return Seen::Closed,
        }
        let Some(leg) = &self.world.leg else { return Seen::Half };
        let own = leg.addresses.iter().find(|own| own.is_ipv4() == ends.to().is_ipv4());
        let Some(masked) = own.and_then(|own| Ends::new(*own, ends.to())) else { return Seen::Half };
        // Each of the two that forwarded it remembers it as it saw it.
        connections.entry(leg.gateway.clone()).or_default().record(&packet);
        connections.entry("host".into()).or_default().record(&first(masked, pair.protocol, pair.port));
        let answer = |ends: Ends| answer(ends.reversed(), pair.protocol, pair.port);
        let (outer, inner) = (answer(masked), answer(ends));
        let arrival = Arrival { at_host: Some(outer), at_gateway: Some(inner.clone()), on_wire: inner };
        if self.world.receive(&arrival, &connections).is_delivered() { Seen::Open } else { Seen::Half }
    }

    /// What comes from outside finds no way in, neither by the leg nor by the host's wire.
    fn inbound(&self, from: &str, to: Option<&Addresses>, pair: &Pair) -> Tried {
        let Some(to) = to else { return Vec::new() };
        let there = outside(from);
        let ends = to.iter().filter_map(|to| {
            let from = there.iter().find(|from| from.is_ipv4() == to.is_ipv4());
            // The other family of a place that has none is tried from some address all the same.
            let any = if to.is_ipv4() { "192.0.2.99" } else { "2001:db8:99::99" };
            let from = from.copied().or_else(|| any.parse().ok())?;
            Some((to, Ends::new(from, to)?))
        });
        let seen = |ends: Ends| {
            let (packet, none) = (first(ends, pair.protocol, pair.port), Connections::new());
            let arrival =
                Arrival { at_host: Some(packet.clone()), at_gateway: Some(packet.clone()), on_wire: packet.clone() };
            let leg = self.world.receive(&arrival, &none);
            let uplink = Link { index: 2, name: UPLINK.into() };
            let wire = self.world.enter_by_wire("host", &uplink, &packet, &none);
            let arrived = leg.is_delivered() || wire.is_delivered();
            if arrived { Seen::Open } else { Seen::Closed }
        };
        ends.map(|(to, ends)| (to, pair.open, seen(ends))).collect()
    }
}

/// A service that is not there sends nothing, and one that never was cannot be asked.
fn unreachable(to: Option<&Addresses>, pair: &Pair) -> Tried {
    to.iter().flat_map(|to| to.iter()).map(|to| (to, pair.open, Seen::Closed)).collect()
}

fn same_family(own: Addresses, other: IpAddr) -> Option<IpAddr> {
    own.iter().find(|own| own.is_ipv4() == other.is_ipv4())
}

fn outside(name: &str) -> Vec<IpAddr> {
    let texts: &[&str] = match name {
        "wan" => &WAN,
        "lan" => &LAN,
        _ => &METADATA,
    };
    texts.iter().map(|text| text.parse().expect("the constants are addresses")).collect()
}

fn first(ends: Ends, protocol: Protocol, port: u16) -> Packet {
    match protocol {
        Protocol::Tcp => Packet::tcp(ends, EPHEMERAL, port, flag::SYN),
        Protocol::Udp => Packet::udp(ends, EPHEMERAL, port, b"question"),
    }
}

fn answer(ends: Ends, protocol: Protocol, port: u16) -> Packet {
    match protocol {
        Protocol::Tcp => Packet::tcp(ends, port, EPHEMERAL, flag::SYN | flag::ACK),
        Protocol::Udp => Packet::udp(ends, port, EPHEMERAL, b"answer"),
    }
}

fn host() -> HostNetwork {
    HostNetwork {
        uplinks4: [UPLINK.to_owned()].into(),
        uplinks6: [UPLINK.to_owned()].into(),
        mtu: 1500,
        addresses: HOST.iter().map(|text| text.parse().expect("the constants are addresses")).collect(),
        on_link: ON_LINK.iter().map(|text| text.parse().expect("the constants are prefixes")).collect(),
        ..HostNetwork::default()
    }
}

fn line(pair: &Pair, what: &str) -> String {
    let Pair { from, to, protocol, port, open } = pair;
    let expected = if *open { "open" } else { "closed" };
    format!("{from} -> {to} {protocol}/{port} must be {expected}: {what}")
}
