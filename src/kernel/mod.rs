//! The only room that touches the kernel: namespaces, links, addresses, routes, rules, sysctls, conntrack.
//!
//! It decides nothing: what it is given is a [`Step`], complete, and what it gives is an [`Observed`], as it is.

pub mod address;
mod apply;
pub use apply::occupants;
pub mod cgroup;
pub mod conntrack;
pub mod cookie;
pub mod datagram;
mod host;
pub mod link;
pub mod listener;
pub mod netlink;
pub mod netns;
pub mod nft;
mod observe;
pub mod probe;
pub mod process;
pub mod route;
pub mod rule;
mod socket;
pub mod sysctl;
pub mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use netns_policy::desired::GROUP;
use netns_policy::name::NetworkName;
use netns_policy::observed::Observed;
use netns_policy::plan::Step;
use netns_policy::topology::Place;
use thiserror::Error;

use netlink::NetlinkError;
use netns::Netns;
use nft::NftError;

/// The seam between the pure crate and the kernel. Two verbs, and the second takes data.
pub trait Kernel {
    /// What exists now.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked.
    fn observe(&self) -> Result<Observed, KernelError>;

    /// Does one step. Doing it again after a success, or after a part of it, is harmless.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; a part of the step may have been done.
    fn apply(&self, step: &Step) -> Result<(), KernelError>;
}

/// What the kernel refused, or why it could not be asked.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The system refused something about a file.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something inside a namespace went wrong.
    #[error("in {netns}")]
    Inside {
        /// The namespace.
        netns: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Links, addresses, routes or connections.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Rules.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Wires whose own ends let it fail; the rest of the step is done.
    #[error("{}", spoils.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Spoiled {
        /// Each of them.
        spoils: Vec<Spoil>,
    },
}

/// What became of one wire in a step about many.
#[derive(Debug)]
pub struct Spoil {
    /// The index of the wire in the fabric.
    pub index: u32,
    /// Whose wire it is, when the link still says so.
    pub place: Option<Place>,
    /// What failed.
    pub why: String,
}

impl Spoil {
    /// Of the wire with this index.
    fn new(index: u32, place: Option<Place>, why: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(Some(why), |error| error.source());
        let mut said: Vec<String> = causes.map(ToString::to_string).collect();
        // A layer that adds nothing repeats the one below.
        said.dedup();
        Self { index, place, why: said.join(": ") }
    }
}

impl fmt::Display for Spoil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.why),
            None => write!(f, "wire {}: {}", self.index, self.why),
        }
    }
}

/// `RTPROT_*` of our routes and rules: a number that rtnetlink(7) leaves to administrators and iproute2 names nobody.
pub const PROTOCOL: u8 = 110;

/// The Ethernet address of both ends of every wire: `fwd` rewrites none, and nobody asks who has which.
pub const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// The index of the gateway's end of the leg, out of the way of every wire. A wire's two ends have one index, the
/// fabric's: 2 is taken in a fresh namespace where a module such as `sit` makes a link of its own.
pub const LEG_INDEX: u32 = 1_000_000;

/// The running kernel.
#[derive(Clone, Debug)]
pub struct Linux {
    /// Which network's namespaces are ours.
    pub network: NetworkName,
    /// Where namespaces are pinned: `/run/netns`.
    pub netns_directory: PathBuf,
    /// Where the services' hosts files are: `/run/nsctl`.
    pub run_directory: PathBuf,
    /// Where ip-netns(8) looks for such files: `/etc/netns`, or nowhere in a sandbox.
    pub etc_netns: Option<PathBuf>,
    /// What the host's sysctls were before us, as recorded.
    pub before: BTreeMap<String, String>,
}

impl Linux {
    /// The path of a pin.
    pub fn pin(&self, netns: &str) -> PathBuf {
        self.netns_directory.join(netns)
    }

    /// The directory with the files of one namespace.
    pub fn files(&self, netns: &str) -> PathBuf {
        self.run_directory.join(self.network.as_str()).join(netns)
    }

    /// Opens one of our namespaces.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn open(&self, netns: &str) -> Result<Netns, KernelError> {
        let path = self.pin(netns);
        Netns::open(&path).map_err(|source| KernelError::File { action: "open", path, source })
    }

    /// Runs `f` inside one of our namespaces.
    ///
    /// # Errors
    ///
    /// What `f` returns, with the namespace's name.
    pub fn inside<T: Send + 'static>(
        &self,
        netns: &str,
        f: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, KernelError> {
        self.open(netns)?.run(f).map_err(|source| KernelError::Inside { netns: netns.to_owned(), source })
    }
}

impl Kernel for Linux {
    fn observe(&self) -> Result<Observed, KernelError> {
        observe::observe(self)
    }

    fn apply(&self, step: &Step) -> Result<(), KernelError> {
        apply::apply(self, step)
    }
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::File { action, path, source }
}
