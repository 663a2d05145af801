//! Ends the processes of a service: asks, and waits. Nobody is killed.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kernel::KernelError;

/// Ends what `inside` tells of, until it tells of nothing or time is up. It is asked again before every signal, since
/// a process may end meanwhile and another one get its number.
///
/// # Errors
///
/// What `inside` says.
pub(crate) fn stop(patience: Duration, inside: impl Fn() -> Result<Vec<Pid>, KernelError>) -> Result<(), KernelError> {
    let until = Instant::now() + patience;
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
    Ok(())
}
