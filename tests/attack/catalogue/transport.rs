//! Segments that are no opening, fragments, options, extension headers and odd protocols.

use netns_policy::packet::build::flag::{ACK, FIN, PSH, RST, SYN, URG};
use netns_policy::packet::{Ends, Extension, Packet};

use super::Expected::{self, Heard, Nowhere, Silence, Wire};
use super::{Catalogue, Ip};

const FLAGS: [(&str, u8); 11] = [
    ("ACK", ACK),
    ("FIN", FIN),
    ("no flag", 0),
    ("FIN+PSH+URG", FIN | PSH | URG),
    ("SYN+FIN", SYN | FIN),
    ("SYN+RST", SYN | RST),
    ("SYN+ACK", SYN | ACK),
    ("RST", RST),
    ("RST+ACK", RST | ACK),
    ("PSH+ACK", PSH | ACK),
    ("SYN with ECE and CWR", SYN | 0xc0),
];

pub(super) fn add(c: &mut Catalogue, ip: Ip) {
    from_a_stranger(c, ip);
    from_a_server(c, ip);
    fragments(c, ip);
    match ip {
        Ip::V4 => options(c),
        Ip::V6 => extensions(c),
    }
    protocols(c, ip);
}

fn from_a_stranger(c: &mut Catalogue, ip: Ip) {
    let (eb, ab) = (c.ends(ip, "e", "b"), c.ends(ip, "a", "b"));
    for (name, flags) in FLAGS {
        let packet = c.tcp(eb, 80, flags);
        c.add(Nowhere, ("e", "b"), &format!("e -> b tcp/80 {name}"), packet);
        let packet = c.tcp(ab, 443, flags);
        c.add(Nowhere, ("a", "b"), &format!("a -> b tcp/443 {name}"), packet);
        // From a declared client it passes the panel, which knows no state; the lock takes it for no connection.
        if flags & 0xc0 == 0 {
            let packet = c.tcp(ab, 80, flags);
            c.add(Silence, ("a", "b"), &format!("a -> b tcp/80 {name}, declared, of no connection"), packet);
        }
    }
}

/// The mirror by which answers come back is no way to open anything.
fn from_a_server(c: &mut Catalogue, ip: Ip) {
    for to in ["a", "host"] {
        let ends = c.ends(ip, "b", to);
        for (name, flags) in FLAGS {
            let port = c.port();
            // A SYN without ACK, whatever else is set.
            let expected = if flags & (SYN | ACK) == SYN { Nowhere } else { Silence };
            let name = format!("b -> {to} {name} from tcp/80");
            c.add(expected, ("b", to), &name, Packet::tcp(ends, 80, port, flags));
        }
        let port = c.port();
        c.add(Nowhere, ("b", to), &format!("b -> {to} SYN from tcp/80"), Packet::tcp(ends, 80, port, SYN));
        let port = c.port();
        c.add(Nowhere, ("b", to), &format!("b -> {to} SYN+ACK from tcp/81"), Packet::tcp(ends, 81, port, SYN | ACK));
    }
    let ends = c.ends(ip, "b", "a");
    for dport in [53, 80, 9999] {
        let packet = c.udp_from(ends, 53, dport);
        c.add(Silence, ("b", "a"), &format!("b -> a from udp/53 to udp/{dport}, unasked"), packet);
    }
    let packet = c.udp_from(ends, 80, 9999);
    c.add(Nowhere, ("b", "a"), "b -> a from udp/80", packet);
}

/// A text that is told by its end, so that it is in the later of two parts.
fn marked(port: u16) -> Vec<u8> {
    [&[0; 52][..], format!("attack {port}").as_bytes()].concat()
}

fn fragments(c: &mut Catalogue, ip: Ip) {
    let (ab, eb) = (c.ends(ip, "a", "b"), c.ends(ip, "e", "b"));
    for (from, ends, why) in [("a", ab, "declared"), ("e", eb, "undeclared")] {
        for at in [8, 16, 40] {
            let port = c.port();
            let whole = Packet::udp(ends, port, 53, &marked(port));
            let (first, later) = whole.fragments(at).expect("it is long enough");
            c.add(Nowhere, (from, "b"), &format!("first {at} bytes of {from} -> b udp/53, {why}"), first);
            c.add(Nowhere, (from, "b"), &format!("the rest from {at} of {from} -> b udp/53, {why}"), later);
        }
        overlapping(c, (from, ends));
    }
    disguised(c, (ip, ab), "b");
    // The way out asks for no port, so parts pass there; and there alone.
    let out = c.ends(ip, "d", super::source::public(ip));
    let port = c.port();
    let (first, later) = Packet::udp(out, port, 53, &marked(port)).fragments(16).expect("it is long enough");
    c.add(Wire, ("d", "uplink"), "first 16 bytes of d -> public udp/53, declared", first);
    c.add(Wire, ("d", "uplink"), "the rest from 16 of d -> public udp/53, declared", later);
    let inside = c.ends(ip, "d", "b");
    disguised_from(c, (ip, inside), ("d", "b"));
}

/// A second part that writes another port over the first one's.
fn overlapping(c: &mut Catalogue, (from, ends): (&'static str, Ends)) {
    let (port, other) = (c.port(), c.port());
    let (first, _) = Packet::udp(ends, port, 53, &marked(port)).fragments(24).expect("it is long enough");
    let (_, later) = Packet::udp(ends, other, 443, &marked(other)).fragments(8).expect("it is long enough");
    c.add(Nowhere, (from, "b"), &format!("{from} -> b udp/53, first part"), first);
    c.add(Nowhere, (from, "b"), &format!("{from} -> b udp/53, a part that overlaps it"), later);
}

/// A later part whose data, or whose flow label, looks like a port that is open.
fn disguised(c: &mut Catalogue, (ip, ends): (Ip, Ends), to: &'static str) {
    disguised_from(c, (ip, ends), ("a", to));
}

fn disguised_from(c: &mut Catalogue, (ip, ends): (Ip, Ends), (from, to): (&'static str, &'static str)) {
    for (protocol, port) in [(6, 80u16), (17, 53)] {
        let sport = c.port();
        let data = [&sport.to_be_bytes()[..], &port.to_be_bytes(), &[0; 24]].concat();
        let body = [&[sport as u8; 8][..], &data].concat();
        let (_, later) = Packet::ip(ends, protocol, body).fragments(8).expect("it is long enough");
        let name = format!("{from} -> {to}, a later part of protocol {protocol} with data like port {port}");
        c.add(Nowhere, (from, to), &name, later.clone());
        if ip == Ip::V6 {
            let name = format!("{from} -> {to}, a later part of protocol {protocol} with flow label {port}");
            let labelled = later.with_flow_label(port).expect("it is IPv6");
            c.add(Nowhere, (from, to), &name, labelled);
        }
    }
}

fn options(c: &mut Catalogue) {
    let e = match c.address(Ip::V4, "e") {
        std::net::IpAddr::V4(e) => e.octets(),
        std::net::IpAddr::V6(_) => unreachable!("asked for IPv4"),
    };
    let route = [&[131, 7, 4][..], &e].concat();
    let record = [7, 7, 4, 0, 0, 0, 0];
    let ports = [1, 1, 0, 80, 0, 80, 0, 80];
    let (ab, eb) = (c.ends(Ip::V4, "a", "b"), c.ends(Ip::V4, "e", "b"));
    for (name, options) in [("source route to e", &route[..]), ("record route", &record), ("bytes like ports", &ports)]
    {
        let add = |c: &mut Catalogue, expected, from, packet: Packet, what: &str| {
            let packet = packet.with_options(options).expect("it has none yet");
            c.add(expected, (from, "b"), &format!("{what} with options: {name}"), packet);
        };
        // A source route is for routers; there is none. To its addressee the datagram is like any other.
        let packet = c.tcp(ab, 80, SYN);
        add(c, Wire, "a", packet, "a -> b tcp/80, declared,");
        let packet = c.tcp(ab, 443, SYN);
        add(c, Nowhere, "a", packet, "a -> b tcp/443");
        let packet = c.tcp(eb, 80, SYN);
        add(c, Nowhere, "e", packet, "e -> b tcp/80");
    }
}

fn extensions(c: &mut Catalogue) {
    let (ab, eb) = (c.ends(Ip::V6, "a", "b"), c.ends(Ip::V6, "e", "b"));
    let all: [(Extension, Expected); 5] = [
        (Extension::HopByHop, Heard),
        (Extension::Destination, Heard),
        (Extension::Routing, Nowhere),
        (Extension::AtomicFragment, Nowhere),
        (Extension::Authentication, Nowhere),
    ];
    for (extension, declared) in all {
        let with = |packet: Packet| packet.with_extension(extension).expect("it is IPv6");
        let packet = c.udp(ab, 53);
        c.add(declared, ("a", "b"), &format!("a -> b udp/53, declared, behind {extension:?}"), with(packet));
        let packet = c.tcp(ab, 443, SYN);
        c.add(Nowhere, ("a", "b"), &format!("a -> b tcp/443 behind {extension:?}"), with(packet));
        let packet = c.udp(eb, 53);
        c.add(Nowhere, ("e", "b"), &format!("e -> b udp/53 behind {extension:?}"), with(packet));
    }
    for count in [2, 30] {
        let stack = |mut packet: Packet| {
            for _ in 0..count {
                packet = packet.with_extension(Extension::Destination).expect("it is IPv6");
            }
            packet
        };
        let packet = c.tcp(ab, 443, SYN);
        c.add(Nowhere, ("a", "b"), &format!("a -> b tcp/443 behind {count} destination options"), stack(packet));
        let hidden = c.udp(ab, 53).with_extension(Extension::Routing).expect("it is IPv6");
        let name = format!("a -> b udp/53, declared, behind {count} destination options and a routing header");
        c.add(Nowhere, ("a", "b"), &name, stack(hidden));
    }
}

fn protocols(c: &mut Catalogue, ip: Ip) {
    let names = [
        ("IGMP", 2),
        ("IPIP", 4),
        ("DCCP", 33),
        ("6in4", 41),
        ("RSVP", 46),
        ("GRE", 47),
        ("ESP", 50),
        ("SCTP", 132),
        ("UDP-Lite", 136),
        ("protocol 253", 253),
        ("protocol 255", 255),
    ];
    for (from, to, port) in [("a", "b", 80), ("e", "b", 80), ("b", "a", 9999)] {
        let ends = c.ends(ip, from, to);
        for (name, protocol) in names {
            let packet = c.other(ends, protocol, port);
            c.add(Nowhere, (from, to), &format!("{from} -> {to} {name} with bytes like port {port}"), packet);
        }
        // A declared datagram within a declared pair's tunnel.
        let (within, number) = (c.udp(c.arena.ends(ip, "a", "b"), 53), if ip == Ip::V4 { 4 } else { 41 });
        let view = within.at_ingress().expect("it is well formed");
        let packet = Packet::ip(ends, number, view.network);
        c.add(Nowhere, (from, to), &format!("{from} -> {to}, a -> b udp/53 in a tunnel"), packet);
    }
}
