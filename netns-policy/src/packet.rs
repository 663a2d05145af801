//! A packet: the bytes of one Ethernet frame, and what the kernel makes of them.
//!
//! The oracle of the rules ([`crate::ruleset::decide`]) reads packets as the kernel does, bytes and all, so that the very
//! frame that was decided here can be sent into a real namespace and the two answers compared.
//!
//! - [`Packet`] is what goes over a wire; [`build`] makes well-formed ones, with right lengths and checksums.
//! - [`View`] is what a hook sees of it: `skb->protocol`, the headers, and the transport header as nftables finds it
//!   (nf_tables_ipv4.h, nf_tables_ipv6.h, and `ipv6_find_hdr` of net/ipv6/exthdrs_core.c).
//! - No byte of a packet is trusted: any sequence of bytes has a view or none, and nothing panics.

pub mod build;
mod ipv6;
mod options;
mod rework;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use build::Ends;
pub use ipv6::Extension;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of an 802.1ad tag.
pub const VLAN_SERVICE: u16 = 0x88a8;

const ETHERNET: usize = 14;
const TAG: usize = 4;

/// One Ethernet frame, without its frame check sequence.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Packet(Vec<u8>);

impl Packet {
    /// The frame with these bytes, whatever they are.
    pub fn from_frame(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Its bytes, from the destination's MAC address on.
    pub fn frame(&self) -> &[u8] {
        &self.0
    }

    /// What an ingress hook of the netdev family sees; `None` for a frame that the kernel drops before it gets there.
    pub fn at_ingress(&self) -> Option<View<'_>> {
        View::new(&self.0)
    }

    /// What the hooks of the inet family see: a whole datagram, trimmed to the length that its header gives. `None`
    /// for what `ip_rcv` and `ip6_rcv` drop, and for what is no IP.
    pub fn in_stack(&self) -> Option<View<'_>> {
        View::new(&self.0)?.accepted_by_ip()
    }
}

/// The transport header, as nftables finds it (`struct nft_pktinfo`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Transport {
    /// What `meta l4proto` loads.
    pub protocol: u8,
    /// Where it starts, counted from the network header.
    pub offset: usize,
    /// The datagram is a fragment and not its first, so that there is none. (In IPv6 `offset` is 0 then.)
    pub beheaded: bool,
}

/// A frame as a hook sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct View<'a> {
    frame: &'a [u8],
    /// The tag (TPID, TCI) that the kernel has taken off.
    pub tag: Option<(u16, u16)>,
    /// `skb->protocol`: the EtherType below the tag.
    pub protocol: u16,
    /// From the network header on.
    pub network: &'a [u8],
    /// The transport header; `None` when the kernel makes no sense of the network header.
    pub transport: Option<Transport>,
}

impl<'a> View<'a> {
    /// `eth_type_trans`, and `skb_vlan_untag` for one tag; the rest of a stack of tags stays in front of the network
    /// header, where nobody finds IP.
    fn new(frame: &'a [u8]) -> Option<Self> {
        let outer = be16(frame, 12)?;
        let tagged = outer == VLAN || outer == VLAN_SERVICE;
        // skb_vlan_untag wants the tag and two bytes more, else it frees the frame.
        if tagged && frame.len() < ETHERNET + TAG + 2 {
            return None;
        }
        let tag = if tagged { Some((outer, be16(frame, 14)?)) } else { None };
        let start = if tagged { ETHERNET + TAG } else { ETHERNET };
        let network = frame.get(start..)?;
        let protocol = ethertype(be16(frame, start - 2)?, network);
        Some(Self { frame, tag, protocol, network, transport: transport(protocol, network) })
    }

    /// `ip_rcv_core` and `ip6_rcv_core`.
    fn accepted_by_ip(self) -> Option<Self> {
        let length = match self.protocol {
            IPV4 => ipv4_length(self.network)?,
            IPV6 => ipv6::length(self.network)?,
            _ => return None,
        };
        let network = self.network.get(..length)?;
        if self.protocol == IPV4 && build::checksum(&[&network[..ipv4_header(network)?]]) != 0 {
            return None;
        }
        let transport = transport(self.protocol, network);
        Some(Self { network, transport, ..self })
    }

    /// The same as connection tracking reads it; `None` where that finds no transport header.
    pub(crate) fn tracked(self) -> Option<Self> {
        let transport = if self.protocol == IPV6 { ipv6::tracked(self.network)? } else { self.transport? };
        Some(Self { transport: Some(transport), ..self })
    }

    /// `len` bytes from `offset` of the link-layer header: of the frame as it was sent, because a tag that was taken off
    /// is put back for whoever looks there (`nft_payload_copy_vlan`).
    pub fn link(&self, offset: usize, len: usize) -> Option<&'a [u8]> {
        slice(self.frame, offset, len)
    }

    /// `len` bytes from `offset` of the network header.
    pub fn network(&self, offset: usize, len: usize) -> Option<&'a [u8]> {
        slice(self.network, offset, len)
    }

    /// `len` bytes from `offset` of the transport header.
    ///
    /// `nft_payload_eval` refuses this for a beheaded datagram, but `nft_payload_fast_eval`, which does aligned loads of
    /// one, two and four bytes, does not (seen in Linux 6.18): there the sender chooses what is taken for a port, in
    /// IPv6 in the flow label, because the offset of the transport header stays 0. Rules have to drop fragments by
    /// themselves.
    pub fn transport(&self, offset: usize, len: usize) -> Option<&'a [u8]> {
        let fast = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        let transport = self.transport.filter(|transport| fast || !transport.beheaded)?;
        slice(self.network, transport.offset.checked_add(offset)?, len)
    }

    /// `exthdr rt exists`: whether there is an IPv6 routing header. `None` when this is not IPv6.
    pub fn has_routing_header(&self) -> Option<bool> {
        (self.protocol == IPV6).then(|| ipv6::has_routing_header(self.network))
    }

    /// `exthdr frag exists`: whether there is an IPv6 fragment header. `None` when this is not IPv6.
    pub fn has_fragment_header(&self) -> Option<bool> {
        (self.protocol == IPV6).then(|| ipv6::has_fragment_header(self.network))
    }

    /// The field with offset and "more" of the IPv6 fragment header, where there is one.
    #[cfg(test)]
    pub(crate) fn fragment_field(&self) -> Option<u16> {
        (self.protocol == IPV6).then(|| ipv6::fragment_field(self.network))?
    }

    /// Source and destination of the IP header.
    pub fn ends(&self) -> Option<Ends> {
        match self.protocol {
            IPV4 => Some(Ends::V4 { from: ipv4(self.network, 12)?, to: ipv4(self.network, 16)? }),
            IPV6 => Some(Ends::V6 { from: ipv6_at(self.network, 8)?, to: ipv6_at(self.network, 24)? }),
            _ => None,
        }
    }

    /// Whether a router and a receiver take the options of an IPv4 header: they drop what they cannot read, and a
    /// source route.
    pub fn has_acceptable_options(&self) -> bool {
        self.protocol != IPV4 || options::are_taken(self.network)
    }

    /// Whether its frame is addressed to this machine: to the MAC address that every wire has, or to a group.
    pub fn is_for_this_machine(&self) -> bool {
        self.frame.starts_with(&build::MAC) || self.is_for_a_group()
    }

    /// Whether its frame is addressed to a group. Nobody sends that on.
    pub fn is_for_a_group(&self) -> bool {
        self.frame.first().is_some_and(|first| first & 1 != 0)
    }

    /// Whether this is a part of a datagram, so that a receiver waits for the others. An IPv6 datagram with a fragment
    /// header that says "all of it" is none.
    pub fn is_fragment(&self) -> bool {
        match self.protocol {
            IPV4 => be16(self.network, 6).is_some_and(|field| field & 0x3fff != 0),
            IPV6 => ipv6::is_fragment(self.network),
            _ => false,
        }
    }
}

/// `eth_proto_is_802_3`: what is no EtherType is a length, and the frame 802.3 (raw Novell) or 802.2.
fn ethertype(field: u16, payload: &[u8]) -> u16 {
    match field {
        0x0600.. => field,
        _ if payload.starts_with(&[0xff, 0xff]) => 0x0001,
        _ => 0x0004,
    }
}

/// `nft_set_pktinfo_ipv4_validate` and its IPv6 twin.
fn transport(protocol: u16, network: &[u8]) -> Option<Transport> {
    match protocol {
        IPV4 => {
            ipv4_length(network)?;
            let beheaded = be16(network, 6)? & 0x1fff != 0;
            Some(Transport { protocol: *network.get(9)?, offset: ipv4_header(network)?, beheaded })
        }
        IPV6 => {
            ipv6::length(network)?;
            ipv6::transport(network)
        }
        _ => None,
    }
}

/// Bytes of a well-formed IPv4 header.
fn ipv4_header(network: &[u8]) -> Option<usize> {
    let first = *network.first()?;
    let len = usize::from(first & 0x0f) * 4;
    (first >> 4 == 4 && len >= 20 && network.len() >= 20).then_some(len)
}

/// Bytes of a well-formed IPv4 datagram that is all there.
fn ipv4_length(network: &[u8]) -> Option<usize> {
    let header = ipv4_header(network)?;
    let total = usize::from(be16(network, 2)?);
    (header <= total && total <= network.len()).then_some(total)
}

pub(crate) fn slice(bytes: &[u8], offset: usize, len: usize) -> Option<&[u8]> {
    bytes.get(offset..offset.checked_add(len)?)
}

pub(crate) fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(slice(bytes, offset, 2)?.try_into().ok()?))
}

pub(crate) fn ipv4(bytes: &[u8], offset: usize) -> Option<Ipv4Addr> {
    Some(<[u8; 4]>::try_from(slice(bytes, offset, 4)?).ok()?.into())
}

pub(crate) fn ipv6_at(bytes: &[u8], offset: usize) -> Option<Ipv6Addr> {
    Some(<[u8; 16]>::try_from(slice(bytes, offset, 16)?).ok()?.into())
}

/// What a datagram inside another one (an ICMP error's) looks like: its IP version decides, and it may be cut short.
pub(crate) fn embedded(datagram: &[u8]) -> Option<(IpAddr, IpAddr, Transport)> {
    if datagram.first()? >> 4 == 4 {
        let beheaded = be16(datagram, 6)? & 0x1fff != 0;
        let transport = Transport { protocol: *datagram.get(9)?, offset: ipv4_header(datagram)?, beheaded };
        return Some((ipv4(datagram, 12)?.into(), ipv4(datagram, 16)?.into(), transport));
    }
    let transport = ipv6::transport(datagram)?;
    Some((ipv6_at(datagram, 8)?.into(), ipv6_at(datagram, 24)?.into(), transport))
}
