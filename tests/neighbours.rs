//! What stays when something else changes: another network on the same machine, and the addresses of services.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use common::network::{Network, replaced};
use common::{in_sandbox, ip, nft_here};
use netns_policy::plan::Plan;
use netns_policy::port::Protocol::Tcp;
use nsctl::Error;
use nsctl::internet::Internet;

/// A service that calls another, and one that goes out; `NAME` and `POOL` stand for what tells two networks apart.
const POLICY: &str = r#"
schema = 1
[network]
name = "NAME"
pool4 = "POOL"
[service.a]
outbound = "direct"
connect.b = ["x"]
[service.b]
ports = { x = "tcp:80" }
[host]
may_connect.b = ["x"]
"#;

fn network(name: &str, pool: &str) -> Network {
    let policy = replaced(&replaced(POLICY, "NAME", name), "POOL", pool);
    // One machine has one state directory.
    let mut network = Network::new(name, &policy);
    let options = nsctl::Options { state: "/run/state".into(), ..network.nsctl.options().clone() };
    network.nsctl = nsctl::Orchestrator::new(options);
    network
}

/// Both networks, the name of one the beginning of the other's.
fn two() -> [Network; 2] {
    [network("node", "10.31.0.0/24"), network("node-x", "10.32.0.0/24")]
}

fn assert_whole(network: &Network) {
    let name = network.nsctl.network().unwrap();
    assert_eq!(network.plan(), Plan::default(), "{name}");
    assert_eq!(network.drift(), [""; 0], "{name}");
    for address in network.addresses("b") {
        assert!(network.reaches("a", "b", (address, Tcp, 80)), "{name} {address}");
        assert!(network.reaches("host", "b", (address, Tcp, 80)), "{name} {address}");
        assert!(!network.reaches("a", "b", (address, Tcp, 81)), "{name} {address}");
    }
}

fn goes_out(network: &Network, internet: &Internet) -> bool {
    let _listener = internet.netns().run(|| std::net::TcpListener::bind("[::]:443")).unwrap();
    internet.wan().into_iter().all(|at| network.connect("a", (at, 443).into(), common::network::SOON).is_ok())
}

#[test]
fn two_networks_do_not_touch_each_other() {
    in_sandbox(|| {
        let internet = Internet::make().unwrap();
        let forwarding = || fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/forwarding").unwrap();
        let before = forwarding();
        for (first, second) in [(0, 1), (1, 0)] {
            let networks = two();
            networks[first].apply();
            networks[second].apply();
            networks.iter().for_each(assert_whole);
            assert!(goes_out(&networks[first], &internet) && goes_out(&networks[second], &internet));
            for (from, to) in [(0, 1), (1, 0)] {
                let to = networks[to].v4("b");
                let refused = networks[from].connect("a", (to, 80).into(), common::network::NEVER);
                assert!(refused.is_err(), "from one network into the other");
            }
            networks[first].down();
            assert!(networks[first].is_nothing());
            assert_whole(&networks[second]);
            assert!(goes_out(&networks[second], &internet), "the way out went with the other network");
            assert!(networks[second].apply().report.done.is_empty());
            networks[second].down();
            assert_eq!(forwarding(), before, "the last one sets back what the first has set");
            assert_eq!(nft_here("list ruleset"), "");
            assert_eq!(ip("netns list"), "");
        }
    });
}

/// Forwarding is switched on for us alone: who found it off before finds it off still, also when the network that
/// switched it on has gone and another one stays.
#[test]
fn what_the_host_did_not_forward_it_does_not_forward_after_one_of_two_has_gone() {
    in_sandbox(|| {
        let internet = Internet::make().unwrap();
        ip("netns add stranger");
        ip("link add s0 type veth peer name s0 netns stranger");
        ip("address add 198.18.0.1/24 dev s0");
        ip("link set s0 up");
        ip("-n stranger address add 198.18.0.2/24 dev s0");
        ip("-n stranger link set s0 up");
        ip("-n stranger route add default via 198.18.0.1");
        internet.netns().run(|| Ok(ip("route add 198.18.0.0/24 via 198.51.100.2"))).unwrap();
        fs::write("/proc/sys/net/ipv4/conf/s0/forwarding", "1").unwrap();
        let heard = || {
            let listener = internet.netns().run(|| std::net::UdpSocket::bind("203.0.113.10:9")).unwrap();
            listener.set_read_timeout(Some(common::network::NEVER)).unwrap();
            let sent = common::netns("stranger").run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                socket.send_to(b"?", "203.0.113.10:9")
            });
            sent.unwrap();
            let there = listener.recv(&mut [0; 4]).is_ok();
            // And back: the uplink is where an answer comes in.
            let listener = common::netns("stranger").run(|| std::net::UdpSocket::bind("198.18.0.2:9")).unwrap();
            listener.set_read_timeout(Some(common::network::NEVER)).unwrap();
            let socket = internet.netns().run(|| std::net::UdpSocket::bind("203.0.113.10:0")).unwrap();
            socket.send_to(b"?", "198.18.0.2:9").unwrap();
            (there, listener.recv(&mut [0; 4]).is_ok())
        };
        let before = heard();
        assert!(!before.1, "forwarding is off on the uplink");
        let networks = two();
        networks[0].apply();
        networks[1].apply();
        assert_eq!(heard(), before, "with both");
        networks[0].down();
        assert_eq!(heard(), before, "with the second alone");
        networks[1].down();
        assert_eq!(heard(), before, "with none");
    });
}

#[test]
fn a_service_whose_namespace_another_network_has_is_an_error() {
    in_sandbox(|| {
        let [node, other] = two();
        other.apply();
        let clash = fs::read_to_string("/run/node/policy.toml").unwrap() + "[service.x-a]\n";
        node.write(&clash);
        let refused = node.nsctl.apply();
        assert!(matches!(&refused, Err(Error::Foreign { netns }) if netns == "node-x-a"), "{refused:?}");
        assert_whole(&other);
    });
}

#[test]
fn nobody_gets_another_address_because_somebody_comes_goes_or_is_renamed() {
    in_sandbox(|| {
        let start = "schema = 1\n[network]\nname = \"n\"\n[service.m]\n[service.k]\n[service.z]\n";
        let network = Network::new("sticky", start);
        let addresses = || -> BTreeMap<String, Vec<IpAddr>> {
            let planned = network.planned();
            let names = planned.checked.graph.services().map(|service| service.name.to_string());
            names.map(|name| (name.clone(), network.addresses(&name))).collect()
        };
        network.apply();
        let first = addresses();

        network.change(&start.replace("[service.m]\n", "[service.a]\n"));
        let second = addresses();
        assert_eq!((&second["k"], &second["z"]), (&first["k"], &first["z"]));
        assert_ne!(second["a"], first["m"], "the address of one that has just gone is given to another");

        network.change(&start.replace("[service.k]\n", "[service.a]\n[service.renamed]\nwas = \"k\"\n"));
        let third = addresses();
        assert_eq!(third["renamed"], first["k"]);
        assert_eq!((&third["m"], &third["z"], &third["a"]), (&first["m"], &first["z"], &second["a"]));
        for (name, addresses) in &third {
            let inside = network.witness(name, "ip -o address show dev net0");
            addresses.iter().for_each(|address| assert!(inside.contains(&format!(" {address}/")), "{name}: {inside}"));
        }
        network.down();
        network.apply();
        assert_eq!(addresses(), third, "after it was down");
    });
}
