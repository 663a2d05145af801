//! The first lock: what a wire may send, and into which wire it goes.

use super::{
    Door, Facts, Right, Spec, at_least, echo_reply, echo_request, errors, from_port, from_ports, goes_out, to_port,
    to_ports,
};
use crate::graph::Service;
use crate::port::Protocol;
use crate::prove::class::{Class, Ip, Var};
use crate::prove::machine::Outcome;
use crate::prove::numbers::Numbers;
use crate::topology::Place;

const TCP: u128 = 6;

/// Untagged, with whole addresses, and without a routing header.
fn frames(ip: Ip) -> Class {
    let tags = Numbers::range(0, 0xffff).without(&Numbers::each([0x8100, 0x88a8]));
    let frames = Class::every(ip).with(Var::Link, &tags).with(Var::NetLen, &at_least(ip.header()));
    frames.with(Var::RtHeader, &Numbers::one(0))
}

/// No part of a datagram.
fn unparted(class: &Class) -> Class {
    match class.ip() {
        Ip::V4 => class.with(Var::Frag, &Numbers::masked(16, 0x3fff, 0).expect("few ranges")),
        _ => class.with(Var::FragHeader, &Numbers::one(0)),
    }
}

fn between(class: &Class, from: u128, to: u128) -> Class {
    class.with(Var::Saddr, &Numbers::one(from)).with(Var::Daddr, &Numbers::one(to))
}

/// Anything but SYN without ACK.
fn no_opening() -> Numbers {
    Numbers::range(0, 0xff).without(&Numbers::masked(8, 0x12, 0x02).expect("few ranges"))
}

/// The side of a flow that sends an error about it.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Side {
    Client,
    Server,
}

impl Facts<'_> {
    /// What the panel ought to do with what comes out of the wire of `place`.
    pub(in crate::prove) fn panel(&self, place: &Place) -> Spec {
        let mut spec = Spec::default();
        for right in self.rights_from(place) {
            self.along(right, &mut spec);
        }
        for right in self.rights_to(place) {
            self.back(right, &mut spec);
        }
        for ip in Ip::BOTH {
            self.errors(place, ip, Side::Client, &mut spec);
            self.errors(place, ip, Side::Server, &mut spec);
        }
        match place {
            Place::Service(name) => {
                let service = self.graph.service(name.as_str());
                service.into_iter().for_each(|service| self.out(place, service, &mut spec));
                self.answers_outside(place, &mut spec);
            }
            Place::Relay => self.answers_outside(place, &mut spec),
            Place::Uplink => {
                self.graph.services().for_each(|service| self.in_again(service, &mut spec));
                self.calls_from_outside(&mut spec);
                self.errors_from_outside(&mut spec);
            }
            Place::Host => {}
        }
        spec
    }

    fn wire_of(&self, place: &Place) -> Option<Outcome> {
        self.wires.get(place).map(|index| Outcome::Forward(*index))
    }

    /// From the client to the server.
    fn along(&self, right: &Right, spec: &mut Spec) {
        let Some(to) = self.wire_of(&right.to) else { return };
        for (ip, client, server) in &right.ends {
            let class = between(&unparted(&frames(*ip)), *client, *server);
            spec.must(to, to_ports(&class, right.ports));
            if !right.has_no_echo {
                spec.must(to, echo_request(&class));
            }
        }
    }

    /// From the server to the client.
    fn back(&self, right: &Right, spec: &mut Spec) {
        let Some(to) = self.wire_of(&right.from) else { return };
        for (ip, client, server) in &right.ends {
            let class = between(&unparted(&frames(*ip)), *server, *client);
            let answers = from_ports(&class, right.ports);
            let answers = match right.ports.protocol() {
                Protocol::Tcp => answers.with(Var::Len, &at_least(14)).with(Var::Flags, &no_opening()),
                Protocol::Udp => answers,
            };
            spec.must(to, answers);
            if !right.has_no_echo {
                spec.must(to, echo_reply(&class));
            }
        }
    }

    /// Errors of `place` about packets of the other end. To another one with whom it has such a flow they may go: its
    /// connection tracking knows that it is not the one they are about.
    fn errors(&self, place: &Place, ip: Ip, side: Side, spec: &mut Spec) {
        let rights: Vec<&Right> = match side {
            Side::Client => self.rights_from(place).collect(),
            Side::Server => self.rights_to(place).collect(),
        };
        let flows = rights.iter().flat_map(|right| {
            let ends = right.ends.iter().filter(|(version, ..)| *version == ip);
            ends.filter_map(|(_, client, server)| {
                let (here, there, other) = match side {
                    Side::Client => (*client, *server, &right.to),
                    Side::Server => (*server, *client, &right.from),
                };
                let (protocol, ports) = (right.ports.protocol(), super::range(right.ports));
                Some(Flow { here, there, out: self.wire_of(other)?, protocol, ports })
            })
        });
        let flows: Vec<Flow> = flows.collect();
        let Some(speaks) = self.speaks(place, ip) else { return };
        for flow in &flows {
            let class = flow.errors(ip, side, &speaks).with(Var::Daddr, &Numbers::one(flow.there));
            spec.must(flow.out, class.with(Var::EmbSaddr, &Numbers::one(flow.there)));
        }
        for piece in pieces(&flows) {
            for flow in flows.iter().filter(|flow| flow.is_part(&piece)) {
                let class = flow.errors(ip, side, &speaks).with(Var::Daddr, &Numbers::one(flow.there));
                let port = if side == Side::Client { Var::EmbSport } else { Var::EmbDport };
                spec.may(flow.out, class.with(port, &piece.ports).with(Var::EmbSaddr, &piece.others));
            }
        }
    }

    /// The addresses as which a place may send errors.
    fn speaks(&self, place: &Place, ip: Ip) -> Option<Numbers> {
        let own = Numbers::one(self.own(place, ip)?);
        Some(if *place == Place::Uplink { own.or(&self.resolver_asked(ip)) } else { own })
    }

    /// From a service to the gateway.
    fn out(&self, place: &Place, service: &Service, spec: &mut Spec) {
        let Some(to) = self.wire_of(&Place::Uplink).filter(|_| goes_out(service)) else { return };
        for ip in Ip::BOTH {
            let Some(own) = self.own(place, ip) else { continue };
            let class = frames(ip).with(Var::Saddr, &Numbers::one(own));
            for way in self.ways_out(service, ip) {
                let class = match way.ports {
                    Some(ports) => to_ports(&unparted(&class), ports),
                    None => class.clone(),
                };
                self.way(&class, Var::Daddr, &way, to, spec);
            }
        }
    }

    /// From the gateway to a service.
    fn in_again(&self, service: &Service, spec: &mut Spec) {
        let place = Place::Service(service.name.clone());
        let Some(to) = self.wire_of(&place).filter(|_| goes_out(service)) else { return };
        for ip in Ip::BOTH {
            let Some(own) = self.own(&place, ip) else { continue };
            let class = frames(ip).with(Var::Daddr, &Numbers::one(own));
            for way in self.ways_out(service, ip) {
                let class = match way.ports {
                    Some(ports) => from_ports(&unparted(&class), ports),
                    None => class.clone(),
                };
                self.way(&class, Var::Saddr, &way, to, spec);
            }
        }
    }

    /// Errors from outside to whoever has flows with it, of whatever router; of the pool's addresses the gateway's own alone.
    fn errors_from_outside(&self, spec: &mut Spec) {
        let services = self.graph.services().map(|service| (Place::Service(service.name.clone()), goes_out(service)));
        for (place, goes_out) in services.chain([(Place::Relay, false)]) {
            let Some(to) = self.wire_of(&place).filter(|_| goes_out || self.is_entered(&place)) else { continue };
            for ip in Ip::BOTH {
                let Some(own) = self.own(&place, ip) else { continue };
                let class = frames(ip).with(Var::Daddr, &Numbers::one(own));
                let routers = super::whole(ip).without(&self.pool(ip));
                let routers = self.speaks(&Place::Uplink, ip).map_or(routers.clone(), |own| routers.or(&own));
                spec.must(to, errors(&unparted(&class)).with(Var::Saddr, &routers));
            }
        }
    }

    /// Who comes in by a port of the host, and so by the gateway. The panel asks who it is only as far as that it is nobody
    /// of the pools: the gateway and the lock ask the rest.
    fn calls_from_outside(&self, spec: &mut Spec) {
        for (door, ip) in self.doors().iter().flat_map(|door| Ip::BOTH.map(|ip| (door, ip))) {
            let (Some(to), Some(own)) = (self.wire_of(&door.to), self.own(&door.to, ip)) else { continue };
            let Some(callers) = self.callers(door, ip) else { continue };
            let class = unparted(&frames(ip)).with(Var::Daddr, &Numbers::one(own));
            let class = to_port(&class, door.protocol, door.port);
            spec.must(to, class.with(Var::Saddr, &callers));
            spec.may(to, class.with(Var::Saddr, &super::whole(ip).without(&self.pool(ip))));
        }
    }

    /// The answers to who came in so, to the gateway: never a packet that opens a TCP connection.
    fn answers_outside(&self, place: &Place, spec: &mut Spec) {
        let Some(to) = self.wire_of(&Place::Uplink) else { return };
        let doors = self.doors().iter().filter(|door| door.to == *place);
        for (door, ip) in doors.flat_map(|door| Ip::BOTH.map(|ip| (door, ip))) {
            let (Some(own), Some(callers)) = (self.own(place, ip), self.callers(door, ip)) else { continue };
            let class = unparted(&frames(ip)).with(Var::Saddr, &Numbers::one(own));
            let class = from_port(&class, door.protocol, door.port);
            let class = match door.protocol {
                TCP => class.with(Var::Len, &at_least(14)).with(Var::Flags, &no_opening()),
                _ => class,
            };
            let anybody = super::whole(ip).without(&self.pool(ip));
            for class in [class, errors_about(ip, own, door)] {
                spec.must(to, class.with(Var::Daddr, &callers));
                spec.may(to, class.with(Var::Daddr, &anybody));
            }
        }
    }

    /// What leads out or back by `way`. The panel tells public addresses, not remote ones, and does not ask whether the
    /// kernel makes sense of a datagram that it knows by its addresses: what goes too far ends in the gateway.
    fn way(&self, class: &Class, far: Var, way: &super::WayOut, to: Outcome, spec: &mut Spec) {
        spec.may(to, class.with(far, &way.beyond));
        if let Some(class) = class.narrowed(far, &way.far) {
            spec.must(to, class.with(Var::Sense, &Numbers::one(1)));
        }
    }
}

/// ICMP errors of one who is called from outside, about what has come.
fn errors_about(ip: Ip, own: u128, door: &Door) -> Class {
    let (header, version) = embedded(ip);
    let class = errors(&unparted(&frames(ip))).with(Var::Saddr, &Numbers::one(own));
    let class = class.with(Var::Len, &at_least(8 + header + 4)).with(Var::EmbVersion, &version);
    let class = class.with(Var::EmbDaddr, &Numbers::one(own)).with(Var::EmbProto, &Numbers::one(door.protocol));
    class.with(Var::EmbDport, &Numbers::one(door.port))
}

/// Bytes of an embedded header without options, and how it begins.
fn embedded(ip: Ip) -> (u128, Numbers) {
    match ip {
        Ip::V4 => (20, Numbers::one(0x45)),
        _ => (40, Numbers::range(0x60, 0x6f)),
    }
}

/// A flow as one end of it sees it.
struct Flow {
    here: u128,
    there: u128,
    out: Outcome,
    protocol: Protocol,
    ports: Numbers,
}

impl Flow {
    /// ICMP errors that embed a packet of the other end.
    fn errors(&self, ip: Ip, side: Side, speaks: &Numbers) -> Class {
        let (header, version) = embedded(ip);
        // The packet came from there to here: its ports stand behind the embedded header.
        let (port, end) = match side {
            Side::Client => (Var::EmbSport, 8 + header + 2),
            Side::Server => (Var::EmbDport, 8 + header + 4),
        };
        let class = errors(&unparted(&frames(ip))).with(Var::Saddr, speaks).with(Var::Len, &at_least(end));
        let class = class.with(Var::EmbVersion, &version).with(Var::EmbDaddr, &Numbers::one(self.here));
        let class = class.with(Var::EmbProto, &Numbers::one(self.protocol.number().into()));
        class.with(port, &self.ports)
    }

    fn is_part(&self, piece: &Piece) -> bool {
        self.here == piece.here && self.protocol == piece.protocol && piece.ports.is_within(&self.ports)
    }
}

/// Ports between which no flow begins or ends, and everybody who has a flow with them.
struct Piece {
    here: u128,
    protocol: Protocol,
    ports: Numbers,
    others: Numbers,
}

fn pieces(flows: &[Flow]) -> Vec<Piece> {
    let mut kinds: Vec<(u128, Protocol)> = flows.iter().map(|flow| (flow.here, flow.protocol)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut pieces = Vec::new();
    for (here, protocol) in kinds {
        let same: Vec<&Flow> = flows.iter().filter(|flow| flow.here == here && flow.protocol == protocol).collect();
        let ends = same.iter().flat_map(|flow| flow.ports.ranges()).flat_map(|(lo, hi)| [*lo, hi + 1]);
        let mut cuts: Vec<u128> = ends.collect();
        cuts.sort_unstable();
        cuts.dedup();
        for (start, end) in cuts.iter().zip(cuts.iter().skip(1)) {
            let ports = Numbers::range(*start, end - 1);
            let there = same.iter().filter(|flow| ports.is_within(&flow.ports)).map(|flow| flow.there);
            let others = Numbers::each(there);
            // Where there is one alone, it is the one that they are about.
            if !others.is_empty() && others.only().is_none() {
                pieces.push(Piece { here, protocol, ports, others });
            }
        }
    }
    pieces
}
