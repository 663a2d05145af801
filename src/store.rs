//! The state directory: what must outlive a reboot. The only files that nsctl writes, besides those under the run
//! directory.
//!
//! # Invariants
//!
//! - A file is written whole or not at all: to a temporary name, synced, renamed, and the directory synced.
//! - Directories are 0700 and files 0600. A directory that is a link, or that others can write to, is neither read nor
//!   written: what is recorded there is set back by root.
//! - One process at a time changes a network: see [`Store::lock`].

mod generation;
mod journal;
mod pending;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netns_policy::address::AddressBook;
use netns_policy::name::NetworkName;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use nix::sys::stat::{major, minor};
use serde::Serialize;
use thiserror::Error;

use crate::clock::BOOT_ID as BOOT;
use crate::fault;
use crate::file::{self, FileError};
use crate::kernel::sysctl::Sysctl;
use crate::trusted::{Trusted, Who};

#[cfg(feature = "backup")]
pub(crate) use generation::{CURRENT, target_of};
pub use generation::{Meta, Number, Record, digest};
pub use journal::{Entry, Event};
pub use pending::{Fate, Pending};

/// Why the state directory cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another nsctl is changing this network.
    #[error("another nsctl is at work: {} holds {}", holder.map_or("it".into(), |pid| format!("pid {pid}")), path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
        /// Which process that is, where the kernel tells.
        holder: Option<u32>,
    },
    /// A file of ours that does not hold what we write.
    #[error("cannot understand {}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A directory that others could have put there, or can write to.
    #[error("the state directory {} {why}", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What it is.
        why: Foreign,
    },
    /// The link that says which generation is in force names none.
    #[error("{} names {}, which is not there", path.display(), target.display())]
    Lost {
        /// The link.
        path: PathBuf,
        /// What it names.
        target: PathBuf,
        /// The generations that are there.
        known: Vec<Number>,
    },
    /// A newer nsctl wrote it.
    #[error("{} is of format {found}, and this nsctl knows formats up to {FORMAT}", path.display())]
    Newer {
        /// The record of the format.
        path: PathBuf,
        /// The format.
        found: u32,
    },
    /// No generation of that number is kept.
    #[error("there is no generation {number}")]
    NoGeneration {
        /// The number.
        number: Number,
        /// Those that are kept.
        known: Vec<Number>,
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
}

impl StoreError {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Busy { .. } => "E0903",
            Self::Corrupt { .. } | Self::Lost { .. } => "E0912",
            Self::Newer { .. } => "E0918",
            Self::NoGeneration { .. } => "E0917",
            Self::Foreign { .. } => "E0007",
            Self::Io { .. } => "E0906",
        }
    }

    /// The next move.
    pub fn help(&self) -> String {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::Lost { known, .. } => return lost_words(known),
            Self::NoGeneration { known, .. } => return known_words(known),
            Self::Newer { .. } => {
                "install that version again, or restore a backup that this one has made; nothing was changed"
            }
            Self::Busy { .. } => "wait until it is done, then run this again",
            Self::Corrupt { path, .. } if path.ends_with(SYSCTLS) => {
                "it says what the host's forwarding was: leave it there and run `nsctl down`, which does without it"
            }
            Self::Corrupt { path, .. } if path.ends_with(pending::PENDING) => {
                "remove it; then `nsctl apply` or `nsctl rollback` says which generation is to stay"
            }
            Self::Corrupt { path, .. } if path.ends_with(FORMAT_FILE) => {
                "it holds one number, and this nsctl writes 1: put that back"
            }
            Self::Corrupt { path, .. } if generation::is_of_one(path) => {
                "`nsctl apply` makes a new generation of the policy's files, `nsctl rollback N` takes another one"
            }
            Self::Corrupt { .. } => {
                "put a copy back, or move it away while the network is up: services keep the addresses they have now"
            }
            Self::Foreign { why: Foreign::Link | Foreign::NoDirectory, .. } => {
                "remove it, or name another directory with --state; nothing was written"
            }
            Self::Foreign { .. } => "see whose it is; then chown it to root and chmod it to 0700; nothing was written",
            Self::Io { action: "read", .. } => "run this as root: without the record the addresses are not known",
            Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded) => {
                "make room there; nothing was applied"
            }
            Self::Io { .. } => "see that the state directory can be written by root; nothing was applied",
        }
        .to_owned()
    }
}

fn lost_words(known: &[Number]) -> String {
    match known.last() {
        Some(last) => format!("`nsctl generations` tells which are kept; `nsctl rollback {last}` takes the newest"),
        None => "no generation is kept: remove the link, and `nsctl apply` makes one".into(),
    }
}

fn known_words(known: &[Number]) -> String {
    match (known.first(), known.last()) {
        (Some(first), Some(last)) if first != last => {
            format!("{} are kept, {first} to {last}: see `nsctl generations`", known.len())
        }
        (Some(only), _) => format!("there is {only}: `nsctl rollback {only}`"),
        (None, _) => "none is kept: `nsctl apply` makes the first one".into(),
    }
}

/// Why a state directory is not ours alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Foreign {
    /// It leads elsewhere.
    Link,
    /// It is something else.
    NoDirectory,
    /// It is somebody else's.
    Owner(u32),
    /// Others can write to it.
    Writable(Who, u32),
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => f.write_str("is a link"),
            Self::NoDirectory => f.write_str("is not a directory"),
            Self::Owner(uid) => write!(f, "is owned by uid {uid}"),
            Self::Writable(who, mode) => write!(f, "has mode {mode:04o}, so that {who} can write to it"),
        }
    }
}

/// The state of one network.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
}

/// Held while a network is changed.
#[derive(Debug)]
pub struct Guard {
    _file: Flock<File>,
}

/// The largest record that is read: that of 1,000 services is far below.
const LIMIT: u64 = 16 << 20;

const ADDRESSES: &str = "addresses.json";
const SYSCTLS: &str = "sysctls.json";

/// The file that says how the others are written. Where there is none they are older than it: addresses and sysctls
/// alone, in the form that they have still.
const FORMAT_FILE: &str = "format";

/// The newest form that is known.
pub const FORMAT: u32 = 1;

/// How long a change waits for another one to end. The daemon mends for some milliseconds at a time.
const PATIENCE: Duration = Duration::from_secs(3);

/// Recorded with the sysctls: whether the host forwarded for everybody. Never ours to set.
const IP_FORWARD: &str = "net/ipv4/ip_forward";

impl Store {
    /// The state of `network` under `directory` (`/var/lib/nsctl`). Nothing is made before it is written.
    pub fn new(directory: &Path, network: &NetworkName) -> Self {
        Self { directory: directory.join(network.as_str()) }
    }

    /// The networks that have state under `directory`.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be read.
    pub fn networks(directory: &Path) -> Result<Vec<NetworkName>, StoreError> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StoreError::Io { action: "read", path: directory.into(), source }),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut names: Vec<NetworkName> = names.collect();
        names.sort();
        Ok(names)
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Keeps every other nsctl from changing this network until the guard is dropped; waits some seconds for one that
    /// does it now.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`] when it has not ended by then.
    pub fn lock(&self) -> Result<Guard, StoreError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lock_at_once() {
                Err(StoreError::Busy { .. }) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }

    /// The same without waiting.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`] when another one changes the network now.
    pub fn lock_at_once(&self) -> Result<Guard, StoreError> {
        self.prepare()?;
        let path = self.directory.join("lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        let file = options.open(&path);
        let file = file.map_err(|source| StoreError::Io { action: "open", path: path.clone(), source })?;
        locked(file, path)
    }

    /// The same where nothing can be written: the directory itself is locked.
    ///
    /// # Errors
    ///
    /// As [`Store::lock`], or when there is no directory.
    pub fn lock_as_it_is(&self) -> Result<Guard, StoreError> {
        let lock = self.directory.join("lock");
        let path = if lock.exists() { lock } else { self.directory.clone() };
        let file = File::open(&path);
        locked(file.map_err(|source| StoreError::Io { action: "open", path: path.clone(), source })?, path)
    }

    /// The recorded addresses; empty when there are none yet.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read or understood: addresses are never guessed anew over a broken record.
    pub fn addresses(&self) -> Result<AddressBook, StoreError> {
        self.read(ADDRESSES, AddressBook::from_json)
    }

    /// Records addresses.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; then the old one is whole.
    pub fn record_addresses(&self, book: &AddressBook) -> Result<(), StoreError> {
        self.write(ADDRESSES, book)
    }

    /// What the host's sysctls were before we changed them, by path below `/proc/sys`; empty when the record is of
    /// another run of the machine.
    ///
    /// # Errors
    ///
    /// As [`Store::addresses`].
    pub fn sysctls(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let mut recorded = self.recorded_sysctls()?;
        recorded.retain(|path, _| path != BOOT && path != IP_FORWARD);
        Ok(recorded)
    }

    /// Whether the host did not forward IPv4 for everybody when the first sysctl was changed.
    ///
    /// # Errors
    ///
    /// As [`Store::addresses`].
    pub fn found_ip_forward_off(&self) -> Result<bool, StoreError> {
        Ok(self.recorded_sysctls()?.get(IP_FORWARD).is_some_and(|value| value == "0"))
    }

    fn recorded_sysctls(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let recorded: BTreeMap<String, String> = self.read(SYSCTLS, |text| serde_json::from_slice(text))?;
        let this = Sysctl::at(BOOT).read().ok();
        let another = |boot: &String| this.as_ref().is_some_and(|this| this != boot);
        Ok(if recorded.get(BOOT).is_some_and(another) { BTreeMap::new() } else { recorded })
    }

    /// What those other networks of this machine have recorded that `is_up` says are there. A record that cannot be
    /// read is the trouble of its own network.
    ///
    /// # Errors
    ///
    /// When the state directory is there and cannot be read.
    pub fn sysctls_of_others(
        &self,
        is_up: impl Fn(&NetworkName) -> bool,
    ) -> Result<BTreeMap<String, String>, StoreError> {
        let Some(all) = self.directory.parent() else { return Ok(BTreeMap::new()) };
        let mut sysctls = BTreeMap::new();
        for other in Self::networks(all)?.iter().filter(|network| is_up(network)) {
            let other = Self::new(all, other);
            if other.directory != self.directory {
                sysctls.extend(other.sysctls().unwrap_or_default());
            }
        }
        Ok(sysctls)
    }

    /// Records what the host's sysctls were, and for which run of the machine that holds.
    ///
    /// # Errors
    ///
    /// As [`Store::record_addresses`].
    pub fn record_sysctls(&self, before: &BTreeMap<String, String>) -> Result<(), StoreError> {
        let mut record = before.clone();
        if !before.is_empty() {
            let known = self.recorded_sysctls()?;
            for path in [BOOT, IP_FORWARD] {
                let value = known.get(path).cloned().or_else(|| Sysctl::at(path).read().ok());
                record.extend(value.map(|value| (path.to_owned(), value)));
            }
        }
        self.write(SYSCTLS, &record)
    }

    /// Puts a record of sysctls that cannot be understood out of the way, under the name that is returned.
    ///
    /// # Errors
    ///
    /// What rename(2) says.
    pub fn set_sysctls_aside(&self) -> Result<PathBuf, StoreError> {
        let path = self.directory.join(SYSCTLS);
        let aside = self.directory.join("sysctls.json.broken");
        fs::rename(&path, &aside).map_err(|source| StoreError::Io { action: "rename", path, source })?;
        Ok(aside)
    }

    fn read<T: Default>(
        &self,
        name: &str,
        parse: impl FnOnce(&[u8]) -> Result<T, serde_json::Error>,
    ) -> Result<T, StoreError> {
        let path = self.directory.join(name);
        self.is_ours()?;
        let text = match file::read(&path, LIMIT) {
            Ok(text) => text,
            Err(FileError::Io(e)) if e.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
            Err(FileError::Io(source)) => return Err(StoreError::Io { action: "read", path, source }),
            Err(error) => return Err(StoreError::Io { action: "read", path, source: io::Error::other(error) }),
        };
        parse(&text).map_err(|source| StoreError::Corrupt { path, source })
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), StoreError> {
        self.prepare()?;
        let path = self.directory.join(name);
        let mut text = serde_json::to_vec_pretty(value).expect("the records have string keys and plain values");
        text.push(b'\n');
        write_whole(&path, &text, 0o600).map_err(|source| StoreError::Io { action: "write", path, source })
    }

    /// Whether nobody else decides what lies in the directory: it, and the one around it, are no links, and they are
    /// root's or the caller's alone. What is not there yet is ours to make.
    fn is_ours(&self) -> Result<(), StoreError> {
        self.is_trusted()?;
        self.is_known()
    }

    /// The same, in whatever form it is written.
    pub(crate) fn is_trusted(&self) -> Result<(), StoreError> {
        let trusted = Trusted::of_caller();
        for path in self.directory.parent().into_iter().chain([self.directory.as_path()]) {
            let Ok(is) = fs::symlink_metadata(path) else { continue };
            let mode = is.mode() & 0o7777;
            let why = match is.file_type() {
                kind if kind.is_symlink() => Some(Foreign::Link),
                kind if !kind.is_dir() => Some(Foreign::NoDirectory),
                _ if !trusted.trusts(is.uid()) => Some(Foreign::Owner(is.uid())),
                _ => trusted.writer(&is).map(|who| Foreign::Writable(who, mode)),
            };
            if let Some(why) = why {
                return Err(StoreError::Foreign { path: path.to_owned(), why });
            }
        }
        Ok(())
    }

    /// Whether it is written in a form that is known here.
    fn is_known(&self) -> Result<(), StoreError> {
        let path = self.directory.join(FORMAT_FILE);
        let text = match file::read(&path, 64) {
            Ok(text) => text,
            Err(FileError::Io(e)) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(FileError::Io(source)) => return Err(StoreError::Io { action: "read", path, source }),
            Err(error) => return Err(StoreError::Io { action: "read", path, source: io::Error::other(error) }),
        };
        match serde_json::from_slice::<u32>(&text) {
            Ok(found) if found > FORMAT => Err(StoreError::Newer { path, found }),
            Ok(_) => Ok(()),
            Err(source) => Err(StoreError::Corrupt { path, source }),
        }
    }

    fn prepare(&self) -> Result<(), StoreError> {
        self.is_ours()?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|source| StoreError::Io { action: "make", path: self.directory.clone(), source })?;
        let path = self.directory.join(FORMAT_FILE);
        if path.exists() {
            return Ok(());
        }
        write_whole(&path, format!("{FORMAT}\n").as_bytes(), 0o600).map_err(|source| StoreError::Io {
            action: "write",
            path,
            source,
        })
    }
}

/// Who calls, for records: the user behind sudo(8), else the uid.
pub(crate) fn caller() -> String {
    let uid = nix::unistd::getuid();
    let plain = |name: &String| !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_graphic());
    match std::env::var("SUDO_USER").ok().filter(plain).filter(|_| uid.is_root()) {
        Some(name) => name,
        None => format!("uid {uid}"),
    }
}

/// Writes a file that nobody reads before its directory has its name.
pub(crate) fn write_file(path: &Path, parts: impl IntoIterator<Item = Vec<u8>>) -> io::Result<()> {
    fault::point()?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut file = io::BufWriter::with_capacity(64 << 10, file);
    fault::point()?;
    for part in parts {
        file.write_all(&part)?;
    }
    fault::point()?;
    file.into_inner()?.sync_all()
}

fn locked(file: File, path: PathBuf) -> Result<Guard, StoreError> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(Guard { _file: file }),
        Err((file, nix::Error::EWOULDBLOCK)) => Err(StoreError::Busy { path, holder: holder(&file) }),
        Err((_, errno)) => Err(StoreError::Io { action: "lock", path, source: errno.into() }),
    }
}

/// Who holds the lock on a file, as proc_locks(5) has it: `1: FLOCK  ADVISORY  WRITE 912 fd:01:4711 0 EOF`.
fn holder(file: &File) -> Option<u32> {
    let is = file.metadata().ok()?;
    let of_this = format!("{:02x}:{:02x}:{}", major(is.dev()), minor(is.dev()), is.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let holder = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&of_this.as_str())).then(|| words[4].parse().ok())?
    };
    // A pid of another pid namespace is told as 0 or less.
    locks.lines().find_map(holder).filter(|pid| *pid > 0)
}

/// Writes a file so that a reader, and a crash, find the old one or the new one and nothing between.
///
/// # Errors
///
/// What the system says; then the old file is whole and the temporary one is gone.
pub(crate) fn write_whole(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = (|| {
        fs::remove_file(&temporary).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        fault::point()?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        fault::point()?;
        file.write_all(text)?;
        fault::point()?;
        // The mode that is meant, whatever the umask of the caller takes away.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fault::point()?;
        fs::rename(&temporary, path)?;
        fault::point()?;
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    })();
    if written.is_err() {
        fs::remove_file(&temporary).ok();
    }
    written
}
