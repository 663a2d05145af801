//! The caller's side: one connection or one datagram, from the namespace of the calling thread.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use netns_policy::port::Protocol;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, getsockname, getsockopt, recv, send,
    setsockopt, socket, sockopt,
};

use crate::verify::OsCode;

/// How long an attempt waits for an answer: a SYN that was lost is sent once more within it (tcp(7): after a second).
pub const PATIENCE: Duration = Duration::from_millis(1500);

/// What the caller met.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Met {
    /// A connection was made, or a datagram was answered.
    Answer,
    /// An error came back, from whomever.
    Refusal(OsCode),
    /// Nothing came back.
    Silence,
    /// It was not tried: something is missing before.
    Untried,
    /// The attempt could not be made.
    Nothing(OsCode),
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer => f.write_str("answered"),
            Self::Refusal(code) => write!(f, "refused: {code}"),
            Self::Silence => f.write_str("silent"),
            Self::Untried => f.write_str("not tried"),
            Self::Nothing(code) => write!(f, "not tried: {code}"),
        }
    }
}

/// One attempt, as the caller saw it. It holds its socket, so that its source port stays its own while it is looked for.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) met: Met,
    pub(super) elapsed: Duration,
    /// The port that it came from.
    pub(super) source_port: Option<u16>,
    #[allow(dead_code, reason = "it is held")]
    pub(super) socket: Option<OwnedFd>,
}

/// A question for the servers of the root (RFC 1035, section 4.1): every resolver has an answer.
const ROOT: [u8; 17] = [0x6e, 0x73, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

/// Tries it.
pub(super) fn dial(address: IpAddr, protocol: Protocol, port: u16) -> Dialled {
    let started = Instant::now();
    let (met, source_port, socket) = match attempt(address, protocol, port) {
        Ok((met, port, socket)) => (met, Some(port), Some(socket)),
        Err(errno) => (met_by(errno), None, None),
    };
    Dialled { met, elapsed: started.elapsed(), source_port, socket }
}

fn attempt(address: IpAddr, protocol: Protocol, port: u16) -> nix::Result<(Met, u16, OwnedFd)> {
    let (family, any): (_, IpAddr) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V6(_) => (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let kind = if protocol == Protocol::Tcp { SockType::Stream } else { SockType::Datagram };
    let fd = socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    if protocol == Protocol::Tcp {
        // A reset at the end, and no TIME_WAIT in the service (socket(7)).
        setsockopt(&fd, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
    // Bound before it is connected: a refused socket forgets its port.
    bind(fd.as_raw_fd(), &at(any, 0))?;
    let own = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
    let own = own.as_sockaddr_in().map(|own| own.port()).or(own.as_sockaddr_in6().map(|own| own.port()));
    let met = match connect(fd.as_raw_fd(), &at(address, port)) {
        Ok(()) | Err(Errno::EINPROGRESS) => match protocol {
            Protocol::Tcp => connected(&fd)?,
            Protocol::Udp => asked(&fd, port)?,
        },
        Err(errno) => met_by(errno),
    };
    Ok((met, own.unwrap_or(0), fd))
}

fn connected(fd: &OwnedFd) -> nix::Result<Met> {
    if !wait(fd, PollFlags::POLLOUT)? {
        return Ok(Met::Silence);
    }
    match getsockopt(fd, sockopt::SocketError)? {
        0 => Ok(Met::Answer),
        errno => Ok(met_by(Errno::from_raw(errno))),
    }
}

fn asked(fd: &OwnedFd, port: u16) -> nix::Result<Met> {
    let question = if port == 53 { &ROOT[..] } else { b"nsctl\n" };
    if let Err(errno) = send(fd.as_raw_fd(), question, MsgFlags::MSG_NOSIGNAL) {
        return Ok(met_by(errno));
    }
    if !wait(fd, PollFlags::POLLIN)? {
        return Ok(Met::Silence);
    }
    match recv(fd.as_raw_fd(), &mut [0; 512], MsgFlags::empty()) {
        Ok(_) => Ok(Met::Answer),
        Err(Errno::EAGAIN) => Ok(Met::Silence),
        Err(errno) => Ok(met_by(errno)),
    }
}

/// Whether something happens in time.
fn wait(fd: &OwnedFd, what: PollFlags) -> nix::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(fd.as_fd(), what)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn at(address: IpAddr, port: u16) -> SockaddrStorage {
    match SocketAddr::new(address, port) {
        SocketAddr::V4(at) => SocketAddrV4::into(at),
        SocketAddr::V6(at) => SocketAddrV6::into(at),
    }
}

fn met_by(errno: Errno) -> Met {
    let code = OsCode(errno as i32);
    match errno {
        Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EPERM => {
            Met::Refusal(code)
        }
        Errno::ETIMEDOUT => Met::Silence,
        _ => Met::Nothing(code),
    }
}

/// How long a resolver takes to answer, from the namespace of the calling thread.
pub(super) fn resolver(address: IpAddr) -> io::Result<Dialled> {
    Ok(dial(address, Protocol::Udp, 53))
}
