//! One UDP datagram, put on a link as a frame: past the rules of the namespace it is sent from, which have no exception
//! for it.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};
use std::os::fd::AsRawFd as _;

use super::MAC;

const UDP: u8 = 17;
/// "discard" (RFC 863).
const PORT: u16 = 9;
const ETHERNET: usize = 14;

/// Sends an empty datagram from `from` to the discard port of `to` out of `link`, to the other end of that wire. It
/// dies after `hops` routers.
///
/// # Errors
///
/// `NotFound` when there is no such link in the namespace of the calling thread; what socket(2) and sendto(2) say.
pub fn send(link: &str, from: IpAddr, to: IpAddr, hops: u8) -> io::Result<()> {
    let packet = packet(from, to, hops).ok_or(io::ErrorKind::InvalidInput)?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    sendto(socket.as_raw_fd(), &packet, &link_address(link)?, MsgFlags::empty())?;
    Ok(())
}

/// The address of a link as a packet socket wants it.
fn link_address(link: &str) -> io::Result<LinkAddr> {
    let of_link = getifaddrs()?.filter(|address| address.interface_name == link);
    let mut addresses = of_link.filter_map(|address| address.address?.as_link_addr().copied());
    addresses.next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The whole frame; none when the addresses are of two families.
fn packet(from: IpAddr, to: IpAddr, hops: u8) -> Option<Vec<u8>> {
    let (kind, header, addresses) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (0x0800u16, header4(from.octets(), to.octets(), hops), [from.octets(), to.octets()].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            (0x86dd, [&[0x60, 0, 0, 0, 0, 8, UDP, hops][..], &addresses].concat(), addresses)
        }
        _ => return None,
    };
    let mut frame = [MAC, MAC].concat();
    frame.extend(kind.to_be_bytes());
    debug_assert_eq!(frame.len(), ETHERNET);
    frame.extend(header);
    frame.extend(udp(&addresses));
    Some(frame)
}

fn header4(from: [u8; 4], to: [u8; 4], hops: u8) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, hops, UDP, 0, 0];
    header.extend(from);
    header.extend(to);
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header
}

/// The header of UDP (RFC 768) and nothing behind it. Connection tracking checks the sum.
fn udp(addresses: &[u8]) -> Vec<u8> {
    let [high, low] = PORT.to_be_bytes();
    let mut header = vec![high, low, high, low, 0, 8, 0, 0];
    let pseudo = [addresses, &[0, UDP, 0, 8], &header].concat();
    // Zero would mean that there is no sum.
    let sum = Some(checksum(&pseudo)).filter(|sum| *sum != 0).unwrap_or(0xffff);
    header[6..8].copy_from_slice(&sum.to_be_bytes());
    header
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("two folds leave sixteen bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_finds_both_sums_right() {
        let addresses = |from: &str, to: &str| (from.parse::<IpAddr>().unwrap(), to.parse::<IpAddr>().unwrap());
        let (from, to) = addresses("10.231.3.244", "198.51.100.1");
        let frame = packet(from, to, 2).unwrap();
        assert_eq!(checksum(&frame[14..34]), 0, "IPv4 header");
        let pseudo = [&frame[26..34], &[0, UDP, 0, 8], &frame[34..]].concat();
        assert_eq!(checksum(&pseudo), 0, "UDP over IPv4");
        let (from, to) = addresses("fd00::4", "2001:db8::1");
        let frame = packet(from, to, 2).unwrap();
        assert_eq!((frame.len(), frame[21]), (62, 2));
        let pseudo = [&frame[22..54], &[0, UDP, 0, 8], &frame[54..]].concat();
        assert_eq!(checksum(&pseudo), 0, "UDP over IPv6");
    }

    #[test]
    fn there_is_no_datagram_from_one_family_to_the_other() {
        assert_eq!(packet("10.0.0.1".parse().unwrap(), "::1".parse().unwrap(), 2), None);
    }
}
