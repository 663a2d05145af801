//! The canonical form of a policy: what it means, in one spelling.
//!
//! It is a policy itself, in JSON. Keys are sorted, sets are sorted lists, numbers are integers, and everything that has
//! a default is written out, so that two policies that mean the same have equal bytes, however their words are parted
//! among files and lines. Its digest is what a record of an applied policy can be compared by.
//!
//! # Invariants
//!
//! - Read as a policy it gives the same graph again, but for places, whose words they are, and causes: an edge that a tag stands for is written
//!   for each of its members.
//! - What opens nothing and forbids nothing is not in it: places, asks, acknowledged doubts, tags that nobody has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::exposure::{Handover, Way};
use crate::graph::{AllowGraph, Cause, Denied, Dns, Edge, Origin, Outbound, Service, Target};
use crate::name::{PortName, ServiceName};
use crate::never::{Expectation, Goal, Never, Start};
use crate::port::Ports;

impl AllowGraph {
    /// The policy in its canonical form: JSON on one line.
    ///
    /// ```
    /// use netns_policy::{Source, graph::AllowGraph};
    ///
    /// let read = |text| AllowGraph::parse(&[Source::toml("policy.toml", text)]).map(|checked| checked.graph);
    /// let a = read("schema = 1\nnetwork.name = 'n'\n[service.a]\n[service.b]\nports = { x = 'tcp:1' }")?;
    /// let b = read("network = { name = 'n' }\nschema = 1\nservice.b.ports.x = 'tcp:1'\nservice.a = { }")?;
    /// assert_eq!(a.canonical(), b.canonical());
    /// assert_eq!(a.hash(), b.hash());
    /// # Ok::<(), netns_policy::PolicyErrors>(())
    /// ```
    pub fn canonical(&self) -> String {
        spelled(&self.canonical_value())
    }

    /// The SHA-256 of the canonical form, in 64 hexadecimal digits.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.canonical().as_bytes());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The same graph as far as meaning goes: without places and whose words they are, and without what made an edge.
    fn meaning(&self) -> Self {
        let mut graph = self.nowhere();
        graph.services.values_mut().for_each(|service| service.fragment = None);
        let written = |cause: &mut Cause| {
            if matches!(cause, Cause::Tag(_)) {
                *cause = Cause::Written;
            }
        };
        for edge in &mut graph.edges {
            written(&mut edge.cause);
        }
        for socket in &mut graph.written.sockets {
            written(&mut socket.cause);
        }
        let implied: BTreeSet<usize> =
            (0..graph.edges.len()).filter(|at| graph.is_implied(&graph.edges[*at])).collect();
        for at in implied {
            graph.edges[at].cause = Cause::Tor;
        }
        graph.written.nevers.iter_mut().for_each(|never| never.shorten(&self.written.disabled));
        graph.written.nevers.retain(|never| !never.from.is_empty() && !never.to.is_empty());
        graph.written.nevers.sort();
        graph.written.nevers.dedup();
        graph
    }

    /// Whether both mean the same: whoever follows one of them follows the other.
    pub fn means_the_same_as(&self, other: &Self) -> bool {
        self.meaning() == other.meaning()
    }

    /// Whether `outbound` or `dns` of the client makes this edge, written or not.
    fn is_implied(&self, edge: &Edge) -> bool {
        let (Origin::Service(from), Target::Service(to)) = (&edge.from, &edge.to) else {
            return false;
        };
        let (Some(from), Some(tor)) = (self.services.get(from), self.services.get(to).filter(|to| to.is_tor)) else {
            return false;
        };
        let port = |name: &str| tor.ports.get(name).copied();
        let socks = from.outbound.tor && port("socks") == Some(edge.ports);
        socks || from.dns == Dns::Tor && port("dns") == Some(edge.ports)
    }

    fn canonical_value(&self) -> Value {
        let graph = self.meaning();
        let mut services: BTreeMap<&str, Value> =
            graph.services().map(|service| (service.name.as_str(), graph.service_value(service))).collect();
        services.extend(graph.disabled().map(|name| (name.as_str(), json!({ "enabled": false }))));
        let mut nevers: Vec<Value> = graph.nevers().iter().map(never_value).collect();
        nevers.sort_by_key(spelled);
        let mut tests: Vec<Value> = graph.written.tests.iter().map(test_value).collect();
        tests.sort_by_key(spelled);
        let mut value = json!({
            "schema": 1,
            "network": graph.network_value(),
            "defaults": {
                "denied": match graph.defaults.denied { Denied::Drop => "drop", Denied::Reject => "reject" },
                "log": graph.defaults.log,
            },
            "service": services,
            "host": graph.host_value(),
            "peer": graph.peers_value(),
            "never": nevers,
            "test": tests,
        });
        if graph.exposes_nothing {
            value["expose"] = json!({ "all": "off" });
        }
        value
    }

    fn network_value(&self) -> Value {
        let network = &self.network;
        let texts = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<String>>();
        let mut value = json!({
            "name": network.name.as_str(),
            "pool4": network.pool4.to_string(),
            "lan": texts(&mut network.lan.iter().map(ToString::to_string)),
            "resolvers": texts(&mut network.resolvers.iter().map(ToString::to_string)),
        });
        match network.pool6 {
            Some(pool6) => value["pool6"] = pool6.to_string().into(),
            None => value["ipv6"] = false.into(),
        }
        value
    }

    fn service_value(&self, service: &Service) -> Value {
        let ports: BTreeMap<&str, String> =
            service.ports.iter().map(|(name, p)| (name.as_str(), p.to_string())).collect();
        let sockets: BTreeMap<&str, &String> =
            service.sockets.iter().map(|(name, path)| (name.as_str(), path)).collect();
        let origin = Origin::Service(service.name.clone());
        let mut value = json!({
            "ports": ports,
            "private": names(service.private.iter().map(PortName::as_str)),
            "sockets": sockets,
            "tags": names(service.tags.iter().map(|tag| tag.as_str())),
            "connect": self.connects(&origin),
            "open": self.opens(&service.name),
            "outbound": outbound_value(&service.outbound),
            "dns": match service.dns {
                Dns::Direct => "direct",
                Dns::Names => "names",
                Dns::None => "none",
                Dns::Tor => "tor",
            },
            "expose": self.expose_value(&service.name),
        });
        let limits = [("flows", service.limits.flows), ("new_per_second", service.limits.new_per_second)];
        let limits: BTreeMap<&str, u32> = limits.into_iter().filter_map(|(key, limit)| Some((key, limit?))).collect();
        let optional = [
            ("unit", service.unit.clone().map(Value::from)),
            ("role", service.is_tor.then(|| "tor".into())),
            ("was", service.was.as_ref().map(|was| was.as_str().into())),
            ("address4", service.address4.map(|address| address.to_string().into())),
            ("address6", service.address6.map(|address| address.to_string().into())),
            ("limits", (!limits.is_empty()).then(|| json!(limits))),
        ];
        for (key, written) in optional {
            if let Some(written) = written {
                value[key] = written;
            }
        }
        value
    }

    /// What is written as `connect`: every edge but those that follow from `outbound` and `dns`.
    fn connects(&self, origin: &Origin) -> BTreeMap<String, BTreeSet<String>> {
        let mut connects: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for edge in self.edges_from(origin).iter().filter(|edge| edge.to != Target::Host && edge.cause != Cause::Tor) {
            connects.entry(edge.to.to_string()).or_default().insert(port_text(edge));
        }
        connects
    }

    fn opens(&self, from: &ServiceName) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut opens: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for socket in self.sockets_from(from) {
            opens.entry(socket.to.as_str()).or_default().insert(socket.name.as_str());
        }
        opens
    }

    fn host_value(&self) -> Value {
        let mut accepts: BTreeMap<String, (Ports, BTreeSet<String>)> = BTreeMap::new();
        for edge in self.edges.iter().filter(|edge| edge.to == Target::Host) {
            let name = port_text(edge);
            accepts.entry(name).or_insert((edge.ports, BTreeSet::new())).1.insert(edge.from.to_string());
        }
        let accepts: BTreeMap<String, Value> = accepts
            .into_iter()
            .map(|(name, (ports, from))| (name, json!({ "port": ports.to_string(), "from": from })))
            .collect();
        json!({ "may_connect": self.connects(&Origin::Host), "accepts": accepts })
    }

    fn peers_value(&self) -> Value {
        let peer = |peer: &crate::graph::Peer| {
            let keys = [("wireguard", &peer.wireguard), ("onion", &peer.onion)];
            let keys: Map<String, Value> =
                keys.into_iter().filter_map(|(kind, key)| Some((kind.to_owned(), key.clone()?.into()))).collect();
            (peer.name.to_string(), Value::Object(keys))
        };
        Value::Object(self.peers().map(peer).collect())
    }

    fn expose_value(&self, service: &ServiceName) -> Value {
        let mut value = Map::new();
        for exposure in self.exposures.iter().filter(|exposure| exposure.service == *service) {
            let way = value.entry(exposure.way.word()).or_insert_with(|| json!({}));
            let port = exposure.port_name.as_str();
            match &exposure.way {
                Way::Clearnet { domain, challenge } => {
                    way["domain"] = domain.as_str().into();
                    way["port"] = port.into();
                    if let Some(challenge) = challenge {
                        way["challenge"] = challenge.as_str().into();
                    }
                }
                Way::Onion { external, clients } => {
                    way["ports"][external.to_string()] = port.into();
                    if !clients.is_empty() {
                        way["clients"] = names(clients.iter().map(|client| client.as_str()));
                    }
                }
                Way::Lan { external, relay } | Way::Port { external, relay } => {
                    way["ports"][external.to_string()] = port.into();
                    if relay.is_some() {
                        way["relay"] = true.into();
                    }
                    if *relay == Some(Handover::ProxyV2) {
                        way["proxy"] = "v2".into();
                    }
                }
                Way::WireGuard { peers } => {
                    let mut ports: BTreeSet<&str> = BTreeSet::from([port]);
                    let before = way["ports"].as_array().cloned().unwrap_or_default();
                    ports.extend(before.iter().filter_map(Value::as_str));
                    way["ports"] = names(ports.into_iter());
                    way["peers"] = names(peers.iter().map(|peer| peer.as_str()));
                }
            }
        }
        Value::Object(value)
    }
}

/// The value as JSON without a blank, keys in the order of their bytes whatever order a map keeps them in.
fn spelled(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(spelled).collect::<Vec<_>>().join(",")),
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            let entry = |(key, value): (&String, &Value)| format!("{}:{}", Value::from(key.as_str()), spelled(value));
            format!("{{{}}}", sorted.into_iter().map(entry).collect::<Vec<_>>().join(","))
        }
        plain => plain.to_string(),
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> Value {
    names.map(Value::from).collect::<Vec<Value>>().into()
}

fn port_text(edge: &Edge) -> String {
    edge.port_name.as_ref().map_or_else(|| edge.ports.to_string(), ToString::to_string)
}

fn outbound_value(outbound: &Outbound) -> Value {
    let mut value = Map::new();
    if outbound.tor {
        value.insert("tor".into(), true.into());
    }
    if outbound.lan {
        value.insert("lan".into(), true.into());
    } else if !outbound.lan_only.is_empty() {
        let only = outbound.lan_only.iter().map(|(prefix, ports)| Value::from(format!("{prefix} {ports}")));
        value.insert("lan".into(), only.collect());
    }
    if outbound.direct {
        value.insert("direct".into(), true.into());
    } else if !outbound.direct_only.is_empty() {
        value
            .insert("direct".into(), outbound.direct_only.iter().map(|ports| Value::from(ports.to_string())).collect());
    }
    if value.is_empty() { "none".into() } else { Value::Object(value) }
}

fn never_value(never: &Never) -> Value {
    let from: BTreeSet<String> = never.from.iter().map(Start::to_string).collect();
    let to: BTreeSet<String> = never.to.iter().map(goal_text).collect();
    let mut value = json!({ "from": from, "to": to });
    if !never.except.is_empty() {
        value["except"] = never.except.iter().map(|trusted| Value::from(trusted.to_string())).collect();
    }
    if let Some(why) = &never.why {
        value["why"] = why.as_str().into();
    }
    if let Some(hops) = never.path {
        value["path"] = true.into();
        if hops != u32::MAX {
            value["hops"] = hops.into();
        }
    }
    value
}

fn goal_text(goal: &Goal) -> String {
    match goal {
        Goal::Inside(target, None) => target.to_string(),
        Goal::Inside(target, Some(ports)) => format!("{target}:{ports}"),
        Goal::Lan => "lan".into(),
        Goal::Socket(service, name) => format!("{service}:unix:{name}"),
        Goal::Wan => "wan".into(),
    }
}

fn test_value(test: &Expectation) -> Value {
    let mut value = json!({ "from": test.from, "can": test.can, "cannot": test.cannot });
    if let Some(name) = &test.name {
        value["name"] = name.as_str().into();
    }
    value
}

impl Never {
    /// Leaves out what says nothing: services that are switched off, and ports of a service of which everything is
    /// meant.
    fn shorten(&mut self, disabled: &BTreeSet<ServiceName>) {
        self.from.retain(|start| !matches!(start, Start::Inside(Origin::Service(name)) if disabled.contains(name)));
        self.except.retain(|trusted| !matches!(trusted, Origin::Service(name) if disabled.contains(name)));
        self.to.retain(|goal| match goal {
            Goal::Inside(Target::Service(name), _) | Goal::Socket(name, _) => !disabled.contains(name),
            _ => true,
        });
        let whole = self.to.iter().filter_map(|goal| match goal {
            Goal::Inside(target, None) => Some(target.clone()),
            _ => None,
        });
        let whole: BTreeSet<Target> = whole.collect();
        self.to.retain(|goal| match goal {
            Goal::Inside(target, Some(_)) => !whole.contains(target),
            Goal::Socket(service, _) => !whole.contains(&Target::Service(service.clone())),
            _ => true,
        });
    }
}
