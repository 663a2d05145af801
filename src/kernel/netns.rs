//! Network namespaces: made, pinned, entered.
//!
//! # Invariants
//!
//! - No thread that outlives a call ever changes namespace: work inside runs on a fresh thread that dies with it
//!   (setns(2) changes the calling thread only, and a pool thread would be poisoned).
//! - A socket keeps the namespace in which it was made, so [`Netns::run`] may hand one out and be done.
//! - No fork.

#![allow(clippy::disallowed_methods, reason = "this is the one place where a thread changes namespace")]
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace, held open.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// Opens the namespace that is pinned at `path`, as ip-netns(8) does under `/run/netns`.
    ///
    /// # Errors
    ///
    /// What open(2) says; `NotFound` when nothing is there.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)? })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Makes a namespace and runs `prepare` inside; only when that succeeded it is pinned at `path`, so that a namespace
    /// which can be found is never half made.
    ///
    /// # Errors
    ///
    /// What unshare(2), `prepare`, open(2) or mount(2) say; then nothing is left.
    pub fn create<T: Send + 'static>(
        path: &Path,
        prepare: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<(Self, T)> {
        let path = path.to_owned();
        on_fresh_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let made = prepare()?;
            let netns = Self::current()?;
            pin(&path)?;
            Ok((netns, made))
        })
    }

    /// A namespace that nothing pins: it is gone when the last thread, socket and file in it is.
    ///
    /// # Errors
    ///
    /// What unshare(2) says.
    pub fn unpinned() -> io::Result<Self> {
        on_fresh_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
    }

    /// Runs `f` on a thread that lives inside this namespace and dies with it.
    ///
    /// # Errors
    ///
    /// What setns(2) says (`EPERM` without CAP_SYS_ADMIN), or what `f` returns.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let file = self.file.try_clone()?;
        on_fresh_thread(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            f()
        })
    }

    /// The open file, for messages that name a namespace by descriptor.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Another handle on the same namespace.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }
}

/// Pins the namespace of the calling thread at `path`. Who was killed between the two steps of this has left a file
/// that pins nothing; it makes way.
fn pin(path: &Path) -> io::Result<()> {
    let _lock = lock(directory_of(path))?;
    remove_if_leftover(path)?;
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| {
        std::fs::remove_file(path).ok();
        io::Error::from(errno)
    })?;
    // Of the file below, which is what another mount namespace sees: there too it can be told from a leftover.
    file.set_permissions(Permissions::from_mode(FINISHED))
}

/// The mode of a file on which something was mounted; ip-netns(8) gives its files the same.
const FINISHED: u32 = 0;

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Keeps others of us from pinning in `dir`, and `ip netns` from preparing it.
fn lock(dir: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(dir)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// Whether the file at `path` is what is left of a pin that was never finished: empty, regular, and nothing was ever
/// mounted on it.
pub fn is_leftover(path: &Path) -> bool {
    let (Ok(file), Ok(dir)) = (std::fs::symlink_metadata(path), std::fs::metadata(directory_of(path))) else {
        return false;
    };
    // A pin is a file of nsfs, on a device of its own.
    file.is_file() && file.len() == 0 && file.dev() == dir.dev() && file.mode() & 0o777 != FINISHED
}

/// Removes what is left in `dir` of pins that were never finished, where the name is `ours`.
///
/// # Errors
///
/// What readdir(3), flock(2) or unlink(2) say.
pub fn remove_leftovers(dir: &Path, ours: impl Fn(&str) -> bool) -> io::Result<()> {
    let is_leftover = |name: &String| ours(name) && is_leftover(&dir.join(name));
    let left: Vec<_> = pinned(dir)?.into_iter().filter(is_leftover).collect();
    if left.is_empty() {
        return Ok(());
    }
    // What another one is pinning just now is finished once the lock is ours.
    let _lock = lock(dir)?;
    left.iter().try_for_each(|name| remove_if_leftover(&dir.join(name)))
}

fn remove_if_leftover(path: &Path) -> io::Result<()> {
    if !is_leftover(path) {
        return Ok(());
    }
    match std::fs::remove_file(path) {
        // Something is mounted there that looks like nothing: it stays, and is in the way.
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        removed => removed,
    }
}

/// Takes the pin at `path` away. The namespace goes when the last process in it does.
///
/// # Errors
///
/// What umount(2) or unlink(2) say; a path that is no mount point is only removed.
pub fn unpin(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL) => std::fs::remove_file(path),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes `dir` (such as `/run/netns`) ready for pins that ip-netns(8) sees too: a directory that is a mount point of its own.
///
/// It is made private, where ip-netns(8) makes it shared: `/run` is shared on most machines, and each pin would be copied into the
/// mount namespace of every unit that has one. Nothing is lost by that: `ip netns` reads the same directory, and a copy of the
/// mount table that is made later has the pins of that time in it.
///
/// A directory that is a mount point already, or has pins in it, is somebody's choice and stays as it is; a second call changes
/// nothing.
///
/// # Errors
///
/// What mkdir(2), flock(2) or mount(2) say.
pub fn prepare_directory(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    // `ip netns add` takes the same lock: two that looked at once would stack two mounts.
    let _lock = lock(dir)?;
    let dir = dir.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let listed = PathBuf::from(escaped(&dir));
    if mounts.lines().filter_map(mount_point).any(|mounted| mounted.starts_with(&listed)) {
        return Ok(());
    }
    mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    mount(None::<&str>, &dir, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?;
    Ok(())
}

/// The mount point in a line of proc_pid_mountinfo(5).
fn mount_point(line: &str) -> Option<&Path> {
    line.split(' ').nth(4).map(Path::new)
}

/// A path as it stands in proc_pid_mountinfo(5), where fields are parted by spaces and lines by newlines.
fn escaped(path: &Path) -> String {
    let escape = |c| match c {
        ' ' => "\\040".to_owned(),
        '\t' => "\\011".to_owned(),
        '\n' => "\\012".to_owned(),
        '\\' => "\\134".to_owned(),
        c => c.to_string(),
    };
    path.to_string_lossy().chars().map(escape).collect()
}

/// The names pinned in `dir`, sorted; none when the directory is not there.
///
/// # Errors
///
/// What readdir(3) says.
pub fn pinned(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Where ip-netns(8) keeps its pins.
pub fn default_directory() -> PathBuf {
    PathBuf::from("/run/netns")
}

fn on_fresh_thread<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match thread::Builder::new().name("netns".into()).spawn(f)?.join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
