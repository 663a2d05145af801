//! `[[never]]`: what no edge and no chain of edges may make possible.
//!
//! An invariant can refuse a policy and does nothing else. Every [`AllowGraph`] holds all of its own.
//!
//! A chain is what an attacker could walk, one service after the other: `wan -> nginx:http -> mempool:http`. Which port
//! he comes in by does not matter to where he goes on to. `hops` counts the edges of the chain, the way in included. To
//! open a unix socket is a step like any other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::exposure::{Exposure, Way};
use crate::graph::{AllowGraph, Edge, Location, Origin, SocketEdge, Target};
use crate::name::{PeerName, PortName, ServiceName};
use crate::port::Ports;

/// One `[[never]]`, looked up.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Never {
    /// `why`, in the operator's words.
    pub why: Option<String>,
    /// Whether chains count, not only single edges; and how long they may be at most to count.
    pub(crate) path: Option<u32>,
    pub(crate) from: BTreeSet<Start>,
    pub(crate) to: BTreeSet<Goal>,
    /// Who is trusted: services, and the host. They are no start, and no chain goes through them.
    pub(crate) except: BTreeSet<Origin>,
    /// Where it stands.
    pub at: Location,
}

/// Where a forbidden chain would begin.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Start {
    Inside(Origin),
    /// Through `lan` exposures, and through all others that stand on ports of the machine.
    Lan,
    /// Through what is exposed to this peer.
    Peer(PeerName),
    /// Through `wireguard` exposures.
    Peers,
    /// Through every other exposure.
    Wan,
}

/// Where a forbidden chain would end.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Goal {
    /// These ports, or anything.
    Inside(Target, Option<Ports>),
    Lan,
    /// This unix socket.
    Socket(ServiceName, PortName),
    Wan,
}

/// One `[[test]]`, looked up: what it names, in the numbers that the names stand for.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Expectation {
    pub(crate) from: String,
    pub(crate) can: BTreeSet<String>,
    pub(crate) cannot: BTreeSet<String>,
    pub(crate) name: Option<String>,
}

/// A chain that an invariant forbids.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Breach {
    /// The chain: where it begins, and what is reached with each step, as `SERVICE:port`.
    pub chain: Vec<String>,
    /// Where the last step is written.
    pub at: Location,
}

impl Breach {
    /// Whether one edge alone does it.
    pub fn is_direct(&self) -> bool {
        self.chain.len() == 2
    }
}

impl Never {
    /// Every last step of a forbidden chain in the graph, each with one shortest chain.
    pub fn breaches(&self, graph: &AllowGraph) -> Vec<Breach> {
        let mut walk = Walk::new(self, graph);
        self.from.iter().for_each(|start| walk.begin(start));
        while let Some(place) = walk.next.pop_front().filter(|_| self.path.is_some()) {
            walk.go_on(&place);
        }
        walk.found
    }

    fn forbids(&self, to: &Target, ports: Ports) -> bool {
        // `None` sorts before every port, so this is the first goal that is about `to`.
        let goals = self.to.range(Goal::Inside(to.clone(), None)..);
        let mut about = goals.map_while(|goal| match goal {
            Goal::Inside(target, ports) if target == to => Some(ports),
            _ => None,
        });
        about.any(|goal| goal.is_none_or(|goal| goal.overlaps(&ports)))
    }

    fn forbids_socket(&self, socket: &SocketEdge) -> bool {
        self.to.contains(&Goal::Socket(socket.to.clone(), socket.name.clone()))
            || self.to.contains(&Goal::Inside(Target::Service(socket.to.clone()), None))
    }
}

struct Walk<'a> {
    never: &'a Never,
    graph: &'a AllowGraph,
    /// The shortest chain to everybody who can be reached.
    seen: BTreeMap<Origin, Vec<String>>,
    next: VecDeque<Origin>,
    /// Last steps that are in `found`: edges, and ways out.
    reported: BTreeSet<(&'a Origin, &'a Target, Ports)>,
    opened: BTreeSet<(&'a ServiceName, &'a ServiceName, &'a PortName)>,
    left: BTreeSet<(&'a ServiceName, &'static str)>,
    found: Vec<Breach>,
}

impl<'a> Walk<'a> {
    fn new(never: &'a Never, graph: &'a AllowGraph) -> Self {
        let (seen, next, found) = (BTreeMap::new(), VecDeque::new(), Vec::new());
        let (reported, opened, left) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { never, graph, seen, next, reported, opened, left, found }
    }

    fn begin(&mut self, start: &'a Start) {
        match start {
            Start::Inside(origin) => self.steps(origin, &[origin.to_string()]),
            outside => {
                for exposure in self.graph.exposures.iter().filter(|exposure| outside.comes_through(exposure)) {
                    self.enter(outside, exposure);
                }
            }
        }
    }

    fn enter(&mut self, start: &Start, exposure: &'a Exposure) {
        let chain = vec![start.to_string(), format!("{}:{}", exposure.service, exposure.port_name)];
        if self.never.forbids(&Target::Service(exposure.service.clone()), exposure.ports) {
            self.found.push(Breach { chain: chain.clone(), at: exposure.at.clone() });
        }
        self.reach(Origin::Service(exposure.service.clone()), chain);
    }

    fn go_on(&mut self, place: &Origin) {
        let chain = self.seen.get(place).cloned().unwrap_or_default();
        // One name more than steps so far: another step makes as many steps as there are names now.
        if self.never.path.is_some_and(|hops| chain.len() <= hops as usize) {
            self.steps(place, &chain);
        }
    }

    /// Every step that can be taken from `place`, which `chain` leads to.
    fn steps(&mut self, place: &Origin, chain: &[String]) {
        if self.never.except.contains(place) {
            return;
        }
        self.edges(place, chain);
        if let Origin::Service(service) = place {
            self.sockets(service, chain);
            self.outside(service, chain);
        }
    }

    fn edges(&mut self, origin: &Origin, chain: &[String]) {
        let longer = |edge: &Edge| chain.iter().cloned().chain([target_text(edge)]).collect::<Vec<String>>();
        for edge in self.graph.edges_from(origin) {
            if self.never.forbids(&edge.to, edge.ports) && self.reported.insert(edge.key()) {
                self.found.push(Breach { chain: longer(edge), at: edge.at.clone() });
            }
            let there = match &edge.to {
                Target::Service(service) => Origin::Service(service.clone()),
                Target::Host => Origin::Host,
            };
            if !self.seen.contains_key(&there) {
                self.reach(there, longer(edge));
            }
        }
    }

    fn sockets(&mut self, origin: &ServiceName, chain: &[String]) {
        for socket in self.graph.sockets_from(origin) {
            let longer = || chain.iter().cloned().chain([format!("{}:unix:{}", socket.to, socket.name)]).collect();
            if self.never.forbids_socket(socket) && self.opened.insert(socket.key()) {
                self.found.push(Breach { chain: longer(), at: socket.at.clone() });
            }
            let there = Origin::Service(socket.to.clone());
            if !self.seen.contains_key(&there) {
                self.reach(there, longer());
            }
        }
    }

    /// The ways of `service` to what is outside.
    fn outside(&mut self, service: &ServiceName, chain: &[String]) {
        let Some(service) = self.graph.services.get(service) else {
            return;
        };
        let outbound = &service.outbound;
        let ways = [(Goal::Wan, "wan", outbound.reaches_wan()), (Goal::Lan, "lan", outbound.reaches_lan())];
        for (goal, word, open) in ways {
            if open && self.never.to.contains(&goal) && self.left.insert((&service.name, word)) {
                let chain = chain.iter().cloned().chain([word.to_owned()]).collect();
                let at = outbound.at.clone().unwrap_or_else(|| service.at.clone());
                self.found.push(Breach { chain, at });
            }
        }
    }

    fn reach(&mut self, place: Origin, chain: Vec<String>) {
        if let std::collections::btree_map::Entry::Vacant(entry) = self.seen.entry(place.clone()) {
            entry.insert(chain);
            self.next.push_back(place);
        }
    }
}

fn target_text(edge: &Edge) -> String {
    match &edge.port_name {
        Some(name) => format!("{}:{name}", edge.to),
        None => format!("{}:{}", edge.to, edge.ports),
    }
}

impl Start {
    pub(crate) fn comes_through(&self, exposure: &Exposure) -> bool {
        match (self, &exposure.way) {
            // What the world reaches at the machine's address, its neighbours reach too.
            (Self::Lan, way) => matches!(way, Way::Clearnet { .. } | Way::Lan { .. } | Way::Port { .. }),
            (Self::Peers, way) => matches!(way, Way::WireGuard { .. }),
            (Self::Wan, way) => !matches!(way, Way::Lan { .. }),
            (Self::Peer(peer), Way::WireGuard { peers: allowed } | Way::Onion { clients: allowed, .. }) => {
                allowed.contains(peer)
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inside(origin) => origin.fmt(f),
            Self::Lan => f.write_str("lan"),
            Self::Peer(peer) => peer.fmt(f),
            Self::Peers => f.write_str("peers"),
            Self::Wan => f.write_str("wan"),
        }
    }
}
