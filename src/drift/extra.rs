//! What is in our namespaces beside what is ours: links of others, and who lives where it ought not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use netns_policy::ruleset::compile::LEG;
use netns_policy::topology::Place;
use nix::unistd::Pid;

use super::cookies::Cookies;
use super::words::shown;
use super::{Drift, Spot};
use crate::kernel::cgroup;
use crate::kernel::cookie::Cookie;
use crate::kernel::link::LOOPBACK;
use crate::kernel::netlink::Rtnl;
use crate::kernel::netns::Netns;
use crate::kernel::process::{Census, Identity, identity_at, name_of};
use crate::kernel::{KernelError, Linux};
use crate::orchestrator::Planned;

/// What every service calls its own end of its wire; a gateway has the leg besides.
const WIRE: &str = "net0";

/// How many links of one namespace are told by name.
const LINKS: usize = 8;

/// How many namespaces that are not ours are entered to learn whether they once were.
const STRANGERS: usize = 4096;

/// What a plan does not tell.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Extra {
    /// Links that are not ours, by namespace.
    pub links: BTreeMap<String, Links>,
    /// Processes in namespaces of ours that were replaced or removed, one for each namespace.
    pub strays: Vec<StrayProcess>,
    /// Units that run outside of their service's namespace.
    pub outside: Vec<OutsideProcess>,
    /// How many processes could not be looked at.
    pub unseen: usize,
}

/// The links of one namespace that are not ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Links {
    /// The first of them.
    pub named: Vec<ExtraLink>,
    /// How many more there are; nothing when they are too many to be listed, or never hold still.
    pub more: Option<usize>,
}

/// A link that is not ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExtraLink {
    /// Its name.
    pub name: String,
    /// `dummy`, `veth`, `wireguard`; none for hardware.
    pub kind: Option<String>,
}

/// Who lives on in a namespace that once was a service's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StrayProcess {
    /// The namespace's name, when it had one.
    pub netns: String,
    /// The first of its processes.
    pub pid: Pid,
    /// What that is called.
    pub name: String,
    /// Every process in there.
    pub processes: Vec<Pid>,
    /// The unit of the policy that one of them belongs to.
    pub unit: Option<String>,
}

/// A unit that runs outside of its service's namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutsideProcess {
    /// The service.
    pub service: String,
    /// The unit.
    pub unit: String,
    /// The first process.
    pub pid: Pid,
    /// What that is called.
    pub name: String,
    /// How many there are.
    pub count: usize,
}

impl Extra {
    pub(super) fn observe(linux: &Linux, planned: &Planned) -> Result<Self, KernelError> {
        let mut extra = Self::default();
        for netns in planned.observed.namespaces.keys() {
            let gateway = netns.contains('+');
            // Who has gone meanwhile has no links.
            if let Ok(links) = linux.inside(netns, move || Ok(links_here(gateway)))
                && (!links.named.is_empty() || links.more != Some(0))
            {
                extra.links.insert(netns.clone(), links);
            }
        }
        let census = Census::take().map_err(|source| KernelError::File {
            action: "look into",
            path: PathBuf::from("/proc"),
            source,
        })?;
        extra.unseen = census.unseen;
        extra.strays = strays_among(linux, &Cookies::read(linux), &census);
        let units = units(planned);
        for (unit, processes) in cgroup::processes(&units.keys().copied().collect()) {
            let own = |stray: &&mut StrayProcess| stray.processes.iter().any(|pid| processes.contains(pid));
            if let Some(stray) = extra.strays.iter_mut().find(own) {
                stray.unit = Some(unit.clone());
            }
            if let Some((service, netns)) = units.get(unit.as_str()) {
                let home = identity_at(&linux.pin(netns)).ok();
                extra.outside.extend(extra.outside_of(unit, service, &processes, home, &census));
            }
        }
        Ok(extra)
    }

    /// The processes of a unit that are neither at home nor told as strays.
    fn outside_of(
        &self,
        unit: String,
        service: &str,
        processes: &BTreeSet<Pid>,
        home: Option<Identity>,
        census: &Census,
    ) -> Option<OutsideProcess> {
        let is_stray = |pid: &Pid| self.strays.iter().any(|stray| stray.processes.contains(pid));
        let is_out = |pid: &Pid| census.netns_of(*pid).is_some_and(|at| Some(at) != home) && !is_stray(pid);
        let outside: Vec<Pid> = processes.iter().copied().filter(is_out).collect();
        // Who has ended meanwhile has no name.
        let (pid, name) = outside.iter().find_map(|pid| Some((*pid, name_of(*pid)?)))?;
        Some(OutsideProcess { service: service.to_owned(), unit, pid, name, count: outside.len() })
    }

    /// As differences.
    pub(super) fn drift(&self, planned: &Planned) -> Vec<Drift> {
        let network = &planned.desired.network;
        let mut all = Vec::new();
        for (netns, links) in &self.links {
            let at = Spot { place: place_of(network.as_str(), netns), netns: Some(netns.clone()) };
            all.extend(links.named.iter().map(|link| Drift::ExtraLink {
                at: at.clone(),
                link: link.name.clone(),
                link_kind: link.kind.clone(),
            }));
            match links.more {
                Some(0) => {}
                count => all.push(Drift::ManyLinks { at, count }),
            }
        }
        all.extend(self.strays.iter().map(|stray| Drift::StrayProcess {
            service: place_of(network.as_str(), &stray.netns),
            netns: stray.netns.clone(),
            pid: stray.pid.as_raw(),
            process: stray.name.clone(),
            count: stray.processes.len(),
            unit: stray.unit.clone(),
        }));
        all.extend(self.outside.iter().map(|outside| Drift::OutsideProcess {
            service: outside.service.clone(),
            netns: format!("{network}-{}", outside.service),
            pid: outside.pid.as_raw(),
            process: outside.name.clone(),
            unit: outside.unit.clone(),
            count: outside.count,
        }));
        all
    }
}

/// The units of the policy, with the service and its namespace.
fn units(planned: &Planned) -> BTreeMap<&str, (String, String)> {
    let network = &planned.desired.network;
    let services = planned.checked.graph.services();
    let unit = |service: &'_ netns_policy::graph::Service| Place::Service(service.name.clone()).netns(network);
    services
        .filter_map(|service| Some((service.unit.as_deref()?, (service.name.to_string(), unit(service)?))))
        .collect()
}

/// `web` of `shop-web`, `fabric` of `shop+fabric`.
pub(crate) fn place_of(network: &str, netns: &str) -> String {
    netns.strip_prefix(network).map_or(netns, |place| place.trim_start_matches(['-', '+'])).to_owned()
}

/// Who lives on in a namespace that we made and that has its name no longer.
pub(super) fn strays(linux: &Linux, cookies: &Cookies) -> Vec<StrayProcess> {
    Census::take().map(|census| strays_among(linux, cookies, &census)).unwrap_or_default()
}

fn strays_among(linux: &Linux, cookies: &Cookies, census: &Census) -> Vec<StrayProcess> {
    if cookies.is_empty() {
        return Vec::new();
    }
    let pins = crate::kernel::netns::pinned(&linux.netns_directory).unwrap_or_default();
    let mut known: BTreeSet<Identity> = pins.iter().filter_map(|pin| identity_at(&linux.pin(pin)).ok()).collect();
    known.extend(identity_at("/proc/thread-self/ns/net".as_ref()));
    let strangers = census.processes.iter().filter(|(netns, _)| !known.contains(netns)).take(STRANGERS);
    strangers.filter_map(|(netns, processes)| stray(cookies, *netns, processes)).collect()
}

/// Who is in `netns`, if we made it. Whoever ends meanwhile, or may not be looked at, is passed over.
fn stray(cookies: &Cookies, netns: Identity, processes: &[Pid]) -> Option<StrayProcess> {
    let (pid, file) = processes.iter().find_map(|pid| {
        let file = Netns::open(PathBuf::from(format!("/proc/{pid}/ns/net")).as_path()).ok()?;
        // The process may have gone elsewhere, or be another one by now.
        let is = file.file().metadata().ok().map(|is| crate::kernel::process::identity(&is));
        (is == Some(netns)).then_some((*pid, file))
    })?;
    let was = cookies.name_of(Cookie::of(&file).ok()?)?.to_owned();
    Some(StrayProcess { netns: was, pid, name: name_of(pid)?, processes: processes.to_vec(), unit: None })
}

/// The links of the calling thread's namespace that are not ours.
fn links_here(gateway: bool) -> Links {
    let Ok(all) = Rtnl::open_wary().and_then(|mut rtnl| rtnl.links()) else {
        return Links { named: Vec::new(), more: None };
    };
    let ours = |link: &crate::kernel::link::Link| {
        link.index == LOOPBACK || link.name == WIRE || (gateway && link.name == LEG) || link.is_fallback()
    };
    let mut named: Vec<ExtraLink> = all
        .into_iter()
        .filter(|link| !ours(link))
        .map(|link| ExtraLink { name: shown(&link.name), kind: link.kind.as_deref().map(shown) })
        .collect();
    let more = named.len().saturating_sub(LINKS);
    named.truncate(LINKS);
    Links { named, more: Some(more) }
}
