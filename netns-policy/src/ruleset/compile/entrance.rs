//! Ways in by a port of the host (`expose.lan`, `expose.port`), with addresses: what the host's table, the gateway, the
//! panel and the locks are told of them.
//!
//! # Invariants
//!
//! - Nobody of the pools is ever among those who may come in.
//! - No two ranges that come out of here for one entrance overlap.

use std::net::IpAddr;

use super::Source;
use super::outside::{Range, address, join, number};
use super::vocabulary::{KeyBuilder, Version, key};
use crate::address::Addresses;
use crate::exposure::Way;
use crate::port::Protocol;
use crate::ruleset::Key;
use crate::topology::Place;

/// One way in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entrance {
    /// From the prefixes of `[network] lan` only.
    lan: bool,
    pub(super) protocol: Protocol,
    /// The port of the host, and of the gateway's end of the leg.
    pub(super) outside: u16,
    /// Whose wire is reached.
    pub(super) to: Place,
    /// At which addresses.
    pub(super) to_addresses: Addresses,
    /// At which port.
    pub(super) port: u16,
}

/// Every way in by a port of the host, ordered by service.
pub(super) fn entrances(source: &Source) -> Vec<Entrance> {
    let all = source.graph.exposures().iter().filter_map(|exposure| {
        let (Way::Lan { external, .. } | Way::Port { external, .. }) = exposure.way else { return None };
        // The relay is called at the port that is called outside, and calls the service's own.
        let (to, port) = match exposure.way.relay() {
            Some(_) => (Place::Relay, external),
            None => (Place::Service(exposure.service.clone()), exposure.ports.lo()),
        };
        Some(Entrance {
            lan: matches!(exposure.way, Way::Lan { .. }),
            protocol: exposure.ports.protocol(),
            outside: external,
            to_addresses: source.addresses.of(&to)?,
            to,
            port,
        })
    });
    all.collect()
}

impl Entrance {
    /// Who may come.
    pub(super) fn sources(&self, source: &Source, v: Version) -> Vec<Range> {
        let prefixes = source.graph.network().lan.iter().map(|prefix| (prefix.network(), prefix.broadcast()));
        let lan = prefixes.filter(|(from, _)| Version::of(*from) == v);
        let all = if self.lan { join(lan.collect()) } else { vec![everybody(v)] };
        match source.pool(v) {
            Some(pool) => all.into_iter().flat_map(|range| without(v, range, pool)).collect(),
            None => vec![],
        }
    }

    /// The address that is reached, and who may come, as far as both speak this version.
    pub(super) fn of(&self, source: &Source, v: Version) -> Option<(IpAddr, Vec<Range>)> {
        let to = self.to_addresses.iter().find(|address| Version::of(*address) == v)?;
        Some((to, self.sources(source, v)))
    }

    /// Ends a key with the protocol and a port.
    pub(super) fn fill(&self, start: KeyBuilder, port: u16) -> KeyBuilder {
        start.proto(self.protocol.number()).port(port)
    }

    /// FROM . TO . PROTOCOL . PORT, a range for each who may come.
    pub(super) fn keys(&self, from: &[Range], to: IpAddr, port: u16) -> Vec<Key> {
        let start = |(lo, hi): &Range| key().addrs(*lo, *hi).addr(to);
        from.iter().map(|range| self.fill(start(range), port).range_key()).collect()
    }

    /// FROM . PROTOCOL . PORT.
    pub(super) fn keys_here(&self, from: &[Range], port: u16) -> Vec<Key> {
        from.iter().map(|(lo, hi)| self.fill(key().addrs(*lo, *hi), port).range_key()).collect()
    }
}

fn everybody(v: Version) -> Range {
    (address(v, 0), address(v, if v == Version::V4 { u32::MAX.into() } else { u128::MAX }))
}

/// What is left of a range beside another.
fn without(v: Version, (lo, hi): Range, (from, to): Range) -> Vec<Range> {
    let (low, high) = (number(lo), number(hi));
    let below = number(from).checked_sub(1).map(|end| (low, high.min(end)));
    let above = number(to).checked_add(1).map(|start| (low.max(start), high));
    let left = [below, above].into_iter().flatten().filter(|(low, high)| low <= high);
    left.map(|(low, high)| (address(v, low), address(v, high))).collect()
}
