//! Everything that ought to exist, nothing left to choose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use sha2::{Digest, Sha256};

use crate::address::{AddressPlan, Addresses};
use crate::graph::{AllowGraph, Dns, Origin, Service, Target};
use crate::name::{LinkName, NetworkName, ServiceName};
use crate::network::HostNetwork;
use crate::observed::Observed;
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Capabilities, Source};
use crate::topology::{Place, fabric_netns, leg_link, places, uses_uplink};

/// MTU of every wire inside: one IP packet of any legal size, so that nothing is fragmented there (a panel lets no
/// fragment through, and streams run 1.4 times as fast).
pub const INNER_MTU: u32 = 65535;

/// The group of every link of ours outside of the services: the wires' ends in the fabric and what stands on the host.
pub const GROUP: u32 = 0x6e73;

/// The lowest index of a wire; below are the links that the kernel makes itself.
pub const FIRST_INDEX: u32 = 16;

/// Everything that ought to exist for one policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Desired {
    /// The network's name, from which all other names follow.
    pub network: NetworkName,
    /// Every wire.
    pub wires: BTreeMap<Place, Wire>,
    /// The first lock; empty when nothing ought to exist.
    pub fabric: Ruleset,
    /// The second lock of every place, the host's table among them.
    pub locks: BTreeMap<Place, Ruleset>,
    /// The way out.
    pub leg: Option<Leg>,
    /// The host's way into the pool.
    pub host_route: Option<HostRoute>,
    /// Sysctls of the host by path below `/proc/sys`, in the order in which they are set.
    pub sysctls: Vec<(String, String)>,
    /// What resolves names in each service.
    pub files: BTreeMap<ServiceName, Files>,
}

/// A veth pair between a place and the fabric.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wire {
    /// Whose it is.
    pub place: Place,
    /// The namespace of the inner end; `None` for the host's.
    pub netns: Option<String>,
    /// The inner end.
    pub inner: LinkName,
    /// The end in the fabric.
    pub outer: LinkName,
    /// Its full name, where it had to be shortened.
    pub altname: Option<String>,
    /// Index of the end in the fabric.
    pub index: u32,
    /// Addresses of the inner end.
    pub addresses: Addresses,
    /// Routes by the inner end, `net0`.
    pub routes: BTreeSet<Route>,
    /// What marks it as ours.
    pub alias: String,
}

/// One route by a link of ours.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Route {
    /// Destination.
    pub to: IpNetwork,
    /// Bytes of a packet, where fewer than the link's.
    pub mtu: Option<u32>,
    /// The source that local packets get.
    pub source: Option<IpAddr>,
}

/// The veth pair between the host and the gateway `uplink`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leg {
    /// The host's end.
    pub host_link: LinkName,
    /// The host's addresses.
    pub host: Addresses,
    /// The gateway's addresses.
    pub gateway: Addresses,
    /// Bytes of a packet.
    pub mtu: u32,
    /// What marks it as ours.
    pub alias: String,
}

/// The rules and routes by which packets of the host itself, and no others, enter the pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostRoute {
    /// The routing table of what the host itself sends. The next one is for what others send through it, and refuses.
    pub table: u32,
    /// The priority of the rule `iif lo to POOL lookup TABLE`; that of `to POOL lookup TABLE+1` is the next.
    pub priority: u32,
    /// The pools, with the host's address in each.
    pub pools: Vec<(IpNetwork, IpAddr)>,
    /// What both tables leave to those behind them although it is in a pool: the gateway's end of the leg.
    pub passed: Vec<IpNetwork>,
}

/// The sysctls of the fabric that keep it from routing: it hands frames on, and nothing else may.
pub const FABRIC_SYSCTLS: [(&str, &str); 2] = [("net/ipv4/ip_forward", "0"), ("net/ipv6/conf/all/disable_ipv6", "1")];

/// The sysctls by which the gateway `uplink` routes.
pub const UPLINK_SYSCTLS: [(&str, &str); 2] = [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];

/// The files that a service sees in place of the host's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Files {
    /// hosts(5).
    pub hosts: String,
    /// resolv.conf(5).
    pub resolv_conf: String,
    /// nsswitch.conf(5).
    pub nsswitch_conf: String,
}

/// What marks a link of ours, readable with `ip link`.
pub fn alias(network: &NetworkName, place: &str) -> String {
    format!("nsctl:{network}:{place}")
}

impl Desired {
    /// Nothing: what `down` makes.
    pub fn nothing(network: &NetworkName) -> Self {
        Self {
            network: network.clone(),
            wires: BTreeMap::new(),
            fabric: Ruleset::default(),
            locks: BTreeMap::new(),
            leg: None,
            host_route: None,
            sysctls: Vec::new(),
            files: BTreeMap::new(),
        }
    }

    /// Everything for `graph`. Wires that are whole in `observed` keep their index; the others get new ones from
    /// `next_index` on, which comes back raised.
    pub fn new(
        graph: &AllowGraph,
        addresses: &AddressPlan,
        observed: &Observed,
        capabilities: Capabilities,
        next_index: u32,
    ) -> (Self, u32) {
        let network = &graph.network().name;
        let (indexes, next_index) = indexes(graph, addresses, observed, next_index);
        let host = &observed.host;
        let source = Source { graph, addresses, indexes: &indexes, host, capabilities };
        let wires: BTreeMap<Place, Wire> = indexes
            .iter()
            .filter_map(|(place, index)| Some((place.clone(), wire(graph, addresses, host, place, *index)?)))
            .collect();
        // The host's table serves the leg too.
        // Most of it exists already, and need not be in memory twice.
        let seen = |place: &Place| observed.rules(place, wires.get(place).and_then(|wire| wire.netns.as_deref()));
        let locks = source.locks_beside(wires.keys().cloned().chain([Place::Host]), seen);
        let mut fabric = source.fabric();
        observed.fabric.iter().for_each(|seen| fabric.share(&seen.rules));
        let uplink = indexes.contains_key(&Place::Uplink);
        let desired = Self {
            network: network.clone(),
            fabric,
            locks,
            leg: uplink.then(|| leg(network, addresses, host)),
            host_route: indexes.contains_key(&Place::Host).then(|| host_route(network, addresses, uplink)),
            sysctls: if uplink { sysctls(graph, host) } else { Vec::new() },
            files: graph.services().map(|s| (s.name.clone(), files(&source, s))).collect(),
            wires,
        };
        (desired, next_index)
    }

    /// The name of the fabric's namespace.
    pub fn fabric_netns(&self) -> String {
        fabric_netns(&self.network)
    }

    /// Whether there is to be a fabric at all.
    pub fn is_nothing(&self) -> bool {
        self.wires.is_empty()
    }
}

/// Which index each wire has. `next_index` rises above everything that the kernel still knows, so that a lost record
/// cannot bring a used index back.
fn indexes(
    graph: &AllowGraph,
    addresses: &AddressPlan,
    observed: &Observed,
    next_index: u32,
) -> (BTreeMap<Place, u32>, u32) {
    let mut next = next_index.max(FIRST_INDEX).max(observed.highest_index() + 1);
    let indexes = places(graph)
        .into_iter()
        .map(|place| {
            let kept = wire(graph, addresses, &observed.host, &place, 0).and_then(|wire| observed.whole_wire(&wire));
            let index = kept.unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            (place, index)
        })
        .collect();
    (indexes, next)
}

fn wire(graph: &AllowGraph, addresses: &AddressPlan, host: &HostNetwork, place: &Place, index: u32) -> Option<Wire> {
    let network = &graph.network().name;
    let outer = place.link();
    let long = place.long_name();
    let own = addresses.of(place)?;
    Some(Wire {
        place: place.clone(),
        netns: place.netns(network),
        inner: place.inner_link(network),
        altname: (outer.as_str() != long).then_some(long),
        outer,
        index,
        addresses: own,
        routes: routes(graph, addresses, host, place, own),
        alias: alias(network, &place.long_name()),
    })
}

fn routes(
    graph: &AllowGraph,
    addresses: &AddressPlan,
    host: &HostNetwork,
    place: &Place,
    own: Addresses,
) -> BTreeSet<Route> {
    if *place == Place::Host {
        return BTreeSet::new();
    }
    let pools = [Some(IpNetwork::V4(addresses.pool4())), addresses.pool6().map(IpNetwork::V6)];
    let source = |to: IpNetwork| own.iter().find(|address| address.is_ipv4() == to.is_ipv4());
    let mut routes: BTreeSet<Route> =
        pools.into_iter().flatten().map(|to| Route { to, mtu: None, source: source(to) }).collect();
    let leaves = match place {
        Place::Service(name) => graph.service(name.as_str()).is_some_and(|service| uses_uplink(graph, service)),
        // It answers who came in.
        Place::Relay => true,
        Place::Host | Place::Uplink => false,
    };
    if leaves {
        let everywhere = pools.into_iter().flatten().map(everything_of_family);
        routes.extend(everywhere.map(|to| Route { to, mtu: Some(outer_mtu(host)), source: source(to) }));
    }
    routes
}

fn everything_of_family(of: IpNetwork) -> IpNetwork {
    let any = if of.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    any.parse().expect("the constant is a prefix")
}

fn outer_mtu(host: &HostNetwork) -> u32 {
    if host.mtu == 0 { 1500 } else { host.mtu.clamp(1280, 1500) }
}

fn leg(network: &NetworkName, addresses: &AddressPlan, host: &HostNetwork) -> Leg {
    Leg {
        host_link: leg_link(network),
        host: addresses.leg_host(),
        gateway: addresses.leg_gateway(),
        mtu: outer_mtu(host),
        alias: alias(network, "+leg"),
    }
}

/// The routing table of what the host itself sends and the priority of the rules that lead to it. They follow from the
/// network's name, so that `down` finds what is there without a record. Two networks may share a priority, which the kernel
/// has few of; the table tells whose rule it is.
pub fn host_route_numbers(network: &NetworkName) -> (u32, u32) {
    let number = network.as_str().bytes().fold(0u32, |n, byte| n.wrapping_mul(31).wrapping_add(byte.into())) % 1000;
    let digest = Sha256::digest(network.as_str());
    let table = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    // Even, to leave the next one for what others send; and far above the numbers that people and programs choose.
    (table & 0x7fff_fffe | 0x4000_0000, 11_000 + number)
}

/// Both routing tables of the network on the host: of what the host itself sends, and of what it only passes on.
pub fn host_tables(network: &NetworkName) -> [u32; 2] {
    let (table, _) = host_route_numbers(network);
    [table, table + 1]
}

fn host_route(network: &NetworkName, addresses: &AddressPlan, uplink: bool) -> HostRoute {
    let (table, priority) = host_route_numbers(network);
    let own = addresses.of(&Place::Host).expect("the host has an address in every pool");
    let pools = [Some(IpNetwork::V4(addresses.pool4())), addresses.pool6().map(IpNetwork::V6)];
    let mut pools: Vec<_> = pools.into_iter().flatten().zip(own.iter()).collect();
    pools.sort();
    let mut passed: Vec<IpNetwork> =
        if uplink { addresses.leg_gateway().iter().map(Into::into).collect() } else { vec![] };
    passed.sort();
    HostRoute { table, priority, pools, passed }
}

/// Forwarding, for the leg and the uplinks alone where the kernel can (IPv4); for IPv6 it knows only one switch for
/// all, and that one makes it ignore router advertisements unless told otherwise first.
fn sysctls(graph: &AllowGraph, host: &HostNetwork) -> Vec<(String, String)> {
    let leg = leg_link(&graph.network().name);
    let on = |path: String| (path, "1".to_owned());
    let mut sysctls: Vec<_> = std::iter::once(leg.to_string())
        .chain(host.forwarding4(graph))
        .map(|link| on(format!("net/ipv4/conf/{link}/forwarding")))
        .collect();
    if host.forwards6(graph) {
        // All that listen, not only those with a route now: a link that comes later hears of its router as well.
        let knobs =
            host.sysctls.iter().filter(|(path, _)| path.starts_with("net/ipv6/") && path.ends_with("/accept_ra"));
        let listening = knobs.filter(|(_, value)| *value == "1" || *value == "2");
        sysctls.extend(listening.map(|(path, _)| (path.clone(), "2".to_owned())));
        sysctls.push(on("net/ipv6/conf/all/forwarding".into()));
    }
    sysctls
}

fn files(source: &Source, service: &Service) -> Files {
    let (graph, addresses) = (source.graph, source.addresses);
    let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
    let mut line = |address: IpAddr, name: &str| {
        writeln!(hosts, "{address} {name}").expect("writing to a string does not fail");
    };
    for address in addresses.service(service.name.as_str()).iter().flat_map(|a| a.iter().collect::<Vec<_>>()) {
        line(address, service.name.as_str());
    }
    for (name, reached) in neighbours(graph, addresses, service) {
        reached.iter().for_each(|address| line(address, &name));
    }
    let resolver = resolver(source, service);
    let nameservers: String = resolver.iter().map(|address| format!("nameserver {address}\n")).collect();
    let dns = if resolver.is_empty() { "" } else { " dns" };
    Files {
        hosts,
        resolv_conf: if nameservers.is_empty() {
            "# no resolver: dns is off for this service\n".into()
        } else {
            nameservers
        },
        nsswitch_conf: format!("passwd: files\ngroup: files\nshadow: files\nhosts: files{dns}\nnetworks: files\n"),
    }
}

/// The names `service` may reach, with their addresses, ordered by name.
pub fn neighbours(graph: &AllowGraph, addresses: &AddressPlan, service: &Service) -> BTreeMap<String, Addresses> {
    let me = Origin::Service(service.name.clone());
    let mine = graph.edges().iter().filter(|edge| edge.from == me);
    mine.filter_map(|edge| match &edge.to {
        Target::Host => Some(("host".to_owned(), addresses.of(&Place::Host)?)),
        Target::Service(name) => Some((name.to_string(), addresses.service(name.as_str())?)),
    })
    .collect()
}

/// Where `service` asks. In the uplink a question is sent on to a resolver of its own family, so an address without one
/// behind it would only cost time; while none is known yet, IPv4 stands in.
fn resolver(source: &Source, service: &Service) -> Vec<IpAddr> {
    let (graph, addresses) = (source.graph, source.addresses);
    let of = |addresses: Option<Addresses>| addresses.iter().flat_map(|a| a.iter().collect::<Vec<_>>()).collect();
    match service.dns {
        Dns::Direct => {
            let answered = |address: &IpAddr| source.resolvers().iter().any(|r| r.is_ipv4() == address.is_ipv4());
            let served: Vec<IpAddr> = addresses.resolver().iter().filter(answered).collect();
            if served.is_empty() { vec![addresses.resolver().v4.into()] } else { served }
        }
        Dns::None | Dns::Names => Vec::new(),
        Dns::Tor => {
            let tor = graph.services().find(|service| service.is_tor);
            of(tor.and_then(|tor| addresses.service(tor.name.as_str())))
        }
    }
}
