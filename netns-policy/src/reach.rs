//! Who can get where over any number of edges: what falls if this one falls, and who could bring that one down.
//!
//! # Invariants
//!
//! - A [`Radius`] holds every place that a chain of at most `hops` steps leads to, each once, in the layer of its
//!   shortest chain; and of each every last step of such a chain.
//! - A chain goes on from services and from the host, by any of their rights, whichever port it came in by. It never
//!   goes on from what lies outside: what comes back in from there came in by an exposure of its own.
//! - A way in counts as a step, as `hops` of a `[[never]]` has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::explain::{ExplainError, place, words};
use crate::exposure::{Exposure, Way};
use crate::graph::{AllowGraph, Dns, Edge, Location, Origin, SocketEdge, Target};
use crate::name::{PeerName, ServiceName};
use crate::never::Start;

/// Somewhere a chain begins, passes or ends.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Node {
    /// The machine itself.
    Host,
    /// The local network.
    Lan,
    /// Somebody's device.
    Peer(PeerName),
    /// Every device with a tunnel.
    Peers,
    /// A service.
    Service(ServiceName),
    /// Whoever answers for names outside.
    Resolver,
    /// Everybody else.
    Wan,
}

impl Node {
    /// Whether a chain goes on from here.
    fn is_inside(&self) -> bool {
        matches!(self, Self::Host | Self::Service(_))
    }

    /// `service`, `host` or `outside`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Service(_) => "service",
            _ => "outside",
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.pad("host"),
            Self::Lan => f.pad("lan"),
            Self::Peer(name) => name.fmt(f),
            Self::Peers => f.pad("peers"),
            Self::Service(name) => name.fmt(f),
            Self::Resolver => f.pad("uplink"),
            Self::Wan => f.pad("wan"),
        }
    }
}

/// One right, as a step of a chain.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Step {
    /// From where.
    pub from: Node,
    /// To where.
    pub to: Node,
    /// The edge, the exposure or the way out, in words.
    pub what: String,
    /// Where it is written.
    pub at: Location,
}

/// Which way is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// What can be reached from the place.
    From,
    /// Who can reach the place.
    To,
}

/// What lies within so many steps of a place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Radius {
    /// The place.
    pub center: Node,
    /// Which way was asked.
    pub direction: Direction,
    /// What is met with the first step, with the second, and so on.
    pub layers: Vec<Vec<Met>>,
    /// Services that no chain of this length leads to, or from.
    pub unmet: Vec<ServiceName>,
    /// Whether a longer chain would meet more.
    pub goes_on: bool,
}

/// A place that is met.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Met {
    /// The place.
    pub node: Node,
    /// The steps by which it is met from the layer before.
    pub by: Vec<Step>,
}

/// A [`Met`] as programs read it.
#[derive(Debug, Serialize)]
pub struct PlainMet {
    /// The place.
    pub place: String,
    /// `service`, `host` or `outside`.
    pub kind: &'static str,
    /// The steps by which it is met.
    pub by: Vec<PlainStep>,
}

/// A [`Step`] as programs read it.
#[derive(Debug, Serialize)]
pub struct PlainStep {
    /// From where.
    pub from: String,
    /// To where.
    pub to: String,
    /// The right in words.
    pub what: String,
    /// Where it is written.
    pub at: Location,
}

impl Met {
    /// For programs.
    pub fn plain(&self) -> PlainMet {
        let step = |step: &Step| PlainStep {
            from: step.from.to_string(),
            to: step.to.to_string(),
            what: step.what.clone(),
            at: step.at.clone(),
        };
        PlainMet { place: self.node.to_string(), kind: self.node.kind(), by: self.by.iter().map(step).collect() }
    }
}

/// Every right of the graph as a step, ordered.
///
/// A way in starts at `wan` unless it is one of `lan` alone, and besides at every peer that it is for.
pub fn steps(graph: &AllowGraph) -> Vec<Step> {
    let edges = graph.edges().iter().map(edge).chain(graph.sockets().iter().map(socket));
    let ways_out = graph.services().flat_map(|service| {
        let from = Node::Service(service.name.clone());
        let outbound = &service.outbound;
        let at = outbound.at.clone().unwrap_or_else(|| service.at.clone());
        let out = words(outbound).into_iter().map(|(word, what)| {
            let to = if word == "wan" { Node::Wan } else { Node::Lan };
            (to, what, at.clone())
        });
        let names = (service.dns == Dns::Direct).then(|| (Node::Resolver, "uplink:53".to_owned(), service.at.clone()));
        let steps: Vec<Step> = out
            .chain(names)
            .map(|(to, what, at)| Step { what: format!("{from} -> {what}"), from: from.clone(), to, at })
            .collect();
        steps
    });
    let ways_in = graph.exposures().iter().flat_map(|exposure| callers(graph, exposure));
    let mut steps: Vec<Step> = edges.chain(ways_out).chain(ways_in).collect();
    steps.sort();
    steps
}

fn edge(edge: &Edge) -> Step {
    let from = match &edge.from {
        Origin::Host => Node::Host,
        Origin::Service(name) => Node::Service(name.clone()),
    };
    let to = match &edge.to {
        Target::Host => Node::Host,
        Target::Service(name) => Node::Service(name.clone()),
    };
    Step { from, to, what: edge.to_string(), at: edge.at.clone() }
}

/// Whoever opens a socket of another is where that one is.
fn socket(socket: &SocketEdge) -> Step {
    let (from, to) = (Node::Service(socket.from.clone()), Node::Service(socket.to.clone()));
    Step { what: socket.to_string(), from, to, at: socket.at.clone() }
}

/// The steps of one way in: one for each who may come by it.
fn callers(graph: &AllowGraph, exposure: &Exposure) -> Vec<Step> {
    let words = [(Start::Lan, Node::Lan), (Start::Peers, Node::Peers), (Start::Wan, Node::Wan)];
    let peers = graph.peers().map(|peer| (Start::Peer(peer.name.clone()), Node::Peer(peer.name.clone())));
    let all = words.into_iter().chain(peers).filter(|(start, _)| start.comes_through(exposure));
    let step = |(_, from)| Step {
        from,
        to: Node::Service(exposure.service.clone()),
        what: exposure.to_string(),
        at: exposure.at.clone(),
    };
    all.map(step).collect()
}

/// The place of that name: a service, `host`, a peer, `peers`, `wan` or `lan`; for [`Direction::To`] `uplink` too.
///
/// # Errors
///
/// [`ExplainError::Unknown`] when there is none.
pub fn node(graph: &AllowGraph, name: &str, direction: Direction) -> Result<Node, ExplainError> {
    if direction == Direction::To && name == "uplink" && graph.service(name).is_none() {
        return Ok(Node::Resolver);
    }
    Ok(match place(graph, name)? {
        Start::Inside(Origin::Host) => Node::Host,
        Start::Inside(Origin::Service(name)) => Node::Service(name),
        Start::Lan => Node::Lan,
        Start::Peer(name) => Node::Peer(name),
        Start::Peers => Node::Peers,
        Start::Wan => Node::Wan,
    })
}

/// What can be reached from `center`, or who can reach it, in at most `hops` steps; without `hops` in any number.
pub fn radius(graph: &AllowGraph, center: &Node, direction: Direction, hops: Option<u32>) -> Radius {
    let steps = steps(graph);
    let near = |step: &'_ Step| match direction {
        Direction::From => step.from.clone(),
        Direction::To => step.to.clone(),
    };
    let far = |step: &'_ Step| match direction {
        Direction::From => step.to.clone(),
        Direction::To => step.from.clone(),
    };
    let mut by_near: BTreeMap<Node, Vec<&Step>> = BTreeMap::new();
    steps.iter().for_each(|step| by_near.entry(near(step)).or_default().push(step));
    let mut seen = BTreeSet::from([center.clone()]);
    let mut layers: Vec<Vec<Met>> = Vec::new();
    let mut edge_of_it = vec![center.clone()];
    let goes_on = loop {
        let mut next: BTreeMap<Node, Vec<Step>> = BTreeMap::new();
        for step in edge_of_it.iter().flat_map(|node| by_near.get(node).into_iter().flatten()) {
            let node = far(step);
            if !seen.contains(&node) {
                next.entry(node).or_default().push((*step).clone());
            }
        }
        if next.is_empty() {
            break false;
        }
        if hops.is_some_and(|hops| layers.len() >= hops as usize) {
            break true;
        }
        seen.extend(next.keys().cloned());
        edge_of_it = next.keys().filter(|node| node.is_inside()).cloned().collect();
        layers.push(next.into_iter().map(|(node, by)| Met { node, by }).collect());
    };
    let unmet = graph.services().map(|service| service.name.clone());
    let unmet = unmet.filter(|name| !seen.contains(&Node::Service(name.clone()))).collect();
    Radius { center: center.clone(), direction, layers, unmet, goes_on }
}

/// One shortest chain of steps from the one to the other; nothing when there is none, or when both are one.
pub fn chain(graph: &AllowGraph, from: &Node, to: &Node) -> Vec<Step> {
    let radius = radius(graph, from, Direction::From, None);
    let mut goal = to.clone();
    let mut chain = Vec::new();
    for layer in radius.layers.iter().rev() {
        if let Some(step) = layer.iter().find(|met| met.node == goal).and_then(|met| met.by.first()) {
            goal = step.from.clone();
            chain.push(step.clone());
        }
    }
    chain.reverse();
    chain
}

/// Who else comes by a way in, in words: the peers that it is for, or everybody.
pub(crate) fn people(exposure: &Exposure) -> String {
    let people: Vec<&str> = match &exposure.way {
        Way::Onion { clients: people, .. } | Way::WireGuard { peers: people } => {
            people.iter().map(|p| p.as_str()).collect()
        }
        Way::Clearnet { .. } | Way::Lan { .. } | Way::Port { .. } => Vec::new(),
    };
    if people.is_empty() { String::new() } else { format!(", for {}", people.join(" and ")) }
}
