//! Puts other texts in the places of files that a person wrote.
//!
//! # Invariants
//!
//! - Whoever opens the path finds the old text or the new one, whole, at every moment, a power cut included.
//! - Owner, group, mode, access lists and other attributes stay; where they cannot, the file does. Nobody can open the
//!   new one before it has them, and it takes none from the defaults of its directory.
//! - Of several files none is replaced before all of them can be, as far as that can be known.
//! - A link is not followed, and a file that changed since it was read is left alone. Nothing can lock out an editor
//!   that writes between the last look and the rename, which follows at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::libc::{EOPNOTSUPP, O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use thiserror::Error;
use xattr::FileExt as _;

use crate::policy::shown;

/// Why a file was left as it was.
#[derive(Debug, Error)]
pub enum RewriteError {
    /// An attribute of it cannot be given to the new one.
    #[error("cannot keep the attribute {} of {}", shown(Path::new(name)), shown(path))]
    Attribute {
        /// The file.
        path: PathBuf,
        /// The attribute, or nothing where they cannot be listed.
        name: OsString,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else wrote it meanwhile.
    #[error("{} has changed since it was read", shown(path))]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// It is a link, or one of several names of a file: which of them is meant only its owner knows.
    #[error("{} is {what}", shown(path))]
    Linked {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The system refused.
    #[error("cannot {action} {}", shown(path))]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Some are replaced, and then it came to an end.
    #[error("only some files are rewritten ({})", done.iter().map(|path| shown(path)).collect::<Vec<_>>().join(", "))]
    Partly {
        /// These are.
        done: Vec<PathBuf>,
        /// Why the next one is not.
        #[source]
        source: Box<RewriteError>,
    },
}

impl RewriteError {
    /// The stable code of this error.
    pub const CODE: &'static str = "E0915";

    /// The next move.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Attribute { .. } => "run nsctl as one who may set it, or print the layout with `nsctl fmt - < FILE`",
            Self::Changed { .. } => "nothing was written to it; run the same command again",
            Self::Linked { .. } => "name the file itself, or print its layout with `nsctl fmt - < FILE`",
            Self::Io { .. } => "see that the directory can be written by the one who runs nsctl, and has room",
            Self::Partly { source, .. } => source.help(),
        }
    }
}

/// A new text that lies beside a file, on the same disk with the same owner and mode, and waits to take its place.
#[derive(Debug)]
pub struct Replacement {
    path: PathBuf,
    before: Vec<u8>,
    /// What the file was when it was looked at.
    seen: Metadata,
    beside: Beside,
}

impl Replacement {
    /// Gets ready to replace the file at `path`, which held `before` when it was read, by one that holds `after`. If it
    /// is not put in its place nothing of it is left.
    ///
    /// # Errors
    ///
    /// Whatever can be known to be in the way.
    pub fn prepare(path: &Path, before: &[u8], after: &str) -> Result<Self, RewriteError> {
        let (old, seen) = look(path, before)?;
        let beside = Beside::new(path, after, Some((&old, &seen)), seen.mode() & 0o7777)?;
        Ok(Self { path: path.to_owned(), before: before.to_owned(), seen, beside })
    }

    fn put(self) -> Result<(), RewriteError> {
        // A file system may tell times apart by the tick only: the text is compared again too.
        let (_, now) = look(&self.path, &self.before)?;
        if state(&now) != state(&self.seen) {
            return Err(RewriteError::Changed { path: self.path });
        }
        self.beside.put(&self.path).map_err(error(&self.path, "replace"))
    }
}

/// Replaces the one file at `path`, which held `before` when it was read, by one that holds `after`.
///
/// # Errors
///
/// See [`RewriteError`]; the file is as it was then.
pub fn replace(path: &Path, before: &[u8], after: &str) -> Result<(), RewriteError> {
    Replacement::prepare(path, before, after)?.put()
}

/// Puts a new file at `path`, where there was none, for the caller and with this mode.
///
/// # Errors
///
/// See [`RewriteError`]; nothing is there then but what somebody else has put there meanwhile.
pub fn create(path: &Path, text: &str, mode: u32) -> Result<(), RewriteError> {
    let beside = Beside::new(path, text, None, mode)?;
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => beside.put(path).map_err(error(path, "make")),
        Err(e) => Err(error(path, "look at")(e)),
        Ok(_) => Err(RewriteError::Changed { path: path.to_owned() }),
    }
}

/// Removes the file at `path`, which held `text` when it was written.
///
/// # Errors
///
/// See [`RewriteError`]; the file is there then.
pub fn remove(path: &Path, text: &[u8]) -> Result<(), RewriteError> {
    look(path, text)?;
    fs::remove_file(path).map_err(error(path, "remove"))
}

/// Puts all of them in their places, one after the other.
///
/// # Errors
///
/// When one of them cannot be: those before it are in their places then, which [`RewriteError::Partly`] names, and the
/// files of the others are as they were.
pub fn put(all: Vec<Replacement>) -> Result<(), RewriteError> {
    let mut done = Vec::new();
    for replacement in all {
        let path = replacement.path.clone();
        match replacement.put() {
            Ok(()) => done.push(path),
            Err(error) if done.is_empty() => return Err(error),
            Err(error) => return Err(RewriteError::Partly { done, source: Box::new(error) }),
        }
    }
    Ok(())
}

/// What lies at `path`, if it can be replaced and holds `text`.
fn look(path: &Path, text: &[u8]) -> Result<(File, Metadata), RewriteError> {
    let linked = |what| RewriteError::Linked { path: path.to_owned(), what };
    if fs::symlink_metadata(path).map_err(error(path, "look at"))?.is_symlink() {
        return Err(linked("a link"));
    }
    let flags = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(error(path, "open"))?;
    let seen = file.metadata().map_err(error(path, "look at"))?;
    if seen.nlink() > 1 {
        return Err(linked("one of several names of a file"));
    }
    if !holds(&mut file, text).map_err(error(path, "read"))? {
        return Err(RewriteError::Changed { path: path.to_owned() });
    }
    Ok((file, seen))
}

/// What tells that somebody wrote a file, or gave it to others, even where its text is the same again.
fn state(of: &Metadata) -> impl PartialEq {
    let times = (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
    (of.dev(), of.ino(), of.len(), of.mode(), of.uid(), of.gid(), times)
}

fn error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> RewriteError {
    let path = path.to_owned();
    move |source| RewriteError::Io { action, path, source }
}

/// Whether a file holds these bytes and no others.
fn holds(file: &mut File, bytes: &[u8]) -> io::Result<bool> {
    let mut found = Vec::new();
    file.take(bytes.len() as u64 + 1).read_to_end(&mut found)?;
    Ok(found == bytes)
}

/// What the kernel or its key sums up of the bytes of one file (evmctl(1)): wrong on any other.
const SUMS: [&str; 2] = ["security.evm", "security.ima"];

/// Gives `new` the attributes of `old`, access lists and labels among them, and takes from it what its directory gave it
/// unasked. Fails with the name of the one that cannot be kept.
fn copy_attributes(old: &File, new: &File) -> Result<(), (OsString, io::Error)> {
    let (wanted, found) = (attributes(old)?, attributes(new)?);
    // A label is no gift: where one is given the old file has one too, or has it from the same rules.
    let is_label = |name: &OsString| name.as_encoded_bytes().starts_with(b"security.");
    for name in found.keys().filter(|name| !wanted.contains_key(*name) && !is_label(name)) {
        new.remove_xattr(name).map_err(|error| (name.clone(), error))?;
    }
    for (name, value) in wanted {
        if found.get(&name) != Some(&value) {
            new.set_xattr(&name, &value).map_err(|error| (name, error))?;
        }
    }
    Ok(())
}

/// The attributes of a file (xattr(7)); none where its file system has none.
fn attributes(of: &File) -> Result<BTreeMap<OsString, Vec<u8>>, (OsString, io::Error)> {
    let names = match of.list_xattr() {
        Ok(names) => names,
        Err(error) if error.raw_os_error() == Some(EOPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(error) => return Err((OsString::new(), error)),
    };
    let mut all = BTreeMap::new();
    for name in names.filter(|name| SUMS.iter().all(|sum| name != sum)) {
        match of.get_xattr(&name) {
            // It may be gone since it was listed.
            Ok(value) => all.extend(value.map(|value| (name, value))),
            Err(error) => return Err((name, error)),
        }
    }
    Ok(all)
}

/// A new file in the same directory, which is gone again unless it is put in its place.
#[derive(Debug)]
struct Beside {
    path: PathBuf,
}

impl Beside {
    fn new(of: &Path, text: &str, like: Option<(&File, &Metadata)>, mode: u32) -> Result<Self, RewriteError> {
        let refused = || error(of, "write beside");
        let mut name = OsString::from(".");
        name.push(of.file_name().unwrap_or_default());
        name.push(format!(".nsctl-{}", std::process::id()));
        let path = of.with_file_name(name);
        // Nobody else reads it before it has the owner, the attributes and the mode of the old one, the mode last: where
        // there is an access list, the bits of the group are its mask (acl(5)).
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(refused())?;
        let beside = Self { path };
        file.write_all(text.as_bytes()).map_err(refused())?;
        let new = file.metadata().map_err(refused())?;
        if let Some((old, seen)) = like {
            if (new.uid(), new.gid()) != (seen.uid(), seen.gid()) {
                fchown(&file, Some(seen.uid()), Some(seen.gid())).map_err(refused())?;
            }
            copy_attributes(old, &file).map_err(|(name, source)| RewriteError::Attribute {
                path: of.to_owned(),
                name,
                source,
            })?;
        }
        file.set_permissions(Permissions::from_mode(mode)).map_err(refused())?;
        file.sync_all().map_err(refused())?;
        Ok(beside)
    }

    fn put(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After a rename there is nothing of that name.
        fs::remove_file(&self.path).ok();
    }
}
