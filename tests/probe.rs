//! What the kernel can do, found on the kernel that is there.

#![allow(clippy::disallowed_methods, reason = "a test without privilege starts itself again under unshare(1)")]

use std::process::Command;
use std::time::{Duration, Instant};

use nsctl::kernel::netns::Netns;
use nsctl::kernel::probe;

/// Runs this test again as root of a user namespace where that is needed. True when the caller is done.
fn again_with_privilege(test: &str) -> bool {
    if Netns::unpinned().is_ok() {
        return false;
    }
    let me = std::env::current_exe().expect("a test knows its file");
    let inside = std::env::var_os("NSCTL_TEST_UNSHARED").is_some();
    let mut again = Command::new("unshare");
    again.arg("-Urn").arg(me).args(["--exact", test, "--nocapture"]).env("NSCTL_TEST_UNSHARED", "1");
    if inside || !Command::new("unshare").args(["-Urn", "true"]).status().is_ok_and(|status| status.success()) {
        let message = "NOT TESTED: no network namespace can be made here; run as root or under `unshare -Urn`";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
        eprintln!("{message}");
        return true;
    }
    assert!(again.status().expect("unshare runs").success(), "{test} in a user namespace");
    true
}

/// Network namespaces that some process is in or that are mounted somewhere in this one's view.
fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").expect("mounts can be read")
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("descriptors can be read").count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("threads can be read").count()
}

fn links() -> String {
    std::fs::read_to_string("/proc/self/net/dev")
        .expect("links can be read")
        .lines()
        .filter_map(|line| line.split_once(':').map(|(name, _)| name.trim().to_owned() + "\n"))
        .collect()
}

#[test]
fn this_kernel_has_everything_and_nothing_is_left() {
    if again_with_privilege("this_kernel_has_everything_and_nothing_is_left") {
        return;
    }
    let before = (mounts(), links(), descriptors(), threads());
    let started = Instant::now();
    let capabilities = probe::capabilities().unwrap_or_else(|e| panic!("{e}"));
    let took = started.elapsed();
    eprintln!("probed in {took:?}");
    assert!(capabilities.netdev_reject, "the panel can refuse");
    assert!(took < Duration::from_secs(1), "{took:?}");
    // What holds a namespace is a mount, a descriptor, or a thread.
    assert_eq!((mounts(), links(), descriptors(), threads()), before);
}
