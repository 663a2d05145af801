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

/// An error with its causes in one line, each layer's sentence once: a cause that only repeats the end of what was said is
/// left out, and one that begins with all of it takes its place.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let sentence = source.to_string();
        if sentence.starts_with(&text) {
            text = sentence;
        } else if !text.ends_with(&sentence) {
            text.push_str(": ");
            text.push_str(&sentence);
        }
        next = source.source();
    }
    text
}
