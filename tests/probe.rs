//! What the kernel can do, found on the kernel that is there.

mod common;

use std::time::{Duration, Instant};

use nsctl::kernel::probe;

use common::in_sandbox;

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
    in_sandbox(|| {
        let before = (mounts(), links(), descriptors(), threads());
        let started = Instant::now();
        let capabilities = probe::capabilities().unwrap_or_else(|e| panic!("{e}"));
        let took = started.elapsed();
        eprintln!("probed in {took:?}");
        assert!(capabilities.netdev_reject, "the panel can refuse");
        assert!(took < Duration::from_secs(1), "{took:?}");
        // What holds a namespace is a mount, a descriptor, or a thread.
        assert_eq!((mounts(), links(), descriptors(), threads()), before);
    });
}
