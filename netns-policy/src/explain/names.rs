//! The words that a question is asked in, looked up.

use crate::graph::{AllowGraph, Origin, Target};
use crate::name::ServiceName;
use crate::never::Start;
use crate::port::{Ports, Protocol, number};
use crate::suggest::did_you_mean;

use super::ExplainError;

/// Who would be reached.
pub(super) enum Goal {
    Inside(Target),
    /// Defined, and switched off.
    Disabled,
    Lan,
    Metadata,
    /// A device outside: nothing in a policy leads to one.
    Peer,
    /// The gateway, which resolves names for those with `dns = "direct"`.
    Uplink,
    Wan,
}

/// Who would open: a service, `host`, a peer, `peers`, `wan` or `lan`.
pub(crate) fn place(graph: &AllowGraph, name: &str) -> Result<Start, ExplainError> {
    let peer = || graph.peers().find(|peer| peer.name.as_str() == name).map(|peer| Start::Peer(peer.name.clone()));
    let word = match name {
        "host" => Some(Start::Inside(Origin::Host)),
        "lan" => Some(Start::Lan),
        "peers" => Some(Start::Peers),
        "wan" => Some(Start::Wan),
        _ => None,
    };
    let service = || service_name(graph, name).map(|name| Start::Inside(Origin::Service(name)));
    word.or_else(service).or_else(peer).ok_or_else(|| {
        let peers = graph.peers().map(|peer| peer.name.as_str());
        unknown("service or peer", name, services(graph).chain(peers).chain(["host", "lan", "peers", "wan"]))
    })
}

/// Who would be reached: a service, `host`, `lan`, `metadata`, `wan`, `uplink`, or a peer.
pub(super) fn goal(graph: &AllowGraph, name: &str) -> Result<Goal, ExplainError> {
    match name {
        "host" => return Ok(Goal::Inside(Target::Host)),
        "lan" => return Ok(Goal::Lan),
        "metadata" => return Ok(Goal::Metadata),
        "wan" => return Ok(Goal::Wan),
        _ => {}
    }
    match (service_name(graph, name), graph.service(name)) {
        (Some(name), Some(_)) => Ok(Goal::Inside(Target::Service(name))),
        (Some(_), None) => Ok(Goal::Disabled),
        (None, _) if name == "uplink" => Ok(Goal::Uplink),
        (None, _) if graph.peers().any(|peer| peer.name.as_str() == name) => Ok(Goal::Peer),
        (None, _) => Err(unknown("service", name, services(graph).chain(["host", "lan", "metadata", "wan"]))),
    }
}

fn services(graph: &AllowGraph) -> impl Iterator<Item = &str> {
    graph.services().map(|service| service.name.as_str())
}

fn service_name(graph: &AllowGraph, name: &str) -> Option<ServiceName> {
    let enabled = graph.service(name).map(|service| service.name.clone());
    enabled.or_else(|| graph.disabled().find(|disabled| disabled.as_str() == name).cloned())
}

fn unknown<'a>(what: &'static str, name: &str, known: impl Iterator<Item = &'a str>) -> ExplainError {
    ExplainError::Unknown { what, name: name.to_owned(), hint: did_you_mean(name, known) }
}

/// The ports asked for; nothing for any.
pub(super) fn ports(graph: &AllowGraph, goal: &Goal, to: &str, text: &str) -> Result<Option<Ports>, ExplainError> {
    let numeric = |text: &str| {
        let bare = number(text).and_then(|port| Ports::new(Protocol::Tcp, port, port));
        let parsed = if text.contains(':') { text.parse() } else { bare };
        parsed.map(Some).map_err(|source| ExplainError::PortForm { text: text.to_owned(), source })
    };
    let is_number = text.contains(':') || text.starts_with(|c: char| c.is_ascii_digit());
    match goal {
        _ if text.is_empty() => Ok(None),
        _ if is_number => numeric(text),
        Goal::Inside(target) => {
            let names = || port_names(graph, target);
            match names().find(|(name, _)| *name == text) {
                Some((_, ports)) => Ok(Some(ports)),
                None => {
                    let hint = did_you_mean(text, names().map(|(name, _)| name));
                    Err(ExplainError::Port { to: to.to_owned(), port: text.to_owned(), hint })
                }
            }
        }
        Goal::Disabled => Ok(None),
        _ => numeric(text),
    }
}

/// Every port of the target that has a name.
pub(super) fn port_names<'a>(graph: &'a AllowGraph, target: &'a Target) -> impl Iterator<Item = (&'a str, Ports)> {
    let service = match target {
        Target::Service(name) => graph.service(name.as_str()),
        Target::Host => None,
    };
    let declared = service.into_iter().flat_map(|service| &service.ports).map(|(name, ports)| (name.as_str(), *ports));
    let accepted = graph.edges().iter().filter(move |edge| edge.to == Target::Host && *target == Target::Host);
    declared.chain(accepted.filter_map(|edge| edge.port_name.as_ref().map(|name| (name.as_str(), edge.ports))))
}

/// The port as the target calls it, where it has a name for it.
pub(super) fn port_text(graph: &AllowGraph, goal: &Goal, ports: Ports) -> String {
    let name = match goal {
        Goal::Inside(target) => port_names(graph, target).find(|(_, p)| *p == ports).map(|(name, _)| name),
        _ => None,
    };
    name.map_or_else(|| ports.to_string(), str::to_owned)
}
