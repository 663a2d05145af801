//! Who goes back when a change is not confirmed, although this command has ended, the connection is gone and the daemon
//! is dead.

#![allow(clippy::disallowed_methods, reason = "the process that is started is nsctl itself")]

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use netns_policy::name::NetworkName;
use nsctl::store::Pending;

/// Starts a process that waits in the place of this one. Where systemd runs it is a unit of its own, since systemd ends
/// what a session has left behind (KillUserProcesses= of logind.conf(5)); elsewhere a session of its own is enough.
pub fn start(state: &Path, network: &NetworkName, pending: &Pending) -> io::Result<()> {
    let program = std::env::current_exe()?;
    let state = std::path::absolute(state)?;
    if Path::new("/run/systemd/system").is_dir() && as_unit(&program, &state, network, pending).is_ok() {
        return Ok(());
    }
    let mut alone = Command::new(&program);
    // In the process group of this one: the leader of a group cannot begin a session (setsid(2)), and it does.
    alone.args(arguments(&state, network)).current_dir("/");
    alone.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut holder = alone.spawn()?;
    // It outlives a command, and whoever adopts it reaps it; a daemon outlives it.
    std::thread::spawn(move || holder.wait());
    Ok(())
}

fn as_unit(program: &PathBuf, state: &Path, network: &NetworkName, pending: &Pending) -> io::Result<()> {
    let unit = format!("nsctl-hold-{network}-{}-{}", pending.generation, pending.deadline);
    let mut run = Command::new("systemd-run");
    run.args(["--quiet", "--collect", "--no-ask-password", "--unit", &unit, "--"]).arg(program);
    run.args(arguments(state, network)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if run.status()?.success() { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
}

fn arguments(state: &Path, network: &NetworkName) -> Vec<std::ffi::OsString> {
    vec!["--state".into(), state.into(), "hold".into(), "--network".into(), network.as_str().into()]
}
