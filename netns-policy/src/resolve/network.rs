//! `[network]`: the pools, checked as far as text alone can tell.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use sha2::{Digest, Sha256};

use crate::graph::Network;
use crate::name::NetworkName;
use crate::syntax::findings::{At, Draft, Findings, Sp};

use super::merge::{Policy, set};

/// `[network]` with its defaults; `None` when it has mistakes, which are reported.
pub(crate) fn network(policy: &Policy, out: &mut Findings) -> Option<Network> {
    let written = &policy.network;
    let pool4 = written.pool4.map_or(Some(default_pool4()), |pool| pool4(pool, out));
    let pool6 = written.pool6.map(|pool| pool6(pool, out));
    let name = written.name.as_ref().map(|name| name.value.clone());
    if let Some(pool4) = pool4 {
        check_room(policy, pool4, out);
        check_fixed4(policy, pool4, out);
        check_lan(policy, IpNetwork::V4(pool4), out);
    }
    let name = name?;
    let enabled6 = written.ipv6.is_none_or(|ipv6| ipv6.value);
    let pool6 = pool6.unwrap_or_else(|| Some(derived_pool6(&name)));
    if let Some(pool6) = pool6.filter(|_| enabled6) {
        check_fixed6(policy, pool6, out);
        check_lan(policy, IpNetwork::V6(pool6), out);
    }
    let (lan, resolvers) = (set(&written.lan), set(&written.resolvers));
    Some(Network { name, pool4: pool4?, pool6: pool6.filter(|_| enabled6), lan, resolvers })
}

/// A network to go on checking with when the written one has mistakes.
pub(crate) fn nameless() -> Network {
    let name = "unnamed".parse().expect("the word is well formed");
    Network { name, pool4: default_pool4(), pool6: None, lan: Vec::new(), resolvers: Vec::new() }
}

fn default_pool4() -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::new(10, 231, 0, 0), 22).expect("22 is a prefix length of IPv4")
}

/// A unique local /64 (RFC 4193): `fd`, 40 bits of the SHA-256 of the network's name, subnet 0. Everybody who reads the
/// same policy gets the same prefix.
fn derived_pool6(name: &NetworkName) -> Ipv6Network {
    let digest = Sha256::digest(name.as_str().as_bytes());
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&digest[..5]);
    Ipv6Network::new(Ipv6Addr::from(octets), 64).expect("64 is a prefix length of IPv6")
}

fn pool4(pool: Sp<IpNetwork>, out: &mut Findings) -> Option<Ipv4Network> {
    let IpNetwork::V4(network) = pool.value else {
        out.add(
            Draft::new("E0504", pool.at, format!("{} is not an IPv4 prefix", pool.value)).help("IPv6 goes to `pool6`"),
        );
        return None;
    };
    if !(8..=26).contains(&network.prefix()) {
        let message = format!("a pool has a length from 8 to 26, this one has {}", network.prefix());
        out.add(Draft::new("E0504", pool.at, message));
        return None;
    }
    if network.ip().is_link_local() {
        let draft =
            Draft::new("W0508", pool.at, format!("{network} is link-local, where clouds keep their metadata service"));
        out.add(draft.help("take a prefix of 10.0.0.0/8"));
        return Some(network);
    }
    let private = [(10, 0, 8), (172, 16, 12), (192, 168, 16), (100, 64, 10)].iter().any(|(a, b, len)| {
        let range = Ipv4Network::new(Ipv4Addr::new(*a, *b, 0, 0), *len).expect("written out above");
        network.is_subnet_of(range)
    });
    if !private {
        let message = format!("{network} is {}", what_it_is(network.ip()));
        out.add(
            Draft::new("E0504", pool.at, message).help("take a private prefix (RFC 1918), as in \"10.231.0.0/22\""),
        );
    }
    private.then_some(network)
}

fn what_it_is(ip: Ipv4Addr) -> &'static str {
    match ip {
        ip if ip.is_loopback() => "loopback",
        ip if ip.is_multicast() => "multicast",
        ip if ip.is_documentation() => "reserved for documentation",
        _ => "not a private prefix",
    }
}

fn pool6(pool: Sp<IpNetwork>, out: &mut Findings) -> Option<Ipv6Network> {
    let help = "take a prefix under fd00::/8 (RFC 4193), or leave `pool6` out to have one derived";
    let (message, network) = match pool.value {
        IpNetwork::V4(v4) => (format!("{v4} is not an IPv6 prefix"), None),
        IpNetwork::V6(v6) if v6.ip().octets()[0] & 0xfe != 0xfc || v6.prefix() < 7 => {
            (format!("{v6} is not a unique local prefix"), None)
        }
        IpNetwork::V6(v6) if v6.prefix() > 112 => (format!("{v6} is too small, the longest is a /112"), None),
        IpNetwork::V6(v6) => (String::new(), Some(v6)),
    };
    if network.is_none() {
        out.add(Draft::new("E0507", pool.at, message).help(help));
    }
    network
}

/// Where a finding about the pool points when nothing is written.
fn pool_at(pool: Option<Sp<IpNetwork>>) -> At {
    pool.map_or(At::top(0), |pool| pool.at)
}

fn check_room(policy: &Policy, pool: Ipv4Network, out: &mut Findings) {
    let services = policy.services.iter().filter(|service| service.is_enabled()).count();
    let room = crate::address::room(pool);
    if services > room {
        let message = format!("{pool} has {room} addresses for {services} services");
        out.add(Draft::new("E0502", pool_at(policy.network.pool4), message).help("take a shorter prefix"));
    }
}

fn check_fixed4(policy: &Policy, pool: Ipv4Network, out: &mut Findings) {
    let mut taken = std::collections::BTreeMap::new();
    for address in policy.services.iter().filter_map(|service| service.address4) {
        let ip = address.value;
        if !pool.contains(ip) {
            out.add(Draft::new("E0506", address.at, format!("{ip} is not in the pool {pool}")));
        } else if ip == pool.network() || ip == pool.broadcast() {
            out.add(Draft::new("E0506", address.at, format!("{ip} is the first or last address of the pool {pool}")));
        } else if let Some((first, at)) = taken.insert(ip, address.at).map(|other| address.at.in_order(other)) {
            let draft = Draft::new("E0506", at, format!("{ip} is given to two services"));
            out.add(draft.second(first, "first here"));
        }
    }
}

fn check_fixed6(policy: &Policy, pool: Ipv6Network, out: &mut Findings) {
    let mut taken = std::collections::BTreeMap::new();
    for address in policy.services.iter().filter_map(|service| service.address6) {
        let ip = address.value;
        if !pool.contains(ip) {
            out.add(Draft::new("E0506", address.at, format!("{ip} is not in the pool {pool}")));
        } else if ip == pool.network() {
            out.add(Draft::new("E0506", address.at, format!("{ip} is the first address of the pool {pool}")));
        } else if let Some((first, at)) = taken.insert(ip, address.at).map(|other| address.at.in_order(other)) {
            let draft = Draft::new("E0506", at, format!("{ip} is given to two services"));
            out.add(draft.second(first, "first here"));
        }
    }
}

fn check_lan(policy: &Policy, pool: IpNetwork, out: &mut Findings) {
    let outbounds = policy.services.iter().filter_map(|s| s.outbound.as_ref()).chain(&policy.defaults.outbound);
    let only = outbounds.flat_map(|outbound| &outbound.value.lan_only).map(|only| Sp::new(only.value.0, only.at));
    for lan in policy.network.lan.iter().copied().chain(only) {
        if overlap(lan.value, pool) {
            let draft = Draft::new("E0805", lan.at, format!("{} overlaps the pool {pool}", lan.value));
            out.add(draft.help("services are reached by edges; choose another pool"));
        }
    }
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    match (a, b) {
        (IpNetwork::V4(a), IpNetwork::V4(b)) => a.overlaps(b),
        (IpNetwork::V6(a), IpNetwork::V6(b)) => a.overlaps(b),
        _ => false,
    }
}
