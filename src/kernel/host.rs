//! The host's own network, as far as the way out depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netns_policy::network::HostNetwork;

use super::link::{LOOPBACK, Link};
use super::netlink::Rtnl;
use super::route::{MAIN_TABLE, Route, RouteType};
use super::sysctl::Sysctl;
use super::{KernelError, Linux, PROTOCOL};

pub(super) fn network(linux: &Linux) -> Result<HostNetwork, KernelError> {
    let mut rtnl = Rtnl::open()?;
    let links = rtnl.links()?;
    let routes: Vec<Route> = rtnl.routes(Some(MAIN_TABLE))?;
    let ours = |index: u32| links.iter().any(|link| link.index == index && is_ours(link));
    let marked = format!("nsctl:{}:", linux.network);
    let mine = |link: &Link| link.alias.as_deref().is_some_and(|alias| alias.starts_with(&marked));
    let neighbour = |index: u32| links.iter().any(|link| link.index == index && is_ours(link) && !mine(link));
    let all = rtnl.addresses()?;
    let neighbours = all.iter().filter(|address| neighbour(address.link)).map(|address| address.address.ip());
    let neighbours: Vec<IpNetwork> = neighbours.filter(|ip| !is_link_local(*ip)).map(IpNetwork::from).collect();
    let addresses: BTreeSet<IpAddr> = all
        .iter()
        .filter(|address| !ours(address.link))
        .map(|address| address.address.ip())
        .filter(|ip| !ip.is_loopback() && !is_link_local(*ip))
        .collect();
    let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    let defaults = |v4: bool| {
        let default = routes.iter().filter(move |route| {
            route.destination.prefix() == 0 && route.destination.is_ipv4() == v4 && route.kind == RouteType::Unicast
        });
        default.flat_map(Route::links).filter_map(name).collect::<BTreeSet<_>>()
    };
    let (uplinks4, uplinks6) = (defaults(true), defaults(false));
    let on_link = routes.iter().filter(|route| {
        let direct = route.gateway.is_none() && route.several.is_empty() && route.kind == RouteType::Unicast;
        direct
            && is_a_network(route.destination)
            && route.protocol != PROTOCOL
            && !route.link.is_some_and(ours)
            && !is_link_local(route.destination.ip())
    });
    let mut by_link: BTreeMap<String, BTreeSet<IpNetwork>> = BTreeMap::new();
    for route in on_link.clone().filter(|route| !route.destination.ip().is_multicast()) {
        if let Some(link) = route.link.and_then(name) {
            by_link.entry(link).or_default().insert(route.destination);
        }
    }
    // The pools of other networks of ours are their own business too, and so is what is on their links.
    let own = netns_policy::desired::host_tables(&linux.network);
    let others = rtnl.rules()?.into_iter().filter(|rule| rule.protocol == PROTOCOL && !own.contains(&rule.table));
    let on_link = on_link.map(|route| route.destination).filter(|to| !to.ip().is_multicast());
    let on_link = on_link.chain(others.map(|rule| rule.to)).chain(neighbours).collect();
    let uplinks: BTreeSet<&String> = uplinks4.iter().chain(&uplinks6).collect();
    let mtu = links.iter().filter(|link| uplinks.contains(&link.name)).map(|link| link.mtu).min();
    Ok(HostNetwork {
        mtu: mtu.unwrap_or(1500),
        sysctls: sysctls(linux, &links, uplinks4.iter().chain(by_link.keys())),
        resolvers: resolvers(&addresses),
        before: linux.before.clone(),
        uplinks4,
        uplinks6,
        addresses,
        on_link,
        links: by_link,
    })
}

fn is_ours(link: &Link) -> bool {
    link.alias.as_deref().is_some_and(|alias| alias.starts_with("nsctl:"))
}

/// Whether a prefix on a link is a network of neighbours. A tunnel takes half the internet (`0.0.0.0/1 dev tun0`), and
/// nobody there is a neighbour.
fn is_a_network(prefix: IpNetwork) -> bool {
    prefix.prefix() >= if prefix.is_ipv4() { 8 } else { 16 }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Those that a plan may set, those that it asks, and those that are recorded. One that is not there is left out.
fn sysctls<'a>(linux: &Linux, links: &[Link], near: impl Iterator<Item = &'a String>) -> BTreeMap<String, String> {
    let leg = netns_policy::topology::leg_link(&linux.network);
    let mut wanted = vec![Sysctl::ip_forward(), Sysctl::ipv6_forwarding(), Sysctl::ipv4(leg.as_str(), "forwarding")];
    wanted.extend(near.map(|link| Sysctl::ipv4(link, "forwarding")));
    // What may hear of a router: everybody else's links, and those to come.
    let others = links.iter().filter(|link| link.index != LOOPBACK && !is_ours(link)).map(|link| link.name.as_str());
    wanted.extend(others.chain(["default"]).map(|link| Sysctl::ipv6(link, "accept_ra")));
    wanted.extend(linux.before.keys().map(|path| Sysctl::at(path)));
    wanted.iter().filter_map(|knob| Some((knob.as_str().to_owned(), knob.read().ok()?))).collect()
}

/// The first resolvers of the host that can be reached from outside its own namespace: what systemd-resolved has in
/// its stub's place, else what resolv.conf(5) says.
fn resolvers(own: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let usable = |text: String| -> Vec<IpAddr> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
        lines.filter(|ip| !ip.is_loopback() && !is_link_local(*ip) && !own.contains(ip)).collect()
    };
    let listed = usable(read("/etc/resolv.conf"));
    if listed.is_empty() { usable(read("/run/systemd/resolve/resolv.conf")) } else { listed }
}
