//! What the host's own network looks like, as far as the fabric's edge to the outside depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::graph::AllowGraph;

/// The host's side of the way out. Read from the kernel; it changes while the machine runs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HostNetwork {
    /// Links that hold a default route, by family of the route.
    pub uplinks4: BTreeSet<String>,
    /// Links that hold an IPv6 default route.
    pub uplinks6: BTreeSet<String>,
    /// The smallest MTU of the uplinks, 1500 when there is none.
    pub mtu: u32,
    /// Every address of the host that is not loopback, link-local or of ours.
    pub addresses: BTreeSet<IpAddr>,
    /// Prefixes that are on a link of the host, this network's and link-local ones left out.
    pub on_link: BTreeSet<IpNetwork>,
    /// Those of them that are on a link of somebody else's, by the link's name.
    pub links: BTreeMap<String, BTreeSet<IpNetwork>>,
    /// The resolvers that the host uses and that a forwarded packet can reach (loopback ones left out).
    pub resolvers: Vec<IpAddr>,
    /// Sysctls that matter here, by path below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
    /// What such a sysctl was before we first changed it, as recorded.
    pub before: BTreeMap<String, String>,
}

impl HostNetwork {
    /// Links by which packets of IPv4 come that are sent on: the uplinks; and where people outside come in by ports of the
    /// host, those on which a prefix of `lan` lies.
    pub fn forwarding4(&self, graph: &AllowGraph) -> BTreeSet<String> {
        let near = self.links.iter().filter(|(_, prefixes)| brings_callers(graph, prefixes, true));
        self.uplinks4.iter().cloned().chain(near.map(|(link, _)| link.clone())).collect()
    }

    /// Whether packets of IPv6 are sent on, for which there is one switch.
    pub fn forwards6(&self, graph: &AllowGraph) -> bool {
        let near = self.links.values().any(|prefixes| brings_callers(graph, prefixes, false));
        graph.network().pool6.is_some() && (near || !self.uplinks6.is_empty())
    }

    /// The value a sysctl had before us: the recorded one, else the present one.
    pub fn original(&self, path: &str) -> Option<&str> {
        self.before.get(path).or_else(|| self.sysctls.get(path)).map(String::as_str)
    }
}

/// Whether a link with these prefixes may bring people who come in by ports of the host.
fn brings_callers(graph: &AllowGraph, prefixes: &BTreeSet<IpNetwork>, v4: bool) -> bool {
    let enters = graph.exposures().iter().any(|exposure| exposure.way.is_on_host());
    let meets = |a: &IpNetwork, b: &IpNetwork| a.contains(b.network()) || b.contains(a.network());
    let lan = || graph.network().lan.iter().filter(|prefix| prefix.is_ipv4() == v4);
    enters && lan().any(|lan| prefixes.iter().filter(|own| own.is_ipv4() == v4).any(|own| meets(lan, own)))
}
