//! Places at which a test lets the process die, or the disk be full.
//!
//! Every write of a record and every step of a plan passes here. In a debug build `NSCTL_FAULT=crash:7` ends the process
//! at the seventh place, as SIGKILL would, and `NSCTL_FAULT=full:7` lets every write from the seventh on fail with
//! `ENOSPC`. A release build has none of it.

/// One place. Before each change of a record.
///
/// # Errors
///
/// `ENOSPC` when a test wants it.
#[cfg(not(debug_assertions))]
pub(crate) fn point() -> std::io::Result<()> {
    Ok(())
}

/// Another one. Before each step: there a process can die, and no disk is full.
#[cfg(not(debug_assertions))]
pub(crate) fn step() {}

#[cfg(debug_assertions)]
pub(crate) use counted::{point, step};

#[cfg(debug_assertions)]
mod counted {
    use std::io;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::errno::Errno;

    #[derive(Clone, Copy)]
    enum Fault {
        Crash(u64),
        Full(u64),
    }

    static PASSED: AtomicU64 = AtomicU64::new(0);

    fn wanted() -> Option<Fault> {
        static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
        *FAULT.get_or_init(|| {
            let text = std::env::var("NSCTL_FAULT").ok()?;
            let (kind, at) = text.split_once(':')?;
            let at = at.parse().ok()?;
            match kind {
                "crash" => Some(Fault::Crash(at)),
                "full" => Some(Fault::Full(at)),
                _ => None,
            }
        })
    }

    pub(crate) fn point() -> io::Result<()> {
        match wanted() {
            Some(Fault::Crash(at)) => die_at(at),
            Some(Fault::Full(at)) if at <= next() => return Err(Errno::ENOSPC.into()),
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn step() {
        if let Some(Fault::Crash(at)) = wanted() {
            die_at(at);
        }
    }

    fn next() -> u64 {
        PASSED.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn die_at(at: u64) {
        if at == next() {
            nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL).ok();
        }
    }
}
