//! What to do so that what exists becomes what ought to exist.
//!
//! # Invariants
//!
//! - Fail closed: rights are taken away first, in the panel before the locks; no wire goes up before both of its locks
//!   stand; rights are given last, in the panel after the locks. A turn that is cut off after any step leaves open
//!   nothing that neither the old nor the new policy allows, and the next turn finishes it.
//! - Between what exists and itself there is no step.
//! - What need not change has no step: one edge is two locks and the panel, whatever else there is.
//! - `down` is [`Plan::between`] what exists and [`Desired::nothing`]: no second way to remove things.

use std::collections::BTreeSet;
use std::fmt;

use crate::changes::{Change, changes};
use crate::cut::Cuts;
use crate::desired::{Desired, Files, HostRoute, Leg, Route, Wire, alias};
use crate::name::ServiceName;
use crate::observed::{Link, Observed};
use crate::ruleset::delta::{Delta, Op, TableId};
use crate::ruleset::{Family, Ruleset};
use crate::topology::Place;

/// Where rules stand.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Site {
    /// The fabric's namespace.
    Fabric,
    /// A place that has a wire, the host among them.
    Place(Place),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fabric => f.pad("fabric"),
            Self::Place(place) => place.fmt(f),
        }
    }
}

/// One thing to do. Each is complete: who carries it out has nothing left to choose.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Makes the fabric's namespace, with every rule and no edge.
    CreateFabric {
        /// Its name.
        netns: String,
        /// What marks it as ours.
        alias: String,
        /// The rules.
        rules: Delta,
    },
    /// Makes a namespace, with its lock shut.
    CreateNetns {
        /// Whose.
        place: Place,
        /// Its name.
        netns: String,
        /// What marks it as ours.
        alias: String,
        /// The lock, without a right.
        rules: Delta,
    },
    /// Makes wires; their ends in the fabric stay down.
    CreateWires(Vec<Wire>),
    /// Makes the way out, in the namespace of that name.
    CreateLeg {
        /// The gateway's namespace.
        netns: String,
        /// The way out.
        leg: Leg,
    },
    /// Removes links of the fabric, and with them the wires they belong to.
    DeleteFabricLinks(Vec<u32>),
    /// Removes a namespace.
    DeleteNetns {
        /// Its name.
        netns: String,
    },
    /// Removes links of ours from the host.
    DeleteHostLinks(Vec<u32>),
    /// Removes our rules and routes from the host.
    DeleteHostRoute(HostRoute),
    /// Removes what resolves names in a service.
    DeleteFiles(ServiceName),
    /// Mends a wire's inner end: up, with exactly these routes.
    MendWire {
        /// The wire as it ought to be.
        wire: Wire,
        /// Routes that ought not to be there.
        stale: BTreeSet<Route>,
    },
    /// Puts wires' ends in the fabric up.
    RaiseWires(Vec<u32>),
    /// Changes rules; then cuts the connections that they no longer allow.
    Rules {
        /// Where.
        at: Site,
        /// What.
        delta: Delta,
        /// The generation of that namespace's nftables when it was looked at: a change since then makes the step fail
        /// and nothing is overwritten.
        generation: u32,
        /// Which connections end.
        cuts: Cuts,
    },
    /// Makes our rules and routes on the host.
    SetHostRoute(HostRoute),
    /// Sets a sysctl of the host. What it was before is recorded first.
    SetSysctl {
        /// Path below `/proc/sys`.
        path: String,
        /// The value.
        value: String,
    },
    /// Sets a sysctl of the host back to what it was before us, and forgets it.
    RestoreSysctl {
        /// Path below `/proc/sys`.
        path: String,
        /// The value it had.
        value: String,
    },
    /// Waits until a packet can pass on these wires.
    Settle(Vec<u32>),
    /// Writes what resolves names in a service.
    WriteFiles {
        /// The service.
        service: ServiceName,
        /// The files.
        files: Files,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateFabric { netns, .. } => write!(f, "create fabric {netns}"),
            Self::CreateNetns { netns, .. } => write!(f, "create namespace {netns}"),
            Self::CreateWires(wires) => {
                write!(f, "create {}", count(wires.len(), "wire"))
            }
            Self::CreateLeg { netns, leg } => write!(f, "create link {} to {netns}", leg.host_link),
            Self::DeleteFabricLinks(indexes) => write!(f, "delete {}", count(indexes.len(), "wire")),
            Self::DeleteNetns { netns } => write!(f, "delete namespace {netns}"),
            Self::DeleteHostLinks(indexes) => write!(f, "delete {} of the host", count(indexes.len(), "link")),
            Self::DeleteHostRoute(route) => write!(f, "delete routing table {} of the host", route.table),
            Self::DeleteFiles(service) => write!(f, "delete the hosts file of {service}"),
            Self::MendWire { wire, .. } => write!(f, "mend the wire of {}", wire.place),
            Self::RaiseWires(indexes) => write!(f, "raise {}", count(indexes.len(), "wire")),
            Self::Rules { at, delta, .. } => {
                write!(f, "change {} in {at}", count(delta.ops.len(), "rule object"))
            }
            Self::SetHostRoute(route) => write!(f, "route the pool in table {} of the host", route.table),
            Self::SetSysctl { path, value } => write!(f, "set {} = {value}", path.replace('/', ".")),
            Self::RestoreSysctl { path, value } => write!(f, "restore {} = {value}", path.replace('/', ".")),
            Self::Settle(indexes) => write!(f, "wait for {}", count(indexes.len(), "wire")),
            Self::WriteFiles { service, .. } => write!(f, "write the hosts file of {service}"),
        }
    }
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Ordered steps, and what they mean to the operator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What to do, in this order.
    pub steps: Vec<Step>,
    /// What it means: services and edges that come and go.
    pub changes: Vec<Change>,
}

impl Plan {
    /// What turns `observed` into `desired`.
    pub fn between(observed: &Observed, desired: &Desired) -> Self {
        let mut steps = Steps { observed, desired, steps: Vec::new() };
        steps.narrow();
        steps.remove();
        steps.create();
        steps.lock();
        steps.join();
        steps.allow();
        Self { steps: steps.steps, changes: changes(observed, desired) }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// Sets whose elements give nobody a right: they only tell kinds and sources apart.
fn constant(_: &TableId, set: &str) -> bool {
    let stem = set.trim_end_matches(['4', '6']);
    matches!(stem, "host" | "icmp_errors" | "not_direct" | "pool" | "private")
}

struct Steps<'a> {
    observed: &'a Observed,
    desired: &'a Desired,
    steps: Vec<Step>,
}

impl Steps<'_> {
    /// Takes rights away: in the panel, where it is immediate, then in the locks, where connections are cut. What takes
    /// the place of a right that goes comes in the same transaction, so that what stays allowed is never interrupted.
    fn narrow(&mut self) {
        if let Some(fabric) = &self.observed.fabric {
            let delta = Delta::between(&fabric.rules, &self.desired.fabric).exchange(constant);
            self.rules(Site::Fabric, delta, fabric.generation, Cuts::default());
        }
        for place in self.sites() {
            let (old, new) = (self.lock_at(&place), self.lock_of(&place));
            let delta = Delta::between(&old, &new).exchange(constant);
            let cuts = Cuts::of(&place, &delta, &new);
            self.rules(Site::Place(place.clone()), delta, self.generation(&place), cuts);
        }
    }

    /// Removes what ought not to be: elements are gone by now, so no key is left that names a dead link.
    fn remove(&mut self) {
        let (observed, desired) = (self.observed, self.desired);
        if let Some(fabric) = &observed.fabric {
            let kept: BTreeSet<u32> = desired.wires.values().map(|wire| wire.index).collect();
            let links = fabric.links.iter().filter(|(name, link)| *name != "lo" && !kept.contains(&link.index));
            let stale: Vec<u32> = links.map(|(_, link)| link.index).collect();
            self.push_some(stale, Step::DeleteFabricLinks);
        }
        if let Some(route) = observed.host_route.as_ref().filter(|_| desired.host_route.is_none()) {
            self.steps.push(Step::DeleteHostRoute(route.clone()));
        }
        self.remove_host_links();
        for netns in observed.namespaces.keys() {
            if !desired.wires.values().any(|wire| wire.netns.as_ref() == Some(netns)) {
                self.steps.push(Step::DeleteNetns { netns: netns.clone() });
            }
        }
        for service in observed.files.keys().filter(|service| !desired.files.contains_key(*service)) {
            self.steps.push(Step::DeleteFiles(service.clone()));
        }
        if desired.is_nothing() && observed.fabric.is_some() {
            self.steps.push(Step::DeleteNetns { netns: desired.fabric_netns() });
        }
        self.restore();
        if self.lock_of(&Place::Host).tables.is_empty() && !observed.host_rules.tables.is_empty() {
            let delta = Delta::between(&observed.host_rules, &Ruleset::default());
            self.rules(Site::Place(Place::Host), delta, observed.host_generation, Cuts::default());
        }
    }

    fn remove_host_links(&mut self) {
        let (observed, desired) = (self.observed, self.desired);
        let kept = |name: &str, link: &Link| {
            let wire = desired.wires.get(&Place::Host).filter(|wire| wire.inner.as_str() == name);
            // A wire's host end that is not whole goes with its end in the fabric; an orphan has none.
            let whole = wire.is_some_and(|wire| observed.whole_wire(wire) == Some(wire.index));
            whole || desired.leg.as_ref().is_some_and(|leg| leg.host_link.as_str() == name && self.leg_is_whole(link))
        };
        let stale = observed.host_links.iter().filter(|(name, link)| !kept(name, link));
        let stale: Vec<u32> = stale.map(|(_, link)| link.index).collect();
        self.push_some(stale, Step::DeleteHostLinks);
    }

    /// Sysctls of ours that the policy no longer needs.
    fn restore(&mut self) {
        let needed = |path: &str| self.desired.sysctls.iter().any(|(wanted, _)| wanted == path);
        // The last that was set is the first to be set back: forwarding before the router advertisements.
        let before = self.observed.host.before.iter().filter(|(path, _)| !needed(path)).rev();
        let steps = before.map(|(path, value)| Step::RestoreSysctl { path: path.clone(), value: value.clone() });
        self.steps.extend(steps.collect::<Vec<_>>());
    }

    /// Makes namespaces, each with its lock shut, and wires between them, down at the fabric's end.
    fn create(&mut self) {
        let (observed, desired) = (self.observed, self.desired);
        if desired.is_nothing() {
            return;
        }
        if observed.fabric.is_none() {
            let bare = without_wires(&desired.fabric);
            let rules = Delta::between(&Ruleset::default(), &bare).skeleton(constant);
            let alias = alias(&desired.network, "+fabric");
            self.steps.push(Step::CreateFabric { netns: desired.fabric_netns(), alias, rules });
        }
        for (place, wire) in &desired.wires {
            if let Some(netns) = wire.netns.as_ref().filter(|netns| !observed.namespaces.contains_key(*netns)) {
                let rules = Delta::between(&Ruleset::default(), &self.lock_of(place)).skeleton(constant);
                let (place, netns, alias) = (place.clone(), netns.clone(), wire.alias.clone());
                self.steps.push(Step::CreateNetns { place, netns, alias, rules });
            }
        }
        for (service, files) in &desired.files {
            if observed.files.get(service) != Some(files) {
                self.steps.push(Step::WriteFiles { service: service.clone(), files: files.clone() });
            }
        }
        let missing: Vec<Wire> = self.missing().cloned().collect();
        self.push_some(missing, Step::CreateWires);
    }

    /// The panel's chains for new wires, and rules that changed; still no right.
    fn lock(&mut self) {
        let desired = self.desired;
        if !desired.is_nothing() && self.emptied_fabric().is_none() {
            let delta = self.fabric_skeleton();
            self.rules(Site::Fabric, delta, self.fabric_generation(), Cuts::default());
        }
        for place in self.sites() {
            if self.is_new(&place) || self.lock_of(&place).tables.is_empty() {
                continue;
            }
            let delta = Delta::between(&self.lock_at(&place), &self.lock_of(&place)).skeleton(constant);
            self.rules(Site::Place(place.clone()), delta, self.generation(&place), Cuts::default());
        }
    }

    fn fabric_skeleton(&self) -> Delta {
        match &self.observed.fabric {
            Some(fabric) => Delta::between(&fabric.rules, &self.desired.fabric).skeleton(constant),
            None => {
                let bare = without_wires(&self.desired.fabric);
                Delta::between(&bare, &self.desired.fabric).skeleton(constant)
            }
        }
    }

    /// What a panel lacks whose wires are whole and up, if it lacks rules and has none too many. It is given them together with
    /// the edges: nothing passes until then, and a panel with rules and no edge would reset what is declared.
    fn emptied_fabric(&self) -> Option<Delta> {
        let skeleton = self.fabric_skeleton();
        let adds = |op: &Op| {
            matches!(op, Op::AddTable { .. } | Op::AddSet { .. } | Op::AddChain { .. } | Op::AddRule { .. })
                || matches!(op, Op::AddElements(_))
        };
        let only_adds = !skeleton.is_empty() && skeleton.ops.iter().all(adds);
        let links = self.observed.fabric.as_ref().map(|fabric| &fabric.links)?;
        let up = |wire: &Wire| links.get(wire.outer.as_str()).is_some_and(|link| link.up);
        let running = self.missing().next().is_none() && self.desired.wires.values().all(up);
        (only_adds && running).then_some(skeleton)
    }

    /// Wires up, and the host's ways in and out.
    fn join(&mut self) {
        let (observed, desired) = (self.observed, self.desired);
        let fabric = observed.fabric.as_ref();
        let down = |wire: &&Wire| !fabric.and_then(|ns| ns.links.get(wire.outer.as_str())).is_some_and(|link| link.up);
        for wire in desired.wires.values().filter(|wire| observed.whole_wire(wire) == Some(wire.index)) {
            let Some(link) = observed.inner_link(wire) else { continue };
            let stale: BTreeSet<Route> = link.routes.difference(&wire.routes).cloned().collect();
            if !link.up || !stale.is_empty() || link.routes != wire.routes {
                self.steps.push(Step::MendWire { wire: wire.clone(), stale });
            }
        }
        let lowered = desired.wires.values().filter(down).filter(|wire| observed.whole_wire(wire).is_some());
        let new = self.missing().map(|wire| wire.index);
        let raise: Vec<u32> = lowered.map(|wire| wire.index).chain(new).collect::<BTreeSet<_>>().into_iter().collect();
        self.push_some(raise, Step::RaiseWires);
        self.join_host();
    }

    fn join_host(&mut self) {
        let (observed, desired) = (self.observed, self.desired);
        if let Some(leg) = &desired.leg {
            let link = observed.host_links.get(leg.host_link.as_str());
            let netns = desired.wires.get(&Place::Uplink).and_then(|wire| wire.netns.clone());
            if let Some(netns) = netns.filter(|_| !link.is_some_and(|link| self.leg_is_whole(link))) {
                self.steps.push(Step::CreateLeg { netns, leg: leg.clone() });
            }
        }
        if let Some(route) = &desired.host_route {
            let wire_is_new = self.missing().any(|wire| wire.place == Place::Host);
            if observed.host_route.as_ref() != Some(route) || wire_is_new {
                self.steps.push(Step::SetHostRoute(route.clone()));
            }
        }
        for (path, value) in &desired.sysctls {
            if observed.host.sysctls.get(path) != Some(value) {
                self.steps.push(Step::SetSysctl { path: path.clone(), value: value.clone() });
            }
        }
    }

    /// Gives rights: in the locks, then in the panel, which opens the way.
    fn allow(&mut self) {
        let places: Vec<Place> = self.sites();
        for place in places {
            let old = if self.is_new(&place) { Ruleset::default() } else { self.lock_at(&place) };
            let delta = Delta::between(&old, &self.lock_of(&place)).elements_new(constant);
            // Rules of this namespace have changed since it was looked at, by our own steps.
            self.rules(Site::Place(place), delta, 0, Cuts::default());
        }
        let old = self.observed.fabric.as_ref().map(|ns| ns.rules.clone()).unwrap_or_default();
        let mut delta = self.emptied_fabric().unwrap_or_default();
        delta.ops.extend(Delta::between(&old, &self.desired.fabric).elements_new(constant).ops);
        self.rules(Site::Fabric, delta, self.fabric_generation(), Cuts::default());
        let new: Vec<u32> = self.missing().map(|wire| wire.index).collect();
        self.push_some(new, Step::Settle);
    }

    /// Wires that are not whole, and so are made.
    fn missing(&self) -> impl Iterator<Item = &Wire> {
        self.desired.wires.values().filter(|wire| self.observed.whole_wire(wire) != Some(wire.index))
    }

    /// Places whose rules are ours to change and that stay.
    fn sites(&self) -> Vec<Place> {
        self.desired.locks.keys().cloned().collect()
    }

    fn netns(&self, place: &Place) -> Option<&str> {
        self.desired.wires.get(place)?.netns.as_deref()
    }

    fn is_new(&self, place: &Place) -> bool {
        self.netns(place).is_some_and(|netns| !self.observed.namespaces.contains_key(netns))
    }

    fn lock_at(&self, place: &Place) -> Ruleset {
        self.observed.rules(place, self.netns(place))
    }

    fn lock_of(&self, place: &Place) -> Ruleset {
        self.desired.locks.get(place).cloned().unwrap_or_default()
    }

    fn generation(&self, place: &Place) -> u32 {
        match self.netns(place) {
            Some(netns) => self.observed.namespaces.get(netns).map_or(0, |ns| ns.generation),
            None => self.observed.host_generation,
        }
    }

    fn fabric_generation(&self) -> u32 {
        self.observed.fabric.as_ref().map_or(0, |ns| ns.generation)
    }

    fn leg_is_whole(&self, link: &Link) -> bool {
        let (Some(leg), Some(netns)) = (&self.desired.leg, self.netns(&Place::Uplink)) else { return false };
        let gateway = self.observed.namespaces.get(netns).and_then(|ns| ns.links.get(crate::ruleset::compile::LEG));
        gateway.is_some_and(|gateway| {
            let joined = gateway.peer == Some(link.index) && link.peer == Some(gateway.index);
            let made = link.mtu == leg.mtu && gateway.mtu == leg.mtu && link.up && gateway.up;
            let addressed = link.addresses == leg.host.iter().collect();
            joined && made && addressed && gateway.addresses == leg.gateway.iter().collect()
        })
    }

    fn rules(&mut self, at: Site, delta: Delta, generation: u32, cuts: Cuts) {
        if !delta.is_empty() {
            // Only the first change of a namespace in a turn can name the generation that was observed.
            let first = !self.steps.iter().any(|step| matches!(step, Step::Rules { at: before, .. } if *before == at));
            let generation = if first { generation } else { 0 };
            self.steps.push(Step::Rules { at, delta, generation, cuts });
        }
    }

    fn push_some<T>(&mut self, some: Vec<T>, step: impl FnOnce(Vec<T>) -> Step) {
        if !some.is_empty() {
            self.steps.push(step(some));
        }
    }
}

/// The panel before any wire is made: a base chain needs its device (before 6.16 the kernel refuses it without).
fn without_wires(fabric: &Ruleset) -> Ruleset {
    let mut bare = fabric.clone();
    for ((family, _), table) in &mut bare.tables {
        if *family == Family::Netdev {
            table.chains.retain(|_, chain| chain.hook.is_none());
        }
    }
    bare
}
