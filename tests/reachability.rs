//! Every pair of every example policy, really tried: what the graph has passes, and nothing else.

mod common;

use std::time::Instant;

use common::in_sandbox;
use common::network::Network;
use netns_policy::topology::Place;
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
    let internet = Internet::make().unwrap();
    let network = Network::example(name);
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
    // Each edge over both families, and far more that is closed.
    let open = report.outcomes.iter().filter(|outcome| **outcome == Outcome::Open).count();
    assert!(open >= 2 * network.planned().checked.graph.edges().len(), "{open} of {}", report.probes);
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

/// The control: a pair that somebody opens behind our back, in the panel and in both locks, is found, and it alone.
#[test]
fn a_pair_that_was_opened_by_hand_is_the_one_mismatch() {
    in_sandbox(|| {
        let internet = Internet::make().unwrap();
        let network = Network::example("bitcoin-node");
        network.apply();
        let planned = network.planned();
        let wire = |name: &str| planned.desired.wires[&Place::Service(name.parse().unwrap())].index;
        let (client, server) = ("spark-wallet", "bitcoind");
        let (from, to) = (network.v4(client), network.v4(server));
        let (here, there) = (wire(client), wire(server));
        network.nft(
            "fabric",
            &format!(
                "add element netdev nsctl edges4 {{ {here} . {from} . {to} . tcp . 8332 : {there} }};
                 add element netdev nsctl replies4 {{ {there} . {to} . {from} . tcp . 8332 : {here} }}"
            ),
        );
        network.nft(client, &format!("add element inet nsctl out4 {{ {to} . tcp . 8332 }}"));
        network.nft(server, &format!("add element inet nsctl in4 {{ {from} . tcp . 8332 }}"));
        let refused = matrix::verify(&network.nsctl, &outside(&internet), &|_, _| {});
        assert!(matches!(&refused, Err(MatrixError::NotApplied { what }) if what.contains(client)), "{refused:?}");

        // The probes of before, for verify itself does not try what is known to have drifted.
        let pins = &network.nsctl.options().netns;
        let report = matrix::compare(&planned, &outside(&internet), pins, &|_, _| {}).unwrap();
        let wrong: Vec<_> = report.mismatches.iter().map(|mismatch| (&mismatch.probe, &mismatch.seen)).collect();
        let [(probe, Outcome::Open)] = wrong[..] else { panic!("{wrong:?}") };
        assert_eq!((probe.from.as_str(), probe.to.as_str(), probe.address, probe.port), (client, server, to, 8332));
        assert_eq!(probe.expected, Expected::Closed);

        network.apply();
        assert!(verify(&network, &internet).mismatches.is_empty());
    });
}
