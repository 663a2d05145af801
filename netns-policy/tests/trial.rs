//! `[[test]]` and `[[never]]`, told one by one.

use netns_policy::Source;
use netns_policy::graph::AllowGraph;
use netns_policy::trial::{Goal, Kind, Trial};
use proptest::prelude::*;

fn trials(text: &str) -> Vec<Trial> {
    AllowGraph::trials(&[Source::toml("policy.toml", text)]).unwrap_or_else(|e| panic!("{e:?}\n{text}"))
}

fn parses(text: &str) -> bool {
    AllowGraph::parse(&[Source::toml("policy.toml", text)]).is_ok()
}

const SHOP: &str = r#"schema = 1
network = { name = "shop", lan = ["192.168.1.0/24"] }

[service.db]
ports = { sql = "tcp:5432" }

[service.web]
ports = { http = "tcp:8080" }
connect.db = ["sql"]
outbound = "direct"

[service.off]
enabled = false
"#;

#[test]
fn each_claim_is_told_with_what_allows_it_or_would() {
    let rest = r#"
[[test]]
name = "all of it"
from = "web"
can = ["db:sql", "wan", "lan", "off", "metadata"]
cannot = ["db", "host", "ip6:link-local"]
"#;
    let trials = trials(&format!("{SHOP}{rest}"));
    let told = trials[0].claims.iter().map(|claim| format!("{} {} ({})", claim.holds, claim.what, claim.reason));
    insta::assert_snapshot!(told.collect::<Vec<_>>().join("\n"));
    assert_eq!((trials[0].title().as_str(), trials[0].kind), ("test \"all of it\"", Kind::Test));
    let asks: Vec<_> = trials[0].claims.iter().map(|claim| claim.asks.clone().unwrap()).collect();
    assert_eq!((asks[0].ports.unwrap().to_string(), asks[0].can), ("tcp:5432".into(), true));
    assert_eq!((&asks[1].to, &asks[2].to, &asks[4].to), (&Goal::Wan, &Goal::Lan, &Goal::Metadata));
    assert_eq!((&asks[7].to, asks[7].can), (&Goal::LinkLocal, false));
}

#[test]
fn an_invariant_that_holds_is_one_claim_and_one_that_does_not_is_a_claim_for_each_chain() {
    let never =
        |from: &str, to: &str| format!("{SHOP}\n[[never]]\nfrom = [\"{from}\"]\nto = [\"{to}\"]\npath = true\n");
    let holds = trials(&never("db", "web"));
    assert_eq!((holds[0].claims.len(), holds[0].holds(), holds[0].kind), (1, true, Kind::Never));
    assert_eq!(holds[0].title(), "never at policy.toml:15");
    let broken = trials(&never("web", "db\", \"wan"));
    let chains: Vec<_> = broken[0].claims.iter().map(|claim| claim.reason.as_str()).collect();
    assert_eq!(chains, ["web -> db:sql", "web -> wan"]);
    assert!(!broken[0].holds());
}

#[test]
fn nothing_is_said_of_a_policy_that_is_wrong_otherwise() {
    let wrong = format!("{SHOP}\n[[test]]\nfrom = \"web\"\ncan = [\"db:sqll\"]\n");
    let errors = AllowGraph::trials(&[Source::toml("policy.toml", wrong)]).unwrap_err();
    assert_eq!(errors.iter().map(|error| error.code()).collect::<Vec<_>>(), ["E0204"]);
    let empty = AllowGraph::trials(&[]).unwrap_err();
    assert_eq!(empty.iter().next().unwrap().code(), "E0111");
}

proptest! {
    /// A policy is accepted exactly when each of its trials holds.
    #[test]
    fn what_check_refuses_some_trial_tells(
        edges in prop::collection::btree_set((0usize..3, 0usize..3), 0..6),
        tests in prop::collection::vec((0usize..3, 0usize..3, any::<bool>()), 0..4),
        nevers in prop::collection::vec((0usize..3, 0usize..3, any::<bool>()), 0..3),
    ) {
        let name = |n: usize| ["a", "b", "c"][n];
        let mut text = String::from("schema = 1\nnetwork.name = \"n\"\n");
        for service in 0..3 {
            text += &format!("[service.{}]\nports = {{ x = \"tcp:1\" }}\n", name(service));
            for (_, to) in edges.iter().filter(|(from, to)| *from == service && to != from) {
                text += &format!("connect.{} = [\"x\"]\n", name(*to));
            }
        }
        for (from, to, can) in &tests {
            let word = if *can { "can" } else { "cannot" };
            text += &format!("[[test]]\nfrom = \"{}\"\n{word} = [\"{}:x\"]\n", name(*from), name(*to));
        }
        for (from, to, path) in &nevers {
            text += &format!("[[never]]\nfrom = [\"{}\"]\nto = [\"{}\"]\npath = {path}\n", name(*from), name(*to));
        }
        let trials = trials(&text);
        prop_assert_eq!(trials.len(), tests.len() + nevers.len());
        prop_assert_eq!(trials.iter().all(Trial::holds), parses(&text), "{}", text);
        prop_assert!(trials.is_sorted_by_key(|trial| trial.at.clone()));
    }
}
