//! Who listens where, compared with the ports that the policy declares.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use netns_policy::graph::{Service, Target};
use netns_policy::port::{Ports, Protocol};
use netns_policy::topology::Place;

use super::view::{Household, View};
use super::{Check, or_ok};
use crate::kernel::listener::{Listener, listeners, receivers};
use crate::kernel::sysctl::Sysctl;

/// How many ports of one service are told one by one.
const MOST: usize = 8;

pub(super) fn checks(view: &View) -> Vec<Check> {
    let mut found = Vec::new();
    for service in view.planned.checked.graph.services() {
        let place = Place::Service(service.name.clone());
        let netns = place.netns(&view.planned.desired.network);
        let home = view.households.iter().find(|home| Some(&home.netns) == netns.as_ref());
        let Some(home) = home else { continue };
        match view.linux.inside(&home.netns, || Ok((listeners()?, receivers()?, passing_ports()))) {
            Ok((tcp, udp, passing)) => {
                let heard = Heard { tcp, udp, passing };
                found.extend(undeclared(service, &home.netns, &heard));
                found.extend(unheard(view, service, home, &heard));
            }
            Err(error) => found.push(Check::warn(
                "listeners",
                format!("who listens in {} cannot be read: {error}", home.netns),
                format!("`ip netns exec {} ss -lntu`", home.netns),
            )),
        }
    }
    let found = found.into_iter().map(|check| if check.place.is_some() { check } else { check.at("host") }).collect();
    or_ok(
        found,
        "listeners",
        "whoever listens does so where the policy declares it, and somebody does where it is needed",
    )
}

struct Heard {
    tcp: Vec<Listener>,
    udp: Vec<Listener>,
    /// The ports that the kernel gives to whoever only sends.
    passing: RangeInclusive<u16>,
}

impl Heard {
    fn of(&self, protocol: Protocol) -> &[Listener] {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }

    fn on(&self, ports: &Ports) -> impl Iterator<Item = &Listener> {
        let protocol = ports.protocol();
        self.of(protocol).iter().filter(move |one| ports.covers(protocol, one.port))
    }
}

fn passing_ports() -> RangeInclusive<u16> {
    let range = Sysctl::at("net/ipv4/ip_local_port_range").read().unwrap_or_default();
    let mut ends = range.split_whitespace().filter_map(|end| end.parse().ok());
    ends.next().unwrap_or(32768)..=ends.next().unwrap_or(60999)
}

fn is_loopback(listener: &Listener) -> bool {
    listener.address.to_canonical().is_loopback()
}

/// Listeners that others could reach if the policy declared them: nobody does, and somebody may think so.
fn undeclared(service: &Service, netns: &str, heard: &Heard) -> Vec<Check> {
    let declared = |protocol, port| service.ports.values().any(|ports| ports.covers(protocol, port));
    let mut ports = BTreeSet::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let open = heard.of(protocol).iter().filter(|one| !is_loopback(one) && !declared(protocol, one.port));
        // A socket that has sent something and waits for the answer looks like one that serves.
        let open = open.filter(|one| protocol == Protocol::Tcp || !heard.passing.contains(&one.port));
        ports.extend(open.map(|one| (protocol.to_string(), one.port, one.address)));
    }
    let name = service.name.as_str();
    let next = format!("declare it under [service.{name}] ports, or let it listen on loopback");
    let told = ports.iter().take(MOST).map(|(protocol, port, address)| {
        let at = std::net::SocketAddr::new(*address, *port);
        let seen = format!("{name} listens on {at} ({protocol}), which the policy does not declare: nobody reaches it");
        Check::warn("listeners", seen, next.clone()).at(name)
    });
    let mut told: Vec<Check> = told.collect();
    if let Some(more) = ports.len().checked_sub(MOST).filter(|more| *more > 0) {
        let seen = format!("{name} listens on {more} more ports that the policy does not declare");
        told.push(Check::warn("listeners", seen, format!("look at them: `ip netns exec {netns} ss -lntu`")).at(name));
    }
    told
}

/// Declared ports where nobody listens, or on loopback only.
fn unheard(view: &View, service: &Service, home: &Household, heard: &Heard) -> Vec<Check> {
    let graph = &view.planned.checked.graph;
    let mut found = Vec::new();
    for (port, ports) in &service.ports {
        let name = format!("{}:{port} ({ports})", service.name);
        let mut here = heard.on(ports).peekable();
        let exposed = graph.exposures().iter().any(|way| way.service == service.name && way.port_name == *port);
        let to_it = |edge: &netns_policy::graph::Edge| {
            edge.to == Target::Service(service.name.clone()) && edge.ports.overlaps(ports)
        };
        let wanted = exposed || graph.edges().iter().any(to_it);
        if here.peek().is_some() && here.all(is_loopback) {
            let address = view.planned.addresses.service(service.name.as_str()).map(|own| own.v4.to_string());
            let next = format!("let it bind {} or 0.0.0.0", address.unwrap_or_default());
            let seen = format!("{name} listens on loopback only, where nobody reaches it");
            let check = if wanted { Check::fail } else { Check::warn };
            found.push(check("listeners", seen, next).at(service.name.as_str()));
        } else if heard.on(ports).next().is_none() && exposed {
            let seen = format!("{name} is exposed, and nobody listens");
            found.push(Check::warn("listeners", seen, "start it, or let it listen there").at(service.name.as_str()));
        } else if heard.on(ports).next().is_none() && wanted && !home.processes.is_empty() {
            let seen = format!("{name} has clients, its service runs, and nobody listens there");
            found.push(Check::warn("listeners", seen, "let it listen there").at(service.name.as_str()));
        }
    }
    found
}
