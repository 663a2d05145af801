//! Holding closed what somebody spoils again and again.
//!
//! # Invariants
//!
//! - A place that is held closed has its wire down in the fabric, where nobody inside it can put it up: nothing passes
//!   there, whatever its own rules say. When the fabric itself is held, every wire is down.
//! - What is not held is mended as ever.

use std::collections::BTreeSet;

use crate::changes::index;
use crate::desired::{Desired, Wire};
use crate::observed::Observed;
use crate::plan::{Plan, Site, Step};
use crate::ruleset::compile::wire_chain;
use crate::ruleset::delta::{Delta, Op};
use crate::ruleset::{Field, Key};
use crate::topology::Place;

impl Step {
    /// What the step is about.
    pub fn sites(&self, desired: &Desired, observed: &Observed) -> BTreeSet<Site> {
        let of_index = |index: &u32| {
            let known = desired.wires.values().find(|wire| wire.index == *index).map(|wire| wire.place.clone());
            known.map_or(Site::Fabric, Site::Place)
        };
        let of_netns = |netns: &str| {
            let wire = desired.wires.values().find(|wire| wire.netns.as_deref() == Some(netns));
            wire.map_or(Site::Fabric, |wire| Site::Place(wire.place.clone()))
        };
        match self {
            Self::CreateFabric { .. } => BTreeSet::from([Site::Fabric]),
            Self::CreateNetns { place, .. } => BTreeSet::from([Site::Place(place.clone())]),
            Self::CreateWires(wires) => wires.iter().map(|wire| Site::Place(wire.place.clone())).collect(),
            Self::MendWire { wire, .. } => BTreeSet::from([Site::Place(wire.place.clone())]),
            Self::DeleteFabricLinks(indexes) => indexes.iter().map(|index| of_link(observed, *index)).collect(),
            Self::LowerWires(indexes) | Self::RaiseWires(indexes) | Self::Settle(indexes) => {
                indexes.iter().map(of_index).collect()
            }
            Self::Rules { at, .. } => BTreeSet::from([at.clone()]),
            Self::DeleteNetns { netns } | Self::SetNetnsSysctl { netns, .. } => BTreeSet::from([of_netns(netns)]),
            Self::CreateLeg { .. } => BTreeSet::from([Site::Place(Place::Uplink)]),
            Self::DeleteFiles(service) | Self::WriteFiles { service, .. } => {
                BTreeSet::from([Site::Place(Place::Service(service.clone()))])
            }
            Self::DeleteHostLinks(_)
            | Self::DeleteHostRoute(_)
            | Self::RestoreSysctl { .. }
            | Self::SetHostRoute(_)
            | Self::SetSysctl { .. } => BTreeSet::from([Site::Place(Place::Host)]),
        }
    }
}

/// The same change without what it adds for these wires.
fn without_wires(delta: &Delta, indexes: &BTreeSet<u32>) -> Delta {
    let chains: BTreeSet<String> = indexes.iter().map(|index| wire_chain(*index)).collect();
    let names = |bytes: &[u8]| index(bytes).is_some_and(|index| indexes.contains(&index));
    let kept = |op: &Op| match op {
        Op::AddChain { chain, .. } | Op::AddRule { chain, .. } if chains.contains(chain) => None,
        Op::AddElements(elements) => {
            let by_wire = elements.of.key.first() == Some(&Field::IfaceIndex);
            let is_of =
                |key: &Key, out: &Option<Vec<u8>>| (by_wire && names(&key.from)) || out.as_deref().is_some_and(&names);
            let mut left = elements.clone();
            left.of.elements.retain(|key, out| !is_of(key, out));
            (!left.of.elements.is_empty()).then_some(Op::AddElements(left))
        }
        op => Some(op.clone()),
    };
    Delta { ops: delta.ops.iter().filter_map(kept).collect::<Vec<_>>().into() }
}

/// The places that are spoiled, told from the steps that mend them. What a missing wire brings with it in the panel is
/// no fault of the panel's.
pub fn spoiled(plan: &Plan, observed: &Observed, desired: &Desired) -> BTreeSet<Site> {
    let mut sites: BTreeSet<Site> = plan.steps.iter().flat_map(|step| step.sites(desired, observed)).collect();
    if sites.len() > 1 && observed.fabric.is_some() {
        sites.remove(&Site::Fabric);
    }
    sites
}

/// Whose wire a link of the fabric was, as its alias says.
fn of_link(observed: &Observed, index: u32) -> Site {
    let mut links = observed.fabric.iter().flat_map(|fabric| fabric.links.values());
    let alias = links.find(|link| link.index == index).and_then(|link| link.alias.as_deref());
    let name = alias.and_then(|alias| alias.rsplit(':').next());
    name.and_then(Place::from_long_name).map_or(Site::Fabric, Site::Place)
}

impl Plan {
    /// The same plan without what concerns the held places, and with what closes them.
    pub fn holding(&self, held: &BTreeSet<Site>, observed: &Observed, desired: &Desired) -> Self {
        if held.is_empty() {
            return self.clone();
        }
        let all = held.contains(&Site::Fabric);
        let is_held = |wire: &Wire| all || held.contains(&Site::Place(wire.place.clone()));
        let wires: Vec<&Wire> = desired.wires.values().filter(|wire| is_held(wire)).collect();
        let closed: BTreeSet<u32> = wires.iter().map(|wire| wire.index).collect();
        let open =
            |indexes: &[u32]| indexes.iter().copied().filter(|index| !closed.contains(index)).collect::<Vec<_>>();
        // Of a held wire that is not there nothing is made, its keys in the panel neither.
        let absent: BTreeSet<u32> =
            wires.iter().filter(|wire| observed.whole_wire(wire) != Some(wire.index)).map(|wire| wire.index).collect();
        let kept = |step: &Step| match step {
            Step::Rules { at: Site::Fabric, delta, generation, cuts } if !all => {
                let delta = without_wires(delta, &absent);
                let cuts = cuts.clone();
                (!delta.is_empty()).then_some(Step::Rules { at: Site::Fabric, delta, generation: *generation, cuts })
            }
            Step::RaiseWires(indexes) => Some(open(indexes)).filter(|left| !left.is_empty()).map(Step::RaiseWires),
            Step::Settle(indexes) => Some(open(indexes)).filter(|left| !left.is_empty()).map(Step::Settle),
            Step::CreateWires(wires) => {
                let left: Vec<Wire> = wires.iter().filter(|wire| !is_held(wire)).cloned().collect();
                (!left.is_empty()).then_some(Step::CreateWires(left))
            }
            step => {
                let sites = step.sites(desired, observed);
                let of_held = sites.iter().all(|site| held.contains(site)) && !sites.is_empty();
                (!of_held).then(|| step.clone())
            }
        };
        let is_up = |wire: &&&Wire| {
            let fabric = observed.fabric.as_ref();
            fabric.and_then(|ns| ns.links.get(wire.outer.as_str())).is_some_and(|link| link.up)
        };
        let lower: Vec<u32> = wires.iter().filter(is_up).map(|wire| wire.index).collect();
        let first = (!lower.is_empty()).then_some(Step::LowerWires(lower));
        Self {
            steps: first.into_iter().chain(self.steps.iter().filter_map(kept)).collect(),
            changes: self.changes.clone(),
        }
    }
}
