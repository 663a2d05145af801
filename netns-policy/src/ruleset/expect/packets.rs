//! One packet of a class, and what must have gone before.

use std::net::IpAddr;

use super::{Addresses, IcmpError, Ip, Kind, PacketClass, expected, origin, target};
use crate::graph::AllowGraph;
use crate::packet::build::{Icmp, flag};
use crate::packet::{ARP, Ends, Extension, Packet};
use crate::port::Protocol;
use crate::ruleset::decide::Decision;
use crate::ruleset::decide::walk::{Connections, Fate, Sender, World};

/// Identifier of every echo request here.
const ECHO_ID: u16 = 0x2a2a;

impl PacketClass {
    /// Whether `world` does with this class what the graph promises. The packet leaves once as a program sends it and
    /// once as root in the namespace does.
    pub fn holds(&self, graph: &AllowGraph, addresses: Addresses<'_>, world: &World) -> bool {
        let expected = expected(graph, addresses, self);
        let Some(packet) = self.packet(addresses) else { return !expected };
        let connections = self.connections(addresses);
        let from = self.from.to_string();
        let to = self.to.to_string();
        [Sender::Program, Sender::Root].into_iter().all(|sender| {
            let walk = world.carry(&from, &packet, sender, &connections);
            // A later fragment is not to come as far as to wait for the others.
            let waits = matches!(self.kind, Kind::Fragment { first: false, .. })
                && walk.hops.iter().any(|hop| matches!(hop.outcome.decision, Decision::Forwarded(_)));
            if waits {
                return false;
            }
            // RFC 8021: nobody sends these any more, so they may be taken for the fragments that they are not.
            if self.kind == Kind::Behind(Extension::AtomicFragment) && !walk.is_delivered() {
                return true;
            }
            // An arrival at a third party is as wrong as none.
            walk.is_delivered() == expected && (!expected || walk.fate == Fate::Delivered(&to))
        })
    }

    /// A packet of this class; `None` when there is none, because an address is missing or IP has no such thing in this
    /// version.
    pub fn packet(&self, addresses: Addresses<'_>) -> Option<Packet> {
        let ends = self.ends(addresses)?;
        let (port, client_port) = (self.port, self.client_port);
        let syn = Packet::tcp(ends, client_port, port, flag::SYN);
        match &self.kind {
            Kind::Syn => Some(syn),
            Kind::UdpNew => Some(datagram(ends, Protocol::Udp, client_port, port, 0)),
            Kind::Data(protocol) => Some(datagram(ends, *protocol, client_port, port, flag::ACK)),
            Kind::Reply(protocol) => Some(datagram(ends, *protocol, port, client_port, flag::SYN | flag::ACK)),
            Kind::Unsolicited(protocol) => Some(datagram(ends, *protocol, port, client_port, flag::SYN | flag::ACK)),
            Kind::SynFromPort => Some(Packet::tcp(ends, port, client_port, flag::SYN)),
            Kind::MidStream(flags) => Some(Packet::tcp(ends, client_port, port, *flags)),
            Kind::Echo => Some(Packet::echo_request(ends, ECHO_ID)),
            Kind::EchoReply | Kind::UnaskedEchoReply => Some(Packet::echo_reply(ends, ECHO_ID)),
            Kind::IcmpError(error) => self.icmp_error(ends, error, addresses),
            Kind::Fragment { protocol, first } => self.fragment(ends, *protocol, *first),
            Kind::Vlan { tpid, tci } => Some(syn.tagged(*tpid, *tci)),
            Kind::Behind(extension) => syn.with_extension(*extension),
            Kind::OtherProtocol(1 | 6 | 17 | 58) => None,
            Kind::OtherProtocol(protocol) => Some(Packet::ip(ends, *protocol, syn.in_stack()?.transport(0, 20)?)),
            Kind::SpoofedSource { claimed } => {
                let claimed = Ends::new(addresses(&claimed.to_string(), self.ip)?, ends.to())?;
                Some(Packet::tcp(claimed, client_port, port, flag::SYN))
            }
            Kind::SpoofedError { claimed } => {
                let claimed = Ends::new(addresses(&claimed.to_string(), self.ip)?, ends.to())?;
                let (question, _) = self.exchange(ends.reversed(), Some(Protocol::Tcp));
                let kind = if self.ip == Ip::V4 { 3 } else { 1 };
                Some(Packet::icmp_error(claimed, Icmp { kind, code: 0, rest: 0 }, &question))
            }
            Kind::LinkLocal => {
                Some(Packet::tcp(Ends::new(self.link_local(), ends.to())?, client_port, port, flag::SYN))
            }
            Kind::Multicast => Some(Packet::udp(Ends::new(ends.from(), self.multicast())?, client_port, port, b"?")),
            Kind::EtherType(ethertype) => ethernet(*ethertype, ends),
        }
    }

    /// The flow of this class, where it has one that is open, as both its ends hold it.
    pub fn connections(&self, addresses: Addresses<'_>) -> Connections {
        self.opened(addresses).unwrap_or_default()
    }

    fn opened(&self, addresses: Addresses<'_>) -> Option<Connections> {
        let (client, server, protocol) = match &self.kind {
            Kind::Data(protocol) => (self.from.clone(), self.to.clone(), Some(*protocol)),
            Kind::Reply(protocol) => (origin(&self.to), target(&self.from), Some(*protocol)),
            Kind::SpoofedError { .. } => (origin(&self.to), target(&self.from), Some(Protocol::Tcp)),
            Kind::EchoReply => (origin(&self.to), target(&self.from), None),
            Kind::IcmpError(error) if error.open => (error.client.clone(), error.server.clone(), Some(error.protocol)),
            _ => return None,
        };
        let (client, server) = (client.to_string(), server.to_string());
        let ends = Ends::new(addresses(&client, self.ip)?, addresses(&server, self.ip)?)?;
        let (question, reply) = self.exchange(ends, protocol);
        let mut connections = Connections::new();
        for place in [client, server] {
            let tracked = connections.entry(place).or_default();
            tracked.record(&question);
            if matches!(self.kind, Kind::Data(_) | Kind::IcmpError(_) | Kind::SpoofedError { .. }) {
                tracked.record(&reply);
            }
        }
        Some(connections)
    }

    /// The first packet of a flow and the answer to it; of an echo without a protocol.
    fn exchange(&self, ends: Ends, protocol: Option<Protocol>) -> (Packet, Packet) {
        let back = ends.reversed();
        match protocol {
            Some(protocol) => (
                datagram(ends, protocol, self.client_port, self.port, flag::SYN),
                datagram(back, protocol, self.port, self.client_port, flag::SYN | flag::ACK),
            ),
            None => (Packet::echo_request(ends, ECHO_ID), Packet::echo_reply(back, ECHO_ID)),
        }
    }

    fn ends(&self, addresses: Addresses<'_>) -> Option<Ends> {
        Ends::new(addresses(&self.from.to_string(), self.ip)?, addresses(&self.to.to_string(), self.ip)?)
    }

    fn icmp_error(&self, ends: Ends, error: &IcmpError, addresses: Addresses<'_>) -> Option<Packet> {
        let client = addresses(&error.client.to_string(), self.ip)?;
        let server = addresses(&error.server.to_string(), self.ip)?;
        let (question, reply) = self.exchange(Ends::new(client, server)?, Some(error.protocol));
        let original = if error.about_server { reply } else { question };
        let icmp = Icmp { kind: error.kind, code: error.code, rest: 0 };
        Some(Packet::icmp_error(ends, icmp, &original))
    }

    /// A fragment of 32 bytes and more. The later one is the worst there is: its data, and in IPv6 its flow label, look
    /// like the ports of a first packet to `port`, which is where the kernel's quick loads look for them.
    fn fragment(&self, ends: Ends, protocol: Protocol, first: bool) -> Option<Packet> {
        let opening = datagram(ends, protocol, self.client_port, self.port, flag::SYN);
        let header = opening.in_stack()?.transport(0, 8)?.to_vec();
        let body = [&header[..], &[0; 24], &header, &[0; 24]].concat();
        let (head, tail) = Packet::ip(ends, protocol.number(), body).fragments(32)?;
        let tail = tail.with_flow_label(self.port).unwrap_or(tail);
        Some(if first { head } else { tail })
    }

    fn link_local(&self) -> IpAddr {
        match self.ip {
            Ip::V4 => [169, 254, 7, 7].into(),
            Ip::V6 => [0xfe80, 0, 0, 0, 0, 0, 0, 7].into(),
        }
    }

    fn multicast(&self) -> IpAddr {
        match self.ip {
            Ip::V4 => [224, 0, 0, 251].into(),
            Ip::V6 => [0xff02, 0, 0, 0, 0, 0, 0, 0xfb].into(),
        }
    }
}

/// A segment with these flags, or a datagram with four bytes.
fn datagram(ends: Ends, protocol: Protocol, sport: u16, dport: u16, flags: u8) -> Packet {
    match protocol {
        Protocol::Tcp => Packet::tcp(ends, sport, dport, flags),
        Protocol::Udp => Packet::udp(ends, sport, dport, b"text"),
    }
}

/// A frame of this EtherType: ARP where it asks for it, else with a whole datagram as its payload.
fn ethernet(ethertype: u16, ends: Ends) -> Option<Packet> {
    match ends {
        Ends::V4 { from, to } if ethertype == ARP => Some(Packet::arp_request(from, to)),
        _ if matches!(ethertype, ARP | crate::packet::IPV4 | crate::packet::IPV6) => None,
        _ => {
            let syn = Packet::tcp(ends, 1, 1, flag::SYN);
            Some(Packet::ethernet(ethertype, &[syn.at_ingress()?.network]))
        }
    }
}

/// Every extension header.
pub(super) const EXTENSIONS: [Extension; 5] = [
    Extension::AtomicFragment,
    Extension::Authentication,
    Extension::Destination,
    Extension::HopByHop,
    Extension::Routing,
];
