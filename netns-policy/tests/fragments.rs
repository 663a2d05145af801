//! A fragment may define services and ask. It opens nothing, by whatever words; an operator opens it, by the same words.

use std::collections::BTreeSet;

use netns_policy::ask::Answer;
use netns_policy::graph::AllowGraph;
use netns_policy::{Checked, PolicyErrors, Source, Trust};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A machine with everything that a fragment could lean on: tags that edges, the host and an invariant speak of, a
/// default way out, a tor service, a socket, a peer, an address that is recorded under an old name.
const MACHINE: &str = r#"
schema = 1
network = { name = "node", lan = ["192.168.1.0/24"] }
defaults = { outbound = "tor", dns = "tor" }
[service.bitcoind]
ports = { rpc = "tcp:8332", p2p = "tcp:8333" }
sockets = { ctl = "/run/bitcoind/ctl" }
private = ["rpc"]
tags = ["chain"]
[service.wallet]
ports = { http = "tcp:80" }
tags = ["web"]
connect."@chain" = ["p2p"]
[service.nginx]
ports = { https = "tcp:443" }
connect."@web" = ["http"]
open."@chain" = ["ctl"]
[service.tor]
role = "tor"
outbound = "direct"
ports = { socks = "tcp:9050", dns = "udp:9053" }
[host]
may_connect."@web" = ["http"]
accepts.backup = { port = "tcp:8000", from = ["@chain"] }
[peer.phone]
wireguard = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
[[never]]
from = ["nginx"]
to = ["bitcoind:rpc"]
except = ["@chain"]
path = true
"#;

fn operator(name: &str, text: impl Into<String>) -> Source {
    Source::toml(name, text.into())
}

fn vendor(text: impl Into<String>) -> Source {
    Source { trust: Trust::Vendor, ..operator("/usr/lib/nsctl/policy.d/50-evil.toml", text) }
}

fn with(more: &[Source]) -> Result<Checked, PolicyErrors> {
    AllowGraph::parse(&[&[operator("/etc/nsctl/policy.toml", MACHINE)], more].concat())
}

fn shown(result: &Result<Checked, PolicyErrors>) -> String {
    match result {
        Ok(checked) => checked.graph.edges().iter().map(|edge| format!("{edge}\n")).collect(),
        Err(errors) => errors.iter().map(|error| format!("{error:#}\n")).collect(),
    }
}

/// Everything that a graph opens, closes or gives, each as a line.
fn rights(graph: &AllowGraph) -> BTreeSet<String> {
    let mut rights: BTreeSet<String> = graph.edges().iter().map(ToString::to_string).collect();
    rights.extend(graph.sockets().iter().map(ToString::to_string));
    rights.extend(graph.exposures().iter().map(ToString::to_string));
    rights.extend(graph.peers().map(|peer| format!("peer {}", peer.name)));
    rights.extend(graph.nevers().iter().map(|never| format!("never {:?}", never.why)));
    for service in graph.services() {
        let name = &service.name;
        let out = &service.outbound;
        let claims = [
            ("tor", out.tor),
            ("lan", out.reaches_lan()),
            ("wan", out.reaches_wan()),
            ("the role", service.is_tor),
            ("an old name", service.was.is_some()),
            ("an address", service.address4.is_some() || service.address6.is_some()),
            ("a tag", !service.tags.is_empty()),
        ];
        rights.extend(claims.iter().filter(|(_, has)| *has).map(|(what, _)| format!("{name} has {what}")));
        rights.insert(format!("{name} resolves by {:?}", service.dns));
    }
    rights.remove("evil resolves by None");
    rights
}

/// What a fragment might try, where the operator could write the same.
const ATTACKS: &[(&str, &str)] = &[
    ("an edge", "[service.evil]\nconnect.bitcoind = ['rpc']\n"),
    ("an edge by number", "[service.evil]\nconnect.bitcoind = ['tcp:22']\n"),
    ("an edge by tag", "[service.evil]\nconnect.'@chain' = ['rpc']\n"),
    (
        "an edge to its own by another of its own",
        "[service.evil]\nports.x = 'tcp:1'\n[service.evil2]\nconnect.evil = ['x']\n",
    ),
    ("a socket", "[service.evil]\nopen.bitcoind = ['ctl']\n"),
    ("a socket by tag", "[service.evil]\nopen.'@chain' = ['ctl']\n"),
    ("out", "[service.evil]\noutbound = 'direct'\n"),
    ("out to the lan", "[service.evil]\noutbound = ['lan']\n"),
    ("out by tor", "[service.evil]\noutbound = 'tor'\n"),
    ("out on a port", "[service.evil]\noutbound.direct = ['tcp:443']\n"),
    ("out to a prefix", "[service.evil]\noutbound.lan = ['192.168.1.1 tcp:80']\n"),
    ("names outside", "[service.evil]\noutbound = 'none'\ndns = 'direct'\n"),
    ("names by tor", "[service.evil]\noutbound = 'none'\ndns = 'tor'\n"),
    ("in by onion", "[service.evil]\nports.x = 'tcp:1'\nexpose.onion.ports = { '80' = 'x' }\n"),
    ("in by port", "[service.evil]\nports.x = 'tcp:1'\nexpose.port.ports = { '80' = 'x' }\n"),
    ("in by lan", "[service.evil]\nports.x = 'tcp:1'\nexpose.lan.ports = { '80' = 'x' }\n"),
    ("in by domain", "[service.evil]\nports.x = 'tcp:1'\nexpose.clearnet = { domain = 'a.example.com', port = 'x' }\n"),
    ("in for a peer", "[service.evil]\nports.x = 'tcp:1'\nexpose.wireguard = { ports = ['x'], peers = ['phone'] }\n"),
    (
        "a tag that the host accepts from",
        "[service.evil]\ntags = ['chain']\nports.p2p = 'tcp:1'\nsockets.ctl = '/run/evil/ctl'\n",
    ),
    ("a tag that others connect to", "[service.evil]\nports.http = 'tcp:80'\ntags = ['web']\n"),
    ("an address", "[service.evil]\naddress4 = '10.231.0.9'\n"),
    ("an address of IPv6", "network.pool6 = 'fd00::/64'\n[service.evil]\naddress6 = 'fd00::9'\n"),
    ("the address of one who is gone", "[service.evil]\nwas = 'old-lnd'\n"),
    ("what the host accepts", "[service.evil]\n[host]\naccepts.ssh = { port = 'tcp:22', from = ['evil'] }\n"),
    ("what the host may reach", "[service.evil]\nports.x = 'tcp:1'\n[host]\nmay_connect.evil = ['x']\n"),
    ("a peer", "[service.evil]\n[peer.evil-phone]\n"),
    ("more of another service", "[service.evil]\nports.x = 'tcp:1'\n[extend.bitcoind]\nconnect.evil = ['x']\n"),
    ("an exposure of another service", "[service.evil]\n[extend.bitcoind]\nexpose.onion.ports = { '8333' = 'p2p' }\n"),
    ("more of its own service", "[service.evil]\n[extend.evil]\nconnect.bitcoind = ['rpc']\n"),
    ("an invariant", "[service.evil]\n[[never]]\nfrom = ['evil']\nto = ['wan']\n"),
];

#[test]
fn no_word_of_a_fragment_opens_what_the_same_word_of_an_operator_opens() {
    let before = rights(&with(&[]).unwrap().graph);
    for (title, text) in ATTACKS {
        let theirs = with(&[vendor(format!("schema = 1\nfragment = 'evil'\n{text}"))]);
        let codes: Vec<&str> = theirs.as_ref().err().iter().flat_map(|e| e.iter().map(|e| e.code())).collect();
        assert!(!codes.is_empty() && codes.iter().all(|code| *code == "E0303"), "{title}:\n{}", shown(&theirs));
        // The same words in the mouth of an operator: they do open something.
        let ours = with(&[operator("/etc/nsctl/policy.d/50-evil.toml", format!("schema = 1\n{text}"))]);
        let opened = ours.as_ref().map(|checked| rights(&checked.graph)).unwrap_or_default();
        assert!(opened.difference(&before).next().is_some(), "{title} is no attack:\n{}", shown(&ours));
        // A fragment of the operator's own is one as well, whatever directory it lies in.
        let own =
            with(&[operator("/etc/nsctl/policy.d/50-evil.toml", format!("schema = 1\nfragment = 'evil'\n{text}"))]);
        assert!(own.is_err_and(|errors| errors.iter().all(|error| error.code() == "E0303")), "{title}");
    }
}

/// What a fragment might take from those who are there already. Nobody may, whoever says it.
#[test]
fn a_fragment_takes_nobodys_place() {
    let attacks = [
        ("the name of a service", "E0301", "[service.bitcoind]\nports.rpc = 'tcp:1'\n"),
        ("the name of a peer", "E0210", "[service.phone]\n"),
        ("the name of a tag", "E0210", "[service.chain]\n"),
        ("the path of a socket", "E0232", "[service.evil]\nsockets.x = '/run/bitcoind/ctl'\n"),
        ("the unit of a service", "E0225", "[service.evil]\nunit = 'bitcoind.service'\n"),
        ("the role of tor", "E0303", "[service.evil]\nrole = 'tor'\nports.socks = 'tcp:1'\n"),
        ("an old name", "E0229", "[service.evil]\nwas = 'bitcoind'\n"),
        ("the word of the operator", "E0303", "[service.evil]\nvia_ok = true\n"),
        ("a default", "E0303", "defaults.log = false\n[service.evil]\n"),
        ("the network", "E0303", "network.resolvers = ['192.0.2.1']\n[service.evil]\n"),
        ("a tag that was misspelt", "E0303", "declare_tags = ['wbe']\n[service.evil]\n"),
        ("a verdict", "E0303", "[service.evil]\n[[test]]\nfrom = 'evil'\ncannot = ['wan']\n"),
    ];
    let unit = operator("/etc/nsctl/policy.d/unit.toml", "schema = 1\n[extend.bitcoind]\nunit = 'bitcoind.service'\n");
    for (title, code, text) in attacks {
        let result = with(&[vendor(format!("schema = 1\nfragment = 'evil'\n{text}")), unit.clone()]);
        let codes: BTreeSet<&str> = result.as_ref().err().iter().flat_map(|e| e.iter().map(|e| e.code())).collect();
        // `was` is refused by its key alone, before anybody asks whose name it is.
        let code = if title == "an old name" { "E0303" } else { code };
        assert!(codes.contains(code), "{title}:\n{}", shown(&result));
    }
    let harmless =
        vendor("schema = 1\nfragment = 'evil'\n[service.evil]\nsockets.x = '/run/evil/x'\nunit = 'evil.service'\n");
    assert!(with(&[harmless, unit]).is_ok());
}

#[test]
fn a_file_of_a_package_must_say_whose_it_is() {
    let text = "[service.evil]\nconnect.bitcoind = ['rpc']\n";
    let errors = with(&[vendor(format!("schema = 1\n{text}"))]).unwrap_err();
    let codes: Vec<&str> = errors.iter().map(|error| error.code()).collect();
    assert_eq!(codes, ["E0115", "E0303"], "it is held to what a fragment may say all the same");
    assert!(with(&[vendor("schema = 1\nfragment = 'evil'\n[service.evil]\n")]).is_ok());
    let twice = [
        vendor("schema = 1\nfragment = 'evil'\n[service.evil]\n"),
        operator("/etc/nsctl/policy.d/more.toml", "schema = 1\nfragment = 'evil'\n[service.evil2]\n"),
    ];
    assert_eq!(with(&twice).unwrap_err().0[0].code(), "E0301", "one fragment is one file");
}

const CHARGE: &str = "schema = 1\nfragment = 'charge'\n[service.charge]\nports.x = 'tcp:1'\n\
    wants.bitcoind = { ports = ['rpc', 'tcp:p2p'], sockets = ['ctl'], why = 'sets fees' }\nwants.wallet = ['http']\n";

fn answers(checked: &Checked) -> Vec<String> {
    let answer = |answer| match answer {
        Answer::Granted => "granted",
        Answer::Moot => "moot",
        Answer::Open => "open",
    };
    checked.asks.iter().map(|ask| format!("{ask} {}", answer(ask.answer))).collect()
}

#[test]
fn what_a_fragment_asks_for_is_open_until_the_operator_answers() {
    let asked = with(&[vendor(CHARGE)]).unwrap();
    let all = ["bitcoind:rpc", "bitcoind:tcp:p2p", "bitcoind:unix:ctl", "wallet:http"];
    assert_eq!(answers(&asked), all.map(|what| format!("charge -> {what} open")));
    assert_eq!(asked.asks[0].why.as_deref(), Some("sets fees"));
    assert_eq!(rights(&asked.graph).difference(&rights(&with(&[]).unwrap().graph)).count(), 1, "that it is there");
    let grant = "schema = 1\n[extend.charge]\nfragment = 'charge'\nconnect.bitcoind = ['rpc', 'p2p']\nopen.bitcoind = ['ctl']\n";
    let granted = with(&[vendor(CHARGE), operator("/etc/nsctl/policy.d/90-nsctl.toml", grant)]).unwrap();
    assert_eq!(
        answers(&granted),
        [
            "charge -> bitcoind:rpc granted",
            "charge -> bitcoind:tcp:p2p granted",
            "charge -> bitcoind:unix:ctl granted",
            "charge -> wallet:http open"
        ]
    );
    let edges: Vec<String> = granted.graph.edges().iter().map(ToString::to_string).collect();
    assert!(edges.contains(&"charge -> bitcoind:rpc".to_owned()), "{edges:?}");
    assert_eq!(granted.graph.sockets()[0].to_string(), "charge -> bitcoind:unix:ctl");
}

#[test]
fn what_nobody_can_answer_is_inert_and_told_unless_it_is_optional() {
    let asks = "schema = 1\nfragment = 'x'\n[service.x]\nwants.electrs = ['rpc']\nwants.bitcoind = ['rcp']\nwants.off = ['x']\n";
    let off = operator("off.toml", "schema = 1\n[service.off]\nenabled = false\nports.x = 'tcp:1'\n");
    let checked = with(&[vendor(asks), off.clone()]).unwrap();
    assert!(checked.asks.iter().all(|ask| ask.answer == Answer::Moot), "{:?}", answers(&checked));
    let told: Vec<String> = checked.warnings.iter().map(|w| format!("{} {w}", w.code())).collect();
    assert_eq!(
        told,
        [
            "W0308 x asks for electrs:rpc, and there is no such service",
            "W0308 x asks for bitcoind:rcp, and it has no such port",
            "W0308 x asks for off:x, and that service is switched off",
        ]
    );
    let optional = asks.replace("['", "{ optional = true, ports = ['").replace("']", "'] }");
    assert!(with(&[vendor(optional), off]).unwrap().warnings.is_empty());
}

#[test]
fn a_fragment_asks_for_no_word_no_tag_and_not_for_itself() {
    for (code, want) in [("E0211", "host"), ("E0211", "wan"), ("E0110", "'@chain'"), ("E0203", "x"), ("E0212", "'a b'")]
    {
        let errors = with(&[vendor(format!("schema = 1\nfragment = 'x'\n[service.x]\nwants.{want} = ['rpc']\n"))]);
        assert_eq!(errors.unwrap_err().0[0].code(), code, "{want}");
    }
    let any = with(&[vendor("schema = 1\nfragment = 'x'\n[service.x]\nwants.bitcoind = ['rpc']\n")]);
    assert_eq!(any.unwrap().asks.len(), 1);
}

#[test]
fn a_grant_is_for_one_fragment_and_outlives_it_without_harm() {
    let grant = operator(
        "/etc/nsctl/policy.d/90-nsctl.toml",
        "schema = 1\n[extend.charge]\nfragment = 'charge'\nconnect.bitcoind = ['rpc']\nconnect.gone = ['x']\n",
    );
    let codes = |result: Result<Checked, PolicyErrors>| -> Vec<&'static str> {
        match result {
            Ok(checked) => checked.warnings.iter().map(|w| w.code()).collect(),
            Err(errors) => errors.iter().map(|e| e.code()).collect(),
        }
    };
    assert_eq!(codes(with(&[vendor(CHARGE), grant.clone()])), ["W0309"], "a target that went, or never came");
    assert_eq!(codes(with(std::slice::from_ref(&grant))), ["W0309"], "the package went");
    // Another package, and an operator, that take the name do not take what was granted.
    let other = vendor(CHARGE.replace("fragment = 'charge'", "fragment = 'other'"));
    assert_eq!(codes(with(&[other, grant.clone()])), ["E0306"]);
    let own = operator("own.toml", "schema = 1\n[service.charge]\n");
    assert_eq!(codes(with(&[own.clone(), grant])), ["E0306"]);
    let plain = operator("plain.toml", "schema = 1\n[extend.charge]\nconnect.bitcoind = ['rpc']\n");
    assert_eq!(codes(with(&[own, plain])), [] as [&str; 0]);
}

#[test]
fn a_grant_is_at_one_target_and_nobody_gains_it_by_that_target_s_name() {
    let grant = |more: &str| {
        let text = "schema = 1\n[extend.charge]\nfragment = 'charge'\nconnect.lnd = ['rpc']\nopen.lnd = ['ctl']\n";
        operator("/etc/nsctl/policy.d/90-nsctl.toml", format!("{text}{more}"))
    };
    let charge = || vendor("schema = 1\nfragment = 'charge'\n[service.charge]\nwants.lnd = ['rpc']\n");
    let lnd = "[service.lnd]\nports.rpc = 'tcp:10009'\nsockets.ctl = '/run/lnd/ctl'\n";
    let own = || operator("/etc/nsctl/policy.d/lnd.toml", format!("schema = 1\n{lnd}"));
    let theirs = |name: &str| Source {
        name: "/usr/lib/nsctl/policy.d/60-theirs.toml".into(),
        ..vendor(format!("schema = 1\nfragment = '{name}'\n{lnd}"))
    };
    let gained = |more: &[Source]| {
        let checked = with(&[&[charge()], more].concat()).unwrap();
        let gained = rights(&checked.graph).iter().filter(|right| right.starts_with("charge -> ")).count();
        (gained, checked.warnings.iter().map(|warning| format!("{} {warning}", warning.code())).collect::<Vec<_>>())
    };
    let of_lnd = "of.lnd = 'lnd'\n";
    assert_eq!(gained(&[grant(""), own()]), (2, vec![]), "the control: the operator's");
    assert_eq!(gained(&[grant(of_lnd), theirs("lnd")]), (2, vec![]), "the control: that package's");
    for (title, more, told) in [
        ("a package takes the name of the operator's", [grant(""), theirs("evil")], "`evil`"),
        ("a package takes the name of another's", [grant(of_lnd), theirs("evil")], "`evil`"),
        ("the operator takes the name of a package's", [grant(of_lnd), own()], "the operator defines"),
    ] {
        let (gained, warnings) = gained(&more);
        assert_eq!(gained, 0, "{title}");
        assert_eq!(warnings.iter().filter(|w| w.starts_with("W0309") && w.contains(told)).count(), 2, "{warnings:?}");
    }
    let idle = gained(&[grant("of.wallet = 'w'\n"), own()]);
    assert_eq!(idle, (2, vec!["W0309 nothing is granted at `wallet`, so this adds nothing".to_owned()]));
    // Who extends by name alone has nobody's word to hold a target to.
    let plain = operator("p.toml", "schema = 1\n[extend.wallet]\nof.bitcoind = 'x'\n");
    assert_eq!(with(&[plain]).unwrap_err().0[0].code(), "E0115");
}

#[test]
fn the_operator_can_say_everything_of_a_service_that_a_fragment_defines() {
    let fragment =
        vendor("schema = 1\nfragment = 'x'\n[service.x]\nports.http = 'tcp:80'\noutbound = 'none'\ndns = 'names'\n");
    let more = operator(
        "more.toml",
        "schema = 1\n[extend.x]\ntags = ['web']\noutbound = 'tor'\ndns = 'tor'\nprivate = ['http']\nunit = 'x.service'\nlimits.flows = 3\n",
    );
    let graph = with(&[fragment, more]).unwrap().graph;
    let x = graph.service("x").unwrap();
    assert!(x.outbound.tor && x.limits.flows == Some(3) && x.unit.is_some() && x.private.len() == 1);
    let edges: Vec<String> = graph.edges().iter().map(ToString::to_string).collect();
    for edge in ["x -> tor:socks", "x -> tor:dns", "nginx -> x:http", "host -> x:http"] {
        assert!(edges.contains(&edge.to_owned()), "no {edge} in {edges:?}");
    }
}

#[test]
fn a_default_is_no_word_about_services_of_packages() {
    let evil = "schema = 1\n[service.evil]\n";
    let own = with(&[operator("evil.toml", evil)]).unwrap().graph;
    assert!(own.service("evil").unwrap().outbound.tor, "the default is there");
    let theirs = with(&[vendor(format!("fragment = 'evil'\n{evil}"))]).unwrap().graph;
    assert!(!theirs.service("evil").unwrap().outbound.tor);
    assert!(theirs.edges().iter().all(|edge| edge.from.to_string() != "evil"));
}

/// Any words at all below `[service.NAME]` and beside it.
fn body() -> impl Strategy<Value = Value> {
    let keys = vec![
        ("connect", json!({"bitcoind": ["rpc"]})),
        ("connect", json!({"@chain": ["p2p"], "tor": ["socks"]})),
        ("open", json!({"bitcoind": ["ctl"]})),
        ("outbound", json!("direct")),
        ("outbound", json!("none")),
        ("outbound", json!({"tor": true})),
        ("dns", json!("direct")),
        ("dns", json!("names")),
        ("tags", json!(["chain", "web"])),
        ("role", json!("tor")),
        ("was", json!("old")),
        ("address4", json!("10.231.0.77")),
        ("expose", json!({"onion": {"ports": {"80": "http"}}})),
        ("expose", json!({})),
        ("ports", json!({"http": "tcp:80", "p2p": "tcp:8333", "socks": "tcp:9050"})),
        ("sockets", json!({"ctl": "/run/evil/ctl"})),
        ("private", json!(["http"])),
        ("wants", json!({"bitcoind": ["rpc"], "wallet": {"ports": ["http"], "why": "x"}})),
        ("limits", json!({"flows": 1})),
        ("enabled", json!(true)),
        ("unit", json!("evil.service")),
    ];
    let beside = vec![
        ("host", json!({"accepts": {"x": {"port": "tcp:1", "from": ["evil"]}}})),
        ("extend", json!({"bitcoind": {"connect": {"wallet": ["http"]}}})),
        ("peer", json!({"p": {}})),
        ("declare_tags", json!(["web"])),
        ("defaults", json!({"log": true})),
    ];
    let keys = prop::collection::vec(prop::sample::select(keys), 0..4);
    let beside = prop::collection::vec(prop::sample::select(beside), 0..2);
    (
        keys,
        prop::bool::weighted(0.2)
            .prop_flat_map(move |any| if any { beside.clone().boxed() } else { Just(vec![]).boxed() }),
    )
        .prop_map(|(keys, beside)| {
            let mut file = json!({"schema": 1, "fragment": "evil", "service": {"evil": {}}});
            for (key, value) in keys {
                file["service"]["evil"][key] = value;
            }
            for (key, value) in beside {
                file[key] = value;
            }
            file
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// Whatever it says: it is refused, or nothing is open that was not before.
    #[test]
    fn a_fragment_is_refused_or_opens_nothing(file in body()) {
        let before = rights(&with(&[]).unwrap().graph);
        let source = Source { trust: Trust::Vendor, ..Source::json("evil.json", file.to_string()) };
        match with(&[source]) {
            Ok(checked) => prop_assert_eq!(rights(&checked.graph), before, "{}", file),
            Err(errors) => prop_assert!(errors.iter().any(|e| e.code() == "E0303" || e.code() == "E0204"), "{}", errors.0[0]),
        }
    }
}
