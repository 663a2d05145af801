//! Cases as written: every key is known, or the case fails.
//!
//! # Invariants
//!
//! - What is not understood is a problem that names the key and where it stands; nothing is skipped.
//! - The counts of a file are held against those that its own lists give.

use std::collections::{BTreeMap, BTreeSet};

use netns_policy::port::Protocol;
use serde_json::{Map, Value};

/// The only format there is.
const FORMAT: &str = "netns-policy-conformance/1";

/// Parties that are no services.
pub const OUTSIDERS: [&str; 4] = ["host", "lan", "metadata", "wan"];

/// A story in steps.
#[derive(Debug)]
pub struct Case {
    pub id: String,
    pub title: String,
    pub steps: Vec<Step>,
    /// What of it cannot be understood or contradicts itself.
    pub problems: Vec<String>,
}

/// A policy, and what must be seen once it was given to the machine.
#[derive(Debug)]
pub struct Step {
    pub policy: Policy,
    /// The code with which it must be refused.
    pub refused: Option<String>,
    /// Who must reach whom; without it, for a refused step, what the step before says.
    pub pairs: Option<Vec<Pair>>,
}

/// One question and its answer.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Pair {
    pub from: String,
    pub to: String,
    pub protocol: Protocol,
    pub port: u16,
    pub open: bool,
}

/// A policy in the words of the cases.
#[derive(Debug, Default)]
pub struct Policy {
    pub services: BTreeMap<String, Service>,
    pub allow: Vec<Allow>,
    /// The host's edges; `from` is empty.
    pub host_access: Vec<Allow>,
    pub tor: Option<Tor>,
    /// Name to members: services, `@tag`s and other groups. The format speaks of groups without saying where they are
    /// defined; this is the place that leaves nothing else to say.
    pub groups: BTreeMap<String, Vec<String>>,
}

/// One service; ports and what is passed on as written stay values.
#[derive(Debug, Default)]
pub struct Service {
    pub tags: Vec<String>,
    pub ports: BTreeMap<String, String>,
    pub outbound: Option<String>,
    pub host_ports: Vec<String>,
    pub enabled: Option<Value>,
    pub limits: Option<Value>,
}

/// Edges from everybody in `from` to everybody in `to`.
#[derive(Debug)]
pub struct Allow {
    pub from: Vec<String>,
    pub to: Vec<String>,
    /// Omitted: all declared ports of the target.
    pub ports: Option<Vec<String>>,
}

/// The service that carries `outbound = "tor"`.
#[derive(Debug)]
pub struct Tor {
    pub service: String,
    pub ports: Vec<String>,
}

/// Every case of a file.
///
/// # Errors
///
/// When it is no file of this form at all.
pub fn read(text: &str) -> Result<Vec<Case>, String> {
    let file: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let mut problems = Vec::new();
    let mut object = Object::open(&file, "the file".into(), &mut problems);
    let format = object.text("format");
    for known in ["license", "semantics", "note"] {
        object.take(known);
    }
    let cases = object.list("cases");
    object.finish();
    if format.as_deref() != Some(FORMAT) {
        problems.push(format!("the format is {format:?}, this is a harness for {FORMAT}"));
    }
    if cases.is_empty() {
        problems.push("there are no cases".into());
    }
    let cases: Vec<Case> = cases.iter().map(case).collect();
    let mut ids = BTreeSet::new();
    problems.extend(cases.iter().filter(|c| !ids.insert(&c.id)).map(|c| format!("{} stands there twice", c.id)));
    if problems.is_empty() { Ok(cases) } else { Err(problems.join("\n")) }
}

fn case(value: &Value) -> Case {
    let mut problems = Vec::new();
    let mut object = Object::open(value, "the case".into(), &mut problems);
    let id = object.text("id").unwrap_or_else(|| "(no id)".into());
    let title = object.text("title").unwrap_or_default();
    for informational in ["origin", "note"] {
        object.take(informational);
    }
    let written = object.list("steps");
    object.finish();
    if written.is_empty() {
        problems.push("it has no steps".into());
    }
    let mut seen = BTreeSet::new();
    let mut steps = Vec::new();
    for (number, value) in (1..).zip(&written) {
        steps.push(step(value, number, &mut seen, &mut problems));
    }
    Case { id, title, steps, problems }
}

/// `seen` are the names of all services so far: one that is gone can still be asked for.
fn step(value: &Value, number: usize, seen: &mut BTreeSet<String>, problems: &mut Vec<String>) -> Step {
    let mut object = Object::open(value, format!("step {number}"), problems);
    let [policy_value, universe, expect] = ["policy", "universe", "expect"].map(|key| object.take(key));
    let refused = object.take("expect_error").and_then(|value| object.string(value, "expect_error"));
    for informational in ["source_facts", "note", "title"] {
        object.take(informational);
    }
    object.finish();
    let policy = match policy_value {
        Some(value) => policy(value, number, problems),
        None => Policy::default(),
    };
    seen.extend(policy.services.keys().cloned());
    let pairs = match (universe, expect) {
        (Some(universe), Some(expect)) => Some(pairs(universe, expect, seen, number, problems)),
        (None, None) if refused.is_some() && number == 1 => Some(Vec::new()),
        (None, None) if refused.is_some() => None,
        _ => {
            problems.push(format!("step {number}: `universe` and `expect`, or `expect_error`, are missing"));
            None
        }
    };
    if policy_value.is_none() {
        problems.push(format!("step {number}: there is no `policy`"));
    }
    Step { policy, refused, pairs }
}

fn policy(value: &Value, number: usize, problems: &mut Vec<String>) -> Policy {
    let at = format!("step {number}, policy");
    let mut object = Object::open(value, at.clone(), problems);
    let services = object.table("services");
    let allow = object.list("allow");
    let host_access = object.list("host_access");
    let tor = object.take("tor");
    let groups = object.table("groups");
    object.finish();
    let service = |(name, value): (String, Value), problems: &mut Vec<String>| {
        let service = service(&value, format!("{at}, service {name}"), problems);
        (name, service)
    };
    let allow_of = |list: Vec<Value>, key: &str, with_from: bool, problems: &mut Vec<String>| -> Vec<Allow> {
        list.iter().map(|value| allow_item(value, format!("{at}, {key}"), with_from, problems)).collect()
    };
    Policy {
        services: services.into_iter().map(|entry| service(entry, problems)).collect(),
        allow: allow_of(allow, "allow", true, problems),
        host_access: allow_of(host_access, "host_access", false, problems),
        tor: tor.map(|value| tor_of(value, format!("{at}, tor"), problems)),
        groups: groups.into_iter().map(|(name, value)| (name, strings(&value, &at, "groups", problems))).collect(),
    }
}

fn service(value: &Value, at: String, problems: &mut Vec<String>) -> Service {
    let mut object = Object::open(value, at, problems);
    let service = Service {
        tags: object.strings("tags"),
        ports: object
            .table("ports")
            .into_iter()
            .filter_map(|(name, value)| object.string(&value, "ports").map(|port| (name, port)))
            .collect(),
        outbound: object.take("outbound").and_then(|value| object.string(value, "outbound")),
        host_ports: object.strings("host_ports"),
        enabled: object.take("enabled").cloned(),
        limits: object.take("limits").cloned(),
    };
    object.finish();
    service
}

fn allow_item(value: &Value, at: String, with_from: bool, problems: &mut Vec<String>) -> Allow {
    let mut object = Object::open(value, at, problems);
    let from = if with_from { object.some_strings("from") } else { Vec::new() };
    let to = object.some_strings("to");
    let ports = object.has("ports").then(|| object.strings("ports"));
    object.take("note");
    object.finish();
    Allow { from, to, ports }
}

fn tor_of(value: &Value, at: String, problems: &mut Vec<String>) -> Tor {
    let mut object = Object::open(value, at, problems);
    let tor = Tor { service: object.text("service").unwrap_or_default(), ports: object.some_strings("ports") };
    object.finish();
    tor
}

/// Every question that the universe asks, with the answer; where neither end is a service nobody is asked.
fn pairs(
    universe: &Value,
    expect: &Value,
    services: &BTreeSet<String>,
    number: usize,
    problems: &mut Vec<String>,
) -> Vec<Pair> {
    let mut object = Object::open(universe, format!("step {number}, universe"), problems);
    let (from, to) = (object.some_strings("from"), object.some_strings("to"));
    let written = object.some_strings("ports");
    object.finish();
    let mut object = Object::open(expect, format!("step {number}, expect"), problems);
    let open = object.table("open");
    let counts = ["open_count", "probe_count"].map(|key| object.take(key).cloned());
    object.finish();
    let mut expected = opens(open, number, problems);
    let stranger = |name: &&String| !services.contains(*name) && !OUTSIDERS.contains(&name.as_str());
    for name in from.iter().chain(&to).filter(stranger) {
        problems.push(format!("step {number}, universe: nobody is called `{name}`"));
    }
    let mut pairs = Vec::new();
    for (from, to) in from.iter().flat_map(|from| to.iter().map(move |to| (from, to))) {
        if from == to || !(services.contains(from) || services.contains(to)) {
            continue;
        }
        for text in &written {
            let Some((protocol, port)) = port(text) else {
                problems.push(format!("step {number}, universe: `{text}` is no port"));
                continue;
            };
            let open = expected.remove(&(from.clone(), text.clone(), to.clone()));
            pairs.push(Pair { from: from.clone(), to: to.clone(), protocol, port, open });
        }
    }
    for (from, port, to) in expected {
        problems.push(format!("step {number}: {from} -> {to} {port} must be open, but the universe does not ask"));
    }
    let own = [pairs.iter().filter(|pair| pair.open).count(), pairs.len()];
    for ((key, count), own) in ["open_count", "probe_count"].iter().zip(counts).zip(own) {
        if count.is_some_and(|count| count.as_u64() != u64::try_from(own).ok()) {
            problems.push(format!("step {number}: {key} is another than the {own} that the lists give"));
        }
    }
    pairs
}

type Expected = BTreeSet<(String, String, String)>;

fn opens(open: Vec<(String, Value)>, number: usize, problems: &mut Vec<String>) -> Expected {
    let mut expected = Expected::new();
    for (from, value) in open {
        let mut object = Object::open(&value, format!("step {number}, expect.open.{from}"), problems);
        let ports: Vec<String> = object.rest.keys().cloned().collect();
        for port in ports {
            for to in object.strings(&port) {
                expected.insert((from.clone(), port.clone(), to));
            }
        }
    }
    expected
}

fn port(text: &str) -> Option<(Protocol, u16)> {
    let (protocol, port) = text.split_once('/')?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    Some((protocol, port.parse().ok().filter(|port| *port > 0)?))
}

/// An object whose keys are taken one by one; what is left was not understood.
struct Object<'v, 'p> {
    rest: BTreeMap<String, &'v Value>,
    at: String,
    problems: &'p mut Vec<String>,
}

impl<'v, 'p> Object<'v, 'p> {
    fn open(value: &'v Value, at: String, problems: &'p mut Vec<String>) -> Self {
        let rest = match value {
            Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
            _ => {
                problems.push(format!("{at}: expected an object"));
                BTreeMap::new()
            }
        };
        Self { rest, at, problems }
    }

    fn has(&self, key: &str) -> bool {
        self.rest.contains_key(key)
    }

    fn take(&mut self, key: &str) -> Option<&'v Value> {
        self.rest.remove(key)
    }

    fn problem(&mut self, key: &str, what: &str) {
        self.problems.push(format!("{}: `{key}` {what}", self.at));
    }

    fn string(&mut self, value: &Value, key: &str) -> Option<String> {
        let text = value.as_str().map(str::to_owned);
        if text.is_none() {
            self.problem(key, "is no string");
        }
        text
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.take(key) {
            Some(value) => self.string(value, key),
            None => {
                self.problem(key, "is missing");
                None
            }
        }
    }

    fn list(&mut self, key: &str) -> Vec<Value> {
        match self.take(key) {
            Some(Value::Array(items)) => items.clone(),
            None => Vec::new(),
            Some(_) => {
                self.problem(key, "is no list");
                Vec::new()
            }
        }
    }

    fn strings(&mut self, key: &str) -> Vec<String> {
        self.take(key).map(|value| strings(value, &self.at, key, self.problems)).unwrap_or_default()
    }

    fn some_strings(&mut self, key: &str) -> Vec<String> {
        if !self.has(key) {
            self.problem(key, "is missing");
        }
        self.strings(key)
    }

    fn table(&mut self, key: &str) -> Vec<(String, Value)> {
        let empty = Map::new();
        let map = match self.take(key) {
            Some(Value::Object(map)) => map,
            None => &empty,
            Some(_) => {
                self.problem(key, "is no object");
                &empty
            }
        };
        map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn finish(mut self) {
        for key in std::mem::take(&mut self.rest).into_keys() {
            self.problem(&key, "is a key that this harness does not know");
        }
    }
}

fn strings(value: &Value, at: &str, key: &str, problems: &mut Vec<String>) -> Vec<String> {
    let texts: Option<Vec<String>> =
        value.as_array().and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
    texts.unwrap_or_else(|| {
        problems.push(format!("{at}: `{key}` is no list of strings"));
        Vec::new()
    })
}
