//! Why a verb failed.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use netns_policy::address::AddressError;
use netns_policy::diagnostic::PolicyErrors;
use netns_policy::graph::Location;
use netns_policy::layout::LayoutError;
use netns_policy::name::NetworkName;
use netns_policy::plan::Step;
use netns_policy::prove::Counterexample;
use nix::unistd::Pid;
use thiserror::Error;

use crate::kernel::KernelError;
use crate::kernel::probe::ProbeError;
use crate::policy::ReadErrors;
use crate::report::{Report, StepError};
use crate::rewrite::RewriteError;
use crate::session::Session;
use crate::store::{Number, Pending, StoreError};

/// Why a verb failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The daemon did not answer.
    #[cfg(feature = "daemon")]
    #[error(transparent)]
    Daemon(#[from] crate::daemon::ClientError),
    /// Addresses cannot be given out.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// There is no backup, or nothing was restored.
    #[cfg(feature = "backup")]
    #[error(transparent)]
    Backup(Box<crate::backup::BackupError>),
    /// A namespace with a name of ours that we did not make.
    #[error("the namespace {netns} exists and is not ours")]
    Foreign {
        /// Its name.
        netns: String,
    },
    /// A link of the host with a name of ours that we did not make.
    #[error("the link {link} exists and is not ours")]
    ForeignLink {
        /// Its name.
        link: String,
    },
    /// The policy has an IPv6 pool and the kernel no IPv6.
    #[error("the policy gives the network IPv6 addresses, and this kernel has no IPv6")]
    NoIpv6,
    /// The demonstration did not show what it promises.
    #[error("the demo failed: {what}")]
    Demo {
        /// What was seen.
        what: String,
    },
    /// The kernel cannot be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// There is no policy, and neither what is recorded nor what exists says which network is meant.
    #[error("which network? there is no policy, and {} networks are known", known.len())]
    NoNetwork {
        /// The networks that are known.
        known: Vec<NetworkName>,
    },
    /// The policy file of ours cannot be changed.
    #[error(transparent)]
    Own(#[from] crate::own::OwnError),
    /// The policy is wrong.
    #[error("the policy is refused")]
    Policy(#[from] PolicyErrors),
    /// The kernel lacks something.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The policy cannot be read.
    #[error(transparent)]
    Read(#[from] ReadErrors),
    /// A policy file cannot be laid out.
    #[error(transparent)]
    Layout(LayoutError),
    /// A file of the operator's cannot be rewritten.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// There is no sandbox to be had.
    #[error(transparent)]
    Sandbox(Box<crate::sandbox::SandboxError>),
    /// The host reaches somebody else at addresses of the pool: taking them would cut it off from there.
    #[error("the pool {pool} overlaps {taken}, which is a network of this host")]
    PoolTaken {
        /// The pool.
        pool: IpNetwork,
        /// The prefix or address of the host.
        taken: IpNetwork,
        /// One of that size which overlaps nothing.
        free: Option<IpNetwork>,
    },
    /// A step failed; what was done until then is in the report.
    #[error("the turn was cut short after {} of its steps", report.done.len())]
    Step {
        /// What was done.
        report: Box<Report>,
        /// What failed.
        #[source]
        source: Box<StepError>,
    },
    /// Everything is done but what services spoil in their own namespaces.
    #[error("everything is done but what services spoil in their own namespaces: {}", steps_of(spoiled))]
    Spoiled {
        /// What was done.
        report: Box<Report>,
        /// What was spoiled, again and again.
        spoiled: Vec<StepError>,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller may not do this.
    #[error("{verb} needs {capability}")]
    Unprivileged {
        /// What was to be done.
        verb: &'static str,
        /// What is missing.
        capability: &'static str,
    },
    /// The caller asked for something that there is not.
    #[error("{message}")]
    Usage {
        /// What is wrong with it.
        message: String,
        /// What to ask for instead.
        help: Option<String>,
    },
    /// The connections cannot be tried.
    #[error(transparent)]
    Verify(Box<crate::matrix::MatrixError>),
    /// Another generation came into force since the one that was planned against.
    #[error("{}", moved(*against, *is))]
    Moved {
        /// What was planned against.
        against: Option<Number>,
        /// What is in force.
        is: Option<Number>,
    },
    /// A generation waits to be confirmed.
    #[error("generation {} waits to be confirmed, for {} s", pending.generation, left.as_secs().max(1))]
    Waits {
        /// Which.
        pending: Pending,
        /// How long still.
        left: Duration,
    },
    /// A generation was not confirmed in time, and the one before it is in force again.
    #[error("generation {} was not confirmed {}, and {}", from, if *rebooted { "before the machine was started anew" } else { "in time" }, went_back(*to))]
    WentBack {
        /// The one that was not confirmed.
        from: Number,
        /// The one that is in force again; `None` when there was none, and all was taken down.
        to: Option<Number>,
        /// Whether it was for that the machine was started anew.
        rebooted: bool,
    },
    /// There is nothing to confirm.
    #[error("no generation waits to be confirmed")]
    NothingWaits,
    /// A change that was made over a connection cannot be confirmed over the same one: that it still carries proves nothing.
    #[error("generation {generation} was applied over this very connection ({session})")]
    SameSession {
        /// What waits.
        generation: Number,
        /// The connection.
        session: Session,
    },
    /// The generation that waits is not in force: its turn was cut short.
    #[error("generation {generation} was cut short, and is not in force")]
    NotWhole {
        /// Which.
        generation: Number,
    },
    /// A change is to wait to be confirmed, and no generation tells of what it would go back to.
    #[error("services are up, and there is no generation to go back to")]
    NoWayBack,
    /// What was asked for is done, and the record does not say so.
    #[error("what was done could not be recorded")]
    Unrecorded {
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// There is no generation to go back to.
    #[error("there is no generation before this one")]
    NoParent,
    /// A program on the host listens on a port that an exposure would lead elsewhere.
    #[error("{at}: {exposure} takes port {port} of the machine, and a program on the host listens there")]
    PortTaken {
        /// The exposure.
        exposure: String,
        /// The port of the machine.
        port: u16,
        /// Where it is written.
        at: Location,
    },
    /// The change would take away the way by which the operator came in.
    #[error("you came in by {path}, and this change closes it")]
    Narrows {
        /// The edge.
        path: String,
    },
    /// Processes still run in services that are to be removed.
    #[error("{}", all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Occupied {
        /// In which, and which.
        all: Vec<Occupied>,
        /// Whether it was tried to end them.
        stopped: bool,
    },
    /// Nobody could be started who goes back when the change is not confirmed.
    #[error("nobody can be started who would go back in time")]
    Hold {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The compiled rules would do another thing than the policy says: a mistake of ours, and nothing is changed.
    #[error("the compiled rules do not do what the policy says")]
    Unproved(#[source] Box<Counterexample>),
    /// The rules that the kernel holds do another thing than the policy says.
    #[error("the rules in the kernel do not do what the policy says")]
    Refuted(#[source] Box<Counterexample>),
    /// A file that was asked for cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What was made is not what was to be made.
    #[error("{} steps are still to do after the turn, the first: {first}", left)]
    Unfinished {
        /// How many.
        left: usize,
        /// The first.
        first: Box<Step>,
    },
}

#[cfg(feature = "backup")]
impl From<crate::backup::BackupError> for Error {
    fn from(error: crate::backup::BackupError) -> Self {
        Self::Backup(Box::new(error))
    }
}

impl From<LayoutError> for Error {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::Policy(errors) => Self::Policy(errors),
            other => Self::Layout(other),
        }
    }
}

fn steps_of(spoiled: &[StepError]) -> String {
    let said = spoiled.iter().map(|failed| match &failed.source {
        // A step about many: whose wires they are.
        source @ KernelError::Spoiled { .. } => format!("{} ({source})", failed.step),
        _ => failed.step.to_string(),
    });
    said.collect::<Vec<_>>().join(", ")
}

fn moved(against: Option<Number>, is: Option<Number>) -> String {
    let is = is.map_or("no generation is in force any more".to_owned(), |is| format!("generation {is} is in force"));
    match against {
        Some(against) => format!("{is}, and generation {against} was planned against"),
        None => format!("{is}, and none was when this was planned"),
    }
}

fn went_back(to: Option<Number>) -> String {
    match to {
        Some(to) => format!("generation {to} is in force again"),
        None => "all is taken down, as it was before".into(),
    }
}

/// Processes in a service that is to be removed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Occupied {
    /// The namespace.
    pub netns: String,
    /// Each process with its name.
    pub processes: Vec<(i32, String)>,
}

impl Occupied {
    pub(super) fn new(netns: String, all: &[Pid]) -> Self {
        let name = |pid: i32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim_end().chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
        };
        Self { netns, processes: all.iter().map(|pid| (pid.as_raw(), name(pid.as_raw()))).collect() }
    }
}

impl fmt::Display for Occupied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// So many are named.
        const NAMED: usize = 3;
        let n = self.processes.len();
        let are = if n == 1 { "1 process is" } else { &format!("{n} processes are") };
        let named = self.processes.iter().take(NAMED).map(|(pid, name)| format!("{name} (pid {pid})"));
        let named = named.collect::<Vec<_>>().join(", ");
        let more = if n > NAMED { format!(" and {} more", n - NAMED) } else { String::new() };
        write!(f, "{are} still in {}: {named}{more}", self.netns)
    }
}
