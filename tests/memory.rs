//! The memory of the largest policy there may be. `cargo bench --bench growth` has the whole table.

#![allow(clippy::disallowed_methods, reason = "it runs the command")]

#[path = "../benches/grown/mod.rs"]
mod grown;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::resource::{UsageWho, getrusage};

/// The largest of all children of this process so far, in MB.
fn peak() -> i64 {
    getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() / 1024
}

#[test]
fn no_command_that_needs_no_privilege_takes_100_mb_for_1000_services() {
    let policy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("grown.toml");
    fs::write(&policy, grown::policy(1000)).unwrap();
    let commands: [&[&str]; 6] =
        [&["check"], &["plan", "--offline"], &["graph"], &["why", "s0000", "s0001:rpc"], &["env", "s0001"], &["fmt"]];
    for command in commands {
        let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        nsctl.args(command).arg("--policy").arg(&policy).args(["--state", "none"]);
        let status = nsctl.stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{command:?}");
        assert!(peak() < 100, "{command:?} takes {} MB", peak());
    }
    assert!(peak() > 10, "{} MB: nothing was measured", peak());
}
