//! What `nsctl status` says: stable keys, documented in docs/cli.md, that only ever grow.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use netns_policy::ask::{Answer, Ask};
use netns_policy::changes::{Change, observed_names};
use netns_policy::exposure::Way;
use netns_policy::graph::{Edge, Origin, Outbound, Target};
use netns_policy::observed::Observed;
use netns_policy::plan::Step;
use netns_policy::port::{Ports, Protocol};
use netns_policy::ruleset::{Count, Key};
use netns_policy::topology::Place;
use serde::Serialize;

use crate::orchestrator::Planned;

/// Everything `nsctl status` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The network's name.
    pub network: String,
    /// Every service of the policy, ordered by name.
    pub services: Vec<ServiceStatus>,
    /// Every edge inside the fabric, ordered by from, to and port.
    pub edges: Vec<EdgeStatus>,
    /// What services may reach outside.
    pub outbound: Vec<OutboundStatus>,
    /// Every way in from outside.
    pub exposures: Vec<ExposureStatus>,
    /// What fragments ask for and nobody has answered, as `charge-lnd -> lnd:rpc`.
    pub asks: Vec<String>,
    /// Differences between the kernel and the policy.
    pub drift: Vec<String>,
    /// What is as the policy says and yet not as anybody would want it.
    pub warnings: Vec<String>,
}

/// One service.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub netns: String,
    /// Its link in the fabric.
    pub link: String,
    /// Its IPv4 address.
    pub address4: Ipv4Addr,
    /// Its IPv6 address; null when the policy says `ipv6 = false`.
    pub address6: Option<Ipv6Addr>,
    /// Its ports by name, as `tcp:8332`.
    pub ports: BTreeMap<String, String>,
    /// `up` when its namespace and wire are there, else `down`.
    pub state: &'static str,
}

/// One edge.
#[derive(Clone, Debug, Serialize)]
pub struct EdgeStatus {
    /// Who opens.
    pub from: String,
    /// Who is reached.
    pub to: String,
    /// `tcp` or `udp`.
    pub proto: String,
    /// The first port.
    pub port: u16,
    /// The last port; equal to `port` for a single one.
    pub port_end: u16,
    /// The name the target gives to it.
    pub port_name: Option<String>,
    /// Packets from `from` to `to`, both families.
    pub packets: u64,
    /// Bytes from `from` to `to`, IP headers included.
    pub bytes: u64,
    /// Packets from `to` to `from`.
    pub reply_packets: u64,
    /// Bytes from `to` to `from`.
    pub reply_bytes: u64,
}

/// What one service may reach outside.
#[derive(Clone, Debug, Serialize)]
pub struct OutboundStatus {
    /// The service.
    pub from: String,
    /// `wan`, `lan`, `wan tcp:443`, `192.168.1.20/32 tcp:5000`.
    pub to: Vec<String>,
}

/// One exposure.
#[derive(Clone, Debug, Serialize)]
pub struct ExposureStatus {
    /// The service.
    pub service: String,
    /// The name of its port.
    pub port: String,
    /// `onion`, `wireguard`, `clearnet`, `lan` or `port`.
    pub way: &'static str,
    /// `not served` until there is a worker for this way.
    pub state: &'static str,
}

impl Status {
    /// The status that follows from a plan that was just made.
    pub fn of(planned: &Planned) -> Self {
        let graph = &planned.checked.graph;
        let counts = Counts::new(&planned.observed);
        Self {
            network: graph.network().name.to_string(),
            services: graph.services().filter_map(|service| service_status(planned, service)).collect(),
            edges: graph.edges().iter().map(|edge| edge_status(&counts, edge)).collect(),
            outbound: graph
                .services()
                .filter(|service| !service.outbound.stays_inside())
                .map(|service| OutboundStatus { from: service.name.to_string(), to: words(&service.outbound) })
                .collect(),
            exposures: graph
                .exposures()
                .iter()
                .map(|exposure| ExposureStatus {
                    service: exposure.service.to_string(),
                    port: exposure.port_name.to_string(),
                    way: exposure.way.word(),
                    state: exposure_state(&exposure.way),
                })
                .collect(),
            asks: open_asks(&planned.checked.asks),
            drift: drift(planned),
            warnings: Vec::new(),
        }
    }
}

/// The state of a way in: there is no worker yet for any of them.
pub fn exposure_state(way: &Way) -> &'static str {
    match way {
        Way::Clearnet { .. } | Way::Lan { .. } | Way::Onion { .. } | Way::Port { .. } | Way::WireGuard { .. } => {
            "not served"
        }
    }
}

fn open_asks(asks: &[Ask]) -> Vec<String> {
    asks.iter().filter(|ask| ask.answer == Answer::Open).map(ToString::to_string).collect()
}

fn service_status(planned: &Planned, service: &netns_policy::graph::Service) -> Option<ServiceStatus> {
    let wire = planned.desired.wires.get(&Place::Service(service.name.clone()))?;
    let up = planned.observed.whole_wire(wire).is_some();
    Some(ServiceStatus {
        name: service.name.to_string(),
        netns: wire.netns.clone().unwrap_or_default(),
        link: wire.outer.to_string(),
        address4: wire.addresses.v4,
        address6: wire.addresses.v6,
        ports: service.ports.iter().map(|(name, ports)| (name.to_string(), ports.to_string())).collect(),
        state: if up { "up" } else { "down" },
    })
}

/// The ways out, in the words that `why` takes as targets.
pub fn words(outbound: &Outbound) -> Vec<String> {
    let all = [(outbound.direct, "wan"), (outbound.lan, "lan")];
    let mut words: Vec<String> = all.iter().filter(|(yes, _)| *yes).map(|(_, word)| (*word).to_owned()).collect();
    words.extend(outbound.direct_only.iter().map(|ports| format!("wan {ports}")));
    words.extend(outbound.lan_only.iter().map(|(prefix, ports)| format!("{prefix} {ports}")));
    words
}

fn edge_status(counts: &Counts, edge: &Edge) -> EdgeStatus {
    let (there, back) = counts.of(edge);
    EdgeStatus {
        from: edge.from.to_string(),
        to: edge.to.to_string(),
        proto: edge.ports.protocol().to_string(),
        port: edge.ports.lo(),
        port_end: edge.ports.hi(),
        port_name: edge.port_name.as_ref().map(ToString::to_string),
        packets: there.packets,
        bytes: there.bytes,
        reply_packets: back.packets,
        reply_bytes: back.bytes,
    }
}

/// What the panel's elements have counted, by the pair of wires that they join.
#[derive(Debug)]
pub struct Counts {
    pairs: BTreeMap<(String, String), Vec<Counted>>,
}

#[derive(Debug)]
struct Counted {
    reply: bool,
    ports: Ports,
    count: Count,
}

impl Counts {
    /// From what was observed: one pass over the elements.
    pub fn new(observed: &Observed) -> Self {
        let names = observed_names(observed);
        let mut pairs: BTreeMap<(String, String), Vec<Counted>> = BTreeMap::new();
        let tables = observed.fabric.iter().flat_map(|fabric| &fabric.rules.tables);
        let sets = tables.flat_map(|((_, table), body)| body.sets.iter().map(move |(name, set)| (table, name, set)));
        for (table, name, set) in sets {
            let reply = match name.trim_end_matches(['4', '6']) {
                "edges" | "edge_ranges" => false,
                "replies" | "reply_ranges" => true,
                _ => continue,
            };
            for (key, out) in &set.elements {
                let count = observed.counters.get(&(table.clone(), name.clone(), key.clone()));
                let wire = |bytes: &[u8]| names.get(&u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).cloned();
                let joined = || Some((wire(&key.from)?, wire(out.as_deref()?)?, element_ports(key)?));
                if let (Some(count), Some((from, to, ports))) = (count, joined()) {
                    let pair = if reply { (to, from) } else { (from, to) };
                    pairs.entry(pair).or_default().push(Counted { reply, ports, count: *count });
                }
            }
        }
        Self { pairs }
    }

    /// What passed on an edge, there and back, both families together.
    pub fn of(&self, edge: &Edge) -> (Count, Count) {
        let from = match &edge.from {
            Origin::Host => Place::Host.long_name(),
            Origin::Service(service) => service.to_string(),
        };
        let to = match &edge.to {
            Target::Host => Place::Host.long_name(),
            Target::Service(service) => service.to_string(),
        };
        let counted = self.pairs.get(&(from, to)).map_or(&[][..], Vec::as_slice);
        let sum = |reply: bool| {
            let ours = counted.iter().filter(|one| one.reply == reply && one.ports.overlaps(&edge.ports));
            ours.fold(Count::default(), |sum, one| add(sum, one.count))
        };
        (sum(false), sum(true))
    }
}

/// The last two fields of a key are protocol and port, each padded to four bytes.
fn element_ports(key: &Key) -> Option<Ports> {
    let at = key.from.len().checked_sub(8)?;
    let protocol = match key.from.get(at)? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let port = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(at + 4..at + 6)?.try_into().ok()?));
    Ports::new(protocol, port(&key.from)?, port(key.to.as_ref().unwrap_or(&key.from))?).ok()
}

fn add(a: Count, b: Count) -> Count {
    Count { packets: a.packets + b.packets, bytes: a.bytes + b.bytes }
}

/// Each difference once, in the operator's words: edges and services first, then what else a turn would do, then what is
/// foreign.
pub fn drift(planned: &Planned) -> Vec<String> {
    let mut drift = undone(planned);
    let fabric = planned.observed.fabric.iter().flat_map(|fabric| &fabric.foreign_tables);
    drift.extend(fabric.map(|(family, name)| format!("foreign table {family} {name} in the fabric")));
    let restless = planned.observed.namespaces.iter().filter(|(_, namespace)| namespace.restless);
    drift.extend(restless.map(|(netns, _)| format!("somebody changes the rules inside {netns} without pause")));
    drift.extend(planned.observed.foreign.iter().map(|netns| format!("foreign namespace {netns}")));
    drift
}

/// What the next turn would do.
pub fn undone(planned: &Planned) -> Vec<String> {
    let mut undone: Vec<String> = planned.plan.changes.iter().map(change).collect();
    let told = !undone.is_empty();
    // No change tells of these.
    let apart =
        |step: &Step| matches!(step, Step::WriteFiles { .. } | Step::SetSysctl { .. } | Step::SetNetnsSysctl { .. });
    undone.extend(planned.plan.steps.iter().filter(|step| !told || apart(step)).map(ToString::to_string));
    undone
}

fn change(change: &Change) -> String {
    match change {
        Change::AddService { name, .. } => format!("service {name} is missing"),
        Change::RemoveService { netns } => format!("namespace {netns} is not in the policy"),
        Change::AddEdge(passage) => format!("edge {passage} is missing"),
        Change::RemoveEdge(passage) => format!("edge {passage} is not in the policy"),
        Change::Renumber { name, from, to } => format!("{name} has {from} and ought to have {to}"),
        Change::Repair { what } => what.clone(),
    }
}
