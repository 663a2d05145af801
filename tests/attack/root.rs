//! Root in a namespace against its own half: rules, addresses, routes and the wire itself.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use crate::arena::{Arena, BOTH, Ears, Ip, SERVICES};
use crate::common::{in_sandbox, ip, nft};

/// Every place and port that listens, and whether `from` may open it.
fn tries(from: &str) -> Vec<(&'static str, u16, bool)> {
    let edges = [("a", "b", 80), ("c", "b", 81), ("host", "b", 80)];
    let places = SERVICES.into_iter().chain(["host"]).filter(|to| *to != from);
    let all = places.flat_map(|to| Ears::TCP.map(|port| (to, port)));
    all.map(|(to, port)| (to, port, edges.contains(&(from, to, port)))).collect()
}

/// Connects everywhere from `from`, where what may be reached is reached and nothing else is.
fn reaches_what_it_may(arena: &Arena, ears: &Ears, from: &str, what: &str) {
    for family in BOTH {
        for (to, port, may) in tries(from) {
            let came = arena.connect(from, SocketAddr::new(arena.address(family, to), port)).is_ok();
            let accepted = ears.accepted();
            assert_eq!(
                (came, accepted.contains(&(to, port))),
                (may, may),
                "{what}: {from} -> {to} tcp/{port}, {family:?}"
            );
        }
    }
    let allowed = tries(from).iter().filter(|(_, _, may)| *may).count();
    println!("{what}: {from} connects everywhere: expected {allowed} of {} a family, seen so", tries(from).len());
}

#[test]
fn flushing_its_own_lock_opens_nothing() {
    in_sandbox(|| {
        let arena = Arena::make();
        let ears = Ears::everywhere(&arena);
        for from in ["a", "b", "c", "d", "e"] {
            nft(&format!("node-{from}"), "flush ruleset");
            reaches_what_it_may(&arena, &ears, from, "with its rules flushed");
        }
        // Nobody has a lock of its own now but f: the panel stands.
        for from in ["a", "e", "f", "host"] {
            reaches_what_it_may(&arena, &ears, from, "with the others' rules flushed");
        }
    });
}

#[test]
fn taking_the_address_of_another_opens_nothing() {
    in_sandbox(|| {
        let arena = Arena::make();
        let ears = Ears::everywhere(&arena);
        for from in ["c", "e"] {
            nft(&format!("node-{from}"), "flush ruleset");
            for family in BOTH {
                for whose in ["a", "b", "host"] {
                    let address = arena.address(family, whose);
                    let (length, nodad) = if family == Ip::V4 { (32, "") } else { (128, "nodad") };
                    let link = "dev net0";
                    ip(&format!("-n node-{from} address add {address}/{length} {link} {nodad}"));
                    let to = arena.address(family, "b");
                    if whose != "b" {
                        ip(&format!("-n node-{from} route replace {to} {link} src {address}"));
                        assert!(arena.connect(from, SocketAddr::new(to, 80)).is_err(), "{from} as {whose}");
                    }
                    assert_eq!(ears.accepted(), [], "{from} as {whose}");
                    // What is sent to that address goes where it always went.
                    let called = arena.connect("a", SocketAddr::new(to, 80));
                    assert!(called.is_ok() && ears.accepted() == [("b", 80)], "{from} took a call of a to b");
                    // The route goes with the address that it prefers.
                    ip(&format!("-n node-{from} address del {address}/{length} {link}"));
                    println!("{from} with the address of {whose}, {family:?}: expected no connection, seen none");
                }
            }
        }
        // The same moves with an address that is its own.
        for family in BOTH {
            let (own, to) = (arena.address(family, "c"), arena.address(family, "b"));
            ip(&format!("-n node-c route replace {to} dev net0 src {own}"));
            assert!(arena.connect("c", SocketAddr::new(to, 81)).is_ok(), "c -> b tcp/81 is declared");
            assert_eq!(ears.accepted(), [("b", 81)]);
        }
    });
}

#[test]
fn routes_neighbours_and_mtu_of_its_own_open_nothing() {
    in_sandbox(|| {
        let arena = Arena::make();
        let ears = Ears::everywhere(&arena);
        let outside = arena.internet.netns().run(|| TcpListener::bind(("::", 80))).expect("the internet listens");
        outside.set_nonblocking(true).expect("it is a socket");
        for from in ["a", "e"] {
            nft(&format!("node-{from}"), "flush ruleset");
            ip(&format!("-n node-{from} route add default dev net0"));
            ip(&format!("-6 -n node-{from} route add default dev net0"));
            ip(&format!("-n node-{from} link set net0 arp on"));
            ip(&format!("-n node-{from} link set net0 address 02:00:00:00:00:77 mtu 1300"));
            ip(&format!("-n node-{from} link set net0 promisc on allmulticast on"));
            // A change of address and MTU must not have cut what is allowed either.
            ip(&format!("-n node-{from} link set net0 address 02:00:00:00:00:01 arp off"));
            reaches_what_it_may(&arena, &ears, from, "with routes everywhere and another MTU");
            for there in outside_addresses(&arena) {
                assert!(arena.connect(from, SocketAddr::new(there, 80)).is_err(), "{from} -> {there}");
                println!("{from} -> {there}: expected nothing, seen nothing");
            }
        }
        assert!(outside.accept().is_err(), "somebody without outbound came out");
    });
}

fn outside_addresses(arena: &Arena) -> Vec<IpAddr> {
    let mut all = [arena.internet.wan(), arena.internet.lan()].concat();
    all.extend(
        ["169.254.169.254", "198.51.100.1", "198.51.100.2"].map(|text| text.parse::<IpAddr>().expect("constant")),
    );
    all.extend(BOTH.map(|family| arena.address(family, "leg of the host")));
    all.extend(BOTH.map(|family| arena.address(family, "uplink")));
    all
}

#[test]
fn a_wire_that_is_renamed_moved_or_deleted_carries_no_more_than_before() {
    in_sandbox(|| {
        let arena = Arena::make();
        let ears = Ears::everywhere(&arena);
        nft("node-c", "flush ruleset");
        ip("-n node-c link set net0 down");
        ip("-n node-c link set net0 name else0");
        ip("-n node-c link set else0 up");
        furnish(&arena, "node-c", "else0");
        reaches_what_it_may(&arena, &ears, "c", "with the wire renamed");

        // A namespace of its own making, with the wire in it and the address of another.
        ip("netns add den");
        ip("-n node-c link set else0 netns den");
        ip("-n den link set else0 up");
        furnish(&arena, "den", "else0");
        let den = |port| {
            let to = SocketAddr::new(arena.address(Ip::V4, "b"), port);
            crate::common::netns("den")
                .run(move || std::net::TcpStream::connect_timeout(&to, Duration::from_millis(300)))
        };
        assert!(den(81).is_ok() && den(80).is_err(), "the wire is c's, wherever its end is");
        assert_eq!(ears.accepted(), [("b", 81)]);
        println!("with the wire moved away: expected c's one edge, seen so");

        ip("-n node-e link del net0");
        assert!(arena.connect("e", SocketAddr::new(arena.address(Ip::V4, "b"), 80)).is_err());
        reaches_what_it_may(&arena, &ears, "a", "with the wire of e deleted");

        arena.nsctl.apply().expect("what services broke is made anew");
        thread::sleep(Duration::from_millis(10));
        for from in ["a", "c", "e"] {
            reaches_what_it_may(&arena, &ears, from, "repaired");
        }
    });
}

/// Routes and addresses of c on a link of another name.
fn furnish(arena: &Arena, netns: &str, link: &str) {
    for family in BOTH {
        let (own, to) = (arena.address(family, "c"), arena.address(family, "b"));
        let (length, nodad) = if family == Ip::V4 { (32, "") } else { (128, "nodad") };
        ip(&format!("-n {netns} address replace {own}/{length} dev {link} {nodad}"));
        let prefix = if family == Ip::V4 { "10.231.0.0/22".to_owned() } else { format!("{to}/64") };
        ip(&format!("-n {netns} route replace {} dev {link} src {own}", network(&prefix)));
    }
}

fn network(prefix: &str) -> String {
    let network: ipnetwork::IpNetwork = prefix.parse().expect("it is a prefix");
    format!("{}/{}", network.network(), network.prefix())
}
