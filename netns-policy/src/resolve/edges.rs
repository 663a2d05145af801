//! Every edge of the graph: written ones, those that a tag stands for, and those to the tor service.

use std::collections::BTreeMap;

use crate::graph::{Cause, Edge, Origin, Target};
use crate::name::PortName;
use crate::port::Ports;
use crate::syntax::findings::{At, Draft, Findings, Sp};
use crate::syntax::reference::{PortRef, Who};
use crate::syntax::section::{Accept, Connect};
use crate::syntax::service::Service;

use super::Spans;
use super::merge::Policy;
use super::names::{Found, Names, enabled, exact_name, find_port, no_port, port_of, port_text, wrong_protocol};
use super::tor;

/// The edges of the policy, ordered by their key.
pub(crate) fn edges(policy: &Policy, names: &Names<'_>, spans: &mut Spans, out: &mut Findings) -> Vec<Edge> {
    let mut edges = Edges { names, found: BTreeMap::new(), is_full: false, asked: 0, out: &mut *out };
    for service in &policy.services {
        let origin = enabled(service).map(|name| Origin::Service(name.clone()));
        for connect in &service.connect {
            edges.connect(origin.as_ref(), Some(service), connect);
        }
    }
    for connect in &policy.host.may_connect {
        edges.connect(Some(&Origin::Host), None, connect);
    }
    for accept in &policy.host.accepts {
        edges.accept(accept);
    }
    edges.tor(policy);
    let found = edges.found;
    found.into_iter().map(|(key, said)| edge(key, said, spans, out)).collect()
}

type Key = (Origin, Target, Ports);

/// One place that allows an edge, and the name it has there.
type Said = (Cause, At, Option<PortName>);

/// The edge that all of `said` allow. To write again what is allowed already is doubted.
fn edge((from, to, ports): Key, mut said: Vec<Said>, spans: &mut Spans, out: &mut Findings) -> Edge {
    said.sort();
    let port_name = said.iter().filter_map(|(_, _, name)| name.clone()).min();
    let shown = port_name.as_ref().map_or_else(|| ports.to_string(), ToString::to_string);
    let places: Vec<(&Cause, At)> = said.iter().map(|(cause, at, _)| (cause, *at)).collect();
    warn_of_repetition(&places, &format!("{from} -> {to}:{shown}"), out);
    let (cause, at, _) = said.swap_remove(0);
    Edge { from, to, ports, port_name, cause, at: spans.location(at) }
}

/// W0222 for each place that is written though another one allows the same. Tags and tor may overlap with each other.
pub(super) fn warn_of_repetition(said: &[(&Cause, At)], shown: &str, out: &mut Findings) {
    let written: Vec<At> = said.iter().filter(|(cause, _)| **cause == Cause::Written).map(|(_, at)| *at).collect();
    let Some(first) = written.first() else {
        return;
    };
    let other = said.iter().find(|(cause, _)| **cause != Cause::Written).map(|(_, at)| (*first, *at));
    for (at, before) in written[1..].iter().map(|again| (*again, *first)).chain(other) {
        let draft = Draft::new("W0222", at, format!("{shown} is allowed twice"));
        out.add(draft.label("again here").second(before, "already allowed here"));
    }
}

struct Edges<'a, 'b> {
    names: &'b Names<'a>,
    found: BTreeMap<Key, Vec<Said>>,
    /// Whether there are too many already, so that no more are looked for.
    is_full: bool,
    /// How many services were asked for a port because of a tag.
    asked: usize,
    out: &'b mut Findings,
}

impl Edges<'_, '_> {
    const MOST: usize = 50_000;
    /// So many may be asked in vain that a policy of 50,000 edges is far below.
    const MOST_ASKED: usize = 2_000_000;

    /// `origin` is `None` when the client is disabled: what it writes is checked and opens nothing.
    fn connect(&mut self, origin: Option<&Origin>, client: Option<&Service>, connect: &Connect) {
        let at = connect.target.at;
        if connect.ports.is_empty() {
            self.out.add(Draft::new("W0227", at, "no port is listed, so this opens nothing"));
        }
        match &connect.target.value {
            Who::Service(name) if client.is_some_and(|client| client.text == *name) => {
                let draft = Draft::new("E0203", at, format!("{name} always reaches itself"));
                self.out.add(draft.help("remove the line: loopback is open inside every service"));
            }
            Who::Service(name) => {
                if let Some(target) = self.names.service(name, at, self.out) {
                    self.connect_service(origin, target, connect);
                }
            }
            Who::Tag(tag) => self.connect_tag(origin, client, tag, connect),
        }
    }

    fn connect_service(&mut self, origin: Option<&Origin>, target: &Service, connect: &Connect) {
        let numbers = connect.ports.iter().all(|port| matches!(port.value, PortRef::Number(_)));
        if target.ports.is_empty() && (connect.ports.is_empty() || !numbers) {
            let draft = Draft::new(
                "E0220",
                connect.target.at,
                format!("{} has no ports, so there is nothing to connect to", target.text),
            );
            return self
                .out
                .add(draft.help(format!("declare them: `ports = {{ ... }}` in `[service.{}]`", target.text)));
        }
        for port in &connect.ports {
            self.warn_of_number(target, port);
            if let Some((ports, name)) = port_of(target, &port.value, port.at, self.out) {
                self.open(origin, target, ports, name, Cause::Written, port.at);
            }
        }
    }

    fn connect_tag(&mut self, origin: Option<&Origin>, client: Option<&Service>, tag: &str, connect: &Connect) {
        let at = connect.target.at;
        let members = self.names.tagged(tag, at, self.out).to_vec();
        let others = |m: &&Service| client.is_none_or(|client| client.text != m.text);
        let members: Vec<&Service> = members.into_iter().filter(others).collect();
        if members.iter().all(|member| !member.is_enabled()) && self.names.has_tag(tag) {
            self.out.add(Draft::new("W0223", at, format!("`@{tag}` selects nobody here, so this opens nothing")));
        }
        for port in &connect.ports {
            self.asked += members.len();
            if self.asked > Self::MOST_ASKED && !self.is_full {
                self.is_full = true;
                let message = "the tags of this policy stand for more than can be looked at";
                self.out.add(Draft::new("E0221", at, message).help("name the services that are meant"));
            }
            if self.is_full {
                return;
            }
            let Some(cause) = tag.parse().ok().map(Cause::Tag) else {
                continue;
            };
            self.connect_members(origin, &members, cause, port);
        }
    }

    /// A tag may mean services that differ: those without the port are passed over, but one must have it.
    fn connect_members(&mut self, origin: Option<&Origin>, members: &[&Service], cause: Cause, port: &Sp<PortRef>) {
        let mut missing = !members.is_empty();
        for member in members {
            if self.is_full {
                return;
            }
            match find_port(member, &port.value) {
                Found::Missing => continue,
                Found::Broken => {}
                Found::Protocol(ports) => self.out.add(wrong_protocol(member, &port.value, ports, port.at)),
                Found::Ports(ports, name) => self.open(origin, member, ports, name, cause.clone(), port.at),
            }
            missing = false;
        }
        if missing {
            let first = no_port(members[0], &port_text(&port.value), port.at);
            let message = format!("no service that this tag selects has a port `{}`", port_text(&port.value));
            self.out.add(first.saying(message));
        } else if let [member, ..] = members {
            self.warn_of_number(member, port);
        }
    }

    fn warn_of_number(&mut self, target: &Service, port: &Sp<PortRef>) {
        let PortRef::Number(ports) = port.value else {
            return;
        };
        let help = match find_port(target, &port.value) {
            Found::Ports(_, Some(name)) => format!("{} calls it `{name}`", target.text),
            _ => format!("give it a name in `[service.{}]`", target.text),
        };
        let message = format!("{ports} is a number where a name would say what it is");
        self.out.add(Draft::new("W0224", port.at, message).help(help));
    }

    fn accept(&mut self, accept: &Accept) {
        if accept.from.is_empty() {
            self.out.add(Draft::new("W0227", accept.name.at, "nobody is listed, so this opens nothing"));
        }
        for from in &accept.from {
            let cause = match &from.value {
                Who::Service(_) => Some(Cause::Written),
                Who::Tag(tag) => tag.parse().ok().map(Cause::Tag),
            };
            for service in self.names.services(from, self.out) {
                if let (Some(client), Some(cause)) = (enabled(service), &cause) {
                    let key = (Origin::Service(client.clone()), Target::Host, accept.ports.value);
                    self.insert(key, cause.clone(), from.at, Some(accept.name.value.clone()));
                }
            }
        }
    }

    fn tor(&mut self, policy: &Policy) {
        let needs = tor::needs(policy, self.out);
        let Some(tor) = tor::service(policy, &needs, self.out) else {
            return;
        };
        for need in &needs {
            if need.client.text == tor.text {
                continue;
            }
            let found = if need.is_dns {
                port_of(tor, &PortRef::Name("dns".to_owned()), need.at, self.out)
            } else {
                tor::socks(tor)
            };
            if let Some((ports, name)) = found {
                let origin = enabled(need.client).map(|name| Origin::Service(name.clone()));
                self.open(origin.as_ref(), tor, ports, name, Cause::Tor, need.at);
            }
        }
    }

    fn open(
        &mut self,
        from: Option<&Origin>,
        target: &Service,
        ports: Ports,
        name: Option<&PortName>,
        cause: Cause,
        at: At,
    ) {
        if let (Some(from), Some(to)) = (from, enabled(target)) {
            let key = (from.clone(), Target::Service(to.clone()), ports);
            // However it was asked for: one port has one name.
            self.insert(key, cause, at, exact_name(target, ports).or(name).cloned());
        }
    }

    fn insert(&mut self, key: Key, cause: Cause, at: At, name: Option<PortName>) {
        if self.found.len() >= Self::MOST && !self.found.contains_key(&key) {
            self.is_full = true;
            return self.out.once("E0221", at, format!("more than {} edges", Self::MOST));
        }
        self.found.entry(key).or_default().push((cause, at, name));
    }
}
