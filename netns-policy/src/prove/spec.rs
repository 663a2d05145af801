//! What ought to pass: written from the prose (README.md), and from the graph, the addresses and the host's network.
//!
//! Nothing of the compiler is used here, so that a mistake there is not repeated here.

mod gateway;
mod host;
mod lock;
mod panel;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::class::{Class, Ct, Ip, Var};
use super::machine::Outcome;
use super::numbers::Numbers;
use crate::address::AddressPlan;
use crate::exposure::Way;
use crate::graph::{AllowGraph, Dns, Origin, Service, Target};
use crate::network::HostNetwork;
use crate::port::Ports;
use crate::ruleset::expect::outside::{NOT_PUBLIC4, NOT_PUBLIC6};
use crate::topology::Place;

/// What ought to pass one gate.
#[derive(Default)]
pub(super) struct Spec {
    /// It must, and so.
    pub(super) must: Vec<(Outcome, Class)>,
    /// It may: who comes next refuses it, or it is a packet that nobody can send.
    pub(super) may: Vec<(Outcome, Class)>,
}

impl Spec {
    /// Everything goes on as it is.
    pub(super) fn everything() -> Self {
        Self { must: Ip::BOTH.map(|ip| (Outcome::Accept, Class::every(ip))).into(), may: vec![] }
    }

    /// What must pass in this way, and in no other that was said before.
    fn instead(&mut self, outcome: Outcome, class: Class) {
        let before = std::mem::take(&mut self.must).into_iter();
        let rest = before.flat_map(|(o, whole)| whole.without(&class).into_iter().map(move |part| (o, part)));
        self.must = rest.collect();
        self.must(outcome, class);
    }

    fn must(&mut self, outcome: Outcome, class: Class) {
        self.must.push((outcome, class));
    }

    fn may(&mut self, outcome: Outcome, class: Class) {
        self.may.push((outcome, class));
    }
}

/// A right to open connections, with addresses.
#[derive(Clone, Debug)]
pub(super) struct Right {
    pub(super) from: Place,
    pub(super) to: Place,
    /// By version: the client's address and the one it calls.
    ends: Vec<(Ip, u128, u128)>,
    pub(super) ports: Ports,
    /// Nobody is at the resolver's address, so nobody there answers an echo; and a relay asks for none.
    has_no_echo: bool,
}

/// What the promise is about.
pub(super) struct Facts<'a> {
    pub(super) graph: &'a AllowGraph,
    pub(super) addresses: &'a AddressPlan,
    pub(super) host: &'a HostNetwork,
    /// Of every wire its index in the fabric.
    pub(super) wires: BTreeMap<Place, u32>,
    rights: Vec<Right>,
    from: BTreeMap<Place, Vec<usize>>,
    to: BTreeMap<Place, Vec<usize>>,
    public: [Numbers; 2],
    remote: [Numbers; 2],
    doors: Vec<Door>,
}

/// A way in by a port of the host.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub(super) protocol: u128,
    /// The port of the host, and of the gateway's end of the leg.
    pub(super) outside: u128,
    /// Whose wire is reached, and at which port.
    pub(super) to: Place,
    pub(super) port: u128,
    /// From the prefixes of `lan` alone.
    lan: bool,
}

pub(super) fn ip_of(address: IpAddr) -> Ip {
    if address.is_ipv4() { Ip::V4 } else { Ip::V6 }
}

pub(super) fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn prefix(prefix: &IpNetwork) -> (u128, u128) {
    (number_of(prefix.network()), number_of(prefix.broadcast()))
}

fn prefixes<'p>(ip: Ip, all: impl IntoIterator<Item = &'p IpNetwork>) -> Numbers {
    Numbers::new(all.into_iter().filter(|one| ip_of(one.network()) == ip).map(prefix).collect())
}

fn addresses(ip: Ip, all: impl IntoIterator<Item = IpAddr>) -> Numbers {
    Numbers::each(all.into_iter().filter(|one| ip_of(*one) == ip).map(number_of))
}

fn whole(ip: Ip) -> Numbers {
    let (lo, hi) = Var::Daddr.whole(ip);
    Numbers::range(lo, hi)
}

impl<'a> Facts<'a> {
    pub(super) fn new(
        graph: &'a AllowGraph,
        addresses: &'a AddressPlan,
        host: &'a HostNetwork,
        wires: BTreeMap<Place, u32>,
    ) -> Self {
        let rights: Vec<Right> = rights(graph, addresses).collect();
        let by = |place: fn(&Right) -> &Place| {
            let mut by: BTreeMap<Place, Vec<usize>> = BTreeMap::new();
            rights.iter().enumerate().for_each(|(n, right)| by.entry(place(right).clone()).or_default().push(n));
            by
        };
        let (from, to) = (by(|right| &right.from), by(|right| &right.to));
        let mut facts = Self {
            graph,
            addresses,
            host,
            wires,
            from,
            to,
            rights,
            public: Ip::BOTH.map(|_| Numbers::new(vec![])),
            remote: Ip::BOTH.map(|_| Numbers::new(vec![])),
            doors: doors(graph),
        };
        facts.public = Ip::BOTH.map(|ip| {
            let texts: &[&str] = if ip == Ip::V4 { &NOT_PUBLIC4 } else { &NOT_PUBLIC6 };
            let not: Vec<IpNetwork> =
                texts.iter().map(|text| text.parse().expect("the constants are prefixes")).collect();
            whole(ip).without(&prefixes(ip, &not)).without(&facts.pool(ip))
        });
        facts.remote =
            Ip::BOTH.map(|ip| facts.public(ip).without(&facts.not_outside(ip)).without(&prefixes(ip, &host.on_link)));
        facts
    }

    /// Who ought to have a wire: each service, the gateway if somebody goes out or comes in by it, the host if it has an
    /// edge.
    pub(super) fn places(&self) -> BTreeSet<Place> {
        let services = self.graph.services().map(|service| Place::Service(service.name.clone()));
        let comes_in = !self.doors.is_empty();
        let uplink = (comes_in || self.graph.services().any(goes_out)).then_some(Place::Uplink);
        let edges = self.graph.edges();
        let has_edge = edges.iter().any(|edge| edge.from == Origin::Host || edge.to == Target::Host);
        let relays = self.doors.iter().any(|door| door.to == Place::Relay).then_some(Place::Relay);
        services.chain(uplink).chain(relays).chain(has_edge.then_some(Place::Host)).collect()
    }

    /// The rights that start at `place`.
    pub(super) fn rights_from(&self, place: &Place) -> impl Iterator<Item = &Right> {
        self.from.get(place).into_iter().flatten().map(|n| &self.rights[*n])
    }

    /// The rights that end at `place`.
    pub(super) fn rights_to(&self, place: &Place) -> impl Iterator<Item = &Right> {
        self.to.get(place).into_iter().flatten().map(|n| &self.rights[*n])
    }

    /// Addresses that are public: what the fabric and the locks know of `direct`.
    pub(super) fn public(&self, ip: Ip) -> &Numbers {
        &self.public[ip as usize]
    }

    /// Addresses that are public and remote: what `direct` means.
    pub(super) fn remote(&self, ip: Ip) -> &Numbers {
        &self.remote[ip as usize]
    }

    pub(super) fn pool(&self, ip: Ip) -> Numbers {
        let pools = [Some(IpNetwork::V4(self.addresses.pool4())), self.addresses.pool6().map(IpNetwork::V6)];
        prefixes(ip, pools.iter().flatten())
    }

    /// What is never outside, neither by `direct` nor by `lan`: the host's addresses and the pools.
    pub(super) fn not_outside(&self, ip: Ip) -> Numbers {
        addresses(ip, self.host.addresses.iter().copied()).or(&self.pool(ip))
    }

    /// The prefixes of `[network] lan`.
    pub(super) fn lan(&self, ip: Ip) -> Numbers {
        prefixes(ip, &self.graph.network().lan)
    }

    /// The addresses of a place.
    pub(super) fn own(&self, place: &Place, ip: Ip) -> Option<u128> {
        let own = self.addresses.of(place)?;
        own.iter().find(|address| ip_of(*address) == ip).map(number_of)
    }

    /// The address in the gateway at which a resolver is found.
    pub(super) fn resolver_asked(&self, ip: Ip) -> Numbers {
        addresses(ip, self.addresses.resolver().iter())
    }

    /// The resolver to which it leads: the first of the family.
    pub(super) fn resolver(&self, ip: Ip) -> Option<u128> {
        let written = &self.graph.network().resolvers;
        let known = if written.is_empty() { &self.host.resolvers } else { written };
        known.iter().copied().find(|address| ip_of(*address) == ip).map(number_of)
    }

    /// Every way in by a port of the host.
    pub(super) fn doors(&self) -> &[Door] {
        &self.doors
    }

    /// Who may come in by a door, as far as the one behind it speaks this version; nobody of the pools ever.
    pub(super) fn callers(&self, door: &Door, ip: Ip) -> Option<Numbers> {
        self.own(&door.to, ip)?;
        let all = if door.lan { self.lan(ip) } else { whole(ip) };
        let callers = all.without(&self.pool(ip));
        (!callers.is_empty()).then_some(callers)
    }

    /// The gateway's address on the leg.
    pub(super) fn leg_end(&self, ip: Ip) -> Option<u128> {
        self.addresses.leg_gateway().iter().find(|address| ip_of(*address) == ip).map(number_of)
    }

    /// Whether somebody outside comes in to this place.
    pub(super) fn is_entered(&self, place: &Place) -> bool {
        self.doors.iter().any(|door| door.to == *place)
    }

    /// Every way out of a service, as destinations with what narrows them further.
    pub(super) fn ways_out(&self, service: &Service, ip: Ip) -> Vec<WayOut> {
        let outbound = &service.outbound;
        let mut ways = Vec::new();
        let own = self.not_outside(ip);
        let mut way = |far: &Numbers, beyond: &Numbers, ports: Option<Ports>| {
            if !beyond.is_empty() {
                ways.push(WayOut { far: far.clone(), beyond: beyond.clone(), ports });
            }
        };
        if outbound.direct {
            way(self.remote(ip), self.public(ip), None);
        }
        for ports in &outbound.direct_only {
            way(self.remote(ip), self.public(ip), Some(*ports));
        }
        if outbound.lan {
            let lan = self.lan(ip);
            way(&lan.without(&own), &lan, None);
        }
        for (prefix, ports) in &outbound.lan_only {
            let lan = prefixes(ip, [prefix]);
            way(&lan.without(&own), &lan, Some(*ports));
        }
        ways
    }
}

/// Whether a service needs the gateway: to reach something outside, or to ask a resolver there.
fn goes_out(service: &Service) -> bool {
    let outbound = &service.outbound;
    let everything = outbound.direct || outbound.lan;
    everything || !outbound.direct_only.is_empty() || !outbound.lan_only.is_empty() || service.dns == Dns::Direct
}

/// One way out.
pub(super) struct WayOut {
    /// Where it leads.
    pub(super) far: Numbers,
    /// As far as who stands before the gateway can tell: it holds `far`.
    pub(super) beyond: Numbers,
    /// To these ports only.
    pub(super) ports: Option<Ports>,
}

fn rights<'a>(graph: &'a AllowGraph, plan: &'a AddressPlan) -> impl Iterator<Item = Right> + 'a {
    let edges = graph.edges().iter().filter_map(|edge| {
        let from = match &edge.from {
            Origin::Host => Place::Host,
            Origin::Service(name) => Place::Service(name.clone()),
        };
        let to = match &edge.to {
            Target::Host => Place::Host,
            Target::Service(name) => Place::Service(name.clone()),
        };
        let ends = ends(plan.of(&from)?, plan.of(&to)?);
        Some(Right { from, to, ends, ports: edge.ports, has_no_echo: false })
    });
    let asking = graph.services().filter(|service| service.dns == Dns::Direct);
    let names = asking.flat_map(move |service| {
        let from = Place::Service(service.name.clone());
        let own = plan.of(&from);
        ["tcp:53", "udp:53"].into_iter().filter_map(move |ports| {
            let (ends, ports) = (ends(own?, plan.resolver()), ports.parse().expect("the constants are ports"));
            Some(Right { from: from.clone(), to: Place::Uplink, ends, ports, has_no_echo: true })
        })
    });
    let relayed = graph.exposures().iter().filter(|exposure| exposure.way.relay().is_some());
    let relayed = relayed.filter_map(|exposure| {
        let to = Place::Service(exposure.service.clone());
        let ends = ends(plan.of(&Place::Relay)?, plan.of(&to)?);
        Some(Right { from: Place::Relay, to, ends, ports: exposure.ports, has_no_echo: true })
    });
    edges.chain(names).chain(relayed)
}

fn doors(graph: &AllowGraph) -> Vec<Door> {
    let doors = graph.exposures().iter().filter_map(|exposure| {
        let (lan, outside) = match exposure.way {
            Way::Lan { external, .. } => (true, external),
            Way::Port { external, .. } => (false, external),
            _ => return None,
        };
        let protocol = exposure.ports.protocol().number().into();
        let door = |to, port: u16| Door { protocol, outside: outside.into(), to, port: port.into(), lan };
        Some(match exposure.way.relay() {
            Some(_) => door(Place::Relay, outside),
            None => door(Place::Service(exposure.service.clone()), exposure.ports.lo()),
        })
    });
    doors.collect()
}

fn ends(from: crate::address::Addresses, to: crate::address::Addresses) -> Vec<(Ip, u128, u128)> {
    let both = from.iter().zip(to.iter());
    both.map(|(from, to)| (ip_of(from), number_of(from), number_of(to))).collect()
}

// ---- words for classes -----------------------------------------------------------------------------------------------

/// From this number on.
fn at_least(number: u128) -> Numbers {
    Numbers::range(number, u128::MAX)
}

/// Whatever has a transport header of this protocol, so many bytes of it at least.
fn carrying(class: &Class, protocol: u128, bytes: u128) -> Class {
    let class = class.with(Var::Sense, &Numbers::one(1)).with(Var::Proto, &Numbers::one(protocol));
    class.with(Var::Len, &at_least(bytes))
}

/// To one port.
fn to_port(class: &Class, protocol: u128, port: u128) -> Class {
    carrying(class, protocol, 4).with(Var::Dport, &Numbers::one(port))
}

/// From one port.
fn from_port(class: &Class, protocol: u128, port: u128) -> Class {
    carrying(class, protocol, 2).with(Var::Sport, &Numbers::one(port))
}

/// To these ports.
fn to_ports(class: &Class, ports: Ports) -> Class {
    carrying(class, ports.protocol().number().into(), 4).with(Var::Dport, &range(ports))
}

/// From these ports.
fn from_ports(class: &Class, ports: Ports) -> Class {
    carrying(class, ports.protocol().number().into(), 2).with(Var::Sport, &range(ports))
}

fn range(ports: Ports) -> Numbers {
    Numbers::range(ports.lo().into(), ports.hi().into())
}

/// ICMP of one of these types.
fn icmp(class: &Class, types: &[u8]) -> Class {
    let types = types.iter().map(|kind| (u128::from(*kind) << 8, u128::from(*kind) << 8 | 0xff)).collect();
    carrying(class, class.ip().icmp(), 1).with(Var::Sport, &Numbers::new(types))
}

/// Destination unreachable and time exceeded; of ICMPv6 packet too big as well.
fn errors(class: &Class) -> Class {
    icmp(class, if class.ip() == Ip::V4 { &[3, 11] } else { &[1, 2, 3] })
}

fn echo_request(class: &Class) -> Class {
    icmp(class, if class.ip() == Ip::V4 { &[8] } else { &[128] })
}

fn echo_reply(class: &Class) -> Class {
    icmp(class, if class.ip() == Ip::V4 { &[0] } else { &[129] })
}

fn states(class: &Class, states: &[Ct]) -> Class {
    class.with(Var::Ct, &Ct::set(states))
}

const ESTABLISHED: [Ct; 2] = [Ct::EstablishedThere, Ct::EstablishedBack];
const RELATED: [Ct; 2] = [Ct::RelatedThere, Ct::RelatedBack];
/// What is neither of a known connection nor about one nor the first of one.
const LOOSE: [Ct; 2] = [Ct::Invalid, Ct::Untracked];
