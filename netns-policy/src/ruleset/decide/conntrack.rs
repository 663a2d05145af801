//! The connections that one namespace holds, and what nf_conntrack says about a packet.
//!
//! It is conntrack in essence: tuples, directions, which first packets open an entry (`nf_conntrack_tcp_loose = 0`),
//! and errors about a flow. Left out, because they only make more packets invalid: checksums, TCP windows and
//! timeouts. Left out, because this design has none: helpers, expectations, zones, translated tuples.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::packet::build::{Ends, flag};
use crate::packet::{Packet, Transport, View, be16, embedded};

/// What a rule learns of a packet's connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CtState {
    /// `ct state`: one bit of [`CtState::INVALID`] and its neighbours.
    pub state: u32,
    /// `ct direction`: 0 as the first packet, 1 for replies.
    pub direction: u8,
    /// `ct status`, `IPS_*`.
    pub status: u32,
}

impl CtState {
    /// `ct state invalid`.
    pub const INVALID: u32 = 1;
    /// `ct state established`.
    pub const ESTABLISHED: u32 = 2;
    /// `ct state related`.
    pub const RELATED: u32 = 4;
    /// `ct state new`.
    pub const NEW: u32 = 8;
    /// `ct state untracked`.
    pub const UNTRACKED: u32 = 64;

    /// A state in the direction of the first packet.
    pub fn original(state: u32) -> Self {
        Self { state, direction: 0, status: 0 }
    }

    /// A state in the direction of the replies.
    pub fn reply(state: u32) -> Self {
        Self { state, direction: 1, status: 0 }
    }

    /// Whether the packet opens its connection.
    pub fn is_new(self) -> bool {
        self.state & Self::NEW != 0
    }

    /// Whether there is a connection, so that it has a direction and a status.
    pub(super) fn has_connection(self) -> bool {
        self.state & (Self::ESTABLISHED | Self::RELATED | Self::NEW) != 0
    }
}

/// One direction of a flow, as conntrack keys it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Tuple {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    /// Ports; for ICMP the identifier, and type and code.
    source: u16,
    destination: u16,
}

impl Tuple {
    /// The tuple of a datagram that is not beheaded and whose ports are there.
    fn new(from: IpAddr, to: IpAddr, transport: Transport, datagram: &[u8]) -> Option<Self> {
        let at = |offset: usize| be16(datagram, transport.offset.checked_add(offset)?);
        let (source, destination) = match transport.protocol {
            _ if transport.beheaded => return None,
            6 | 17 => (at(0)?, at(2)?),
            // The whole header, or nothing (`icmp_pkt_to_tuple`).
            1 | 58 => at(6).and(Some((at(4)?, at(0)?)))?,
            _ => (0, 0),
        };
        Some(Self { from, to, protocol: transport.protocol, source, destination })
    }

    fn of(view: &View<'_>) -> Option<Self> {
        let ends = view.ends()?;
        Self::new(ends.from(), ends.to(), view.transport?, view.network)
    }

    /// The tuple of the answers; an ICMP message that is no question has none.
    fn reversed(self) -> Option<Self> {
        let (source, destination) = match self.protocol {
            1 | 58 => (self.source, answer(self.protocol, self.destination)?),
            _ => (self.destination, self.source),
        };
        Some(Self { from: self.to, to: self.from, protocol: self.protocol, source, destination })
    }
}

/// Type and code of the answer to an ICMP question and the reverse (`nf_conntrack_invert_icmp_tuple`).
fn answer(protocol: u8, type_and_code: u16) -> Option<u16> {
    let [kind, code] = type_and_code.to_be_bytes();
    let kind = match (protocol, kind) {
        (1, 8) => 0,
        (1, 0) => 8,
        (1, 13 | 15 | 17) => kind + 1,
        (1, 14 | 16 | 18) => kind - 1,
        (58, 128 | 139) => kind + 1,
        (58, 129 | 140) => kind - 1,
        _ => return None,
    };
    Some(u16::from_be_bytes([kind, code]))
}

/// Every connection of one namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tracked {
    /// By the tuple of the first packet; whether there was an answer.
    flows: BTreeMap<Tuple, bool>,
}

impl Tracked {
    /// What conntrack says about a packet that comes in or goes out; `None` for an invalid one.
    pub fn classify(&self, packet: &Packet) -> Option<CtState> {
        let view = packet.in_stack()?.tracked()?;
        match message(&view) {
            Message::Error(inner) => self.error(&view, inner),
            Message::Untracked => Some(CtState::original(CtState::UNTRACKED)),
            Message::Ordinary => self.ordinary(&view),
        }
    }

    /// Keeps in mind a packet that has passed the rules: the first of a flow opens it, an answer confirms it, a reset before any
    /// answer ends it at once (`nf_conntrack_tcp_packet`).
    pub fn record(&mut self, packet: &Packet) {
        let Some(ct) = self.classify(packet) else { return };
        let Some(view) = packet.in_stack().and_then(View::tracked) else { return };
        let Some(tuple) = Tuple::of(&view) else { return };
        if is_reset(&view) && self.find(tuple).is_some_and(|(_, answered)| !answered) {
            self.flows.remove(&tuple);
            tuple.reversed().map(|original| self.flows.remove(&original));
            return;
        }
        match ct.state {
            CtState::NEW => {
                self.flows.entry(tuple).or_insert(false);
            }
            CtState::ESTABLISHED if ct.direction == 1 => {
                self.flows.extend(tuple.reversed().map(|original| (original, true)));
            }
            _ => (),
        }
    }

    /// Takes note of a packet on its way in or out, whatever the rules or the IP stack do with it afterwards: a flow that
    /// is held learns of it already, and none is opened.
    pub fn notice(&mut self, packet: &Packet) {
        let tuple = packet.in_stack().and_then(View::tracked).as_ref().and_then(Tuple::of);
        if tuple.is_some_and(|tuple| self.find(tuple).is_some()) {
            self.record(packet);
        }
    }

    fn ordinary(&self, view: &View<'_>) -> Option<CtState> {
        let tuple = Tuple::of(view)?;
        let tcp_flags = match tuple.protocol {
            6 => Some(valid_tcp_flags(view)?),
            17 if !has_udp_length(view) => return None,
            _ => None,
        };
        if let Some((direction, answered)) = self.find(tuple) {
            return existing(direction, answered, tcp_flags);
        }
        opens(tuple, tcp_flags).then(|| CtState::original(CtState::NEW))
    }

    /// Direction of a tuple in a flow that is held, and whether that was answered.
    fn find(&self, tuple: Tuple) -> Option<(u8, bool)> {
        if let Some(answered) = self.flows.get(&tuple) {
            return Some((0, *answered));
        }
        Some((1, *self.flows.get(&tuple.reversed()?)?))
    }

    /// `nf_conntrack_inet_error`: the embedded packet, turned round, must be one that a flow here expects, and the
    /// error must go to whoever sent it.
    fn error(&self, view: &View<'_>, inner: &[u8]) -> Option<CtState> {
        let (from, to, transport) = embedded(inner)?;
        let turned = Tuple::new(from, to, transport, inner)?.reversed()?;
        let (direction, _) = self.find(turned)?;
        (view.ends()?.to() == turned.to).then_some(CtState { state: CtState::RELATED, direction, status: 0 })
    }
}

/// What kind of datagram this is to conntrack.
enum Message<'a> {
    /// An ICMP error about these bytes.
    Error(&'a [u8]),
    /// Neighbour discovery and multicast listeners: never tracked.
    Untracked,
    Ordinary,
}

fn message<'a>(view: &View<'a>) -> Message<'a> {
    let (Some(transport), Some(kind)) = (view.transport, view.transport(0, 1)) else { return Message::Ordinary };
    let error = match (view.ends(), transport.protocol, kind[0]) {
        (Some(Ends::V4 { .. }), 1, kind) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (Some(Ends::V6 { .. }), 58, 130..=136 | 143) => return Message::Untracked,
        (Some(Ends::V6 { .. }), 58, kind) => kind < 128,
        _ => false,
    };
    let inner = view.network.get(transport.offset.saturating_add(8)..).unwrap_or_default();
    if error { Message::Error(inner) } else { Message::Ordinary }
}

/// The flags of a segment whose header is all there and whose flags go together (`tcp_valid_flags`).
fn valid_tcp_flags(view: &View<'_>) -> Option<u8> {
    let header = view.transport(0, 20)?;
    let len = usize::from(header[12] >> 4) * 4;
    (len >= 20 && view.transport(0, len).is_some()).then_some(())?;
    let flags = header[13] & (flag::FIN | flag::SYN | flag::RST | flag::ACK | flag::URG);
    let sane = match flags & !flag::URG {
        flag::SYN | flag::ACK => true,
        _ if flags == flag::SYN | flag::ACK => true,
        _ if flags & !flag::URG == flag::FIN | flag::ACK => true,
        _ => flags == flag::RST || flags == flag::RST | flag::ACK,
    };
    sane.then_some(flags)
}

/// Whether the length that a datagram gives is that of its header at least, and no more than there is (`udp_error`).
fn has_udp_length(view: &View<'_>) -> bool {
    let length = view.transport(4, 2).map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])));
    length.is_some_and(|length| length >= 8 && view.transport(0, length).is_some())
}

fn is_reset(view: &View<'_>) -> bool {
    let is_tcp = view.transport.is_some_and(|transport| transport.protocol == 6);
    is_tcp && view.transport(13, 1).is_some_and(|flags| flags[0] & flag::RST != 0)
}

/// A packet of a flow that is held.
fn existing(direction: u8, answered: bool, tcp_flags: Option<u8>) -> Option<CtState> {
    if tcp_flags.is_some_and(|flags| out_of_turn(direction, answered, flags)) {
        return None;
    }
    let state = if direction == 1 || answered { CtState::ESTABLISHED } else { CtState::NEW };
    Some(CtState { state, direction, status: 0 })
}

/// What the table `tcp_conntracks` calls invalid: before the server has spoken, anything of the client but a SYN or an
/// RST, and a FIN of the server (its SYN is a simultaneous open); afterwards, a SYN of the server.
fn out_of_turn(direction: u8, answered: bool, flags: u8) -> bool {
    let is_syn = flags & (flag::SYN | flag::ACK) == flag::SYN;
    match (direction, answered) {
        (0, false) => !is_syn && flags & flag::RST == 0,
        (1, false) => flags & flag::FIN != 0,
        (1, true) => is_syn,
        _ => false,
    }
}

/// Whether a packet without a flow opens one.
fn opens(tuple: Tuple, tcp_flags: Option<u8>) -> bool {
    let [kind, _] = tuple.destination.to_be_bytes();
    match tuple.protocol {
        6 => tcp_flags.is_some_and(|flags| flags & !flag::URG == flag::SYN),
        1 => matches!(kind, 8 | 13 | 15 | 17),
        58 => matches!(kind, 128 | 139),
        _ => true,
    }
}
