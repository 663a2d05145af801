//! From the words of the cases to the policy that an operator would write.
//!
//! Edges stand at the client in our language, so whom `from` means is found here, and its targets are written down at
//! each of them. Tags in `to` stay tags: what they mean is for the product to say. `@all` and groups, which the product
//! does not know, become tags of their members.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::case::{Allow, Policy, Service};

/// The name of the network in every case.
pub const NETWORK: &str = "case";

/// What `lan` means in every case.
pub const LAN: &str = "192.168.77.0/24";

/// The policy as JSON text.
///
/// # Errors
///
/// What cannot be said in our language.
pub fn translate(policy: &Policy) -> Result<String, String> {
    let mut written = Written {
        policy,
        tags: own_tags(policy)?,
        connect: BTreeMap::new(),
        host: BTreeMap::new(),
        strangers: BTreeSet::new(),
    };
    for allow in &policy.allow {
        written.allow(allow);
    }
    for access in &policy.host_access {
        for to in &access.to {
            let ports = written.ports(None, to, access.ports.as_deref());
            add(written.host.entry(to.clone()).or_default(), ports);
        }
    }
    written.tor()?;
    Ok(written.json())
}

/// Ports by target, as they stand under `connect`.
type Connect = BTreeMap<String, Vec<String>>;

struct Written<'a> {
    policy: &'a Policy,
    /// Tags of each service, those that stand for groups and for everybody included.
    tags: BTreeMap<&'a str, BTreeSet<String>>,
    connect: BTreeMap<&'a str, Connect>,
    host: Connect,
    /// Names in `from` that nobody has.
    strangers: BTreeSet<&'a str>,
}

/// The tags that services are given: theirs, and one for each group and for `@all` where it is a target.
fn own_tags(policy: &Policy) -> Result<BTreeMap<&str, BTreeSet<String>>, String> {
    let own = |(name, service): (&'_ String, &Service)| (name.clone(), service.tags.iter().cloned().collect());
    let mut tags: BTreeMap<String, BTreeSet<String>> = policy.services.iter().map(own).collect();
    for group in policy.groups.keys() {
        if policy.services.values().any(|service| service.tags.contains(group)) {
            return Err(format!("`{group}` is a tag and a group"));
        }
        for member in group_members(policy, group, &mut Vec::new())? {
            tags.entry(member).or_default().insert(group.clone());
        }
    }
    let targets = policy.allow.iter().chain(&policy.host_access).flat_map(|allow| &allow.to);
    if targets.into_iter().any(|to| to == "@all") {
        tags.values_mut().for_each(|tags| tags.extend(["all".to_owned()]));
    }
    Ok(policy.services.keys().map(|name| (name.as_str(), tags.remove(name).unwrap_or_default())).collect())
}

fn group_members(policy: &Policy, group: &str, within: &mut Vec<String>) -> Result<BTreeSet<String>, String> {
    if within.iter().any(|outer| outer == group) {
        return Err(format!("the group `{group}` holds itself, which our language, without groups, cannot say"));
    }
    within.push(group.to_owned());
    let mut members = BTreeSet::new();
    for member in policy.groups.get(group).into_iter().flatten() {
        let name = member.strip_prefix('@').unwrap_or(member);
        if policy.services.contains_key(member) {
            members.insert(member.clone());
        } else if policy.groups.contains_key(name) {
            members.extend(group_members(policy, name, within)?);
        } else {
            let tagged = policy.services.iter().filter(|(_, service)| {
                member.starts_with('@') && (name == "all" || service.tags.iter().any(|tag| tag == name))
            });
            let tagged: Vec<String> = tagged.map(|(name, _)| name.clone()).collect();
            if tagged.is_empty() {
                return Err(format!("the group `{group}` holds `{member}`, which is nobody"));
            }
            members.extend(tagged);
        }
    }
    within.pop();
    Ok(members)
}

impl<'a> Written<'a> {
    fn allow(&mut self, allow: &'a Allow) {
        for from in &allow.from {
            let clients = self.clients(from);
            if clients.is_empty() {
                self.strangers.insert(from);
            }
            for (client, to) in clients.iter().flat_map(|client| allow.to.iter().map(move |to| (*client, to))) {
                // A pair of one that a tag produces is skipped; one that is written is for the product to refuse.
                if from.starts_with('@') && to == client {
                    continue;
                }
                let ports = self.ports(Some(client), to, allow.ports.as_deref());
                add(self.connect.entry(client).or_default().entry(to.clone()).or_default(), ports);
            }
        }
    }

    /// The services that `from` means.
    fn clients(&self, from: &str) -> Vec<&'a str> {
        let all = || self.tags.iter();
        match from.strip_prefix('@') {
            Some("all") => all().map(|(name, _)| *name).collect(),
            Some(tag) => all().filter(|(_, tags)| tags.contains(tag)).map(|(name, _)| *name).collect(),
            None => all().map(|(name, _)| *name).filter(|name| *name == from).collect(),
        }
    }

    /// Ports as they are written, or every port that one of the targets declares.
    fn ports(&self, client: Option<&str>, to: &str, ports: Option<&[String]>) -> Vec<String> {
        if let Some(ports) = ports {
            return ports.to_vec();
        }
        let targets = self.clients(to).into_iter().filter(|target| Some(*target) != client);
        let names: BTreeSet<String> =
            targets.flat_map(|target| self.policy.services[target].ports.keys().cloned()).collect();
        names.into_iter().collect()
    }

    /// `outbound = "tor"` leads to the port `socks` and `dns = "tor"` to the port `dns` of the tor service; other
    /// ports that a case lists are ordinary edges.
    fn tor(&mut self) -> Result<(), String> {
        let Some(tor) = &self.policy.tor else { return Ok(()) };
        let users = self.policy.services.iter().filter(|(name, service)| **name != tor.service && uses_tor(service));
        for (user, _) in users {
            if !tor.ports.iter().any(|port| port == "socks") {
                return Err("a tor service whose streams go to another port than `socks` cannot be said".into());
            }
            let others: Vec<String> = tor.ports.iter().filter(|p| *p != "socks" && *p != "dns").cloned().collect();
            if !others.is_empty() {
                let ports = self.connect.entry(user).or_default().entry(tor.service.clone()).or_default();
                add(ports, others);
            }
        }
        Ok(())
    }

    fn json(&self) -> String {
        let services: BTreeMap<&str, Value> =
            self.policy.services.iter().map(|(name, service)| (name.as_str(), self.service(name, service))).collect();
        let mut accepts: BTreeMap<String, Value> = BTreeMap::new();
        for (name, service) in &self.policy.services {
            for port in &service.host_ports {
                let accept = accepts.entry(port_name(port)).or_insert_with(|| json!({"port": port, "from": []}));
                accept["from"].as_array_mut().expect("it was made as one").push(json!(name));
            }
        }
        // Where a client is written down there is one; a client that does not exist can only be named by the host.
        for (number, stranger) in self.strangers.iter().enumerate() {
            accepts.insert(format!("stranger-{number}"), json!({"port": "tcp:1", "from": [stranger]}));
        }
        let policy = json!({
            "schema": 1,
            "network": {"name": NETWORK, "lan": [LAN]},
            "service": services,
            "host": {"may_connect": self.host, "accepts": accepts},
        });
        serde_json::to_string_pretty(&policy).expect("a value can be written")
    }

    fn service(&self, name: &str, service: &Service) -> Value {
        let mut written = json!({
            "ports": service.ports,
            "tags": self.tags.get(name),
            "connect": self.connect.get(name).cloned().unwrap_or_default(),
        });
        let mut set = |key: &str, value: Value| written[key] = value;
        if let Some(outbound) = &service.outbound {
            let words: Vec<&str> = outbound.split('+').collect();
            set("outbound", if words.len() == 1 { json!(outbound) } else { json!(words) });
        }
        for (key, value) in [("enabled", &service.enabled), ("limits", &service.limits)] {
            if let Some(value) = value {
                set(key, value.clone());
            }
        }
        if let Some(tor) = &self.policy.tor {
            if tor.service == name {
                set("role", json!("tor"));
            } else if uses_tor(service) && tor.ports.iter().any(|port| port == "dns") {
                set("dns", json!("tor"));
            }
        }
        written
    }
}

fn uses_tor(service: &Service) -> bool {
    service.outbound.as_deref().is_some_and(|outbound| outbound.split('+').any(|word| word == "tor"))
}

/// `udp:80` as a name.
fn port_name(port: &str) -> String {
    port.replace(':', "-")
}

fn add(ports: &mut Vec<String>, more: Vec<String>) {
    for port in more {
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
}
