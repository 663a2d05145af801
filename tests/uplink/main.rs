//! The way out on a real kernel: what `direct` reaches and what not, other people's firewalls, the host's sysctls.

#![allow(clippy::disallowed_methods, reason = "ip, nft and sh are witnesses; a sandbox needs unshare")]

#[path = "../common/mod.rs"]
mod common;
mod world;

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use netns_policy::plan::Step;
use nsctl::kernel::netns::Netns;
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

        ip("link set node+leg down");
        ip("link set node+leg up");
        assert!(connect(Some(&app), servers[0].0).is_err(), "a leg that was down has lost its routes");
        assert_eq!(apply(world).notes, []);
        assert_eq!(servers.each_ref().map(|(at, server)| seen_as(server, &app, at).to_string()), seen);
        assert!(apply(world).report.done.is_empty(), "nor has one after a repair");
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
            assert!(is_refused_at_once(&app, at), "{at} is not `direct`");
        }
        // The gateway knows it too, so that a flush on the host opens nothing.
        sh("nft flush ruleset");
        for at in inside.iter().chain(&near).chain(&far) {
            assert!(is_refused_at_once(&app, at), "{at} is not `direct`, whatever the host's table says");
        }
    });
}

/// Refused, and not just never answered.
fn is_refused_at_once(from: &Netns, at: &str) -> bool {
    let started = Instant::now();
    connect(Some(from), at).is_err() && started.elapsed() < Duration::from_secs(1)
}

#[test]
fn lan_and_ports_open_what_they_say_and_a_revoked_way_ends_open_connections() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        let head = "schema = 1\n[network]\nname = \"node\"\npool4 = \"10.231.0.0/24\"\nlan = [\"192.168.7.0/24\"]\n";
        let policy = |web: &str| {
            world.policy(&format!("{head}[service.web]\n{web}[service.home]\noutbound = \"lan\"\n"));
            apply(world)
        };
        assert_eq!(policy("outbound.direct = [\"tcp:80\"]\n").notes, []);
        let [open, shut] = ["203.0.113.10:80", "203.0.113.10:81"];
        let server = listen(Some(&world.internet), open);
        let _other = listen(Some(&world.internet), shut);
        let printer = listen(Some(&world.router), "192.168.7.1:631");
        let (web, home) = (world.service("web"), world.service("home"));
        assert!(is_refused_at_once(&web, shut), "only port 80");
        assert!(is_refused_at_once(&web, "192.168.7.1:631"), "nor the LAN");
        seen_as(&printer, &home, "192.168.7.1:631");
        assert!(is_refused_at_once(&home, open), "the LAN is not the internet");

        let mut client = connect(Some(&web), open).expect(open);
        let (mut accepted, _) = server.accept().expect("a connection");
        let mut passes = || {
            accepted.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
            client.write_all(b"x").is_ok() && accepted.read_exact(&mut [0]).is_ok()
        };
        assert!(passes(), "while the policy allows it");
        policy("");
        assert!(!passes(), "and no longer than that");
    });
}

#[test]
fn dns_direct_asks_the_hosts_resolver() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        world.policy(
            "schema = 1\n[network]\nname = \"node\"\npool4 = \"10.231.0.0/24\"\n\
             [service.app]\ndns = \"direct\"\n[service.shut]\n",
        );
        assert_eq!(apply(world).notes, []);
        let resolver = world.router.run(|| UdpSocket::bind("192.168.7.1:53")).expect("a resolver");
        resolver.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        let written = std::fs::read_to_string(world.options.run.join("node/node-app/resolv.conf")).expect("a file");
        let asked =
            written.trim().lines().find_map(|line| line.strip_prefix("nameserver ")).expect("a resolver").to_owned()
                + ":53";
        let client = world.service("app").run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        client.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        client.send_to(b"who?", &asked).expect("a question is sent");
        let (_, from) = resolver.recv_from(&mut [0; 16]).expect("the question arrives");
        resolver.send_to(b"me", from).expect("an answer is sent");
        let (_, by) = client.recv_from(&mut [0; 16]).expect("the answer arrives");
        assert_eq!(by.to_string(), asked);
        let other = world.service("shut").run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        other.send_to(b"who?", &asked).expect_err("who has no resolver asks nobody");
    });
}

#[test]
fn the_host_forwards_for_nobody_else() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        let guest = Netns::unpinned().expect("a namespace");
        world.guest(&guest);
        let _server = listen(Some(&guest), "172.20.0.2:80");
        let _server6 = listen(Some(&guest), "[2001:db8:20::2]:80");
        let reached = || ["172.20.0.2:80", "[2001:db8:20::2]:80"].map(|at| connect(Some(&world.router), at).is_ok());
        connect(None, "172.20.0.2:80").expect("the guest is there");
        connect(None, "[2001:db8:20::2]:80").expect("by both families");
        assert_eq!(reached(), [false, false], "a host that does not forward");
        apply(world);
        assert_eq!(reached(), [false, false], "it still does not");
        sh("nft delete table inet nsctl-node; echo 1 > /proc/sys/net/ipv4/conf/guest/forwarding");
        assert_eq!(reached(), [true, true], "because of our table alone");
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
        // What happens to a host that forwards and was not told to listen.
        sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        assert!(!world.has_advertised_route(), "a router that does not listen loses the route");
        sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding");
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
        let down = world.orchestrator().down().expect("down");
        assert_eq!(values(), before);
        let restored = down.report.done.iter().filter_map(|step| match step {
            Step::RestoreSysctl { path, .. } => paths.iter().position(|wanted| wanted == path),
            _ => None,
        });
        assert_eq!(restored.collect::<Vec<_>>().last(), Some(&0), "the host listens to its router while it forwards");
        let record = std::fs::read_to_string(world.options.state.join("node/sysctls.json")).expect("a record");
        assert_eq!(record.trim(), "{}", "what was restored is forgotten");
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
