//! The connections that a namespace remembers, read and deleted one by one (ctnetlink).
//!
//! # Invariants
//!
//! - Nothing is ever flushed: a delete message always names a connection by its exact original tuple, because one without a
//!   tuple deletes them all.
//! - A deletion names the kernel's id too, where it is known, so that a new connection with an old one's tuple lives.
//! - A connection that is gone already is deleted.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_DUMP, NlasIterator, parse_ip, parse_u8, parse_u16_be,
    parse_u32_be,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::netlink::NetlinkError;
use super::socket::{NetlinkSocket, Packed};

/// One direction of a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Tuple {
    /// Who sends in this direction.
    pub source: IpAddr,
    /// Who receives.
    pub destination: IpAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// What distinguishes connections between the two.
    pub transport: Transport,
}

impl Tuple {
    /// The port it comes from; 0 for protocols without ports.
    pub fn source_port(&self) -> u16 {
        match self.transport {
            Transport::Ports { source, .. } => source,
            _ => 0,
        }
    }

    /// The port it goes to; 0 for protocols without ports.
    pub fn destination_port(&self) -> u16 {
        match self.transport {
            Transport::Ports { destination, .. } => destination,
            _ => 0,
        }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, protocol, .. } = self;
        write!(f, "protocol {protocol} from {source} to {destination}")?;
        match self.transport {
            Transport::Ports { source, destination } => write!(f, " ports {source} to {destination}"),
            Transport::Icmp { id, .. } => write!(f, " id {id}"),
            Transport::Bare => Ok(()),
        }
    }
}

/// What distinguishes two connections between the same two addresses.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Transport {
    /// TCP, UDP and whatever else has ports.
    Ports {
        /// The sender's.
        source: u16,
        /// The receiver's.
        destination: u16,
    },
    /// ICMP of either family.
    Icmp {
        /// The identifier of an echo.
        id: u16,
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
    },
    /// Nothing: the kernel tells such protocols apart by their addresses only.
    Bare,
}

/// A connection that the kernel remembers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Flow {
    /// As the first packet had it.
    pub original: Tuple,
    /// As an answer has it: turned round, and what NAT makes of it.
    pub reply: Tuple,
    /// `IPS_*` bits.
    pub status: u32,
    /// The zone that it was put into; 0 is the usual one.
    pub zone: u16,
    /// Its mark.
    pub mark: u32,
    /// The kernel's id for it.
    pub id: Option<u32>,
}

impl Flow {
    /// Whether an answer was seen (`IPS_SEEN_REPLY`).
    pub fn is_answered(&self) -> bool {
        self.status & (1 << 1) != 0
    }

    /// Whether NAT rewrites it (`IPS_SRC_NAT`, `IPS_DST_NAT`).
    pub fn is_translated(&self) -> bool {
        self.status & (3 << 4) != 0
    }
}

/// A ctnetlink socket.
#[derive(Debug)]
pub struct Conntrack {
    socket: NetlinkSocket,
}

impl Conntrack {
    /// A socket in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// What socket(2) says.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: NetlinkSocket::open(NETLINK_NETFILTER)? })
    }

    /// Every connection that the namespace remembers, of both families.
    ///
    /// # Errors
    ///
    /// `EINVAL` from a kernel without nf_conntrack_netlink; `EPERM` without CAP_NET_ADMIN. A namespace in which conntrack was
    /// never used remembers none.
    pub fn dump(&mut self) -> Result<Vec<Flow>, NetlinkError> {
        let question = Packed::new(message_type(GET), NLM_F_DUMP, nfgenmsg(AF_UNSPEC));
        self.socket.dump("list connections", &question, |kind, payload| match kind == message_type(NEW) {
            true => decode(payload).map(Some),
            false => Ok(None),
        })
    }

    /// Deletes this one connection. False when it was gone already.
    ///
    /// # Errors
    ///
    /// When the kernel refuses for another reason.
    pub fn delete(&mut self, flow: &Flow) -> Result<bool, NetlinkError> {
        self.delete_all(std::slice::from_ref(flow)).map(|deleted| deleted == 1)
    }

    /// Deletes the connections that `predicate` holds for, and says how many were there to be deleted.
    ///
    /// What a packet opens anew meanwhile is not seen: close the rule first.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn delete_where(&mut self, predicate: impl Fn(&Flow) -> bool) -> Result<usize, NetlinkError> {
        let flows: Vec<_> = self.dump()?.into_iter().filter(predicate).collect();
        self.delete_all(&flows)
    }

    fn delete_all(&mut self, flows: &[Flow]) -> Result<usize, NetlinkError> {
        let mut deleted = 0;
        for chunk in flows.chunks(CHUNK) {
            let batch: Vec<_> = chunk.iter().map(deletion).collect();
            let operation = |flow: &Flow| format!("delete the connection {}", flow.original);
            let refusals = self
                .socket
                .tell(&batch)
                .map_err(|source| NetlinkError::Io { operation: operation(&chunk[0]), source })?;
            deleted += chunk.len() - refusals.len();
            if let Some((at, refusal)) = refusals.into_iter().find(|(_, refusal)| refusal.errno != Errno::ENOENT) {
                return Err(NetlinkError::Refused { operation: operation(&chunk[at]), refusal });
            }
        }
        Ok(deleted)
    }
}

/// How many deletions go into one sendmsg(2): each may be refused, and the refusals must fit into the receive buffer.
const CHUNK: usize = 128;

// linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const NEW: u16 = 0;
const GET: u16 = 1;
const DELETE: u16 = 2;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const NFGENMSG: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;

const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMP_CODE: u16 = 6;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const CTA_PROTO_ICMPV6_CODE: u16 = 9;

const fn message_type(message: u16) -> u16 {
    NFNL_SUBSYS_CTNETLINK << 8 | message
}

/// `struct nfgenmsg`: the family, version 0, no resource.
fn nfgenmsg(family: u8) -> Vec<u8> {
    vec![family, 0, 0, 0]
}

fn deletion(flow: &Flow) -> Packed {
    let family = if flow.original.source.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut attributes = vec![nested(CTA_TUPLE_ORIG, &encode(&flow.original))];
    attributes.extend(flow.id.map(|id| DefaultNla::new(CTA_ID, id.to_be_bytes().into())));
    attributes.extend((flow.zone != 0).then(|| DefaultNla::new(CTA_ZONE, flow.zone.to_be_bytes().into())));
    let mut payload = nfgenmsg(family);
    payload.extend(bytes(&attributes));
    Packed::new(message_type(DELETE), 0, payload)
}

fn encode(tuple: &Tuple) -> [DefaultNla; 2] {
    let (source, destination) = match tuple.source {
        IpAddr::V4(_) => (CTA_IP_V4_SRC, CTA_IP_V4_DST),
        IpAddr::V6(_) => (CTA_IP_V6_SRC, CTA_IP_V6_DST),
    };
    let ip = [DefaultNla::new(source, octets(tuple.source)), DefaultNla::new(destination, octets(tuple.destination))];
    let mut protocol = vec![DefaultNla::new(CTA_PROTO_NUM, vec![tuple.protocol])];
    protocol.extend(encode_transport(tuple));
    [nested(CTA_TUPLE_IP, &ip), nested(CTA_TUPLE_PROTO, &protocol)]
}

fn encode_transport(tuple: &Tuple) -> Vec<DefaultNla> {
    let be16 = |kind, value: u16| DefaultNla::new(kind, value.to_be_bytes().into());
    match tuple.transport {
        Transport::Ports { source, destination } => {
            vec![be16(CTA_PROTO_SRC_PORT, source), be16(CTA_PROTO_DST_PORT, destination)]
        }
        Transport::Icmp { id, kind, code } if tuple.source.is_ipv4() => vec![
            be16(CTA_PROTO_ICMP_ID, id),
            DefaultNla::new(CTA_PROTO_ICMP_TYPE, vec![kind]),
            DefaultNla::new(CTA_PROTO_ICMP_CODE, vec![code]),
        ],
        Transport::Icmp { id, kind, code } => vec![
            be16(CTA_PROTO_ICMPV6_ID, id),
            DefaultNla::new(CTA_PROTO_ICMPV6_TYPE, vec![kind]),
            DefaultNla::new(CTA_PROTO_ICMPV6_CODE, vec![code]),
        ],
        Transport::Bare => Vec::new(),
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, bytes(attributes))
}

fn bytes(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn decode(payload: &[u8]) -> Result<Flow, DecodeError> {
    let (mut original, mut reply) = (None, None);
    let (mut status, mut zone, mut mark, mut id) = (0, 0, 0, None);
    for attribute in NlasIterator::new(payload.get(NFGENMSG..).unwrap_or_default()) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            CTA_TUPLE_ORIG => original = Some(decode_tuple(value)?),
            CTA_TUPLE_REPLY => reply = Some(decode_tuple(value)?),
            CTA_STATUS => status = parse_u32_be(value)?,
            CTA_MARK => mark = parse_u32_be(value)?,
            CTA_ID => id = Some(parse_u32_be(value)?),
            CTA_ZONE => zone = parse_u16_be(value)?,
            _ => {}
        }
    }
    match (original, reply) {
        (Some(original), Some(reply)) => Ok(Flow { original, reply, status, zone, mark, id }),
        _ => Err("a connection without its two tuples".into()),
    }
}

fn decode_tuple(payload: &[u8]) -> Result<Tuple, DecodeError> {
    let (mut source, mut destination, mut protocol) = (None, None, None);
    for part in NlasIterator::new(payload) {
        let part = part?;
        match part.kind() {
            CTA_TUPLE_IP => {
                for address in NlasIterator::new(part.value()) {
                    let address = address?;
                    match address.kind() {
                        CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = Some(parse_ip(address.value())?),
                        CTA_IP_V4_DST | CTA_IP_V6_DST => destination = Some(parse_ip(address.value())?),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => protocol = Some(decode_protocol(part.value())?),
            _ => {}
        }
    }
    match (source, destination, protocol) {
        (Some(source), Some(destination), Some((protocol, transport))) => {
            Ok(Tuple { source, destination, protocol, transport })
        }
        _ => Err("a tuple without addresses or protocol".into()),
    }
}

fn decode_protocol(payload: &[u8]) -> Result<(u8, Transport), DecodeError> {
    let mut number = 0;
    let (mut source, mut destination) = (None, 0);
    let (mut id, mut kind, mut code) = (None, 0, 0);
    for attribute in NlasIterator::new(payload) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            CTA_PROTO_NUM => number = parse_u8(value)?,
            CTA_PROTO_SRC_PORT => source = Some(parse_u16_be(value)?),
            CTA_PROTO_DST_PORT => destination = parse_u16_be(value)?,
            CTA_PROTO_ICMP_ID | CTA_PROTO_ICMPV6_ID => id = Some(parse_u16_be(value)?),
            CTA_PROTO_ICMP_TYPE | CTA_PROTO_ICMPV6_TYPE => kind = parse_u8(value)?,
            CTA_PROTO_ICMP_CODE | CTA_PROTO_ICMPV6_CODE => code = parse_u8(value)?,
            _ => {}
        }
    }
    let transport = match (source, id) {
        (Some(source), _) => Transport::Ports { source, destination },
        (None, Some(id)) => Transport::Icmp { id, kind, code },
        (None, None) => Transport::Bare,
    };
    Ok((number, transport))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transport() -> impl Strategy<Value = Transport> {
        prop_oneof![
            any::<(u16, u16)>().prop_map(|(source, destination)| Transport::Ports { source, destination }),
            any::<(u16, u8, u8)>().prop_map(|(id, kind, code)| Transport::Icmp { id, kind, code }),
            Just(Transport::Bare),
        ]
    }

    fn ends() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (a.into(), b.into())),
            any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (a.into(), b.into())),
        ]
    }

    proptest! {
        #[test]
        fn a_tuple_reads_back_as_it_was_written(
            (source, destination) in ends(),
            protocol: u8,
            transport in transport(),
        ) {
            let tuple = Tuple { source, destination, protocol, transport };
            prop_assert_eq!(decode_tuple(&bytes(&encode(&tuple))).unwrap(), tuple);
        }

        #[test]
        fn no_payload_can_hurt(payload in prop::collection::vec(any::<u8>(), 0..120)) {
            decode(&payload).ok();
            decode_tuple(&payload).ok();
        }
    }
}
