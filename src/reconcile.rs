//! One turn: the steps of a plan, in order, until one fails.
//!
//! It makes one attempt. A turn that was cut short is finished by the next, which looks at the kernel anew.

use netns_policy::plan::Plan;

use crate::kernel::Kernel;
use crate::report::{Report, StepError};

/// Carries out `plan`.
pub fn turn(kernel: &impl Kernel, plan: &Plan) -> Report {
    let mut report = Report::default();
    for step in &plan.steps {
        if let Err(source) = kernel.apply(step) {
            report.failed = Some(StepError { step: step.clone(), source });
            break;
        }
        report.done.push(step.clone());
    }
    report
}
