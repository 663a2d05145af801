//! Why a verb failed.

use std::io;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use netns_policy::address::AddressError;
use netns_policy::diagnostic::PolicyErrors;
use netns_policy::layout::LayoutError;
use netns_policy::name::NetworkName;
use netns_policy::plan::Step;
use netns_policy::prove::Counterexample;
use thiserror::Error;

use crate::kernel::KernelError;
use crate::kernel::probe::ProbeError;
use crate::policy::ReadErrors;
use crate::report::{Report, StepError};
use crate::rewrite::RewriteError;
use crate::store::StoreError;

/// Why a verb failed.
#[derive(Debug, Error)]
pub enum Error {
    /// Addresses cannot be given out.
    #[error(transparent)]
    Address(#[from] AddressError),
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
