//! The schema and the language are the same, as far as a schema can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use netns_policy::graph::AllowGraph;
use netns_policy::{PolicyErrors, Source};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use under_schema::{is_formal, objections, schema, value};

#[allow(dead_code, reason = "other tests use the rest of it")]
mod drawn;
#[allow(dead_code, reason = "another test uses the rest of it")]
mod under_schema;

/// Every key of the language that the operator has in one policy that holds.
const COMPLETE: &str = include_str!("complete.toml");

/// Every key that only a fragment has.
const FRAGMENT: &str = include_str!("complete-fragment.toml");

/// What a fragment needs beside it.
const BESIDE: &str = "schema = 1\nnetwork.name = \"n\"\n[service.lnd]\nports = { rpc = \"tcp:1\" }\nsockets = { rpc = \"/run/lnd\" }\n\
                      [service.electrs]\nports = { electrum = \"tcp:2\" }\n";

fn complete() -> Value {
    value(&Source::toml("complete.toml", COMPLETE)).expect("it is TOML")
}

fn fragment() -> Value {
    value(&Source::toml("complete-fragment.toml", FRAGMENT)).expect("it is TOML")
}

fn parse(policy: &Value) -> Result<(), PolicyErrors> {
    let mut sources = vec![Source::json("policy.json", policy.to_string())];
    sources.extend(policy.get("fragment").map(|_| Source::toml("beside.toml", BESIDE)));
    AllowGraph::parse(&sources).map(drop)
}

#[test]
fn the_schema_is_one() {
    jsonschema::draft202012::meta::validate(&schema()).expect("it keeps to its own schema");
}

/// Every file of a directory with that extension, and how it is named.
fn files(directory: &str, extension: &str) -> Vec<Source> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory);
    let entries = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|found| found == extension));
    files.map(|path| Source::toml(path.display().to_string(), fs::read(&path).unwrap())).collect()
}

/// The whole policies that a document shows.
fn shown_in(document: &str) -> Vec<Source> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document)).unwrap();
    let blocks = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let whole = blocks.filter(|block| block.lines().any(|line| line.starts_with("schema = 1")));
    whole.map(|block| Source::toml(document, block)).collect()
}

#[test]
fn every_example_is_valid() {
    let mut sources = files("examples/policies", "toml");
    sources.extend(shown_in("README.md"));
    sources.extend(shown_in("docs/policy.md"));
    sources.push(Source::toml("complete.toml", COMPLETE));
    sources.push(Source::toml("complete-fragment.toml", FRAGMENT));
    assert!(sources.len() >= 5, "the examples are somewhere else");
    for source in sources {
        let value = value(&source).unwrap_or_else(|| panic!("{} is not TOML", source.name));
        assert_eq!(objections(&value), [""; 0], "{}", source.name);
        if let Err(errors) = parse(&value) {
            panic!("{:#}", errors.0[0]);
        }
    }
}

/// A table of the schema: how to get there, and the keys that it has.
struct Table {
    path: Vec<Step>,
    keys: BTreeMap<String, Value>,
}

#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Item,
}

/// What a node is with what it refers to.
fn resolved(schema: &Value, node: &Value) -> Map<String, Value> {
    let mut all = node.as_object().cloned().unwrap_or_default();
    if let Some(Value::String(to)) = all.remove("$ref") {
        let referred = schema.pointer(to.trim_start_matches('#')).unwrap_or_else(|| panic!("nothing at {to}"));
        for (key, value) in resolved(schema, referred) {
            all.entry(key).or_insert(value);
        }
    }
    all
}

fn tables_of(schema: &Value, node: &Value, path: &[Step], out: &mut Vec<Table>) {
    let node = resolved(schema, node);
    let below = |step: Step| path.iter().cloned().chain([step]).collect::<Vec<_>>();
    if let Some(Value::Object(keys)) = node.get("properties") {
        assert_eq!(node.get("additionalProperties"), Some(&json!(false)), "{path:?} takes keys that nobody knows");
        out.push(Table { path: path.to_vec(), keys: keys.clone().into_iter().collect() });
        keys.iter().for_each(|(key, value)| tables_of(schema, value, &below(Step::Key(key.clone())), out));
    }
    if let Some(named @ Value::Object(_)) = node.get("additionalProperties") {
        tables_of(schema, named, &below(Step::Key("x".into())), out);
    }
    if let Some(items) = node.get("items") {
        tables_of(schema, items, &below(Step::Item), out);
    }
    for one in node.get("anyOf").and_then(Value::as_array).into_iter().flatten() {
        let is_condition = one.get("required").is_some();
        if !is_condition {
            tables_of(schema, one, path, out);
        }
    }
}

fn tables() -> Vec<Table> {
    let schema = schema();
    let mut tables = Vec::new();
    tables_of(&schema, &schema, &[], &mut tables);
    assert!(tables.len() >= 15, "{} tables", tables.len());
    tables
}

/// A policy with `key = value` in the table at `path`.
fn with(path: &[Step], key: &str, value: Value) -> Value {
    let mut inner = json!({ key: value });
    for step in path.iter().rev() {
        inner = match step {
            Step::Key(key) => json!({ key: inner }),
            Step::Item => json!([inner]),
        };
    }
    let mut policy = json!({"schema": 1, "network": {"name": "n"}});
    let (Value::Object(into), Value::Object(from)) = (&mut policy, inner) else { unreachable!("both are made above") };
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(there)), Value::Object(more)) => there.extend(more),
            (_, value) => drop(into.insert(key, value)),
        }
    }
    policy
}

/// What the parser says of an unknown key: the keys that it names, and how many it knows.
fn known_at(path: &[Step]) -> (BTreeSet<String>, usize) {
    const NOBODYS: &str = "zzqqxxzzqqxx";
    let errors = parse(&with(path, NOBODYS, json!(1))).expect_err("nobody knows that key");
    let unknown = errors.iter().find(|e| e.code() == "E0109" && e.message().contains(NOBODYS));
    let help = unknown.and_then(|error| error.help()).unwrap_or_else(|| panic!("{path:?}: {errors:?}"));
    let named: BTreeSet<String> = help.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let more = help.rsplit_once(" and ").and_then(|(_, more)| more.strip_suffix(" more")).map_or(Ok(0), str::parse);
    let count = named.len() + more.unwrap();
    (named, count)
}

#[test]
fn the_schema_has_exactly_the_keys_that_the_parser_knows() {
    for Table { path, keys } in tables() {
        let (named, count) = known_at(&path);
        let missing: Vec<_> = named.iter().filter(|name| !keys.contains_key(*name)).collect();
        assert!(missing.is_empty(), "the schema lacks {missing:?} at {path:?}");
        for key in keys.keys() {
            let unknown = |error: &&netns_policy::PolicyError| error.code() == "E0109" || error.code() == "E0118";
            let errors = parse(&with(&path, key, json!(true))).err();
            let unknown = errors.as_ref().and_then(|errors| errors.iter().find(unknown));
            assert!(unknown.is_none(), "the parser does not know `{key}` at {path:?}: {unknown:?}");
        }
        // The parser names eight and counts the rest.
        assert_eq!(keys.len(), count, "the schema has {:?} at {path:?}", keys.keys());
    }
}

#[test]
fn every_key_is_described_and_in_the_complete_policy() {
    let schema = schema();
    let complete = complete().to_string() + &fragment().to_string();
    for Table { path, keys } in tables() {
        for (key, node) in keys {
            let described = resolved(&schema, &node).get("description").and_then(Value::as_str).map(str::len);
            assert!(described.is_some_and(|len| len > 10), "`{key}` at {path:?} says nothing");
            assert!(complete.contains(&format!("\"{key}\":")), "`{key}` is in neither complete policy");
        }
    }
}

/// Every place in a value, as JSON pointers.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(entries) => entries.iter().for_each(|(key, value)| {
            let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
            out.push(at.clone());
            places(value, &at, out);
        }),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| {
            let at = format!("{at}/{index}");
            out.push(at.clone());
            places(value, &at, out);
        }),
        _ => {}
    }
}

/// Values that some key takes and others do not.
fn values() -> Vec<Value> {
    let texts = [
        "",
        "a",
        "web",
        "@front",
        "host",
        "wan",
        "lan",
        "Web",
        "a b",
        "9a",
        "a-",
        "bitcoind",
        "b:http",
        "@front:http",
        "tcp:80",
        "udp:53",
        "tcp:0",
        "tcp:080",
        "tcp:65535",
        "tcp:65536",
        "tcp:1-2",
        "tcp:http",
        "sctp:1",
        "none",
        "tor",
        "direct",
        "names",
        "reject",
        "drop",
        "x.service",
        "../x.service",
        "x.socket",
        "10.0.0.0/8",
        "10.0.0.0/22",
        "10.231.0.0/22",
        "8.8.8.0/24",
        "0.0.0.0/0",
        "fd00::/64",
        "2001:db8::/64",
        "192.168.1.0/24",
        "10.231.0.9",
        "10.231.0",
        "1.1.1.1",
        "::1",
        "fd00::5",
        "192.168.1.20/32 tcp:5000",
        "192.168.1.20 tcp:5000",
        "a.example.com",
        "*.example.com",
        "192.0.2.1",
        "a.onion",
        "http-01",
        "dns-01",
        "ip6:link-local",
        "metadata",
        "\u{1b}[2J",
        "\u{202e}x",
        "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
        "descriptor:x25519:N2NU7BSRL6YODZCYPN4CREB54TYLKGIE2KYOQWLFYC23ZJVCE5DQ",
        "/run/x",
        "/run/nsctl/x",
        "/run/./x",
        "/run/a b",
        "/",
        "unix:sql",
        "db:unix:sql",
    ];
    let mut values: Vec<Value> = texts.iter().map(|text| json!(text)).collect();
    values.extend(texts.iter().take(10).map(|text| json!([text])));
    let others = json!([
        0, 1, -1, 2, 4294967295u32, 4294967296u64, true, false, [], {}, ["none", "tor"], {"x": "tcp:80"}, {"80": "http"},
        {"0": "http"}, {"x": ["http"]}, {"direct": ["tcp:443"]}, {"lan": true}, {"tor": false}, [1], [[]], {"x": {}}
    ]);
    values.extend(others.as_array().cloned().expect("it is written as one"));
    values
}

#[derive(Clone, Debug)]
enum Change {
    /// Another value.
    Value(Value),
    /// Gone.
    Gone,
    /// Another key: the last letter twice, or a letter less.
    Key(bool),
    /// A key more, in a table.
    More(&'static str),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => prop::sample::select(values()).prop_map(Change::Value),
        1 => Just(Change::Gone),
        1 => any::<bool>().prop_map(Change::Key),
        1 => prop::sample::select(vec!["port", "name", "secret", "from", "enabled", "x"]).prop_map(Change::More),
    ]
}

fn changed(policy: &mut Value, place: &str, change: Change) {
    let (parent, key) = place.rsplit_once('/').expect("a place is below the top");
    let key = key.replace("~1", "/").replace("~0", "~");
    match (policy.pointer_mut(parent).expect("it is a place"), change) {
        (Value::Object(table), Change::Value(value)) => drop(table.insert(key, value)),
        (Value::Object(table), Change::Gone) => drop(table.remove(&key)),
        (Value::Object(table), Change::More(more)) => drop(table.insert(more.into(), json!("x"))),
        (Value::Object(table), Change::Key(longer)) => {
            let value = table.remove(&key).expect("it is a place");
            let last = key.chars().last().unwrap_or('x');
            table.insert(if longer { format!("{key}{last}") } else { key[1..].to_owned() }, value);
        }
        (Value::Array(items), Change::Value(value)) => items[key.parse::<usize>().expect("it is a place")] = value,
        (Value::Array(items), _) => drop(items.remove(key.parse().expect("it is a place"))),
        _ => unreachable!("a place is in a table or a list"),
    }
}

/// What the parser accepts is valid; what it refuses for its form alone is not.
fn agree(policy: &Value) -> Result<(), String> {
    let objections = objections(policy);
    match parse(policy) {
        Ok(()) if !objections.is_empty() => Err(format!("the schema objects: {objections:?}\n{policy:#}")),
        Err(errors) if objections.is_empty() && errors.iter().any(|error| is_formal(error.code())) => {
            Err(format!("the schema has no objection: {:#}\n{policy:#}", errors.0[0]))
        }
        _ => Ok(()),
    }
}

#[test]
fn the_schema_and_the_parser_agree_on_every_change_anywhere() {
    let more = ["port", "name", "secret", "from", "enabled", "x"].map(Change::More);
    let others = [Change::Gone, Change::Key(true), Change::Key(false)].into_iter().chain(more);
    let changes: Vec<Change> = values().into_iter().map(Change::Value).chain(others).collect();
    let mut accepted = 0;
    for base in [complete(), fragment()] {
        let mut all = Vec::new();
        places(&base, "", &mut all);
        for (place, change) in all.iter().flat_map(|place| changes.iter().map(move |change| (place, change))) {
            let mut policy = base.clone();
            changed(&mut policy, place, change.clone());
            accepted += usize::from(parse(&policy).is_ok());
            agree(&policy).unwrap_or_else(|why| panic!("{change:?} at {place}: {why}"));
        }
    }
    assert!(accepted > 500, "only {accepted} of them are policies that hold");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_schema_and_the_parser_agree_on_two_changes(
        changes in prop::collection::vec((any::<prop::sample::Index>(), change()), 2),
    ) {
        let mut policy = complete();
        for (index, change) in changes {
            let mut all = Vec::new();
            places(&policy, "", &mut all);
            changed(&mut policy, index.get::<String>(&all), change);
        }
        agree(&policy).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn whatever_policy_is_drawn_is_valid(policy in drawn::policy(6)) {
        let source = Source::toml("policy.toml", policy.text());
        let value = value(&source).expect("it is TOML");
        prop_assert_eq!(objections(&value), [""; 0]);
    }
}
