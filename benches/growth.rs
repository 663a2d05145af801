//! Time and memory of every command, each as a process of its own, as the policy grows.
//!
//! ```text
//! cargo bench --bench growth            # all of it, a few minutes
//! cargo bench --bench growth -- 60 250  # these sizes
//! ```
//!
//! What needs privilege runs in a sandbox that touches nothing of the machine, and is left out, which is said, where
//! there is none. Ends with 1 when a command fails or needs more than [`MOST`] MB.

#![allow(clippy::disallowed_methods, reason = "it runs the command")]

mod grown;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nsctl::sandbox::Sandbox;

const NSCTL: &str = env!("CARGO_BIN_EXE_nsctl");

const SIZES: [usize; 6] = [17, 60, 120, 250, 500, 1000];

/// The memory that any command may need at its peak, in MB.
const MOST: f64 = 100.0;

/// Every pair is connected for real, so the time grows with the square.
const MOST_VERIFIED: usize = 60;

const OFFLINE: [&[&str]; 8] = [
    &["check"],
    &["plan", "--offline"],
    &["plan", "--offline", "--json"],
    &["graph"],
    &["why", "s0000", "s0001:rpc"],
    &["env", "s0001"],
    &["fmt", "--check"],
    &["schema"],
];

const LIVE: [&[&str]; 7] = [&["apply"], &["apply"], &["plan"], &["status"], &["drift"], &["verify"], &["down"]];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["measure", ref command @ ..] => measure(command).map(|()| true),
        ["live", size, policy] => live(size, policy),
        ref sizes => table(sizes),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("growth: {e}");
            ExitCode::FAILURE
        }
    }
}

fn table(sizes: &[&str]) -> io::Result<bool> {
    let sizes: Vec<usize> =
        sizes.iter().map(|size| size.parse().map_err(io::Error::other)).collect::<Result<_, _>>()?;
    let directory = std::env::temp_dir().join(format!("nsctl-growth-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    println!("{:>8}  {:<28} {:>9} {:>9}", "services", "command", "ms", "peak MB");
    let mut fine = true;
    for size in if sizes.is_empty() { SIZES.to_vec() } else { sizes } {
        let policy = directory.join("policy.toml");
        std::fs::write(&policy, grown::policy(size))?;
        for command in OFFLINE {
            fine &= row(size, command, &policy, Path::new("none"))?;
        }
        let policy = policy.display().to_string();
        fine &= Command::new(std::env::current_exe()?).args(["live", &size.to_string(), &policy]).status()?.success();
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(fine)
}

/// The commands that change a machine, on one that is made for them.
fn live(size: &str, policy: &str) -> io::Result<bool> {
    let size: usize = size.parse().map_err(io::Error::other)?;
    let Ok(_sandbox) = Sandbox::enter() else {
        println!("{size:>8}  LEFT OUT: apply, plan, status, verify, down (this machine gives no sandbox)");
        return Ok(true);
    };
    let mut fine = true;
    for command in LIVE.into_iter().filter(|command| command[0] != "verify" || size <= MOST_VERIFIED) {
        fine &= row(size, command, Path::new(policy), Path::new("/run/state"))?;
    }
    Ok(fine)
}

/// Measures one command and prints its line.
fn row(size: usize, command: &[&str], policy: &Path, state: &Path) -> io::Result<bool> {
    // A process counts the largest of its children, so each gets a parent of its own.
    let mut parent = Command::new(std::env::current_exe()?);
    parent.args(["measure", NSCTL]).args(command);
    let paths: [(&str, PathBuf); 2] = [("--policy", policy.into()), ("--state", state.into())];
    for (option, path) in paths {
        parent.arg(option).arg(path);
    }
    let output = parent.stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(|number| number.parse::<f64>().map_err(io::Error::other));
    let mut next = || numbers.next().unwrap_or_else(|| Err(io::Error::other(format!("{command:?} was not measured"))));
    let (ms, mb, code) = (next()?, next()?, next()?);
    let expected = if command[0] == "fmt" { 0.0..2.0 } else { 0.0..1.0 };
    let mut note = String::new();
    if !expected.contains(&code) {
        note = format!("  FAILED with {code}");
    } else if mb > MOST {
        note = format!("  more than {MOST} MB");
    }
    println!("{size:>8}  {:<28} {ms:>9.1} {mb:>9.1}{note}", command.join(" "));
    Ok(note.is_empty())
}

/// Runs a command with its output thrown away; prints milliseconds, megabytes and the exit code.
fn measure(command: &[&str]) -> io::Result<()> {
    let start = Instant::now();
    let mut child = Command::new(command[0]);
    let status = child.args(&command[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    println!("{ms} {} {}", peak as f64 / 1024.0, status.code().unwrap_or(-1));
    Ok(())
}
