//! ICMP: echoes, errors about flows of others, redirects, and the rest.

use netns_policy::packet::build::Icmp;
use netns_policy::packet::build::flag::SYN;
use netns_policy::packet::{Ends, Extension, Packet};

use super::Expected::{Heard, Nowhere, Silence};
use super::{Catalogue, Ip};

pub(super) fn add(c: &mut Catalogue, ip: Ip) {
    echoes(c, ip);
    errors_by_strangers(c, ip);
    errors_by_peers(c, ip);
    others(c, ip);
}

fn echoes(c: &mut Catalogue, ip: Ip) {
    for (from, to) in [("a", "b"), ("c", "b"), ("host", "b")] {
        let (ends, id) = (c.ends(ip, from, to), c.port());
        c.add(Heard, (from, to), &format!("{from} -> {to} echo request, declared"), Packet::echo_request(ends, id));
    }
    for (from, to) in
        [("e", "b"), ("b", "a"), ("a", "c"), ("b", "host"), ("e", "host"), ("a", "uplink"), ("d", "uplink")]
    {
        let (ends, id) = (c.ends(ip, from, to), c.port());
        c.add(Nowhere, (from, to), &format!("{from} -> {to} echo request, undeclared"), Packet::echo_request(ends, id));
    }
    let (ba, ea, ab) = (c.ends(ip, "b", "a"), c.ends(ip, "e", "a"), c.ends(ip, "a", "b"));
    let id = c.port();
    c.add(Silence, ("b", "a"), "b -> a echo reply, unasked", Packet::echo_reply(ba, id));
    let id = c.port();
    c.add(Nowhere, ("e", "a"), "e -> a echo reply, unasked", Packet::echo_reply(ea, id));
    let id = c.port();
    c.add(Nowhere, ("e", "a"), "e as b -> a echo reply, unasked", Packet::echo_reply(ba, id));
    let id = c.port();
    c.add(Nowhere, ("a", "b"), "a -> b echo reply, against the direction", Packet::echo_reply(ab, id));
}

/// Port unreachable, too big, time exceeded; in IPv6 by other numbers.
fn errors(ip: Ip) -> [(&'static str, Icmp); 4] {
    let icmp = |kind, code, rest| Icmp { kind, code, rest };
    match ip {
        Ip::V4 => [
            ("port unreachable", icmp(3, 3, 0)),
            ("prohibited", icmp(3, 13, 0)),
            ("fragmentation needed", icmp(3, 4, 600)),
            ("time exceeded", icmp(11, 0, 0)),
        ],
        Ip::V6 => [
            ("port unreachable", icmp(1, 4, 0)),
            ("prohibited", icmp(1, 1, 0)),
            ("packet too big", icmp(2, 0, 1280)),
            ("time exceeded", icmp(3, 0, 0)),
        ],
    }
}

/// Nobody speaks about a flow that is not its own.
fn errors_by_strangers(c: &mut Catalogue, ip: Ip) {
    for (name, icmp) in errors(ip) {
        // Who sends, as whom, to whom; and whose flow it is about.
        let stories: [(&'static str, &str, &'static str, &str, &str); 10] = [
            ("e", "e", "a", "a", "b"),
            ("e", "b", "a", "a", "b"),
            ("c", "c", "a", "a", "b"),
            ("c", "b", "a", "a", "b"),
            ("f", "f", "a", "a", "b"),
            ("b", "b", "a", "a", "f"),
            ("b", "f", "a", "a", "f"),
            ("b", "b", "a", "a", "e"),
            ("e", "e", "b", "b", "a"),
            ("b", "b", "d", "d", "b"),
        ];
        for (from, source, to, client, server) in stories {
            let (outer, inner) = (c.ends(ip, source, to), c.ends(ip, client, server));
            let about = c.udp(inner, 53);
            let name = format!("{name} by {from} as {source} to {to} about {client} -> {server} udp/53");
            c.add(Nowhere, (from, to), &name, Packet::icmp_error(outer, icmp, &about));
        }
        let outer = c.ends(ip, "b", "a");
        let about = c.tcp(c.arena.ends(ip, "a", "b"), 443, SYN);
        let name = format!("{name} by b to a about a -> b tcp/443, which is no edge");
        c.add(Nowhere, ("b", "a"), &name, Packet::icmp_error(outer, icmp, &about));
    }
}

/// About an edge of its own a peer may speak; without a flow nobody listens.
fn errors_by_peers(c: &mut Catalogue, ip: Ip) {
    let (ab, ba) = (c.ends(ip, "a", "b"), c.ends(ip, "b", "a"));
    for (name, icmp) in errors(ip) {
        let about = c.tcp(ab, 80, SYN);
        let packet = Packet::icmp_error(ba, icmp, &about);
        c.add(Silence, ("b", "a"), &format!("{name} by b to a about a -> b tcp/80, declared, no such flow"), packet);
        let port = c.port();
        let packet = Packet::icmp_error(ab, icmp, &Packet::tcp(ba, 80, port, 0x12));
        c.add(Silence, ("a", "b"), &format!("{name} by a to b about b's answer, declared, no such flow"), packet);
        // Two clients of one port: told about the other's flow, a lock hears nothing.
        let about = c.tcp(ab, 80, SYN);
        let packet = Packet::icmp_error(c.arena.ends(ip, "b", "host"), icmp, &about);
        c.add(Silence, ("b", "host"), &format!("{name} by b to host about a -> b tcp/80"), packet);
        let about = c.tcp(ab, 80, SYN);
        let packet = Packet::icmp_error(c.arena.ends(ip, "b", "c"), icmp, &about);
        c.add(Nowhere, ("b", "c"), &format!("{name} by b to c about a -> b tcp/80"), packet);
        // About its own flow, but as somebody else; and about a flow that cannot be, as nobody has that edge.
        for source in ["f", "e", super::source::public(ip)] {
            let about = c.tcp(ab, 80, SYN);
            let packet = Packet::icmp_error(c.arena.ends(ip, source, "a"), icmp, &about);
            c.add(Nowhere, ("b", "a"), &format!("{name} by b as {source} to a about a -> b tcp/80"), packet);
        }
        let about = c.tcp(c.arena.ends(ip, "e", "b"), 80, SYN);
        c.add(
            Nowhere,
            ("b", "a"),
            &format!("{name} by b to a about e -> b tcp/80"),
            Packet::icmp_error(ba, icmp, &about),
        );
        odd_inner(c, ip, (name, icmp));
    }
}

/// What is embedded is read at fixed places, so it has to have its parts there.
fn odd_inner(c: &mut Catalogue, ip: Ip, (name, icmp): (&str, Icmp)) {
    let (ab, ba): (Ends, Ends) = (c.ends(ip, "a", "b"), c.ends(ip, "b", "a"));
    let about = c.udp(ab, 443);
    let odd = match ip {
        // These stand where the ports are otherwise.
        Ip::V4 => about.with_options(&[0, 53, 0, 53]),
        Ip::V6 => about.with_extension(Extension::Destination),
    };
    let packet = Packet::icmp_error(ba, icmp, &odd.expect("it has neither"));
    c.add(Nowhere, ("b", "a"), &format!("{name} by b to a about a datagram with options"), packet);
}

fn others(c: &mut Catalogue, ip: Ip) {
    // Redirects, source quench, parameter problem, router and mask requests, timestamps; the last is not assigned.
    let kinds: &[u8] =
        if ip == Ip::V4 { &[4, 5, 9, 10, 12, 13, 15, 17, 30, 40, 253] } else { &[4, 127, 130, 131, 139, 141, 200] };
    for kind in kinds {
        for (from, source, to) in [("b", "b", "a"), ("e", "e", "a"), ("e", "b", "a"), ("a", "a", "b")] {
            let (outer, inner) = (c.ends(ip, source, to), c.ends(ip, to, source));
            let about = c.tcp(inner, 80, SYN);
            let icmp = Icmp { kind: *kind, code: 1, rest: 0x0a63_0001 };
            let name = format!("ICMP type {kind} by {from} as {source} to {to}");
            c.add(Nowhere, (from, to), &name, Packet::icmp_error(outer, icmp, &about));
        }
    }
}
