//! Whether the way out works: other people's rules on the host.

use crate::orchestrator::{Note, Planned};

/// Rules of somebody else that drop what the leg sends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Blocked {
    /// The chain, as `ip filter FORWARD`.
    pub chain: String,
    /// The line that lets it pass.
    pub remedy: String,
}

pub(crate) fn notes(_planned: &Planned) -> Vec<Note> {
    Vec::new()
}
