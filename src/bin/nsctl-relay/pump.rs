//! Bytes between two connections, in both directions, until both have ended.
//!
//! # Invariants
//!
//! - The end of one direction is passed on and leaves the other one open.
//! - A connection that waits has no buffer: all share one, and what a peer does not take at once is all that is kept.
//! - A connection that breaks is broken on the other side too, so that nobody takes a part for the whole.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep};

/// How much is carried at one time, and the most that is kept of one direction.
pub const CHUNK: usize = 16 << 10;

/// The buffer that all connections share: it is in use only between a read and the write that follows it at once.
pub type Shared = RefCell<Box<[u8; CHUNK]>>;

/// When a byte went through a connection last. A copy is the same.
#[derive(Clone)]
pub struct Moved(Rc<Cell<Instant>>);

impl Moved {
    pub fn now() -> Self {
        Self(Rc::new(Cell::new(Instant::now())))
    }

    fn touch(&self) {
        self.0.set(Instant::now());
    }

    /// How long ago.
    pub fn ago(&self) -> Duration {
        self.0.get().elapsed()
    }
}

/// Carries bytes between the two until both directions have ended, one breaks, or nothing has moved for `idle`.
///
/// # Errors
///
/// What recv(2) or send(2) say; `TimedOut` when nothing moved. Both connections are to be dropped then.
pub async fn pump(
    client: &TcpStream,
    service: &TcpStream,
    shared: &Shared,
    (moved, idle): (&Moved, Duration),
) -> io::Result<()> {
    let both =
        async { tokio::try_join!(one_way(client, service, shared, moved), one_way(service, client, shared, moved)) };
    let still = async {
        loop {
            let left = idle.saturating_sub(moved.ago());
            if left.is_zero() {
                return io::ErrorKind::TimedOut;
            }
            sleep(left).await;
        }
    };
    tokio::select! {
        done = both => done.map(|_| ()),
        kind = still => Err(kind.into()),
    }
}

async fn one_way(from: &TcpStream, to: &TcpStream, shared: &Shared, moved: &Moved) -> io::Result<()> {
    loop {
        // Two fast peers would keep this thread to themselves, and the signs of life would stay away.
        consume_budget().await;
        from.readable().await?;
        let Some(rest) = carry(from, to, &mut shared.borrow_mut()[..])? else { continue };
        moved.touch();
        match rest {
            Rest::End => break,
            Rest::Bytes(rest) => {
                write(to, &rest).await?;
                moved.touch();
            }
        }
    }
    match shutdown(to.as_raw_fd(), Shutdown::Write) {
        // The other side has closed already, both ways.
        Ok(()) | Err(nix::Error::ENOTCONN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// What is left after one step.
enum Rest {
    /// What was read and not taken yet.
    Bytes(Vec<u8>),
    /// There will be no more.
    End,
}

/// One read and one write. Nothing when there was nothing to read.
fn carry(from: &TcpStream, to: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<Rest>> {
    let read = match from.try_read(buffer) {
        Ok(0) => return Ok(Some(Rest::End)),
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    let written = match to.try_write(&buffer[..read]) {
        Ok(written) => written,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    Ok(Some(Rest::Bytes(buffer[written..read].to_vec())))
}

/// Writes all of it.
pub async fn write(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Lets the kernel find out about peers that are gone (within about two minutes) and send small writes at once.
pub fn keep_alive(stream: &TcpStream) {
    // Comfort, nothing else: a connection without it works.
    stream.set_nodelay(true).ok();
    setsockopt(stream, sockopt::KeepAlive, &true).ok();
    setsockopt(stream, sockopt::TcpKeepIdle, &60).ok();
    setsockopt(stream, sockopt::TcpKeepInterval, &15).ok();
    setsockopt(stream, sockopt::TcpKeepCount, &4).ok();
}

/// Makes the end of `stream` a reset, whenever it is dropped.
pub fn break_off(stream: &TcpStream) {
    setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).ok();
}

/// Lets what is still under way arrive after `stream` is dropped.
pub fn end_well(stream: &TcpStream) {
    setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 }).ok();
}
