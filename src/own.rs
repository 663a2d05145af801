//! The one policy file that nsctl writes itself: what commands such as `nsctl grant` change.
//!
//! # Invariants
//!
//! - A file that a person wrote is never changed: ours begins with a mark of its own.
//! - The policy with the change in it is checked first. One that would be refused is not written.
//! - What is in it besides, comments too, stays as it is. A reader, and a crash, find the old text or the new one.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use netns_policy::diagnostic::{Source, Trust};
use netns_policy::graph::AllowGraph;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};
use thiserror::Error;
use toml_edit::DocumentMut;

use crate::file::{FileError, Regular};
use crate::orchestrator::{Error, Options};
use crate::policy::{self, DEFAULT_PATHS, LIMIT, Read};
use crate::store::{StoreError, write_whole};

/// Its name in a directory of policies.
pub const NAME: &str = "90-nsctl.toml";

/// Where it lies when no policy is named.
const DIRECTORY: &str = "/etc/nsctl/policy.d";

/// How it begins.
const MARK: &str = "# Written by nsctl. Words of your own belong into another file.";

/// Why the file cannot be changed.
#[derive(Debug, Error)]
pub enum OwnError {
    /// There are only single files, so that nothing says where it would lie.
    #[error("no directory of policies is named, in which an answer could be written down")]
    Nowhere,
    /// Somebody else's.
    #[error("{} is {what}, and not written by nsctl", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// Another file of that name is in force, so that whatever ours says is not heard.
    #[error("{by} has the name of {}, and of the two only one is heard", path.display())]
    Masked {
        /// Ours.
        path: PathBuf,
        /// The other one.
        by: String,
    },
    /// It is not TOML any more.
    #[error("cannot understand {}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<toml_edit::TomlError>,
    },
    /// The system refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OwnError {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Nowhere | Self::Foreign { .. } | Self::Masked { .. } => "E0911",
            Self::Broken { .. } => "E0107",
            Self::Store(error) => error.code(),
        }
    }

    /// The next move.
    pub fn help(&self) -> String {
        match self {
            Self::Nowhere => format!("name a directory with --policy, for {NAME} in it, or a file with --into FILE"),
            Self::Foreign { .. } => "move it elsewhere, or name another file with --into FILE".into(),
            Self::Masked { .. } => "take that one away, or name another file with --into FILE".into(),
            Self::Broken { .. } => "mend it by hand; what nsctl writes is TOML".into(),
            Self::Store(StoreError::Io { .. }) => {
                "nothing was written; run this as root, on a file that can be written".into()
            }
            Self::Store(error) => error.help().into(),
        }
    }
}

/// The file, read and locked, with the policy that it is a part of.
#[derive(Debug)]
pub struct Own {
    path: PathBuf,
    /// What it says. Change this.
    pub document: DocumentMut,
    before: Option<String>,
    /// The policy without it.
    others: Vec<Source>,
    /// Whether the policy was read from it too, or would be once it is there.
    heard: bool,
    _lock: Option<Flock<File>>,
}

impl Own {
    /// Reads the policy and the file of ours in it; `into` names another file for it.
    ///
    /// # Errors
    ///
    /// When the policy cannot be read, or the file is not ours.
    pub fn open(options: &Options, into: Option<&Path>) -> Result<Self, Error> {
        let (path, heard) = place(options, into)?;
        let read = read(options)?;
        let name = path.display().to_string();
        let others: Vec<Source> = read.sources.into_iter().filter(|source| !is_same(&source.name, &path)).collect();
        if into.is_none() {
            let other = others.iter().find(|source| Path::new(&source.name).file_name() == path.file_name());
            if let Some(other) = other {
                return Err(OwnError::Masked { path, by: other.name.clone() }.into());
            }
            let twin = path.with_extension("json");
            if let Some(twin) = others.iter().find(|source| is_same(&source.name, &twin)) {
                return Err(OwnError::Masked { path, by: twin.name.clone() }.into());
            }
        }
        let lock = lock(&path)?;
        let before = text(&path)?;
        let parsed = before.clone().unwrap_or_else(fresh).parse::<DocumentMut>();
        let document = parsed.map_err(|source| OwnError::Broken { path: path.clone(), source: Box::new(source) })?;
        let heard = heard || before.is_some() && read.files.iter().any(|found| found.path == name);
        Ok(Self { path, document, before, others, heard, _lock: lock })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a command with the same `--policy` reads it.
    pub fn is_heard(&self) -> bool {
        self.heard
    }

    /// The policy as it is in force.
    ///
    /// # Errors
    ///
    /// Every mistake in it.
    pub fn policy_before(&self) -> Result<netns_policy::Checked, Error> {
        Ok(AllowGraph::parse(&self.sources(self.before.clone()))?)
    }

    /// The policy with the file as [`Own::document`] has it now.
    ///
    /// # Errors
    ///
    /// Every mistake in it.
    pub fn policy_after(&self) -> Result<netns_policy::Checked, Error> {
        Ok(AllowGraph::parse(&self.sources(Some(self.document.to_string())))?)
    }

    fn sources(&self, own: Option<String>) -> Vec<Source> {
        let own = own.map(|text| Source::toml(self.path.display().to_string(), text));
        self.others.iter().cloned().chain(own.map(|own| Source { trust: Trust::Operator, ..own })).collect()
    }

    /// Whether it says anything else than before.
    pub fn differs(&self) -> bool {
        let text = self.document.to_string();
        match &self.before {
            Some(before) => *before != text,
            None => text != fresh(),
        }
    }

    /// Writes it, if the policy with it holds.
    ///
    /// # Errors
    ///
    /// As [`Own::policy_after`]; when the file cannot be written. The old one is there then.
    pub fn write(self) -> Result<(), Error> {
        self.policy_after()?;
        let text = self.document.to_string();
        let path = self.path.clone();
        write_whole(&path, text.as_bytes(), 0o644)
            .map_err(|source| OwnError::Store(StoreError::Io { action: "write", path, source }))?;
        Ok(())
    }
}

/// The file before anything is in it.
fn fresh() -> String {
    format!("{MARK}\nschema = 1\n")
}

/// The files of the policy. Where /etc cannot be written, what nsctl wrote itself is beside its records.
///
/// # Errors
///
/// As [`policy::read`].
pub fn read(options: &Options) -> Result<Read, policy::ReadErrors> {
    let beside = options.state.join("policy.d");
    if options.policy.is_empty() && is_read_only(Path::new(DIRECTORY)) {
        return policy::read_system(&beside);
    }
    policy::read(&options.policy)
}

/// Where the file lies, and whether the policy is read from there.
fn place(options: &Options, into: Option<&Path>) -> Result<(PathBuf, bool), OwnError> {
    if let Some(into) = into {
        let parent = into.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let paths = || {
            options
                .policy
                .iter()
                .cloned()
                .chain(DEFAULT_PATHS.iter().filter(|_| options.policy.is_empty()).map(PathBuf::from))
        };
        let heard = paths()
            .any(|path| is_same(&path.display().to_string(), into) || is_same(&path.display().to_string(), parent));
        return Ok((into.to_owned(), heard));
    }
    if options.policy.is_empty() {
        let directory =
            if is_read_only(Path::new(DIRECTORY)) { options.state.join("policy.d") } else { DIRECTORY.into() };
        return Ok((directory.join(NAME), true));
    }
    let last = options.policy.iter().rev().find(|path| path.is_dir()).ok_or(OwnError::Nowhere)?;
    Ok((last.join(NAME), true))
}

/// Whether two paths lead to one file.
fn is_same(one: &str, other: &Path) -> bool {
    let one = Path::new(one);
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Whether the file system that holds `path`, or would, takes no writes. On others the mode of a directory says who may.
fn is_read_only(path: &Path) -> bool {
    let there = path.ancestors().find(|path| path.exists());
    there.and_then(|path| statvfs(path).ok()).is_some_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY))
}

/// Keeps others from changing the file meanwhile. Who may not even look at the directory is told so when writing.
fn lock(path: &Path) -> Result<Option<Flock<File>>, OwnError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(file) = File::open(directory) else {
        return Ok(None);
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Err(StoreError::Busy { path: directory.into(), holder: None }.into()),
        Err((_, errno)) => Err(StoreError::Io { action: "lock", path: directory.into(), source: errno.into() }.into()),
    }
}

/// The text of the file, if there is one, and it is ours.
fn text(path: &Path) -> Result<Option<String>, OwnError> {
    let foreign = |what: &str| OwnError::Foreign { path: path.to_owned(), what: what.to_owned() };
    let refused = |source| OwnError::Store(StoreError::Io { action: "read", path: path.to_owned(), source });
    let file = match Regular::open(path) {
        Ok(file) => file,
        Err(FileError::Io(e)) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(FileError::Io(e)) => return Err(refused(e)),
        Err(FileError::Kind(kind)) => return Err(foreign(&format!("a {kind}"))),
        Err(_) => return Err(foreign("changing, or too large")),
    };
    let text = match file.read(LIMIT) {
        Ok(text) => String::from_utf8(text).map_err(|_| foreign("not a text"))?,
        Err(FileError::Io(e)) => return Err(refused(e)),
        Err(_) => return Err(foreign("changing, or too large")),
    };
    if text.starts_with(MARK) { Ok(Some(text)) } else { Err(foreign("a file of somebody's own")) }
}

/// Makes the directory of the file, for everybody to read.
///
/// # Errors
///
/// What the system says.
pub fn prepare(path: &Path) -> Result<(), Error> {
    let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists()) else {
        return Ok(());
    };
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(|source| OwnError::Store(StoreError::Io { action: "make", path: directory.into(), source }))?;
    fs::metadata(directory)
        .map(|_| ())
        .map_err(|source| OwnError::Store(StoreError::Io { action: "look at", path: directory.into(), source }).into())
}
