//! `why FROM TO:PORT`, on the example of a Bitcoin node.

use netns_policy::Source;
use netns_policy::explain::{Answer, Explanation, explain};
use netns_policy::graph::AllowGraph;

fn graph(text: &str) -> AllowGraph {
    AllowGraph::parse(&[Source::toml("policy.toml", text)]).unwrap().graph
}

fn node() -> AllowGraph {
    graph(include_str!("../../examples/policies/bitcoin-node.toml"))
}

fn why(graph: &AllowGraph, from: &str, to: &str, port: &str) -> Explanation {
    explain(graph, from, to, port).unwrap()
}

#[test]
fn an_answer_names_the_edge_or_what_is_missing() {
    let node = node();
    let asked = [
        ("spark-wallet", "clightning", "grpc"),
        ("spark-wallet", "bitcoind", "rpc"),
        ("rtl", "postgresql", "sql"),
        ("fulcrum", "bitcoind", "p2p"),
        ("bitcoind", "tor", "socks"),
        ("bitcoind", "wan", "tcp:443"),
        ("lnd", "wan", "tcp:443"),
        ("lnd", "metadata", "80"),
        ("host", "bitcoind", "8332"),
        ("host", "lnd", "rpc"),
        ("electrs", "host", "22"),
        ("alice-phone", "electrs", "electrum"),
        ("laptop", "lnd", "rest"),
        ("wan", "nginx", "http"),
        ("lan", "lnd", "p2p"),
        ("bitcoind", "bitcoind", "rpc"),
        ("mempool", "bitcoind", ""),
        ("mempool", "bitcoind", "tcp:1234"),
        ("lnd", "bitcoind", "tcp:28332"),
    ];
    let shown = asked.map(|(from, to, port)| format!("$ {from} {to}:{port}\n{}\n", why(&node, from, to, port)));
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn the_gateway_answers_for_names_those_who_ask_it() {
    let shop =
        graph("schema = 1\nnetwork.name = \"n\"\n[service.a]\noutbound = \"direct\"\ndns = \"direct\"\n[service.b]\n");
    let first = |from, port| why(&shop, from, "uplink", port).to_string().lines().next().unwrap().to_owned();
    assert!(first("a", "udp:53").starts_with("yes  a -> uplink:udp:53 by dns"), "{}", first("a", "udp:53"));
    assert_eq!(first("a", "80"), "no   uplink answers on port 53 only");
    assert!(first("b", "53").starts_with("no   b has no `dns = "), "{}", first("b", "53"));
}

#[test]
fn a_question_about_nobody_says_who_was_meant() {
    let node = node();
    let shown = |from, to, port| {
        let error = explain(&node, from, to, port).unwrap_err();
        format!("{error}; {}", error.hint().unwrap_or("-"))
    };
    assert_eq!(shown("bitcoin", "lnd", "rpc"), "there is no service or peer `bitcoin`; did you mean `bitcoind`?");
    assert_eq!(shown("lnd", "bitcoin", "rpc"), "there is no service `bitcoin`; did you mean `bitcoind`?");
    assert_eq!(shown("lnd", "bitcoind", "rcp"), "bitcoind has no port `rcp`; did you mean `rpc`?");
    assert_eq!(shown("lnd", "bitcoind", "0"), "`0` is not a port; -");
    assert_eq!(shown("lnd", "bitcoind", "tcp:90-80"), "`tcp:90-80` is not a port; -");
}

#[test]
fn who_is_switched_off_is_said_to_be() {
    let graph = graph(
        "schema = 1\nnetwork.name = \"n\"\n[service.a]\n[service.b]\nenabled = false\nports = { x = \"tcp:1\" }\n",
    );
    for (from, to) in [("a", "b"), ("b", "a")] {
        let Answer::No(no) = why(&graph, from, to, "").answer else { panic!("{from} reaches {to}") };
        assert_eq!(no.reason, "b is switched off by `enabled = false`");
    }
}

#[test]
fn a_range_is_allowed_only_as_a_whole() {
    let graph = graph(
        "schema = 1\nnetwork.name = \"n\"\n[service.a]\nconnect.b = [\"x\"]\n[service.b]\nports = { x = \"tcp:80-90\" }\n",
    );
    assert!(why(&graph, "a", "b", "tcp:80-90").is_yes());
    assert!(why(&graph, "a", "b", "tcp:85").is_yes());
    assert!(!why(&graph, "a", "b", "tcp:85-91").is_yes());
    assert!(!why(&graph, "a", "b", "udp:85").is_yes());
}

/// The answer and the graph agree, for every pair of services and every declared port.
#[test]
fn yes_is_said_exactly_where_the_graph_has_an_edge() {
    let node = node();
    for from in node.services() {
        for to in node.services().filter(|to| to.name != from.name) {
            for (name, ports) in &to.ports {
                let edge = node.edges().iter().any(|edge| {
                    edge.from.to_string() == from.name.as_str()
                        && edge.to.to_string() == to.name.as_str()
                        && edge.ports == *ports
                });
                let said = why(&node, from.name.as_str(), to.name.as_str(), name.as_str());
                assert_eq!(said.is_yes(), edge, "{said}");
            }
        }
    }
}
