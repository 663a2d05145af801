//! Raw frames: put onto a wire as root in a namespace can, and seen as they come off one.
//!
//! Packet sockets pass no rule of the `inet` family, so what is sent here has not been asked by any lock of the sender's.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, setsockopt, socket, sockopt,
};
use nsctl::kernel::netns::Netns;

/// `PACKET_OUTGOING` of packet(7).
const OUTGOING: u8 = 4;

/// The address of a link in the calling thread's namespace.
///
/// A `sockaddr_ll` cannot be made without `unsafe`, but getifaddrs(3) hands out one for each link.
fn link_address(link: &str) -> io::Result<LinkAddr> {
    getifaddrs()?
        .filter(|found| found.interface_name == link)
        .find_map(|found| found.address.and_then(|address| address.as_link_addr().copied()))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no link {link}")))
}

/// Sends frames out of one link.
pub struct Sender {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Sender {
    pub fn open(netns: &Netns, link: &'static str) -> Self {
        let opened = netns.run(move || {
            let link = link_address(link)?;
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
            Ok(Self { socket, link })
        });
        opened.expect("root in a namespace may open packet sockets")
    }

    /// The frame as it is, with the MAC addresses that it holds.
    pub fn send(&self, frame: &[u8]) -> nix::Result<()> {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty())?;
        assert_eq!(sent, frame.len());
        Ok(())
    }
}

/// Sees every frame on one link.
pub struct Sniffer {
    socket: OwnedFd,
    link: usize,
}

/// What a sniffer saw.
#[derive(Default)]
pub struct Seen {
    /// Frames that came in.
    pub arrived: Vec<Vec<u8>>,
    /// Frames that went out.
    pub left: Vec<Vec<u8>>,
}

impl Sniffer {
    pub fn open(netns: &Netns, link: &'static str) -> Self {
        let opened = netns.run(move || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            setsockopt(&socket, sockopt::RcvBuf, &(1 << 20))?;
            Ok(Self { socket, link: link_address(link)?.ifindex() })
        });
        opened.expect("root in a namespace may open packet sockets")
    }

    /// What was seen since the last time.
    pub fn take(&self) -> Seen {
        let mut seen = Seen::default();
        let mut bytes = vec![0; 1 << 16];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut bytes) {
                Ok((len, Some(from))) if from.ifindex() == self.link => {
                    let list = if from.pkttype() == OUTGOING { &mut seen.left } else { &mut seen.arrived };
                    list.push(bytes[..len].to_vec());
                }
                Ok(_) => {}
                Err(Errno::EAGAIN) => return seen,
                Err(errno) => panic!("a packet socket cannot be read: {errno}"),
            }
        }
    }
}
