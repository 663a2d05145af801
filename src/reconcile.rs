//! One turn: the steps of a plan, in order, until one fails.
//!
//! It makes one attempt. A turn that was cut short is finished by the next, which looks at the kernel anew.

use netns_policy::plan::{Plan, Site, Step};
use netns_policy::topology::Place;

use crate::kernel::Kernel;
use crate::report::{Report, StepError};

/// Carries out `plan`.
pub fn turn(kernel: &impl Kernel, plan: &Plan) -> Report {
    let mut report = Report::default();
    for step in &plan.steps {
        match kernel.apply(step) {
            Ok(()) => report.done.push(step.clone()),
            Err(source) if concerns_one_service(step) => {
                report.spoiled.push(StepError { step: step.clone(), source });
            }
            Err(source) => {
                report.failed = Some(StepError { step: step.clone(), source });
                break;
            }
        }
    }
    report
}

/// A lock that is changed after its wire is up: it was shut when it was made, and the panel does not rest on it.
fn concerns_one_service(step: &Step) -> bool {
    let of_service = |place: &Place| matches!(place, Place::Service(_));
    match step {
        Step::MendWire { wire, .. } => of_service(&wire.place),
        Step::Rules { at: Site::Place(place), .. } => of_service(place),
        _ => false,
    }
}
