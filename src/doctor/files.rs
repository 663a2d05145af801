//! The policy and the state directory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use netns_policy::name::NetworkName;
use nix::sys::statvfs::{FsFlags, statvfs};

use super::{Check, count, or_ok, told};
use crate::orchestrator::Checked;
use crate::store::Store;

/// Fewer bytes than that are little; records of a large network take less than one MiB.
const LITTLE: u64 = 64 << 20;
/// With fewer than that the next record may not fit.
const NOTHING: u64 = 2 << 20;

/// How many warnings of the policy are told one by one.
const WARNINGS: usize = 5;

pub(super) fn policy(checked: &Checked) -> Vec<Check> {
    let mut found: Vec<Check> = checked
        .editable
        .iter()
        .map(|one| Check::fail("policy", format!("{one}; `nsctl apply` refuses that ({})", one.code()), one.help()))
        .collect();
    let told = checked.warnings.iter().take(WARNINGS);
    found.extend(told.map(|warning| {
        let plain = warning.plain();
        Check::warn("policy", format!("{}: {}", plain.code, plain.message), "`nsctl check` shows it with its place")
    }));
    let more = checked.warnings.len().saturating_sub(WARNINGS);
    if more > 0 {
        found.push(Check::warn(
            "policy",
            format!("and {}", count(more, "more warning")),
            "`nsctl check` shows them all",
        ));
    }
    let graph = &checked.graph;
    let (services, edges) = (count(graph.services().count(), "service"), count(graph.edges().len(), "edge"));
    or_ok(found, "policy", format!("network {}: {services}, {edges}; nobody else can edit it", graph.network().name))
}

pub(super) fn state(directory: &Path, network: &NetworkName) -> Vec<Check> {
    let store = Store::new(directory, network);
    let own = directory.join(network.as_str());
    let mut found = Vec::new();
    for error in [store.addresses().err(), store.sysctls().err()].into_iter().flatten() {
        let seen = format!("{}: {}", error.code(), told(&error));
        // One reason concerns both.
        if !found.iter().any(|check: &Check| check.seen == seen) {
            found.push(Check::fail("state", seen, error.help()));
        }
    }
    if let Ok(is) = fs::metadata(&own)
        && is.mode() & 0o077 != 0
        && found.is_empty()
    {
        let seen = format!("{} has mode {:04o}: others can read the records", own.display(), is.mode() & 0o7777);
        found.push(Check::warn("state", seen, format!("chmod 0700 {}", own.display())));
    }
    // What is not there yet is made where its parent is.
    let there = own.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match statvfs(there) {
        Ok(disk) if disk.flags().contains(FsFlags::ST_RDONLY) => found.push(Check::fail(
            "state",
            format!("{} cannot be written: it is mounted read-only", there.display()),
            "name another directory with --state, or mount it writable",
        )),
        Ok(disk) => {
            #[allow(clippy::useless_conversion, reason = "on machines of 32 bits they are narrower")]
            let free = u64::from(disk.blocks_available()).saturating_mul(u64::from(disk.fragment_size()));
            let seen = format!("{} has {} KiB free", there.display(), free >> 10);
            match free {
                ..NOTHING => found.push(Check::fail("state", seen, "make room: addresses cannot be recorded")),
                NOTHING..LITTLE => found.push(Check::warn("state", seen, "make room before records no longer fit")),
                _ => {}
            }
        }
        Err(error) => found.push(Check::warn(
            "state",
            format!("the room on {} cannot be seen: {error}", there.display()),
            "look at it: `df`",
        )),
    }
    let is_new = !own.exists();
    let seen = if is_new { "there is none yet" } else { "it is ours alone, its records can be read" };
    or_ok(found, "state", format!("{}: {seen}, there is room", own.display()))
}
