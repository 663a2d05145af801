//! What a relay is told: which connections go where.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// What a relay does.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its ways, each with a listener.
    pub routes: Vec<Route>,
    /// How much it takes on.
    #[serde(default)]
    pub limits: Limits,
}

/// One way: what connects to `listen` is carried to `target`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Its name, once in a relay. A route that keeps its name and its `listen` keeps its listener.
    pub name: String,
    /// Where it listens, in the worker's namespace. An IPv6 address means IPv6 only.
    pub listen: SocketAddr,
    /// What it connects to, from the worker's namespace.
    pub target: SocketAddr,
    /// Whether the client's address is told in a PROXY protocol header, version 2.
    pub proxy: bool,
    /// Who may; nobody else is let in when it is not empty. The fabric has asked before: this is the second lock.
    pub sources: Vec<IpNetwork>,
}

/// Bounds of a relay.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Connections at one time.
    pub connections: u32,
    /// Of these, from one source: one IPv4 address, or one IPv6 /64.
    pub per_source: u32,
    /// How long a target may take to answer, in seconds.
    pub connect: u32,
    /// After how many seconds without a byte in either direction a connection is closed. Peers that are gone are
    /// found out earlier, by keepalive.
    pub idle: u32,
    /// How many seconds without a byte a connection may stay when others have no place.
    pub stay: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1024, per_source: 128, connect: 10, idle: 4 * 3600, stay: 60 }
    }
}

impl Config {
    /// The ports that it connects to.
    pub fn target_ports(&self) -> BTreeSet<u16> {
        self.routes.iter().map(|route| route.target.port()).collect()
    }
}

impl Route {
    /// Whether `source` may come in.
    pub fn admits(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        self.sources.is_empty() || self.sources.iter().any(|prefix| prefix.contains(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_admits_its_sources_and_without_any_everybody() {
        let text = r#"{"name":"a","listen":"0.0.0.0:80","target":"10.0.0.1:80","proxy":false,
                       "sources":["192.168.0.0/16","fd00::/8"]}"#;
        let route: Route = serde_json::from_str(text).unwrap();
        for (source, admitted) in [
            ("192.168.3.4", true),
            ("::ffff:192.168.3.4", true),
            ("fd01::1", true),
            ("10.0.0.9", false),
            ("::1", false),
        ] {
            assert_eq!(route.admits(source.parse().unwrap()), admitted, "{source}");
        }
        assert!(Route { sources: Vec::new(), ..route }.admits("10.0.0.9".parse().unwrap()));
    }
}
