//! How a change is to be made.

use std::fmt;
use std::io;
use std::time::Duration;

use netns_policy::name::NetworkName;

use crate::session::Session;
use crate::store::{Number, Pending};

/// Whether a change waits to be confirmed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Confirm {
    /// It stays, whatever comes.
    #[default]
    Never,
    /// For [`Confirm::USUAL`] when the caller came in over SSH, else not at all.
    OverSsh,
    /// For so long.
    Within(Duration),
}

impl Confirm {
    /// How long a change waits where nothing else is said.
    pub const USUAL: Duration = Duration::from_secs(120);
}

/// What becomes of processes in a service that is removed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Running {
    /// The change is refused.
    #[default]
    Refuse,
    /// They are asked to end (SIGTERM), and waited for so long; nobody is killed, since what has money open must be let
    /// close its books.
    Stop(Duration),
    /// They live on without a network.
    Leave,
}

/// Starts what goes back in time although the caller ends and the daemon is dead: a process of its own that calls
/// [`Orchestrator::hold`](super::Orchestrator::hold).
pub type Holder<'a> = &'a dyn Fn(&NetworkName, &Pending) -> io::Result<()>;

/// How a change is to be made. The default is what a program that embeds the library wants: it stays, nobody is asked,
/// and nothing that runs is ended.
#[derive(Clone, Copy, Default)]
pub struct How<'a> {
    /// Whether it waits to be confirmed.
    pub confirm: Confirm,
    /// What becomes of processes in a service that is removed.
    pub running: Running,
    /// Only if this generation is in force still: what was planned against.
    pub against: Option<Number>,
    /// The connection of the operator: a change that would cut it off has to be asked for with [`Confirm::Within`].
    pub session: Option<&'a Session>,
    /// Starts a second one who goes back. Without it only the daemon does.
    pub hold: Option<Holder<'a>>,
}

impl fmt::Debug for How<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { confirm, running, against, session, hold } = self;
        f.debug_struct("How")
            .field("confirm", confirm)
            .field("running", running)
            .field("against", against)
            .field("session", session)
            .field("hold", &hold.is_some())
            .finish()
    }
}
