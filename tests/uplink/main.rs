//! The way out on a real kernel: what `direct` reaches and what not, other people's firewalls, the host's sysctls.

#![allow(clippy::disallowed_methods, reason = "ip, nft and sh are witnesses; a sandbox needs unshare")]

#[path = "../common/mod.rs"]
mod common;
mod world;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use netns_policy::plan::Step;
use nsctl::{Applied, Note};

use common::{in_sandbox, ip};
use world::{World, connect, ip_in, listen, seen_as, sh, sysctl};

fn apply(world: &World) -> Applied {
    world.orchestrator().apply().unwrap_or_else(|e| {
        let mut text = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(e) = source {
            text = format!("{text}: {e}");
            source = e.source();
        }
        panic!("{text}")
    })
}

#[test]
fn direct_reaches_the_internet_as_the_host() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        let applied = apply(world);
        assert_eq!(applied.notes, []);
        let servers = ["203.0.113.10:80", "[2001:db8:9::10]:80"].map(|at| (at, listen(Some(&world.internet), at)));
        let app = world.service("app");
        let seen = servers.each_ref().map(|(at, server)| seen_as(server, &app, at).to_string());
        assert_eq!(seen, ["192.168.7.2", "2001:db8:7::2"]);
        for (at, _) in &servers {
            let refused = connect(Some(&world.service("shut")), at).unwrap_err();
            assert!(
                refused.raw_os_error().is_some(),
                "{at} is refused at once to a service without outbound: {refused}"
            );
        }
        assert!(apply(world).report.done.is_empty(), "a second apply has nothing to do");
    });
}

#[test]
fn direct_means_neither_the_host_nor_its_neighbours_nor_private_networks() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        apply(world);
        let inside = ["192.168.7.2:80", "198.18.5.2:80", "[2001:db8:7::2]:80"];
        let near = ["192.168.7.1:80", "198.18.5.77:80", "[2001:db8:7::1]:80"];
        let far = ["10.9.9.9:80"];
        let _inside = inside.map(|at| listen(None, at));
        let _near = near.map(|at| listen(Some(&world.router), at));
        let _far = far.map(|at| listen(Some(&world.internet), at));
        // All of them are there for those who may.
        for at in inside {
            connect(Some(&world.router), at).expect(at);
        }
        for at in near.iter().chain(&far) {
            connect(None, at).expect(at);
        }
        let app = world.service("app");
        for at in inside.iter().chain(&near).chain(&far) {
            let refused = connect(Some(&app), at);
            assert!(refused.is_err(), "{at} is not `direct`");
        }
    });
}

#[test]
fn a_router_with_a_private_address_teaches_the_service_its_mtu() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        apply(world);
        let app = world.service("app");
        for (local, to) in [("0.0.0.0:0", "203.0.113.10:9"), ("[::]:0", "[2001:db8:9::10]:9")] {
            let socket = app.run(move || UdpSocket::bind(local)).expect("a socket");
            let target = to.rsplit_once(':').expect("a port").0.trim_matches(['[', ']']);
            let learned = || ip_in(&app, &format!("route get {target}")).contains("mtu 1400");
            assert!(!learned(), "nothing is known yet of {target}");
            let deadline = Instant::now() + Duration::from_secs(5);
            while !learned() {
                assert!(Instant::now() < deadline, "{}", ip_in(&app, &format!("route get {target}")));
                socket.send_to(&[0; 1440], to).ok();
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
}

#[test]
fn a_firewall_that_drops_the_leg_is_named_with_the_line_that_helps() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        sh("nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'");
        let server = listen(Some(&world.internet), "203.0.113.10:80");
        let applied = apply(world);
        let [Note::Blocked(blocked)] = &applied.notes[..] else { panic!("{:?}", applied.notes) };
        assert_eq!(blocked.chain, "ip filter FORWARD (policy drop)");
        let app = world.service("app");
        assert!(connect(Some(&app), "203.0.113.10:80").is_err(), "it really is in the way");
        sh(&blocked.remedy);
        seen_as(&server, &app, "203.0.113.10:80");
        assert_eq!(apply(world).notes, []);
    });
}

#[test]
fn a_firewall_for_both_families_is_named_once_by_its_rule() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        sh("nft 'table inet fw { chain others { type filter hook forward priority 5; counter drop; }; }'");
        let applied = apply(world);
        let [Note::Blocked(blocked)] = &applied.notes[..] else { panic!("{:?}", applied.notes) };
        assert_eq!(blocked.chain, "inet fw others (one of its rules)");
        sh(&blocked.remedy);
        assert_eq!(apply(world).notes, []);
    });
}

#[test]
fn sysctls_are_set_in_order_and_down_restores_each() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        let paths = [
            "net/ipv6/conf/eth0/accept_ra",
            "net/ipv6/conf/all/forwarding",
            "net/ipv4/conf/eth0/forwarding",
            "net/ipv4/ip_forward",
            "net/ipv4/conf/all/forwarding",
        ];
        let values = || paths.map(sysctl);
        let before = values();
        assert_eq!(before, ["1", "0", "0", "0", "0"]);
        let applied = apply(world);
        assert_eq!(values(), ["2", "1", "1", "0", "0"]);
        let set = applied.report.done.iter().filter_map(|step| match step {
            Step::SetSysctl { path, .. } => paths.iter().position(|wanted| wanted == path),
            _ => None,
        });
        let set: Vec<usize> = set.collect();
        let at = |wanted| set.iter().position(|found| *found == wanted).expect(paths[wanted]);
        assert!(at(0) < at(1), "the router's word is listened to before forwarding makes the host deaf");
        assert!(world.has_advertised_route(), "the host still has its route: {}", ip("-6 route show"));
        world.orchestrator().down().expect("down");
        assert_eq!(values(), before);
        assert!(world.has_advertised_route(), "and after down too: {}", ip("-6 route show"));
        assert_eq!(sh("nft list ruleset"), "");
    });
}

#[test]
fn without_a_default_route_or_a_resolver_the_operator_is_told() {
    in_sandbox(|| {
        let world = &World::new();
        ip("route del default");
        sh("echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_ra; ip -6 route flush default");
        world.resolvers("nameserver 127.0.0.53\n");
        world.policy(
            "schema = 1\n[network]\nname = \"node\"\npool4 = \"10.231.0.0/24\"\n\
             [service.app]\noutbound = \"direct\"\ndns = \"direct\"\n",
        );
        assert_eq!(apply(world).notes, [Note::NoResolver, Note::NoUplink]);
        world.resolvers("nameserver 203.0.113.53\n");
        ip("route add default via 192.168.7.1");
        assert_eq!(apply(world).notes, []);
    });
}
