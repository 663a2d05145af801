//! One turn: the steps of a plan, in order, until one fails.
//!
//! It makes one attempt. A turn that was cut short is finished by the next, which looks at the kernel anew.

use std::collections::BTreeMap;

use netns_policy::plan::{Plan, Site, Step};
use netns_policy::topology::Place;

use crate::kernel::{Kernel, KernelError, Spoil};
use crate::report::{Report, StepError};

/// Carries out `plan`.
pub fn turn(kernel: &impl Kernel, plan: &Plan) -> Report {
    let mut report = Report::default();
    for step in &plan.steps {
        match kernel.apply(step) {
            Ok(()) => report.done.push(step.clone()),
            Err(source) => {
                let source = named(source, plan);
                let goes_on = concerns_one_service(step) || is_spoiled_by_services(&source);
                let failed = StepError { step: step.clone(), source };
                if !goes_on {
                    report.failed = Some(failed);
                    break;
                }
                report.spoiled.push(failed);
            }
        }
    }
    report
}

/// Says whose wires were spoiled where the kernel no longer can, because they are gone.
fn named(mut source: KernelError, plan: &Plan) -> KernelError {
    if let KernelError::Spoiled { spoils } = &mut source {
        let new = plan.steps.iter().filter_map(|step| match step {
            Step::CreateWires(wires) => Some(wires),
            _ => None,
        });
        let places: BTreeMap<u32, &Place> = new.flatten().map(|wire| (wire.index, &wire.place)).collect();
        for spoil in spoils.iter_mut().filter(|spoil| spoil.place.is_none()) {
            spoil.place = places.get(&spoil.index).map(|place| (*place).clone());
        }
    }
    source
}

/// The wires of services alone; one that is gone without a trace is seen by the next turn.
fn is_spoiled_by_services(source: &KernelError) -> bool {
    let KernelError::Spoiled { spoils } = source else { return false };
    spoils.iter().all(|spoil| spoil.place.as_ref().is_none_or(of_service))
}

/// What is left to do when the last turn has ended, as what services undo inside faster than it can be done; none if
/// anything else is left too.
pub fn undone_inside(plan: &Plan) -> Option<Vec<StepError>> {
    let mut undone = Vec::new();
    for step in &plan.steps {
        let wires: Vec<(u32, &Place)> = match step {
            Step::CreateWires(wires) => wires.iter().map(|wire| (wire.index, &wire.place)).collect(),
            Step::MendWire { wire, .. } => vec![(wire.index, &wire.place)],
            Step::Rules { at: Site::Place(place), .. } => vec![(0, place)],
            // What comes with a wire that is made anew.
            Step::DeleteFabricLinks(_) | Step::RaiseWires(_) | Step::Settle(_) => continue,
            Step::Rules { at: Site::Fabric, .. } => continue,
            _ => return None,
        };
        if !wires.iter().all(|(_, place)| of_service(place)) {
            return None;
        }
        let why = "it is undone inside each time".to_owned();
        let spoils =
            wires.into_iter().map(|(index, place)| Spoil { index, place: Some(place.clone()), why: why.clone() });
        let source = KernelError::Spoiled { spoils: spoils.collect() };
        undone.push(StepError { step: step.clone(), source });
    }
    (!undone.is_empty()).then_some(undone)
}

/// A lock that is changed after its wire is up: it was shut when it was made, and the panel does not rest on it.
fn concerns_one_service(step: &Step) -> bool {
    match step {
        Step::MendWire { wire, .. } => of_service(&wire.place),
        Step::Rules { at: Site::Place(place), .. } => of_service(place),
        _ => false,
    }
}

fn of_service(place: &Place) -> bool {
    matches!(place, Place::Service(_))
}
