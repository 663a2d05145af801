//! A worker that runs: what it says, and how it ends.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::channel::{Awaited, Received};
use super::launch::Launched;
use super::lines::Lines;
use super::message::{Order, Word};
use super::{Fence, LaunchError};

/// Why a worker does not run.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("cannot enter the namespace {}", path.display())]
    Place { path: PathBuf, source: io::Error },
    #[error("cannot listen on {address} in the namespace {}", path.display())]
    Listen { address: SocketAddr, path: PathBuf, source: io::Error },
    #[error("the namespace {} is not the one that it was started in", .0.display())]
    Moved(PathBuf),
    #[error("{0}")]
    Ended(String),
    #[error("it gave no sign of life for {} s, and was killed", .0.as_secs_f32())]
    Silent(Duration),
    #[error("it was not ready within {} s, and was killed", .0.as_secs_f32())]
    NotReady(Duration),
    #[error("it said: {0}")]
    Said(String),
    #[error("it was killed, for it {0}")]
    Protocol(&'static str),
    #[error("cannot tell it what to do")]
    Order(#[source] io::Error),
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    status: Option<ExitStatus>,
    last_line: Option<String>,
}

/// A process, its socket and what it prints. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Option<Child>,
    due: Vec<Fence>,
    pub(crate) speech: Speech,
    pub(crate) lines: Lines,
}

/// The socket to a worker.
#[derive(Debug)]
pub(crate) struct Speech {
    channel: Awaited,
    second: (Instant, u32),
}

/// How many words a second a worker may say.
const A_SECOND: u32 = 100;

impl Running {
    pub(crate) fn of(launched: Launched) -> io::Result<Self> {
        let Launched { mut child, channel, log, due } = launched;
        let watched = Awaited::over(channel).and_then(|channel| Ok((channel, Lines::of(log)?)));
        match watched {
            Ok((channel, lines)) => {
                Ok(Self { child: Some(child), due, speech: Speech { channel, second: (Instant::now(), 0) }, lines })
            }
            Err(error) => {
                child.kill().ok();
                child.wait().ok();
                Err(error)
            }
        }
    }

    /// Whether what it says of its fences has what it must not be without.
    pub(crate) fn is_held_by(&self, fences: &[Fence]) -> bool {
        self.due.iter().all(|fence| fences.contains(fence))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Asks it to end, and kills it when it has not after `grace`.
    pub(crate) async fn end(self, grace: Duration) -> Ended {
        if let Some(pid) = self.child.as_ref().and_then(pid_of) {
            // It is our child and was not waited for: nobody else has this number.
            kill(pid, Signal::SIGTERM).ok();
        }
        self.killed_after(grace).await
    }

    /// Waits for it to end, and kills it after `patience`.
    pub(crate) async fn killed_after(mut self, patience: Duration) -> Ended {
        let mut status = None;
        if let Some(mut child) = self.child.take() {
            status = wait(&mut child, patience).await;
            if status.is_none() {
                kill_all(&child);
                status = wait(&mut child, STUCK).await;
            }
            if status.is_none() {
                // In the hands of a driver that does not answer: it ends when that does, and is waited for until then.
                std::thread::spawn(move || child.wait());
            }
        }
        let lines = std::mem::replace(&mut self.lines, Lines::none());
        Ended { status, last_line: lines.last() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_all(&child);
            child.wait().ok();
        }
    }
}

/// How long a process that was killed may take.
const STUCK: Duration = Duration::from_secs(10);

/// How it ended, if it does within `patience`.
async fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => sleep(Duration::from_millis(2)).await,
            Ok(status) => return status,
            // Somebody else has waited for it: a program that ignores SIGCHLD has the kernel do that.
            Err(_) => return Some(ExitStatus::default()),
        }
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().map(Pid::from_raw)
}

/// Kills it, and what it may have started.
fn kill_all(child: &Child) {
    if let Some(pid) = pid_of(child) {
        killpg(pid, Signal::SIGKILL).ok();
        kill(pid, Signal::SIGKILL).ok();
    }
}

impl Speech {
    /// The next thing it says. A call that is dropped loses nothing.
    pub(crate) async fn word(&mut self) -> Result<Word, Failure> {
        let received = self.channel.word().await;
        if self.second.0.elapsed() >= Duration::from_secs(1) {
            self.second = (Instant::now(), 0);
        }
        self.second.1 += 1;
        if self.second.1 > A_SECOND {
            return Err(Failure::Protocol("says more than anybody wants to know"));
        }
        match received {
            Ok(Received::Message(message, _)) => {
                Word::parse(&message).map_err(|_| Failure::Protocol("said what is no word of a worker"))
            }
            Ok(Received::End) => Err(Failure::Ended("it ended".into())),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Failure::Protocol("said too much at once")),
            // A process that ends with something unread of ours resets the socket.
            Err(_) => Err(Failure::Ended("it ended".into())),
        }
    }

    /// Tells it something.
    pub(crate) fn order(&self, order: &Order, descriptors: &[BorrowedFd]) -> Result<(), Failure> {
        let message = serde_json::to_vec(order).map_err(|error| Failure::Order(error.into()))?;
        self.channel.now().send(&message, descriptors).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Failure::Ended("it ended".into()),
            _ => Failure::Order(error),
        })
    }
}

impl Ended {
    /// How, in plain words.
    pub(crate) fn in_words(&self) -> String {
        let how = match self.status {
            None => "it ended".to_owned(),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("it ended with exit code {code}"),
                (None, Some(signal)) => {
                    let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
                    format!("it was ended by {name}")
                }
                (None, None) => "it ended".to_owned(),
            },
        };
        match &self.last_line {
            Some(line) => format!("{how}: {line}"),
            None => how,
        }
    }
}

/// A failure with all its causes, in one line.
pub(crate) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
