//! `reach`: what a chain of rights leads to, held against a closure that is made in another way.

use std::collections::{BTreeMap, BTreeSet};

use netns_policy::Source;
use netns_policy::exposure::Way;
use netns_policy::graph::AllowGraph;
use netns_policy::reach::{Direction, Radius, chain, node, radius};
use proptest::prelude::*;

fn graph(text: &str) -> AllowGraph {
    AllowGraph::parse(&[Source::toml("policy.toml", text)]).unwrap_or_else(|e| panic!("{e:?}\n{text}")).graph
}

fn from(graph: &AllowGraph, name: &str, hops: Option<u32>) -> Radius {
    radius(graph, &node(graph, name, Direction::From).unwrap(), Direction::From, hops)
}

fn to(graph: &AllowGraph, name: &str) -> Radius {
    radius(graph, &node(graph, name, Direction::To).unwrap(), Direction::To, None)
}

fn layers(radius: &Radius) -> Vec<Vec<String>> {
    let names = |layer: &Vec<netns_policy::reach::Met>| layer.iter().map(|met| met.node.to_string()).collect();
    radius.layers.iter().map(names).collect()
}

const SHOP: &str = r#"schema = 1
network.name = "shop"

[host]
may_connect.db = ["sql"]
accepts = { ssh = { port = "tcp:22", from = ["web"] } }

[peer.phone]
wireguard = "bmV2ZXIgZ29pbmcgdG8gZ2l2ZSB5b3UgdXAgbmV2ZXI="

[service.cron]
outbound.direct = ["tcp:443"]
connect.web = ["http"]

[service.db]
ports = { sql = "tcp:5432" }

[service.web]
ports = { http = "tcp:8080" }
expose.wireguard = { ports = ["http"], peers = ["phone"] }

[service.alone]
outbound = "direct"
dns = "direct"
"#;

#[test]
fn a_chain_goes_on_through_services_and_the_host_and_ends_outside() {
    let shop = graph(SHOP);
    assert_eq!(layers(&from(&shop, "phone", None)), [vec!["web"], vec!["host"], vec!["db"]]);
    assert_eq!(layers(&from(&shop, "cron", None)), [vec!["web", "wan"], vec!["host"], vec!["db"]]);
    assert_eq!(layers(&from(&shop, "alone", None)), [vec!["uplink", "wan"]]);
    assert_eq!(from(&shop, "phone", None).unmet.len(), 2);
    assert_eq!(layers(&from(&shop, "phone", Some(2))), [vec!["web"], vec!["host"]]);
    assert!(from(&shop, "phone", Some(2)).goes_on);
    assert!(!from(&shop, "phone", Some(3)).goes_on);
}

#[test]
fn who_can_reach_it_is_asked_the_other_way() {
    let shop = graph(SHOP);
    assert_eq!(layers(&to(&shop, "db")), [vec!["host"], vec!["web"], vec!["phone", "peers", "cron", "wan"]]);
    assert_eq!(layers(&to(&shop, "uplink")), [vec!["alone"]]);
    assert_eq!(layers(&to(&shop, "wan")), [vec!["alone", "cron"]]);
}

#[test]
fn a_chain_is_told_step_by_step_with_its_lines() {
    let shop = graph(SHOP);
    let ends = |from, to| (node(&shop, from, Direction::From).unwrap(), node(&shop, to, Direction::To).unwrap());
    let told = |from, to| {
        let (from, to) = ends(from, to);
        chain(&shop, &from, &to).iter().map(|step| format!("{} {}", step.what, step.at)).collect::<Vec<_>>()
    };
    let expected = ["cron -> web:http policy.toml:13", "web -> host:ssh policy.toml:6", "host -> db:sql policy.toml:5"];
    assert_eq!(told("cron", "db"), expected);
    assert!(told("db", "cron").is_empty());
    assert!(told("db", "db").is_empty());
}

#[test]
fn a_name_that_nobody_has_is_an_error_with_the_nearest() {
    let error = node(&graph(SHOP), "wbe", Direction::From).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.hint()),
        ("there is no service or peer `wbe`", Some("did you mean `web`?"))
    );
    node(&graph(SHOP), "uplink", Direction::From).unwrap_err();
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const OUT: [&str; 4] = ["\"none\"", "\"direct\"", "\"lan\"", "{ direct = [\"tcp:443\"] }"];
const EXPOSED: [&str; 4] = ["", "lan", "port", "wireguard"];

#[derive(Clone, Debug)]
struct Drawn {
    edges: Vec<usize>,
    opens: Option<usize>,
    out: usize,
    exposed: usize,
}

fn drawn() -> impl Strategy<Value = (Vec<Drawn>, Vec<usize>, Vec<usize>)> {
    let opens = prop::option::weighted(0.3, 0..NAMES.len());
    let service = (prop::collection::vec(0..NAMES.len(), 0..3), opens, 0..OUT.len(), 0..EXPOSED.len())
        .prop_map(|(edges, opens, out, exposed)| Drawn { edges, opens, out, exposed });
    let few = || prop::collection::vec(0..NAMES.len(), 0..2);
    (prop::collection::vec(service, NAMES.len()), few(), few())
}

fn text((services, may, accepts): &(Vec<Drawn>, Vec<usize>, Vec<usize>)) -> String {
    let mut text = String::from("schema = 1\n[network]\nname = \"n\"\nlan = [\"192.168.1.0/24\"]\n[host]\n");
    for to in may.iter().collect::<BTreeSet<_>>() {
        text += &format!("may_connect.{} = [\"x\"]\n", NAMES[*to]);
    }
    let callers: BTreeSet<String> = accepts.iter().map(|n| format!("\"{}\"", NAMES[*n])).collect();
    if !callers.is_empty() {
        let callers = callers.into_iter().collect::<Vec<_>>().join(", ");
        text += &format!("accepts = {{ x = {{ port = \"tcp:9\", from = [{callers}] }} }}\n");
    }
    text += "[peer.p]\nwireguard = \"bmV2ZXIgZ29pbmcgdG8gZ2l2ZSB5b3UgdXAgbmV2ZXI=\"\n";
    for (number, service) in services.iter().enumerate() {
        text += &format!("[service.{}]\nports = {{ x = \"tcp:1\" }}\noutbound = {}\n", NAMES[number], OUT[service.out]);
        text += &format!("sockets = {{ s = \"/run/{0}/{0}.sock\" }}\n", NAMES[number]);
        if let Some(to) = service.opens.filter(|to| *to != number) {
            text += &format!("open.{} = [\"s\"]\n", NAMES[to]);
        }
        for to in service.edges.iter().filter(|to| **to != number).collect::<BTreeSet<_>>() {
            text += &format!("connect.{} = [\"x\"]\n", NAMES[*to]);
        }
        text += &match EXPOSED[service.exposed] {
            "" => String::new(),
            "wireguard" => "expose.wireguard = { ports = [\"x\"], peers = [\"p\"] }\n".into(),
            way => format!("expose.{way}.ports = {{ \"{}\" = \"x\" }}\n", 1000 + number),
        };
    }
    text
}

/// Who is joined to whom, read off the graph's own lists and nothing else.
fn joined(graph: &AllowGraph) -> BTreeSet<(String, String)> {
    let mut joined: BTreeSet<(String, String)> =
        graph.edges().iter().map(|edge| (edge.from.to_string(), edge.to.to_string())).collect();
    joined.extend(graph.sockets().iter().map(|socket| (socket.from.to_string(), socket.to.to_string())));
    for service in graph.services() {
        let ways = [("wan", service.outbound.reaches_wan()), ("lan", service.outbound.reaches_lan())];
        joined
            .extend(ways.iter().filter(|(_, open)| *open).map(|(to, _)| (service.name.to_string(), (*to).to_owned())));
    }
    for exposure in graph.exposures() {
        let callers = match &exposure.way {
            Way::Lan { .. } => vec!["lan"],
            Way::WireGuard { .. } => vec!["wan", "p", "peers"],
            Way::Onion { .. } => vec!["wan"],
            // A neighbour reaches the machine's address as everybody does.
            Way::Clearnet { .. } | Way::Port { .. } => vec!["wan", "lan"],
        };
        // What comes in is another node than what is left for: no chain goes on from outside.
        joined.extend(callers.iter().map(|from| (format!("from {from}"), exposure.service.to_string())));
    }
    joined
}

/// The length of a shortest chain to everything, by multiplying the relation with itself.
fn closure(joined: &BTreeSet<(String, String)>, start: &str) -> BTreeMap<String, usize> {
    let mut length = BTreeMap::from([(start.to_owned(), 0)]);
    for step in 1..=joined.len() {
        let before: Vec<String> = length.keys().cloned().collect();
        for (from, to) in joined {
            if before.contains(from) && !length.contains_key(to) {
                length.insert(to.clone(), step);
            }
        }
    }
    length.remove(start);
    length
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every place is met in the layer of its shortest chain, and no other place is.
    #[test]
    fn what_is_met_is_the_closure_of_the_graph(policy in drawn(), hops in prop::option::of(1u32..5)) {
        let graph = graph(&text(&policy));
        let joined = joined(&graph);
        for name in NAMES.into_iter().chain(["host", "wan", "lan", "p", "peers"]) {
            let start = if matches!(name, "wan" | "lan" | "p" | "peers") { format!("from {name}") } else { name.into() };
            let mut expected = closure(&joined, &start);
            // Who asks what a place outside reaches does not ask for the place itself.
            expected.remove(name);
            let longer = expected.values().any(|length| hops.is_some_and(|hops| *length > hops as usize));
            expected.retain(|_, length| hops.is_none_or(|hops| *length <= hops as usize));
            let radius = from(&graph, name, hops);
            let met: BTreeMap<String, usize> = (1..)
                .zip(&radius.layers)
                .flat_map(|(layer, met)| met.iter().map(move |met| (met.node.to_string(), layer)))
                .collect();
            prop_assert_eq!(&met, &expected, "from {}\n{}", name, text(&policy));
            prop_assert_eq!(radius.goes_on, longer);
            for met in radius.layers.iter().flatten() {
                prop_assert!(!met.by.is_empty() && met.by.iter().all(|step| step.to == met.node));
            }
            let unmet: BTreeSet<String> = radius.unmet.iter().map(ToString::to_string).collect();
            let rest = NAMES.into_iter().filter(|other| *other != name && !met.contains_key(*other));
            prop_assert_eq!(unmet, rest.map(str::to_owned).collect::<BTreeSet<_>>());
        }
    }

    /// Both directions tell of the same chains.
    #[test]
    fn who_reaches_whom_is_the_same_from_either_end(policy in drawn()) {
        let graph = graph(&text(&policy));
        for one in NAMES {
            for other in NAMES.into_iter().filter(|other| *other != one) {
                let met = |radius: Radius, name: &str| radius.layers.iter().flatten().any(|met| met.node.to_string() == name);
                prop_assert_eq!(met(from(&graph, one, None), other), met(to(&graph, other), one));
                let ends = [one, other].map(|name| node(&graph, name, Direction::From).unwrap());
                let chain = chain(&graph, &ends[0], &ends[1]);
                prop_assert_eq!(!chain.is_empty(), met(from(&graph, one, None), other));
                prop_assert!(chain.windows(2).all(|pair| pair[0].to == pair[1].from));
            }
        }
    }
}
