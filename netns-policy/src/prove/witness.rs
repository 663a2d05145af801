//! One packet of a class, and the class of one packet.

use super::class::{Class, Ct, Ip, VARS, Var};
use crate::packet::Packet;
#[cfg(test)]
use crate::packet::{IPV4, IPV6, View};

/// One number for every [`Var`].
pub(super) type Point = [u128; VARS];

/// Where in an ICMP error the embedded header's fields are, counted from the transport header: source, destination,
/// protocol, and the ports behind it; with the bytes of an address.
const fn embedded(ip: Ip) -> [(Var, usize, usize); 5] {
    match ip {
        Ip::V4 => [
            (Var::EmbProto, 17, 1),
            (Var::EmbSaddr, 20, 4),
            (Var::EmbDaddr, 24, 4),
            (Var::EmbSport, 28, 2),
            (Var::EmbDport, 30, 2),
        ],
        _ => [
            (Var::EmbProto, 14, 1),
            (Var::EmbSaddr, 16, 16),
            (Var::EmbDaddr, 32, 16),
            (Var::EmbSport, 48, 2),
            (Var::EmbDport, 50, 2),
        ],
    }
}

const TRANSPORT: [(Var, usize, usize); 4] =
    [(Var::Sport, 0, 2), (Var::Dport, 2, 2), (Var::Flags, 13, 1), (Var::EmbVersion, 8, 1)];

/// What a rule can ask of this packet, to hold classes against packets; of its connection and of limits as `beside` has it.
#[cfg(test)]
pub(super) fn point_of(view: &View<'_>, beside: &Point) -> (Ip, Point) {
    let ip = match view.protocol {
        IPV4 => Ip::V4,
        IPV6 => Ip::V6,
        _ => Ip::Neither,
    };
    let mut point = [0; VARS];
    let mut set = |var: Var, number: u128| point[var as usize] = number;
    for var in [Var::Ct, Var::Exhausted, Var::Crowded] {
        set(var, beside[var as usize]);
    }
    set(Var::Link, view.link(12, 2).map_or(0, number));
    set(Var::Ether, view.protocol.into());
    set(Var::NetLen, clamped(view.network.len()));
    if ip == Ip::Neither {
        return (ip, point);
    }
    let (from, to, len) = if ip == Ip::V4 { (12, 16, 4) } else { (8, 24, 16) };
    set(Var::Saddr, view.network(from, len).map_or(0, number));
    set(Var::Daddr, view.network(to, len).map_or(0, number));
    match ip {
        Ip::V4 => set(Var::Frag, view.network(6, 2).map_or(0, number)),
        _ => {
            set(Var::FragHeader, view.has_fragment_header().unwrap_or_default().into());
            set(Var::RtHeader, view.has_routing_header().unwrap_or_default().into());
            set(Var::Frag, view.fragment_field().unwrap_or_default().into());
        }
    }
    let Some(transport) = view.transport else { return (ip, point) };
    set(Var::Sense, 1);
    set(Var::Proto, transport.protocol.into());
    let bytes = view.network.get(transport.offset..).unwrap_or_default();
    set(Var::Len, clamped(bytes.len()));
    for (var, offset, len) in TRANSPORT.into_iter().chain(embedded(ip)) {
        // The first byte of two may be there alone, and can be asked alone.
        let there = bytes.iter().skip(offset).chain([&0; 16]).take(len);
        set(var, there.fold(0, |number, byte| number << 8 | u128::from(*byte)));
    }
    (ip, point)
}

#[cfg(test)]
fn number(bytes: &[u8]) -> u128 {
    super::index::number(bytes)
}

#[cfg(test)]
fn clamped(len: usize) -> u128 {
    len.min(usize::from(u16::MAX)) as u128
}

/// One point of a class: what is usual, where it is in it.
pub(super) fn some_point(class: &Class) -> Point {
    let mut point = [0; VARS];
    for var in Var::ALL {
        let numbers = class.of(var);
        let usual: &[u128] = match var {
            Var::Ct => &[Ct::New as u128],
            Var::Dport => &[443],
            Var::Ether => &[0x0806],
            Var::EmbVersion => &[0x45, 0x60],
            Var::Flags => &[0x02, 0x12],
            Var::Len => &[72, 20, 8],
            Var::Proto | Var::EmbProto => &[6, 17],
            Var::Saddr => &[0x0909_0909],
            Var::Sense => &[1],
            Var::Sport => &[40_000, 0x0300, 0x0100],
            _ => &[],
        };
        let usual = usual.iter().copied().find(|number| numbers.holds(*number));
        point[var as usize] = usual.or(numbers.least()).unwrap_or_default();
    }
    let ether = point[Var::Ether as usize];
    if class.of(Var::Link).holds(ether) {
        point[Var::Link as usize] = ether;
    }
    // As long as its transport makes it, where it has one.
    let header = if class.ip() == Ip::Neither { 46 } else { class.ip().header() };
    let natural = header + point[Var::Len as usize];
    if class.of(Var::NetLen).holds(natural) {
        point[Var::NetLen as usize] = natural;
    }
    point
}

/// A frame with these numbers, as far as there can be one.
pub(super) fn packet(ip: Ip, point: &Point) -> Packet {
    let at = |var: Var| point[var as usize];
    let [ether, link] = [Var::Ether, Var::Link].map(|var| (at(var) as u16).to_be_bytes());
    let mut frame = [&crate::packet::build::MAC[..], &crate::packet::build::MAC, &link].concat();
    if ether != link {
        frame.extend([&[0, 0][..], &ether].concat());
    }
    let mut network = match ip {
        Ip::V4 => ipv4(point),
        Ip::V6 => ipv6(point),
        Ip::Neither => vec![0; at(Var::NetLen) as usize],
    };
    // Without sense it need not be as long as it says.
    if at(Var::Sense) == 0 {
        network.resize(at(Var::NetLen) as usize, 0);
    }
    frame.extend(network);
    Packet::from_frame(frame)
}

fn transport(ip: Ip, point: &Point) -> Vec<u8> {
    let at = |var: Var| point[var as usize];
    let mut bytes = vec![0; at(Var::Len) as usize];
    if at(Var::Proto) == 6 && bytes.len() > 12 {
        bytes[12] = 5 << 4;
    }
    for (var, offset, len) in TRANSPORT.into_iter().chain(embedded(ip)) {
        let is_embedded = !matches!(var, Var::Sport | Var::Dport | Var::Flags);
        if let Some(place) = bytes.get_mut(offset..offset + len)
            && (!is_embedded || at(Var::Proto) == ip.icmp())
        {
            place.copy_from_slice(&at(var).to_be_bytes()[16 - len..]);
        }
    }
    bytes
}

fn ipv4(point: &Point) -> Vec<u8> {
    let at = |var: Var| point[var as usize];
    let body = transport(Ip::V4, point);
    let total = if at(Var::Sense) == 1 { 20 + body.len() } else { usize::from(u16::MAX) };
    let mut header = vec![0x45, 0];
    header.extend((total as u16).to_be_bytes());
    header.extend([0, 1]);
    header.extend((at(Var::Frag) as u16).to_be_bytes());
    header.extend([64, at(Var::Proto) as u8, 0, 0]);
    header.extend((at(Var::Saddr) as u32).to_be_bytes());
    header.extend((at(Var::Daddr) as u32).to_be_bytes());
    let sum = crate::packet::build::checksum(&[&header]).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header.extend(body);
    header
}

fn ipv6(point: &Point) -> Vec<u8> {
    let at = |var: Var| point[var as usize];
    let mut next = at(Var::Proto) as u8;
    let mut extensions = Vec::new();
    if at(Var::FragHeader) == 1 {
        let field = (at(Var::Frag) as u16).to_be_bytes();
        extensions = vec![next, 0, field[0], field[1], 0, 0, 0, 1];
        next = 44;
    }
    if at(Var::RtHeader) == 1 {
        extensions = [&[next, 0, 0, 0, 0, 0, 0, 0][..], &extensions].concat();
        next = 43;
    }
    let body = transport(Ip::V6, point);
    let payload = if at(Var::Sense) == 1 { extensions.len() + body.len() } else { usize::from(u16::MAX) };
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((payload as u16).to_be_bytes());
    header.extend([next, 64]);
    header.extend(at(Var::Saddr).to_be_bytes());
    header.extend(at(Var::Daddr).to_be_bytes());
    header.extend(extensions);
    header.extend(body);
    header
}
