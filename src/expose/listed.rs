//! Every way in as `nsctl exposed` lists it.

use std::net::{IpAddr, SocketAddr};

use netns_policy::exposure::{Exposure, Way};
use netns_policy::graph::{AllowGraph, Location};

use crate::status::exposure_state;

/// A way in.
#[derive(Clone, Debug)]
pub struct Listed {
    /// `onion`, `wireguard`, `clearnet`, `lan` or `port`.
    pub way: &'static str,
    /// Where it is outside: addresses with their port for a port of the machine, a domain name; empty where nobody knows.
    pub outside: Vec<String>,
    /// The port outside, where the way has one.
    pub outside_port: Option<u16>,
    /// The service.
    pub service: String,
    /// The name of its port.
    pub port: String,
    /// Who may: prefixes, peers, `everybody`.
    pub who: Vec<String>,
    /// `open`, `off`, `not served`, `needs the daemon`, `relay: ready`, `relay: backing off: WHY`.
    pub state: String,
    /// Where it is written.
    pub at: Location,
}

/// Every way in that a policy writes, on a machine with these addresses; `relay` is how the relay is, where the daemon
/// tells.
pub fn listed(graph: &AllowGraph, machine: &[IpAddr], relay: Option<&str>) -> Vec<Listed> {
    let one = |exposure: &Exposure| Listed {
        way: exposure.way.word(),
        outside: outside(graph, machine, &exposure.way),
        outside_port: exposure.way.external(),
        service: exposure.service.to_string(),
        port: exposure.port_name.to_string(),
        who: who(graph, &exposure.way),
        state: state(graph, &exposure.way, relay),
        at: exposure.at.clone(),
    };
    graph.written_exposures().iter().map(one).collect()
}

fn state(graph: &AllowGraph, way: &Way, relay: Option<&str>) -> String {
    match relay {
        _ if graph.exposes_nothing() => "off".into(),
        Some(relay) if way.relay().is_some() => format!("relay: {relay}"),
        _ => exposure_state(way).to_owned(),
    }
}

fn outside(graph: &AllowGraph, machine: &[IpAddr], way: &Way) -> Vec<String> {
    let at = |external: u16, is_meant: &dyn Fn(&IpAddr) -> bool| {
        let meant = machine.iter().filter(|ip| is_meant(ip));
        meant.map(|ip| SocketAddr::new(*ip, external).to_string()).collect()
    };
    match way {
        Way::Clearnet { domain, .. } => vec![domain.clone()],
        Way::Lan { external, .. } => at(*external, &|ip| graph.network().lan.iter().any(|prefix| prefix.contains(*ip))),
        Way::Port { external, .. } => at(*external, &|_| true),
        Way::Onion { .. } | Way::WireGuard { .. } => Vec::new(),
    }
}

fn who(graph: &AllowGraph, way: &Way) -> Vec<String> {
    let everybody = || vec!["everybody".to_owned()];
    match way {
        Way::Lan { .. } => graph.network().lan.iter().map(ToString::to_string).collect(),
        Way::Onion { clients, .. } if !clients.is_empty() => clients.iter().map(ToString::to_string).collect(),
        Way::WireGuard { peers } => peers.iter().map(ToString::to_string).collect(),
        Way::Clearnet { .. } | Way::Onion { .. } | Way::Port { .. } => everybody(),
    }
}
