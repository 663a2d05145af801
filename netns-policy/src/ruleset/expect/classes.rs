//! The classes that a graph can tell apart: of each, one packet stands for all.

use std::collections::BTreeSet;

use super::packets::EXTENSIONS;
use super::{IcmpError, Ip, Kind, PacketClass, origin, target};
use crate::graph::{AllowGraph, Edge, Origin, Target};
use crate::packet::build::flag;
use crate::packet::{ARP, VLAN, VLAN_SERVICE};
use crate::port::Protocol;

/// Flags of segments that no flow starts with: ACK, FIN, RST, SYN and ACK, none, "Christmas tree", SYN and FIN.
const MID_STREAM: [u8; 7] = [
    flag::ACK,
    flag::FIN | flag::ACK,
    flag::RST,
    flag::SYN | flag::ACK,
    0,
    flag::FIN | flag::PSH | flag::URG,
    flag::SYN | flag::FIN,
];
/// IPIP, DCCP, 6in4, GRE, ESP, AH, SCTP, UDP-Lite, and one for experiments.
const OTHER_PROTOCOLS: [u8; 9] = [4, 33, 41, 47, 50, 51, 132, 136, 253];
/// ARP, MPLS, PPPoE, LLDP, and a length (802.3).
const ETHERTYPES: [u16; 5] = [ARP, 0x8847, 0x8864, 0x88cc, 0x0040];

/// Every class for every two parties of the graph, the host among them.
///
/// Ports are those at which an edge of either party starts or ends, with their neighbours: between two of them the
/// graph makes no difference.
pub fn classes(graph: &AllowGraph) -> impl Iterator<Item = PacketClass> {
    let client_port = free_port(graph);
    let parties = parties(graph);
    let pairs: Vec<_> = parties
        .iter()
        .flat_map(|from| parties.iter().map(move |to| (from.clone(), target(to))))
        .filter(|(from, to)| target(from) != *to)
        .collect();
    pairs.into_iter().flat_map(move |(from, to)| {
        [Ip::V4, Ip::V6].into_iter().flat_map(move |ip| {
            let class = |(kind, port)| PacketClass { ip, from: from.clone(), to: to.clone(), kind, port, client_port };
            kinds(graph, &from, &to).into_iter().map(class).collect::<Vec<_>>()
        })
    })
}

fn parties(graph: &AllowGraph) -> Vec<Origin> {
    let services = graph.services().map(|service| Origin::Service(service.name.clone()));
    std::iter::once(Origin::Host).chain(services).collect()
}

/// The highest port that no edge covers, so that a client's port is nobody's server port.
fn free_port(graph: &AllowGraph) -> u16 {
    let covered = |port: u16| graph.edges().iter().any(|edge| (edge.ports.lo()..=edge.ports.hi()).contains(&port));
    (1..=u16::MAX).rev().find(|port| !covered(*port)).unwrap_or(u16::MAX)
}

fn touches(edge: &Edge, party: &Origin) -> bool {
    edge.from == *party || origin(&edge.to) == *party
}

fn ports(graph: &AllowGraph, from: &Origin, to: &Target) -> BTreeSet<u16> {
    let near = |edge: &&Edge| touches(edge, from) || touches(edge, &origin(to));
    let cuts = graph.edges().iter().filter(near).flat_map(|edge| {
        let (lo, hi) = (edge.ports.lo(), edge.ports.hi());
        [lo.saturating_sub(1), lo, hi, hi.saturating_add(1)]
    });
    cuts.chain([1]).filter(|port| *port != 0).collect()
}

fn kinds(graph: &AllowGraph, from: &Origin, to: &Target) -> Vec<(Kind, u16)> {
    let mut kinds: Vec<(Kind, u16)> = [Kind::Echo, Kind::EchoReply, Kind::UnaskedEchoReply]
        .into_iter()
        .chain(ETHERTYPES.map(Kind::EtherType))
        .map(|kind| (kind, 1))
        .collect();
    for port in ports(graph, from, to) {
        kinds.extend(at_port(from).map(|kind| (kind, port)));
        kinds.extend(spoofed(graph, from, to, port).map(|kind| (kind, port)));
        kinds.extend(spoofed_errors(graph, from, to, port).map(|kind| (kind, port)));
        kinds.extend(errors(graph, from, to, port).map(|kind| (kind, port)));
    }
    kinds
}

fn at_port(from: &Origin) -> impl Iterator<Item = Kind> {
    let each = |protocol| {
        [
            Kind::Data(protocol),
            Kind::Reply(protocol),
            Kind::Unsolicited(protocol),
            Kind::Fragment { protocol, first: true },
            Kind::Fragment { protocol, first: false },
        ]
    };
    let vlan = |tpid| [0, 7].map(|tci| Kind::Vlan { tpid, tci });
    [Kind::Syn, Kind::UdpNew, Kind::SynFromPort, Kind::LinkLocal, Kind::Multicast]
        .into_iter()
        .chain([Kind::SpoofedSource { claimed: from.clone() }])
        .chain([Protocol::Tcp, Protocol::Udp].into_iter().flat_map(each))
        .chain([VLAN, VLAN_SERVICE].into_iter().flat_map(vlan))
        .chain(MID_STREAM.map(Kind::MidStream))
        .chain(EXTENSIONS.map(Kind::Behind))
        .chain(OTHER_PROTOCOLS.map(Kind::OtherProtocol))
}

/// The sources worth stealing: of those who may do what is tried.
fn spoofed(graph: &AllowGraph, from: &Origin, to: &Target, port: u16) -> impl Iterator<Item = Kind> {
    let owners = graph.edges().iter().filter(move |edge| edge.to == *to && edge.ports.covers(Protocol::Tcp, port));
    let owners: BTreeSet<&Origin> = owners.map(|edge| &edge.from).filter(|owner| *owner != from).collect();
    owners.into_iter().map(|owner| Kind::SpoofedSource { claimed: owner.clone() })
}

/// One as the sender itself, and one as somebody that the receiver does not talk to where there is such a one.
fn spoofed_errors(graph: &AllowGraph, from: &Origin, to: &Target, port: u16) -> impl Iterator<Item = Kind> {
    let flow = graph.allows(&origin(to), &target(from), Protocol::Tcp, port).is_some();
    let others = parties(graph).into_iter().filter(|other| target(other) != *to);
    let (own, others): (Vec<_>, Vec<_>) = others.partition(|other| other == from);
    let claimed = own.into_iter().chain(others.into_iter().take(2)).filter(move |_| flow);
    claimed.map(|claimed| Kind::SpoofedError { claimed })
}

/// Errors about flows between the two in both directions, and about declared flows of the receiver with others.
fn errors(graph: &AllowGraph, from: &Origin, to: &Target, port: u16) -> impl Iterator<Item = Kind> {
    let foreign = graph.edges().iter().filter(|edge| {
        touches(edge, &origin(to)) && !touches(edge, from) && (edge.ports.lo()..=edge.ports.hi()).contains(&port)
    });
    let mut flows: Vec<(Origin, Target)> = foreign.map(|edge| (edge.from.clone(), edge.to.clone())).collect();
    flows.extend([(from.clone(), to.clone()), (origin(to), target(from))]);
    flows.into_iter().flat_map(|(client, server)| {
        [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(move |protocol| {
            let (client, server) = (client.clone(), server.clone());
            variants().map(move |(kind, about_server, open)| {
                let (client, server) = (client.clone(), server.clone());
                Kind::IcmpError(IcmpError { kind, code: 0, client, server, protocol, about_server, open })
            })
        })
    })
}

/// Types 1 to 5, 11 and 12 are the errors of either family (5 redirects in IPv4, and must never pass); whose packet it
/// is about; whether the flow is open.
fn variants() -> impl Iterator<Item = (u8, bool, bool)> {
    [1, 2, 3, 4, 5, 11, 12].into_iter().flat_map(|kind| {
        [(false, true), (true, true), (false, false), (true, false)].map(|(about, open)| (kind, about, open))
    })
}
