//! Reads what exists, from the kernel alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use netns_policy::desired::{FABRIC_SYSCTLS, Files, HostRoute, Route, UPLINK_SYSCTLS};
use netns_policy::observed::{Link, Namespace, Observed};
use netns_policy::ruleset::compile::{LEG, TABLE, unrecorded};
use netns_policy::ruleset::{Counters, Ruleset};
use netns_policy::topology::{Place, fabric_netns, is_netns_of, leg_link};

use super::address::Address;
use super::link::LOOPBACK;
use super::netlink::{NetlinkError, Rtnl};
use super::nft::{Dump, NftSocket};
use super::route::{Route as InForce, RouteType};
use super::rule::IpRule;
use super::sysctl::Sysctl;
use super::{GROUP, KernelError, Linux, PROTOCOL, host, netns};

/// What every service calls its own end of its wire.
const INNER: &str = "net0";

pub(super) fn observe(linux: &Linux) -> Result<Observed, KernelError> {
    let mut observed = Observed { host: host::network(linux)?, ..Observed::default() };
    let directory = &linux.netns_directory;
    let names = netns::pinned(directory).map_err(super::file_error("read", directory))?;
    let (fabric, others): (Vec<_>, Vec<_>) = names
        .into_iter()
        .filter(|name| is_netns_of(&linux.network, name) && !netns::is_leftover(&linux.pin(name)))
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
    let mut previous = Ruleset::default();
    for name in others {
        let place = name.strip_prefix(linux.network.as_str()).unwrap_or_default().trim_start_matches('-');
        let seen = if place.starts_with('+') { look(linux, &name)? } else { peer_into(linux, &name)? };
        match seen {
            // The fabric and our own directory say the same of it, and nobody inside can change those.
            Some(mut seen)
                if is_ours(linux, &seen)
                    || observed.fabric_knows(&linux.network, place)
                    || linux.files(&name).join("hosts").is_file() =>
            {
                seen.namespace.rules.share(&previous);
                previous.clone_from(&seen.namespace.rules);
                observed.namespaces.insert(name, seen.namespace);
            }
            Some(Seen { alias: Some(alias), .. }) if alias.starts_with("nsctl:") => {
                observed.neighbours.insert(name);
            }
            _ => drop(observed.foreign.insert(name)),
        }
    }
    host_side(linux, &mut observed)?;
    let unrecorded = unrecorded(&linux.network, &observed);
    observed.host.before.extend(unrecorded);
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

/// What concerns us in a service's namespace. Whoever is root in there can spoil what it holds, but not the reading of
/// the others: what cannot be read makes it restless.
fn peer_into(linux: &Linux, name: &str) -> Result<Option<Seen>, KernelError> {
    match linux.inside(name, || Ok(service())) {
        Ok(seen) => Ok(Some(seen)),
        Err(KernelError::Inside { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(e) => Err(e),
    }
}

/// The inner end of the wire and our rules in the namespace of the calling thread, with all else left unread.
fn service() -> Seen {
    let alias = Rtnl::open_wary().and_then(|mut rtnl| rtnl.link(LOOPBACK)).ok().flatten().and_then(|link| link.alias);
    let (links, whole) = match Rtnl::open_wary().and_then(|mut rtnl| inner_end(&mut rtnl)) {
        Ok(links) => (links, true),
        Err(_) => (BTreeMap::new(), false),
    };
    let (seen, still) = match NftSocket::open_wary().and_then(|socket| socket.dump(|_, name| name == TABLE)) {
        Ok(seen) => (seen, true),
        Err(_) => (Dump::default(), false),
    };
    seen_of(links, alias, seen, !whole || !still, BTreeMap::new())
}

fn inner_end(rtnl: &mut Rtnl) -> Result<BTreeMap<String, Link>, NetlinkError> {
    let Some(link) = rtnl.link_named(INNER)? else { return Ok(BTreeMap::new()) };
    let (addresses, routes) = (rtnl.addresses_of(link.index)?, rtnl.routes_by(link.index, PROTOCOL)?);
    Ok(with_addresses(vec![link], &addresses, &routes))
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
    // What the kernel itself puts into every namespace, nobody has put there, and nobody can take away.
    let made = links.into_iter().filter(|link| link.index != LOOPBACK && !link.is_fallback()).collect();
    let named = named_links(&mut rtnl, made)?;
    let (seen, restless) = match dump(|name| name == TABLE) {
        Ok(seen) => (seen, false),
        Err(KernelError::File { source, .. }) if source.kind() == io::ErrorKind::Interrupted => (Dump::default(), true),
        Err(e) => return Err(e),
    };
    let sysctls = if keeps_knobs { sysctls() } else { BTreeMap::new() };
    Ok(seen_of(named, alias, seen, restless, sysctls))
}

fn seen_of(
    links: BTreeMap<String, Link>,
    alias: Option<String>,
    seen: Dump,
    restless: bool,
    sysctls: BTreeMap<String, String>,
) -> Seen {
    let Dump { ruleset, counters, generation, tables, .. } = seen;
    let ours = ruleset.tables.keys().map(|(family, name)| (family_name(*family), name.clone())).collect();
    let all: BTreeSet<(String, String)> = tables.into_iter().collect();
    let foreign_tables = all.difference(&ours).cloned().collect();
    let namespace = Namespace { links, rules: ruleset, foreign_tables, generation, restless, sysctls };
    Seen { namespace, alias, counters }
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
    Ok(with_addresses(links, &addresses, &routes))
}

fn with_addresses(links: Vec<super::link::Link>, addresses: &[Address], routes: &[InForce]) -> BTreeMap<String, Link> {
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
    named.collect()
}

fn host_side(linux: &Linux, observed: &mut Observed) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let ours = format!("nsctl:{}:", linux.network);
    let mut links = rtnl.links()?;
    observed.foreign_links = foreign_links(linux, &links);
    links.retain(|link| link.alias.as_deref().is_some_and(|alias| alias.starts_with(&ours)));
    observed.host_links = named_links(&mut rtnl, links)?;
    let table = format!("{TABLE}-{}", linux.network);
    let seen = dump(|name| name == table)?;
    observed.host_rules = seen.ruleset;
    observed.host_generation = seen.generation;
    observed.host_route = host_route(linux, &mut rtnl)?;
    Ok(())
}

/// Links with a name of ours that we did not make. Ours have the group from their first moment on, the alias a message
/// later.
fn foreign_links(linux: &Linux, links: &[super::link::Link]) -> BTreeSet<String> {
    let ours = format!("nsctl:{}:", linux.network);
    let marked = |alias: &Option<String>| alias.as_deref().is_some_and(|alias| alias.starts_with(&ours));
    let foreign = |link: &&super::link::Link| link.group != GROUP && !marked(&link.alias);
    let names = [Place::Host.inner_link(&linux.network), leg_link(&linux.network)].map(|name| name.to_string());
    let bears =
        |name: &String| links.iter().filter(foreign).any(|link| link.name == *name || link.altnames.contains(name));
    names.into_iter().filter(bears).collect()
}

/// Our rules to the two tables, with the routes that they lead to: a pool counts when all of it is there.
fn host_route(linux: &Linux, rtnl: &mut Rtnl) -> Result<Option<HostRoute>, NetlinkError> {
    let (table, priority) = netns_policy::desired::host_route_numbers(&linux.network);
    let (rules, routes) = host_tables(linux, rtnl)?;
    let has = |wanted: &IpRule| rules.iter().any(|rule| rule == wanted);
    let to = |table: u32, kind: RouteType| routes.iter().filter(move |r| r.table == table && r.kind == kind);
    let refused = |pool| to(table + 1, RouteType::Prohibit).any(|route| route.destination == pool);
    let whole = to(table, RouteType::Unicast).filter(|route| {
        let pool = route.destination;
        has(&IpRule::for_own_traffic(pool, table, priority, PROTOCOL))
            && has(&IpRule::for_everybody(pool, table + 1, priority + 1, PROTOCOL))
            && refused(pool)
    });
    let mut pools: Vec<_> = whole.filter_map(|route| Some((route.destination, route.source?))).collect();
    pools.sort();
    let thrown = |table| to(table, RouteType::Throw).map(|route| route.destination).collect::<BTreeSet<_>>();
    let passed = thrown(table).intersection(&thrown(table + 1)).copied().collect();
    // A rule without its route, or a route without its rule, is something of ours that is not as it ought to be.
    let anything = !rules.is_empty() || !routes.is_empty();
    Ok(anything.then_some(HostRoute { table, priority, pools, passed }))
}

/// What is ours of the host's policy routing. The tables tell: two networks may share a priority.
pub(super) fn host_tables(linux: &Linux, rtnl: &mut Rtnl) -> Result<(Vec<IpRule>, Vec<InForce>), NetlinkError> {
    let tables = netns_policy::desired::host_tables(&linux.network);
    let mut rules = rtnl.rules()?;
    rules.retain(|rule| rule.protocol == PROTOCOL && tables.contains(&rule.table));
    let mut routes = Vec::new();
    for table in tables {
        routes.extend(rtnl.routes(Some(table))?.into_iter().filter(|route| route.protocol == PROTOCOL));
    }
    Ok((rules, routes))
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
