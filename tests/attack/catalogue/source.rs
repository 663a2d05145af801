//! Who a frame claims to come from, and whom it is for.

use netns_policy::packet::build::flag;
use netns_policy::packet::{Ends, Packet};

use super::Expected::{Heard, Nowhere, Wire};
use super::{Catalogue, Ip};

pub(super) fn add(c: &mut Catalogue, ip: Ip) {
    declared(c, ip);
    undeclared(c, ip);
    spoofed(c, ip);
    out(c, ip);
}

fn declared(c: &mut Catalogue, ip: Ip) {
    let (ab, cb, af) = (c.ends(ip, "a", "b"), c.ends(ip, "c", "b"), c.ends(ip, "a", "f"));
    let packet = c.tcp(ab, 80, flag::SYN);
    c.add(Heard, ("a", "b"), "a -> b tcp/80 SYN, declared", packet);
    let packet = c.udp(ab, 53);
    c.add(Heard, ("a", "b"), "a -> b udp/53, declared", packet);
    let packet = c.tcp(cb, 81, flag::SYN);
    c.add(Heard, ("c", "b"), "c -> b tcp/81 SYN, declared", packet);
    let packet = c.udp(af, 53);
    c.add(Heard, ("a", "f"), "a -> f udp/53, declared", packet);
    let hb = c.ends(ip, "host", "b");
    let packet = c.tcp(hb, 80, flag::SYN);
    c.add(Heard, ("host", "b"), "host -> b tcp/80 SYN, declared", packet);
    let public = c.ends(ip, "d", public(ip));
    let packet = c.udp(public, 53);
    c.add(Wire, ("d", "uplink"), "d -> public udp/53, declared", packet);
    // The MAC addresses decide nothing; a stack drops what is not for its own.
    let packet = c.tcp(ab, 80, flag::SYN);
    c.add(Wire, ("a", "b"), "a -> b tcp/80 SYN, declared, to another MAC", with_macs(&packet, 7, 9));
}

pub(super) fn public(ip: Ip) -> &'static str {
    if ip == Ip::V4 { "203.0.113.10" } else { "2001:db8:ffff::10" }
}

/// A pair without that port, or no pair at all.
fn undeclared(c: &mut Catalogue, ip: Ip) {
    let pairs: [(&str, &str, u16); 12] = [
        ("a", "b", 81),
        ("a", "b", 443),
        ("c", "b", 80),
        ("e", "b", 80),
        ("e", "a", 80),
        ("b", "a", 80),
        ("f", "a", 53),
        ("a", "c", 80),
        ("d", "b", 80),
        ("e", "host", 80),
        ("b", "host", 80),
        ("a", "uplink", 80),
    ];
    for (from, to, port) in pairs {
        let ends = c.ends(ip, from, to);
        let packet = c.tcp(ends, port, flag::SYN);
        c.add(Nowhere, (from, to), &format!("{from} -> {to} tcp/{port} SYN, undeclared"), packet);
        let packet = c.udp(ends, port);
        c.add(Nowhere, (from, to), &format!("{from} -> {to} udp/{port}, undeclared"), packet);
    }
    let (ab, db) = (c.ends(ip, "a", "b"), c.ends(ip, "d", "b"));
    let packet = c.udp(ab, 80);
    c.add(Nowhere, ("a", "b"), "a -> b udp/80, which is open as tcp", packet);
    let packet = c.tcp(ab, 53, flag::SYN);
    c.add(Nowhere, ("a", "b"), "a -> b tcp/53, which is open as udp", packet);
    let packet = c.tcp(db, 53, flag::SYN);
    c.add(Nowhere, ("d", "b"), "d, who may go out, -> b tcp/53", packet);
}

/// A service and those it may speak to, as somebody else.
fn spoofed(c: &mut Catalogue, ip: Ip) {
    let foreign: &[&str] = match ip {
        Ip::V4 => {
            &["203.0.113.10", "127.0.0.1", "0.0.0.0", "169.254.1.1", "255.255.255.255", "224.0.0.1", "10.231.1.77"]
        }
        Ip::V6 => &["2001:db8:ffff::10", "::1", "::", "fe80::1", "ff02::1", "::ffff:10.231.0.1", "fd00::1"],
    };
    let known = ["a", "b", "c", "d", "host", "uplink", "leg of the host"];
    for source in known.iter().chain(foreign) {
        for (from, to) in [("e", "b"), ("c", "b"), ("a", "b"), ("d", "b")] {
            if from != *source {
                tell_as(c, ip, (from, source, to));
            }
        }
    }
    // A server's answers, by somebody else.
    for source in ["b", "f"] {
        let ends = c.ends(ip, source, "a");
        let dport = c.port();
        c.add(
            Nowhere,
            ("e", "a"),
            &format!("e as {source} -> a, SYN+ACK from tcp/80"),
            Packet::tcp(ends, 80, dport, 0x12),
        );
        let packet = c.udp_from(ends, 53, 9999);
        c.add(Nowhere, ("e", "a"), &format!("e as {source} -> a, from udp/53"), packet);
    }
    let ends = c.ends(ip, "f", "a");
    let packet = c.udp_from(ends, 53, 9999);
    c.add(Nowhere, ("b", "a"), "b, a server of a, as f, another, -> a from udp/53", packet);
    let ends = c.ends(ip, "b", "host");
    let dport = c.port();
    c.add(Nowhere, ("e", "host"), "e as b -> host, SYN+ACK from tcp/80", Packet::tcp(ends, 80, dport, 0x12));
}

fn tell_as(c: &mut Catalogue, ip: Ip, (from, source, to): (&'static str, &str, &'static str)) {
    let ends = c.ends(ip, source, to);
    for (port, what) in [(80, "tcp/80"), (81, "tcp/81")] {
        let packet = c.tcp(ends, port, flag::SYN);
        c.add(Nowhere, (from, to), &format!("{from} as {source} -> {to} {what} SYN"), packet);
    }
    let packet = c.udp(ends, 53);
    c.add(Nowhere, (from, to), &format!("{from} as {source} -> {to} udp/53"), packet);
    let packet = c.udp(ends, 53);
    let name = format!("{from} as {source} -> {to} udp/53, with another MAC too");
    c.add(Nowhere, (from, to), &name, with_macs(&packet, 1, 9));
}

/// Ways out of those who have none, and what is no way out for those who have one.
fn out(c: &mut Catalogue, ip: Ip) {
    let private: &[&str] = match ip {
        Ip::V4 => {
            &["169.254.169.254", "10.99.0.1", "192.168.1.5", "100.64.0.1", "127.0.0.1", "168.63.129.16", "10.231.1.77"]
        }
        Ip::V6 => &["fe80::1", "::1", "fd00::1", "64:ff9b::a00:1", "2002:a00:1::1", "::ffff:127.0.0.1"],
    };
    let legs = ["leg of the host", "leg of the uplink", "uplink", "host"];
    for from in ["a", "d"] {
        for there in private.iter().chain(&legs) {
            let ends = c.ends(ip, from, there);
            let packet = c.tcp(ends, 80, flag::SYN);
            c.add(Nowhere, (from, "uplink"), &format!("{from} -> {there} tcp/80 SYN"), packet);
            let packet = c.udp(ends, 53);
            c.add(Nowhere, (from, "uplink"), &format!("{from} -> {there} udp/53"), packet);
        }
    }
    for from in ["a", "b", "e"] {
        let ends = c.ends(ip, from, public(ip));
        let packet = c.udp(ends, 53);
        c.add(Nowhere, (from, "uplink"), &format!("{from} -> public udp/53 without outbound"), packet);
        let as_d = c.ends(ip, "d", public(ip));
        let packet = c.udp(as_d, 53);
        c.add(Nowhere, (from, "uplink"), &format!("{from} as d, who may, -> public udp/53"), packet);
    }
    let spoofed = Ends::new(c.address(ip, "a"), c.address(ip, public(ip))).expect("of one family");
    let packet = c.udp(spoofed, 53);
    c.add(Nowhere, ("d", "uplink"), "d as a -> public udp/53", packet);
    let packet = c.udp(c.ends(ip, public(ip), "d"), 53);
    c.add(Nowhere, ("e", "d"), "e as the internet -> d udp/53", packet);
}

/// The same frame to and from MAC addresses that end so.
pub(super) fn with_macs(packet: &Packet, to: u8, from: u8) -> Packet {
    let mut frame = packet.frame().to_vec();
    frame[5] = to;
    frame[11] = from;
    Packet::from_frame(frame)
}
