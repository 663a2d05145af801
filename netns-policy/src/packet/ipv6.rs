//! The chain of IPv6 headers, walked as `ipv6_find_hdr` does (net/ipv6/exthdrs_core.c).

use super::{Transport, be16};

const HEADER: usize = 40;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const NONE: u8 = 59;
const DESTINATION: u8 = 60;

/// An extension header.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Extension {
    /// Fragment header of a datagram that is all there (RFC 6946).
    AtomicFragment,
    /// RFC 4302.
    Authentication,
    /// Destination options, padding only.
    Destination,
    /// Hop-by-hop options, padding only.
    HopByHop,
    /// Routing header of type 0 (RFC 5095 forbids it) with no segment left.
    Routing,
}

impl Extension {
    /// Its number as a next header.
    pub fn number(self) -> u8 {
        match self {
            Self::AtomicFragment => FRAGMENT,
            Self::Authentication => AUTHENTICATION,
            Self::Destination => DESTINATION,
            Self::HopByHop => HOP_BY_HOP,
            Self::Routing => ROUTING,
        }
    }

    /// Its bytes in front of `next`.
    pub(super) fn bytes(self, next: u8) -> Vec<u8> {
        match self {
            Self::AtomicFragment => vec![next, 0, 0, 0, 0, 0, 0, 1],
            Self::Authentication => [&[next, 4, 0, 0][..], &[0; 20]].concat(),
            Self::Destination | Self::HopByHop => vec![next, 0, 1, 4, 0, 0, 0, 0],
            Self::Routing => vec![next, 0, 0, 0, 0, 0, 0, 0],
        }
    }
}

/// One header of the chain.
#[derive(Clone, Copy)]
struct Link {
    number: u8,
    next: u8,
    offset: usize,
    len: usize,
    /// Fragment offset and "more" bit, for a fragment header.
    fragment: u16,
}

fn is_extension(number: u8) -> bool {
    matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | NONE | DESTINATION)
}

/// The header `number` at `offset`, if it is an extension header that leads on and its first two bytes are there.
fn link(datagram: &[u8], number: u8, offset: usize) -> Option<Link> {
    let next = *datagram.get(offset)?;
    let units = usize::from(*datagram.get(offset + 1)?);
    let (len, fragment) = match number {
        FRAGMENT => (8, be16(datagram, offset + 2)?),
        AUTHENTICATION => ((units + 2) * 4, 0),
        // The kernel asks for a routing header's four bytes.
        ROUTING if datagram.len() < offset + 4 => return None,
        _ => ((units + 1) * 8, 0),
    };
    Some(Link { number, next, offset, len, fragment })
}

/// Bytes of a well-formed IPv6 datagram that is all there. A jumbogram (RFC 2675) says 0 and counts as empty.
pub(super) fn length(network: &[u8]) -> Option<usize> {
    let total = HEADER + usize::from(be16(network, 4)?);
    (network.first()? >> 4 == 6 && network.len() >= total).then_some(total)
}

/// The transport header: the first that is no extension header, or an authentication header (`IP6_FH_F_AUTH`).
pub(super) fn transport(datagram: &[u8]) -> Option<Transport> {
    let number = *datagram.get(6)?;
    datagram.get(HEADER - 1)?;
    transport_from(datagram, number, HEADER)
}

/// The transport header as connection tracking finds it (`ipv6_skip_exthdr`): behind authentication headers too, and
/// nowhere where a header says that none follows.
pub(super) fn tracked(datagram: &[u8]) -> Option<Transport> {
    let mut found = transport(datagram)?;
    while found.protocol == AUTHENTICATION && !found.beheaded {
        let header = link(datagram, AUTHENTICATION, found.offset)?;
        found = transport_from(datagram, header.next, header.offset + header.len)?;
    }
    (found.protocol != NONE).then_some(found)
}

fn transport_from(datagram: &[u8], mut number: u8, mut offset: usize) -> Option<Transport> {
    loop {
        if !is_extension(number) || number == NONE {
            return at(number, offset);
        }
        let link = link(datagram, number, offset)?;
        if number == FRAGMENT && link.fragment & 0xfff8 != 0 {
            // What follows in the chain of a later fragment is data: the kernel takes the number and no more.
            let known = !is_extension(link.next) || link.next == NONE;
            return known.then_some(Transport { protocol: link.next, offset: 0, beheaded: true });
        }
        if number == AUTHENTICATION {
            return at(number, offset);
        }
        (number, offset) = (link.next, link.offset + link.len);
    }
}

fn at(protocol: u8, offset: usize) -> Option<Transport> {
    (offset <= usize::from(u16::MAX)).then_some(Transport { protocol, offset, beheaded: false })
}

/// The headers in front of the transport header, as far as they can be read; a later fragment's chain ends there.
fn chain(datagram: &[u8]) -> impl Iterator<Item = Link> + '_ {
    let leads_on = |number: u8| is_extension(number) && number != NONE;
    let first = datagram.get(6).copied().filter(|number| leads_on(*number));
    let first = first.and_then(|number| link(datagram, number, HEADER));
    std::iter::successors(first, move |last| {
        let later_fragment = last.number == FRAGMENT && last.fragment & 0xfff8 != 0;
        if later_fragment || !leads_on(last.next) {
            return None;
        }
        link(datagram, last.next, last.offset + last.len)
    })
}

pub(super) fn has_routing_header(datagram: &[u8]) -> bool {
    chain(datagram).any(|link| link.number == ROUTING)
}

pub(super) fn has_fragment_header(datagram: &[u8]) -> bool {
    chain(datagram).any(|link| link.number == FRAGMENT)
}

/// Offset and "more" of the fragment header.
#[cfg(test)]
pub(super) fn fragment_field(datagram: &[u8]) -> Option<u16> {
    chain(datagram).find(|link| link.number == FRAGMENT).map(|link| link.fragment)
}

/// Where the fragment header of a datagram that is all there begins, and where the number that announces it stands.
pub(super) fn atomic_fragment(datagram: &[u8]) -> Option<(usize, usize)> {
    let mut announced = 6;
    for link in chain(datagram) {
        if link.number == FRAGMENT {
            return (link.fragment & 0xfff9 == 0).then_some((link.offset, announced));
        }
        announced = link.offset;
    }
    None
}

pub(super) fn is_fragment(datagram: &[u8]) -> bool {
    chain(datagram).any(|link| link.number == FRAGMENT && link.fragment & 0xfff9 != 0)
}
