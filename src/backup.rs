//! The state directory in one sealed file, and back.
//!
//! The file is an archive of tar(1) in the age format: `age -d FILE | tar t` lists it.
//!
//! # Invariants
//!
//! - Nothing of the state lies on a disk but sealed. The file is written whole or not at all, for root's eyes alone.
//! - What is restored was read to its end before anything is written, then written beside the state and read again as the
//!   other verbs read it, and only then given its name. What it takes the place of is set aside, and never removed.

mod archive;
mod make;
mod restore;
mod sealed;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use netns_policy::graph::AllowGraph;
use netns_policy::name::NetworkName;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::store::{Store, StoreError};
pub use archive::Unread;
pub use sealed::Unopened;

/// In the name of what a restore has set aside: `node.before-1`. No network has a name with a full stop.
const ASIDE: &str = ".before-";

/// What a backup is sealed with. It never shows itself, and is wiped when it is dropped.
#[derive(Eq, PartialEq)]
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

impl Passphrase {
    /// A new backup is sealed with at least so many bytes.
    pub const LEAST: usize = 8;
    /// Nobody types more bytes.
    pub const MOST: usize = 1024;

    /// Of these bytes, as they are.
    ///
    /// # Errors
    ///
    /// [`BackupError::NoPassphrase`] when there are none, or more than [`Passphrase::MOST`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, BackupError> {
        let bytes = Zeroizing::new(bytes);
        match bytes.len() {
            0 => Err(BackupError::NoPassphrase { why: "it is empty".into() }),
            n if n > Self::MOST => {
                Err(BackupError::NoPassphrase { why: format!("it is longer than {} bytes", Self::MOST) })
            }
            _ => Ok(Self(bytes)),
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a backup holds.
#[derive(Debug)]
pub struct BackedUp {
    /// The networks.
    pub networks: Vec<NetworkName>,
    /// How many files of the state directory.
    pub files: usize,
    /// How many policy files, as they were found.
    pub policy: usize,
    /// Why there are no policy files, if that is for a mistake in them.
    pub note: Option<String>,
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// The networks.
    pub networks: Vec<NetworkName>,
    /// How many files.
    pub files: usize,
    /// When the backup was made, in seconds since 1970.
    pub time: u64,
    /// What was there before, and where it is now.
    pub aside: Vec<(PathBuf, PathBuf)>,
}

/// Why there is no backup, or nothing was restored.
#[derive(Debug, Error)]
pub enum BackupError {
    /// A file of that name is there.
    #[error("{} is there already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The backup would be part of the next one.
    #[error("{} would lie in the state directory itself", path.display())]
    Inside {
        /// The file.
        path: PathBuf,
    },
    /// There is no state.
    #[error("there is no state under {}", path.display())]
    Nothing {
        /// The state directory, or that of the network.
        path: PathBuf,
    },
    /// There is no passphrase that could be used.
    #[error("there is no passphrase: {why}")]
    NoPassphrase {
        /// Why not.
        why: String,
    },
    /// It cannot be opened.
    #[error("cannot open {}", path.display())]
    Unopened {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Unopened,
    },
    /// It is open, and is no backup of ours.
    #[error("cannot use {}", path.display())]
    Unread {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Unread,
    },
    /// What is to be restored is there, or runs.
    #[error("{what}")]
    InTheWay {
        /// What.
        what: String,
    },
    /// The state that it holds cannot be used. Nothing was restored.
    #[error("what is in {} cannot be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether every record that is in force can be read, and is a policy to this version.
fn is_usable(store: &Store) -> Result<bool, StoreError> {
    store.addresses()?;
    store.pending()?;
    let Some(current) = store.current()? else { return Ok(true) };
    store.meta(current)?;
    store.addresses_of(current)?;
    Ok(AllowGraph::parse(&store.sources(current)?).is_ok())
}

impl BackupError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Exists { .. } | Self::Inside { .. } => "E0923",
            Self::Unopened { source: Unopened::Passphrase, .. } => "E0924",
            Self::Unread { source: Unread::Newer(_), .. } => "E0918",
            Self::Unusable { source: source @ StoreError::Newer { .. }, .. } | Self::Store(source) => source.code(),
            Self::Unopened { .. } | Self::Unread { .. } | Self::Unusable { .. } => "E0925",
            Self::InTheWay { .. } => "E0926",
            Self::NoPassphrase { .. } => "E0927",
            Self::Nothing { .. } => "E0911",
            Self::Io { .. } => "E0915",
        }
    }

    /// The next move.
    pub fn help(&self) -> String {
        match self {
            Self::Exists { .. } => "name another file, or replace it with --force".into(),
            Self::Inside { .. } => "name a file elsewhere, on another disk for the best".into(),
            Self::Nothing { .. } => "`nsctl apply` makes some; or name its directory with --state".into(),
            Self::NoPassphrase { .. } => {
                "type one of at least 8 bytes at a terminal, or hand one over with --passphrase-fd N".into()
            }
            Self::Unopened { source: Unopened::Passphrase, .. } => {
                "type it again; if it is right, the first lines of the file were altered; nothing was changed".into()
            }
            Self::Unread { source: Unread::Newer(_), .. } | Self::Unusable { source: StoreError::Newer { .. }, .. } => {
                "restore it with that version of nsctl; nothing was changed".into()
            }
            Self::Unopened { .. } | Self::Unread { .. } | Self::Unusable { .. } => {
                "take another copy of it; nothing was changed".into()
            }
            Self::InTheWay { .. } => {
                "nothing was changed; --force sets what is there aside, and takes the state of the backup".into()
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "make room there; nothing was changed".into()
            }
            Self::Io { .. } => "see that root can read and write there; nothing was changed".into(),
            Self::Store(error) => error.help(),
        }
    }
}
