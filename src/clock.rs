//! What time it is, for records and for deadlines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::kernel::sysctl::Sysctl;

/// Which run of the machine this is.
pub(crate) const BOOT_ID: &str = "kernel/random/boot_id";

/// Seconds since 1970, for people: nothing is decided by it.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How long this run of the machine lasts, with the time it was suspended: `CLOCK_BOOTTIME` of clock_gettime(2), which
/// nobody can set.
pub(crate) fn since_boot() -> Duration {
    // The clock is there since Linux 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// The run of the machine, where the kernel tells. Two runs never have the same.
pub(crate) fn boot() -> Option<String> {
    Sysctl::at(BOOT_ID).read().ok()
}
