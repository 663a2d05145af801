//! Which processes live in a namespace.

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

type Identity = (u64, u64);

fn identity(metadata: &fs::Metadata) -> Identity {
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
