//! Carries out one step.
//!
//! # Invariants
//!
//! - Everything that a step makes can be made again: what is there already is not an error.
//! - A namespace is pinned only once its lock stands and it is marked as ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use netns_policy::address::Addresses;
use netns_policy::cut::{Cuts, Opening};
use netns_policy::desired::{Files, HostRoute, INNER_MTU, Leg, Route as DesiredRoute, Wire};
use netns_policy::plan::{Site, Step};
use netns_policy::ruleset::Hook;
use netns_policy::ruleset::compile::LEG;
use netns_policy::ruleset::delta::{Delta, Op};
use netns_policy::topology::{Place, fabric_netns};
use nix::errno::Errno;

use super::address::Address;
use super::conntrack::{Conntrack, Flow};
use super::link::LOOPBACK;
use super::netlink::{NetlinkError, Rtnl};
use super::netns::{self, Netns};
use super::nft::{NftError, NftSocket};
use super::process;
use super::route::{Route, RouteType};
use super::rule::IpRule;
use super::sysctl::Sysctl;
use super::wire::{WirePair, set_alias};
use super::{GROUP, KernelError, LEG_INDEX, Linux, MAC, PROTOCOL, Spoil, file_error, link};

/// How long a wire may take to let the first packet pass.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take before somebody asks whether it is kept down.
const BRIEF: Duration = Duration::from_secs(1);

pub(super) fn apply(linux: &Linux, step: &Step) -> Result<(), KernelError> {
    match step {
        Step::CreateFabric { netns, alias, rules } => create(linux, netns, alias, rules, fabric_sysctls()),
        Step::CreateNetns { place, netns, alias, rules } => create(linux, netns, alias, rules, sysctls(place)),
        Step::CreateWires(wires) => create_wires(linux, wires),
        Step::CreateLeg { netns, leg } => create_leg(linux, netns, leg),
        Step::DeleteFabricLinks(indexes) => delete_fabric_links(linux, indexes),
        Step::DeleteNetns { netns } => delete_netns(linux, netns),
        Step::DeleteHostLinks(indexes) => Ok(Rtnl::open()?.delete_links(indexes)?),
        Step::DeleteHostRoute(_) => delete_host_route(linux),
        Step::DeleteFiles(service) => delete_files(linux, &format!("{}-{service}", linux.network)),
        Step::MendWire { wire, stale } => mend_wire(linux, wire, stale.iter()),
        Step::LowerWires(indexes) => lower(linux, indexes),
        Step::RaiseWires(indexes) => raise(linux, indexes),
        Step::Rules { at, delta, generation, cuts } => rules(linux, at, delta, *generation, cuts),
        Step::SetHostRoute(route) => set_host_route(linux, route),
        Step::SetSysctl { path, value } => set_sysctl(path, value),
        Step::SetNetnsSysctl { netns, path, value } => {
            let (path, value) = (path.clone(), value.clone());
            linux.inside(netns, move || Ok(Sysctl::at(&path).write(&value)?))
        }
        Step::RestoreSysctl { path, value } => match set_sysctl(path, value) {
            // The link it belonged to is gone, and the setting with it.
            Err(KernelError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        },
        Step::Settle(indexes) => settle(linux, indexes),
        Step::WriteFiles { service, files } => write_files(linux, &format!("{}-{service}", linux.network), files),
    }
}

fn set_sysctl(path: &str, value: &str) -> Result<(), KernelError> {
    Sysctl::at(path).write(value).map_err(|e| file_error("set", Path::new(path))(e.into()))
}

type Knobs = Vec<(Sysctl, &'static str)>;

/// The fabric forwards nothing by routing, and needs no IPv6 for the frames that it hands on.
fn fabric_sysctls() -> Knobs {
    vec![
        (Sysctl::ip_forward(), "0"),
        (Sysctl::ipv6("all", "disable_ipv6"), "1"),
        (Sysctl::ipv6("default", "disable_ipv6"), "1"),
    ]
}

fn sysctls(place: &Place) -> Knobs {
    let mut knobs = vec![
        // A namespace may start with what the host has, or the kernel was told to start with (`ipv6.disable_ipv6=1`).
        (Sysctl::ipv6("all", "disable_ipv6"), "0"),
        (Sysctl::ipv6("default", "disable_ipv6"), "0"),
        (Sysctl::ipv6("default", "accept_ra"), "0"),
        (Sysctl::ipv6("default", "accept_redirects"), "0"),
        (Sysctl::ipv6("all", "accept_redirects"), "0"),
        (Sysctl::ipv4("all", "accept_redirects"), "0"),
        (Sysctl::ipv4("default", "accept_redirects"), "0"),
        (Sysctl::ipv4("all", "accept_source_route"), "0"),
        // The lock has brought conntrack in by now, and the knob with it.
        (Sysctl::conntrack_tcp_loose(), "0"),
    ];
    if *place == Place::Uplink {
        knobs.push((Sysctl::ip_forward(), "1"));
        knobs.push((Sysctl::ipv6_forwarding(), "1"));
    }
    knobs
}

fn create(linux: &Linux, netns: &str, alias: &str, rules: &Delta, knobs: Knobs) -> Result<(), KernelError> {
    let directory = &linux.netns_directory;
    netns::prepare_directory(directory).map_err(file_error("prepare", directory))?;
    let (mark, alias, rules) = (alias.to_owned(), alias.to_owned(), rules.clone());
    let prepare = move || {
        NftSocket::open()?.commit(&rules, None).map_err(io::Error::other)?;
        for (knob, value) in knobs {
            match knob.write(value) {
                // A kernel without IPv6 has none of its knobs.
                Err(e) if e.source.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Rtnl::open()?.pipeline(vec![set_alias(LOOPBACK, &alias)])?;
        Ok(())
    };
    let path = linux.pin(netns);
    match Netns::create(&path, prepare) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_marked(linux, netns, &mark)? => Ok(()),
        made => made.map(drop).map_err(|source| KernelError::Inside { netns: netns.to_owned(), source }),
    }
}

/// Whether a namespace is there that was made by this very step: it is pinned only when it is complete.
fn is_marked(linux: &Linux, netns: &str, alias: &str) -> Result<bool, KernelError> {
    let loopback = in_netns(&linux.open(netns)?, netns, |rtnl| rtnl.link(LOOPBACK))?;
    Ok(loopback.is_some_and(|link| link.alias.as_deref() == Some(alias)))
}

fn pair(wire: &Wire, inner_index: u32) -> WirePair {
    WirePair {
        inner: wire.inner.to_string(),
        inner_index,
        outer: wire.outer.to_string(),
        outer_index: wire.index,
        altname: wire.altname.clone(),
        alias: Some(wire.alias.clone()),
        mac: MAC,
        mtu: INNER_MTU,
        group: GROUP,
    }
}

/// Every wire but those that their own service spoils.
fn create_wires(linux: &Linux, wires: &[Wire]) -> Result<(), KernelError> {
    let fabric = linux.open(&fabric_netns(&linux.network))?;
    let (mut labels, mut whose, mut spoils) = (Vec::new(), Vec::new(), Vec::new());
    for wire in wires {
        let outer = fabric.try_clone().map_err(file_error("hold", &linux.netns_directory))?;
        let made = match &wire.netns {
            Some(netns) => create_wire(linux, netns, wire, outer),
            None => create_host_wire(wire, &outer),
        };
        match made {
            Ok(()) => {
                let of_wire = pair(wire, wire.index).label();
                whose.extend(of_wire.iter().map(|_| wire));
                labels.extend(of_wire);
            }
            Err(e) => spoils.push(spoil_of(wire, e)?),
        }
    }
    // A wire that went again cannot be labelled either.
    for (at, error) in in_netns(&fabric, "the fabric", move |rtnl| rtnl.try_all(&labels))? {
        if spoils.last().is_none_or(|last| last.index != whose[at].index) {
            spoils.push(spoil_of(whose[at], error.into())?);
        }
    }
    spoiled(spoils)
}

/// A service spoils its own wire only; what is wrong with any other is an error of the step.
fn spoil_of(wire: &Wire, error: KernelError) -> Result<Spoil, KernelError> {
    match &wire.place {
        Place::Service(_) => Ok(Spoil::new(wire.index, Some(wire.place.clone()), &error)),
        _ => Err(error),
    }
}

fn spoiled(spoils: Vec<Spoil>) -> Result<(), KernelError> {
    if spoils.is_empty() { Ok(()) } else { Err(KernelError::Spoiled { spoils }) }
}

fn create_wire(linux: &Linux, netns: &str, wire: &Wire, outer: Netns) -> Result<(), KernelError> {
    let addresses = addresses(wire.index, &wire.addresses);
    let routes: Vec<Route> = wire.routes.iter().map(|wanted| route(wire.index, wanted)).collect();
    let pair = pair(wire, wire.index);
    in_netns(&linux.open(netns)?, netns, move |rtnl| {
        // What is left of a wire that is not whole, whose end in the fabric is gone or goes with it; or what somebody
        // inside put in the place of ours.
        let mut requests = vec![link::delete_by_index(pair.inner_index), link::delete_by_name(&pair.inner)];
        requests.extend(pair.bring_up(outer, &addresses, &routes));
        rtnl.pipeline(requests)
    })
}

fn addresses(link: u32, addresses: &Addresses) -> Vec<Address> {
    addresses.iter().map(|address| Address { link, address: IpNetwork::from(address) }).collect()
}

fn route(link: u32, wanted: &DesiredRoute) -> Route {
    Route { source: wanted.source, mtu: wanted.mtu, ..Route::by(link, wanted.to, PROTOCOL) }
}

fn create_host_wire(wire: &Wire, outer: &Netns) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    // The group is there from the first moment on, the alias a message later: a turn may have ended between the two.
    let left = |link: &&link::Link| link.name == wire.inner.as_str() && link.group == GROUP;
    let left: Vec<u32> = rtnl.links()?.iter().filter(left).map(|link| link.index).collect();
    rtnl.delete_links(&left)?;
    let index = create_on_host(&mut rtnl, |index| pair(wire, index), outer)?;
    allow_ipv6(wire.inner.as_str(), &wire.addresses)?;
    let pair = pair(wire, index);
    let mut requests = vec![set_alias(index, &wire.alias), super::wire::no_link_local(index, &pair.inner)];
    requests.push(link::set_up(index));
    requests.extend(addresses(index, &wire.addresses).iter().map(Address::add));
    Ok(rtnl.pipeline(requests)?)
}

/// Makes a pair with an end on the host, where others make links too, and says which index that end got.
///
/// The kernel heeds the wanted index of the far end only if the near one asks for an index as well (`veth_newlink`), so
/// a free one is asked for, and another when somebody was quicker.
fn create_on_host(rtnl: &mut Rtnl, pair: impl Fn(u32) -> WirePair, far: &Netns) -> Result<u32, KernelError> {
    let mut tries = 0;
    loop {
        let free = rtnl.links()?.iter().map(|link| link.index).max().unwrap_or(0) + 1;
        let far = far.try_clone().map_err(file_error("hold", Path::new("a namespace")))?;
        tries += 1;
        match rtnl.pipeline(vec![pair(free).create(far)]) {
            Ok(()) => return Ok(free),
            Err(e) if tries < 8 && matches!(e.errno(), Some(Errno::EBUSY)) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// A host that uses no IPv6 itself may have it switched off for every link to come (`conf.default.disable_ipv6`). This link
/// is ours.
fn allow_ipv6(link: &str, addresses: &Addresses) -> Result<(), KernelError> {
    let knob = Sysctl::ipv6(link, "disable_ipv6");
    if addresses.v6.is_none() {
        return Ok(());
    }
    set_sysctl(knob.as_str(), "0")
}

fn index_of(rtnl: &mut Rtnl, name: &str) -> Result<u32, KernelError> {
    let found = rtnl.links()?.into_iter().find(|link| link.name == name);
    let gone = || KernelError::File { action: "find", path: name.into(), source: io::ErrorKind::NotFound.into() };
    found.map(|link| link.index).ok_or_else(gone)
}

fn mend_wire<'a>(linux: &Linux, wire: &Wire, stale: impl Iterator<Item = &'a DesiredRoute>) -> Result<(), KernelError> {
    let name = wire.inner.to_string();
    let stale: Vec<DesiredRoute> = stale.cloned().collect();
    let wanted: Vec<DesiredRoute> = wire.routes.iter().cloned().collect();
    let mend = move |rtnl: &mut Rtnl| {
        let Some(index) = rtnl.link_named(&name)?.map(|link| link.index) else { return Ok(()) };
        let mut requests = vec![link::set_up(index)];
        requests.extend(stale.iter().map(|wanted| route(index, wanted).delete()));
        requests.extend(wanted.iter().map(|wanted| route(index, wanted).add().pardon(Errno::EEXIST)));
        rtnl.pipeline(requests)
    };
    match &wire.netns {
        Some(netns) => in_netns(&linux.open(netns)?, netns, mend),
        None => Ok(mend(&mut Rtnl::open()?)?),
    }
}

fn create_leg(linux: &Linux, netns: &str, leg: &Leg) -> Result<(), KernelError> {
    let gateway = linux.open(netns)?;
    let stale = |rtnl: &mut Rtnl| -> Result<(), NetlinkError> {
        let old: Vec<u32> = rtnl.links()?.iter().filter(|link| link.name == LEG).map(|link| link.index).collect();
        rtnl.delete_links(&old)
    };
    in_netns(&gateway, netns, stale)?;
    let pair = |inner_index| WirePair {
        inner: leg.host_link.to_string(),
        inner_index,
        outer: LEG.to_owned(),
        outer_index: LEG_INDEX,
        altname: None,
        alias: Some(leg.alias.clone()),
        mac: MAC,
        mtu: leg.mtu,
        group: GROUP,
    };
    let mut rtnl = Rtnl::open()?;
    let index = create_on_host(&mut rtnl, pair, &gateway)?;
    allow_ipv6(leg.host_link.as_str(), &leg.host)?;
    let pair = pair(index);
    let there = leg.gateway.iter().map(|address| Route::by(index, address.into(), PROTOCOL));
    let mut requests = vec![set_alias(index, &leg.alias), super::wire::no_link_local(index, &pair.inner)];
    requests.push(link::set_up(index));
    requests.extend(addresses(index, &leg.host).iter().map(Address::add));
    requests.extend(there.map(|route| route.add()));
    rtnl.pipeline(requests)?;
    let (labels, leg) = (pair.label(), leg.clone());
    in_netns(&gateway, netns, move |rtnl| {
        rtnl.pipeline(labels)?;
        rtnl.pipeline(gateway_side(LEG_INDEX, &leg))?;
        rtnl.wait_until_up(&[LEG_INDEX], PATIENCE)
    })?;
    Ok(rtnl.wait_until_up(&[index], PATIENCE)?)
}

fn gateway_side(index: u32, leg: &Leg) -> Vec<super::netlink::Request> {
    let mut requests = vec![link::set_up(index)];
    requests.extend(addresses(index, &leg.gateway).iter().map(Address::add));
    for host in leg.host.iter() {
        let any = if host.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse().expect("the constant is a prefix");
        requests.push(Route::by(index, host.into(), PROTOCOL).add());
        requests.push(Route { gateway: Some(host), on_link: true, ..Route::by(index, any, PROTOCOL) }.add());
    }
    requests
}

fn delete_fabric_links(linux: &Linux, indexes: &[u32]) -> Result<(), KernelError> {
    in_fabric(linux, indexes, |rtnl, indexes| {
        let all = rtnl.links()?.iter().all(|link| link.index == LOOPBACK || indexes.contains(&link.index));
        if all { rtnl.delete_group(GROUP) } else { rtnl.delete_links(indexes) }
    })
}

fn delete_netns(linux: &Linux, netns: &str) -> Result<(), KernelError> {
    let path = linux.pin(netns);
    match netns::unpin(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file_error("remove", &path)(e)),
        _ => Ok(()),
    }
}

fn rules(linux: &Linux, at: &Site, delta: &Delta, generation: u32, cuts: &Cuts) -> Result<(), KernelError> {
    let generation = (generation != 0).then_some(generation);
    let (delta, cuts) = (delta.clone(), cuts.clone());
    let of_fabric = *at == Site::Fabric;
    let change = move || -> Result<Vec<String>, KernelError> {
        let socket = NftSocket::open().map_err(file_error("open", Path::new("nftables")))?;
        let gone = if of_fabric {
            commit_without_gone(&socket, delta, generation)?
        } else {
            socket.commit(&delta, generation)?;
            Vec::new()
        };
        if !cuts.is_empty() {
            Conntrack::open()?.delete_where(|flow| opening(flow).is_some_and(|opening| cuts.hits(&opening)))?;
        }
        Ok(gone)
    };
    let netns = match at {
        Site::Fabric => fabric_netns(&linux.network),
        Site::Place(place) => match place.netns(&linux.network) {
            Some(netns) => netns,
            None => return change().map(drop),
        },
    };
    let gone = linux.inside(&netns, move || change().map_err(io::Error::other)).map_err(unwrap_nft)?;
    let spoils = gone.into_iter().map(|device| {
        let why = NetlinkError::Gone { link: device.clone() };
        Spoil::new(0, device.parse().ok().map(Place::Service), &why)
    });
    spoiled(spoils.collect())
}

/// Makes the change in the panel, with the chains of wires that are gone hung nowhere: a service can take its wire away
/// at any moment, and before Linux 6.16 a chain needs its device and goes with it.
fn commit_without_gone(
    socket: &NftSocket,
    mut delta: Delta,
    generation: Option<u32>,
) -> Result<Vec<String>, KernelError> {
    let mut gone = Vec::new();
    loop {
        match socket.commit(&delta, generation) {
            Err(NftError::Refused { errno, .. }) if errno == Errno::ENOENT as i32 => {
                let links: BTreeSet<String> = Rtnl::open()?.links()?.into_iter().map(|link| link.name).collect();
                let unhung = unhang(&mut delta, |device| links.contains(device));
                if unhung.is_empty() {
                    // A chain that was to be changed went with its wire: the next look sees it.
                    return Err(NftError::GenerationChanged.into());
                }
                gone.extend(unhung);
            }
            done => return Ok(done.map(|()| gone)?),
        }
    }
}

/// Takes the hook of each new chain whose device is not there, and names the devices. The rest of the change stays: a
/// transaction fewer would put off the next one, which is made for a generation.
fn unhang(delta: &mut Delta, is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let hooks = delta.ops.iter_mut().filter_map(|op| match op {
        Op::AddChain { hook, .. } => Some(hook),
        _ => None,
    });
    let gone = |hook: &Hook| hook.device.as_deref().is_some_and(|device| !is_there(device));
    hooks.filter_map(|hook| hook.take_if(|hook| gone(hook))?.device).collect()
}

/// A generation that moved on is told apart by who asked: bring it out of the wrapping that crossing a thread needs.
fn unwrap_nft(error: KernelError) -> KernelError {
    match error {
        KernelError::Inside { netns, source } => match source.downcast::<KernelError>() {
            Ok(KernelError::Nft(NftError::GenerationChanged)) => KernelError::Nft(NftError::GenerationChanged),
            Ok(inner) => KernelError::Inside { netns, source: io::Error::other(inner) },
            Err(source) => KernelError::Inside { netns, source },
        },
        other => other,
    }
}

fn opening(flow: &Flow) -> Option<Opening> {
    Some(Opening {
        from: flow.original.source,
        to: flow.original.destination,
        protocol: flow.original.protocol,
        port: flow.original.destination_port(),
        server: (flow.reply.source, flow.reply.source_port()),
    })
}

fn set_host_route(linux: &Linux, route: &HostRoute) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let name = Place::Host.inner_link(&linux.network).to_string();
    let index = index_of(&mut rtnl, &name)?;
    delete_host_route(linux)?;
    let (own, passing) = (route.table, route.table + 1);
    // Routes before the rules that lead to them. `throw` goes on with the rules behind, which end in the main table.
    let passed = route
        .passed
        .iter()
        .flat_map(|to| [own, passing].map(|table| Route { table, ..Route::nowhere(RouteType::Throw, *to, PROTOCOL) }));
    let pools = route.pools.iter().flat_map(|(pool, source)| {
        let by = Route { table: own, source: Some(*source), ..Route::by(index, *pool, PROTOCOL) };
        [by, Route { table: passing, ..Route::nowhere(RouteType::Prohibit, *pool, PROTOCOL) }]
    });
    let rules = route.pools.iter().flat_map(|(pool, _)| {
        let ours = IpRule::for_own_traffic(*pool, own, route.priority, PROTOCOL);
        [ours, IpRule::for_everybody(*pool, passing, route.priority + 1, PROTOCOL)]
    });
    let mut requests: Vec<_> = passed.chain(pools).map(|route| route.add().pardon(Errno::EEXIST)).collect();
    requests.extend(rules.map(|rule| rule.add().pardon(Errno::EEXIST)));
    Ok(rtnl.pipeline(requests)?)
}

fn delete_host_route(linux: &Linux) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let (rules, routes) = super::observe::host_tables(linux, &mut rtnl)?;
    let mut requests: Vec<_> = rules.iter().map(IpRule::delete).collect();
    requests.extend(routes.iter().map(Route::delete));
    Ok(rtnl.pipeline(requests)?)
}

/// Every wire that is still there.
fn raise(linux: &Linux, indexes: &[u32]) -> Result<(), KernelError> {
    let fabric = linux.open(&fabric_netns(&linux.network))?;
    let requests: Vec<_> = indexes.iter().map(|index| link::set_up(*index)).collect();
    let refused = in_netns(&fabric, "the fabric", move |rtnl| rtnl.try_all(&requests))?;
    if refused.is_empty() {
        return Ok(());
    }
    let places = places(&fabric)?;
    let spoils = refused.into_iter().map(|(at, error)| {
        let index = indexes[at];
        Spoil::new(index, places.get(&index).cloned(), &error)
    });
    spoiled(spoils.collect())
}

/// A wire that is gone is as closed as can be.
fn lower(linux: &Linux, indexes: &[u32]) -> Result<(), KernelError> {
    let fabric = linux.open(&fabric_netns(&linux.network))?;
    let requests: Vec<_> = indexes.iter().map(|index| link::set_down(*index)).collect();
    in_netns(&fabric, "the fabric", move |rtnl| rtnl.try_all(&requests)).map(drop)
}

/// Whose wires the links of the fabric are, as their aliases say.
fn places(fabric: &Netns) -> Result<BTreeMap<u32, Place>, KernelError> {
    let links = in_netns(fabric, "the fabric", |rtnl| rtnl.links())?;
    let place = |alias: &str| Place::from_long_name(alias.rsplit(':').next()?);
    Ok(links.into_iter().filter_map(|link| Some((link.index, place(link.alias.as_deref()?)?))).collect())
}

/// Both ends, or the kernel may still hold back the inner one's first packets. All of it takes no longer than
/// [`PATIENCE`], and a wire that is down because its service wants it so is not waited for.
fn settle(linux: &Linux, indexes: &[u32]) -> Result<(), KernelError> {
    let deadline = Instant::now() + PATIENCE;
    let left = || deadline.saturating_duration_since(Instant::now());
    let fabric = linux.open(&fabric_netns(&linux.network))?;
    let still_down = |indexes: Vec<u32>, patience: Duration| {
        in_netns(&fabric, "the fabric", move |rtnl| rtnl.still_down(&indexes, patience))
    };
    let late = still_down(indexes.to_vec(), BRIEF)?;
    let places = places(&fabric)?;
    let (mut never, waiting): (Vec<u32>, Vec<u32>) =
        late.into_iter().partition(|index| is_kept_down(linux, places.get(index), *index));
    never.extend(still_down(waiting, left())?);
    for index in indexes {
        if !never.contains(index) && settle_inner(linux, places.get(index), *index, left()).is_err() {
            never.push(*index);
        }
    }
    let spoils = never.into_iter().map(|index| {
        let why = NetlinkError::NotUp { indexes: vec![index] };
        Spoil::new(index, places.get(&index).cloned(), &why)
    });
    spoiled(spoils.collect())
}

/// Whether a wire is gone, or its end inside a service is gone or set down.
fn is_kept_down(linux: &Linux, place: Option<&Place>, index: u32) -> bool {
    match place {
        None => true,
        Some(Place::Host | Place::Relay | Place::Uplink) => false,
        Some(service) => {
            let end = inside(linux, service, move |rtnl| rtnl.link(index));
            !end.is_ok_and(|end| end.is_some_and(|end| end.up))
        }
    }
}

fn settle_inner(linux: &Linux, place: Option<&Place>, index: u32, patience: Duration) -> Result<(), KernelError> {
    match place {
        // Gone since its end in the fabric was up.
        None => Err(NetlinkError::NotUp { indexes: vec![index] }.into()),
        Some(Place::Host) => {
            let name = Place::Host.inner_link(&linux.network).to_string();
            let mut rtnl = Rtnl::open()?;
            let index = index_of(&mut rtnl, &name)?;
            Ok(rtnl.wait_until_up(&[index], patience)?)
        }
        Some(place) => inside(linux, place, move |rtnl| match rtnl.link(index)? {
            Some(end) if end.up => rtnl.wait_until_up(&[index], patience),
            _ => Err(NetlinkError::NotUp { indexes: vec![index] }),
        }),
    }
}

fn inside<T: Send + 'static>(
    linux: &Linux,
    place: &Place,
    f: impl FnOnce(&mut Rtnl) -> Result<T, NetlinkError> + Send + 'static,
) -> Result<T, KernelError> {
    let netns = place.netns(&linux.network).expect("every place but the host has a namespace");
    in_netns(&linux.open(&netns)?, &netns, f)
}

fn in_netns<T: Send + 'static>(
    netns: &Netns,
    name: &str,
    f: impl FnOnce(&mut Rtnl) -> Result<T, NetlinkError> + Send + 'static,
) -> Result<T, KernelError> {
    let done = netns.run(move || Ok(f(&mut Rtnl::open()?)?));
    done.map_err(|source| KernelError::Inside { netns: name.to_owned(), source })
}

fn in_fabric(
    linux: &Linux,
    indexes: &[u32],
    f: impl FnOnce(&mut Rtnl, &[u32]) -> Result<(), NetlinkError> + Send + 'static,
) -> Result<(), KernelError> {
    let indexes = indexes.to_vec();
    let name = fabric_netns(&linux.network);
    in_netns(&linux.open(&name)?, &name, move |rtnl| f(rtnl, &indexes))
}

/// Written in place: a running service has the very file bound over its own, and would not see another that took its
/// name.
fn write_files(linux: &Linux, netns: &str, files: &Files) -> Result<(), KernelError> {
    let directory = linux.files(netns);
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&directory);
    made.map_err(file_error("make", &directory))?;
    let all = [
        ("hosts", files.hosts.as_str()),
        ("resolv.conf", files.resolv_conf.as_str()),
        ("nsswitch.conf", files.nsswitch_conf.as_str()),
    ];
    for (name, text) in all {
        let path = directory.join(name);
        let opened = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&path);
        let written = opened.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
        written.map_err(file_error("write", &path))?;
    }
    link_for_ip_netns(linux, netns, &directory);
    Ok(())
}

/// `ip netns exec` takes its files from `/etc/netns/NAME`. Where `/etc` cannot be written it does without.
fn link_for_ip_netns(linux: &Linux, netns: &str, directory: &Path) {
    let Some(etc) = &linux.etc_netns else { return };
    if fs::create_dir_all(etc).is_ok() && fs::symlink_metadata(etc.join(netns)).is_err() {
        std::os::unix::fs::symlink(directory, etc.join(netns)).ok();
    }
}

fn delete_files(linux: &Linux, netns: &str) -> Result<(), KernelError> {
    let directory = linux.files(netns);
    if let Some(etc) = &linux.etc_netns {
        let link = etc.join(netns);
        if fs::read_link(&link).is_ok_and(|to| to == directory) {
            fs::remove_file(&link).map_err(file_error("remove", &link))?;
        }
    }
    match fs::remove_dir_all(&directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file_error("remove", &directory)(e)),
        _ => {
            // Empty directories go with the last service; one with something in it stays, whosever that is.
            fs::remove_dir(linux.run_directory.join(linux.network.as_str())).ok();
            fs::remove_dir(&linux.run_directory).ok();
            linux.etc_netns.as_deref().map(fs::remove_dir);
            Ok(())
        }
    }
}

/// Processes that live in a namespace of ours, as far as they can be seen.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub fn occupants(linux: &Linux, netns: &str) -> Result<process::Occupants, KernelError> {
    let path = linux.pin(netns);
    process::processes_in(&linux.open(netns)?).map_err(file_error("look into", &path))
}

#[cfg(test)]
mod tests {
    use netns_policy::ruleset::{ChainKind, Family, HookPoint};

    use super::*;

    #[test]
    fn only_chains_of_links_that_are_gone_lose_their_hooks() {
        let chain = |device: Option<&str>| Op::AddChain {
            table: (Family::Netdev, "nsctl".into()),
            chain: device.unwrap_or("shared").into(),
            hook: device.map(|device| Hook {
                kind: ChainKind::Filter,
                point: HookPoint::Ingress,
                device: Some(device.into()),
                priority: 0,
                policy_accept: false,
            }),
        };
        let mut delta = Delta { ops: vec![chain(None), chain(Some("here")), chain(Some("gone"))].into() };
        assert_eq!(unhang(&mut delta, |device| device == "here"), ["gone"]);
        let hooked = |op: &Op| matches!(op, Op::AddChain { hook: Some(_), .. });
        assert_eq!(delta.ops.iter().map(hooked).collect::<Vec<_>>(), [false, true, false]);
        assert!(unhang(&mut delta, |device| device == "here").is_empty());
    }
}
