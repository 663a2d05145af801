//! The one policy file that nsctl writes itself: what commands such as `nsctl grant` change.
//!
//! # Invariants
//!
//! - A file that a person wrote is never changed: ours begins with a mark of its own.
//! - The policy with the change in it is checked first. One that would be refused is not written.
//! - What is in it besides, comments too, stays as it is; what is said of a table that goes, goes with it. A reader, and
//!   a crash, find the old text or the new one, and a text that came meanwhile is left alone.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use netns_policy::diagnostic::Source;
use netns_policy::graph::AllowGraph;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};
use thiserror::Error;
use toml_edit::{DocumentMut, Item, Table, TableLike};

use crate::file::{FileError, Regular};
use crate::orchestrator::{Error, Options};
use crate::policy::{self, Found, LIMIT, Over, Read, ReadErrors, entry_of};
use crate::rewrite::{self, RewriteError};
use crate::store::StoreError;

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
    /// No directory of policies is searched for a file of such a name, or what is in it would be read as JSON.
    #[error("{} would not be read as a policy in TOML", path.display())]
    Unread {
        /// The file.
        path: PathBuf,
    },
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
    /// It changed meanwhile, or is one that cannot be replaced.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// The system refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OwnError {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Nowhere | Self::Unread { .. } | Self::Foreign { .. } | Self::Masked { .. } => "E0911",
            Self::Broken { .. } => "E0107",
            Self::Rewrite(_) => RewriteError::CODE,
            Self::Store(error) => error.code(),
        }
    }

    /// The next move.
    pub fn help(&self) -> String {
        match self {
            Self::Nowhere => format!("name a directory with --policy, for {NAME} in it, or a file with --into FILE"),
            Self::Unread { .. } => "let its name end with .toml, and not begin with a dot".into(),
            Self::Foreign { .. } => "move it elsewhere, or name another file with --into FILE".into(),
            Self::Masked { .. } => "take that one away, or name another file with --into FILE".into(),
            Self::Broken { .. } => "mend it by hand; what nsctl writes is TOML".into(),
            Self::Rewrite(error) => error.help().into(),
            Self::Store(StoreError::Io { .. }) => {
                "nothing was written; run this as root, on a file that can be written".into()
            }
            Self::Store(error) => error.help(),
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
    /// Where the policy is read from.
    options: Options,
    /// Whether the policy was read from it too, or would be once it is there.
    heard: bool,
    _lock: Option<Flock<File>>,
}

impl Own {
    /// Reads the policy and the file of ours in it; `into` names another file for it. Its directory is made, unless this
    /// is a `dry_run`.
    ///
    /// # Errors
    ///
    /// When the policy cannot be read, or the file is not ours.
    pub fn open(options: &Options, into: Option<&Path>, dry_run: bool) -> Result<Self, Error> {
        let path = place(options, into)?;
        // Of two that come first, both must find a directory to lock, or they would not know of each other.
        let lock = if dry_run {
            lock(&path)
                .map_or_else(|error| if is_busy(&error) { Err(error) } else { Ok(None) }, |lock| Ok(Some(lock)))?
        } else {
            prepare(&path)?;
            Some(lock(&path)?)
        };
        let before = text(&path)?;
        if let Some(other) = read(options)?.files.iter().find(|found| is_rival(found, &path)) {
            return Err(OwnError::Masked { path, by: other.path.clone() }.into());
        }
        let text = before.clone().unwrap_or_else(fresh);
        let parsed = text.parse::<DocumentMut>();
        let document = parsed.map_err(|source| OwnError::Broken { path: path.clone(), source: Box::new(source) })?;
        let heard = has(&read_over(options, Some(Over::new(&path, text)))?, &path);
        Ok(Self { path, document, before, options: options.clone(), heard, _lock: lock })
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
        self.policy(self.before.clone())
    }

    /// The policy with the file as [`Own::document`] has it now.
    ///
    /// # Errors
    ///
    /// Every mistake in it.
    pub fn policy_after(&self) -> Result<netns_policy::Checked, Error> {
        self.policy(Some(self.document.to_string()))
    }

    /// The policy as it will be read once the file holds `text`; a file that is not read from there is taken along.
    fn policy(&self, text: Option<String>) -> Result<netns_policy::Checked, Error> {
        let over = text.clone().map(|text| Over::new(&self.path, text));
        let read = read_over(&self.options, over)?;
        let alone = text.filter(|_| !has(&read, &self.path)).map(|text| Source::toml(policy::shown(&self.path), text));
        Ok(AllowGraph::parse(&read.sources.into_iter().chain(alone).collect::<Vec<_>>())?)
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
    pub fn write(self) -> Result<Written, Error> {
        self.policy_after()?;
        let text = self.document.to_string();
        match &self.before {
            Some(before) => rewrite::replace(&self.path, before.as_bytes(), &text),
            None => rewrite::create(&self.path, &text, 0o644),
        }
        .map_err(OwnError::from)?;
        Ok(Written { path: self.path, before: self.before, text, _lock: self._lock })
    }
}

/// The file with its new text. Nobody else of us changes it for as long as this is there.
#[derive(Debug)]
pub struct Written {
    path: PathBuf,
    before: Option<String>,
    text: String,
    _lock: Option<Flock<File>>,
}

impl Written {
    /// Puts the file back as it was.
    ///
    /// # Errors
    ///
    /// When somebody else has changed it meanwhile, or it cannot be written.
    pub fn put_back(self) -> Result<(), Error> {
        let done = match &self.before {
            Some(before) => rewrite::replace(&self.path, self.text.as_bytes(), before),
            None => rewrite::remove(&self.path, self.text.as_bytes()),
        };
        Ok(done.map_err(OwnError::from)?)
    }
}

/// How a new table is written.
pub(crate) enum Form {
    /// Not at all: only what is below it has a header.
    Header,
    /// With a header of its own.
    Table,
    /// As `key.NAME = ...` in the table above it.
    Dotted,
}

/// The table `key` in `parent`, made in this form where there is none. Nothing when something else is there.
pub(crate) fn child<'a>(parent: &'a mut dyn TableLike, key: &str, form: Form) -> Option<&'a mut dyn TableLike> {
    let mut new = Table::new();
    new.set_implicit(matches!(form, Form::Header));
    new.set_dotted(matches!(form, Form::Dotted));
    parent.entry(key).or_insert(Item::Table(new)).as_table_like_mut()
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
pub fn read(options: &Options) -> Result<Read, ReadErrors> {
    read_over(options, None)
}

fn read_over(options: &Options, over: Option<Over>) -> Result<Read, ReadErrors> {
    if options.policy.is_empty() && is_read_only(Path::new(DIRECTORY)) {
        return policy::read_system(&options.state.join("policy.d"), over);
    }
    policy::read_with(&options.policy, over)
}

/// Where the file lies.
fn place(options: &Options, into: Option<&Path>) -> Result<PathBuf, OwnError> {
    if let Some(into) = into {
        let is_hidden = into.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_hidden || into.extension().is_none_or(|extension| extension != "toml") {
            return Err(OwnError::Unread { path: into.to_owned() });
        }
        return Ok(into.to_owned());
    }
    if options.policy.is_empty() {
        let directory =
            if is_read_only(Path::new(DIRECTORY)) { options.state.join("policy.d") } else { DIRECTORY.into() };
        return Ok(directory.join(NAME));
    }
    let last = options.policy.iter().rev().find(|path| path.is_dir()).ok_or(OwnError::Nowhere)?;
    Ok(last.join(NAME))
}

/// Whether the policy is read from `path` too.
fn has(read: &Read, path: &Path) -> bool {
    let end = entry_of(path);
    let is_it = |found: &Found| entry_of(&found.at) == end || found.at.canonicalize().is_ok_and(|at| at == end);
    read.files.iter().any(|found| found.masked_by.is_none() && is_it(found))
}

/// Whether a file in a directory of policies would put ours out of force, or ours it: one that is switched off too, for
/// its name is what it is there for.
fn is_rival(found: &Found, path: &Path) -> bool {
    // The stem, not the name: a file in JSON is a twin, of which `read` refuses to choose.
    found.listed && found.at.file_stem() == path.file_stem() && entry_of(&found.at) != entry_of(path)
}

/// Whether the file system that holds `path`, or would, takes no writes. On others the mode of a directory says who may.
fn is_read_only(path: &Path) -> bool {
    let there = path.ancestors().find(|path| path.exists());
    there.and_then(|path| statvfs(path).ok()).is_some_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY))
}

/// The directory that `path` is in.
fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Keeps others from changing the file meanwhile.
fn lock(path: &Path) -> Result<Flock<File>, OwnError> {
    let directory = directory_of(path);
    let refused = |source| OwnError::Store(StoreError::Io { action: "lock", path: directory.into(), source });
    match Flock::lock(File::open(directory).map_err(refused)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::Error::EWOULDBLOCK)) => Err(StoreError::Busy { path: directory.into(), holder: None }.into()),
        Err((_, errno)) => Err(refused(errno.into())),
    }
}

fn is_busy(error: &OwnError) -> bool {
    matches!(error, OwnError::Store(StoreError::Busy { .. }))
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
fn prepare(path: &Path) -> Result<(), OwnError> {
    let directory = directory_of(path);
    let made =
        if directory.is_dir() { Ok(()) } else { DirBuilder::new().recursive(true).mode(0o755).create(directory) };
    made.map_err(|source| StoreError::Io { action: "make", path: directory.into(), source }.into())
}
