//! Puts another text in the place of a file that a person wrote.
//!
//! # Invariants
//!
//! - Whoever opens the path finds the old text or the new one, whole, at every moment, a power cut included.
//! - Owner, group and mode stay; where they cannot, the file does.
//! - A link is not followed, and a file that changed since it was read is left alone.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use thiserror::Error;

use crate::policy::shown;

/// Why a file was left as it was.
#[derive(Debug, Error)]
pub enum RewriteError {
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
}

impl RewriteError {
    /// The stable code of this error.
    pub const CODE: &'static str = "E0915";

    /// The next move.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Changed { .. } => "nothing was written to it; run the same command again",
            Self::Linked { .. } => "name the file itself, or print its layout with `nsctl fmt - < FILE`",
            Self::Io { .. } => "see that the directory can be written by the one who runs nsctl, and has room",
        }
    }
}

/// Replaces the file at `path`, which held `before` when it was read, by one that holds `after`.
///
/// # Errors
///
/// See [`RewriteError`]; the file is as it was then.
pub fn replace(path: &Path, before: &[u8], after: &str) -> Result<(), RewriteError> {
    let error = |action| move |source| RewriteError::Io { action, path: path.to_owned(), source };
    let linked = |what| RewriteError::Linked { path: path.to_owned(), what };
    if fs::symlink_metadata(path).map_err(error("look at"))?.is_symlink() {
        return Err(linked("a link"));
    }
    let flags = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    let mut old = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(error("open"))?;
    let metadata = old.metadata().map_err(error("look at"))?;
    if metadata.nlink() > 1 {
        return Err(linked("one of several names of a file"));
    }
    if !holds(&mut old, before).map_err(error("read"))? {
        return Err(RewriteError::Changed { path: path.to_owned() });
    }
    let beside = Beside::new(path, after, &metadata).map_err(error("write beside"))?;
    let same = fs::symlink_metadata(path).map(|now| (now.dev(), now.ino()) == (metadata.dev(), metadata.ino()));
    if !same.map_err(error("look at"))? {
        return Err(RewriteError::Changed { path: path.to_owned() });
    }
    beside.put(path).map_err(error("replace"))
}

/// Whether a file holds these bytes and no others.
fn holds(file: &mut File, bytes: &[u8]) -> io::Result<bool> {
    let mut found = Vec::new();
    file.take(bytes.len() as u64 + 1).read_to_end(&mut found)?;
    Ok(found == bytes)
}

/// A new file in the same directory, which is gone again unless it is put in its place.
struct Beside {
    path: PathBuf,
}

impl Beside {
    fn new(of: &Path, text: &str, like: &fs::Metadata) -> io::Result<Self> {
        let mut name = OsString::from(".");
        name.push(of.file_name().unwrap_or_default());
        name.push(format!(".nsctl-{}", std::process::id()));
        let path = of.with_file_name(name);
        // Nobody else reads it before it has the owner and the mode of the old one.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let beside = Self { path };
        file.write_all(text.as_bytes())?;
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(like.mode() & 0o7777))?;
        file.sync_all()?;
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
