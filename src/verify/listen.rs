//! The listeners: put where nothing listens yet, they answer every connection and every datagram of the run with a
//! token.
//!
//! A socket stays in the namespace in which it was made, so one thread outside serves all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use netns_policy::port::Protocol;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage,
    accept4, bind, listen, recvmsg, send, sendmsg, setsockopt, socket, sockopt,
};

use super::token::{Kind, LEN, Nonce, Token};
use super::{OsCode, Port};

/// Who holds a port, as [`bind_all`] found it.
#[derive(Debug, Default)]
pub(super) struct Holder {
    /// We do, on every address.
    wildcard: bool,
    /// Another program holds it on some address; these are the ones that we could still take.
    ours: BTreeSet<IpAddr>,
    /// Nobody can: this machine has not the address family, for example.
    pub(super) absent: Option<OsCode>,
}

impl Holder {
    /// Whether what is sent to `address` comes to us and not to another program.
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        self.wildcard || self.ours.contains(&address)
    }
}

/// Who holds which port.
pub(super) type Holders = BTreeMap<Port, Holder>;

/// Where the datagram of a probe was seen, and from whom it came: by number of the probe.
pub(super) type Arrivals = BTreeMap<u32, (usize, SocketAddr)>;

/// A listening socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    port: Port,
}

/// Binds sockets to all `ports` in the namespace of the calling thread.
///
/// # Errors
///
/// What the kernel says, other than that a port is taken or an address is not there.
pub(super) fn bind_all(ports: &[Port], addresses: &[IpAddr], link: &str) -> io::Result<(Vec<Socket>, Holders)> {
    // Without such a link no link-local address is reachable either, and binding to one fails as it should.
    let scope = if_nametoindex(link).unwrap_or(0);
    let (mut sockets, mut holders) = (Vec::new(), Holders::new());
    for &port in ports {
        let mut holder = Holder::default();
        match bind_one(port, any(port.ipv6), 0) {
            Ok(socket) => {
                holder.wildcard = true;
                sockets.push(socket);
            }
            Err(Errno::EADDRINUSE) => {
                for &address in addresses.iter().filter(|address| address.is_ipv6() == port.ipv6) {
                    if let Some(socket) = bind_beside(port, address, scope)? {
                        holder.ours.insert(address);
                        sockets.push(socket);
                    }
                }
            }
            Err(errno @ (Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)) => holder.absent = Some(OsCode(errno as i32)),
            Err(errno) => return Err(errno.into()),
        }
        holders.insert(port, holder);
    }
    Ok((sockets, holders))
}

/// Binds to one address of a port that another program holds somewhere, if it does not hold it there.
fn bind_beside(port: Port, address: IpAddr, scope: u32) -> io::Result<Option<Socket>> {
    match bind_one(port, address, scope) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::EADDRINUSE | Errno::EADDRNOTAVAIL | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn any(ipv6: bool) -> IpAddr {
    if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

fn bind_one(port: Port, address: IpAddr, scope: u32) -> nix::Result<Socket> {
    let fd = open(address, port.protocol)?;
    if port.ipv6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    match port.protocol {
        // Old connections in TIME_WAIT must not look like a listener. For UDP it would let two programs share a port.
        Protocol::Tcp => setsockopt(&fd, sockopt::ReuseAddr, &true)?,
        // A wildcard socket answers from the address that the route prefers, not from the one that was asked.
        Protocol::Udp if port.ipv6 => setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?,
        Protocol::Udp => setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?,
    }
    bind(fd.as_raw_fd(), &scoped(address, port.number, scope))?;
    if port.protocol == Protocol::Tcp {
        listen(&fd, Backlog::MAXCONN)?;
    }
    Ok(Socket { fd, port })
}

/// A nonblocking socket for `address`.
pub(super) fn open(address: IpAddr, protocol: Protocol) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
}

/// The socket address; `scope` is used where the address is link-local.
pub(super) fn scoped(address: IpAddr, port: u16, scope: u32) -> SockaddrStorage {
    match address {
        IpAddr::V4(address) => SocketAddrV4::new(address, port).into(),
        IpAddr::V6(address) => {
            let scope = if address.is_unicast_link_local() { scope } else { 0 };
            SocketAddrV6::new(address, port, 0, scope).into()
        }
    }
}

/// Listeners at work on a thread of their own. Dropping them closes every socket.
#[derive(Debug)]
pub(super) struct Listeners {
    /// Closing our end of it is the sign to stop.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Arrivals>>,
}

impl Listeners {
    /// Starts to answer on `sockets`.
    ///
    /// # Errors
    ///
    /// What epoll_create1(2), epoll_ctl(2) or clone(2) say.
    pub(super) fn start(sockets: Vec<Socket>, nonce: Nonce) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&stopped, EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX))?;
        for (number, socket) in (0..).zip(&sockets) {
            epoll.add(&socket.fd, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        }
        let serve = move || {
            // The other end of the pair has to live as long as epoll watches it.
            let _stopped = stopped;
            Serving { sockets, nonce, arrivals: Arrivals::new() }.until_stopped(&epoll)
        };
        let thread = thread::Builder::new().name("listeners".into()).spawn(serve)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Stops, closes every socket and says what had arrived.
    pub(super) fn finish(mut self) -> Arrivals {
        self.stop = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(arrivals)) => arrivals,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("only `finish` and `drop` take the thread"),
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Serving {
    sockets: Vec<Socket>,
    nonce: Nonce,
    arrivals: Arrivals,
}

impl Serving {
    fn until_stopped(mut self, epoll: &Epoll) -> Arrivals {
        let mut events = vec![EpollEvent::empty(); 256];
        loop {
            // An interrupted wait is tried again; nothing else can fail with a descriptor that is ours.
            let ready = epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
            for event in &events[..ready] {
                if event.data() == u64::MAX {
                    // What has arrived by now counts, even if nobody was told of it yet.
                    (0..self.sockets.len()).for_each(|number| self.serve(number));
                    return self.arrivals;
                }
                let number = usize::try_from(event.data()).expect("it was made of an index");
                self.serve(number);
            }
        }
    }

    fn serve(&mut self, number: usize) {
        match self.sockets[number].port.protocol {
            Protocol::Tcp => self.greet(number),
            Protocol::Udp => while self.echo(number) {},
        }
    }

    /// Accepts, greets and closes. Who dialled ends it with a reset, so that no TIME_WAIT stays here.
    fn greet(&self, number: usize) {
        let Socket { fd, port } = &self.sockets[number];
        let greeting = self.token(port.place, u32::MAX);
        loop {
            match accept4(fd.as_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
                Ok(connection) => {
                    send(connection.as_raw_fd(), &greeting, MsgFlags::MSG_NOSIGNAL).ok();
                }
                Err(Errno::ECONNABORTED | Errno::EINTR) => {}
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                    // Others in this process hold too many files. The connection waits in the queue; do not spin.
                    return thread::sleep(Duration::from_millis(1));
                }
                Err(_) => return,
            }
        }
    }

    /// Takes in one datagram, and answers it if it is a request of this run. Whether there was one.
    fn echo(&mut self, number: usize) -> bool {
        let Socket { fd, port } = &self.sockets[number];
        let (mut bytes, mut space) = ([0; LEN + 1], nix::cmsg_space!([u8; 64]));
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg::<SockaddrStorage>(fd.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty());
        let (size, peer, asked) = match got {
            Ok(got) => (got.bytes, got.address, got.cmsgs().ok().and_then(|mut all| all.next())),
            Err(Errno::EAGAIN) => return false,
            // An ICMP error for an answer that was sent before: there may be more behind it.
            Err(errno) => return matches!(errno, Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::EINTR),
        };
        let request = Token::decode(&bytes[..size.min(bytes.len())], self.nonce, Kind::Request);
        // What strangers send is none of our business: not even a real client of a service that is down is answered.
        if let (Some(Token { probe, .. }), Some(peer)) = (request, peer) {
            let (fd, place) = (fd.as_raw_fd(), port.place);
            answer_from(fd, asked, &self.token(place, probe), &peer).ok();
            if let Some(from) = plain(&peer) {
                self.arrivals.entry(probe).or_insert((place, from));
            }
        }
        true
    }

    fn token(&self, place: usize, probe: u32) -> [u8; LEN] {
        let place = u32::try_from(place).expect("places were counted at the start");
        Token { nonce: self.nonce, kind: Kind::Answer, place, probe }.encode()
    }
}

/// Sends `answer` from the address that was `asked`.
fn answer_from(fd: i32, asked: Option<ControlMessageOwned>, answer: &[u8], peer: &SockaddrStorage) -> nix::Result<()> {
    let parts = [IoSlice::new(answer)];
    let reply = |from: &[ControlMessage]| sendmsg(fd, &parts, from, MsgFlags::MSG_NOSIGNAL, Some(peer));
    match asked {
        Some(ControlMessageOwned::Ipv4PacketInfo(mut asked)) => {
            // ip(7): `ipi_spec_dst` is the local address to send from; the link is left to the route.
            (asked.ipi_ifindex, asked.ipi_spec_dst) = (0, asked.ipi_addr);
            reply(&[ControlMessage::Ipv4PacketInfo(&asked)])
        }
        Some(ControlMessageOwned::Ipv6PacketInfo(mut asked)) => {
            if !Ipv6Addr::from(asked.ipi6_addr.s6_addr).is_unicast_link_local() {
                asked.ipi6_ifindex = 0;
            }
            reply(&[ControlMessage::Ipv6PacketInfo(&asked)])
        }
        _ => reply(&[]),
    }
    .map(drop)
}

fn plain(peer: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = peer.as_sockaddr_in().map(|peer| SocketAddr::V4((*peer).into()));
    v4.or_else(|| peer.as_sockaddr_in6().map(|peer| SocketAddr::V6((*peer).into())))
}
