//! The canonical form: equal bytes for equal meaning, other bytes for another one, and a policy itself.

mod files;

use std::collections::BTreeMap;

use files::{Kind, any_files, files, parse, sources};
use netns_policy::graph::AllowGraph;
use netns_policy::{Checked, Source};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde_json::Value;

fn read(text: &str) -> AllowGraph {
    AllowGraph::parse(&[Source::toml("policy.toml", format!("schema = 1\n{text}"))])
        .unwrap_or_else(|errors| panic!("{:#}\n{text}", errors.0[0]))
        .graph
}

fn again(graph: &AllowGraph) -> AllowGraph {
    let text = graph.canonical();
    AllowGraph::parse(&[Source::json("canonical.json", text.clone())])
        .unwrap_or_else(|errors| panic!("{:#}\n{text}", errors.0[0]))
        .graph
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    /// TOML to graph to canonical JSON to graph: nothing is lost and nothing comes in.
    #[test]
    fn the_canonical_form_is_a_policy_and_means_the_same(files in any_files()) {
        let toml = |source: Source| {
            let value: Value = serde_json::from_slice(&source.text).expect("it was made as JSON");
            let text = toml::to_string(&without_null(value)).expect("there is no null left");
            Source { text: text.into_bytes(), format: netns_policy::Format::Toml, ..source }
        };
        let files: Vec<Source> = sources(&files).into_iter().map(toml).collect();
        if let Ok(Checked { graph, .. }) = AllowGraph::parse(&files) {
            let second = again(&graph);
            prop_assert!(graph.means_the_same_as(&second), "{:#?}\n{:#?}", graph, second);
            prop_assert_eq!(graph.canonical(), second.canonical());
            let keys = |graph: &AllowGraph| graph.edges().iter().map(ToString::to_string).collect::<Vec<_>>();
            prop_assert_eq!(keys(&graph), keys(&second));
            let sockets = |graph: &AllowGraph| graph.sockets().iter().map(ToString::to_string).collect::<Vec<_>>();
            prop_assert_eq!(sockets(&graph), sockets(&second));
        }
    }

    /// Bytes are equal exactly where meaning is.
    #[test]
    fn equal_bytes_are_equal_meaning(one in files(Kind::Sound), other in files(Kind::Sound), at in any::<prop::sample::Index>()) {
        // One file of another policy instead of its own: most of it stays.
        let at = at.index(one.len().min(other.len()));
        let mut mixed = one.clone();
        mixed[at] = other[at].clone();
        if let (Ok(a), Ok(b)) = (parse(&one), parse(&mixed)) {
            prop_assert_eq!(a.graph.means_the_same_as(&b.graph), a.graph.canonical() == b.graph.canonical());
            prop_assert_eq!(a.graph.hash() == b.graph.hash(), a.graph.canonical() == b.graph.canonical());
        }
    }
}

fn without_null(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_null(value)))
            .collect(),
        other => other,
    }
}

const NODE: &str = r#"
network = { name = "n", pool4 = "10.231.0.0/22", lan = ["192.168.1.0/24"], resolvers = ["192.168.1.1"] }
defaults = { denied = "reject", log = true }
[service.a]
ports = { x = "tcp:80", y = "tcp:81" }
sockets = { s = "/run/a/s" }
private = ["y"]
tags = ["web"]
unit = "a.service"
outbound = { lan = ["192.168.1.9 tcp:1"], direct = ["tcp:443"] }
dns = "direct"
limits = { flows = 3 }
was = "old"
address4 = "10.231.0.9"
expose.onion = { ports = { "80" = "x" }, clients = ["phone"] }
expose.clearnet = { domain = "a.example.com", port = "x", challenge = "dns-01" }
expose.port.ports = { "8080" = "x" }
expose.wireguard = { ports = ["x"], peers = ["phone"] }
[service.b]
connect.a = ["x"]
open.a = ["s"]
[service.off]
enabled = false
[host]
may_connect.a = ["x"]
accepts.backup = { port = "tcp:8000", from = ["b"] }
[peer.phone]
wireguard = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
onion = "descriptor:x25519:N2NU7BSRL6YODZCYPN4CREB54TYLKGIE2KYOQWLFYC23ZJVCE5DQ"
[[never]]
from = ["b"]
to = ["a:y"]
except = ["host"]
why = "no"
path = true
hops = 3
[[test]]
name = "t"
from = "b"
can = ["a:x"]
cannot = ["a:y"]
"#;

#[test]
fn every_word_with_a_meaning_changes_the_hash() {
    let changes = [
        ("name = \"n\"", "name = \"m\""),
        ("10.231.0.0/22", "10.231.0.0/21"),
        ("192.168.1.0/24", "192.168.2.0/24"),
        ("resolvers = [\"192.168.1.1\"]", "resolvers = []"),
        ("lan = [\"192.168.1.0/24\"],", "lan = [\"192.168.1.0/24\"], ipv6 = false,"),
        ("lan = [\"192.168.1.0/24\"],", "lan = [\"192.168.1.0/24\"], pool6 = \"fd00::/64\","),
        ("\"reject\"", "\"drop\""),
        ("log = true", "log = false"),
        ("x = \"tcp:80\"", "x = \"tcp:82\""),
        ("y = \"tcp:81\"", "z = \"tcp:81\", y = \"tcp:83\""),
        ("/run/a/s", "/run/a/t"),
        ("private = [\"y\"]", ""),
        ("tags = [\"web\"]", ""),
        ("unit = \"a.service\"", "unit = \"b.service\""),
        ("192.168.1.9 tcp:1", "192.168.1.9 tcp:2"),
        ("direct = [\"tcp:443\"]", "direct = true"),
        ("dns = \"direct\"", "dns = \"names\""),
        ("flows = 3", "flows = 4"),
        ("flows = 3", "flows = 3, new_per_second = 3"),
        ("was = \"old\"", "was = \"older\""),
        ("10.231.0.9", "10.231.0.8"),
        ("{ \"80\" = \"x\" }", "{ \"81\" = \"x\" }"),
        (", clients = [\"phone\"]", ""),
        ("a.example.com", "b.example.com"),
        (", challenge = \"dns-01\"", ""),
        ("\"8080\" = \"x\"", "\"8081\" = \"x\""),
        ("peers = [\"phone\"]", "peers = []"),
        ("connect.a = [\"x\"]", "connect.a = [\"x\", \"tcp:7\"]"),
        ("open.a = [\"s\"]", ""),
        ("enabled = false", ""),
        ("may_connect.a = [\"x\"]", ""),
        ("tcp:8000", "tcp:8001"),
        ("from = [\"b\"] }", "from = [\"a\", \"b\"] }"),
        ("HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=", "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="),
        ("N2NU7BSR", "N2NU7BSS"),
        ("from = [\"b\"]\nto", "from = [\"a\", \"b\"]\nto"),
        ("to = [\"a:y\"]", "to = [\"a:y\", \"a:udp:1\"]"),
        ("except = [\"host\"]", ""),
        ("path = true\nhops = 3", ""),
        ("hops = 3", "hops = 4"),
        ("why = \"no\"", "why = \"oh\""),
        ("name = \"t\"", "name = \"u\""),
        ("can = [\"a:x\"]", ""),
        ("cannot = [\"a:y\"]", "cannot = [\"a:y\", \"host:tcp:9\"]"),
    ];
    let before = read(NODE);
    let mut seen = BTreeMap::from([(before.hash(), "nothing")]);
    assert!(again(&before).means_the_same_as(&before));
    for (old, new) in changes {
        assert!(NODE.contains(old), "{old}");
        let after = read(&NODE.replacen(old, new, 1));
        assert!(again(&after).means_the_same_as(&after), "{new}");
        if let Some(other) = seen.insert(after.hash(), if new.is_empty() { old } else { new }) {
            panic!("{new} hashes like {other}");
        }
    }
}

#[test]
fn no_word_without_a_meaning_changes_the_hash() {
    let before = read(NODE).hash();
    let changes = [
        ("defaults = { denied = \"reject\", log = true }", "# the defaults"),
        ("connect.a = [\"x\"]", "connect.\"@web\" = [\"x\"]"),
        ("connect.a = [\"x\"]", "connect.a = [\"tcp:80\", \"x\"]"),
        ("open.a = [\"s\"]", "open.\"@web\" = [\"s\"]"),
        ("to = [\"a:y\"]", "to = [\"@web:tcp:81\"]"),
        ("to = [\"a:y\"]", "to = [\"a:y\", \"off\"]"),
        ("from = [\"b\"]\nto", "from = [\"off\", \"b\"]\nto"),
        ("can = [\"a:x\"]", "can = [\"a:tcp:80\"]"),
        (
            "cannot = [\"a:y\"]",
            "cannot = [\"a:y\"]\n[[test]]\nname = \"t\"\nfrom = \"b\"\ncan = [\"a:x\"]\ncannot = [\"a:y\"]",
        ),
        ("ports = { x = \"tcp:80\", y = \"tcp:81\" }", "ports = { y = \"tcp:81\", x = \"tcp:80\" }\nvia_ok = true"),
        ("192.168.1.9 tcp:1", "192.168.1.9/32 tcp:1"),
        ("10.231.0.0/22\"", "10.231.0.0/22\", ipv6 = true"),
        ("enabled = false", "enabled = false\nports.p = \"tcp:1\"\nconnect.a = [\"x\"]"),
        ("[[never]]", "[[never]]\nfrom = [\"@idle\"]\nto = [\"a\"]\n[[never]]"),
    ];
    for (old, new) in changes {
        assert!(NODE.contains(old), "{old}");
        let text = format!("declare_tags = [\"idle\"]\n{}", NODE.replacen(old, new, 1));
        assert_eq!(read(&text).hash(), before, "{new}");
    }
    // One port under two names, and an edge that `outbound` makes anyhow.
    let two = "network.name = \"n\"\n[service.b]\nports = { y = \"tcp:81\", z = \"tcp:81\" }\n[service.a]\nconnect.b = [\"y\"]\n";
    assert_eq!(read(two).hash(), read(&two.replace("[\"y\"]", "[\"z\"]")).hash());
    let tor = "network.name = \"n\"\n[service.tor]\nrole = \"tor\"\nports.socks = \"tcp:9050\"\n[service.a]\noutbound = \"tor\"\n";
    assert_eq!(read(tor).hash(), read(&format!("{tor}connect.tor = [\"socks\"]\n")).hash());
    let moved = "[extend.a]\nunit = \"a.service\"\ntags = [\"web\"]\n";
    let parts = [
        Source::toml(
            "a.toml",
            format!("schema = 1\n{}", NODE.replace("unit = \"a.service\"\n", "").replace("tags = [\"web\"]\n", "")),
        ),
        Source::toml("b.toml", format!("schema = 1\n{moved}")),
        Source { trust: netns_policy::Trust::Vendor, ..Source::toml("c.toml", "schema = 1\nfragment = 'f'\n") },
    ];
    assert_eq!(AllowGraph::parse(&parts).unwrap().graph.hash(), before);
}

#[test]
fn the_form_is_json_on_one_line_with_sorted_keys_and_its_digest_is_that_of_its_bytes() {
    let graph = read("network.name = \"n\"\n[service.b]\n[service.a]\nports = { z = \"tcp:1\" }\n");
    assert_eq!(
        graph.canonical(),
        concat!(
            r#"{"defaults":{"denied":"reject","log":true},"host":{"accepts":{},"may_connect":{}},"#,
            r#""network":{"lan":[],"name":"n","pool4":"10.231.0.0/22","pool6":"fd1b:16b1:df53::/64","resolvers":[]},"never":[],"peer":{},"schema":1,"#,
            r#""service":{"a":{"connect":{},"dns":"none","expose":{},"open":{},"outbound":"none","ports":{"z":"tcp:1"},"private":[],"sockets":{},"tags":[]},"#,
            r#""b":{"connect":{},"dns":"none","expose":{},"open":{},"outbound":"none","ports":{},"private":[],"sockets":{},"tags":[]}},"test":[]}"#
        )
    );
    // printf %s "$canonical" | sha256sum
    assert_eq!(graph.hash(), "1b3153ecd78771a22d1e98d6fa71f09550086c29c4f13aba3b1b8309b6edd249");
}

#[test]
fn the_examples_survive() {
    for example in ["bitcoin-node", "nix-bitcoin", "umbrel"] {
        let path = format!("{}/../examples/policies/{example}.toml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let graph = AllowGraph::parse(&[Source::toml(example, text)]).unwrap().graph;
        assert!(again(&graph).means_the_same_as(&graph), "{example}");
        assert_eq!(again(&graph).hash(), graph.hash(), "{example}");
        let read = AllowGraph::parse(&[Source::json("canonical.json", graph.canonical())]).unwrap();
        assert!(read.warnings.iter().all(|warning| warning.code() != "W0222"), "{example} says something twice");
    }
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let held = (0..100).filter(|_| parse(&any_files().new_tree(&mut runner).unwrap().current()).is_ok()).count();
    assert!(held > 20, "{held} of 100 drawn policies hold");
}
