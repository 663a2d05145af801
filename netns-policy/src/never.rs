//! `[[never]]`: what no edge and no chain of edges may make possible.
//!
//! An invariant can refuse a policy and does nothing else. Every [`AllowGraph`] holds all of its own.
//!
//! A chain is what an attacker could walk, one service after the other: `wan -> nginx:http -> mempool:http`. Which port
//! he comes in by does not matter to where he goes on to. `hops` counts the edges of the chain, the way in included. To
//! open a unix socket is a step like any other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::exposure::{Exposure, Way};
use crate::graph::{AllowGraph, Edge, Location, Origin, Service, Target};
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
    /// From which service: to which, and by which socket.
    opening: Vec<Vec<(usize, usize)>>,
}

impl<'a> Roads<'a> {
    pub(crate) fn new(graph: &'a AllowGraph) -> Self {
        let services: Vec<&Service> = graph.services.values().collect();
        let numbers = services.iter().enumerate().map(|(number, service)| (&service.name, number)).collect();
        let none = vec![Vec::new(); services.len() + 1];
        let mut roads = Self { graph, numbers, services, leaving: none.clone(), opening: none };
        for (index, edge) in graph.edges.iter().enumerate() {
            if let (Some(from), Some(to)) = (roads.place(&edge.from), roads.number(&edge.to)) {
                roads.leaving[from].push((to, index));
            }
        }
        for (index, socket) in graph.sockets().iter().enumerate() {
            if let (Some(from), Some(to)) = (roads.numbers.get(&socket.from), roads.numbers.get(&socket.to)) {
                roads.opening[*from].push((*to, index));
            }
        }
        roads
    }

    fn place(&self, origin: &Origin) -> Option<usize> {
        match origin {
            Origin::Host => Some(self.host()),
            Origin::Service(service) => self.numbers.get(service).copied(),
        }
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
        while let Some(place) = walk.next.pop_front().filter(|_| never.path.is_some()) {
            walk.go_on(place);
        }
        walk.found
    }
}

/// How one comes to a place.
#[derive(Clone, Copy)]
enum Step<'a> {
    /// It is where the chain begins.
    Begin,
    /// From outside.
    Enter(&'a Start, &'a Exposure),
    /// From where, and whether the chain begins there; by which edge.
    Edge { from: usize, begins: bool, index: usize },
    /// The same, by which socket.
    Socket { from: usize, begins: bool, index: usize },
}

struct Walk<'a> {
    roads: &'a Roads<'a>,
    never: &'a Never,
    /// What must not be reached at whom.
    goals: Vec<Vec<Option<Ports>>>,
    sockets: BTreeSet<(usize, &'a PortName)>,
    except: Vec<bool>,
    /// The last step of the shortest chain to everybody who can be reached, and how many names the chain has.
    seen: Vec<Option<(Step<'a>, usize)>>,
    next: VecDeque<usize>,
    /// Last steps that are in `found`: edges, and ways out.
    reported: Vec<bool>,
    opened: Vec<bool>,
    left: BTreeSet<(usize, &'static str)>,
    found: Vec<Breach>,
}

impl<'a> Walk<'a> {
    fn new(roads: &'a Roads<'a>, never: &'a Never) -> Self {
        let places = roads.services.len() + 1;
        let mut goals = vec![Vec::new(); places];
        let mut sockets = BTreeSet::new();
        for goal in &never.to {
            match goal {
                Goal::Inside(target, ports) => roads.number(target).into_iter().for_each(|at| goals[at].push(*ports)),
                Goal::Socket(service, name) => sockets.extend(roads.numbers.get(service).map(|at| (*at, name))),
                Goal::Lan | Goal::Wan => {}
            }
        }
        let mut except = vec![false; places];
        never.except.iter().filter_map(|origin| roads.place(origin)).for_each(|place| except[place] = true);
        Self {
            roads,
            never,
            goals,
            sockets,
            except,
            seen: vec![None; places],
            next: VecDeque::new(),
            reported: vec![false; roads.graph.edges.len()],
            opened: vec![false; roads.graph.sockets().len()],
            left: BTreeSet::new(),
            found: Vec::new(),
        }
    }

    fn begin(&mut self, start: &'a Start) {
        match start {
            Start::Inside(origin) => {
                if let Some(place) = self.roads.place(origin) {
                    self.steps(place, true, 1);
                }
            }
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

    fn go_on(&mut self, place: usize) {
        let names = self.seen[place].map_or(0, |(_, names)| names);
        // One name more than steps so far: another step makes as many steps as there are names now.
        if self.never.path.is_some_and(|hops| names <= hops as usize) {
            self.steps(place, false, names);
        }
    }

    /// Every step that can be taken by one to whom a chain of so many names leads.
    fn steps(&mut self, from: usize, begins: bool, names: usize) {
        if !self.except[from] {
            self.edges(from, begins, names);
            self.open(from, begins, names);
            self.outside(from, begins);
        }
    }

    fn edges(&mut self, from: usize, begins: bool, names: usize) {
        let roads = self.roads;
        for &(to, index) in &roads.leaving[from] {
            let edge = &roads.graph.edges[index];
            let step = Step::Edge { from, begins, index };
            if self.forbids(to, edge.ports) && !std::mem::replace(&mut self.reported[index], true) {
                self.found.push(Breach { chain: self.chain(to, step), at: edge.at.clone() });
            }
            self.reach(to, step, names + 1);
        }
    }

    fn open(&mut self, from: usize, begins: bool, names: usize) {
        let roads = self.roads;
        for &(to, index) in &roads.opening[from] {
            let socket = &roads.graph.sockets()[index];
            let step = Step::Socket { from, begins, index };
            let forbidden = self.sockets.contains(&(to, &socket.name)) || self.goals[to].contains(&None);
            if forbidden && !std::mem::replace(&mut self.opened[index], true) {
                self.found.push(Breach { chain: self.chain(to, step), at: socket.at.clone() });
            }
            self.reach(to, step, names + 1);
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

    fn reach(&mut self, place: usize, step: Step<'a>, names: usize) {
        if self.seen[place].is_none() {
            self.seen[place] = Some((step, names));
            self.next.push_back(place);
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
            Step::Socket { from, begins, index } => {
                let socket = &self.roads.graph.sockets()[index];
                let mut chain = self.chain_to(from, begins);
                chain.push(format!("{}:unix:{}", socket.to, socket.name));
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
            Self::Socket(service, name) => write!(f, "{service}:unix:{name}"),
            Self::Wan => f.write_str("wan"),
        }
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
