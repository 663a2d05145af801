//! nftables as data.
//!
//! A [`Ruleset`] is what one namespace holds: tables, chains, sets, maps and their elements. Rules are kept as the
//! expressions that the kernel runs (nft(8) calls the readable form *statements*; `display` writes that one), because
//! then the same value can be sent, read back, compared byte for byte, printed and interpreted.
//!
//! # Invariants
//!
//! - Keys and data of elements are in the kernel's form: each field in network byte order unless it is a host-order
//!   type (interface index), padded to four bytes.
//! - Equality ignores nothing: counters are not part of this model (see [`Counters`]).

pub mod compile;
pub mod decide;
pub mod delta;
mod display;
pub mod expect;

use std::collections::BTreeMap;

use crate::port::{Ports, Protocol};
use crate::shared::Shared;

/// Address family of a table, as in nft(8).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4 and IPv6 (`NFPROTO_INET`).
    Inet,
    /// Per device, before the IP stack (`NFPROTO_NETDEV`).
    Netdev,
}

/// Everything of ours in one namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ruleset {
    /// Tables by family and name.
    pub tables: BTreeMap<(Family, String), Table>,
}

impl Ruleset {
    /// Gives up chains, sets, rules and elements of its own for equal ones of `other` at the same place, so that memory
    /// holds them once.
    pub fn share(&mut self, other: &Self) {
        for (id, table) in &mut self.tables {
            let Some(other) = other.tables.get(id) else { continue };
            if !table.chains.share(&other.chains) {
                for (name, chain) in &mut table.chains {
                    let rules = other.chains.get(name).map_or(&[][..], |other| &other.rules);
                    for (own, other) in chain.rules.iter_mut().zip(rules) {
                        own.0.share(&other.0);
                    }
                }
            }
            if !table.sets.share(&other.sets) {
                for (name, set) in &mut table.sets {
                    if let Some(other) = other.sets.get(name) {
                        set.elements.share(&other.elements);
                    }
                }
            }
        }
    }
}

/// One table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Table {
    /// Chains by name.
    pub chains: Shared<BTreeMap<String, Chain>>,
    /// Sets and maps by name.
    pub sets: Shared<BTreeMap<String, Set>>,
    /// Its chains hang nowhere (`flags dormant`), so that nothing of it is in force. Never desired.
    pub dormant: bool,
}

/// A chain: a list of rules, with a hook when it is a base chain.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Chain {
    /// Where the kernel enters it; `None` for a chain that is only jumped to.
    pub hook: Option<Hook>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// Where a base chain hangs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: ChainKind,
    /// The hook.
    pub point: HookPoint,
    /// The device of an `ingress` hook.
    pub device: Option<String>,
    /// Lower runs earlier.
    pub priority: i32,
    /// Verdict when no rule gave one: `true` accepts.
    pub policy_accept: bool,
}

/// The type of a base chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChainKind {
    /// `type filter`.
    Filter,
    /// `type nat`: asked for the first packet of a connection only.
    Nat,
}

/// A netfilter hook.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HookPoint {
    /// Netdev family: before the IP stack.
    Ingress,
    /// Before routing.
    Prerouting,
    /// To this namespace.
    Input,
    /// Through this namespace.
    Forward,
    /// From this namespace.
    Output,
    /// After routing.
    Postrouting,
}

/// The [`Expr::Unknown`] that is the first rule of a chain whose hook the model has no word for.
pub const STRANGE_HOOK: &str = "hook";

/// A rule: expressions run from left to right until one does not match.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule(pub Shared<Vec<Expr>>);

impl From<Vec<Expr>> for Rule {
    fn from(mut exprs: Vec<Expr>) -> Self {
        exprs.shrink_to_fit();
        Self(exprs.into())
    }
}

/// A 32-bit register of the nftables virtual machine, 0 to 15 (`NFT_REG32_00` and on). A value longer than four bytes
/// takes the following ones too.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Reg(pub u8);

/// One expression of the nftables virtual machine (linux/netfilter/nf_tables.h).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Expr {
    /// Loads a property of the packet that is not in its bytes.
    Meta {
        /// Which.
        key: MetaKey,
        /// Where to.
        dreg: Reg,
    },
    /// Loads bytes of the packet; does not match when they are not there.
    Payload {
        /// Counted from where.
        base: Base,
        /// Bytes to skip.
        offset: u32,
        /// Bytes to load.
        len: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads 1 when the packet has an IPv6 routing header (next header 43), else 0 (`exthdr rt exists`).
    RoutingHeaderExists {
        /// Where to.
        dreg: Reg,
    },
    /// Loads 1 when the packet has an IPv6 fragment header (next header 44), else 0 (`exthdr frag exists`).
    FragmentHeaderExists {
        /// Where to.
        dreg: Reg,
    },
    /// Compares a register with a constant.
    Cmp {
        /// `true` for `==`, `false` for `!=`.
        equal: bool,
        /// The register.
        sreg: Reg,
        /// The constant.
        data: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`.
    Bitwise {
        /// From.
        sreg: Reg,
        /// To.
        dreg: Reg,
        /// And.
        mask: Vec<u8>,
        /// Exclusive or, of the same length.
        xor: Vec<u8>,
    },
    /// Asks a set; or, with `dreg`, a map, whose answer it loads. Does not match when the key is not there.
    Lookup {
        /// Its name.
        set: String,
        /// First register of the key.
        sreg: Reg,
        /// Where the answer of a map goes.
        dreg: Option<Reg>,
        /// `true` for `!= @set`.
        invert: bool,
    },
    /// Puts an element with a counter into a dynamic set (`update @set { key counter }`); does not match when it is full.
    Update {
        /// Its name.
        set: String,
        /// First register of the key.
        sreg: Reg,
    },
    /// Puts an element with a connection count into a dynamic set (`add @set { key ct count over N }`); matches when
    /// the count is over.
    CountOver {
        /// Its name.
        set: String,
        /// First register of the key.
        sreg: Reg,
        /// The most that does not match.
        count: u32,
    },
    /// Matches when more connections than `count` have come here (`ct count over N`).
    CtCountOver {
        /// The most that does not match.
        count: u32,
    },
    /// Sends the packet out by the interface whose index is in the register; netdev only.
    Fwd {
        /// The register.
        sreg: Reg,
    },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Loads a constant into a register.
    Immediate {
        /// Where to.
        dreg: Reg,
        /// The constant.
        data: Vec<u8>,
    },
    /// Refuses the packet.
    Reject(Reject),
    /// Sends a copy to an NFLOG group.
    Log {
        /// The group.
        group: u16,
        /// The prefix, at most 127 bytes.
        prefix: String,
        /// Bytes of the packet to copy.
        snaplen: u32,
    },
    /// Matches at most so many times; with `over`, matches only beyond that.
    Limit {
        /// How many times a second.
        per_second: u64,
        /// How many at once.
        burst: u32,
        /// `limit rate over`.
        over: bool,
    },
    /// Counts packets and bytes that come here.
    Counter,
    /// Loads a property of the connection.
    Ct {
        /// Which.
        key: CtKey,
        /// Where to.
        dreg: Reg,
    },
    /// Loads the type of the destination address as the routing table sees it (`fib daddr type`), a host-order u32.
    FibDaddrType {
        /// Where to.
        dreg: Reg,
    },
    /// Rewrites the source to the address of the outgoing link; nat chains only.
    Masquerade,
    /// Rewrites the destination; nat chains only.
    Dnat {
        /// `true` for an IPv6 address in `addr`.
        ipv6: bool,
        /// The register with the address.
        addr: Reg,
        /// The register with the port.
        port: Option<Reg>,
    },
    /// Loads the MSS that the route of the packet allows, network order u16 (`rt mtu` of nft(8), `NFT_RT_TCPMSS`).
    RtTcpMss {
        /// Where to.
        dreg: Reg,
    },
    /// Writes the two bytes of a register into the TCP option "maximum segment size" if that is lower.
    SetTcpMss {
        /// The register.
        sreg: Reg,
    },
    /// Read from a kernel, never sent: an expression, by its kernel name, that this model has no word for. It equals
    /// nothing that is desired, so it shows as drift.
    Unknown(String),
}

/// What [`Expr::Meta`] loads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MetaKey {
    /// Index of the incoming interface, host-order u32.
    Iif,
    /// Group of the incoming interface, host-order u32.
    Iifgroup,
    /// Name of the incoming interface, 16 bytes, NUL padded.
    Iifname,
    /// Transport protocol, u8; for IPv6 the one after the extension headers.
    L4proto,
    /// 2 for IPv4, 10 for IPv6, u8.
    Nfproto,
    /// Index of the outgoing interface, host-order u32.
    Oif,
    /// Group of the outgoing interface, host-order u32.
    Oifgroup,
    /// Name of the outgoing interface, 16 bytes, NUL padded.
    Oifname,
    /// EtherType, network-order u16.
    Protocol,
}

/// What [`Expr::Ct`] loads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CtKey {
    /// 0 for the direction of the first packet, 1 for replies, u8.
    Direction,
    /// Bit mask, host-order u32: 1 invalid, 2 established, 4 related, 8 new, 64 untracked.
    State,
    /// Bit mask, host-order u32 (`IPS_*`): 32 is destination NAT.
    Status,
}

/// From where [`Expr::Payload`] counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Base {
    /// The Ethernet header.
    Link,
    /// The IP header.
    Network,
    /// The transport header.
    Transport,
}

/// What becomes of a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It passes this base chain.
    Accept,
    /// It is gone.
    Drop,
    /// Go on in another chain and do not come back.
    Goto(String),
    /// Go on in another chain and come back.
    Jump(String),
    /// Come back to the calling chain.
    Return,
}

/// How a packet is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reject {
    /// `reject with tcp reset`.
    TcpReset,
    /// `reject with icmp type admin-prohibited` (type 3 code 13).
    IcmpAdminProhibited,
    /// `reject with icmpv6 type admin-prohibited` (type 1 code 1).
    Icmp6AdminProhibited,
    /// `reject with icmpx type admin-prohibited`: inet family, either of the two.
    IcmpxAdminProhibited,
}

/// A set, or with `data` a map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Set {
    /// The fields of the key.
    pub key: Vec<Field>,
    /// The type of the answer, for a map.
    pub data: Option<Field>,
    /// Elements are ranges.
    pub interval: bool,
    /// Filled by packets (`flags dynamic`), never by us: its elements are not part of the model.
    pub dynamic: Option<Dynamic>,
    /// Each element counts packets and bytes.
    pub counter: bool,
    /// The elements; empty for a dynamic set.
    pub elements: Members,
}

/// Elements: their keys, and for a map their answers.
pub type Members = Shared<BTreeMap<Key, Option<Vec<u8>>>>;

impl Set {
    /// The ports in a key of it; nothing where it has none.
    pub fn ports_in(&self, key: &Key) -> Option<Ports> {
        let mut at = 0;
        let mut protocol = None;
        for field in &self.key {
            let take = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
            match field {
                Field::InetProto => {
                    protocol = match key.from.get(at)? {
                        6 => Some(Protocol::Tcp),
                        17 => Some(Protocol::Udp),
                        _ => None,
                    }
                }
                Field::InetService => {
                    return Ports::new(protocol?, take(&key.from)?, take(key.to.as_ref().unwrap_or(&key.from))?).ok();
                }
                _ => {}
            }
            at += field.padded_len();
        }
        None
    }
}

/// Bounds of a dynamic set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dynamic {
    /// Most elements.
    pub size: u32,
    /// Seconds after which an element goes; 0 for never.
    pub timeout: u32,
}

/// The key of an element: fields one after the other, each padded to four bytes.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// The key, or the lower end of the range.
    pub from: Vec<u8>,
    /// The upper end (included). An interval set has it for every element, other sets for none; a field that is no
    /// range is equal in both.
    pub to: Option<Vec<u8>>,
}

/// The type of one field of a key, as nft(8) names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Field {
    /// `iface_index`: host-order u32.
    IfaceIndex,
    /// `ipv4_addr`.
    Ipv4Addr,
    /// `ipv6_addr`.
    Ipv6Addr,
    /// `inet_proto`: u8.
    InetProto,
    /// `inet_service`: u16.
    InetService,
    /// `icmp_type`: u8.
    IcmpType,
    /// `icmpv6_type`: u8.
    Icmpv6Type,
}

impl Field {
    /// Bytes of the value itself, before padding.
    pub fn width(self) -> usize {
        match self {
            Self::IfaceIndex | Self::Ipv4Addr => 4,
            Self::Ipv6Addr => 16,
            Self::InetProto | Self::IcmpType | Self::Icmpv6Type => 1,
            Self::InetService => 2,
        }
    }

    /// Bytes in a concatenated key: the value padded to four.
    pub fn padded_len(self) -> usize {
        self.width().next_multiple_of(4)
    }

    /// The number nft(8) gives this type (`enum datatypes` in its datatype.h), which a set carries so that listings
    /// can name its fields.
    pub fn number(self) -> u32 {
        match self {
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::IcmpType => 14,
            Self::IfaceIndex => 20,
            Self::Icmpv6Type => 29,
        }
    }

    /// The name nft(8) gives this type.
    pub fn name(self) -> &'static str {
        match self {
            Self::IfaceIndex => "iface_index",
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::InetProto => "inet_proto",
            Self::InetService => "inet_service",
            Self::IcmpType => "icmp_type",
            Self::Icmpv6Type => "icmpv6_type",
        }
    }
}

/// Packets and bytes by element: (table name, set name, key).
pub type Counters = BTreeMap<(String, String, Key), Count>;

/// How much an element has let pass.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}
