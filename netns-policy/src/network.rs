//! What the host's own network looks like, as far as the fabric's edge to the outside depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

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
    /// The resolvers that the host uses and that a forwarded packet can reach (loopback ones left out).
    pub resolvers: Vec<IpAddr>,
    /// Sysctls that matter here, by path below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
    /// What such a sysctl was before we first changed it, as recorded.
    pub before: BTreeMap<String, String>,
}

impl HostNetwork {
    /// The value a sysctl had before us: the recorded one, else the present one.
    pub fn original(&self, path: &str) -> Option<&str> {
        self.before.get(path).or_else(|| self.sysctls.get(path)).map(String::as_str)
    }
}
