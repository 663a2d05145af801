//! Who listens where, as proc_net(5) tells it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netns_policy::port::Protocol;

/// A socket that waits for somebody.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Listener {
    /// TCP in the state `LISTEN`, or UDP without a peer.
    pub protocol: Protocol,
    /// The local address; unspecified for any.
    pub address: IpAddr,
    /// The local port.
    pub port: u16,
}

/// The listeners in the namespace of the calling thread.
///
/// # Errors
///
/// When `/proc` is not there. A kernel without IPv6 has no files for it.
pub fn listeners() -> io::Result<Vec<Listener>> {
    let files = [("tcp", Protocol::Tcp), ("tcp6", Protocol::Tcp), ("udp", Protocol::Udp), ("udp6", Protocol::Udp)];
    let mut all = Vec::new();
    for (file, protocol) in files {
        match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(text) => all.extend(text.lines().skip(1).filter_map(|line| listener(line, protocol))),
            Err(e) if e.kind() == io::ErrorKind::NotFound && file.ends_with('6') => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// `TCP_LISTEN`, and the state of a UDP socket that is not connected (`TCP_CLOSE`).
fn waits(protocol: Protocol, state: &str) -> bool {
    match protocol {
        Protocol::Tcp => state == "0A",
        Protocol::Udp => state == "07",
    }
}

fn listener(line: &str, protocol: Protocol) -> Option<Listener> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    waits(protocol, state).then_some(Listener { protocol, address: self::address(address)?, port })
}

/// Words of 32 bits, each printed as the number that the machine's own byte order makes of it.
fn address(hex: &str) -> Option<IpAddr> {
    let words = hex
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok().map(u32::to_ne_bytes));
    let bytes = words.collect::<Option<Vec<[u8; 4]>>>()?.concat();
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_net_tcp_is_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1";
        let expected = Listener { protocol: Protocol::Tcp, address: Ipv4Addr::LOCALHOST.into(), port: 8080 };
        // The file is in the byte order of the machine that wrote it; this line is from a little-endian one.
        if cfg!(target_endian = "little") {
            assert_eq!(listener(line, Protocol::Tcp), Some(expected));
        }
        assert_eq!(listener(&line.replace(" 0A ", " 01 "), Protocol::Tcp), None);
    }

    #[test]
    fn a_listener_of_this_process_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let here = |one: &Listener| one.port == port && one.address.is_loopback() && one.protocol == Protocol::Tcp;
        assert!(listeners().unwrap().iter().any(here));
    }
}
