//! What a turn did.

use netns_policy::plan::Step;
use thiserror::Error;

use crate::kernel::KernelError;

/// A [`Step`] that failed.
#[derive(Debug, Error)]
#[error("cannot {step}")]
pub struct StepError {
    /// What was tried.
    pub step: Step,
    /// Why it failed.
    #[source]
    pub source: KernelError,
}

/// What one turn did.
#[derive(Debug, Default)]
#[must_use = "an unread report is not actionable"]
pub struct Report {
    /// Steps that are done, in order.
    pub done: Vec<Step>,
    /// Steps that failed in services' own namespaces, and with which the turn went on: whoever is root in there can
    /// spoil what concerns it alone, and nothing for the others. Of a step about many, all the others are done.
    pub spoiled: Vec<StepError>,
    /// The step at which the turn ended, when it did not end well.
    pub failed: Option<StepError>,
}
