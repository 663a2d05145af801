//! What workers have to do in the gateway `relay`, for exposures with `relay = true`.
//!
//! The rules lead who may come in to a port of the gateway, and let the gateway open connections to the services; what is
//! between, a worker in the gateway's namespace does (`Place::Relay.netns(NETWORK)`).
//!
//! # Invariants
//!
//! - No two relays listen at one address and port.
//! - The locks let in and out exactly what is said here: a worker that does more is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::IpNetwork;

use crate::address::{AddressPlan, Addresses};
use crate::exposure::{Handover, Way};
use crate::graph::AllowGraph;
use crate::name::{PortName, ServiceName};
use crate::topology::Place;

/// One port to listen at, and whom to hand its connections to. TCP.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Relay {
    /// The service that is reached.
    pub service: ServiceName,
    /// The name of its port.
    pub port_name: PortName,
    /// Where to listen, in the gateway's namespace: the same port for each version of IP.
    pub listen: Vec<SocketAddr>,
    /// Whom to call, for each version of IP; any of them will do.
    pub to: Vec<SocketAddr>,
    /// Whether each connection begins with a header of the PROXY protocol, version 2.
    pub proxy: bool,
    /// Who may come in, as far as the rules are concerned; nobody of the pools ever.
    pub sources: Vec<IpNetwork>,
}

/// Every relay of a policy, ordered by service; none while its exposures are off.
pub fn relays(graph: &AllowGraph, addresses: &AddressPlan) -> Vec<Relay> {
    let own = addresses.of(&Place::Relay);
    let relays = graph.exposures().iter().filter_map(|exposure| {
        let handover = exposure.way.relay()?;
        Some(Relay {
            service: exposure.service.clone(),
            port_name: exposure.port_name.clone(),
            listen: at(own?, exposure.way.external()?),
            to: at(addresses.service(exposure.service.as_str())?, exposure.ports.lo()),
            proxy: handover == Handover::ProxyV2,
            sources: sources(graph, &exposure.way),
        })
    });
    relays.collect()
}

fn at(addresses: Addresses, port: u16) -> Vec<SocketAddr> {
    addresses.iter().map(|address| SocketAddr::new(address, port)).collect()
}

fn sources(graph: &AllowGraph, way: &Way) -> Vec<IpNetwork> {
    let network = graph.network();
    let everybody = |address: IpAddr| IpNetwork::new(address, 0).expect("no bit is too long");
    let all = match way {
        Way::Lan { .. } => network.lan.clone(),
        _ => vec![everybody(Ipv4Addr::UNSPECIFIED.into()), everybody(Ipv6Addr::UNSPECIFIED.into())],
    };
    all.into_iter().filter(|prefix| prefix.is_ipv4() || network.pool6.is_some()).collect()
}
