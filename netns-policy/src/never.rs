//! `[[never]]`: what no edge and no chain of edges may make possible.
//!
//! An invariant can refuse a policy and does nothing else. Every [`AllowGraph`] holds all of its own.
//!
//! A chain is what an attacker could walk, one service after the other: `wan -> nginx:http -> mempool:http`. Which port
//! he comes in by does not matter to where he goes on to. `hops` counts the edges of the chain, the way in included.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::exposure::{Exposure, Way};
use crate::graph::{AllowGraph, Edge, Location, Origin, Service, Target};
use crate::name::{PeerName, ServiceName};
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
    /// Services that are trusted: they are no start, and no chain goes through them.
    pub(crate) except: BTreeSet<ServiceName>,
    /// Where it stands.
    pub at: Location,
}

/// Where a forbidden chain would begin.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Start {
    Inside(Origin),
    /// Through `lan` exposures.
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
    /// These ports, or any.
    Inside(Target, Option<Ports>),
    Lan,
    Wan,
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
        Roads::new(graph).breaches(self)
    }
}

/// A graph as one walks it: by numbers, because a policy of a thousand invariants walks it a thousand times. The host
/// has the number after that of the last service.
pub(crate) struct Roads<'a> {
    graph: &'a AllowGraph,
    numbers: BTreeMap<&'a ServiceName, usize>,
    services: Vec<&'a Service>,
    /// From where: to where, and by which edge.
    leaving: Vec<Vec<(usize, usize)>>,
}

impl<'a> Roads<'a> {
    pub(crate) fn new(graph: &'a AllowGraph) -> Self {
        let services: Vec<&Service> = graph.services.values().collect();
        let numbers = services.iter().enumerate().map(|(number, service)| (&service.name, number)).collect();
        let leaving = vec![Vec::new(); services.len() + 1];
        let mut roads = Self { graph, numbers, services, leaving };
        for (index, edge) in graph.edges.iter().enumerate() {
            let from = match &edge.from {
                Origin::Host => Some(roads.host()),
                Origin::Service(service) => roads.numbers.get(service).copied(),
            };
            if let (Some(from), Some(to)) = (from, roads.number(&edge.to)) {
                roads.leaving[from].push((to, index));
            }
        }
        roads
    }

    fn host(&self) -> usize {
        self.services.len()
    }

    fn number(&self, target: &Target) -> Option<usize> {
        match target {
            Target::Host => Some(self.host()),
            Target::Service(service) => self.numbers.get(service).copied(),
        }
    }

    fn name(&self, number: usize) -> String {
        self.services.get(number).map_or_else(|| "host".to_owned(), |service| service.name.to_string())
    }

    /// See [`Never::breaches`].
    pub(crate) fn breaches(&self, never: &Never) -> Vec<Breach> {
        let mut walk = Walk::new(self, never);
        never.from.iter().for_each(|start| walk.begin(start));
        while let Some(service) = walk.next.pop_front().filter(|_| never.path.is_some()) {
            walk.go_on(service);
        }
        walk.found
    }
}

/// How one comes to a service.
#[derive(Clone, Copy)]
enum Step<'a> {
    /// It is where the chain begins.
    Begin,
    /// From outside.
    Enter(&'a Start, &'a Exposure),
    /// From where, and whether the chain begins there; by which edge.
    Edge { from: usize, begins: bool, index: usize },
}

struct Walk<'a> {
    roads: &'a Roads<'a>,
    never: &'a Never,
    /// What must not be reached at whom.
    goals: Vec<Vec<Option<Ports>>>,
    except: Vec<bool>,
    /// The last step of the shortest chain to every service that can be reached, and how many names the chain has.
    seen: Vec<Option<(Step<'a>, usize)>>,
    next: VecDeque<usize>,
    /// Last steps that are in `found`: edges, and ways out.
    reported: Vec<bool>,
    left: BTreeSet<(usize, &'static str)>,
    found: Vec<Breach>,
}

impl<'a> Walk<'a> {
    fn new(roads: &'a Roads<'a>, never: &'a Never) -> Self {
        let places = roads.services.len() + 1;
        let mut goals = vec![Vec::new(); places];
        for goal in &never.to {
            if let Goal::Inside(target, ports) = goal
                && let Some(number) = roads.number(target)
            {
                goals[number].push(*ports);
            }
        }
        let mut except = vec![false; places];
        never.except.iter().filter_map(|service| roads.numbers.get(service)).for_each(|number| except[*number] = true);
        Self {
            roads,
            never,
            goals,
            except,
            seen: vec![None; places],
            next: VecDeque::new(),
            reported: vec![false; roads.graph.edges.len()],
            left: BTreeSet::new(),
            found: Vec::new(),
        }
    }

    fn begin(&mut self, start: &'a Start) {
        match start {
            Start::Inside(Origin::Service(service)) => {
                if let Some(number) = self.roads.numbers.get(service).copied().filter(|number| !self.except[*number]) {
                    self.edges(number, true, 1);
                    self.outside(number, true);
                }
            }
            Start::Inside(Origin::Host) => self.edges(self.roads.host(), true, 1),
            outside => {
                let graph = self.roads.graph;
                for exposure in graph.exposures.iter().filter(|exposure| outside.comes_through(exposure)) {
                    self.enter(outside, exposure);
                }
            }
        }
    }

    fn enter(&mut self, start: &'a Start, exposure: &'a Exposure) {
        let Some(number) = self.roads.numbers.get(&exposure.service).copied() else {
            return;
        };
        let step = Step::Enter(start, exposure);
        if self.forbids(number, exposure.ports) {
            self.found.push(Breach { chain: self.chain(number, step), at: exposure.at.clone() });
        }
        self.reach(number, step, 2);
    }

    fn go_on(&mut self, service: usize) {
        let names = self.seen[service].map_or(0, |(_, names)| names);
        // One name more than steps so far: another step makes as many steps as there are names now.
        let more = self.never.path.is_some_and(|hops| names <= hops as usize);
        if more && !self.except[service] {
            self.edges(service, false, names);
            self.outside(service, false);
        }
    }

    /// The edges of one to whom a chain of so many names leads.
    fn edges(&mut self, from: usize, begins: bool, names: usize) {
        let roads = self.roads;
        for &(to, index) in &roads.leaving[from] {
            let edge = &roads.graph.edges[index];
            let step = Step::Edge { from, begins, index };
            if self.forbids(to, edge.ports) && !std::mem::replace(&mut self.reported[index], true) {
                self.found.push(Breach { chain: self.chain(to, step), at: edge.at.clone() });
            }
            if to != roads.host() {
                self.reach(to, step, names + 1);
            }
        }
    }

    fn forbids(&self, to: usize, ports: Ports) -> bool {
        self.goals[to].iter().any(|goal| goal.is_none_or(|goal| goal.overlaps(&ports)))
    }

    /// The ways of a service to what is outside.
    fn outside(&mut self, number: usize, begins: bool) {
        let Some(service) = self.roads.services.get(number).copied() else {
            return;
        };
        let outbound = &service.outbound;
        let ways = [(Goal::Wan, "wan", outbound.reaches_wan()), (Goal::Lan, "lan", outbound.reaches_lan())];
        for (goal, word, open) in ways {
            if open && self.never.to.contains(&goal) && self.left.insert((number, word)) {
                let mut chain = self.chain_to(number, begins);
                chain.push(word.to_owned());
                let at = outbound.at.clone().unwrap_or_else(|| service.at.clone());
                self.found.push(Breach { chain, at });
            }
        }
    }

    fn reach(&mut self, service: usize, step: Step<'a>, names: usize) {
        if self.seen[service].is_none() {
            self.seen[service] = Some((step, names));
            self.next.push_back(service);
        }
    }

    /// The names of the chain that comes to `to` by this step.
    fn chain(&self, to: usize, step: Step<'_>) -> Vec<String> {
        match step {
            Step::Begin => vec![self.roads.name(to)],
            Step::Enter(start, exposure) => {
                vec![start.to_string(), format!("{}:{}", exposure.service, exposure.port_name)]
            }
            Step::Edge { from, begins, index } => {
                let mut chain = self.chain_to(from, begins);
                chain.push(target_text(&self.roads.graph.edges[index]));
                chain
            }
        }
    }

    fn chain_to(&self, number: usize, begins: bool) -> Vec<String> {
        let step = if begins { None } else { self.seen[number] };
        self.chain(number, step.map_or(Step::Begin, |(step, _)| step))
    }
}

fn target_text(edge: &Edge) -> String {
    match &edge.port_name {
        Some(name) => format!("{}:{name}", edge.to),
        None => format!("{}:{}", edge.to, edge.ports),
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inside(target, None) => target.fmt(f),
            Self::Inside(target, Some(ports)) => write!(f, "{target}:{ports}"),
            Self::Lan => f.write_str("lan"),
            Self::Wan => f.write_str("wan"),
        }
    }
}

impl Start {
    pub(crate) fn comes_through(&self, exposure: &Exposure) -> bool {
        match (self, &exposure.way) {
            (Self::Lan, way) => matches!(way, Way::Lan { .. }),
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
