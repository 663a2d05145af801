//! What must arrive: the promise of this crate, said of classes of packets and never of rules.
//!
//! [`expected`] is written from the prose (closed by default; an edge opens one port in one direction) and reads the
//! graph alone. Rules are right when, for every class, [`super::decide::walk::World::carry`] delivers
//! [`PacketClass::packet`] exactly when [`expected`] says so. [`PacketClass::holds`] is that comparison; [`classes`]
//! lists the classes that a graph can tell apart.

mod classes;
pub mod outside;
mod packets;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use crate::graph::{AllowGraph, Origin, Target};
use crate::packet::Extension;
use crate::port::Protocol;

pub use classes::classes;

/// Version of IP.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Ip {
    /// Version 4.
    V4,
    /// Version 6.
    V6,
}

/// Address of a service by its name, or of the host by `host`; `None` where it has none in this family.
pub type Addresses<'a> = &'a dyn Fn(&str, Ip) -> Option<IpAddr>;

/// A class of packets that `from` sends to `to`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PacketClass {
    /// Version of IP.
    pub ip: Ip,
    /// Who puts it on its wire.
    pub from: Origin,
    /// Whom it is addressed to.
    pub to: Target,
    /// What it is.
    pub kind: Kind,
    /// The port of whichever of the two is the server.
    pub port: u16,
    /// The port of the other. Where the class has an open flow, no edge may cover it, else the packet would be at the
    /// same time one of another, declared flow.
    pub client_port: u16,
}

/// What a packet is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The first packet of a TCP connection to `port`.
    Syn,
    /// The first UDP datagram to `port`.
    UdpNew,
    /// A later packet to `port`, of a flow that both ends hold.
    Data(Protocol),
    /// An answer from `port`, of a flow that both ends hold.
    Reply(Protocol),
    /// What looks like an answer from `port` (a SYN with ACK, a datagram), of no flow.
    Unsolicited(Protocol),
    /// A pure SYN with `port` as its source.
    SynFromPort,
    /// A TCP segment to `port` with these flags, of no flow.
    MidStream(u8),
    /// An echo request.
    Echo,
    /// The answer to an echo request.
    EchoReply,
    /// An echo reply that nobody asked for.
    UnaskedEchoReply,
    /// An ICMP error.
    IcmpError(IcmpError),
    /// One fragment of a first packet to `port`. The first may reach whom the edge allows, where it waits for the
    /// others in vain; a later one must not leave the fabric.
    Fragment {
        /// Of which protocol.
        protocol: Protocol,
        /// The one with the ports.
        first: bool,
    },
    /// A SYN to `port` in a VLAN tag.
    Vlan {
        /// The EtherType of the tag.
        tpid: u16,
        /// Priority and number.
        tci: u16,
    },
    /// A SYN to `port` behind an IPv6 extension header. An atomic fragment may reach whom the edge allows, or nobody.
    Behind(Extension),
    /// A datagram of a protocol that is none of ICMP, TCP and UDP, with the bytes of a SYN to `port`.
    OtherProtocol(u8),
    /// A SYN to `port` with the source address of somebody else (or with its own, to show that the class can pass).
    SpoofedSource {
        /// Whose.
        claimed: Origin,
    },
    /// An ICMP error about an open flow from the receiver to `port` of the sender, with the source address of somebody
    /// else (or with its own).
    SpoofedError {
        /// Whose.
        claimed: Origin,
    },
    /// A SYN to `port` from a link-local address.
    LinkLocal,
    /// A datagram to `port` of a multicast group.
    Multicast,
    /// A frame that is no IP.
    EtherType(u16),
}

/// An ICMP error about one packet of a flow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IcmpError {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Client of the flow.
    pub client: Origin,
    /// Server of the flow.
    pub server: Target,
    /// Protocol of the flow; its ports are those of the class.
    pub protocol: Protocol,
    /// The packet that it is about is one of the server's.
    pub about_server: bool,
    /// Both ends hold the flow.
    pub open: bool,
}

/// ICMP errors that may pass: destination unreachable, time exceeded.
pub const ERRORS4: [u8; 2] = [3, 11];
/// ICMPv6 errors that may pass: destination unreachable, packet too big, time exceeded.
pub const ERRORS6: [u8; 3] = [1, 2, 3];

/// Whether a packet of this class must arrive; if not, it must not.
pub fn expected(graph: &AllowGraph, addresses: Addresses<'_>, class: &PacketClass) -> bool {
    let PacketClass { from, to, port, client_port, .. } = class;
    let opens = |protocol, port| graph.allows(from, to, protocol, port).is_some();
    let answers = |protocol| graph.allows(&origin(to), &target(from), protocol, *port).is_some();
    class.packet(addresses).is_some()
        && match &class.kind {
            // A new flow passes if, and only if, there is an edge.
            Kind::Syn | Kind::Behind(Extension::HopByHop | Extension::Destination | Extension::AtomicFragment) => {
                opens(Protocol::Tcp, *port)
            }
            Kind::UdpNew => opens(Protocol::Udp, *port),
            // To the receiver these are new flows to what is a client's port in the others.
            Kind::SynFromPort => opens(Protocol::Tcp, *client_port),
            Kind::Unsolicited(Protocol::Udp) => opens(Protocol::Udp, *client_port),
            // A flow that is open lives as long as its edge.
            Kind::Data(protocol) => opens(*protocol, *port),
            Kind::Reply(protocol) => answers(*protocol),
            // Whoever may connect may ask whether the other is there.
            Kind::Echo => any_edge(graph, from, to),
            Kind::EchoReply => any_edge(graph, &origin(to), &target(from)),
            Kind::IcmpError(error) => error_passes(graph, class, error),
            Kind::SpoofedError { claimed } => claimed == from && answers(Protocol::Tcp),
            Kind::SpoofedSource { claimed } => claimed == from && opens(Protocol::Tcp, *port),
            Kind::Unsolicited(Protocol::Tcp)
            | Kind::MidStream(_)
            | Kind::UnaskedEchoReply
            | Kind::Fragment { .. }
            | Kind::Vlan { .. }
            | Kind::Behind(Extension::Routing | Extension::Authentication)
            | Kind::OtherProtocol(_)
            | Kind::LinkLocal
            | Kind::Multicast
            | Kind::EtherType(_) => false,
        }
}

/// An error passes when it is about an open, declared flow between these two, and goes to the one whose packet it is
/// about.
fn error_passes(graph: &AllowGraph, class: &PacketClass, error: &IcmpError) -> bool {
    let (client, server) = (&error.client, origin(&error.server));
    let (owner, other) = if error.about_server { (&server, client) } else { (client, &server) };
    let kinds: &[u8] = if class.ip == Ip::V4 { &ERRORS4 } else { &ERRORS6 };
    error.open
        && kinds.contains(&error.kind)
        && *other == class.from
        && target(owner) == class.to
        && graph.allows(client, &error.server, error.protocol, class.port).is_some()
}

fn any_edge(graph: &AllowGraph, from: &Origin, to: &Target) -> bool {
    graph.edges().iter().any(|edge| edge.from == *from && edge.to == *to)
}

/// The same party as an origin.
fn origin(target: &Target) -> Origin {
    match target {
        Target::Host => Origin::Host,
        Target::Service(name) => Origin::Service(name.clone()),
    }
}

/// The same party as a target.
fn target(origin: &Origin) -> Target {
    match origin {
        Origin::Host => Target::Host,
        Origin::Service(name) => Target::Service(name.clone()),
    }
}
