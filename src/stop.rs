//! Ends the processes of a service: asks first, and kills what does not listen.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kernel::KernelError;

/// How long a process has after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);
/// How long SIGKILL takes at most: a process in an uninterruptible wait (a dead disk, NFS) does not end by it.
const END: Duration = Duration::from_secs(3);

/// Ends what `inside` tells of, until it tells of nothing or time is up. It is asked again before every signal, since
/// a process may end meanwhile and another one get its number.
///
/// # Errors
///
/// What `inside` says.
pub(crate) fn stop(inside: impl Fn() -> Result<Vec<Pid>, KernelError>) -> Result<(), KernelError> {
    let until = Instant::now() + GRACE;
    let mut asked: Vec<Pid> = Vec::new();
    while Instant::now() < until {
        let all = inside()?;
        if all.is_empty() {
            return Ok(());
        }
        for pid in all.into_iter().filter(|pid| !asked.contains(pid)).collect::<Vec<_>>() {
            kill(pid, Signal::SIGTERM).ok();
            asked.push(pid);
        }
        sleep(Duration::from_millis(50));
    }
    let until = Instant::now() + END;
    while Instant::now() < until {
        let all = inside()?;
        if all.is_empty() {
            return Ok(());
        }
        all.into_iter().for_each(|pid| {
            kill(pid, Signal::SIGKILL).ok();
        });
        sleep(Duration::from_millis(50));
    }
    Ok(())
}
