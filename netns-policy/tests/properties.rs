//! Laws of the language: TOML and JSON say the same, merging has no order, and no text makes it fall over.

use netns_policy::graph::AllowGraph;
use netns_policy::{Checked, PolicyErrors, Source};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde_json::{Map, Value, json};

const NAMES: [&str; 6] = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"];
const PORTS: [(&str, &str); 4] = [("p", "tcp:80"), ("q", "tcp:81"), ("u", "udp:80"), ("r", "tcp:90-99")];

/// One service. In a `wild` one some of what is drawn is wrong, so that mistakes are compared as well.
fn service(index: usize, wild: bool) -> impl Strategy<Value = Value> {
    let mut targets = vec!["@web", "@db"];
    targets.extend(NAMES.iter().enumerate().filter(|(other, _)| wild || *other != index).map(|(_, name)| *name));
    let mut ports = vec!["p", "q", "u", "tcp:80", "tcp:p", "udp:53-54"];
    if wild {
        targets.push("golf");
        ports.push("w");
    }
    let connect = prop::collection::vec(prop::sample::select(ports), 0..3);
    let connect = prop::collection::btree_map(prop::sample::select(targets), connect, 0..4);
    let tags = prop::sample::subsequence(vec!["web", "db"], if wild || index > 0 { 0 } else { 2 }..=2);
    let outbound = prop::sample::select(vec![
        json!("none"),
        json!(["lan", "direct"]),
        json!({"direct": ["tcp:443"], "lan": ["192.168.1.20/32 tcp:5000", "udp:53"]}),
        json!("tor"),
    ]);
    let ports = prop::sample::subsequence(PORTS.to_vec(), if wild { 1 } else { 4 }..=4);
    (connect, tags, outbound, prop::bool::weighted(0.8), ports).prop_map(
        move |(connect, tags, outbound, enabled, ports)| {
            let ports: Map<String, Value> = ports.into_iter().map(|(name, port)| (name.into(), json!(port))).collect();
            let expose = if index.is_multiple_of(2) { json!({"onion": {"ports": {"80": "p"}}}) } else { json!({}) };
            json!({"connect": connect, "tags": tags, "outbound": outbound, "enabled": enabled, "ports": ports, "expose": expose})
        },
    )
}

fn policy_of(wild: bool) -> impl Strategy<Value = Value> {
    let services = (0..NAMES.len()).map(|index| service(index, wild)).collect::<Vec<_>>();
    (services, any::<bool>()).prop_map(move |(services, with_tor)| {
        let mut services: Map<String, Value> = NAMES.iter().map(|n| (*n).to_owned()).zip(services).collect();
        if with_tor || !wild {
            services.insert("tor".into(), json!({"role": "tor", "outbound": "direct", "ports": {"socks": "tcp:9050"}}));
        }
        json!({"schema": 1, "network": {"name": "node", "lan": ["192.168.1.0/24"]}, "service": services})
    })
}

/// A policy, as one value; about half of them hold.
fn policy() -> impl Strategy<Value = Value> {
    prop_oneof![policy_of(true), policy_of(false)]
}

#[test]
fn policies_that_should_hold_do() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..100 {
        let policy = policy_of(false).new_tree(&mut runner).expect("it can be drawn").current();
        if let Err(errors) = AllowGraph::parse(&[Source::json("policy", policy.to_string())]) {
            panic!("{:#}", errors.0[0]);
        }
    }
}

/// The policy with every service in a file of its own.
fn split(policy: &Value) -> Vec<Source> {
    let main = json!({"schema": 1, "network": policy["network"]});
    let services = policy["service"].as_object().expect("it was made as one");
    let drop_ins = services.iter().map(|(name, service)| {
        Source::json(format!("{name}.json"), json!({"schema": 1, "service": {name: service}}).to_string())
    });
    std::iter::once(Source::json("main.json", main.to_string())).chain(drop_ins).collect()
}

fn codes(errors: &PolicyErrors) -> Vec<String> {
    let mut codes: Vec<String> = errors.iter().map(|error| format!("{} {error}", error.code())).collect();
    codes.sort();
    codes
}

fn same(a: &Result<Checked, PolicyErrors>, b: &Result<Checked, PolicyErrors>) -> Result<(), TestCaseError> {
    match (a, b) {
        (Ok(a), Ok(b)) => prop_assert!(a.graph.same_as(&b.graph), "{:#?}\n{:#?}", a.graph, b.graph),
        // More than are reported: which ones they are depends on where they stand.
        (Err(a), Err(b)) if a.0.len() == PolicyErrors::MOST => prop_assert_eq!(b.0.len(), a.0.len()),
        (Err(a), Err(b)) => prop_assert_eq!(codes(a), codes(b)),
        _ => prop_assert!(false, "one is refused, the other is not"),
    }
    Ok(())
}

fn make(is_toml: bool, text: &str) -> Source {
    if is_toml { Source::toml("policy", text) } else { Source::json("policy", text) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn toml_and_json_of_a_policy_are_equal(policy in policy()) {
        let toml = toml::to_string(&policy).expect("there is no null in it");
        let json = serde_json::to_string_pretty(&policy).expect("it is a value");
        let toml = AllowGraph::parse(&[Source::toml("policy", toml)]);
        let json = AllowGraph::parse(&[Source::json("policy", json)]);
        same(&toml, &json)?;
    }

    #[test]
    fn the_order_of_files_does_not_matter(policy in policy(), seed in any::<prop::sample::Index>()) {
        let mut files = split(&policy);
        let forward = AllowGraph::parse(&files);
        let turn = seed.index(files.len());
        files.rotate_left(turn);
        files.reverse();
        let shuffled = AllowGraph::parse(&files);
        match (&forward, &shuffled) {
            (Ok(a), Ok(b)) => prop_assert_eq!(&a.graph, &b.graph),
            (Err(a), Err(b)) => prop_assert_eq!(
                a.iter().map(|e| format!("{e:#}")).collect::<Vec<_>>(),
                b.iter().map(|e| format!("{e:#}")).collect::<Vec<_>>()
            ),
            _ => prop_assert!(false, "one is refused, the other is not"),
        }
    }

    #[test]
    fn one_file_and_many_say_the_same(policy in policy()) {
        let whole = AllowGraph::parse(&[Source::json("main.json", policy.to_string())]);
        let parts = AllowGraph::parse(&split(&policy));
        same(&whole, &parts)?;
    }

    #[test]
    fn every_edge_of_a_graph_keeps_its_promises(policy in policy()) {
        if let Ok(Checked { graph, .. }) = AllowGraph::parse(&[Source::json("policy.json", policy.to_string())]) {
            for edge in graph.edges() {
                prop_assert_ne!(edge.from.to_string(), edge.to.to_string());
                for end in [edge.from.to_string(), edge.to.to_string()] {
                    prop_assert!(graph.service(&end).is_some(), "{} has an end that is not there", edge);
                }
            }
            prop_assert!(graph.edges().windows(2).all(|pair| pair[0].key() < pair[1].key()));
        }
    }

    #[test]
    fn no_bytes_make_it_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for source in [Source::toml("p", bytes.clone()), Source::json("p", bytes)] {
            if let Err(errors) = AllowGraph::parse(&[source]) {
                prop_assert!(!errors.0.is_empty());
                errors.iter().for_each(|error| drop(format!("{error:#}")));
            }
        }
    }

    /// A good file with a wound: what is said about it points into the file.
    #[test]
    fn a_wounded_file_is_refused_or_read(at in any::<prop::sample::Index>(), cut in 0usize..40, put in "[\\PC\\n\"\\[\\]{}=]{0,6}") {
        const NODE: &str = include_str!("../../examples/policies/bitcoin-node.toml");
        let json = serde_json::to_string_pretty(&toml::from_str::<toml::Value>(NODE).expect("it is TOML")).expect("and JSON");
        for (text, is_toml) in [(NODE, true), (&json, false)] {
            let mut bytes = text.as_bytes().to_vec();
            let start = at.index(bytes.len());
            let end = (start + cut).min(bytes.len());
            bytes.splice(start..end, put.bytes());
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Err(errors) = AllowGraph::parse(&[make(is_toml, &text)]) {
                prop_assert!(!errors.0.is_empty());
                for error in errors.iter() {
                    prop_assert!(error.at().span.end <= text.len());
                    prop_assert!(text.lines().count() as u32 + 1 >= error.at().line);
                }
            }
        }
    }

    /// Where serde_json and this reader differ, this one refuses.
    #[test]
    fn json_is_read_as_serde_reads_it(text in "[\\[\\]{}\",:0-9a-z\\\\.eE+ -]{0,40}") {
        let whole = format!("{{\"schema\": 1, \"network\": {{\"name\": \"n\"}}, \"x\": {text}}}");
        let refuses = serde_json::from_str::<Value>(&whole).is_err();
        if let Err(errors) = AllowGraph::parse(&[Source::json("p", whole.clone())]) {
            let syntax = errors.iter().any(|error| error.code() == "E0107");
            prop_assert!(syntax || !refuses, "{} was taken for JSON", whole);
        } else {
            prop_assert!(!refuses, "{} was taken for JSON", whole);
        }
    }
}
