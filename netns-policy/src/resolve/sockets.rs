//! Every unix-socket edge: who may open whose socket.

use std::collections::BTreeMap;

use crate::graph::{Cause, SocketEdge};
use crate::name::{PortName, ServiceName};
use crate::syntax::findings::{At, Draft, Findings};
use crate::syntax::reference::Who;
use crate::syntax::service::Service;
use crate::syntax::socket::Open;

use super::Spans;
use super::edges::warn_of_repetition;
use super::merge::Policy;
use super::names::{Names, enabled, socket_of};

/// The unix-socket edges of the policy, ordered by their key.
pub(crate) fn sockets(policy: &Policy, names: &Names<'_>, spans: &mut Spans, out: &mut Findings) -> Vec<SocketEdge> {
    paths_once(policy, out);
    let mut sockets = Sockets { names, found: BTreeMap::new(), out: &mut *out };
    for service in &policy.services {
        for open in &service.open {
            sockets.open(service, open);
        }
    }
    let found = sockets.found;
    found.into_iter().map(|(key, said)| edge(key, said, spans, out)).collect()
}

/// Two services cannot listen at one path: who comes last takes it from the other.
fn paths_once(policy: &Policy, out: &mut Findings) {
    let mut seen: BTreeMap<&str, At> = BTreeMap::new();
    for service in &policy.services {
        for offered in &service.sockets {
            let Some((_, path)) = &offered.socket else {
                continue;
            };
            if let Some((first, at)) = seen.insert(path, offered.path).map(|other| offered.path.in_order(other)) {
                let draft = Draft::new("E0232", at, format!("two sockets have the path {path}"));
                out.add(draft.second(first, "first here").help("give each a path of its own"));
            }
        }
    }
}

type Key = (ServiceName, ServiceName, PortName);

fn edge(
    (from, to, name): Key,
    mut said: Vec<(Cause, At, String)>,
    spans: &mut Spans,
    out: &mut Findings,
) -> SocketEdge {
    said.sort();
    let places: Vec<(&Cause, At)> = said.iter().map(|(cause, at, _)| (cause, *at)).collect();
    warn_of_repetition(&places, &format!("{from} -> {to}:unix:{name}"), out);
    let (cause, at, path) = said.swap_remove(0);
    SocketEdge { from, to, name, path, cause, at: spans.location(at) }
}

struct Sockets<'a, 'b> {
    names: &'b Names<'a>,
    found: BTreeMap<Key, Vec<(Cause, At, String)>>,
    out: &'b mut Findings,
}

impl Sockets<'_, '_> {
    fn open(&mut self, client: &Service, open: &Open) {
        let at = open.target.at;
        if open.sockets.is_empty() {
            self.out.add(Draft::new("W0227", at, "no socket is listed, so this opens nothing"));
        }
        match &open.target.value {
            Who::Service(name) if client.text == *name => {
                let draft = Draft::new("E0203", at, format!("{name} always reaches itself"));
                self.out.add(draft.help("remove the line: a service sees its own sockets"));
            }
            Who::Service(name) => {
                let Some(target) = self.names.service(name, at, self.out) else {
                    return;
                };
                for socket in &open.sockets {
                    if let Some((name, path)) = socket_of(target, &socket.value, socket.at, self.out) {
                        self.insert(client, target, name, path, Cause::Written, socket.at);
                    }
                }
            }
            Who::Tag(tag) => self.open_tag(client, tag, open),
        }
    }

    /// As with ports: services with the tag that have no such socket are passed over, but one must have it.
    fn open_tag(&mut self, client: &Service, tag: &str, open: &Open) {
        let at = open.target.at;
        let members: Vec<&Service> =
            self.names.tagged(tag, at, self.out).iter().copied().filter(|member| member.text != client.text).collect();
        if members.iter().all(|member| !member.is_enabled()) && self.names.has_tag(tag) {
            self.out.add(Draft::new("W0223", at, format!("`@{tag}` selects nobody here, so this opens nothing")));
        }
        let Some(cause) = tag.parse().ok().map(Cause::Tag) else {
            return;
        };
        for socket in &open.sockets {
            let has = |member: &&&Service| member.sockets.iter().any(|offered| offered.name.value == socket.value);
            let with: Vec<&&Service> = members.iter().filter(has).collect();
            if let (true, Some(first)) = (with.is_empty(), members.first()) {
                let _reported = socket_of(first, &socket.value, socket.at, self.out);
            }
            for member in with {
                if let Some((name, path)) = socket_of(member, &socket.value, socket.at, self.out) {
                    self.insert(client, member, name, path, cause.clone(), socket.at);
                }
            }
        }
    }

    fn insert(&mut self, from: &Service, to: &Service, name: &PortName, path: &str, cause: Cause, at: At) {
        if let (Some(from), Some(to)) = (enabled(from), enabled(to)) {
            let key = (from.clone(), to.clone(), name.clone());
            self.found.entry(key).or_default().push((cause, at, path.to_owned()));
        }
    }
}
