//! Finds and reads the files of a policy.
//!
//! # Invariants
//!
//! - Nothing that lies at the path can hang us or fill the memory: see `Regular`. At most [`MOST_FILES`] files of
//!   [`LIMIT`] bytes are read, of [`MOST_TOGETHER`] bytes together.
//! - A file name in a later directory masks the same name in an earlier one, as systemd.unit(5) has it; an empty file
//!   or a link to /dev/null switches it off.
//! - No link leads out of a directory of policies, but into /nix/store, where nothing is ever written to.
//! - What others than root can edit is no policy of the system's. Of a path that was named it is told, for the caller
//!   to decide: see [`Editable`].
//!
//! Every mistake is found, not the first one.

mod editors;
mod trail;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use netns_policy::diagnostic::{Format, Source, Trust};
use serde::Serialize;
use thiserror::Error;

use self::editors::{of_directories, of_file};
use self::trail::Trail;
use crate::file::{FileError, Regular, kind};
use crate::trusted::Trusted;

pub use self::editors::{Editable, Why};
pub use crate::trusted::Who;

/// The largest policy file.
pub const LIMIT: u64 = 1 << 20;

/// The most files of one policy.
pub const MOST_FILES: usize = 1024;

/// The most bytes of all files of one policy.
pub const MOST_TOGETHER: u64 = 8 << 20;

/// Where packages put fragments: whatever lies here is the word of [`Trust::Vendor`].
pub const VENDOR: &str = "/usr/lib/nsctl/policy.d";

/// Where a policy is looked for when none is named, the first with the least weight.
pub const DEFAULT_PATHS: [&str; 4] = [VENDOR, "/etc/nsctl/policy.toml", "/etc/nsctl/policy.d", "/run/nsctl/policy.d"];

/// Where Nix puts what is never changed again.
const STORE: &str = "/nix/store";

/// Other languages that a policy is never in, though somebody may think so.
const FOREIGN: [&str; 9] = ["hcl", "json5", "jsonc", "kdl", "nix", "ron", "tml", "yaml", "yml"];

/// Why a policy file cannot be read. Each has a stable code.
#[derive(Debug, Error)]
pub enum ReadError {
    /// It became another while it was read.
    #[error("{} changed while it was read", shown(path))]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Others can change the policy.
    #[error(transparent)]
    Editable(#[from] Editable),
    /// The system refused.
    #[error("cannot read {}", shown(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A link that leads out of its directory of policies.
    #[error("{} is a link that leaves the policy directory: it leads to {}", shown(path), shown(target))]
    Leaves {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// Nothing is there.
    #[error("no policy at {}", paths.iter().map(|path| shown(path)).collect::<Vec<_>>().join(", "))]
    Missing {
        /// Where it was looked for.
        paths: Vec<PathBuf>,
    },
    /// A directory where a file is expected, a FIFO, a device, a socket.
    #[error("{} is not a regular file ({kind})", shown(path))]
    NotRegular {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// More than [`LIMIT`] bytes.
    #[error("{} has {size} bytes, the limit is {LIMIT}", shown(path))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// More than [`MOST_TOGETHER`] bytes in all files.
    #[error("the files of this policy have more than {MOST_TOGETHER} bytes together")]
    TooLargeTogether,
    /// More than [`MOST_FILES`] files.
    #[error("a policy of {count} files, the limit is {MOST_FILES}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// The same name with `.toml` and with `.json`.
    #[error("{} and {} are one fragment, written twice", shown(first), shown(path))]
    Twice {
        /// One of them.
        first: PathBuf,
        /// The other.
        path: PathBuf,
    },
    /// Neither `.toml` nor `.json`.
    #[error("{} is neither .toml nor .json", shown(path))]
    Unknown {
        /// The file.
        path: PathBuf,
    },
}

impl ReadError {
    fn file(path: &Path, error: FileError) -> Self {
        let path = path.to_owned();
        match error {
            FileError::Changed => Self::Changed { path },
            FileError::Io(source) => Self::Io { path, source },
            FileError::Kind(kind) => Self::NotRegular { path, kind },
            FileError::TooLarge(size) => Self::TooLarge { path, size },
        }
    }

    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "E0001",
            Self::NotRegular { .. } => "E0002",
            Self::Leaves { .. } => "E0003",
            Self::Editable(editable) => editable.code(),
            Self::TooLarge { .. } => "E0008",
            Self::TooLargeTogether | Self::TooMany { .. } => "E0009",
            Self::Changed { .. } | Self::Io { .. } => "E0010",
            Self::Unknown { .. } => "E0113",
            Self::Twice { .. } => "E0114",
        }
    }

    /// The file it is about, where it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Missing { paths } => paths.first().filter(|_| paths.len() == 1).map(PathBuf::as_path),
            Self::TooLargeTogether | Self::TooMany { .. } => None,
            Self::Editable(editable) => Some(editable.path()),
            Self::Changed { path }
            | Self::Io { path, .. }
            | Self::Leaves { path, .. }
            | Self::NotRegular { path, .. }
            | Self::TooLarge { path, .. }
            | Self::Twice { path, .. }
            | Self::Unknown { path } => Some(path),
        }
    }

    /// The next move.
    pub fn help(&self) -> String {
        match self {
            Self::Changed { .. } => "run this again once it is written",
            Self::Editable(editable) => return editable.help(),
            Self::Io { .. } => "see that the file can be read by the one who runs nsctl",
            Self::Leaves { .. } => "put the file itself there, or name it with --policy; a link to /dev/null is fine",
            Self::Missing { .. } => "name one with --policy, or begin with one from examples/policies/",
            Self::NotRegular { .. } => "name a .toml or .json file, or a directory of such files",
            Self::TooLarge { .. } | Self::TooLargeTogether | Self::TooMany { .. } => {
                "a policy of 1,000 services fits well into the limit"
            }
            Self::Twice { .. } => "keep one of them; only a file of the very same name masks another",
            Self::Unknown { .. } => "write TOML in a .toml file, or its twin in a .json file",
        }
        .to_owned()
    }
}

/// Everything that keeps a policy from being read; never empty.
#[derive(Debug, Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ReadErrors(pub Vec<ReadError>);

impl ReadErrors {
    /// How many are reported at most.
    pub const MOST: usize = 50;

    /// Whether all that is wrong is that there is no policy.
    pub fn is_missing(&self) -> bool {
        self.0.iter().all(|error| matches!(error, ReadError::Missing { .. }))
    }
}

impl From<ReadError> for ReadErrors {
    fn from(error: ReadError) -> Self {
        Self(vec![error])
    }
}

/// A file that was found where policies are looked for.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Found {
    /// Its path.
    pub path: String,
    /// Whose word it is: `operator` or `vendor`.
    pub trust: &'static str,
    /// Whether it is empty, or a link to /dev/null, and so stands for nothing but its name.
    pub off: bool,
    /// The file of the same name in a later directory, which takes its place: then this one was not read.
    pub masked_by: Option<String>,
}

/// What [`read`] has read.
#[derive(Clone, Debug, Default)]
pub struct Read {
    /// The text of the policy.
    pub sources: Vec<Source>,
    /// Every file of it, ordered by path.
    pub files: Vec<Found>,
    /// Who else can edit paths that were named.
    pub editable: Vec<Editable>,
}

/// Reads the files at `paths`, or at [`DEFAULT_PATHS`] when there are none. A directory stands for the `.toml` and
/// `.json` files in it whose names do not begin with a dot.
///
/// # Errors
///
/// Everything that is wrong with them, at most [`ReadErrors::MOST`].
pub fn read(paths: &[PathBuf]) -> Result<Read, ReadErrors> {
    let named = !paths.is_empty();
    let paths = if named { paths.to_vec() } else { DEFAULT_PATHS.iter().map(PathBuf::from).collect() };
    let mut search = Search::new(named);
    for path in &paths {
        search.look(path);
    }
    search.read(paths)
}

/// Reads the files at [`DEFAULT_PATHS`] and in `more`, which has the weight of /etc: for a machine whose /etc cannot be
/// written.
///
/// # Errors
///
/// As [`read`].
pub fn read_system(more: &Path) -> Result<Read, ReadErrors> {
    let mut paths: Vec<PathBuf> = DEFAULT_PATHS.iter().map(PathBuf::from).collect();
    paths.insert(DEFAULT_PATHS.len() - 1, more.to_owned());
    let mut search = Search::new(false);
    for path in &paths {
        search.look(path);
    }
    search.read(paths)
}

/// A file to be read.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    /// The directory that was listed, without links; `None` for a file that was named itself.
    listed: Option<PathBuf>,
    trust: Trust,
}

struct Search {
    named: bool,
    trusted: Trusted,
    alone: Vec<Entry>,
    /// By file name, so that a later directory masks an earlier one.
    listed: BTreeMap<OsString, Entry>,
    /// Directories that were judged already.
    judged: BTreeSet<PathBuf>,
    ends: BTreeSet<PathBuf>,
    size: u64,
    result: Read,
    errors: Vec<ReadError>,
}

impl Search {
    fn new(named: bool) -> Self {
        Self {
            named,
            trusted: if named { Trusted::of_caller() } else { Trusted::of_system() },
            alone: Vec::new(),
            listed: BTreeMap::new(),
            judged: BTreeSet::new(),
            ends: BTreeSet::new(),
            size: 0,
            result: Read::default(),
            errors: Vec::new(),
        }
    }

    fn look(&mut self, path: &Path) {
        let is = match fs::metadata(path) {
            Ok(is) => is,
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                // A link that leads nowhere was meant to be a policy.
                if fs::symlink_metadata(path).is_ok() {
                    self.errors.push(ReadError::Io { path: path.to_owned(), source });
                } else if self.named {
                    self.errors.push(ReadError::Missing { paths: vec![path.to_owned()] });
                }
                return;
            }
            Err(source) => return self.errors.push(ReadError::Io { path: path.to_owned(), source }),
        };
        if is.is_dir() {
            if let Err(source) = self.list(path) {
                self.errors.push(ReadError::Io { path: path.to_owned(), source });
            }
        } else if is.is_file() {
            self.alone.push(Entry { path: path.to_owned(), listed: None, trust: Trust::Operator });
        } else {
            self.errors.push(ReadError::NotRegular { path: path.to_owned(), kind: kind(is.file_type()) });
        }
    }

    fn list(&mut self, path: &Path) -> io::Result<()> {
        let trail = Trail::follow(path)?;
        let trust = if trail.end == Path::new(VENDOR) { Trust::Vendor } else { Trust::Operator };
        self.judge_directories(path, &trail, Some(&trail.end));
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_owned();
            // What editors leave beside the file they edit, and what ls(1) does not show, is nobody's policy.
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if format(&path).is_none() {
                if looks_like_a_policy(&path) {
                    self.errors.push(ReadError::Unknown { path });
                }
                continue;
            }
            let by = shown(&path);
            let entry = Entry { path, listed: Some(trail.end.clone()), trust };
            if let Some(masked) = self.listed.insert(name, entry) {
                let found = self.found(&masked, false, Some(by));
                self.result.files.push(found);
            }
        }
        Ok(())
    }

    fn found(&self, entry: &Entry, off: bool, masked_by: Option<String>) -> Found {
        let trust = match entry.trust {
            Trust::Operator => "operator",
            Trust::Vendor => "vendor",
        };
        Found { path: shown(&entry.path), trust, off, masked_by }
    }

    fn read(mut self, paths: Vec<PathBuf>) -> Result<Read, ReadErrors> {
        self.twice();
        let mut entries = std::mem::take(&mut self.alone);
        entries.extend(std::mem::take(&mut self.listed).into_values());
        if entries.len() > MOST_FILES {
            return Err(ReadError::TooMany { count: entries.len() }.into());
        }
        for entry in entries {
            if let Err(error) = self.source(entry) {
                self.errors.push(error);
            }
            if self.size > MOST_TOGETHER {
                self.errors.push(ReadError::TooLargeTogether);
                break;
            }
        }
        if self.errors.is_empty() && self.result.sources.is_empty() {
            self.errors.push(ReadError::Missing { paths });
        }
        if !self.errors.is_empty() {
            self.errors.sort_by(|a, b| (a.path(), a.code()).cmp(&(b.path(), b.code())));
            self.errors.truncate(ReadErrors::MOST);
            return Err(ReadErrors(self.errors));
        }
        self.result.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(self.result)
    }

    /// Names that differ in nothing but `.toml` and `.json`: whoever wrote the second meant to replace the first.
    fn twice(&mut self) {
        let mut stems: BTreeMap<OsString, &Path> = BTreeMap::new();
        for Entry { path, .. } in self.listed.values() {
            let stem = path.file_stem().unwrap_or_default().to_owned();
            if let Some(first) = stems.insert(stem, path) {
                self.errors.push(ReadError::Twice { first: first.to_owned(), path: path.clone() });
            }
        }
    }

    fn source(&mut self, mut entry: Entry) -> Result<(), ReadError> {
        let path = entry.path.as_path();
        let refused = |source| ReadError::Io { path: path.to_owned(), source };
        let trail = Trail::follow(path).map_err(refused)?;
        let leaves = entry.listed.as_ref().is_some_and(|directory| !trail.end.starts_with(directory));
        if leaves && trail.end == Path::new("/dev/null") {
            let found = self.found(&entry, true, None);
            self.result.files.push(found);
            return Ok(());
        }
        let leaving = || ReadError::Leaves { path: path.to_owned(), target: trail.end.clone() };
        if leaves && !trail.end.starts_with(STORE) {
            return Err(leaving());
        }
        let file = Regular::open(&trail.end).map_err(|error| ReadError::file(path, error))?;
        if leaves && !is_sealed(file.metadata()) {
            return Err(leaving());
        }
        let format = format(path).ok_or_else(|| ReadError::Unknown { path: path.to_owned() })?;
        // One file by two names is one file.
        if !self.ends.insert(trail.end.clone()) {
            return Ok(());
        }
        if let Some(editable) = of_file(&self.trusted, path, file.metadata()) {
            self.doubt(editable);
        }
        self.judge_directories(path, &trail, None);
        self.size += file.metadata().len().min(LIMIT);
        let text = file.read(LIMIT).map_err(|error| ReadError::file(path, error))?;
        if trail.end.starts_with(VENDOR) {
            entry.trust = Trust::Vendor;
        }
        // In a directory an empty file switches one of the same name off; named alone it is a mistake to be told.
        let off = text.is_empty() && entry.listed.is_some();
        let found = self.found(&entry, off, None);
        self.result.files.push(found);
        if !off {
            self.result.sources.push(Source { name: shown(&entry.path), text, format, trust: entry.trust });
        }
        Ok(())
    }

    fn judge_directories(&mut self, path: &Path, trail: &Trail, listed: Option<&Path>) {
        let new: Vec<PathBuf> = trail.directories.iter().filter(|d| !self.judged.contains(*d)).cloned().collect();
        for editable in of_directories(&self.trusted, path, &new, listed) {
            self.doubt(editable);
        }
        self.judged.extend(new);
    }

    fn doubt(&mut self, editable: Editable) {
        if self.named {
            self.result.editable.push(editable);
        } else {
            self.errors.push(editable.into());
        }
    }
}

fn format(path: &Path) -> Option<Format> {
    Format::of_extension(path.extension()?.to_str()?)
}

/// Whether somebody may think that this is a policy in force.
fn looks_like_a_policy(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase();
    FOREIGN.contains(&extension.as_str()) || Format::of_extension(&extension).is_some()
}

/// Whether a file is as the Nix daemon leaves it: root's, and writable by nobody.
fn is_sealed(file: &Metadata) -> bool {
    file.mode() & 0o222 == 0 && Trusted::of_system().trusts(file.uid())
}

/// A path as it can be shown: a terminal acts on nothing in it.
fn shown(path: &Path) -> String {
    let plain = |c: char| if c.is_control() || turns_direction(c) { '?' } else { c };
    path.to_string_lossy().chars().map(plain).collect()
}

/// Whether the character changes the direction of what follows, unseen (Unicode UAX 9).
fn turns_direction(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
