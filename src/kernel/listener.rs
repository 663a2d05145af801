//! Who listens in a namespace, as sock_diag(7) tells it.
//!
//! Not by proc_net(5): reading `/proc/net/tcp` walks every connection of the machine, ten milliseconds a namespace.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{DecodeError, Emitable, NLM_F_DUMP, Parseable};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netns_policy::port::Protocol;

use super::netlink::NetlinkError;
use super::socket::{NetlinkSocket, Packed};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;

/// A TCP socket in the state `LISTEN`, or a UDP socket that takes datagrams from anybody.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Listener {
    /// The local address; unspecified for any.
    pub address: IpAddr,
    /// The local port.
    pub port: u16,
}

/// The listeners in the namespace of the calling thread.
///
/// # Errors
///
/// When the kernel has no `inet_diag` (`CONFIG_INET_DIAG`, a module in most distributions).
pub fn listeners() -> io::Result<Vec<Listener>> {
    let mut socket = NetlinkSocket::open(NETLINK_SOCK_DIAG)?;
    let mut all = listed(&mut socket, AF_INET, IPPROTO_TCP, StateFlags::LISTEN)?;
    all.extend(listed(&mut socket, AF_INET6, IPPROTO_TCP, StateFlags::LISTEN)?);
    Ok(all)
}

/// Whether somebody listens on this port for others than the machine itself. Where the kernel cannot be asked, nothing is
/// known of one.
pub fn is_taken(protocol: Protocol, port: u16) -> bool {
    let listeners = match protocol {
        Protocol::Tcp => listeners(),
        Protocol::Udp => receivers(),
    };
    let is_there = |one: &Listener| one.port == port && !one.address.is_loopback();
    listeners.is_ok_and(|listeners| listeners.iter().any(is_there))
}

/// The UDP sockets in the namespace of the calling thread that are bound and not connected.
///
/// # Errors
///
/// When the kernel has no `udp_diag` (`CONFIG_INET_UDP_DIAG`).
pub fn receivers() -> io::Result<Vec<Listener>> {
    let mut socket = NetlinkSocket::open(NETLINK_SOCK_DIAG)?;
    // A datagram socket is "closed" as long as it is not connected.
    let mut all = listed(&mut socket, AF_INET, IPPROTO_UDP, StateFlags::CLOSE)?;
    all.extend(listed(&mut socket, AF_INET6, IPPROTO_UDP, StateFlags::CLOSE)?);
    Ok(all)
}

fn listed(
    socket: &mut NetlinkSocket,
    family: u8,
    protocol: u8,
    states: StateFlags,
) -> Result<Vec<Listener>, NetlinkError> {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id };
    let mut payload = vec![0; request.buffer_len()];
    request.emit(&mut payload);
    socket.dump("list listeners", &Packed::new(BY_FAMILY, NLM_F_DUMP, payload), |_, payload| decode(payload))
}

fn decode(payload: &[u8]) -> Result<Option<Listener>, DecodeError> {
    let id = InetResponse::parse(payload)?.header.socket_id;
    Ok(Some(Listener { address: id.source_address, port: id.source_port }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_this_process_is_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = std::net::TcpListener::bind(address).unwrap();
            let wanted = socket.local_addr().unwrap();
            let here = |one: &Listener| one.port == wanted.port() && one.address == wanted.ip();
            assert!(listeners().unwrap().iter().any(here), "{wanted} is not listed");
        }
    }

    #[test]
    fn a_receiver_of_this_process_is_found_and_no_connected_socket() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = std::net::UdpSocket::bind(address).unwrap();
            let wanted = socket.local_addr().unwrap();
            let listed = || {
                let here = |one: &Listener| one.port == wanted.port() && one.address == wanted.ip();
                receivers().map(|all| all.iter().any(here))
            };
            assert!(listed().unwrap(), "{wanted} is not listed");
            socket.connect(wanted).unwrap();
            assert!(!listed().unwrap(), "{wanted} takes datagrams of its own only");
        }
    }
}
