//! Below IP: tags, neighbours, multicast, and what is no IP.

use netns_policy::packet::build::Icmp;
use netns_policy::packet::build::flag::SYN;
use netns_policy::packet::{Ends, Packet, VLAN, VLAN_SERVICE};

use super::Expected::Nowhere;
use super::{Catalogue, Ip};

pub(super) fn add(c: &mut Catalogue, ip: Ip) {
    tags(c, ip);
    groups(c, ip);
    match ip {
        Ip::V4 => {
            arp(c);
            no_ip(c);
        }
        Ip::V6 => neighbours(c),
    }
}

fn tags(c: &mut Catalogue, ip: Ip) {
    for (from, port, why) in [("a", 80, "declared"), ("a", 443, "undeclared"), ("e", 80, "undeclared")] {
        let ends = c.ends(ip, from, "b");
        let tcp = |c: &mut Catalogue| c.tcp(ends, port, SYN);
        let tagged = [
            ("tag 5", tcp(c).tagged(VLAN, 5)),
            ("priority tag", tcp(c).tagged(VLAN, 0xe000)),
            ("null tag", tcp(c).tagged(VLAN, 0)),
            ("service tag", tcp(c).tagged(VLAN_SERVICE, 5)),
            ("two tags", tcp(c).tagged(VLAN, 5).tagged(VLAN_SERVICE, 6)),
            ("two C-tags", tcp(c).tagged(VLAN, 5).tagged(VLAN, 6)),
        ];
        for (name, packet) in tagged {
            c.add(Nowhere, (from, "b"), &format!("{from} -> b tcp/{port}, {why}, behind {name}"), packet);
        }
    }
}

/// Multicast, broadcast and what is on a link only.
fn groups(c: &mut Catalogue, ip: Ip) {
    let groups: &[(&str, u16)] = match ip {
        Ip::V4 => &[
            ("224.0.0.1", 80),
            ("224.0.0.251", 5353),
            ("239.255.255.250", 1900),
            ("255.255.255.255", 67),
            ("255.255.255.255", 53),
            ("10.231.3.255", 53),
            ("10.231.0.0", 53),
            ("169.254.7.7", 53),
        ],
        Ip::V6 => &[("ff02::1", 80), ("ff02::fb", 5353), ("ff02::1:2", 547), ("ff05::2", 53), ("fe80::1", 53)],
    };
    for from in ["a", "b", "d", "e"] {
        for (group, port) in groups {
            let ends = c.ends(ip, from, group);
            let mut frame = c.udp(ends, *port).frame().to_vec();
            frame[..6].copy_from_slice(&[0xff; 6]);
            let near = if from == "b" { "a" } else { "b" };
            c.add(Nowhere, (from, near), &format!("{from} -> {group} udp/{port}"), Packet::from_frame(frame));
        }
    }
    let ends = c.ends(ip, "e", "b");
    let mut frame = c.udp(ends, 53).frame().to_vec();
    frame[..6].copy_from_slice(&[0xff; 6]);
    c.add(Nowhere, ("e", "b"), "e -> b udp/53 to every MAC", Packet::from_frame(frame));
}

fn arp(c: &mut Catalogue) {
    let v4 = |name| match c.address(Ip::V4, name) {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(_) => unreachable!("asked for IPv4"),
    };
    let (a, b, e) = (v4("a"), v4("b"), v4("e"));
    let request = |sender, target, from: u8| {
        let mut frame = Packet::arp_request(sender, target).frame().to_vec();
        frame[11] = from;
        frame
    };
    let reply = |mut frame: Vec<u8>| {
        frame[21] = 2;
        frame
    };
    let all = [
        ("e", "e asks who has b", request(e, b, 1)),
        ("a", "a asks who has b", request(a, b, 1)),
        ("e", "e says it has a, unasked", reply(request(a, b, 2))),
        ("e", "e says to all it is b", request(b, b, 3)),
        ("b", "b says to all it is a", reply(request(a, a, 4))),
    ];
    for (from, name, frame) in all {
        let near = if from == "b" { "a" } else { "b" };
        c.add(Nowhere, (from, near), &format!("ARP: {name}"), Packet::from_frame(frame));
    }
}

fn no_ip(c: &mut Catalogue) {
    let declared = c.tcp(c.arena.ends(Ip::V4, "a", "b"), 80, SYN);
    let six = c.tcp(c.arena.ends(Ip::V6, "a", "b"), 80, SYN);
    let v4 = declared.at_ingress().expect("it is well formed").network;
    let v6 = six.at_ingress().expect("it is well formed").network;
    let kinds: [(&str, u16, &[&[u8]]); 11] = [
        ("IPv4 called IPv6", 0x86dd, &[v4]),
        ("IPv6 called IPv4", 0x0800, &[v6]),
        ("MPLS", 0x8847, &[&[0, 1, 1, 64], v4]),
        ("PPPoE", 0x8864, &[&[0x11, 0, 0, 1, 0, 42, 0, 0x21], v4]),
        ("LLDP", 0x88cc, &[&[2, 7, 4, 2, 0, 0, 0, 0, 1, 0, 0]]),
        ("EAPOL", 0x888e, &[&[1, 1, 0, 0]]),
        ("802.1ah", 0x88e7, &[&[0; 18], v4]),
        ("old QinQ", 0x9100, &[&[0, 5, 8, 0], v4]),
        ("STP", 38, &[&[0x42, 0x42, 3, 0, 0, 0, 0, 0]]),
        ("IPv4 in LLC/SNAP", 60, &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], v4]),
        ("loopback test", 0x9000, &[&[0; 46]]),
    ];
    for (name, ethertype, payload) in kinds {
        c.add(Nowhere, ("a", "b"), &format!("{name}, a -> b"), Packet::ethernet(ethertype, payload));
    }
    c.add(Nowhere, ("a", "b"), "a -> b tcp/80 cut after 8 bytes of IP", declared.cut(22));
    c.add(Nowhere, ("a", "b"), "a -> b tcp/80 cut after the ports", declared.cut(38));
}

fn neighbours(c: &mut Catalogue) {
    let b = octets(c, "b");
    let option = [2, 1, 2, 0, 0, 0, 0, 9];
    let advert = [&b[..], &option].concat();
    // A prefix that is on the link, and a router for a day.
    let prefix = [&[3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &b].concat();
    let router = [&[0; 8][..], &prefix].concat();
    let redirect = [&b[..], &octets(c, "a")].concat();
    let kinds: [(&str, u8, u32, &[u8]); 5] = [
        ("neighbour solicitation", 135, 0, &advert),
        ("neighbour advertisement", 136, 0x2000_0000, &advert),
        ("router solicitation", 133, 0, &option),
        ("router advertisement", 134, 0x4000_0708, &router),
        ("redirect", 137, 0, &redirect),
    ];
    for (name, kind, rest, body) in kinds {
        for (from, source) in [("e", "e"), ("e", "fe80::1"), ("b", "b"), ("b", "fe80::1"), ("e", "b")] {
            for to in ["a", "ff02::1", "fe80::1"] {
                let ends: Ends = c.ends(Ip::V6, source, to);
                let mark = u32::from(c.port()) & 0xff;
                let packet = Packet::icmp(ends, Icmp { kind, code: 0, rest: rest | mark }, body);
                let mut frame = packet.frame().to_vec();
                // A hop limit of 255 says that no router was passed (RFC 4861).
                frame[21] = 255;
                let name = format!("{name} by {from} as {source} to {to}");
                c.add(Nowhere, (from, "a"), &name, Packet::from_frame(frame));
            }
        }
    }
}

fn octets(c: &Catalogue, name: &str) -> [u8; 16] {
    match c.address(Ip::V6, name) {
        std::net::IpAddr::V6(address) => address.octets(),
        std::net::IpAddr::V4(_) => unreachable!("asked for IPv6"),
    }
}
