//! `why FROM TO:PORT`, on the example of a Bitcoin node.

use netns_policy::Source;
use netns_policy::address::{AddressBook, AddressPlan};
use netns_policy::desired::Desired;
use netns_policy::explain::stands::{refusal, stands};
use netns_policy::explain::{Answer, Explanation, explain};
use netns_policy::graph::AllowGraph;
use netns_policy::observed::Observed;
use netns_policy::port::Protocol;
use netns_policy::ruleset::compile::Capabilities;
use netns_policy::topology::Place;

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

const GATES: &str = r#"schema = 1
network = { name = "n", lan = ["192.168.1.0/24"] }

[peer.phone]
wireguard = "bmV2ZXIgZ29pbmcgdG8gZ2l2ZSB5b3UgdXAgbmV2ZXI="

[service.web]
ports = { http = "tcp:80", admin = "tcp:81" }
connect."@store" = ["sql"]

[service.db]
ports = { sql = "tcp:5432", log = "udp:514" }
tags = ["store"]

[[never]]
from = ["wan", "lan", "peers"]
to = ["db"]
path = true
why = "from outside no chain leads to db"

[[never]]
from = ["phone"]
to = ["web:admin"]
why = "no phone administers"

[[never]]
from = ["web"]
to = ["db:log"]
why = "web logs elsewhere"
"#;

fn broken(graph: &AllowGraph, from: &str, to: &str, port: &str) -> Vec<String> {
    let Answer::No(no) = why(graph, from, to, port).answer else { panic!("{from} reaches {to}:{port}") };
    no.breaks.into_iter().map(|never| never.what).collect()
}

#[test]
fn a_way_in_is_held_against_the_invariants_with_all_that_lies_behind_it() {
    let gates = graph(GATES);
    let chain = "never \"from outside no chain leads to db\"";
    for from in ["wan", "lan", "peers"] {
        assert_eq!(broken(&gates, from, "web", "http"), [chain], "{from}");
    }
    // A peer comes by a tunnel, and what is open to one of them is open to `peers`.
    assert_eq!(broken(&gates, "phone", "web", "http"), [chain]);
    assert_eq!(broken(&gates, "phone", "web", "admin"), [chain, "never \"no phone administers\""]);
    assert_eq!(broken(&gates, "wan", "db", ""), [chain]);
    // Of several ports one would do no harm.
    assert_eq!(broken(&gates, "phone", "web", ""), [chain]);
    assert_eq!(broken(&gates, "db", "web", "admin"), Vec::<String>::new());
    assert_eq!(broken(&gates, "web", "db", "log"), ["never \"web logs elsewhere\""]);
    assert_eq!(broken(&gates, "web", "phone", ""), Vec::<String>::new());
}

#[test]
fn an_edge_of_a_tag_says_so() {
    let Answer::Yes(edge) = why(&graph(GATES), "web", "db", "sql").answer else { panic!("it is there") };
    assert_eq!(edge.through.as_deref(), Some("connect.\"@store\""));
    let Answer::Yes(edge) = why(&node(), "spark-wallet", "clightning", "grpc").answer else { panic!("it is there") };
    assert_eq!(edge.through, None);
}

fn desired(graph: &AllowGraph) -> Desired {
    let addresses = AddressPlan::assign(graph, &AddressBook::default(), 0, false).unwrap();
    Desired::new(graph, &addresses, &Observed::default(), Capabilities::default(), 16).0
}

fn service(name: &str) -> Place {
    Place::Service(name.parse().unwrap())
}

#[test]
fn an_edge_stands_in_the_panel_and_in_both_locks() {
    let desired = desired(&graph(GATES));
    let sql = stands(&desired, &service("web"), &service("db"), "tcp:5432".parse().ok());
    let shown =
        sql.iter().map(|s| format!("{} {} {} {{ {} }}\n  {} {}", s.place, s.table, s.set, s.element, s.chain, s.rule));
    insta::assert_snapshot!(shown.collect::<Vec<_>>().join("\n"));
    assert!(stands(&desired, &service("db"), &service("web"), None).is_empty());
    assert!(stands(&desired, &service("web"), &service("db"), "udp:5432".parse().ok()).is_empty());
}

#[test]
fn who_has_no_edge_meets_its_own_lock() {
    let desired = desired(&graph(GATES));
    let met = |from, to, protocol| refusal(&desired, &service(from), &service(to), protocol, 80).unwrap();
    let tcp = met("db", "web", Protocol::Tcp);
    assert_eq!((tcp.netns.as_deref(), tcp.rule.as_str()), (Some("n-db"), "meta l4proto tcp reject with tcp reset"));
    assert_eq!(tcp.absent[0], "edges4 { \"db\" . 10.231.0.1 . 10.231.0.2 . tcp . 80 : \"web\" }");
    assert_eq!(met("db", "web", Protocol::Udp).rule, "reject with icmpx admin-prohibited");
    let silent = graph(&GATES.replace("[peer", "[defaults]\ndenied = \"drop\"\n[peer"));
    let met = refusal(&self::desired(&silent), &service("db"), &service("web"), Protocol::Tcp, 80).unwrap();
    assert_eq!(met.rule, "policy drop");
}

/// What is not in the panel is told of nobody; what is, is told with the element of each lock.
#[test]
fn every_element_of_the_panel_belongs_to_one_right_and_each_right_has_its_three() {
    let node = node();
    let desired = desired(&node);
    let place = |text: String| if text == "host" { Place::Host } else { service(&text) };
    let (mut told, mut edges) = (0, 0);
    for edge in node.edges() {
        let all = stands(&desired, &place(edge.from.to_string()), &place(edge.to.to_string()), Some(edge.ports));
        let of = |place: &str| all.iter().filter(|stand| stand.place == place).count();
        let families = 2 * usize::try_from(edge.ports.count()).unwrap();
        assert_eq!((of("fabric"), all.len()), (families, 3 * families), "{edge}: {all:?}");
        told += of("fabric");
        edges += 1;
    }
    let direct = node.services().filter(|service| service.dns == netns_policy::graph::Dns::Direct);
    for service in direct {
        told += stands(&desired, &self::service(service.name.as_str()), &Place::Uplink, "udp:53".parse().ok())
            .iter()
            .chain(&stands(&desired, &self::service(service.name.as_str()), &Place::Uplink, "tcp:53".parse().ok()))
            .filter(|stand| stand.place == "fabric" && stand.set.starts_with("edges"))
            .count();
    }
    let table = desired.fabric.tables.values().next().unwrap();
    let there: usize = ["edges4", "edges6"].iter().map(|set| table.sets[*set].elements.len()).sum();
    assert!(edges > 30);
    assert_eq!(told, there);
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
