//! Every right to open a connection inside the fabric, with addresses: what both locks are made of.

use super::EXPAND;
use crate::address::{AddressPlan, Addresses};
use crate::graph::{AllowGraph, Dns, Origin, Target};
use crate::port::{Ports, Protocol};
use crate::topology::Place;

/// One right: a wire and address to a wire and address, on ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// Who opens.
    pub from: Place,
    /// Its addresses.
    pub from_addresses: Addresses,
    /// Whose wire is reached.
    pub to: Place,
    /// The addresses that are called; for the resolver these are not the wire's own.
    pub to_addresses: Addresses,
    /// On which ports.
    pub ports: Ports,
}

impl Grant {
    /// Whether the one may ask if the other is there. Nobody is at the resolver's address, and a relay has no need to.
    pub(super) fn has_echo(&self) -> bool {
        self.to != Place::Uplink && self.from != Place::Relay
    }
}

/// Every grant of the policy, ordered by from, to and ports.
pub fn grants(graph: &AllowGraph, addresses: &AddressPlan) -> Vec<Grant> {
    let edges = graph.edges().iter().filter_map(|edge| {
        let from = match &edge.from {
            Origin::Host => Place::Host,
            Origin::Service(name) => Place::Service(name.clone()),
        };
        let to = match &edge.to {
            Target::Host => Place::Host,
            Target::Service(name) => Place::Service(name.clone()),
        };
        let (from_addresses, to_addresses) = (addresses.of(&from)?, addresses.of(&to)?);
        Some(Grant { from, from_addresses, to, to_addresses, ports: edge.ports })
    });
    join_ranges(edges.chain(dns(graph, addresses)).chain(relayed(graph, addresses)).collect())
}

/// Long ranges of one pair that overlap become one: an interval map takes no overlap.
fn join_ranges(grants: Vec<Grant>) -> Vec<Grant> {
    let mut joined: Vec<Grant> = Vec::with_capacity(grants.len());
    for grant in grants {
        let same = |last: &&mut Grant| {
            let pair = last.from == grant.from && last.to_addresses == grant.to_addresses;
            let long = last.ports.count() > EXPAND && grant.ports.count() > EXPAND;
            pair && long && last.ports.overlaps(&grant.ports)
        };
        // Edges are ordered by pair and first port, so what overlaps stands just behind.
        let behind = joined.iter_mut().rev().take_while(|last| last.from == grant.from && last.to == grant.to);
        match behind.into_iter().find(same) {
            Some(last) => {
                let (lo, hi) = (last.ports.lo().min(grant.ports.lo()), last.ports.hi().max(grant.ports.hi()));
                last.ports = Ports::new(grant.ports.protocol(), lo, hi).expect("the union of two ranges is a range");
            }
            None => joined.push(grant),
        }
    }
    joined
}

/// `relay = true`: the relay opens the connections to the service.
fn relayed(graph: &AllowGraph, addresses: &AddressPlan) -> impl Iterator<Item = Grant> {
    let exposures = graph.exposures().iter().filter(|exposure| exposure.way.relay().is_some());
    exposures.filter_map(|exposure| {
        let to = Place::Service(exposure.service.clone());
        let (from_addresses, to_addresses) = (addresses.of(&Place::Relay)?, addresses.of(&to)?);
        Some(Grant { from: Place::Relay, from_addresses, to, to_addresses, ports: exposure.ports })
    })
}

/// `dns = "direct"`: port 53 of the resolver's address in the uplink.
fn dns(graph: &AllowGraph, addresses: &AddressPlan) -> impl Iterator<Item = Grant> {
    let asking = graph.services().filter(|service| service.dns == Dns::Direct);
    asking.flat_map(|service| {
        let from = Place::Service(service.name.clone());
        let from_addresses = addresses.of(&from).expect("every service has an address");
        [Protocol::Tcp, Protocol::Udp].map(|protocol| Grant {
            from: from.clone(),
            from_addresses,
            to: Place::Uplink,
            to_addresses: addresses.resolver(),
            ports: Ports::new(protocol, 53, 53).expect("53 is a port"),
        })
    })
}
