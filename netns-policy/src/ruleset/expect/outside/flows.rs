//! One packet of a class, the flow it belongs to, and what becomes of it.

use std::net::IpAddr;

use super::{Kind, OutsideClass, Premises};
use crate::packet::build::{Icmp, flag};
use crate::packet::{Ends, Packet};
use crate::port::Protocol;
use crate::ruleset::decide::Decision;
use crate::ruleset::decide::walk::{Arrival, Call, Connections, Fate, Gate, Sender, WAN, Walk, World, is_martian};
use crate::topology::Place;

/// Neighbour solicitation.
const SOLICITATION: u8 = 135;

/// Source and destination of the service's packets in the four places.
struct Route {
    /// In the service and on the wires.
    called: Ends,
    /// In the gateway, behind the translation of the resolver's address.
    resolved: Ends,
    /// On the host.
    masqueraded: Ends,
}

impl OutsideClass {
    /// Whether `world` does with this class what is promised.
    pub fn holds(&self, premises: &Premises<'_>, world: &World) -> bool {
        let expected = premises.expected(self);
        let Some(route) = self.route(premises) else { return !expected };
        match &self.kind {
            Kind::Call(protocol) => self.calls(premises, *protocol, world),
            Kind::Fragment { leaves, first } => self.fragment(&route, *leaves, *first, world) == Some(expected),
            Kind::New(_)
            | Kind::Data(_)
            | Kind::MidStream
            | Kind::Echo
            | Kind::OtherProtocol(_)
            | Kind::Untracked
            | Kind::Spoofed(_) => self.leaves(premises, &route, expected, world),
            _ => self.arrives(premises, &route, expected, world),
        }
    }

    fn route(&self, premises: &Premises<'_>) -> Option<Route> {
        let own = address(premises, self.service.as_str(), self.remote)?;
        let gateway = premises.addresses.leg_gateway().iter().find(|own| own.is_ipv4() == self.remote.is_ipv4())?;
        let far = premises.resolver(self.remote).unwrap_or(self.remote);
        Some(Route {
            called: Ends::new(own, self.remote)?,
            resolved: Ends::new(own, far)?,
            masqueraded: Ends::new(gateway, far)?,
        })
    }

    fn leaves(&self, premises: &Premises<'_>, route: &Route, expected: bool, world: &World) -> bool {
        let Some(packet) = self.packet_out(premises, route) else { return !expected };
        let connections = match &self.kind {
            Kind::Data(protocol) => self.flow(route, *protocol),
            _ => Connections::new(),
        };
        [Sender::Program, Sender::Root].into_iter().all(|sender| {
            let walk = world.carry(self.service.as_str(), &packet, sender, &connections);
            if expected { walk.fate == Fate::Delivered(WAN) } else { !walk.is_delivered() && !leaks(&walk) }
        })
    }

    fn packet_out(&self, premises: &Premises<'_>, route: &Route) -> Option<Packet> {
        let ends = route.called;
        let (own, port) = (self.own_port, self.port);
        Some(match &self.kind {
            Kind::New(Protocol::Tcp) => Packet::tcp(ends, own, port, flag::SYN),
            Kind::New(Protocol::Udp) | Kind::Data(Protocol::Udp) => Packet::udp(ends, own, port, b"text"),
            Kind::Data(Protocol::Tcp) | Kind::MidStream => Packet::tcp(ends, own, port, flag::ACK),
            Kind::Echo => Packet::echo_request(ends, own),
            Kind::OtherProtocol(protocol) => Packet::ip(ends, *protocol, [0; 20]),
            Kind::Untracked if self.remote.is_ipv6() => {
                Packet::icmp(ends, Icmp { kind: SOLICITATION, code: 0, rest: 0 }, &[0; 16])
            }
            Kind::Spoofed(other) => {
                let claimed = address(premises, other.as_str(), self.remote)?;
                Packet::tcp(Ends::new(claimed, self.remote)?, own, port, flag::SYN)
            }
            _ => return None,
        })
    }

    /// A call is for the service, for the relay, or for nobody in the fabric.
    fn calls(&self, premises: &Premises<'_>, protocol: Protocol, world: &World) -> bool {
        let like = |all: Vec<IpAddr>| all.into_iter().find(|own| own.is_ipv4() == self.remote.is_ipv4());
        let door = premises.service(&self.service);
        let door = door.and_then(|service| premises.door(service, self.remote, protocol, self.port));
        let (port, place) = match door {
            Some((port, true)) => (port, Place::Relay),
            Some((port, false)) => (port, Place::Service(self.service.clone())),
            None => (self.port, Place::Service(self.service.clone())),
        };
        let place_address = premises.addresses.of(&place).and_then(|own| like(own.iter().collect()));
        let host = like(premises.host.addresses.iter().copied().collect());
        let end = like(premises.addresses.leg_gateway().iter().collect());
        let (Some(host), Some(end), Some(own)) = (host, end, place_address) else { return true };
        let packet = |to: IpAddr, port| {
            let ends = Ends::new(self.remote, to).expect("both are of one version");
            datagram(ends, protocol, self.own_port, port, flag::SYN)
        };
        let call =
            Call { to_host: packet(host, self.port), to_gateway: packet(end, self.port), to_place: packet(own, port) };
        let walk = world.admit(&call, &Connections::new());
        // No rule asks for what no IP stack takes as a source.
        let martian = is_martian(self.remote);
        match walk.fate {
            Fate::Delivered("host") | Fate::Lost(_) | Fate::Dropped(_) | Fate::Refused(..) => door.is_none() || martian,
            Fate::Delivered(to) => door.is_some() && to == place.to_string(),
        }
    }

    /// What comes from outside is tried from three places: before the host, before the gateway as if the host's rules
    /// were gone, and on the gateway's wire as if its own were. What must not arrive arrives from none of them.
    fn arrives(&self, premises: &Premises<'_>, route: &Route, expected: bool, world: &World) -> bool {
        let Some(whole) = self.arrival(premises, route) else { return !expected };
        let behind_host = Arrival { at_host: None, ..whole.clone() };
        let on_wire = Arrival { at_gateway: None, ..behind_host.clone() };
        let protocol = match &self.kind {
            Kind::Reply(protocol) => Some(*protocol),
            Kind::Error { open: true, .. } => Some(Protocol::Tcp),
            _ => None,
        };
        // A service that may not have the flow cannot have opened it.
        let service = premises.service(&self.service);
        let flow = protocol.filter(|protocol| service.is_some_and(|s| premises.opens(s, self, *protocol)));
        let connections = flow.map(|protocol| self.flow(route, protocol)).unwrap_or_default();
        if let Kind::Opening(protocol) = self.kind
            && let Some(outside) = service.and_then(|s| premises.entrance(s, self.remote, protocol, self.port))
        {
            // What has come as far as the gateway under this address has been translated there.
            let inside = [&behind_host, &on_wire].iter().all(|arrival| {
                // No rule asks for what no IP stack takes as a source.
                let martian = is_martian(self.remote);
                martian || world.receive(arrival, &connections).fate == Fate::Delivered(self.service.as_str())
            });
            let before = world.receive(&whole, &connections).is_delivered();
            return inside && (!before || outside == self.port);
        }
        if expected {
            return world.receive(&whole, &connections).fate == Fate::Delivered(self.service.as_str());
        }
        [whole, behind_host, on_wire].iter().all(|arrival| !world.receive(arrival, &connections).is_delivered())
    }

    fn arrival(&self, premises: &Premises<'_>, route: &Route) -> Option<Arrival> {
        if let Kind::FromGateway(claimed) = &self.kind {
            let from = address(premises, claimed.as_str(), self.remote)?;
            let on_wire = Packet::tcp(Ends::new(from, route.called.from())?, self.own_port, self.port, flag::SYN);
            return Some(Arrival { at_host: None, at_gateway: None, on_wire });
        }
        // What answers for the resolver's address speaks as it, and so does, behind the translation, every router.
        let resolved = premises.resolver(self.remote).map(|_| self.remote);
        Some(Arrival {
            at_host: Some(self.packet_in(route.masqueraded, None)?),
            at_gateway: Some(self.packet_in(route.resolved, None)?),
            on_wire: self.packet_in(route.called, resolved)?,
        })
    }

    /// The packet where the service's own packets have these ends; `router` in place of the one that sent an error.
    fn packet_in(&self, ours: Ends, router: Option<IpAddr>) -> Option<Packet> {
        let (back, own, port) = (ours.reversed(), self.own_port, self.port);
        Some(match &self.kind {
            Kind::Reply(protocol) | Kind::Unsolicited(protocol) => {
                datagram(back, *protocol, port, own, flag::SYN | flag::ACK)
            }
            Kind::Opening(protocol) => datagram(back, *protocol, own, port, flag::SYN),
            Kind::EchoIn => Packet::echo_request(back, own),
            Kind::Error { router: sender, kind, .. } => {
                let router = router.unwrap_or(*sender);
                let about = Packet::tcp(ours, own, port, flag::SYN);
                Packet::icmp_error(Ends::new(router, ours.from())?, Icmp { kind: *kind, code: 0, rest: 0 }, &about)
            }
            _ => return None,
        })
    }

    /// The flow, as the service, the gateway and the host hold it.
    fn flow(&self, route: &Route, protocol: Protocol) -> Connections {
        let mut connections = Connections::new();
        let answered = matches!(self.kind, Kind::Data(_) | Kind::Error { .. });
        let holders = [
            (self.service.as_str(), route.called),
            ("uplink", route.resolved),
            ("uplink", route.called),
            ("host", route.masqueraded),
        ];
        for (place, ends) in holders {
            let tracked = connections.entry(place.to_owned()).or_default();
            tracked.record(&datagram(ends, protocol, self.own_port, self.port, flag::SYN));
            if answered {
                let back = flag::SYN | flag::ACK;
                tracked.record(&datagram(ends.reversed(), protocol, self.port, self.own_port, back));
            }
        }
        connections
    }

    /// Whether the fabric hands a part on, whoever waits for the others.
    fn fragment(&self, route: &Route, leaves: bool, first: bool, world: &World) -> Option<bool> {
        let ends = if leaves { route.called } else { route.called.reversed() };
        let header = datagram(ends, Protocol::Udp, self.own_port, self.port, 0).in_stack()?.transport(0, 8)?.to_vec();
        let body = [&header[..], &[0; 24], &header, &[0; 24]].concat();
        let (head, tail) = Packet::ip(ends, Protocol::Udp.number(), body).fragments(32)?;
        let from = if leaves { self.service.as_str() } else { "uplink" };
        let walk = world.carry(from, if first { &head } else { &tail }, Sender::Root, &Connections::new());
        let to = world.places.get(if leaves { "uplink" } else { self.service.as_str() }).map(|to| to.fabric_index);
        let forwarded = walk.hops.iter().find_map(|hop| match hop.outcome.decision {
            Decision::Forwarded(index) => Some(index),
            _ => None,
        });
        match forwarded {
            None => Some(false),
            // To anybody else is as wrong as can be.
            Some(index) => (Some(index) == to).then_some(true),
        }
    }
}

/// A packet that must not leave has left the gateway: with the service's own source, or towards the host.
fn leaks(walk: &Walk<'_>) -> bool {
    let past_gateway = walk.hops.iter().any(|hop| hop.gate == Gate::Host);
    past_gateway || walk.fate == Fate::Lost(crate::ruleset::decide::walk::Loss::NotMasqueraded)
}

fn address(premises: &Premises<'_>, name: &str, like: IpAddr) -> Option<IpAddr> {
    premises.addresses.service(name)?.iter().find(|own| own.is_ipv4() == like.is_ipv4())
}

fn datagram(ends: Ends, protocol: Protocol, sport: u16, dport: u16, flags: u8) -> Packet {
    match protocol {
        Protocol::Tcp => Packet::tcp(ends, sport, dport, flags),
        Protocol::Udp => Packet::udp(ends, sport, dport, b"text"),
    }
}
