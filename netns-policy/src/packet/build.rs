//! Well-formed packets, with right lengths and checksums.
//!
//! A datagram of more than 65,535 bytes cannot be said in IP: its length field is 65,535 then, and it is malformed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ARP, IPV4, IPV6, Packet};

/// The MAC address of both ends of every wire.
pub const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// Bits of the TCP header (RFC 9293).
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Breaks one.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// The acknowledgment field counts.
    pub const ACK: u8 = 16;
    /// The urgent pointer counts.
    pub const URG: u8 = 32;
}

/// Source and destination of a datagram: of one family.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Ends {
    /// IPv4.
    V4 {
        /// Source.
        from: Ipv4Addr,
        /// Destination.
        to: Ipv4Addr,
    },
    /// IPv6.
    V6 {
        /// Source.
        from: Ipv6Addr,
        /// Destination.
        to: Ipv6Addr,
    },
}

impl Ends {
    /// The two ends; `None` when they are of different families.
    pub fn new(from: IpAddr, to: IpAddr) -> Option<Self> {
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Some(Self::V4 { from, to }),
            (IpAddr::V6(from), IpAddr::V6(to)) => Some(Self::V6 { from, to }),
            _ => None,
        }
    }

    /// The source.
    pub fn from(&self) -> IpAddr {
        match *self {
            Self::V4 { from, .. } => from.into(),
            Self::V6 { from, .. } => from.into(),
        }
    }

    /// The destination.
    pub fn to(&self) -> IpAddr {
        match *self {
            Self::V4 { to, .. } => to.into(),
            Self::V6 { to, .. } => to.into(),
        }
    }

    /// The way back.
    #[must_use]
    pub fn reversed(&self) -> Self {
        match *self {
            Self::V4 { from, to } => Self::V4 { from: to, to: from },
            Self::V6 { from, to } => Self::V6 { from: to, to: from },
        }
    }

    /// Number of ICMP in this family.
    pub fn icmp(&self) -> u8 {
        match self {
            Self::V4 { .. } => 1,
            Self::V6 { .. } => 58,
        }
    }

    /// The pseudo header of the transport checksum.
    fn pseudo_header(&self, protocol: u8, len: usize) -> Vec<u8> {
        let len = clamp16(len).to_be_bytes();
        match self {
            Self::V4 { from, to } => [&from.octets()[..], &to.octets(), &[0, protocol], &len].concat(),
            Self::V6 { from, to } => [&from.octets()[..], &to.octets(), &[0, 0], &len, &[0, 0, 0, protocol]].concat(),
        }
    }
}

/// Type and code of an ICMP message, and the four bytes after its checksum.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The rest of the header: identifier and sequence number, or MTU, or zero.
    pub rest: u32,
}

impl Packet {
    /// A TCP segment without data.
    pub fn tcp(ends: Ends, sport: u16, dport: u16, flags: u8) -> Self {
        let mut segment = ports(sport, dport);
        segment.extend([0, 0, 0, 1, 0, 0, 0, u8::from(flags & flag::ACK != 0), 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        Self::ip(ends, 6, sealed(ends, 6, segment, 16))
    }

    /// A UDP datagram.
    pub fn udp(ends: Ends, sport: u16, dport: u16, payload: &[u8]) -> Self {
        let mut datagram = ports(sport, dport);
        datagram.extend(clamp16(8 + payload.len()).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        Self::ip(ends, 17, sealed(ends, 17, datagram, 6))
    }

    /// An ICMP or ICMPv6 message, as the family of `ends` wants it.
    pub fn icmp(ends: Ends, icmp: Icmp, body: &[u8]) -> Self {
        let mut message = vec![icmp.kind, icmp.code, 0, 0];
        message.extend(icmp.rest.to_be_bytes());
        message.extend(body);
        Self::ip(ends, ends.icmp(), sealed(ends, ends.icmp(), message, 2))
    }

    /// An echo request ("ping").
    pub fn echo_request(ends: Ends, id: u16) -> Self {
        let kind = if ends.icmp() == 1 { 8 } else { 128 };
        Self::icmp(ends, Icmp { kind, code: 0, rest: u32::from(id) << 16 | 1 }, b"netns-policy")
    }

    /// The answer to it.
    pub fn echo_reply(ends: Ends, id: u16) -> Self {
        let kind = if ends.icmp() == 1 { 0 } else { 129 };
        Self::icmp(ends, Icmp { kind, code: 0, rest: u32::from(id) << 16 | 1 }, b"netns-policy")
    }

    /// An ICMP error about `original`, of which it holds as much as RFC 1812 and RFC 4443 allow.
    pub fn icmp_error(ends: Ends, icmp: Icmp, original: &Self) -> Self {
        let most = if ends.icmp() == 1 { 576 - 28 } else { 1280 - 48 };
        let datagram = original.at_ingress().map_or(&[][..], |view| view.network);
        Self::icmp(ends, icmp, &datagram[..datagram.len().min(most)])
    }

    /// A datagram of any protocol.
    pub fn ip(ends: Ends, protocol: u8, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        match ends {
            Ends::V4 { from, to } => Self::ethernet(IPV4, &[&ipv4_header(from, to, protocol, body.len())[..], body]),
            Ends::V6 { from, to } => Self::ethernet(IPV6, &[&ipv6_header(from, to, protocol, body.len())[..], body]),
        }
    }

    /// "Who has `target`? Tell `sender`."
    pub fn arp_request(sender: Ipv4Addr, target: Ipv4Addr) -> Self {
        let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
        Self::ethernet(ARP, &[&fixed, &MAC, &sender.octets(), &[0; 6], &target.octets()])
    }

    /// A frame of any EtherType, its payload in parts.
    pub fn ethernet(ethertype: u16, payload: &[&[u8]]) -> Self {
        let mut frame = [MAC, MAC].concat();
        frame.extend(ethertype.to_be_bytes());
        payload.iter().for_each(|part| frame.extend(*part));
        Self::from_frame(frame)
    }
}

pub(super) fn clamp16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn ports(sport: u16, dport: u16) -> Vec<u8> {
    [sport.to_be_bytes(), dport.to_be_bytes()].concat()
}

/// Writes the transport checksum, which is zero so far, at `at`.
pub(super) fn sealed(ends: Ends, protocol: u8, mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let pseudo = if protocol == 1 { Vec::new() } else { ends.pseudo_header(protocol, bytes.len()) };
    let sum = match checksum(&[&pseudo, &bytes]) {
        // RFC 768: zero would mean "no checksum".
        0 if protocol == 17 => 0xffff,
        sum => sum,
    };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn ipv4_header(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: usize) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(clamp16(20 + body).to_be_bytes());
    header.extend([0x12, 0x34, 0, 0, 64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    seal_ipv4(&mut header);
    header
}

/// Writes the checksum of an IPv4 header.
pub(super) fn seal_ipv4(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = checksum(&[header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn ipv6_header(from: Ipv6Addr, to: Ipv6Addr, next: u8, body: usize) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(clamp16(body).to_be_bytes());
    header.extend([next, 64]);
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

/// The Internet checksum (RFC 1071) of parts of which all but the last have an even length; 0 over bytes that hold
/// their own right checksum.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 = words.map(|word| u64::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
