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
