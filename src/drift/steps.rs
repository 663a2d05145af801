//! Each step of a plan, told as the difference that it mends.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netns_policy::changes::Change;
use netns_policy::desired::{Files, INNER_MTU, Leg, Route, Wire};
use netns_policy::observed::Link;
use netns_policy::plan::{Site, Step};
use netns_policy::ruleset::compile::LEG;
use netns_policy::topology::Place;

use super::rules::Sites;
use super::{Drift, Spot};
use crate::orchestrator::Planned;

/// What the next turn would do.
pub(super) fn undone(planned: &Planned) -> Vec<Drift> {
    let mut all = Vec::new();
    let sites = Sites::new(planned);
    for step in &planned.plan.steps {
        all.extend(namespaces(planned, step));
    }
    for step in &planned.plan.steps {
        all.extend(wires(planned, step));
    }
    all.extend(planned.plan.changes.iter().filter_map(edge));
    let mut places = BTreeSet::new();
    for step in &planned.plan.steps {
        match step {
            Step::Rules { at, .. } if places.insert(at.clone()) => all.extend(sites.rules(at)),
            _ => all.extend(host(planned, step)),
        }
    }
    if all.is_empty() {
        // Nothing above has a word for it.
        all.extend(planned.plan.steps.iter().map(|step| Drift::Undone { step: step.to_string() }));
    }
    all
}

fn edge(change: &Change) -> Option<Drift> {
    match change {
        Change::AddEdge(passage) => Some(Drift::MissingEdge { edge: passage.to_string(), family: None }),
        Change::RemoveEdge(passage) => Some(Drift::UndeclaredEdge { edge: passage.to_string(), family: None }),
        Change::Renumber { name, from, to } => {
            Some(Drift::OtherAddress { place: name.clone(), is: from.to_string(), ought: to.to_string() })
        }
        _ => None,
    }
}

fn namespaces(planned: &Planned, step: &Step) -> Option<Drift> {
    match step {
        Step::CreateFabric { netns, .. } => Some(Drift::MissingFabric { netns: netns.clone() }),
        Step::CreateNetns { place, netns, .. } => {
            Some(Drift::MissingNamespace { place: place.to_string(), netns: netns.clone() })
        }
        Step::DeleteNetns { netns } if *netns != planned.desired.fabric_netns() => {
            Some(Drift::UndeclaredNamespace { netns: netns.clone() })
        }
        _ => None,
    }
}

fn wires(planned: &Planned, step: &Step) -> Vec<Drift> {
    let fabric = planned.observed.fabric.as_ref();
    let outer = |wire: &Wire| fabric.and_then(|fabric| fabric.links.get(wire.outer.as_str()));
    match step {
        Step::CreateWires(wires) => wires.iter().filter_map(|wire| unwhole(planned, wire, outer(wire))).collect(),
        Step::MendWire { wire, .. } => mend(planned, wire),
        Step::RaiseWires(indexes) => {
            let lowered = planned.desired.wires.values().filter(|wire| indexes.contains(&wire.index));
            let lowered = lowered.filter(|wire| planned.observed.whole_wire(wire) == Some(wire.index));
            let down = lowered.filter(|wire| outer(wire).is_some_and(|link| !link.up));
            down.map(|wire| Drift::WireDown { place: wire.place.to_string(), end: "fabric".into() }).collect()
        }
        Step::DeleteFabricLinks(indexes) => {
            let ours = |name: &str| planned.desired.wires.values().any(|wire| wire.outer.as_str() == name);
            let links = fabric.into_iter().flat_map(|fabric| &fabric.links);
            let extra = links.filter(|(name, link)| indexes.contains(&link.index) && !ours(name) && !is_marked(link));
            let at = Spot { place: "fabric".into(), netns: Some(planned.desired.fabric_netns()) };
            extra
                .map(|(name, _)| Drift::ExtraLink { at: at.clone(), link: super::words::shown(name), link_kind: None })
                .collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a link says that it is a wire of ours: its namespace is told of.
fn is_marked(link: &Link) -> bool {
    link.alias.as_deref().is_some_and(|alias| alias.starts_with("nsctl:"))
}

/// What is wrong with a wire that is to be made anew; nothing where its namespace is missing, which is told.
fn unwhole(planned: &Planned, wire: &Wire, outer: Option<&Link>) -> Option<Drift> {
    let observed = &planned.observed;
    observed.fabric.as_ref()?;
    if wire.netns.as_ref().is_some_and(|netns| !observed.namespaces.contains_key(netns)) {
        return None;
    }
    let place = wire.place.to_string();
    let (Some(outer), Some(inner)) = (outer, observed.inner_link(wire)) else {
        return Some(Drift::MissingWire { place });
    };
    let mut what = Vec::new();
    if !inner.up {
        what.push("it is down at its own end".to_owned());
    }
    if inner.peer != Some(outer.index) || outer.peer != Some(inner.index) {
        what.push("its ends are not each other's".to_owned());
    }
    if outer.alias.as_deref() != Some(&wire.alias) {
        what.push(format!("its end in the fabric is not marked {}", wire.alias));
    }
    for (link, end) in [(inner, "its own end"), (outer, "the end in the fabric")] {
        if link.mtu != INNER_MTU {
            what.push(format!("MTU {} instead of {INNER_MTU} at {end}", link.mtu));
        }
        if !link.noarp {
            what.push(format!("ARP is on at {end}"));
        }
    }
    let lost = wire.addresses.iter().filter(|address| !inner.addresses.contains(address));
    what.extend(lost.map(|address| format!("address {address} is gone")));
    Some(Drift::ChangedWire { place, what })
}

fn mend(planned: &Planned, wire: &Wire) -> Vec<Drift> {
    let Some(link) = planned.observed.inner_link(wire) else { return Vec::new() };
    let place = wire.place.to_string();
    // What is down has lost its routes with that.
    if !link.up {
        return vec![Drift::WireDown { place: place.clone(), end: place }];
    }
    let gone = wire.routes.difference(&link.routes);
    let gone = gone.map(|route| Drift::MissingRoute { place: place.clone(), route: route_words(route) });
    let stale = link.routes.difference(&wire.routes);
    let stale = stale.map(|route| Drift::UndeclaredRoute { place: place.clone(), route: route_words(route) });
    gone.chain(stale).collect()
}

fn route_words(route: &Route) -> String {
    let mut words = route.to.to_string();
    words.extend(route.source.map(|source| format!(" src {source}")));
    words.extend(route.mtu.map(|mtu| format!(" mtu {mtu}")));
    words
}

/// What stands on the host, knobs and files.
fn host(planned: &Planned, step: &Step) -> Vec<Drift> {
    let observed = &planned.observed;
    let on_host = || Spot { place: "host".into(), netns: None };
    match step {
        Step::CreateLeg { netns, leg } => vec![changed_leg(planned, netns, leg)],
        Step::DeleteHostLinks(indexes) => {
            let wanted = |name: &str| {
                planned.desired.leg.as_ref().is_some_and(|leg| leg.host_link.as_str() == name)
                    || planned.desired.wires.get(&Place::Host).is_some_and(|wire| wire.inner.as_str() == name)
            };
            let links =
                observed.host_links.iter().filter(|(name, link)| indexes.contains(&link.index) && !wanted(name));
            links.map(|(name, _)| Drift::UndeclaredLink { link: name.clone() }).collect()
        }
        Step::DeleteHostRoute(route) => vec![Drift::UndeclaredHostRoute { table: route.table }],
        Step::SetHostRoute(route) if observed.host_route.as_ref() != Some(route) => {
            let has = |pool: &_| observed.host_route.as_ref().is_some_and(|seen| seen.pools.contains(pool));
            let lost = route.pools.iter().filter(|pool| !has(pool)).map(|(pool, _)| pool.to_string()).collect();
            vec![Drift::ChangedHostRoute { table: route.table, lost }]
        }
        Step::SetSysctl { path, value } => vec![Drift::ChangedSysctl {
            at: on_host(),
            sysctl: path.replace('/', "."),
            is: observed.host.sysctls.get(path).cloned(),
            ought: value.clone(),
        }],
        Step::RestoreSysctl { path, value } => vec![Drift::ChangedSysctl {
            at: on_host(),
            sysctl: path.replace('/', "."),
            is: observed.host.sysctls.get(path).cloned(),
            ought: value.clone(),
        }],
        Step::SetNetnsSysctl { netns, path, value } => {
            let fabric = observed.fabric.as_ref().filter(|_| *netns == planned.desired.fabric_netns());
            let seen = fabric.or_else(|| observed.namespaces.get(netns));
            let place = super::extra::place_of(planned.desired.network.as_str(), netns);
            vec![Drift::ChangedSysctl {
                at: Spot { place, netns: Some(netns.clone()) },
                sysctl: path.replace('/', "."),
                is: seen.and_then(|seen| seen.sysctls.get(path).cloned()),
                ought: value.clone(),
            }]
        }
        Step::WriteFiles { service, files } => changed_files(service.as_str(), observed.files.get(service), files),
        Step::DeleteFiles(service) => vec![Drift::UndeclaredFiles { service: service.to_string() }],
        _ => Vec::new(),
    }
}

/// What is wrong with the way from the gateway to the host, which is to be made anew.
fn changed_leg(planned: &Planned, netns: &str, leg: &Leg) -> Drift {
    let observed = &planned.observed;
    let link = leg.host_link.to_string();
    let gateway = observed.namespaces.get(netns).and_then(|gateway| gateway.links.get(LEG));
    let (Some(outer), Some(inner)) = (observed.host_links.get(&link), gateway) else {
        return Drift::ChangedLeg { link, gone: true, what: Vec::new() };
    };
    let mut what = Vec::new();
    if inner.peer != Some(outer.index) || outer.peer != Some(inner.index) {
        what.push("its ends are not each other's".to_owned());
    }
    let ends = [(outer, &leg.host, &leg.gateway, "on the host"), (inner, &leg.gateway, &leg.host, "in the gateway")];
    for (end, own, far, at) in ends {
        if !end.up {
            what.push(format!("it is down {at}"));
        }
        if end.mtu != leg.mtu {
            what.push(format!("MTU {} instead of {} {at}", end.mtu, leg.mtu));
        }
        if end.addresses != own.iter().collect() {
            what.push(format!("other addresses {at}"));
        }
        let lacks = |to: &IpAddr| !end.routes.iter().any(|route| route.to.ip() == *to);
        what.extend(far.iter().filter(lacks).map(|to| format!("no route to {to} {at}")));
    }
    let out = |v4: bool| inner.routes.iter().any(|route| route.to.prefix() == 0 && route.to.is_ipv4() == v4);
    if leg.host.iter().any(|ip| !out(ip.is_ipv4())) {
        what.push("no default route in the gateway".to_owned());
    }
    Drift::ChangedLeg { link, gone: false, what }
}

fn changed_files(service: &str, is: Option<&Files>, ought: &Files) -> Vec<Drift> {
    let parts = |files: &Files| [files.hosts.clone(), files.resolv_conf.clone(), files.nsswitch_conf.clone()];
    let is = is.map_or_else(<[String; 3]>::default, parts);
    let pairs = ["hosts", "resolv.conf", "nsswitch.conf"].into_iter().zip(is.into_iter().zip(parts(ought)));
    let changed = pairs.filter(|(_, (is, ought))| is != ought);
    changed
        .map(|(file, (is, _))| Drift::ChangedFile {
            service: service.to_owned(),
            file: file.to_owned(),
            gone: is.is_empty(),
        })
        .collect()
}

/// Where rules stand.
pub(super) fn spot(planned: &Planned, at: &Site) -> Spot {
    match at {
        Site::Fabric => Spot { place: "fabric".into(), netns: Some(planned.desired.fabric_netns()) },
        Site::Place(place) => Spot {
            place: place.to_string(),
            netns: planned.desired.wires.get(place).and_then(|wire| wire.netns.clone()),
        },
    }
}
