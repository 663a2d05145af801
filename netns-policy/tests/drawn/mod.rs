//! Policies drawn at random, written as an operator writes them, and a host for them to stand on.

use std::fmt::Write as _;
use std::net::IpAddr;

use netns_policy::Source;
use netns_policy::address::{AddressBook, AddressPlan};
use netns_policy::desired::Desired;
use netns_policy::graph::{AllowGraph, Origin, Target};
use netns_policy::network::HostNetwork;
use netns_policy::observed::Observed;
use netns_policy::ruleset::compile::Capabilities;
use netns_policy::ruleset::decide::walk::World;
use netns_policy::ruleset::expect::Ip;
use netns_policy::ruleset::expect::outside::Premises;
use netns_policy::topology::Place;
use proptest::prelude::*;

/// Names, one of them longer than a link's may be.
pub const NAMES: [&str; 6] = ["alpha", "joinmarket-ob-watcher", "charlie", "delta", "erin", "foxtrot"];

/// Ports that every service has: single ones, short ranges and long ones that overlap each other.
const PORTS: [(&str, &str); 8] = [
    ("api", "tcp:79-82"),
    ("big", "tcp:1000-1200"),
    ("bigger", "tcp:1100-1400"),
    ("dns", "udp:53"),
    ("far", "tcp:1401-1500"),
    ("media", "udp:1000-1200"),
    ("span", "tcp:70-200"),
    ("web", "tcp:80"),
];

/// Those of them that can be exposed: single ones.
const EXPOSED: [&str; 2] = ["dns", "web"];

const OUTBOUNDS: [&str; 9] = [
    "\"none\"",
    "\"none\"",
    "\"tor\"",
    "\"lan\"",
    "\"direct\"",
    "[\"lan\", \"direct\"]",
    "{ direct = [\"tcp:443\", \"tcp:400-500\", \"udp:123\"] }",
    "{ lan = [\"192.168.1.20/32 tcp:5000\", \"192.168.1.0/26 tcp:4990-5010\", \"udp:514\"] }",
    "{ lan = [\"192.168.1.20/32 tcp:443\"], direct = [\"tcp:443\"] }",
];

/// One service, as drawn.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Drawn {
    /// Its edges: number of the target, number of the port.
    pub edges: Vec<(usize, usize)>,
    tagged: bool,
    to_tag: bool,
    outbound: usize,
    dns: usize,
    limited: bool,
    /// Ports that are exposed on the host: for the prefixes of `lan` only, or for everybody.
    exposed: Vec<(bool, usize)>,
    /// Whether those of TCP are by a relay.
    relayed: bool,
}

/// A policy, as drawn.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    /// The services, with their numbers in [`NAMES`].
    pub services: Vec<(usize, Drawn)>,
    ipv6: bool,
    drop: bool,
    log: bool,
    resolvers: bool,
    /// Edges of the host.
    pub may_connect: Vec<(usize, usize)>,
    accepts: Vec<usize>,
}

fn service() -> impl Strategy<Value = Drawn> {
    let edges = prop::collection::vec((0..NAMES.len(), 0..PORTS.len()), 0..4);
    let weighted = prop::bool::weighted;
    let exposed = prop::collection::vec((any::<bool>(), 0..EXPOSED.len()), 0..3);
    let exposed = (prop_oneof![3 => Just(Vec::new()), 2 => exposed], weighted(0.4));
    (edges, any::<bool>(), weighted(0.2), 0..OUTBOUNDS.len(), 0usize..4, weighted(0.2), exposed).prop_map(
        |(edges, tagged, to_tag, outbound, dns, limited, (exposed, relayed))| Drawn {
            edges,
            tagged,
            to_tag,
            outbound,
            dns,
            limited,
            exposed,
            relayed,
        },
    )
}

/// A policy of two to `most` services.
pub fn policy(most: usize) -> impl Strategy<Value = Policy> {
    let numbers: Vec<usize> = (0..NAMES.len()).collect();
    let services = prop::sample::subsequence(numbers, 2..=most)
        .prop_flat_map(|numbers| numbers.into_iter().map(|n| (Just(n), service())).collect::<Vec<_>>());
    let host =
        (prop::collection::vec((0..NAMES.len(), 0..PORTS.len()), 0..2), prop::collection::vec(0..NAMES.len(), 0..2));
    let flags = (prop::bool::weighted(0.7), prop::bool::weighted(0.2), any::<bool>(), any::<bool>());
    (services, host, flags).prop_map(|(services, (may_connect, accepts), (ipv6, drop, log, resolvers))| Policy {
        services,
        ipv6,
        drop,
        log,
        resolvers,
        may_connect,
        accepts,
    })
}

impl Drawn {
    /// Each port once, at a port of the host that is nobody else's.
    fn exposes(&self, number: usize, text: &mut String) {
        let mut seen = Vec::new();
        for lan in [true, false] {
            let ways = self.exposed.iter().filter(|(to_lan, _)| *to_lan == lan);
            let mut ports = Vec::new();
            for (_, port) in ways {
                if !seen.contains(port) {
                    seen.push(*port);
                    ports.push(format!("\"{}\" = \"{}\"", 7000 + number * 10 + port, EXPOSED[*port]));
                }
            }
            if !ports.is_empty() {
                let word = if lan { "lan" } else { "port" };
                let relayed = self.relayed && !ports.iter().any(|port| port.contains("dns"));
                let relay = if relayed { ", relay = true, proxy = \"v2\"" } else { "" };
                writeln!(text, "expose.{word} = {{ ports = {{ {} }}{relay} }}", ports.join(", ")).unwrap();
            }
        }
    }
}

impl Policy {
    fn has(&self, number: usize) -> bool {
        self.services.iter().any(|(other, _)| *other == number)
    }

    /// The same policy, but for the services whose number is in `changes`: those are as they are in `other`.
    pub fn with_some_of(&self, other: &Self, changes: &[bool]) -> Self {
        let own = self.services.iter().filter(|(number, _)| !changes[*number]);
        let others = other.services.iter().filter(|(number, _)| changes[*number]);
        let mut services: Vec<_> = own.chain(others).cloned().collect();
        services.sort_by_key(|(number, _)| *number);
        Self { services, ..if changes[0] { other.clone() } else { self.clone() } }
    }

    /// The file.
    pub fn text(&self) -> String {
        let mut text = String::from("schema = 1\n\n[network]\nname = \"node\"\n");
        let lan6 = if self.ipv6 { ", \"fd99::/64\"" } else { "" };
        writeln!(text, "lan = [\"192.168.1.0/24\", \"192.168.1.128/25\", \"10.9.0.0/16\"{lan6}]").unwrap();
        writeln!(text, "ipv6 = {}", self.ipv6).unwrap();
        if self.resolvers {
            text.push_str("resolvers = [\"9.9.9.9\", \"2620:fe::fe\"]\n");
        }
        let denied = if self.drop { "drop" } else { "reject" };
        writeln!(text, "\n[defaults]\ndenied = \"{denied}\"\nlog = {}", self.log).unwrap();
        let tagged = self.services.iter().any(|(_, drawn)| drawn.tagged);
        let mut tor = false;
        for (number, drawn) in &self.services {
            tor |= self.service(*number, drawn, tagged, &mut text);
        }
        if tor {
            text.push_str("\n[service.tor]\nrole = \"tor\"\noutbound = \"direct\"\ndns = \"direct\"\n");
            text.push_str("ports = { socks = \"tcp:9050\", dns = \"udp:9053\" }\n");
        }
        self.host(&mut text);
        text
    }

    fn service(&self, number: usize, drawn: &Drawn, tagged: bool, text: &mut String) -> bool {
        let name = NAMES[number];
        let ports: Vec<String> = PORTS.iter().map(|(name, ports)| format!("{name} = \"{ports}\"")).collect();
        writeln!(text, "\n[service.{name}]\nports = {{ {} }}", ports.join(", ")).unwrap();
        if drawn.tagged {
            text.push_str("tags = [\"web\"]\n");
        }
        let outbound = OUTBOUNDS[drawn.outbound];
        let by_tor = outbound == "\"tor\"";
        let dns = match drawn.dns {
            0 => "none",
            1 => "names",
            2 if !by_tor => "direct",
            _ => "tor",
        };
        writeln!(text, "outbound = {outbound}\ndns = \"{dns}\"").unwrap();
        if drawn.limited {
            text.push_str("limits = { flows = 100, new_per_second = 50 }\n");
        }
        if drawn.to_tag && tagged {
            text.push_str("connect.\"@web\" = [\"web\", \"dns\"]\n");
        }
        drawn.exposes(number, text);
        let edges: Vec<_> = drawn.edges.iter().filter(|(to, _)| *to != number).copied().collect();
        self.connects("connect", &edges, text);
        by_tor || dns == "tor"
    }

    fn connects(&self, word: &str, edges: &[(usize, usize)], text: &mut String) {
        for (target, name) in NAMES.iter().enumerate().filter(|(target, _)| self.has(*target)) {
            let mut ports: Vec<usize> = edges.iter().filter(|(to, _)| *to == target).map(|(_, port)| *port).collect();
            ports.sort_unstable();
            ports.dedup();
            if !ports.is_empty() {
                let ports: Vec<String> = ports.iter().map(|port| format!("\"{}\"", PORTS[*port].0)).collect();
                writeln!(text, "{word}.{name} = [{}]", ports.join(", ")).unwrap();
            }
        }
    }

    fn host(&self, text: &mut String) {
        text.push_str("\n[host]\n");
        self.connects("may_connect", &self.may_connect, text);
        let mut from: Vec<&str> =
            self.accepts.iter().filter(|from| self.has(**from)).map(|from| NAMES[*from]).collect();
        from.sort_unstable();
        from.dedup();
        if !from.is_empty() {
            writeln!(text, "accepts = {{ backup = {{ port = \"tcp:8000\", from = {from:?} }} }}").unwrap();
        }
    }
}

/// The graph of a text.
pub fn graph(text: &str) -> AllowGraph {
    match AllowGraph::parse(&[Source::toml("policy.toml", text)]) {
        Ok(checked) => checked.graph,
        Err(errors) => panic!("{:#}\n{text}", errors.0[0]),
    }
}

/// A machine at home, with a public prefix on a second network.
pub fn host() -> HostNetwork {
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    HostNetwork {
        uplinks4: ["eth0".to_owned()].into(),
        uplinks6: ["eth0".to_owned()].into(),
        mtu: 1500,
        addresses: addresses(&["192.168.1.10", "203.0.113.5", "198.18.7.7", "2001:db8:1::5", "fd99::10"]),
        on_link: ["192.168.1.0/24", "203.0.113.0/29", "2001:db8:1::/64", "fd99::/64"]
            .map(|p| p.parse().unwrap())
            .into(),
        links: [
            ("eth0", vec!["192.168.1.0/24", "fd99::/64"]),
            ("eth1", vec!["10.9.0.0/24"]),
            ("eth2", vec!["203.0.113.0/29", "2001:db8:1::/64"]),
        ]
        .map(|(link, prefixes)| (link.to_owned(), prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect()))
        .into(),
        resolvers: vec!["192.168.1.1".parse().unwrap(), "fd99::1".parse().unwrap()],
        sysctls: [
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv4/conf/eth0/forwarding", "0"),
            ("net/ipv4/conf/eth1/forwarding", "0"),
            ("net/ipv4/conf/eth2/forwarding", "0"),
            ("net/ipv6/conf/all/forwarding", "0"),
        ]
        .map(|(path, value)| (path.to_owned(), value.to_owned()))
        .into(),
        before: Default::default(),
    }
}

/// Everything that follows from a policy on a machine where nothing is yet.
pub struct Made {
    pub graph: AllowGraph,
    pub addresses: AddressPlan,
    pub desired: Desired,
    pub host: HostNetwork,
    pub world: World,
}

impl Made {
    pub fn of(text: &str) -> Self {
        Self::on(host(), text)
    }

    pub fn on(host: HostNetwork, text: &str) -> Self {
        let graph = graph(text);
        let addresses = AddressPlan::assign(&graph, &AddressBook::default(), 0, false).unwrap();
        let observed = Observed { host: host.clone(), ..Observed::default() };
        let (desired, _) = Desired::new(&graph, &addresses, &observed, Capabilities { netdev_reject: true }, 0);
        let world = World::of(&desired, &host);
        Self { graph, addresses, desired, host, world }
    }

    pub fn premises(&self) -> Premises<'_> {
        Premises { graph: &self.graph, addresses: &self.addresses, host: &self.host }
    }

    /// The address of a party that has a wire.
    pub fn address(&self, name: &str, ip: Ip) -> Option<IpAddr> {
        let place = match name {
            "host" => Place::Host,
            service => Place::Service(service.parse().ok()?),
        };
        let addresses = self.desired.wires.get(&place)?.addresses;
        addresses.iter().find(|address| address.is_ipv4() == (ip == Ip::V4))
    }
}

/// The place of an origin.
pub fn from(origin: &Origin) -> Place {
    match origin {
        Origin::Host => Place::Host,
        Origin::Service(name) => Place::Service(name.clone()),
    }
}

/// The place of a target.
pub fn to(target: &Target) -> Place {
    match target {
        Target::Host => Place::Host,
        Target::Service(name) => Place::Service(name.clone()),
    }
}
