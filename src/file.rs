//! Reading a file that somebody else may have put there.
//!
//! # Invariants
//!
//! - Nothing that lies at the path can hang us or fill the memory, and no device is opened, since that alone can act: a
//!   watchdog is started, a tape rewound. The path is looked at first (`O_PATH`), and only a regular file is opened.
//! - A link in the last place is not followed.
//! - What is read is one state of the file: one that changes meanwhile is an error, and is not put together from two.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::libc::{O_CLOEXEC, O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, O_PATH};
use thiserror::Error;

/// Why a file is not read.
#[derive(Debug, Error)]
pub enum FileError {
    /// It became another while it was read.
    #[error("it changed while it was read")]
    Changed,
    /// The system refused.
    #[error("the system refused")]
    Io(#[from] io::Error),
    /// A directory, a FIFO, a device, a socket, a link.
    #[error("it is not a regular file ({0})")]
    Kind(&'static str),
    /// It has that many bytes, which are too many.
    #[error("it has {0} bytes")]
    TooLarge(u64),
}

/// A regular file, open, as it was at that moment.
#[derive(Debug)]
pub struct Regular {
    file: File,
    before: Metadata,
}

impl Regular {
    /// Opens the file at `path`.
    ///
    /// # Errors
    ///
    /// When it is none, or cannot be opened.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        // EWOULDBLOCK for a file with a lease (fcntl(2), F_SETLEASE) comes from O_NONBLOCK, and is better than waiting.
        let open = |flags| OpenOptions::new().read(true).custom_flags(flags | O_NOFOLLOW | O_CLOEXEC).open(path);
        let seen = open(O_PATH)?.metadata()?;
        if !seen.is_file() {
            return Err(FileError::Kind(kind(seen.file_type())));
        }
        let file = open(O_NONBLOCK | O_NOCTTY)?;
        let before = file.metadata()?;
        if (seen.dev(), seen.ino()) == (before.dev(), before.ino()) {
            Ok(Self { file, before })
        } else {
            Err(FileError::Changed)
        }
    }

    /// What it was when it was opened.
    pub fn metadata(&self) -> &Metadata {
        &self.before
    }

    /// The file itself, to be read bit by bit: that may be of more than one state of it.
    #[cfg(feature = "backup")]
    pub fn into_file(self) -> File {
        self.file
    }

    /// All of it, if it has at most `limit` bytes. A larger one is not read at all.
    ///
    /// # Errors
    ///
    /// When it is larger, or is not what it was when it was opened.
    pub fn read(self, limit: u64) -> Result<Vec<u8>, FileError> {
        if self.before.len() > limit {
            return Err(FileError::TooLarge(self.before.len()));
        }
        let mut bytes = Vec::new();
        // It may grow between the look and the reading.
        (&self.file).take(limit + 1).read_to_end(&mut bytes)?;
        let after = self.file.metadata()?;
        let state = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        let whole = bytes.len() as u64 == self.before.len();
        if whole && state(&after) == state(&self.before) { Ok(bytes) } else { Err(FileError::Changed) }
    }
}

/// All of the regular file at `path`, if it has at most `limit` bytes.
///
/// # Errors
///
/// See [`FileError`].
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    Regular::open(path)?.read(limit)
}

/// What a file is that is not regular.
pub fn kind(of: FileType) -> &'static str {
    match of {
        of if of.is_fifo() => "fifo",
        of if of.is_dir() => "directory",
        of if of.is_socket() => "socket",
        of if of.is_symlink() => "link",
        _ => "device",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::time::{Duration, SystemTime};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("nsctl-file-{}-{name}", std::process::id()));
        fs::create_dir(&directory).expect("it is new");
        directory
    }

    #[test]
    fn what_is_no_regular_file_is_told_and_not_waited_for() {
        let directory = directory("kinds");
        let at = |name: &str| directory.join(name);
        mkfifo(&at("fifo"), Mode::S_IRWXU).expect("a fifo");
        let _listener = UnixListener::bind(at("socket")).expect("a socket");
        fs::create_dir(at("directory")).expect("a directory");
        fs::write(at("file"), "text").expect("a file");
        symlink(at("file"), at("link")).expect("a link");
        for kind in ["fifo", "socket", "directory", "link"] {
            let error = read(&at(kind), 10).expect_err(kind);
            assert!(matches!(error, FileError::Kind(told) if told == kind), "{kind}: {error}");
        }
        assert!(matches!(read(Path::new("/dev/zero"), 10), Err(FileError::Kind("device"))));
        assert_eq!(read(&at("file"), 4).expect("the control"), b"text");
        assert!(matches!(read(&at("file"), 3), Err(FileError::TooLarge(4))));
        fs::remove_dir_all(directory).expect("it is ours");
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_told() {
        let directory = directory("changes");
        let path = directory.join("file");
        let long_ago = SystemTime::now() - Duration::from_secs(1000);
        type Change = fn(&Path);
        let changes: [(&str, Change); 3] = [
            ("it grew", |path| fs::write(path, "text and more").expect("a write")),
            ("it shrank", |path| fs::write(path, "t").expect("a write")),
            ("it has another text of that length", |path| fs::write(path, "tixt").expect("a write")),
        ];
        for (what, change) in changes {
            fs::write(&path, "text").expect("a file");
            // Some file systems tell times apart by the tick only.
            File::options().write(true).open(&path).and_then(|file| file.set_modified(long_ago)).expect("a time");
            let opened = Regular::open(&path).expect("a file");
            change(&path);
            assert!(matches!(opened.read(100), Err(FileError::Changed)), "{what}");
        }
        let opened = Regular::open(&path).expect("a file");
        assert_eq!(opened.read(100).expect("the control"), b"tixt");
        fs::remove_dir_all(directory).expect("it is ours");
    }
}
