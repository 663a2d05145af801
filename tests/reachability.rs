//! Every pair of every example policy, really tried: what the graph has passes, and nothing else.

mod common;

use std::time::Instant;

use common::in_sandbox;
use common::network::{Network, example, replaced};
use netns_policy::topology::Place;
use nsctl::Planned;
use nsctl::internet::Internet;
use nsctl::matrix::{self, MatrixError, Outside};
use nsctl::verify::{Expected, Outcome, Report};

fn outside(internet: &Internet) -> Outside {
    Outside { wan: internet.wan(), lan: internet.lan(), netns: Some(internet.netns().try_clone().unwrap()) }
}

fn verify(network: &Network, internet: &Internet) -> Report {
    matrix::verify(&network.nsctl, &outside(internet), &|_, _| {}).unwrap()
}

fn is_as_its_graph_says(name: &str, least: usize) {
    matches_its_graph(name, &example(name), least, 2);
}

fn matches_its_graph(name: &str, policy: &str, least: usize, families: usize) {
    let internet = Internet::make().unwrap();
    let network = Network::new(name, policy);
    network.apply();
    let started = Instant::now();
    let report = verify(&network, &internet);
    println!(
        "{name}: {} probes in {:.2?}: {} proven, {} mismatches, {} unproven",
        report.probes,
        started.elapsed(),
        report.proven(),
        report.mismatches.len(),
        report.unproven.len()
    );
    assert_eq!((&report.mismatches[..], &report.unproven[..]), (&[][..], &[][..]));
    assert_eq!(report.proven(), report.probes);
    // Each edge over every family, and far more that is closed.
    let open = report.outcomes.iter().filter(|outcome| **outcome == Outcome::Open).count();
    assert!(open >= families * network.planned().checked.graph.edges().len(), "{open} of {}", report.probes);
    assert!(report.probes >= least, "{}", report.probes);
}

#[test]
fn the_bitcoin_node_is_as_its_graph_says() {
    in_sandbox(|| is_as_its_graph_says("bitcoin-node", 4000));
}

#[test]
fn nix_bitcoin_is_as_its_graph_says() {
    in_sandbox(|| is_as_its_graph_says("nix-bitcoin", 3000));
}

#[test]
fn the_app_store_is_as_its_graph_says() {
    in_sandbox(|| is_as_its_graph_says("umbrel", 5000));
}

const WAYS: &str = r#"
schema = 1
[network]
name = "ways"
lan = ["192.168.1.0/24"]
resolvers = ["203.0.113.10"]
[service.server]
ports = { one = "tcp:80", udp = "udp:81", few = "udp:90-93", many = "tcp:2000-2199" }
[service.out]
outbound = "direct"
dns = "direct"
connect.server = ["one", "udp", "few", "many"]
[service.near]
outbound = "lan"
connect.server = ["tcp:2050", "udp:91"]
[service.both]
outbound = ["lan", "direct"]
[service.some]
outbound = { direct = ["tcp:443"], lan = ["192.168.1.5/32 udp:443"] }
[service.nobody]
[host]
may_connect.server = ["one", "many"]
accepts = { backup = { port = "tcp:8000", from = ["server"] }, udp = { port = "udp:8001", from = ["nobody"] } }
"#;

#[test]
fn every_way_out_and_both_ways_of_the_host_are_as_the_graph_says() {
    in_sandbox(|| matches_its_graph("ways", WAYS, 400, 2));
}

#[test]
fn every_way_is_as_the_graph_says_without_ipv6() {
    let policy = replaced(WAYS, "name = \"ways\"", "name = \"ways\"\nipv6 = false");
    in_sandbox(|| matches_its_graph("ways", &policy, 200, 1));
}

const CLIENT: &str = "spark-wallet";
const SERVER: &str = "bitcoind";
const PORT: u16 = 8332;

/// Lets `CLIENT` reach `SERVER` at one of the three places that have to agree, as somebody would who can.
fn open_by_hand(network: &Network, planned: &Planned, place: &str) {
    let wire = |name: &str| planned.desired.wires[&Place::Service(name.parse().unwrap())].index;
    let (from, to) = (network.v4(CLIENT), network.v4(SERVER));
    let (here, there) = (wire(CLIENT), wire(SERVER));
    let script = match place {
        "fabric" => format!(
            "add element netdev nsctl edges4 {{ {here} . {from} . {to} . tcp . {PORT} : {there} }};
             add element netdev nsctl replies4 {{ {there} . {to} . {from} . tcp . {PORT} : {here} }}"
        ),
        CLIENT => format!("add element inet nsctl out4 {{ {to} . tcp . {PORT} }}"),
        _ => format!("add element inet nsctl in4 {{ {from} . tcp . {PORT} }}"),
    };
    network.nft(place, &script);
}

/// The probes of before something was opened: verify itself does not try what is known to have drifted.
fn compare(network: &Network, planned: &Planned, internet: &Internet) -> Report {
    matrix::compare(planned, &outside(internet), &network.nsctl.options().netns, &|_, _| {}).unwrap()
}

/// The control: a pair that somebody opens behind our back, in the panel and in both locks, is found, and it alone.
#[test]
fn a_pair_that_was_opened_by_hand_is_the_one_mismatch() {
    in_sandbox(|| {
        let internet = Internet::make().unwrap();
        let network = Network::example("bitcoin-node");
        network.apply();
        let planned = network.planned();
        for place in ["fabric", CLIENT, SERVER] {
            open_by_hand(&network, &planned, place);
        }
        let refused = matrix::verify(&network.nsctl, &outside(&internet), &|_, _| {});
        assert!(matches!(&refused, Err(MatrixError::NotApplied { what }) if what.contains(CLIENT)), "{refused:?}");

        let report = compare(&network, &planned, &internet);
        let wrong: Vec<_> = report.mismatches.iter().map(|mismatch| (&mismatch.probe, &mismatch.seen)).collect();
        let [(probe, Outcome::Open)] = wrong[..] else { panic!("{wrong:?}") };
        let found = (probe.from.as_str(), probe.to.as_str(), probe.address, probe.port);
        assert_eq!(found, (CLIENT, SERVER, network.v4(SERVER), PORT));
        assert_eq!(probe.expected, Expected::Closed);

        network.apply();
        assert!(verify(&network, &internet).mismatches.is_empty());
    });
}

/// Each of the three holds alone: the panel, the client's lock, the server's lock.
#[test]
fn two_open_locks_of_three_open_nothing() {
    in_sandbox(|| {
        let internet = Internet::make().unwrap();
        let network = Network::example("bitcoin-node");
        network.apply();
        let planned = network.planned();
        for shut in ["fabric", CLIENT, SERVER] {
            for place in ["fabric", CLIENT, SERVER].into_iter().filter(|place| *place != shut) {
                open_by_hand(&network, &planned, place);
            }
            assert_eq!(compare(&network, &planned, &internet).mismatches, [], "{shut} alone");
            network.apply();
        }
    });
}
