//! Reads what exists, from the kernel alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use netns_policy::desired::{FABRIC_SYSCTLS, Files, HostRoute, Route, UPLINK_SYSCTLS};
use netns_policy::observed::{Link, Namespace, Observed};
use netns_policy::ruleset::Counters;
use netns_policy::ruleset::compile::{LEG, TABLE};
use netns_policy::topology::{fabric_netns, is_netns_of};

use super::link::LOOPBACK;
use super::netlink::{NetlinkError, Rtnl};
use super::nft::{Dump, NftSocket};
use super::sysctl::Sysctl;
use super::{KernelError, Linux, PROTOCOL, host, netns};

pub(super) fn observe(linux: &Linux) -> Result<Observed, KernelError> {
    let mut observed = Observed { host: host::network(linux)?, ..Observed::default() };
    let directory = &linux.netns_directory;
    let names = netns::pinned(directory).map_err(super::file_error("read", directory))?;
    let (fabric, others): (Vec<_>, Vec<_>) = names
        .into_iter()
        .filter(|name| is_netns_of(&linux.network, name))
        .partition(|name| *name == fabric_netns(&linux.network));
    // The fabric first: what it says of the others, nobody inside them can change.
    for name in fabric {
        match look(linux, &name)? {
            Some(seen) if is_ours(linux, &seen) => {
                observed.counters = seen.counters;
                observed.fabric = Some(seen.namespace);
            }
            _ => drop(observed.foreign.insert(name)),
        }
    }
    for name in others {
        let place = name.strip_prefix(linux.network.as_str()).unwrap_or_default().trim_start_matches('-');
        match look(linux, &name)? {
            Some(seen) if is_ours(linux, &seen) || observed.fabric_knows(&linux.network, place) => {
                observed.namespaces.insert(name, seen.namespace);
            }
            Some(Seen { alias: Some(alias), .. }) if alias.starts_with("nsctl:") => {
                observed.neighbours.insert(name);
            }
            _ => drop(observed.foreign.insert(name)),
        }
    }
    host_side(linux, &mut observed)?;
    observed.files = files(linux)?;
    Ok(observed)
}

/// What is in a namespace; nothing when the file is no namespace.
fn look(linux: &Linux, name: &str) -> Result<Option<Seen>, KernelError> {
    let keeps_knobs = name.contains('+');
    match linux.inside(name, move || namespace(keeps_knobs).map_err(io::Error::other)) {
        Ok(seen) => Ok(Some(seen)),
        // setns(2) says EINVAL of a file that is something else.
        Err(KernelError::Inside { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(e) => Err(e),
    }
}

/// The loopback link of a namespace that we made says so.
fn is_ours(linux: &Linux, seen: &Seen) -> bool {
    seen.alias.as_deref().is_some_and(|alias| alias.starts_with(&format!("nsctl:{}:", linux.network)))
}

struct Seen {
    namespace: Namespace,
    alias: Option<String>,
    counters: Counters,
}

/// Everything of ours in the namespace of the calling thread; of the fabric and a gateway, how they forward.
fn namespace(keeps_knobs: bool) -> Result<Seen, KernelError> {
    let mut rtnl = Rtnl::open()?;
    let links = rtnl.links()?;
    let alias = links.iter().find(|link| link.index == LOOPBACK).and_then(|link| link.alias.clone());
    let mut named = named_links(&mut rtnl, links)?;
    named.remove("lo");
    let (seen, restless) = match dump(|name| name == TABLE) {
        Ok(seen) => (seen, false),
        Err(KernelError::File { source, .. }) if source.kind() == io::ErrorKind::Interrupted => (Dump::default(), true),
        Err(e) => return Err(e),
    };
    let Dump { ruleset, counters, generation, tables, .. } = seen;
    let ours = ruleset.tables.keys().map(|(family, name)| (family_name(*family), name.clone())).collect();
    let all: BTreeSet<(String, String)> = tables.into_iter().collect();
    let foreign_tables = all.difference(&ours).cloned().collect();
    let sysctls = if keeps_knobs { sysctls() } else { BTreeMap::new() };
    let namespace = Namespace { links: named, rules: ruleset, foreign_tables, generation, restless, sysctls };
    Ok(Seen { namespace, alias, counters })
}

/// The knobs that are there: a kernel without IPv6 has none of its own.
fn sysctls() -> BTreeMap<String, String> {
    let paths: BTreeSet<&str> = FABRIC_SYSCTLS.into_iter().chain(UPLINK_SYSCTLS).map(|(path, _)| path).collect();
    paths.into_iter().filter_map(|path| Some((path.to_owned(), Sysctl::at(path).read().ok()?))).collect()
}

fn family_name(family: netns_policy::ruleset::Family) -> String {
    match family {
        netns_policy::ruleset::Family::Inet => "inet".into(),
        netns_policy::ruleset::Family::Netdev => "netdev".into(),
    }
}

fn dump(ours: impl Fn(&str) -> bool) -> Result<Dump, KernelError> {
    let socket = NftSocket::open().map_err(super::file_error("open", Path::new("nftables")))?;
    socket.dump(|_, name| ours(name)).map_err(super::file_error("read", Path::new("nftables")))
}

fn named_links(rtnl: &mut Rtnl, links: Vec<super::link::Link>) -> Result<BTreeMap<String, Link>, NetlinkError> {
    let addresses = rtnl.addresses()?;
    let routes = rtnl.routes(None)?;
    let named = links.into_iter().map(|link| {
        let own = addresses.iter().filter(|address| address.link == link.index).map(|address| address.address.ip());
        let by = routes.iter().filter(|route| route.link == Some(link.index) && route.protocol == PROTOCOL);
        let by = by.filter(|route| route.table == super::route::MAIN_TABLE);
        // What has a next hop is no route of a wire; by the leg it is the way out.
        let by = by.filter(|route| route.gateway.is_none() || link.name == LEG);
        let known = Link {
            index: link.index,
            peer: link.peer,
            alias: link.alias,
            altnames: link.altnames.into_iter().collect(),
            up: link.up,
            mtu: link.mtu,
            noarp: link.no_arp,
            addresses: own.collect(),
            routes: by.map(|r| Route { to: r.destination, mtu: r.mtu, source: r.source }).collect(),
        };
        (link.name, known)
    });
    Ok(named.collect())
}

fn host_side(linux: &Linux, observed: &mut Observed) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let ours = format!("nsctl:{}:", linux.network);
    let mut links = rtnl.links()?;
    links.retain(|link| link.alias.as_deref().is_some_and(|alias| alias.starts_with(&ours)));
    observed.host_links = named_links(&mut rtnl, links)?;
    let table = format!("{TABLE}-{}", linux.network);
    let seen = dump(|name| name == table)?;
    observed.host_rules = seen.ruleset;
    observed.host_generation = seen.generation;
    observed.host_route = host_route(linux, &mut rtnl)?;
    Ok(())
}

/// Our rules `iif lo to POOL lookup TABLE`, with the routes that they lead to.
fn host_route(linux: &Linux, rtnl: &mut Rtnl) -> Result<Option<HostRoute>, NetlinkError> {
    let (table, priority) = netns_policy::desired::host_route_numbers(&linux.network);
    let rules = rtnl.rules()?.into_iter().filter(|rule| rule.protocol == PROTOCOL && rule.priority == priority);
    let rules: Vec<_> = rules.collect();
    let routes = rtnl.routes(Some(table))?;
    let pools = rules.iter().filter_map(|rule| {
        let route = routes.iter().find(|route| route.destination == rule.to && route.protocol == PROTOCOL)?;
        Some((rule.to, route.source?))
    });
    let mut pools: Vec<_> = pools.collect();
    pools.sort();
    // A rule without its route, or a route without its rule, is something of ours that is not as it ought to be.
    let anything = !rules.is_empty() || routes.iter().any(|route| route.protocol == PROTOCOL);
    Ok(anything.then_some(HostRoute { table, priority, pools }))
}

fn files(linux: &Linux) -> Result<BTreeMap<netns_policy::name::ServiceName, Files>, KernelError> {
    let directory = linux.run_directory.join(linux.network.as_str());
    let names = netns::pinned(&directory).map_err(super::file_error("read", &directory))?;
    let prefix = format!("{}-", linux.network);
    let mut files = BTreeMap::new();
    for name in names {
        let Some(service) = name.strip_prefix(&prefix).and_then(|service| service.parse().ok()) else { continue };
        let read = |file: &str| std::fs::read_to_string(linux.files(&name).join(file)).unwrap_or_default();
        let seen =
            Files { hosts: read("hosts"), resolv_conf: read("resolv.conf"), nsswitch_conf: read("nsswitch.conf") };
        files.insert(service, seen);
    }
    Ok(files)
}
