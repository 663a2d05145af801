//! `nsctl daemon` beside a network in a sandbox.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::network::Network;

/// How long one waits for what a daemon does within a second on an idle machine.
pub const SOON: Duration = Duration::from_secs(15);

/// A daemon; ended with the test.
pub struct Resident {
    child: Child,
    log: PathBuf,
}

impl Resident {
    /// For this network, ready.
    pub fn start(network: &Network) -> Self {
        Self::start_with(network, |_| {})
    }

    /// The same, started otherwise.
    pub fn start_with(network: &Network, change: impl FnOnce(&mut Command)) -> Self {
        let daemon = Self::spawn(network, change);
        daemon.wait_for("ready");
        daemon
    }

    /// The same, without waiting for it.
    pub fn spawn(network: &Network, change: impl FnOnce(&mut Command)) -> Self {
        let options = network.nsctl.options();
        let log = options.state.with_file_name(format!("daemon-{}.log", std::process::id()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        command.args(["daemon", "--log", "json", "--state"]).arg(&options.state);
        for policy in &options.policy {
            command.arg("--policy").arg(policy);
        }
        let file = File::options().create(true).append(true).open(&log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        change(&mut command);
        let before = fs::read_to_string(&log).unwrap_or_default().len();
        let child = command.spawn().unwrap();
        let daemon = Self { child, log };
        fs::write(daemon.offset(), before.to_string()).unwrap();
        daemon
    }

    fn offset(&self) -> PathBuf {
        self.log.with_extension("offset")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged since it was started.
    pub fn log(&self) -> Vec<Value> {
        let offset: usize = fs::read_to_string(self.offset()).unwrap().parse().unwrap();
        let text = fs::read_to_string(&self.log).unwrap();
        let lines = text[offset..].lines();
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// The messages among it.
    pub fn messages(&self) -> Vec<String> {
        self.log().iter().map(|line| line["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Waits for a message that holds `text`.
    pub fn wait_for(&self, text: &str) -> String {
        let until = Instant::now() + SOON;
        loop {
            let messages = self.messages();
            if let Some(found) = messages.iter().find(|message| message.contains(text)) {
                return found.clone();
            }
            assert!(Instant::now() < until, "the daemon never said `{text}`: {messages:#?}");
            sleep(Duration::from_millis(10));
        }
    }

    /// What the control socket says of the network called `name`.
    pub fn snapshot(&self, network: &Network, name: &str) -> Value {
        let run = &network.nsctl.options().run;
        let answer = nsctl::daemon::ask(run, &nsctl::daemon::Request::Status, SOON).unwrap();
        answer["networks"][name].clone()
    }

    /// Kills it as nobody expects.
    pub fn kill(mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL).unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and returns whether it did so well.
    pub fn stop(mut self) -> bool {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits until it is so; `what` is told when it never is.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !is() {
        assert!(Instant::now() < until, "never: {what}");
        sleep(Duration::from_millis(10));
    }
}
