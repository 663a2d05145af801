//! The allow-graph: who may open a connection to whom.
//!
//! # Invariants
//!
//! - Both ends of every [`Edge`] name something declared and enabled.
//! - No edge leads from a service to itself: loopback is always open.
//! - Tags are resolved, port names are resolved, implicit edges (`outbound = "tor"`) are written out.
//! - Iteration is ordered by name. Two equal policies give equal graphs, whatever the order of their lines and files.
//!
//! The only way to get an [`AllowGraph`] is [`AllowGraph::parse`], so code that holds one need not check any of this
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::Serialize;

use crate::exposure::Exposure;
use crate::name::{FragmentName, NetworkName, PeerName, PortName, ServiceName, Tag};
use crate::never::{Expectation, Never};
use crate::port::{Ports, Protocol};

/// A place in a file that the operator wrote: what messages and `why` point at.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Location {
    /// The file as it was named when it was read.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Where an edge starts.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    /// The machine itself.
    Host,
    /// A service of this network.
    Service(ServiceName),
}

/// Where an edge ends.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Target {
    /// The machine itself.
    Host,
    /// A service of this network.
    Service(ServiceName),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.pad("host"),
            Self::Service(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.pad("host"),
            Self::Service(name) => name.fmt(f),
        }
    }
}

/// What made an edge.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Cause {
    /// `connect.TARGET`, `may_connect.TARGET` or `[host] accepts`, written for exactly this target.
    Written,
    /// `connect."@TAG"`.
    Tag(Tag),
    /// `outbound = "tor"` or `dns = "tor"`: the edge to the service with `role = "tor"`.
    Tor,
}

/// A right to open a connection: from, to, ports. Directed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Edge {
    /// Who may open it.
    pub from: Origin,
    /// Who is reached.
    pub to: Target,
    /// On which ports of the target.
    pub ports: Ports,
    /// The name the target gives to exactly these ports, where it has one.
    pub port_name: Option<PortName>,
    /// What made it.
    pub cause: Cause,
    /// Where it is written (the first place, when several say the same).
    pub at: Location,
}

impl Edge {
    /// What makes two edges the same edge: everything but where it was written and why.
    pub fn key(&self) -> (&Origin, &Target, Ports) {
        (&self.from, &self.to, self.ports)
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}:", self.from, self.to)?;
        match &self.port_name {
            Some(name) => write!(f, "{name}"),
            None => write!(f, "{}", self.ports),
        }
    }
}

/// A right to open a unix socket: from, to, which. Directed.
///
/// A socket that has a path does not end at a network namespace, so no rule of the fabric can hold it: whoever sees the
/// path and may write to it can open it. The edge says who ought to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SocketEdge {
    /// Who may open it.
    pub from: ServiceName,
    /// Whose socket it is.
    pub to: ServiceName,
    /// Its name there.
    pub name: PortName,
    /// Where it lies.
    pub path: String,
    /// What made it: [`Cause::Written`] or [`Cause::Tag`].
    pub cause: Cause,
    /// Where it is written (the first place, when several say the same).
    pub at: Location,
}

impl SocketEdge {
    /// What makes two edges the same edge: everything but where it was written and why.
    pub fn key(&self) -> (&ServiceName, &ServiceName, &PortName) {
        (&self.from, &self.to, &self.name)
    }
}

impl fmt::Display for SocketEdge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}:unix:{}", self.from, self.to, self.name)
    }
}

/// `[network]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Network {
    /// Prefix of every namespace.
    pub name: NetworkName,
    /// Where IPv4 addresses come from; a private prefix of length 8 to 26.
    pub pool4: Ipv4Network,
    /// Where IPv6 addresses come from: as written, or a ULA /64 derived from the network's name (RFC 4193);
    /// `None` when `ipv6 = false`.
    pub pool6: Option<Ipv6Network>,
    /// What the word `lan` means.
    pub lan: Vec<IpNetwork>,
    /// Resolvers for `dns = "direct"`; empty means the host's own.
    pub resolvers: Vec<std::net::IpAddr>,
}

/// What a service may reach outside, besides tor (which is an edge like any other).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outbound {
    /// `outbound = "tor"`: informs `why`; the edges are in the graph.
    pub tor: bool,
    /// `lan` without a restriction: every prefix of `[network] lan`, any protocol.
    pub lan: bool,
    /// `direct` without a restriction: every public remote address, any protocol.
    pub direct: bool,
    /// `{ lan = ["192.168.1.20/32 tcp:5000", "tcp:53"] }`: these prefixes, these ports.
    pub lan_only: Vec<(IpNetwork, Ports)>,
    /// `{ direct = ["tcp:443"] }`: these ports of every public remote address.
    pub direct_only: Vec<Ports>,
    /// Where it is written, for `why`.
    pub at: Option<Location>,
}

impl Outbound {
    /// Whether nothing but the fabric can be reached (tor counts as the fabric).
    pub fn stays_inside(&self) -> bool {
        !self.reaches_lan() && !self.reaches_wan()
    }

    /// Whether anything of the local network can be reached.
    pub fn reaches_lan(&self) -> bool {
        self.lan || !self.lan_only.is_empty()
    }

    /// Whether anything of the Internet can be reached without tor.
    pub fn reaches_wan(&self) -> bool {
        self.direct || !self.direct_only.is_empty()
    }
}

/// How names are resolved inside a service.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Dns {
    /// Through the uplink, by `[network] resolvers` or the host's resolvers.
    Direct,
    /// Only the hosts file with the names of neighbours; the same as `Names`, said more strictly.
    #[default]
    None,
    /// Only the names of the services that it may reach.
    Names,
    /// Through the tor service's port `dns`.
    Tor,
}

/// What a denied connection meets.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Denied {
    /// Silence.
    Drop,
    /// An immediate refusal.
    #[default]
    Reject,
}

/// `[defaults]`, the part that is not folded into each service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Defaults {
    /// What a denied connection meets.
    pub denied: Denied,
    /// Whether refusals are sampled to NFLOG.
    pub log: bool,
}

/// `limits = { flows = 2000, new_per_second = 200 }`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Limits {
    /// Most connections this service may have open as a client at once.
    pub flows: Option<u32>,
    /// Most connections this service may open in a second.
    pub new_per_second: Option<u32>,
}

/// `[service.NAME]`, enabled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// The fragment that defines it; `None` when the operator does.
    pub fragment: Option<FragmentName>,
    /// `unit = "x.service"`.
    pub unit: Option<String>,
    /// Its ports by name.
    pub ports: BTreeMap<PortName, Ports>,
    /// Its unix sockets by name: where each lies.
    pub sockets: BTreeMap<PortName, String>,
    /// Ports that may never be exposed beyond the machine.
    pub private: BTreeSet<PortName>,
    /// Its tags.
    pub tags: BTreeSet<Tag>,
    /// What it may reach outside.
    pub outbound: Outbound,
    /// How it resolves names.
    pub dns: Dns,
    /// Its limits.
    pub limits: Limits,
    /// `role = "tor"`.
    pub is_tor: bool,
    /// `was = "old-name"`: the name under which its address is recorded.
    pub was: Option<ServiceName>,
    /// `address4 = "10.231.0.9"`.
    pub address4: Option<std::net::Ipv4Addr>,
    /// `address6 = "fd6e:..."`.
    pub address6: Option<std::net::Ipv6Addr>,
    /// Where `[service.NAME]` stands.
    pub at: Location,
}

impl Service {
    /// The name this service gives to the port, if any; the narrowest range wins.
    pub fn port_name(&self, protocol: Protocol, port: u16) -> Option<&PortName> {
        self.ports
            .iter()
            .filter(|(_, ports)| ports.covers(protocol, port))
            .min_by_key(|(_, ports)| ports.count())
            .map(|(name, _)| name)
    }
}

/// `[peer.NAME]`: public keys only.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its name.
    pub name: PeerName,
    /// WireGuard public key, base64 of 32 bytes.
    pub wireguard: Option<String>,
    /// Onion client key, `descriptor:x25519:BASE32`.
    pub onion: Option<String>,
    /// Where `[peer.NAME]` stands.
    pub at: Location,
}

/// The allow-graph of one policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllowGraph {
    pub(crate) network: Network,
    pub(crate) defaults: Defaults,
    pub(crate) services: BTreeMap<ServiceName, Service>,
    pub(crate) peers: BTreeMap<PeerName, Peer>,
    pub(crate) edges: Vec<Edge>,
    pub(crate) exposures: Vec<Exposure>,
    pub(crate) exposes_nothing: bool,
    pub(crate) written: Written,
}

/// What a policy says besides what it allows: for explanations, never for rules.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Written {
    /// `[[never]]`, which all hold.
    pub(crate) nevers: Vec<Never>,
    /// Services with `enabled = false`.
    pub(crate) disabled: BTreeSet<ServiceName>,
    /// Who may open whose unix sockets: no rule of the fabric can say anything about them.
    pub(crate) sockets: Vec<SocketEdge>,
    /// `[[test]]`, which all hold.
    pub(crate) tests: Vec<Expectation>,
}

impl AllowGraph {
    /// `[network]`.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// `[defaults]`.
    pub fn defaults(&self) -> Defaults {
        self.defaults
    }

    /// Every enabled service, ordered by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The enabled service of that name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    /// Every peer, ordered by name.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    /// Every edge inside the fabric, ordered by from, to and ports; no two have the same [`Edge::key`].
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// Every right to open a unix socket, ordered by from, to and name; no two have the same [`SocketEdge::key`]. It is
    /// the business of whoever gives a service its mounts to hold them; nothing here does.
    pub fn sockets(&self) -> &[SocketEdge] {
        &self.written.sockets
    }

    /// The unix sockets that `service` may open.
    pub fn sockets_from(&self, service: &ServiceName) -> &[SocketEdge] {
        let all = self.sockets();
        let first = all.partition_point(|socket| socket.from < *service);
        let count = all[first..].partition_point(|socket| socket.from == *service);
        &all[first..first + count]
    }

    /// Every way in from outside, ordered by service; none where `[expose] all = "off"` closes them all.
    pub fn exposures(&self) -> &[Exposure] {
        if self.exposes_nothing { &[] } else { &self.exposures }
    }

    /// Every way in that is written, open or not, ordered by service.
    pub fn written_exposures(&self) -> &[Exposure] {
        &self.exposures
    }

    /// Whether `[expose] all = "off"` closes every way in.
    pub fn exposes_nothing(&self) -> bool {
        self.exposes_nothing
    }

    /// The edge that lets `from` open a connection to `port` of `to`, if there is one.
    pub fn allows(&self, from: &Origin, to: &Target, protocol: Protocol, port: u16) -> Option<&Edge> {
        self.edges.iter().find(|edge| edge.from == *from && edge.to == *to && edge.ports.covers(protocol, port))
    }

    /// The edges that start at `origin`.
    pub fn edges_from(&self, origin: &Origin) -> &[Edge] {
        let first = self.edges.partition_point(|edge| edge.from < *origin);
        let count = self.edges[first..].partition_point(|edge| edge.from == *origin);
        &self.edges[first..first + count]
    }

    /// The invariants of the policy; all of them hold.
    pub fn nevers(&self) -> &[Never] {
        &self.written.nevers
    }

    /// Names of services that are defined and switched off.
    pub fn disabled(&self) -> impl Iterator<Item = &ServiceName> {
        self.written.disabled.iter()
    }

    /// Whether both say the same, wherever in whatever files they are written.
    pub fn same_as(&self, other: &Self) -> bool {
        self.nowhere() == other.nowhere()
    }

    pub(crate) fn nowhere(&self) -> Self {
        let nowhere = || Location { file: String::new(), line: 0, column: 0 };
        let mut graph = self.clone();
        for service in graph.services.values_mut() {
            service.at = nowhere();
            service.outbound.at = None;
        }
        graph.peers.values_mut().for_each(|peer| peer.at = nowhere());
        graph.edges.iter_mut().for_each(|edge| edge.at = nowhere());
        graph.exposures.iter_mut().for_each(|exposure| exposure.at = nowhere());
        graph.written.sockets.iter_mut().for_each(|socket| socket.at = nowhere());
        graph.written.nevers.iter_mut().for_each(|never| never.at = nowhere());
        graph.written.nevers.sort();
        graph.written.nevers.dedup();
        graph.written.tests.sort();
        graph.written.tests.dedup();
        graph
    }

    /// Whether the host has any edge, as origin or as target.
    pub fn uses_host(&self) -> bool {
        self.edges.iter().any(|edge| edge.from == Origin::Host || edge.to == Target::Host)
    }
}
