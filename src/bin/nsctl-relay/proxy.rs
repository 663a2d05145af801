//! The PROXY protocol, version 2: who the client is, in front of what it says.
//!
//! Only what a relay of TCP has to say: `PROXY` over TCP, IPv4 or IPv6, without further fields. Specified in
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, section 2.2.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// By which a receiver knows it.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header for a connection that `client` has opened to `server`.
pub fn header(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let mut header = Vec::with_capacity(52);
    header.extend(SIGNATURE);
    header.push(VERSION_AND_COMMAND);
    match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(server)) => {
            header.extend([TCP_OVER_IPV4, 0, 12]);
            header.extend(client.octets());
            header.extend(server.octets());
        }
        (client, server) => {
            header.extend([TCP_OVER_IPV6, 0, 36]);
            header.extend(as_v6(client).octets());
            header.extend(as_v6(server).octets());
        }
    }
    header.extend(client.port().to_be_bytes());
    header.extend(server.port().to_be_bytes());
    header
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_the_specification() {
        let v4 = header("192.0.2.1:4660".parse().unwrap(), "198.51.100.2:443".parse().unwrap());
        let expected = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\x12\x34\x01\xbb";
        assert_eq!(v4, expected);
        let v6 = header("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
        assert_eq!(v6.len(), 52);
        assert_eq!(v6[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(v6[16..20], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(v6[47..], [2, 0, 1, 0, 2]);
        // A listener for both families sees IPv4 clients in IPv6 clothes.
        let mapped = header("[::ffff:192.0.2.1]:4660".parse().unwrap(), "[::ffff:198.51.100.2]:443".parse().unwrap());
        assert_eq!(mapped, expected);
    }
}
