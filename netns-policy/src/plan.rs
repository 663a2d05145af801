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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::address::Addresses;
use crate::changes::{Change, changes};
use crate::cut::Cuts;
use crate::desired::{Desired, FABRIC_SYSCTLS, Files, HostRoute, Leg, Route, UPLINK_SYSCTLS, Wire, alias};
use crate::name::ServiceName;
use crate::observed::{Link, Observed};
use crate::ruleset::delta::{Delta, Op, TableId};
use crate::ruleset::{Chain, Family, Ruleset};
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
    /// Puts wires' ends in the fabric down: nothing passes there.
    LowerWires(Vec<u32>),
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
    /// Sets a sysctl of a namespace of ours, which somebody changed.
    SetNetnsSysctl {
        /// The namespace.
        netns: String,
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
            Self::LowerWires(indexes) => write!(f, "lower {}", count(indexes.len(), "wire")),
            Self::MendWire { wire, .. } => write!(f, "mend the wire of {}", wire.place),
            Self::RaiseWires(indexes) => write!(f, "raise {}", count(indexes.len(), "wire")),
            Self::Rules { at, delta, .. } => {
                write!(f, "change {} in {at}", count(delta.ops.len(), "rule object"))
            }
            Self::SetHostRoute(route) => write!(f, "route the pool in table {} of the host", route.table),
            Self::SetSysctl { path, value } => write!(f, "set {} = {value}", path.replace('/', ".")),
            Self::SetNetnsSysctl { netns, path, value } => {
                write!(f, "set {} = {value} in {netns}", path.replace('/', "."))
            }
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
        let mut steps =
            Steps { observed, desired, deltas: BTreeMap::new(), transactions: BTreeMap::new(), steps: Vec::new() };
        steps.compare();
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

static EMPTY: Ruleset = Ruleset { tables: BTreeMap::new() };

struct Steps<'a> {
    observed: &'a Observed,
    desired: &'a Desired,
    /// What each lock that stays lacks; those that lack nothing are not in it.
    deltas: BTreeMap<Place, Delta>,
    /// How many changes of rules are planned at each site.
    transactions: BTreeMap<Site, u32>,
    steps: Vec<Step>,
}

impl Steps<'_> {
    /// Compares every lock that stays once: most are as they ought to be, and cost no more than that.
    fn compare(&mut self) {
        for place in self.sites() {
            let (old, new) = (self.lock_at(&place), self.lock_of(&place));
            if old != new && !self.is_new(&place) {
                let delta = Delta::between(old, new);
                self.deltas.insert(place, delta);
            }
        }
    }

    /// The part of each lock's delta that `part` takes, where there is any.
    fn parts(&self, part: impl Fn(&Delta) -> Delta) -> Vec<(Place, Delta)> {
        let parts = self.deltas.iter().map(|(place, delta)| (place.clone(), part(delta)));
        parts.filter(|(_, delta)| !delta.is_empty()).collect()
    }

    /// Takes rights away: in the panel, where it is immediate, then in the locks, where connections are cut. What takes
    /// the place of a right that goes comes in the same transaction, so that what stays allowed is never interrupted.
    fn narrow(&mut self) {
        if let Some(fabric) = &self.observed.fabric {
            let delta = Delta::between(&fabric.rules, &self.desired.fabric).exchange(constant);
            self.rules(Site::Fabric, delta, fabric.generation, Cuts::default());
        }
        for (place, delta) in self.parts(|delta| delta.exchange(constant)) {
            let cuts = Cuts::of(&place, &delta, self.lock_at(&place), self.lock_of(&place));
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
            // Before Linux 6.16 a chain goes with its device, and then there is nothing left to delete.
            let unhung = Delta::between(&fabric.rules, &desired.fabric).filtered(|op| self.unhangs(op));
            self.rules(Site::Fabric, unhung, fabric.generation, Cuts::default());
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
        let mut before: Vec<_> = self.observed.host.before.iter().filter(|(path, _)| !needed(path)).collect();
        // The other way round than they were set: while it forwards, the host listens to its router.
        before.sort_by_key(|(path, _)| path.ends_with("/accept_ra"));
        let steps =
            before.into_iter().map(|(path, value)| Step::RestoreSysctl { path: path.clone(), value: value.clone() });
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
        let mut shut = Delta::default();
        for (place, wire) in &desired.wires {
            if let Some(netns) = wire.netns.as_ref().filter(|netns| !observed.namespaces.contains_key(*netns)) {
                let rules = self.whole_lock(place).skeleton(constant);
                // A service's lock without a right is that of any other: they are one in memory.
                if rules != shut {
                    shut = rules;
                }
                let rules = shut.clone();
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
        for (place, delta) in self.parts(|delta| delta.skeleton(constant)) {
            if !self.lock_of(&place).tables.is_empty() {
                self.rules(Site::Place(place.clone()), delta, self.generation(&place), Cuts::default());
            }
        }
    }

    fn fabric_skeleton(&self) -> Delta {
        match &self.observed.fabric {
            Some(fabric) => {
                let all = Delta::between(&fabric.rules, &self.desired.fabric).skeleton(constant);
                all.filtered(|op| !self.unhangs(op))
            }
            None => {
                let bare = without_wires(&self.desired.fabric);
                Delta::between(&bare, &self.desired.fabric).skeleton(constant)
            }
        }
    }

    /// What a panel lacks whose wires are whole and up, if it lacks rules and has none too many. It is given them together with
    /// the edges: nothing passes until then, and a panel with rules and no edge would reset what is declared.
    fn emptied_fabric(&self) -> Option<Delta> {
        let links = self.observed.fabric.as_ref().map(|fabric| &fabric.links)?;
        let skeleton = self.fabric_skeleton();
        let adds = |op: &Op| {
            matches!(op, Op::AddTable { .. } | Op::AddSet { .. } | Op::AddChain { .. } | Op::AddRule { .. })
                || matches!(op, Op::AddElements(_))
        };
        let only_adds = !skeleton.is_empty() && skeleton.ops.iter().all(adds);
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
        self.set_inside();
        self.join_host();
    }

    /// What somebody changed of how the fabric and the gateway forward. A kernel without IPv6 has none of its knobs.
    fn set_inside(&mut self) {
        let (observed, desired) = (self.observed, self.desired);
        let fabric =
            (!desired.is_nothing()).then(|| (desired.fabric_netns(), observed.fabric.as_ref(), FABRIC_SYSCTLS));
        let uplink =
            self.netns(&Place::Uplink).map(|netns| (netns.to_owned(), observed.namespaces.get(netns), UPLINK_SYSCTLS));
        for (netns, seen, wanted) in fabric.into_iter().chain(uplink) {
            let changed = |(path, value): &(&str, &str)| {
                seen.and_then(|seen| seen.sysctls.get(*path)).is_some_and(|seen| seen != value)
            };
            let step = |(path, value): (&str, &str)| Step::SetNetnsSysctl {
                netns: netns.clone(),
                path: path.to_owned(),
                value: value.to_owned(),
            };
            self.steps.extend(wanted.into_iter().filter(changed).map(step));
        }
    }

    fn join_host(&mut self) {
        let (observed, desired) = (self.observed, self.desired);
        let new_leg = self.missing_leg();
        if let Some((netns, leg)) = new_leg.clone() {
            self.steps.push(Step::CreateLeg { netns, leg });
        }
        if let Some(route) = &desired.host_route {
            let wire_is_new = self.missing().any(|wire| wire.place == Place::Host);
            if observed.host_route.as_ref() != Some(route) || wire_is_new {
                self.steps.push(Step::SetHostRoute(route.clone()));
            }
        }
        for (path, value) in &desired.sysctls {
            // A new link starts with the settings of every new link, whatever its predecessor had.
            let of_new =
                new_leg.as_ref().is_some_and(|(_, leg)| path.split('/').any(|part| part == leg.host_link.as_str()));
            if of_new || observed.host.sysctls.get(path) != Some(value) {
                self.steps.push(Step::SetSysctl { path: path.clone(), value: value.clone() });
            }
        }
    }

    /// Gives rights: in the locks, then in the panel, which opens the way.
    fn allow(&mut self) {
        for place in self.sites() {
            let delta = match self.deltas.get(&place) {
                Some(delta) => delta.elements_new(constant),
                // Of a namespace that is made, one at a time: those of a whole network would fill the memory.
                None if self.is_new(&place) => self.whole_lock(&place).elements_new(constant),
                None => continue,
            };
            let generation = self.generation(&place);
            self.rules(Site::Place(place), delta, generation, Cuts::default());
        }
        let old = self.observed.fabric.as_ref().map_or(&EMPTY, |ns| &ns.rules);
        let mut delta = self.emptied_fabric().unwrap_or_default();
        delta.ops.extend(Delta::between(old, &self.desired.fabric).elements_new(constant).ops.iter().cloned());
        self.rules(Site::Fabric, delta, self.fabric_generation(), Cuts::default());
        let new: Vec<u32> = self.missing().map(|wire| wire.index).collect();
        self.push_some(new, Step::Settle);
    }

    /// Whether `op` takes the chain off a wire that is to go. The fabric forwards nothing that comes by such a wire.
    fn unhangs(&self, op: &Op) -> bool {
        let (Op::FlushChain { table, chain } | Op::DeleteChain { table, chain }) = op else { return false };
        let chain_of = |rules: &Ruleset| rules.tables.get(table).and_then(|table| table.chains.get(chain)).cloned();
        let hangs = |chain: Chain| chain.hook.is_some_and(|hook| hook.device.is_some());
        let old = self.observed.fabric.as_ref().and_then(|fabric| chain_of(&fabric.rules));
        old.is_some_and(hangs) && chain_of(&self.desired.fabric).is_none()
    }

    /// Wires that are not whole, and so are made.
    fn missing(&self) -> impl Iterator<Item = &Wire> {
        self.desired.wires.values().filter(|wire| self.observed.whole_wire(wire) != Some(wire.index))
    }

    /// Places whose rules are ours to change and that stay.
    ///
    /// A service whose rules never hold still is passed over: the panel does not depend on it, and one that is hostile
    /// must not keep the turn from the others.
    fn sites(&self) -> Vec<Place> {
        let still = |place: &&Place| !self.netns(place).is_some_and(|netns| self.is_restless(netns));
        self.desired.locks.keys().filter(still).cloned().collect()
    }

    fn is_restless(&self, netns: &str) -> bool {
        self.observed.namespaces.get(netns).is_some_and(|namespace| namespace.restless)
    }

    fn netns(&self, place: &Place) -> Option<&str> {
        self.desired.wires.get(place)?.netns.as_deref()
    }

    fn is_new(&self, place: &Place) -> bool {
        self.netns(place).is_some_and(|netns| !self.observed.namespaces.contains_key(netns))
    }

    fn lock_at(&self, place: &Place) -> &Ruleset {
        self.observed.rules(place, self.netns(place)).unwrap_or(&EMPTY)
    }

    fn lock_of(&self, place: &Place) -> &Ruleset {
        self.desired.locks.get(place).unwrap_or(&EMPTY)
    }

    /// The lock of a namespace that is still to be made.
    fn whole_lock(&self, place: &Place) -> Delta {
        Delta::between(&EMPTY, self.lock_of(place))
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

    /// The leg, with the gateway's namespace, when it has to be made.
    fn missing_leg(&self) -> Option<(String, Leg)> {
        let leg = self.desired.leg.as_ref()?;
        let link = self.observed.host_links.get(leg.host_link.as_str());
        let netns = self.netns(&Place::Uplink)?;
        (!link.is_some_and(|link| self.leg_is_whole(link))).then(|| (netns.to_owned(), leg.clone()))
    }

    fn leg_is_whole(&self, link: &Link) -> bool {
        let (Some(leg), Some(netns)) = (&self.desired.leg, self.netns(&Place::Uplink)) else { return false };
        let gateway = self.observed.namespaces.get(netns).and_then(|ns| ns.links.get(crate::ruleset::compile::LEG));
        gateway.is_some_and(|gateway| {
            let joined = gateway.peer == Some(link.index) && link.peer == Some(gateway.index);
            let made = link.mtu == leg.mtu && gateway.mtu == leg.mtu && link.up && gateway.up;
            let addressed = link.addresses == leg.host.iter().collect();
            // A link that was down for a moment has lost its routes.
            let leads = |from: &Link, to: &Addresses| to.iter().all(|ip| from.routes.iter().any(|r| r.to.ip() == ip));
            let out = leg
                .host
                .iter()
                .all(|ip| gateway.routes.iter().any(|r| r.to.prefix() == 0 && r.to.is_ipv4() == ip.is_ipv4()));
            let routed = leads(link, &leg.gateway) && leads(gateway, &leg.host) && out;
            joined && made && addressed && routed && gateway.addresses == leg.gateway.iter().collect()
        })
    }

    fn rules(&mut self, at: Site, delta: Delta, generation: u32, cuts: Cuts) {
        if !delta.is_empty() {
            // Each change of ours makes a new generation; anybody else's makes one that is not expected.
            let ours = self.transactions.entry(at.clone()).or_default();
            let generation = if generation == 0 { 0 } else { generation.wrapping_add(*ours) };
            *ours += 1;
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
