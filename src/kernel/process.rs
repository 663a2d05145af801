//! Which processes live in a namespace.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::Pid;

use super::netns::Netns;

/// Who is in a namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Occupants {
    /// The processes of which at least one thread is in it, in order.
    pub processes: Vec<Pid>,
    /// How many processes could not be looked at. Seeing another user's needs CAP_SYS_PTRACE; with 0 here the list is whole.
    pub unseen: usize,
}

/// The processes that live in `netns`, as far as `/proc` shows them.
///
/// Of the calling process only the main thread counts: its others come and go with [`Netns::run`].
///
/// # Errors
///
/// When `/proc` or the namespace cannot be read.
pub fn processes_in(netns: &Netns) -> io::Result<Occupants> {
    let wanted = identity(&netns.file().metadata()?);
    let mut occupants = Occupants::default();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        match is_in(&entry.path(), pid, wanted) {
            Ok(true) => occupants.processes.push(Pid::from_raw(pid)),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => occupants.unseen += 1,
            // It ended meanwhile, or is ending: its namespaces are the first to go.
            Ok(false) | Err(_) => {}
        }
    }
    occupants.processes.sort();
    Ok(occupants)
}

/// A namespace as nsfs names it, by device and inode. The kernel gives the number out again as soon as the namespace is gone,
/// so that it tells apart only what exists at the same time.
pub type Identity = (u64, u64);

/// Which namespace each process is in.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Census {
    /// The processes by the namespace of their first thread, in order.
    pub processes: BTreeMap<Identity, Vec<Pid>>,
    /// How many processes could not be looked at.
    pub unseen: usize,
}

impl Census {
    /// Asks every process once, and no thread but its first.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read.
    pub fn take() -> io::Result<Self> {
        let mut census = Self::default();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            match fs::metadata(entry.path().join("ns/net")) {
                Ok(is) => census.processes.entry(identity(&is)).or_default().push(Pid::from_raw(pid)),
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => census.unseen += 1,
                // It ended meanwhile.
                Err(_) => {}
            }
        }
        census.processes.values_mut().for_each(|pids| pids.sort());
        Ok(census)
    }

    /// The namespace that a process was in.
    pub fn netns_of(&self, pid: Pid) -> Option<Identity> {
        self.processes.iter().find(|(_, pids)| pids.binary_search(&pid).is_ok()).map(|(netns, _)| *netns)
    }
}

/// The namespace that is pinned at, or linked from, `path`.
///
/// # Errors
///
/// When nothing is there.
pub fn identity_at(path: &Path) -> io::Result<Identity> {
    Ok(identity(&fs::metadata(path)?))
}

/// What a process is called (`/proc/PID/comm`), with what no terminal should see replaced; nothing when it has ended.
pub fn name_of(pid: Pid) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = String::from_utf8_lossy(&name);
    let shown = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    Some(name.trim_end_matches('\n').chars().map(shown).collect())
}

/// The namespace that an open file of nsfs is.
pub fn identity(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

fn is_in(process: &Path, pid: i32, wanted: Identity) -> io::Result<bool> {
    if holds(process, wanted)? {
        return Ok(true);
    }
    if pid == Pid::this().as_raw() {
        return Ok(false);
    }
    for thread in fs::read_dir(process.join("task"))? {
        // A thread that ended meanwhile is in no namespace.
        if holds(&thread?.path(), wanted).unwrap_or(false) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn holds(process: &Path, wanted: Identity) -> io::Result<bool> {
    Ok(identity(&fs::metadata(process.join("ns/net"))?) == wanted)
}
