//! The worker's own half: its one descriptor, its fences, and the watch it is under.
//!
//! The main function of a worker is [`work`]. It opens what it needs, puts its fences up and says [hello](Post::hello).
//! From then on it takes [orders](Post::order). It ends when the socket does: then nobody watches it any more.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use super::Fence;
use super::channel::{Awaited, Channel, Received};
use super::message::{Count, Order, Word};
use super::running::in_one_line;

/// How long the first order may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a worker cannot work.
#[derive(Debug, Error)]
pub enum PostError {
    /// Somebody called the program by hand.
    #[error("this program is started by nsctl and does nothing on its own: its stdin has to be a socket of nsctl's")]
    Alone,
    /// The other side said what is no order.
    #[error("what was ordered makes no sense")]
    Order(#[source] serde_json::Error),
    /// The names and the descriptors of an order do not fit together.
    #[error("{names} sockets and secrets were announced, and {descriptors} came")]
    Handed {
        /// How many were announced.
        names: usize,
        /// How many came.
        descriptors: usize,
    },
    /// The other side is gone.
    #[error("nobody watches this worker any more")]
    Over,
    /// The socket does not work.
    #[error("cannot speak to nsctl")]
    Io(#[from] io::Error),
}

/// What a worker is to do.
#[derive(Debug)]
pub struct Orders {
    /// The configuration of its kind.
    pub config: serde_json::Value,
    /// Sockets that it is handed, by name.
    pub sockets: BTreeMap<String, OwnedFd>,
    /// Secrets that it is handed, by name, each a file to read.
    pub secrets: BTreeMap<String, OwnedFd>,
    /// How often to give a sign of life.
    pub beat: Duration,
}

/// What can be ordered.
#[derive(Debug)]
pub enum Ordered {
    /// To do this from now on.
    Work(Orders),
    /// To take nothing new, and to end with the last connection.
    Drain,
}

/// The worker's end of the socket.
#[derive(Debug)]
pub struct Post {
    channel: Awaited,
}

impl Post {
    /// Takes the post up, with the first order.
    fn begin(channel: Channel) -> Result<(Self, Orders), PostError> {
        let first = wait(&channel)?;
        // The signal comes with the end of a thread, not of a process (prctl(2)). The thread that started this one has
        // ended before the first order was given.
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)?;
        // Who watches may have ended just before. Then the socket says so.
        match channel.order() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Err(PostError::Over),
        }
        let Ordered::Work(orders) = first else { return Err(PostError::Over) };
        Ok((Self { channel: Awaited::over(channel)? }, orders))
    }

    /// Says who this is and what holds it.
    ///
    /// # Errors
    ///
    /// When nobody listens any more.
    pub fn hello(&self, fences: Vec<Fence>) -> Result<(), PostError> {
        self.say(&Word::Hello { pid: std::process::id(), fences })
    }

    /// Says that what was ordered is in force.
    ///
    /// # Errors
    ///
    /// As [`Post::hello`].
    pub fn ready(&self) -> Result<(), PostError> {
        self.say(&Word::Ready)
    }

    /// Gives a sign of life.
    ///
    /// # Errors
    ///
    /// As [`Post::hello`].
    pub fn alive(&self, count: Count) -> Result<(), PostError> {
        self.say(&Word::Alive(count))
    }

    /// Says that what was ordered cannot be done.
    ///
    /// # Errors
    ///
    /// As [`Post::hello`].
    pub fn failed(&self, why: &str) -> Result<(), PostError> {
        // As JSON a byte can become six.
        let why = why.chars().take(500).collect();
        self.say(&Word::Failed { why })
    }

    /// The next order. A call that is dropped loses nothing.
    ///
    /// # Errors
    ///
    /// When nobody watches any more, or what comes is no order.
    pub async fn order(&self) -> Result<Ordered, PostError> {
        let received = self.channel.order().await?;
        parse(received)
    }

    fn say(&self, word: &Word) -> Result<(), PostError> {
        let message = serde_json::to_vec(word).map_err(io::Error::from)?;
        match self.channel.now().send(&message, &[]) {
            // Who does not listen now will hear the next one.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && matches!(word, Word::Alive(_)) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(PostError::Over),
            done => Ok(done?),
        }
    }
}

/// The main function of a worker: looks at what this process was given, waits for the first order and does `work`, on
/// this thread only. A failure is told to who watches.
pub fn work<E: std::error::Error>(work: impl AsyncFnOnce(&Post, Orders) -> Result<(), E>) -> ExitCode {
    match begin() {
        Ok((runtime, post, orders)) => {
            let done = LocalSet::new().block_on(&runtime, work(&post, orders));
            done.map_or_else(
                |error| {
                    // Who is gone need not be told.
                    post.failed(&in_one_line(&error)).ok();
                    ExitCode::FAILURE
                },
                |()| ExitCode::SUCCESS,
            )
        }
        Err(PostError::Over) => ExitCode::SUCCESS,
        Err(error) => {
            // What was printed is what is shown when a worker ends before it has said anything.
            writeln!(io::stderr(), "{}", in_one_line(&error)).ok();
            ExitCode::from(2)
        }
    }
}

fn begin() -> Result<(Runtime, Post, Orders), PostError> {
    let channel = stdin()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (post, orders) = {
        let _inside = runtime.enter();
        Post::begin(channel)?
    };
    Ok((runtime, post, orders))
}

/// The socket that stdin is to be. Nothing else stays open: what this process inherited by somebody's mistake is closed.
fn stdin() -> Result<Channel, PostError> {
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    if !stdin.metadata()?.file_type().is_socket()
        || socket_type(&stdin).map_err(io::Error::from)? != SocketType::SEQPACKET
    {
        return Err(PostError::Alone);
    }
    close_others(stdin.as_raw_fd());
    Ok(Channel::over(stdin.into()))
}

/// Closes all descriptors but the first three and `kept`. Nobody in this process has opened any yet.
fn close_others(kept: RawFd) {
    let listed = std::fs::read_dir("/proc/self/fd")
        .map(|open| open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect::<Vec<RawFd>>());
    for descriptor in listed.unwrap_or_else(|_| (0..1024).collect()) {
        if descriptor > 2 && descriptor != kept {
            // The one that listed them is among them, and closed already.
            nix::unistd::close(descriptor).ok();
        }
    }
}

/// The first order.
fn wait(channel: &Channel) -> Result<Ordered, PostError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match channel.order() {
            Ok(received) => return parse(received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(PostError::Over);
        }
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(channel.as_fd(), PollFlags::POLLIN)], left).map_err(io::Error::from)?;
    }
}

fn parse(received: Received) -> Result<Ordered, PostError> {
    let Received::Message(message, descriptors) = received else { return Err(PostError::Over) };
    match serde_json::from_slice(&message).map_err(PostError::Order)? {
        Order::Drain => Ok(Ordered::Drain),
        Order::Configure { config, sockets, secrets, beat } => {
            let names = sockets.len() + secrets.len();
            if names != descriptors.len() {
                return Err(PostError::Handed { names, descriptors: descriptors.len() });
            }
            let mut descriptors = descriptors.into_iter();
            let sockets = sockets.into_iter().zip(descriptors.by_ref()).collect();
            let secrets = secrets.into_iter().zip(descriptors).collect();
            let beat = Duration::from_millis(beat.clamp(10, 60_000));
            Ok(Ordered::Work(Orders { config, sockets, secrets, beat }))
        }
    }
}
