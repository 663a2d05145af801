//! The classes: every address at which an answer can change, every port likewise.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Kind, NOT_PUBLIC4, NOT_PUBLIC6, OutsideClass, Premises, prefixes};
use crate::graph::Service;
use crate::port::Protocol;

/// Ordinary machines, and machines in the ranges for documentation.
const PUBLIC: [&str; 6] = ["9.9.9.9", "203.0.113.77", "198.51.100.1", "192.0.2.1", "2001:db8::77", "2620:fe::9"];
/// Routers of whom an error may come: public ones, private ones, one of shared address space.
const ROUTERS: [&str; 5] = ["203.0.113.1", "192.168.7.1", "100.64.0.1", "2620:fe::1", "fd77::1"];
/// SCTP.
const OTHER_PROTOCOL: u8 = 132;

/// Every address that stands for others: the ends of every range in which an answer may differ, and their neighbours.
pub fn destinations(premises: &Premises<'_>) -> BTreeSet<IpAddr> {
    let written = premises.graph.services().flat_map(|service| &service.outbound.lan_only).map(|(prefix, _)| *prefix);
    let pools = [Some(IpNetwork::V4(premises.addresses.pool4())), premises.addresses.pool6().map(IpNetwork::V6)];
    let ranges = prefixes(&NOT_PUBLIC4).into_iter().chain(prefixes(&NOT_PUBLIC6)).chain(written);
    let ranges = ranges.chain(pools.into_iter().flatten()).chain(premises.graph.network().lan.iter().copied());
    let ranges = ranges.chain(premises.host.on_link.iter().copied());
    let own = premises.host.addresses.iter().copied();
    let own = own.chain(premises.addresses.leg_host().iter().collect::<Vec<_>>());
    let own = own.chain(premises.addresses.resolver().iter().collect::<Vec<_>>());
    let public = PUBLIC.iter().filter_map(|text| text.parse().ok());
    ranges.flat_map(around).chain(own).chain(public).filter(|to| !belongs(premises, *to)).collect()
}

/// Addresses in the fabric are the business of the other classes.
fn belongs(premises: &Premises<'_>, to: IpAddr) -> bool {
    let services = premises.graph.services().filter_map(|service| premises.addresses.service(service.name.as_str()));
    use crate::topology::Place;
    let gateways = [&Place::Host, &Place::Relay, &Place::Uplink];
    let all = services.chain(gateways.into_iter().filter_map(|place| premises.addresses.of(place)));
    let mut all = all.chain([premises.addresses.leg_gateway()]);
    all.any(|own| own.iter().any(|own| own == to))
}

fn around(range: IpNetwork) -> Vec<IpAddr> {
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let most = if range.is_ipv4() { u128::from(u32::MAX) } else { u128::MAX };
    let (lo, hi) = (number(range.network()), number(range.broadcast()));
    let numbers = [lo.checked_sub(1), Some(lo), Some(hi), hi.checked_add(1).filter(|next| *next <= most)];
    let back = |number: u128| match range {
        IpNetwork::V4(_) => u32::try_from(number).ok().map(|number| IpAddr::V4(number.into())),
        IpNetwork::V6(_) => Some(IpAddr::V6(number.into())),
    };
    numbers.into_iter().flatten().filter_map(back).collect()
}

/// Every class for every service.
pub fn classes<'a>(premises: &'a Premises<'a>) -> impl Iterator<Item = OutsideClass> + 'a {
    let destinations = destinations(premises);
    premises.graph.services().flat_map(move |service| {
        let ports = ports(premises, service);
        let each = destinations.clone().into_iter().flat_map(move |remote| {
            let class =
                move |kind, port| OutsideClass { service: service.name.clone(), remote, port, own_port: 40_000, kind };
            let mut all: Vec<OutsideClass> = once(premises, service).into_iter().map(|kind| class(kind, 443)).collect();
            for port in &ports {
                all.extend(at_port(premises, service, remote).into_iter().map(|kind| class(kind, *port)));
            }
            all
        });
        each.collect::<Vec<_>>()
    })
}

fn ports(premises: &Premises<'_>, service: &Service) -> BTreeSet<u16> {
    let outbound = &service.outbound;
    let own = outbound.lan_only.iter().map(|(_, ports)| *ports).chain(outbound.direct_only.iter().copied());
    let received = premises.graph.edges().iter().filter(|edge| edge.to.to_string() == service.name.as_str());
    let around = own
        .chain(received.map(|edge| edge.ports).take(2))
        .flat_map(|ports| [ports.lo().saturating_sub(1), ports.lo(), ports.hi(), ports.hi().saturating_add(1)]);
    let exposed = premises.graph.exposures().iter().filter(|exposure| exposure.service == service.name);
    let exposed = exposed.filter(|exposure| exposure.way.is_on_host()).flat_map(|exposure| {
        let outside = exposure.way.external().unwrap_or_default();
        [outside.saturating_sub(1), outside, exposure.ports.lo()]
    });
    around.chain(exposed).chain([53, 443]).filter(|port| *port != 0).collect()
}

fn once(premises: &Premises<'_>, service: &Service) -> Vec<Kind> {
    let others = premises.graph.services().filter(|other| other.name != service.name);
    let claimed = others.map(|other| other.name.clone());
    let fragments = [(true, true), (true, false), (false, true), (false, false)];
    let mut kinds = vec![Kind::Echo, Kind::EchoIn, Kind::MidStream, Kind::Untracked];
    kinds.push(Kind::OtherProtocol(OTHER_PROTOCOL));
    kinds.extend(fragments.map(|(leaves, first)| Kind::Fragment { leaves, first }));
    kinds.extend(claimed.into_iter().map(Kind::Spoofed));
    kinds
}

fn at_port(premises: &Premises<'_>, service: &Service, remote: IpAddr) -> Vec<Kind> {
    let both = [Protocol::Tcp, Protocol::Udp];
    let mut kinds: Vec<Kind> = Vec::new();
    for of in [Kind::New, Kind::Data, Kind::Reply, Kind::Unsolicited, Kind::Opening, Kind::Call] {
        kinds.extend(both.map(of));
    }
    let routers = ROUTERS.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    for router in routers.filter(|router| router.is_ipv4() == remote.is_ipv4()).chain([remote]) {
        let error = |kind, open| Kind::Error { router, kind, open };
        kinds.extend([1, 2, 3, 5, 11].map(|kind| error(kind, true)));
        kinds.push(error(3, false));
    }
    let others = premises.graph.services().filter(|other| other.name != service.name);
    kinds.extend(others.map(|other| Kind::FromGateway(other.name.clone())));
    kinds
}
