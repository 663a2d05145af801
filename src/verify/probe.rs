//! The dialling side: all probes of one source, many at once, in one loop on a thread inside its namespace.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use netns_policy::port::Protocol;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, SockaddrStorage, connect, getpeername, getsockopt, recv, send, setsockopt, sockopt};

use super::Expected;
use super::listen::{open, scoped};
use super::token::{Kind, LEN, Nonce, Token};

/// One probe, as its source needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub(super) number: usize,
    /// The place whose token is the right answer.
    pub(super) place: usize,
    pub(super) address: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) expected: Expected,
    /// Whether a listener of ours holds the port: then only its token will do.
    pub(super) ours: bool,
}

/// What came of a probe: like [`super::Outcome`], with the number of a place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Token { place: usize },
    Accepted,
    Refused(Errno),
    Silent,
    Failed(Errno),
}

/// The number of a probe and what came of it.
pub(super) type Seen = (usize, Answer);

/// How long silence lasts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) open: Duration,
    pub(super) closed: Duration,
}

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(10);

/// Makes all `tasks` from the namespace of the calling thread, at most `window` at once.
///
/// # Errors
///
/// What epoll_create1(2) or epoll_ctl(2) say. What goes wrong with a single probe is its answer.
pub(super) fn run(
    tasks: &[Task],
    nonce: Nonce,
    window: usize,
    patience: Patience,
    link: &str,
) -> io::Result<Vec<Seen>> {
    let mut source = Source {
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        flights: (0..window).map(|_| None).collect(),
        free: (0..window).rev().collect(),
        seen: Vec::with_capacity(tasks.len()),
        nonce,
        patience,
        scope: if_nametoindex(link).ok(),
    };
    let mut waiting = tasks.iter();
    let mut looked = Instant::now();
    while source.seen.len() < tasks.len() {
        while let Some(slot) = source.free.last().copied() {
            let Some(task) = waiting.next() else { break };
            source.launch(slot, *task)?;
        }
        source.wait()?;
        if looked.elapsed() >= TICK {
            source.expire()?;
            looked = Instant::now();
        }
    }
    Ok(source.seen)
}

/// A namespace that probes.
struct Source {
    epoll: Epoll,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    seen: Vec<Seen>,
    nonce: Nonce,
    patience: Patience,
    scope: Option<u32>,
}

/// A probe under way.
struct Flight {
    task: Task,
    fd: OwnedFd,
    deadline: Instant,
    /// When it is tried once more.
    again: Option<Instant>,
    /// A TCP connection is made: what has been read from it so far.
    stream: Option<Vec<u8>>,
}

impl Source {
    fn launch(&mut self, slot: usize, task: Task) -> io::Result<()> {
        match self.dial(task) {
            Ok(flight) => {
                self.watch(&flight, slot)?;
                self.flights[slot] = Some(flight);
                self.free.pop();
            }
            Err(errno) => self.seen.push((task.number, refusal(errno, task.address))),
        }
        Ok(())
    }

    fn watch(&self, flight: &Flight, slot: usize) -> io::Result<()> {
        let interest = match flight.task.protocol {
            Protocol::Tcp => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP,
            Protocol::Udp => EpollFlags::EPOLLIN,
        };
        // Edges, because a connected socket stays writable; what is there at the start is told too.
        Ok(self.epoll.add(&flight.fd, EpollEvent::new(interest | EpollFlags::EPOLLET, slot as u64))?)
    }

    fn patience_for(&self, expected: Expected) -> Duration {
        match expected {
            Expected::Open => self.patience.open,
            Expected::Closed => self.patience.closed,
        }
    }

    fn dial(&self, task: Task) -> nix::Result<Flight> {
        let target = self.target(task)?;
        let fd = open(task.address, task.protocol)?;
        if task.protocol == Protocol::Tcp {
            // End with a reset: thousands of sockets in TIME_WAIT would use up the source ports (tcp(7), socket(7)).
            setsockopt(&fd, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        }
        match connect(fd.as_raw_fd(), &target) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno),
        }
        let (now, patience) = (Instant::now(), self.patience_for(task.expected));
        let flight = Flight { task, fd, deadline: now + patience, again: Some(now + patience / 2), stream: None };
        if task.protocol == Protocol::Udp {
            self.ask(&flight)?;
        }
        Ok(flight)
    }

    fn target(&self, task: Task) -> nix::Result<SockaddrStorage> {
        let link_local = matches!(task.address, IpAddr::V6(address) if address.is_unicast_link_local());
        let scope = match self.scope {
            None if link_local => return Err(Errno::ENETUNREACH),
            scope => scope.unwrap_or(0),
        };
        Ok(scoped(task.address, task.port, scope))
    }

    fn ask(&self, flight: &Flight) -> nix::Result<()> {
        let number = |n: usize| u32::try_from(n).expect("probes and places were counted at the start");
        let (place, probe) = (number(flight.task.place), number(flight.task.number));
        let request = Token { nonce: self.nonce, kind: Kind::Request, place, probe }.encode();
        send(flight.fd.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL).map(drop)
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut events = vec![EpollEvent::empty(); self.flights.len().min(256)];
        let timeout = u16::try_from(TICK.as_millis()).map_or(EpollTimeout::ZERO, EpollTimeout::from);
        let ready = match self.epoll.wait(&mut events, timeout) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        for event in &events[..ready] {
            let slot = usize::try_from(event.data()).expect("it was made of an index");
            self.advance(slot);
        }
        Ok(())
    }

    fn advance(&mut self, slot: usize) {
        let Some(flight) = &mut self.flights[slot] else { return };
        if let Some(answer) = flight.advance(self.nonce, self.patience.open) {
            self.land(slot, answer);
        }
    }

    fn land(&mut self, slot: usize, answer: Answer) {
        if let Some(flight) = self.flights[slot].take() {
            self.seen.push((flight.task.number, answer));
            self.free.push(slot);
        }
    }

    /// Ends the flights whose time is up, after a last look: this thread may have been late itself.
    fn expire(&mut self) -> io::Result<()> {
        let now = Instant::now();
        for slot in 0..self.flights.len() {
            let Some(flight) = &self.flights[slot] else { continue };
            if flight.deadline <= now {
                self.advance(slot);
                self.give_up(slot, now);
            } else if flight.again.is_some_and(|again| again <= now) {
                self.advance(slot);
                self.insist(slot)?;
            }
        }
        Ok(())
    }

    /// Tries once more: one packet that got lost must not make a port look closed.
    fn insist(&mut self, slot: usize) -> io::Result<()> {
        let Some(mut flight) = self.flights[slot].take() else { return Ok(()) };
        flight.again = None;
        if flight.task.protocol == Protocol::Udp {
            // Its own error comes back by recv(2), if it lasts.
            self.ask(&flight).ok();
        } else if flight.stream.is_none() {
            match self.dial(flight.task) {
                Ok(second) => flight.fd = second.fd,
                Err(errno) => {
                    self.seen.push((flight.task.number, refusal(errno, flight.task.address)));
                    self.free.push(slot);
                    return Ok(());
                }
            }
            self.watch(&flight, slot)?;
        }
        self.flights[slot] = Some(flight);
        Ok(())
    }

    fn give_up(&mut self, slot: usize, now: Instant) {
        match &self.flights[slot] {
            // The last look may have found a connection and given it time to be greeted.
            Some(flight) if flight.deadline <= now => {
                let answer = if flight.stream.is_some() { Answer::Accepted } else { Answer::Silent };
                self.land(slot, answer);
            }
            _ => {}
        }
    }
}

impl Flight {
    /// What is known by now, if it is enough. May be asked at any time.
    fn advance(&mut self, nonce: Nonce, patience: Duration) -> Option<Answer> {
        if self.task.protocol == Protocol::Tcp && self.stream.is_none() {
            match self.connected() {
                Ok(false) => return None,
                Ok(true) if !self.task.ours => return Some(Answer::Accepted),
                Ok(true) => {
                    self.stream = Some(Vec::new());
                    self.deadline = Instant::now() + patience;
                }
                Err(errno) => return Some(refusal(errno, self.task.address)),
            }
        }
        self.read(nonce)
    }

    fn connected(&self) -> nix::Result<bool> {
        match getsockopt(&self.fd, sockopt::SocketError)? {
            0 => Ok(getpeername::<SockaddrStorage>(self.fd.as_raw_fd()).is_ok()),
            errno => Err(Errno::from_raw(errno)),
        }
    }

    fn read(&mut self, nonce: Nonce) -> Option<Answer> {
        let mut bytes = [0; LEN + 1];
        loop {
            let size = match (recv(self.fd.as_raw_fd(), &mut bytes, MsgFlags::empty()), &mut self.stream) {
                (Err(Errno::EAGAIN), _) => return None,
                (Err(Errno::EINTR), _) => continue,
                // A stream that broke was a connection all the same.
                (Err(_), Some(_)) => return Some(Answer::Accepted),
                (Err(errno), None) => return Some(refusal(errno, self.task.address)),
                (Ok(size), None) => return Some(answer(&bytes[..size], nonce)),
                (Ok(0), Some(stream)) => return Some(answer(stream, nonce)),
                (Ok(size), Some(stream)) => {
                    stream.extend_from_slice(&bytes[..size]);
                    stream.len()
                }
            };
            if size >= LEN {
                return self.stream.as_deref().map(|stream| answer(stream, nonce));
            }
        }
    }
}

fn answer(bytes: &[u8], nonce: Nonce) -> Answer {
    match Token::decode(bytes, nonce, Kind::Answer).and_then(|token| usize::try_from(token.place).ok()) {
        Some(place) => Answer::Token { place },
        None => Answer::Accepted,
    }
}

/// What an error says of the port: that the network refused, or nothing, because the fault lies on our own side.
fn refusal(errno: Errno, address: IpAddr) -> Answer {
    match errno {
        Errno::ECONNREFUSED
        | Errno::ECONNRESET
        | Errno::EHOSTUNREACH
        | Errno::ENETUNREACH
        | Errno::EACCES
        | Errno::EPERM => Answer::Refused(errno),
        // For IPv6 it means that there is no source address; for IPv4 that the source ports are used up.
        Errno::EADDRNOTAVAIL if address.is_ipv6() => Answer::Refused(errno),
        // TCP's own answer to silence, where the kernel gives up sooner than we do.
        Errno::ETIMEDOUT => Answer::Silent,
        _ => Answer::Failed(errno),
    }
}
