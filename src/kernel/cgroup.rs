//! The processes of a systemd unit, by its control group.
//!
//! A unit's group is a directory with its name, somewhere below slices (systemd.slice(5)); nobody has to be asked over D-Bus.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use nix::unistd::Pid;

/// Where systemd has its groups: on a machine with both versions, below the one that it keeps for itself.
const ROOTS: [&str; 3] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"];

/// How deep slices, and what a unit makes below its own group, may nest.
const DEPTH: usize = 8;

/// How many directories are looked at.
const MOST: usize = 20_000;

/// The processes of each of these units; those that run none are left out. What ends meanwhile is no error.
pub fn processes(units: &BTreeSet<&str>) -> BTreeMap<String, BTreeSet<Pid>> {
    let mut found = BTreeMap::new();
    let root = ROOTS.iter().map(Path::new).find(|root| root.is_dir());
    if let Some(root) = root.filter(|_| !units.is_empty()) {
        let mut left = MOST;
        look(root, units, DEPTH, &mut left, &mut found);
    }
    found
}

fn look(
    directory: &Path,
    units: &BTreeSet<&str>,
    depth: usize,
    left: &mut usize,
    found: &mut BTreeMap<String, BTreeSet<Pid>>,
) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if *left == 0 || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        *left -= 1;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if units.contains(name.as_str()) {
            let mut processes = BTreeSet::new();
            gather(&entry.path(), DEPTH, left, &mut processes);
            if !processes.is_empty() {
                found.entry(name).or_default().extend(processes);
            }
        } else if depth > 0 && !name.ends_with(".service") && !name.ends_with(".scope") {
            look(&entry.path(), units, depth - 1, left, found);
        }
    }
}

/// Of a group and of those below it.
fn gather(group: &Path, depth: usize, left: &mut usize, into: &mut BTreeSet<Pid>) {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    // 0 is one of another PID namespace.
    into.extend(listed.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw));
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if *left > 0 && depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            *left -= 1;
            gather(&entry.path(), depth - 1, left, into);
        }
    }
}
