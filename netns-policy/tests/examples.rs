//! The example policies hold, and are what their headers say.

use netns_policy::graph::{AllowGraph, Cause, Origin, Target};
use netns_policy::{Checked, Source};

fn parse(source: Source) -> Checked {
    AllowGraph::parse(&[source]).unwrap_or_else(|errors| {
        let shown: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
        panic!("{errors}\n{}", shown.join("\n"))
    })
}

const BITCOIN_NODE: &str = include_str!("../../examples/policies/bitcoin-node.toml");

#[test]
fn bitcoin_node_has_17_services_and_37_edges_between_them() {
    let Checked { graph, .. } = parse(Source::toml("bitcoin-node.toml", BITCOIN_NODE));
    assert_eq!(graph.services().count(), 17);
    let inside = graph.edges().iter().filter(|edge| edge.from != Origin::Host && edge.to != Target::Host);
    assert_eq!(inside.count(), 37);
    assert_eq!(graph.edges().iter().filter(|edge| edge.from == Origin::Host).count(), 2);
    assert_eq!(graph.edges().iter().filter(|edge| edge.cause == Cause::Tor).count(), 7);
    assert_eq!(graph.exposures().len(), 8);
}

#[test]
fn bitcoin_node_says_the_same_in_json() {
    let toml = parse(Source::toml("bitcoin-node.toml", BITCOIN_NODE)).graph;
    let json = parse(Source::json("bitcoin-node.json", json_of(BITCOIN_NODE))).graph;
    assert!(toml.same_as(&json));
    assert_ne!(toml, json, "the places differ, so the comparison above is not one of a thing with itself");
}

fn json_of(toml: &str) -> String {
    let value: toml::Value = toml::from_str(toml).expect("the example is TOML");
    serde_json::to_string_pretty(&value).expect("TOML without dates is JSON")
}

#[test]
fn nix_bitcoin_has_26_true_edges_and_10_to_tor() {
    let Checked { graph, .. } =
        parse(Source::toml("nix-bitcoin.toml", include_str!("../../examples/policies/nix-bitcoin.toml")));
    assert_eq!(graph.services().count(), 18);
    let (tor, written): (Vec<_>, Vec<_>) = graph.edges().iter().partition(|edge| edge.cause == Cause::Tor);
    assert_eq!((written.len(), tor.len()), (26, 10));
    assert_eq!(graph.exposures().len(), 6);
}

#[test]
fn umbrel_has_63_apps_with_93_edges() {
    let Checked { graph, warnings, .. } =
        parse(Source::toml("umbrel.toml", include_str!("../../examples/policies/umbrel.toml")));
    let apps: std::collections::BTreeSet<_> = graph.edges().iter().map(|edge| &edge.from).collect();
    assert_eq!(apps.len(), 63);
    assert_eq!(graph.services().count(), 64);
    assert_eq!(graph.edges().len(), 93);
    assert!(graph.edges().iter().all(|edge| edge.port_name.is_some()));
    let shown: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.is_empty(), "{shown:?}");
}

#[test]
fn warnings_of_the_examples_are_these() {
    let warnings = |name: &str, text: &str| -> Vec<String> {
        let checked = parse(Source::toml(name, text));
        checked.warnings.iter().map(|w| format!("{} {w}", w.code())).collect()
    };
    let node = warnings("bitcoin-node.toml", BITCOIN_NODE);
    let around = "goes out through tor only, but may reach lnd, which goes out directly";
    assert_eq!(node, ["lightning-loop", "btcpayserver"].map(|name| format!("W0807 {name} {around}")));
    let nix = warnings("nix-bitcoin.toml", include_str!("../../examples/policies/nix-bitcoin.toml"));
    assert_eq!(nix, ["W0226 clightning-rest reaches nobody, and nobody reaches it"]);
}
