//! Draws what is sent: frames of every kind, most of them near to what the policy allows, many about the same few flows,
//! so that it matters what was sent before.
//!
//! Each has a number of its own in a field that nothing on the way changes (the identification of IPv4, the flow label of
//! IPv6), by which it is known again where it arrives.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use netns_policy::packet::build::{Icmp, MAC, flag};
use netns_policy::packet::{ARP, Ends, Extension, IPV4, IPV6, Packet, VLAN, VLAN_SERVICE};
use netns_policy::ruleset::decide::walk::{Arrival, WAN};

use crate::dice::Dice;
use crate::stage::{LOCAL, PUBLIC, Scene};

/// Something that is sent.
#[derive(Clone, Debug)]
pub struct Shot {
    /// Its number in the scene, by which it is known again.
    pub number: u16,
    /// What it is, for the tally.
    pub kind: String,
    /// What is odd about it.
    pub twist: &'static str,
    /// How it is sent.
    pub way: Way,
}

/// How something is sent.
#[derive(Clone, Debug)]
pub enum Way {
    /// By a program, which the lock of its place is asked about.
    Program(String, Packet),
    /// By root, straight onto the wire: frames, and the datagram that they make where they are its parts.
    Wire(String, Vec<Packet>, Packet),
    /// By somebody outside, to the machine: the frame, and how it looks to the gates if it answers what was sent.
    Outside(Packet, Option<Arrival>),
}

/// One end of a flow.
#[derive(Clone, Debug)]
struct End {
    place: String,
    address: IpAddr,
}

/// Who speaks to whom.
#[derive(Clone, Debug)]
struct Flow {
    client: End,
    server: End,
    /// 6, 17, or ICMP of the family.
    protocol: u8,
    /// The client's port, or the identifier of an echo.
    cport: u16,
    sport: u16,
}

/// What stands in a packet that is about a flow.
struct Said {
    packet: Packet,
    kind: &'static str,
    /// From the client to the server.
    forth: bool,
}

/// What belongs to a flow.
#[derive(Clone, Copy, Debug)]
enum Part {
    Opening,
    Answer,
    Error,
}

/// The most shots of a scene.
pub const MOST: u16 = 400;

/// Where the numbers of the next scene begin.
static NUMBERS: AtomicU16 = AtomicU16::new(0);

const FLOWS: usize = 10;

/// Protocols that a policy has no word for.
const ODD: [u8; 14] = [0, 2, 4, 41, 43, 44, 47, 50, 51, 59, 60, 132, 136, 253];

/// Draws shots for one scene.
pub struct Draw<'s> {
    scene: &'s Scene<'s>,
    dice: Dice,
    parties: Vec<End>,
    flows: Vec<Flow>,
    /// What is said next, last first, and of which flow.
    story: Vec<(Flow, Part)>,
    next: u16,
}

impl<'s> Draw<'s> {
    pub fn new(scene: &'s Scene<'s>, dice: Dice) -> Self {
        let of = |(name, place): (&String, &netns_policy::ruleset::decide::walk::Place)| {
            let end = |address: &IpAddr| End { place: name.clone(), address: *address };
            place.addresses.iter().map(end).collect::<Vec<_>>()
        };
        let parties = scene.world.places.iter().flat_map(of).collect();
        // Parts that were never put together are held for a while: those of the scenes before have other numbers.
        let next = NUMBERS.fetch_add(MOST, Ordering::Relaxed) % (u16::MAX - MOST);
        Self { scene, dice, parties, flows: Vec::new(), story: Vec::new(), next }
    }

    pub fn shot(&mut self) -> Shot {
        self.next += 1;
        let told = self.story.pop();
        let by_the_book = told.is_some();
        let (flow, said) = match told {
            Some((flow, part)) => {
                let said = self.as_it_should_be(&flow, part);
                (flow, said)
            }
            None => {
                let flow = self.flow();
                let said = self.says(&flow);
                (flow, said)
            }
        };
        let (speaker, hearer) = if said.forth { (&flow.client, &flow.server) } else { (&flow.server, &flow.client) };
        let packet = numbered(&said.packet, self.next);
        let family = if speaker.address.is_ipv4() { "v4" } else { "v6" };
        let mut kind = format!("{} {family}", said.kind);
        if hearer.place == WAN {
            kind.push_str(" out");
        }
        let calls = flow.client.place == WAN;
        if calls {
            // Who comes in has been translated by now: it is put on the gateway's wire.
            kind.push_str(" of a caller");
        }
        if speaker.place == WAN && !calls && (by_the_book || self.dice.chance(60)) {
            let frame = self.answer_outside(&flow, &packet);
            return Shot { number: self.next, kind: format!("{kind} in"), twist: "", way: frame };
        }
        let place = if speaker.place == WAN { "uplink" } else { &speaker.place }.to_owned();
        let lies = !by_the_book && self.dice.chance(12);
        if self.scene.has_programs(&place) && (by_the_book || self.dice.chance(50)) && hearer.place != place && !lies {
            // What the machine itself sends anywhere else takes another way, and raw(7) fills in a source of zero.
            let has_source =
                packet.in_stack().and_then(|view| view.ends()).is_some_and(|ends| !ends.from().is_unspecified());
            if has_source && (place != "host" || hearer.place != WAN) {
                let (packet, twist) =
                    if !by_the_book && self.dice.chance(15) { self.dressed(&packet) } else { (packet, "") };
                return Shot { number: self.next, kind, twist, way: Way::Program(place, packet) };
            }
        }
        let (place, packet, lie) = if lies { self.lie(place, packet) } else { (place, packet, "") };
        let (frames, whole, twist) = self.reworked(packet);
        let twist = if lie.is_empty() { twist } else { lie };
        Shot { number: self.next, kind, twist, way: Way::Wire(place, frames, whole) }
    }

    fn flow(&mut self) -> Flow {
        if !self.flows.is_empty() && self.dice.chance(70) {
            let at = self.dice.below(self.flows.len());
            return self.flows[at].clone();
        }
        let flow = self.new_flow();
        if self.flows.len() >= FLOWS {
            let at = self.dice.below(FLOWS);
            self.flows.swap_remove(at);
        }
        self.flows.push(flow.clone());
        if self.dice.chance(50) {
            // Opened and answered, or pinged and answered: what comes then comes in the middle of something.
            let last = if self.dice.chance(30) { Some(Part::Error) } else { None };
            let parts = last.into_iter().chain([Part::Answer, Part::Opening]);
            self.story = parts.map(|part| (flow.clone(), part)).collect();
        }
        flow
    }

    fn as_it_should_be(&mut self, flow: &Flow, part: Part) -> Said {
        let forth = match part {
            Part::Opening => true,
            Part::Answer => false,
            Part::Error => return self.error(flow),
        };
        let ends = ends_of(flow, forth);
        let (from, to) = if forth { (flow.cport, flow.sport) } else { (flow.sport, flow.cport) };
        let (packet, kind) = match (flow.protocol, forth) {
            (6, true) => (Packet::tcp(ends, from, to, flag::SYN), "tcp opening"),
            (6, false) => (Packet::tcp(ends, from, to, flag::SYN | flag::ACK), "tcp answer"),
            (17, true) => (Packet::udp(ends, from, to, b"?"), "udp"),
            (17, false) => (Packet::udp(ends, from, to, b"!"), "udp answer"),
            (_, true) => (Packet::echo_request(ends, flow.cport), "echo"),
            (_, false) => (Packet::echo_reply(ends, flow.cport), "echo answer"),
        };
        Said { packet, kind, forth }
    }

    fn new_flow(&mut self) -> Flow {
        let edges = self.scene.graph.edges();
        if !edges.is_empty() && self.dice.chance(55) {
            let edge = &edges[self.dice.below(edges.len())];
            let (from, to) = (edge.from.to_string(), edge.to.to_string());
            let (client, server) = self.two(&from, &to);
            let (lo, hi) = (edge.ports.lo(), edge.ports.hi());
            let inside = lo + u16::try_from(self.dice.below(usize::from(hi - lo) + 1)).expect("it is below a port");
            let sport = self.dice.weighted(&[
                (4, lo),
                (4, hi),
                (4, inside),
                (1, lo.saturating_sub(1)),
                (1, hi.saturating_add(1)),
            ]);
            return self.between(client, server, edge.ports.protocol().number(), sport);
        }
        if let Some(flow) = self.call() {
            return flow;
        }
        let client = self.party();
        let outside = self.scene.world.leg.is_some() && self.dice.chance(65);
        let server = if outside { self.outsider(client.address.is_ipv4()) } else { self.party_like(&client) };
        let protocol = self.dice.one(&[6, 17]);
        let sport = self.dice.one(&[53, 80, 443, 123, 514, 5000, 450, 1000, 1200, 9050]);
        self.between(client, server, protocol, sport)
    }

    /// Somebody outside calls one who is exposed on a port of the host, or its relay.
    fn call(&mut self) -> Option<Flow> {
        let exposed = self.scene.graph.exposures().iter().filter(|exposure| exposure.way.is_on_host());
        let exposed: Vec<_> = exposed.collect();
        if exposed.is_empty() || !self.dice.chance(30) {
            return None;
        }
        let exposure = exposed[self.dice.below(exposed.len())];
        let (place, port) = match exposure.way.relay() {
            Some(_) => ("+relay".to_owned(), exposure.way.external()?),
            None => (exposure.service.to_string(), exposure.ports.lo()),
        };
        let ends: Vec<End> = self.parties.iter().filter(|end| end.place == place).cloned().collect();
        let server = ends[self.dice.below(ends.len())].clone();
        let client = self.outsider(server.address.is_ipv4());
        let port = self.dice.weighted(&[(8, port), (1, port.saturating_add(1))]);
        Some(self.between(client, server, exposure.ports.protocol().number(), port))
    }

    fn between(&mut self, client: End, server: End, protocol: u8, sport: u16) -> Flow {
        let icmp = if client.address.is_ipv4() { 1 } else { 58 };
        let protocol = if self.dice.chance(12) { icmp } else { protocol };
        // Different services have different ports, so that no masquerade has to choose another.
        let number = self.scene.world.places.keys().position(|name| *name == client.place).unwrap_or(60);
        let cport = 40000 + 8 * u16::try_from(number).expect("they are few") + self.dice.one(&[0, 1, 2]);
        Flow { client, server, protocol, cport, sport }
    }

    fn two(&mut self, from: &str, to: &str) -> (End, End) {
        let ends = |name: &str| self.parties.iter().filter(|end| end.place == name).cloned().collect::<Vec<_>>();
        let (froms, tos) = (ends(from), ends(to));
        let client = froms[self.dice.below(froms.len())].clone();
        let server = tos.into_iter().find(|end| end.address.is_ipv4() == client.address.is_ipv4());
        (client, server.expect("both have both families, or neither has IPv6"))
    }

    fn party(&mut self) -> End {
        self.parties[self.dice.below(self.parties.len())].clone()
    }

    fn party_like(&mut self, other: &End) -> End {
        loop {
            let party = self.party();
            if party.address.is_ipv4() == other.address.is_ipv4() {
                return party;
            }
        }
    }

    fn outsider(&mut self, ipv4: bool) -> End {
        let text = self.dice.one(&[
            PUBLIC[0],
            PUBLIC[0],
            PUBLIC[1],
            PUBLIC[2],
            PUBLIC[2],
            PUBLIC[3],
            LOCAL[0],
            LOCAL[1],
            LOCAL[2],
            LOCAL[3],
            LOCAL[4],
            LOCAL[5],
            "169.254.169.254",
            "198.51.100.1",
            "2001:db8:1::1",
            "224.0.0.251",
            "ff02::fb",
            "fe80::1",
            "10.231.0.77",
            "255.255.255.255",
        ]);
        let mut address: IpAddr = text.parse().expect("the constants are addresses");
        let resolvers: Vec<IpAddr> = self.scene.addresses.resolver().iter().collect();
        if self.dice.chance(15) {
            address = self.dice.one(&resolvers);
        }
        if address.is_ipv4() == ipv4 { End { place: WAN.into(), address } } else { self.outsider(ipv4) }
    }

    /// Something that is about a flow.
    fn says(&mut self, flow: &Flow) -> Said {
        let forth = self.dice.chance(60);
        let ends = ends_of(flow, forth);
        match self.dice.weighted(&[(70, 0), (9, 1), (14, 2), (7, 3)]) {
            0 => self.speech(flow, forth),
            1 => self.ping(ends, flow, forth),
            2 => self.error(flow),
            _ => self.odd(ends, flow, forth),
        }
    }

    fn speech(&mut self, flow: &Flow, forth: bool) -> Said {
        let ends = ends_of(flow, forth);
        let (from, to) = if forth { (flow.cport, flow.sport) } else { (flow.sport, flow.cport) };
        match flow.protocol {
            6 => {
                let any = self.dice.byte();
                let flags = self.dice.weighted(&[
                    (if forth { 30 } else { 5 }, flag::SYN),
                    (if forth { 4 } else { 30 }, flag::SYN | flag::ACK),
                    (20, flag::ACK),
                    (6, flag::RST),
                    (5, flag::RST | flag::ACK),
                    (8, flag::FIN | flag::ACK),
                    (7, flag::PSH | flag::ACK),
                    (2, flag::SYN | flag::URG),
                    (18, any),
                ]);
                let kind = match flags & (flag::SYN | flag::ACK) {
                    flag::SYN if flags == flag::SYN => "tcp opening",
                    _ if flags == flag::SYN | flag::ACK => "tcp answer",
                    _ => "tcp",
                };
                Said { packet: Packet::tcp(ends, from, to, flags), kind, forth }
            }
            17 => {
                let kind = if forth { "udp" } else { "udp answer" };
                let len = self.dice.one(&[0, 1, 2, 10, 75]);
                // A later part of it would look as if it began with the very ports of the flow.
                let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
                Said { packet: Packet::udp(ends, from, to, &ports.repeat(len)), kind, forth }
            }
            _ => self.ping(ends, flow, forth),
        }
    }

    fn ping(&mut self, ends: Ends, flow: &Flow, forth: bool) -> Said {
        if self.dice.chance(12) {
            let (kind, code) = (self.dice.byte(), self.dice.one(&[0, 0, 1, 13]));
            return Said {
                packet: Packet::icmp(ends, Icmp { kind, code, rest: 0x10001 }, b"icmp"),
                kind: "icmp",
                forth,
            };
        }
        if forth {
            return Said { packet: Packet::echo_request(ends, flow.cport), kind: "echo", forth };
        }
        Said { packet: Packet::echo_reply(ends, flow.cport), kind: "echo answer", forth }
    }

    /// An ICMP error about what one end has said, to that end: from the other, or from a third.
    fn error(&mut self, flow: &Flow) -> Said {
        let about = self.dice.chance(60);
        let original = self.speech(flow, about).packet;
        let forth = !about;
        let ends = ends_of(flow, forth);
        let ends = match self.dice.chance(15) {
            true => Ends::new(self.stranger(ends.from()), ends.to()).unwrap_or(ends),
            false => ends,
        };
        let v4 = ends.icmp() == 1;
        let any = self.dice.byte();
        let kind =
            if v4 { self.dice.one(&[3, 3, 3, 4, 5, 11, 12, any]) } else { self.dice.one(&[1, 1, 2, 3, 4, 137, any]) };
        let code = if v4 && kind == 3 { self.dice.one(&[0, 1, 3, 4, 13]) } else { 0 };
        let original = match self.dice.chance(15) {
            true => self.mutated(&original),
            false => original,
        };
        let rest = if self.dice.chance(50) { 1300 } else { 0 };
        Said { packet: Packet::icmp_error(ends, Icmp { kind, code, rest }, &original), kind: "icmp error", forth }
    }

    fn odd(&mut self, ends: Ends, flow: &Flow, forth: bool) -> Said {
        let number = flow.cport.to_be_bytes()[1];
        let outside = [&flow.client, &flow.server].iter().any(|end| end.place == WAN);
        // Masquerading has no port to tell apart by, so each service speaks one of its own.
        let protocol = if outside { 150 + number % 100 } else { self.dice.one(&ODD) };
        let len = self.dice.one(&[0, 1, 4, 8, 20, 40]);
        let body: Vec<u8> = (0..len).map(|_| self.dice.byte()).collect();
        Said { packet: Packet::ip(ends, protocol, body), kind: "other protocol", forth }
    }

    /// Somebody whom this place is not.
    fn stranger(&mut self, like: IpAddr) -> IpAddr {
        if self.dice.chance(40) {
            return self.party_like(&End { place: String::new(), address: like }).address;
        }
        let text = match like.is_ipv4() {
            true => self.dice.one(&[
                "0.0.0.0",
                "127.0.0.1",
                "255.255.255.255",
                "224.0.0.1",
                PUBLIC[0],
                LOCAL[0],
                "10.231.0.77",
            ]),
            false => self.dice.one(&["::", "::1", "fe80::1", "ff02::1", PUBLIC[2], LOCAL[5], "::ffff:10.231.0.1"]),
        };
        text.parse().expect("the constants are addresses")
    }

    fn lie(&mut self, place: String, packet: Packet) -> (String, Packet, &'static str) {
        let Some(ends) = packet.in_stack().and_then(|view| view.ends()) else { return (place, packet, "") };
        let other = match self.dice.below(3) {
            0 => {
                let thief = self.party().place;
                return (thief, packet, "from another wire");
            }
            1 => Ends::new(self.stranger(ends.from()), ends.to()),
            _ => Ends::new(ends.from(), self.stranger(ends.to())),
        };
        let lied = other.and_then(|ends| packet.readdressed(ends));
        (place, lied.unwrap_or(packet), "with another address")
    }

    /// An answer from outside, as it looks to each gate.
    fn answer_outside(&mut self, flow: &Flow, packet: &Packet) -> Way {
        let machine = self.scene.machine();
        let Some(leg) = &self.scene.world.leg else { return Way::Outside(packet.clone(), None) };
        let of = |addresses: Vec<IpAddr>| {
            addresses.into_iter().find(|address| address.is_ipv4() == flow.client.address.is_ipv4())
        };
        let seen = |to: Option<IpAddr>| seen_as(packet, flow.client.address, to?);
        let resolver = self.scene.addresses.resolver().iter().any(|address| address == flow.server.address);
        let known = flow.client.place != "host" && !resolver;
        let at_host = seen(of(leg.addresses.clone())).filter(|_| known);
        let frame = seen(of(machine)).unwrap_or_else(|| packet.clone());
        if self.dice.chance(15) {
            // To the pool itself, to which the neighbours' routes may lead.
            return Way::Outside(packet.clone(), None);
        }
        let gates =
            |at_host| Arrival { at_host: Some(at_host), at_gateway: Some(packet.clone()), on_wire: packet.clone() };
        Way::Outside(frame, at_host.map(gates))
    }

    /// Options or extension headers.
    fn dressed(&mut self, packet: &Packet) -> (Packet, &'static str) {
        let extension = self.dice.one(&[
            Extension::Destination,
            Extension::HopByHop,
            Extension::Routing,
            Extension::Authentication,
            Extension::AtomicFragment,
        ]);
        if let Some(dressed) = packet.with_extension(extension) {
            let twist = match extension {
                Extension::Destination => "with destination options",
                Extension::HopByHop => "with hop-by-hop options",
                Extension::Routing => "with a routing header",
                Extension::Authentication => "with an authentication header",
                Extension::AtomicFragment => "as a fragment of one",
            };
            return (dressed, twist);
        }
        let options: &[u8] = self.dice.one(&[
            &[1, 1, 1, 0][..],
            // Record route, timestamp, router alert.
            &[7, 7, 4, 0, 0, 0, 0, 0],
            &[68, 8, 5, 0, 0, 0, 0, 0],
            &[148, 4, 0, 0],
            // Loose source route, by way of the metadata address.
            &[131, 7, 4, 169, 254, 169, 254, 0],
            // Too long for what there is.
            &[7, 39, 4, 0],
            &[130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ]);
        match packet.with_options(options) {
            Some(dressed) => (dressed, "with options"),
            None => (packet.clone(), ""),
        }
    }

    fn reworked(&mut self, packet: Packet) -> (Vec<Packet>, Packet, &'static str) {
        let alone = |packet: Packet, twist| (vec![packet.clone()], packet, twist);
        match self.dice.weighted(&[(45, 0), (10, 1), (18, 2), (6, 3), (4, 4), (14, 5), (2, 6), (1, 7)]) {
            0 => alone(packet, ""),
            1 => {
                let (dressed, twist) = self.dressed(&packet);
                alone(dressed, twist)
            }
            2 => self.parts(packet),
            3 => {
                let tpid = self.dice.one(&[VLAN, VLAN, VLAN_SERVICE]);
                let tci = self.dice.one(&[0, 0x2000, 7, 0xe000]);
                let tagged = packet.tagged(tpid, tci);
                alone(if self.dice.chance(20) { tagged.tagged(VLAN, 5) } else { tagged }, "tagged")
            }
            4 => {
                let len = 14 + self.dice.below(packet.frame().len() - 13);
                alone(packet.cut(len), "cut short")
            }
            5 => {
                let mutated = self.mutated(&packet);
                alone(mutated, "with other bytes")
            }
            6 => {
                let mut frame = packet.frame().to_vec();
                let mac = self.dice.one(&[[0xff; 6], [0x33, 0x33, 0, 0, 0, 1], [0x02, 0, 0, 0, 0, 0x02]]);
                frame[..6].copy_from_slice(&mac);
                alone(Packet::from_frame(frame), "to another MAC address")
            }
            _ => {
                let any = u16::from_be_bytes([self.dice.byte(), self.dice.byte()]);
                let other = self.dice.one(&[ARP, IPV4, IPV6, 0x0027, 0x88cc, any]);
                let mut frame = packet.frame().to_vec();
                frame[12..14].copy_from_slice(&other.to_be_bytes());
                alone(Packet::from_frame(frame), "of another EtherType")
            }
        }
    }

    /// Both parts of a datagram, or one of them.
    fn parts(&mut self, packet: Packet) -> (Vec<Packet>, Packet, &'static str) {
        let at = self.dice.one(&[8, 8, 8, 16]);
        let Some((head, tail)) = packet.fragments(at) else { return (vec![packet.clone()], packet, "") };
        // What a careless look at a later part would take for ports.
        let label = self.dice.one(&[53, 80, 443, 1000]);
        let odd = if self.dice.chance(30) { tail.with_flow_label(label) } else { None };
        let [head, tail] = [head, odd.unwrap_or(tail)].map(|part| identified(part, self.next));
        match self.dice.below(6) {
            0 => (vec![head], packet, "the first part of it"),
            1 => (vec![tail], packet, "a later part of it"),
            2 => (vec![tail, head], packet, "in two parts, turned round"),
            _ => (vec![head, tail], packet, "in two parts"),
        }
    }

    /// A few other bytes, lengths among them; never in the field that holds the number.
    fn mutated(&mut self, packet: &Packet) -> Packet {
        let mut frame = packet.frame().to_vec();
        let number = number_at(&frame);
        for _ in 0..=self.dice.below(3) {
            let near = self.dice.one(&[2, 20, 40, 60, 100]);
            let at = (14 + self.dice.below(near)).min(frame.len() - 1);
            // Time to live is not ours to judge.
            let hops = if number == Some(18) { 22 } else { 21 };
            if number.is_some_and(|number| (number..number + 2).contains(&at)) || at == hops {
                continue;
            }
            frame[at] = match self.dice.below(4) {
                0 => self.dice.byte(),
                1 => frame[at] ^ (1 << self.dice.below(8)),
                2 => frame[at].wrapping_add(self.dice.one(&[1, 0xff, 4])),
                _ => self.dice.one(&[0, 0xff, 6, 17, 58, 44, 43, 60, 0x45, 0x46]),
            };
        }
        if self.dice.chance(10) {
            frame.extend(vec![0; self.dice.one(&[1, 4, 8, 46])]);
        }
        if number == Some(18) && self.dice.chance(80) {
            seal(&mut frame);
        }
        Packet::from_frame(frame)
    }
}

fn ends_of(flow: &Flow, forth: bool) -> Ends {
    let ends = Ends::new(flow.client.address, flow.server.address).expect("both are of one family");
    if forth { ends } else { ends.reversed() }
}

/// The same packet with `old` become `new`: as its destination, and in the header that an error embeds as its source.
fn seen_as(packet: &Packet, old: IpAddr, new: IpAddr) -> Option<Packet> {
    let ends = packet.in_stack()?.ends()?;
    let readdressed = packet.readdressed(Ends::new(ends.from(), new)?)?;
    let mut frame = readdressed.frame().to_vec();
    let (old, new) = (octets(old), octets(new));
    let start = if old.len() == 4 { 34 } else { 54 };
    let inner = (start..frame.len().saturating_sub(old.len())).find(|at| frame[*at..].starts_with(&old));
    if let Some(at) = inner {
        frame[at..at + new.len()].copy_from_slice(&new);
        seal_icmp(&mut frame, start);
    }
    Some(Packet::from_frame(frame))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The same packet with a number.
fn numbered(packet: &Packet, number: u16) -> Packet {
    let mut frame = packet.frame().to_vec();
    if let Some(at) = number_at(&frame) {
        frame[at..at + 2].copy_from_slice(&number.to_be_bytes());
        seal(&mut frame);
    }
    Packet::from_frame(frame)
}

/// The same part of an IPv6 datagram with the number as its identification; IPv4 has it already.
fn identified(part: Packet, number: u16) -> Packet {
    let mut frame = part.frame().to_vec();
    if number_at(&frame) == Some(16) {
        frame[60..62].copy_from_slice(&number.to_be_bytes());
    }
    Packet::from_frame(frame)
}

/// Where the number stands in an untagged frame.
fn number_at(frame: &[u8]) -> Option<usize> {
    match frame.get(12..14)?.try_into().ok().map(u16::from_be_bytes)? {
        IPV4 => Some(18),
        IPV6 => Some(16),
        _ => None,
    }
}

/// The number in a datagram.
pub fn number_of(datagram: &[u8]) -> Option<u16> {
    let at = if datagram.first()? >> 4 == 4 { 4 } else { 2 };
    Some(u16::from_be_bytes(datagram.get(at..at + 2)?.try_into().ok()?))
}

/// Writes the checksum of the IPv4 header of an untagged frame (RFC 1071).
fn seal(frame: &mut [u8]) {
    if number_at(frame) != Some(18) {
        return;
    }
    let len = usize::from(frame.get(14).copied().unwrap_or_default() & 0x0f) * 4;
    let Some(header) = frame.get_mut(14..14 + len).filter(|header| header.len() >= 20) else { return };
    header[10..12].fill(0);
    let sum = checksum([&header[..]]);
    header[10..12].copy_from_slice(&sum);
}

/// Writes the checksum of the ICMP message that begins at `start` in an untagged frame. A translator looks whether it is
/// right.
fn seal_icmp(frame: &mut [u8], start: usize) {
    let (head, message) = frame.split_at_mut(start);
    message[2..4].fill(0);
    let sum = if start == 34 {
        checksum([&message[..]])
    } else {
        // The pseudo header (RFC 4443): both addresses, the length, the protocol.
        let len = u32::try_from(message.len()).expect("it is short").to_be_bytes();
        checksum([&head[22..54], &len, &[0, 0, 0, 58], message])
    };
    message[2..4].copy_from_slice(&sum);
}

/// Whether it is an ICMP message whose checksum is wrong.
pub fn has_wrong_icmp_checksum(packet: &Packet) -> bool {
    let Some(view) = packet.in_stack() else { return false };
    let Some(transport) = view.transport.filter(|transport| [1, 58].contains(&transport.protocol)) else {
        return false;
    };
    let message = view.network.get(transport.offset..).unwrap_or_default();
    let len = u32::try_from(message.len()).expect("it is short").to_be_bytes();
    let sum = match transport.protocol {
        1 => checksum([message]),
        _ => checksum([view.network.get(8..40).unwrap_or_default(), &len, &[0, 0, 0, 58], message]),
    };
    sum != [0, 0]
}

/// The checksum of RFC 1071, over parts of even lengths but for the last.
fn checksum<const N: usize>(parts: [&[u8]; N]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).expect("it was folded")).to_be_bytes()
}

/// The MAC address of every wire, in words.
fn is_ordinary(frame: &[u8]) -> bool {
    frame.starts_with(&MAC)
}

/// A frame in words, as far as it has any.
fn words(packet: &Packet) -> String {
    let Some(view) = packet.at_ingress() else { return "no frame".into() };
    let mut text = String::new();
    if !is_ordinary(packet.frame()) {
        text.push_str("to another MAC, ");
    }
    if let Some((tpid, tci)) = view.tag {
        text.push_str(&format!("tag {tpid:04x}:{tci:04x}, "));
    }
    let Some(ends) = view.ends() else {
        return format!("{text}EtherType {:04x}, {} bytes", view.protocol, view.network.len());
    };
    text.push_str(&format!("{} -> {}", ends.from(), ends.to()));
    let Some(transport) = view.transport else { return format!("{text}, no transport header") };
    text.push_str(&format!(", protocol {}", transport.protocol));
    if view.is_fragment() {
        text.push_str(if transport.beheaded { ", a later part" } else { ", a first part" });
    }
    if view.has_routing_header() == Some(true) {
        text.push_str(", routing header");
    }
    let be16 = |at| view.transport(at, 2).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    match transport.protocol {
        6 => text.push_str(&format!(
            ", {} -> {}, flags {:08b}",
            be16(0),
            be16(2),
            view.transport(13, 1).map_or(0, |f| f[0])
        )),
        17 => text.push_str(&format!(", {} -> {}", be16(0), be16(2))),
        1 | 58 => text.push_str(&format!(", type {} code {}", be16(0) >> 8, be16(0) & 0xff)),
        _ => {}
    }
    text
}

/// A shot in words and bytes.
pub fn told(shot: &Shot) -> String {
    let (who, frames) = match &shot.way {
        Way::Program(from, packet) => (format!("a program of {from}"), vec![packet.clone()]),
        Way::Wire(from, frames, _) => (format!("root of {from}"), frames.clone()),
        Way::Outside(frame, _) => ("somebody outside".into(), vec![frame.clone()]),
    };
    let mut text = format!("  {} ({} {}) by {who}\n", shot.number, shot.kind, shot.twist);
    for frame in frames {
        let hex: String = frame.frame().iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "      {}\n      {hex}", words(&frame)).expect("a string takes it");
    }
    text
}
