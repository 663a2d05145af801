//! Sets of policy files, drawn: services, fragments, extensions, invariants, tests, and things said twice or otherwise.

use netns_policy::graph::AllowGraph;
use netns_policy::{Checked, PolicyErrors, Source, Trust};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

pub const NAMES: [&str; 5] = ["alpha", "bravo", "charlie", "delta", "echo"];

/// How much of what is drawn is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Nothing.
    Sound,
    /// Some.
    Wild,
}

fn ports_of(kind: Kind) -> impl Strategy<Value = Vec<&'static str>> {
    let mut ports = vec!["p", "q", "u", "tcp:80", "tcp:p", "udp:53-54"];
    if kind == Kind::Wild {
        ports.push("w");
    }
    prop::collection::vec(prop::sample::select(ports), 0..3)
}

fn others(me: usize, kind: Kind) -> Vec<&'static str> {
    let mut names: Vec<&str> = NAMES.iter().enumerate().filter(|(at, _)| *at != me).map(|(_, name)| *name).collect();
    names.extend(["@web", "@db"]);
    if kind == Kind::Wild {
        names.extend(["golf", NAMES[me]]);
    }
    names
}

/// What may stand in `[service.NAME]` and in `[extend.NAME]` alike.
fn adds(me: usize, kind: Kind) -> impl Strategy<Value = Map<String, Value>> {
    let connect = prop::collection::btree_map(prop::sample::select(others(me, kind)), ports_of(kind), 0..3);
    let open = prop::collection::btree_map(prop::sample::select(others(me, kind)), Just(vec!["s"]), 0..2);
    let tags = prop::sample::subsequence(vec!["web", "db"], 0..=2);
    let scalar = prop::sample::select(vec![
        json!({}),
        json!({}),
        json!({"outbound": "tor", "dns": "tor"}),
        json!({"limits": {"flows": 7}}),
        json!({"expose": {"onion": {"ports": {"80": "p"}, "clients": ["phone"]}, "wireguard": {"ports": ["q"], "peers": ["phone"]}}}),
        json!({"expose": {"onion": {"ports": {"81": "p"}}}}),
        json!({"via_ok": true}),
    ]);
    (connect, open, tags, scalar).prop_map(|(connect, open, tags, scalar)| {
        let mut adds = scalar.as_object().cloned().unwrap_or_default();
        adds.extend([("connect".into(), json!(connect)), ("open".into(), json!(open)), ("tags".into(), json!(tags))]);
        adds
    })
}

fn service(me: usize, kind: Kind) -> impl Strategy<Value = Value> {
    let outbound = prop::sample::select(vec![
        json!(null),
        json!(["lan", "direct"]),
        json!({"direct": ["tcp:443"], "lan": ["192.168.1.20/32 tcp:5000", "udp:53"]}),
    ]);
    (adds(me, kind), prop::bool::weighted(0.85), outbound).prop_map(move |(adds, enabled, outbound)| {
        let mut service = adds;
        service.insert(
            "ports".into(),
            json!({"p": "tcp:80", "q": "tcp:81", "u": "udp:80", "z": "tcp:81", "r": "tcp:90-99"}),
        );
        service.insert("sockets".into(), json!({"s": format!("/run/{}/s", NAMES[me])}));
        service.insert("enabled".into(), enabled.into());
        if !service.contains_key("outbound") {
            service.insert("outbound".into(), outbound);
        }
        if me == 0 {
            service["tags"] = json!(["web", "db"]);
            service.insert("was".into(), "foxtrot".into());
        }
        Value::Object(service)
    })
}

fn obligation(kind: Kind) -> impl Strategy<Value = Value> {
    let who = prop::sample::select(vec!["alpha", "bravo", "@web", "wan", "lan", "host", "phone"]);
    let to = prop::sample::select(vec!["charlie", "delta:p", "echo:s", "@db:q", "bravo:unix:s", "wan", "host:backup"]);
    let hops = prop::sample::select(vec![None, Some(1), Some(2)]);
    (who, to, hops, any::<bool>(), prop::bool::weighted(if kind == Kind::Wild { 0.3 } else { 0.0 })).prop_map(
        move |(from, to, hops, named, is_never)| match (is_never, hops) {
            (true, Some(hops)) => {
                json!({"never": [{"from": [from], "to": [to], "path": true, "hops": hops, "except": ["delta"]}]})
            }
            (true, None) => json!({"never": [{"from": [from], "to": [to], "why": "so be it"}]}),
            // What holds of every policy that is drawn.
            (false, _) if named => {
                json!({"test": [{"name": "n", "from": "echo", "cannot": ["ip6:link-local", "host:backup"]}]})
            }
            (false, _) => json!({"never": [{"from": ["@db"], "to": ["host:other", "charlie:tcp:7"], "path": false}]}),
        },
    )
}

fn fragment(n: usize) -> impl Strategy<Value = Value> {
    let wants =
        prop::collection::btree_map(prop::sample::select(vec!["alpha", "bravo", "golf"]), Just(vec!["p"]), 0..3);
    wants.prop_map(move |mut wants| {
        wants.entry("alpha").or_insert_with(|| vec!["p"]);
        let name = format!("package{n}");
        json!({"schema": 1, "fragment": name, "service": {name.clone(): {"ports": {"x": "tcp:1"}, "wants": wants}}})
    })
}

/// The files of a policy, each as a value, none with a name yet.
pub fn files(kind: Kind) -> impl Strategy<Value = Vec<Value>> {
    let services: Vec<_> = (0..NAMES.len()).map(|me| service(me, kind)).collect();
    let me = prop::sample::select((0..NAMES.len()).collect::<Vec<_>>());
    let extends = prop::collection::vec(me.prop_flat_map(move |me| (Just(me), adds(me, kind))), 0..4);
    let obligations = prop::collection::vec(obligation(kind), 0..3);
    let grants = prop::collection::vec(prop::sample::select(vec!["p", "q"]), 0..2);
    let again = if kind == Kind::Wild { 3 } else { 0 };
    let more = prop::collection::vec(
        prop::sample::select(vec![
            json!({"service": {"alpha": {"ports": {"p": "udp:9"}}}}),
            json!({"network": {"pool4": "10.9.0.0/22"}}),
            json!({"network": {"pool4": "10.8.0.0/22"}}),
            json!({"defaults": {"log": false}}),
            json!({"extend": {"golf": {"tags": ["web"]}}}),
            json!({"extend": {"bravo": {"ports": {"p": "tcp:8"}}}}),
            json!({"extend": {"bravo": {"expose": {"port": {"ports": {"80": "p"}}}}}}),
            json!({"extend": {"delta": {"expose": {"port": {"ports": {"80": "q", "81": "q"}}}}}}),
            json!({"peer": {"phone": {}}}),
            json!({"host": {"accepts": {"backup": {"port": "tcp:8001", "from": ["echo"]}}}}),
            json!({"extend": {"charlie": {"role": "tor"}}}),
        ]),
        0..=again,
    );
    (services, extends, obligations, (fragment(1), fragment(2)), grants, more).prop_map(
        |(services, extends, obligations, (first, second), grants, more)| {
            let mut files = vec![
                json!({"schema": 1, "network": {"name": "node", "lan": ["192.168.1.0/24"]}}),
                json!({"schema": 1, "network": {"name": "node", "lan": ["192.168.2.0/24"]}, "defaults": {"outbound": "none"}}),
                json!({"schema": 1, "service": {"tor": {"role": "tor", "outbound": "direct", "ports": {"socks": "tcp:9050", "dns": "udp:53"}}}}),
                json!({"schema": 1, "peer": {"phone": {
                    "wireguard": "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
                    "onion": "descriptor:x25519:N2NU7BSRL6YODZCYPN4CREB54TYLKGIE2KYOQWLFYC23ZJVCE5DQ"}}}),
                json!({"schema": 1, "host": {"may_connect": {"bravo": ["p"]},
                    "accepts": {"backup": {"port": "tcp:8000", "from": ["alpha"]}, "other": {"port": "tcp:8000", "from": ["bravo"]}}}}),
                first,
                second,
            ];
            for (name, service) in NAMES.iter().zip(services) {
                files.push(json!({"schema": 1, "service": {*name: service}}));
            }
            for (me, adds) in extends {
                files.push(json!({"schema": 1, "extend": {NAMES[me]: adds}}));
            }
            for port in grants {
                files.push(json!({"schema": 1, "extend": {"package1": {"fragment": "package1", "connect": {"alpha": [port]}}}}));
            }
            for mut file in obligations.into_iter().chain(more) {
                file["schema"] = 1.into();
                files.push(file);
            }
            files
        },
    )
}

/// Half of the sets hold, more or less.
pub fn any_files() -> impl Strategy<Value = Vec<Value>> {
    prop_oneof![files(Kind::Sound), files(Kind::Wild)]
}

/// A file under a name. Fragments are of packages.
pub fn source(name: &str, file: &Value) -> Source {
    let trust = if file.get("fragment").is_some() { Trust::Vendor } else { Trust::Operator };
    Source { trust, ..Source::json(name, file.to_string()) }
}

/// The files under names in their order.
pub fn sources(files: &[Value]) -> Vec<Source> {
    files.iter().enumerate().map(|(at, file)| source(&format!("{at:02}.json"), file)).collect()
}

pub type Outcome = Result<Checked, PolicyErrors>;

pub fn parse(files: &[Value]) -> Outcome {
    AllowGraph::parse(&sources(files))
}
