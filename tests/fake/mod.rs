//! A kernel in memory: every step changes what it observes as the real one would, or is refused as there.
//!
//! # Invariants
//!
//! - Rules change in transactions, and an operation on what is not there fails the whole.
//! - A veth pair goes with either of its ends; a namespace takes its links along.
//! - Nothing is done that the step does not say: what a plan forgets stays undone.

use std::cell::RefCell;
use std::io;

use netns_policy::address::Addresses;
use netns_policy::desired::{HostRoute, INNER_MTU, Leg, Route, Wire};
use netns_policy::observed::{Link, Namespace, Observed};
use netns_policy::plan::{Site, Step};
use netns_policy::ruleset::Ruleset;
use netns_policy::ruleset::compile::LEG;
use netns_policy::ruleset::delta::Delta;
use netns_policy::topology::Place;
use nsctl::kernel::nft::NftError;
use nsctl::kernel::{Kernel, KernelError, LEG_INDEX};

mod ledger;
mod world;

/// Everything that exists, and how this kernel behaves where kernels differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    pub observed: Observed,
    /// A netdev chain goes with its device, as before Linux 6.16.
    pub chains_go_with_links: bool,
    next_host_index: u32,
}

/// The kernel; it refuses everything after `left` steps.
pub struct Fake {
    pub machine: RefCell<Machine>,
    pub left: RefCell<usize>,
}

impl Fake {
    pub fn new(machine: Machine, left: usize) -> Self {
        Self { machine: RefCell::new(machine), left: RefCell::new(left) }
    }
}

impl Kernel for Fake {
    fn observe(&self) -> Result<Observed, KernelError> {
        Ok(self.machine.borrow().observed.clone())
    }

    fn apply(&self, step: &Step) -> Result<(), KernelError> {
        let mut left = self.left.borrow_mut();
        *left = left.checked_sub(1).ok_or_else(|| refused("the power is cut"))?;
        let mut machine = self.machine.borrow().clone();
        machine.apply(step)?;
        *self.machine.borrow_mut() = machine;
        Ok(())
    }
}

pub fn refused(why: &'static str) -> KernelError {
    KernelError::File { action: "do", path: "fake".into(), source: io::Error::other(why) }
}

impl Machine {
    /// A machine on which nothing of ours is.
    pub fn bare(host: netns_policy::network::HostNetwork, chains_go_with_links: bool) -> Self {
        let observed = Observed { host, host_generation: 1, ..Observed::default() };
        Self { observed, chains_go_with_links, next_host_index: 100 }
    }

    pub fn apply(&mut self, step: &Step) -> Result<(), KernelError> {
        let observed = &mut self.observed;
        match step {
            Step::CreateFabric { rules, .. } => {
                if observed.fabric.is_none() {
                    observed.fabric = Some(namespace(rules)?);
                }
            }
            Step::CreateNetns { netns, rules, .. } => {
                if !observed.namespaces.contains_key(netns) {
                    observed.namespaces.insert(netns.clone(), namespace(rules)?);
                }
            }
            Step::CreateWires(wires) => wires.iter().try_for_each(|wire| self.create_wire(wire))?,
            Step::CreateLeg { netns, leg } => self.create_leg(netns, leg)?,
            Step::DeleteFabricLinks(indexes) => {
                let links = self.observed.fabric.as_ref().ok_or_else(|| refused("no fabric"))?.links.values();
                let gone: Vec<Link> = links.filter(|link| indexes.contains(&link.index)).cloned().collect();
                gone.iter().for_each(|link| self.delete_outer(link));
            }
            Step::DeleteNetns { netns } => self.delete_netns(netns),
            Step::DeleteHostLinks(indexes) => indexes.iter().for_each(|index| self.delete_host_link(*index)),
            Step::DeleteHostRoute(_) => observed.host_route = None,
            Step::DeleteFiles(service) => drop(observed.files.remove(service)),
            Step::MendWire { wire, stale } => {
                let link = self.inner_mut(wire).ok_or_else(|| refused("no such link"))?;
                link.up = true;
                link.routes.retain(|route| !stale.contains(route));
                link.routes.extend(wire.routes.iter().cloned());
            }
            Step::LowerWires(indexes) => {
                let links = observed.fabric.iter_mut().flat_map(|fabric| fabric.links.values_mut());
                links.filter(|link| indexes.contains(&link.index)).for_each(|link| link.up = false);
            }
            Step::RaiseWires(indexes) => {
                let fabric = observed.fabric.as_mut().ok_or_else(|| refused("no fabric"))?;
                for index in indexes {
                    let link = fabric.links.values_mut().find(|link| link.index == *index);
                    link.ok_or_else(|| refused("no such wire"))?.up = true;
                }
            }
            Step::Rules { at, delta, generation, .. } => self.rules(at, delta, *generation)?,
            Step::SetHostRoute(route) => self.set_host_route(route)?,
            Step::SetSysctl { path, value } => {
                let knob = observed.host.sysctls.get_mut(path).ok_or_else(|| refused("no such sysctl"))?;
                let was = std::mem::replace(knob, value.clone());
                observed.host.before.entry(path.clone()).or_insert(was);
            }
            Step::SetNetnsSysctl { netns, path, value } => {
                let place = match observed.namespaces.get_mut(netns) {
                    Some(namespace) => namespace,
                    None => observed.fabric.as_mut().ok_or_else(|| refused("no namespace"))?,
                };
                place.sysctls.insert(path.clone(), value.clone());
            }
            Step::RestoreSysctl { path, value } => {
                observed.host.sysctls.entry(path.clone()).and_modify(|knob| *knob = value.clone());
                observed.host.before.remove(path);
            }
            Step::Settle(indexes) => {
                let fabric = observed.fabric.as_ref().ok_or_else(|| refused("no fabric"))?;
                let up = |index: &u32| fabric.links.values().any(|link| link.index == *index && link.up);
                indexes.iter().all(up).then_some(()).ok_or_else(|| refused("a wire stays down"))?;
            }
            Step::WriteFiles { service, files } => drop(observed.files.insert(service.clone(), files.clone())),
        }
        Ok(())
    }

    fn create_wire(&mut self, wire: &Wire) -> Result<(), KernelError> {
        let fabric = self.observed.fabric.as_ref().ok_or_else(|| refused("no fabric"))?;
        if let Some(stale) = fabric.links.get(wire.outer.as_str()).cloned() {
            self.delete_outer(&stale);
        }
        let (index, links) = match &wire.netns {
            Some(netns) => {
                let namespace = self.observed.namespaces.get_mut(netns).ok_or_else(|| refused("no namespace"))?;
                (wire.index, &mut namespace.links)
            }
            None => {
                self.next_host_index += 1;
                (self.next_host_index, &mut self.observed.host_links)
            }
        };
        let made = Link { noarp: true, alias: Some(wire.alias.clone()), mtu: INNER_MTU, ..Link::default() };
        let addresses = wire.addresses.iter().collect();
        let inner =
            Link { index, peer: Some(wire.index), up: true, addresses, routes: wire.routes.clone(), ..made.clone() };
        links.insert(wire.inner.to_string(), inner);
        let altnames = wire.altname.iter().cloned().collect();
        let outer = Link { index: wire.index, peer: Some(index), altnames, ..made };
        self.observed.fabric.as_mut().expect("seen above").links.insert(wire.outer.to_string(), outer);
        Ok(())
    }

    fn create_leg(&mut self, netns: &str, leg: &Leg) -> Result<(), KernelError> {
        if let Some(stale) = self.observed.host_links.get(leg.host_link.as_str()) {
            self.delete_host_link(stale.index);
        }
        let namespace = self.observed.namespaces.get_mut(netns).ok_or_else(|| refused("no namespace"))?;
        self.next_host_index += 1;
        let index = self.next_host_index;
        let to = |ip: std::net::IpAddr| Route { to: ip.into(), mtu: None, source: None };
        let end = |index, peer, own: &Addresses, other: &Addresses| Link {
            index,
            peer: Some(peer),
            alias: Some(leg.alias.clone()),
            up: true,
            mtu: leg.mtu,
            noarp: true,
            addresses: own.iter().collect(),
            routes: other.iter().map(to).collect(),
            ..Link::default()
        };
        let mut gateway = end(LEG_INDEX, index, &leg.gateway, &leg.host);
        let any = |ip: std::net::IpAddr| if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        gateway.routes.extend(leg.host.iter().map(|ip| Route {
            to: any(ip).parse().unwrap(),
            mtu: None,
            source: None,
        }));
        namespace.links.insert(LEG.to_owned(), gateway);
        self.observed.host_links.insert(leg.host_link.to_string(), end(index, LEG_INDEX, &leg.host, &leg.gateway));
        self.observed.host.sysctls.insert(format!("net/ipv4/conf/{}/forwarding", leg.host_link), "0".into());
        Ok(())
    }

    fn inner_mut(&mut self, wire: &Wire) -> Option<&mut Link> {
        match &wire.netns {
            Some(netns) => self.observed.namespaces.get_mut(netns)?.links.get_mut(wire.inner.as_str()),
            None => self.observed.host_links.get_mut(wire.inner.as_str()),
        }
    }

    /// A wire, by its end in the fabric.
    fn delete_outer(&mut self, outer: &Link) {
        let other = |link: &Link| link.peer == Some(outer.index) && outer.peer == Some(link.index);
        self.observed.namespaces.values_mut().for_each(|ns| ns.links.retain(|_, link| !other(link)));
        let before = self.observed.host_links.len();
        self.observed.host_links.retain(|_, link| !other(link));
        if self.observed.host_links.len() < before {
            self.host_routes_go();
        }
        let Some(fabric) = &mut self.observed.fabric else { return };
        let gone = fabric.links.iter().find(|(_, link)| link.index == outer.index).map(|(name, _)| name.clone());
        let Some(name) = gone else { return };
        fabric.links.remove(&name);
        if self.chains_go_with_links {
            for table in fabric.rules.tables.values_mut() {
                table.chains.retain(|_, c| c.hook.as_ref().and_then(|hook| hook.device.as_ref()) != Some(&name));
            }
        }
    }

    fn delete_host_link(&mut self, index: u32) {
        let Some(name) = self.observed.host_links.iter().find(|(_, link)| link.index == index).map(|(n, _)| n.clone())
        else {
            return;
        };
        let link = self.observed.host_links.remove(&name).expect("found above");
        self.observed.host.sysctls.remove(&format!("net/ipv4/conf/{name}/forwarding"));
        let fabric = self.observed.fabric.as_ref();
        let outer = fabric.and_then(|ns| ns.links.values().find(|outer| outer.peer == Some(index)).cloned());
        match outer.filter(|outer| link.peer == Some(outer.index)) {
            Some(outer) => {
                self.delete_outer(&outer);
                self.host_routes_go();
            }
            None => self.observed.namespaces.values_mut().for_each(|ns| {
                ns.links.retain(|name, gateway| name != LEG || gateway.peer != Some(index));
            }),
        }
    }

    /// Routes go with their link, the rules that lead to them do not.
    fn host_routes_go(&mut self) {
        if let Some(route) = &mut self.observed.host_route {
            route.pools.clear();
        }
    }

    fn delete_netns(&mut self, netns: &str) {
        if netns == "node+fabric" {
            let wires: Vec<Link> =
                self.observed.fabric.iter().flat_map(|fabric| fabric.links.values().cloned()).collect();
            wires.iter().for_each(|outer| self.delete_outer(outer));
            self.observed.fabric = None;
            return;
        }
        let gone = self.observed.namespaces.remove(netns).unwrap_or_default();
        for link in gone.links.values() {
            let fabric = self.observed.fabric.as_ref();
            let outer = fabric.and_then(|ns| ns.links.values().find(|outer| Some(outer.index) == link.peer).cloned());
            match outer.filter(|outer| outer.peer == Some(link.index)) {
                Some(outer) => self.delete_outer(&outer),
                None => link.peer.into_iter().for_each(|peer| self.delete_host_link(peer)),
            }
        }
    }

    fn rules(&mut self, at: &Site, delta: &Delta, expected: u32) -> Result<(), KernelError> {
        let observed = &mut self.observed;
        let network = "node".parse().expect("a name");
        let (rules, generation) = match at {
            Site::Fabric => observed.fabric.as_mut().map(|ns| (&mut ns.rules, &mut ns.generation)),
            Site::Place(Place::Host) => Some((&mut observed.host_rules, &mut observed.host_generation)),
            Site::Place(place) => {
                let netns = place.netns(&network).expect("only the host has none");
                observed.namespaces.get_mut(&netns).map(|ns| (&mut ns.rules, &mut ns.generation))
            }
        }
        .ok_or_else(|| refused("no namespace"))?;
        if expected != 0 && expected != *generation {
            return Err(NftError::GenerationChanged.into());
        }
        *rules = ledger::apply(rules.clone(), delta)?;
        *generation += 1;
        // A base chain needs its device.
        if *at == Site::Fabric {
            let links = &observed.fabric.as_ref().expect("changed above").links;
            ledger::check_devices(&observed.fabric.as_ref().expect("changed above").rules, delta, |name| {
                links.contains_key(name)
            })?;
        }
        Ok(())
    }

    fn set_host_route(&mut self, route: &HostRoute) -> Result<(), KernelError> {
        let wired = self.observed.host_links.keys().any(|name| name == "node+host");
        wired.then_some(()).ok_or_else(|| refused("no such link"))?;
        self.observed.host_route = Some(route.clone());
        Ok(())
    }
}

fn namespace(rules: &Delta) -> Result<Namespace, KernelError> {
    let rules = ledger::apply(Ruleset::default(), rules)?;
    Ok(Namespace { rules, generation: 1, ..Namespace::default() })
}
