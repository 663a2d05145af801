//! What the daemon costs while nothing happens: memory, CPU, and how often it looks.
//!
//! ```text
//! cargo bench --bench idle               # 60 services, five minutes
//! cargo bench --bench idle -- 250 120    # 250 services, two minutes
//! ```
//!
//! In a sandbox that touches nothing of the machine. Ends with 1 when it needs more than [`MOST`] MB.

#![allow(clippy::disallowed_methods, reason = "it runs the command")]

mod grown;

use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nsctl::sandbox::Sandbox;

const NSCTL: &str = env!("CARGO_BIN_EXE_nsctl");

/// The memory that the daemon may need, in MB.
const MOST: f64 = 30.0;

/// `sysconf(_SC_CLK_TCK)`, which is 100 on every Linux that Rust knows.
const TICKS: f64 = 100.0;

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let (services, seconds) = (numbers.first().copied().unwrap_or(60), numbers.get(1).copied().unwrap_or(300));
    if let Err(error) = Sandbox::enter() {
        println!("LEFT OUT: this machine gives no sandbox: {error}");
        return ExitCode::SUCCESS;
    }
    match measure(usize::try_from(services).unwrap_or(60), Duration::from_secs(seconds)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("idle: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(services: usize, time: Duration) -> io::Result<bool> {
    std::fs::write("/run/policy.toml", grown::policy(services))?;
    let applied = command("apply").stdout(Stdio::null()).status()?;
    if !applied.success() {
        return Err(io::Error::other("apply failed"));
    }
    let log = std::fs::File::create("/run/log")?;
    let mut daemon = command("daemon").stderr(log).spawn()?;
    let ready = || std::fs::read_to_string("/run/log").is_ok_and(|log| log.contains("ready"));
    let until = Instant::now() + Duration::from_secs(60);
    while !ready() {
        if Instant::now() > until {
            daemon.kill()?;
            return Err(io::Error::other("the daemon is not ready after a minute"));
        }
        sleep(Duration::from_millis(50));
    }
    // What the start itself costs is no idling.
    sleep(Duration::from_secs(5));
    let (before, start) = (cpu(&daemon)?, Instant::now());
    sleep(time);
    let (used, took) = (cpu(&daemon)? - before, start.elapsed());
    let (now, peak) = (memory(&daemon, "VmRSS")?, memory(&daemon, "VmHWM")?);
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.id()))?.count();
    daemon.kill()?;
    daemon.wait()?;
    let percent = 100.0 * used / took.as_secs_f64();
    println!("{:>8} {:>8} {:>9} {:>9} {:>9} {:>11}", "services", "seconds", "MB", "peak MB", "CPU %", "descriptors");
    println!("{services:>8} {:>8.0} {now:>9.1} {peak:>9.1} {percent:>9.3} {descriptors:>11}", took.as_secs_f64());
    print!("{}", std::fs::read_to_string("/run/log")?);
    Ok(peak <= MOST)
}

fn command(verb: &str) -> Command {
    let mut command = Command::new(NSCTL);
    command.args(["--policy", "/run/policy.toml", "--state", "/run/state", verb]);
    command
}

/// Seconds of CPU that it has used: fields 14 and 15 of proc_pid_stat(5).
fn cpu(daemon: &Child) -> io::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.id()))?;
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / TICKS)
}

/// In MB.
fn memory(daemon: &Child, what: &str) -> io::Result<f64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(daemon.id().to_string()).join("status"))?;
    let line = status.lines().find(|line| line.starts_with(what)).unwrap_or_default();
    let kilobytes: f64 = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
    Ok(kilobytes / 1024.0)
}
