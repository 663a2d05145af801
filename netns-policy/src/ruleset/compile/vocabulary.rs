//! The few words that rules are written in. Each gives the expressions that nft(8) would make of its statement.

use std::net::IpAddr;

use super::super::{Base, Chain, ChainKind, CtKey, Expr, Field, Hook, HookPoint, Key, MetaKey, Reg, Reject, Rule, Set};
use super::super::{Dynamic, Verdict};

/// IPv4 or IPv6: what differs between the twin chains and maps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Version {
    V4,
    V6,
}

pub(super) const BOTH: [Version; 2] = [Version::V4, Version::V6];

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// `ct state` bits as the kernel numbers them (nf_tables: `NF_CT_STATE_BIT`).
pub(super) const INVALID: u32 = 1;
pub(super) const ESTABLISHED: u32 = 2;
pub(super) const RELATED: u32 = 4;
pub(super) const NEW: u32 = 8;
pub(super) const UNTRACKED: u32 = 64;

/// Destination unreachable, time exceeded (RFC 792).
pub(super) const ICMP_ERRORS: [u8; 2] = [3, 11];
/// Destination unreachable, packet too big, time exceeded (RFC 4443).
pub(super) const ICMP6_ERRORS: [u8; 3] = [1, 2, 3];

impl Version {
    /// `edges4`, `edges6`.
    pub(super) fn named(self, stem: &str) -> String {
        match self {
            Self::V4 => format!("{stem}4"),
            Self::V6 => format!("{stem}6"),
        }
    }

    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn addr(self) -> Field {
        match self {
            Self::V4 => Field::Ipv4Addr,
            Self::V6 => Field::Ipv6Addr,
        }
    }

    pub(super) fn icmp_field(self) -> Field {
        match self {
            Self::V4 => Field::IcmpType,
            Self::V6 => Field::Icmpv6Type,
        }
    }

    pub(super) fn ethertype(self) -> [u8; 2] {
        match self {
            Self::V4 => [0x08, 0x00],
            Self::V6 => [0x86, 0xdd],
        }
    }

    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    pub(super) fn nfproto(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    pub(super) fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }

    pub(super) fn echo_request(self) -> u8 {
        match self {
            Self::V4 => 8,
            Self::V6 => 128,
        }
    }

    pub(super) fn echo_reply(self) -> u8 {
        match self {
            Self::V4 => 0,
            Self::V6 => 129,
        }
    }

    pub(super) fn icmp_errors(self) -> &'static [u8] {
        match self {
            Self::V4 => &ICMP_ERRORS,
            Self::V6 => &ICMP6_ERRORS,
        }
    }

    /// Offsets of the embedded header's fields behind the eight bytes of the ICMP header: protocol, source,
    /// destination, and the ports behind a header without options.
    pub(super) fn embedded(self) -> Embedded {
        match self {
            Self::V4 => Embedded { proto: 8 + 9, saddr: 8 + 12, daddr: 8 + 16, sport: 8 + 20, dport: 8 + 22 },
            Self::V6 => Embedded { proto: 8 + 6, saddr: 8 + 8, daddr: 8 + 24, sport: 8 + 40, dport: 8 + 42 },
        }
    }

    pub(super) fn admin_prohibited(self) -> Reject {
        match self {
            Self::V4 => Reject::IcmpAdminProhibited,
            Self::V6 => Reject::Icmp6AdminProhibited,
        }
    }
}

pub(super) struct Embedded {
    pub(super) proto: u32,
    pub(super) saddr: u32,
    pub(super) daddr: u32,
    pub(super) sport: u32,
    pub(super) dport: u32,
}

/// Something of a packet that is loaded as one field of a key.
#[derive(Clone, Copy)]
pub(super) enum Load {
    Iif,
    L4proto,
    Saddr(Version),
    Daddr(Version),
    Sport,
    Dport,
    IcmpType,
    /// Bytes of the transport header: offset and length.
    Transport(u32, u32),
}

impl Load {
    fn into_reg(self, dreg: Reg) -> (Expr, usize) {
        let meta = |key| Expr::Meta { key, dreg };
        let payload = |base, offset, len| Expr::Payload { base, offset, len, dreg };
        match self {
            Self::Iif => (meta(MetaKey::Iif), 4),
            Self::L4proto => (meta(MetaKey::L4proto), 1),
            Self::Saddr(Version::V4) => (payload(Base::Network, 12, 4), 4),
            Self::Saddr(Version::V6) => (payload(Base::Network, 8, 16), 16),
            Self::Daddr(Version::V4) => (payload(Base::Network, 16, 4), 4),
            Self::Daddr(Version::V6) => (payload(Base::Network, 24, 16), 16),
            Self::Sport => (payload(Base::Transport, 0, 2), 2),
            Self::Dport => (payload(Base::Transport, 2, 2), 2),
            Self::IcmpType => (payload(Base::Transport, 0, 1), 1),
            Self::Transport(offset, len) => (payload(Base::Transport, offset, len), len as usize),
        }
    }
}

/// Loads `fields` one after the other from the first register on.
fn load(fields: &[Load]) -> Vec<Expr> {
    let mut next = 0u8;
    fields
        .iter()
        .map(|field| {
            let (expr, len) = field.into_reg(Reg(next));
            next += u8::try_from(len.div_ceil(4)).expect("a key has at most sixteen registers");
            expr
        })
        .collect()
}

/// A rule, written from left to right.
#[derive(Clone, Default)]
pub(super) struct Words(Vec<Expr>);

pub(super) fn rule() -> Words {
    Words::default()
}

impl Words {
    fn with(mut self, more: impl IntoIterator<Item = Expr>) -> Self {
        self.0.extend(more);
        self
    }

    fn cmp(self, field: Load, equal: bool, data: &[u8]) -> Self {
        self.with(load(&[field])).with([Expr::Cmp { equal, sreg: Reg(0), data: data.to_vec() }])
    }

    fn meta_is(self, key: MetaKey, data: Vec<u8>) -> Self {
        self.with([Expr::Meta { key, dreg: Reg(0) }, Expr::Cmp { equal: true, sreg: Reg(0), data }])
    }

    /// `meta l4proto N`.
    pub(super) fn l4proto(self, number: u8) -> Self {
        self.cmp(Load::L4proto, true, &[number])
    }

    /// `meta nfproto ipv4|ipv6`.
    pub(super) fn nfproto(self, version: Version) -> Self {
        self.meta_is(MetaKey::Nfproto, vec![version.nfproto()])
    }

    /// `meta protocol ip|ip6`.
    pub(super) fn ethertype(self, version: Version) -> Self {
        self.meta_is(MetaKey::Protocol, version.ethertype().to_vec())
    }

    /// `iif lo`: the loopback link has index 1 in every namespace.
    pub(super) fn iif_lo(self) -> Self {
        self.meta_is(MetaKey::Iif, 1u32.to_ne_bytes().to_vec())
    }

    /// `oif lo`.
    pub(super) fn oif_lo(self) -> Self {
        self.meta_is(MetaKey::Oif, 1u32.to_ne_bytes().to_vec())
    }

    /// `iifname "x"`.
    pub(super) fn iifname(self, name: &str) -> Self {
        self.meta_is(MetaKey::Iifname, link_bytes(name))
    }

    /// `oifname "x"`.
    pub(super) fn oifname(self, name: &str) -> Self {
        self.meta_is(MetaKey::Oifname, link_bytes(name))
    }

    /// `iifgroup != G`: what does not come from a link of ours, of whichever network.
    pub(super) fn iif_is_not_ours(self) -> Self {
        self.not_of_group(MetaKey::Iifgroup)
    }

    /// `oifgroup != G`.
    pub(super) fn oif_is_not_ours(self) -> Self {
        self.not_of_group(MetaKey::Oifgroup)
    }

    fn not_of_group(self, key: MetaKey) -> Self {
        let data = crate::desired::GROUP.to_ne_bytes().to_vec();
        self.with([Expr::Meta { key, dreg: Reg(0) }, Expr::Cmp { equal: false, sreg: Reg(0), data }])
    }

    /// `oifname != "x"`.
    pub(super) fn oifname_is_not(self, name: &str) -> Self {
        let load = Expr::Meta { key: MetaKey::Oifname, dreg: Reg(0) };
        self.with([load, Expr::Cmp { equal: false, sreg: Reg(0), data: link_bytes(name) }])
    }

    /// `ip saddr X`, `ip6 saddr X`.
    pub(super) fn saddr(self, address: IpAddr) -> Self {
        self.cmp(Load::Saddr(Version::of(address)), true, &octets(address))
    }

    /// `ip daddr X`, `ip6 daddr X`.
    pub(super) fn daddr(self, address: IpAddr) -> Self {
        self.cmp(Load::Daddr(Version::of(address)), true, &octets(address))
    }

    /// `th dport N`.
    pub(super) fn dport(self, port: u16) -> Self {
        self.cmp(Load::Dport, true, &port.to_be_bytes())
    }

    /// `icmp type N`, `icmpv6 type N`; the protocol has been asked before.
    pub(super) fn icmp_type(self, number: u8) -> Self {
        self.cmp(Load::IcmpType, true, &[number])
    }

    /// The length field of the link header says that a VLAN tag follows (`@ll,96,16 0x8100`).
    pub(super) fn link_type(self, number: u16) -> Self {
        let load = Expr::Payload { base: Base::Link, offset: 12, len: 2, dreg: Reg(0) };
        self.with([load, Expr::Cmp { equal: true, sreg: Reg(0), data: number.to_be_bytes().to_vec() }])
    }

    /// `exthdr rt exists`.
    pub(super) fn routing_header(self) -> Self {
        let load = Expr::RoutingHeaderExists { dreg: Reg(0) };
        self.with([load, Expr::Cmp { equal: true, sreg: Reg(0), data: vec![1] }])
    }

    /// A part of a datagram: `ip frag-off & 0x3fff != 0` (offset or "more"), `exthdr frag exists`.
    pub(super) fn fragment(self, version: Version) -> Self {
        let reg = Reg(0);
        match version {
            Version::V4 => self.with([
                Expr::Payload { base: Base::Network, offset: 6, len: 2, dreg: reg },
                Expr::Bitwise { sreg: reg, dreg: reg, mask: vec![0x3f, 0xff], xor: vec![0; 2] },
                Expr::Cmp { equal: false, sreg: reg, data: vec![0; 2] },
            ]),
            Version::V6 => self
                .with([Expr::FragmentHeaderExists { dreg: reg }, Expr::Cmp { equal: true, sreg: reg, data: vec![1] }]),
        }
    }

    /// `tcp flags & MASK == VALUE`, or `!=`.
    pub(super) fn tcp_flags(self, mask: u8, equal: bool, value: u8) -> Self {
        let reg = Reg(0);
        self.with([
            Expr::Payload { base: Base::Transport, offset: 13, len: 1, dreg: reg },
            Expr::Bitwise { sreg: reg, dreg: reg, mask: vec![mask], xor: vec![0] },
            Expr::Cmp { equal, sreg: reg, data: vec![value] },
        ])
    }

    /// One byte of the transport header, masked.
    pub(super) fn transport_byte(self, offset: u32, mask: u8, value: u8) -> Self {
        let reg = Reg(0);
        let load = Expr::Payload { base: Base::Transport, offset, len: 1, dreg: reg };
        let cmp = Expr::Cmp { equal: true, sreg: reg, data: vec![value] };
        if mask == 0xff {
            return self.with([load, cmp]);
        }
        self.with([load, Expr::Bitwise { sreg: reg, dreg: reg, mask: vec![mask], xor: vec![0] }, cmp])
    }

    /// `FIELDS @set`, or `FIELDS != @set`.
    pub(super) fn among(self, fields: &[Load], set: &str, yes: bool) -> Self {
        let lookup = Expr::Lookup { set: set.to_owned(), sreg: Reg(0), dreg: None, invert: !yes };
        self.with(load(fields)).with([lookup])
    }

    /// Matches when `map` has `FIELDS`: its answer, an index, is never 0. Older kernels refuse to ask a map without
    /// taking its answer, and nft(8) does not list a question whose answer nobody reads.
    pub(super) fn has(self, fields: &[Load], map: &str) -> Self {
        self.ask(fields, map).with([Expr::Cmp { equal: false, sreg: Reg(0), data: vec![0; 4] }])
    }

    fn ask(self, fields: &[Load], map: &str) -> Self {
        let lookup = Expr::Lookup { set: map.to_owned(), sreg: Reg(0), dreg: Some(Reg(0)), invert: false };
        self.with(load(fields)).with([lookup])
    }

    /// `fwd to FIELDS map @map`.
    pub(super) fn fwd(self, fields: &[Load], map: &str) -> Rule {
        self.ask(fields, map).with([Expr::Fwd { sreg: Reg(0) }]).end()
    }

    /// `ct state S`.
    pub(super) fn ct_state(self, bits: u32) -> Self {
        let reg = Reg(0);
        self.with([
            Expr::Ct { key: CtKey::State, dreg: reg },
            Expr::Bitwise { sreg: reg, dreg: reg, mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            Expr::Cmp { equal: false, sreg: reg, data: vec![0; 4] },
        ])
    }

    /// `ct direction reply`.
    pub(super) fn ct_reply(self) -> Self {
        self.with([
            Expr::Ct { key: CtKey::Direction, dreg: Reg(0) },
            Expr::Cmp { equal: true, sreg: Reg(0), data: vec![1] },
        ])
    }

    /// `ct count over N`.
    pub(super) fn ct_count_over(self, count: u32) -> Self {
        self.with([Expr::CtCountOver { count }])
    }

    /// `fib daddr type local` (`RTN_LOCAL` is 2).
    pub(super) fn local_destination(self) -> Self {
        self.with([
            Expr::FibDaddrType { dreg: Reg(0) },
            Expr::Cmp { equal: true, sreg: Reg(0), data: 2u32.to_ne_bytes().to_vec() },
        ])
    }

    /// `update @set { FIELDS counter }`.
    pub(super) fn update(self, fields: &[Load], set: &str) -> Rule {
        self.with(load(fields)).with([Expr::Update { set: set.to_owned(), sreg: Reg(0) }]).end()
    }

    /// `limit rate N/second burst M packets`.
    pub(super) fn limit(self, per_second: u64, burst: u32, over: bool) -> Self {
        self.with([Expr::Limit { per_second, burst, over }])
    }

    pub(super) fn counter(self) -> Self {
        self.with([Expr::Counter])
    }

    pub(super) fn log(self, prefix: &str) -> Rule {
        let log = Expr::Log { group: super::LOG_GROUP, prefix: prefix.to_owned(), snaplen: 64 };
        self.limit(20, 50, false).with([log]).end()
    }

    /// `tcp option maxseg size set rt mtu` for a SYN.
    pub(super) fn clamp_mss(self) -> Rule {
        let clamp = [Expr::RtTcpMss { dreg: Reg(0) }, Expr::SetTcpMss { sreg: Reg(0) }];
        self.l4proto(TCP).tcp_flags(0x02, true, 0x02).with(clamp).end()
    }

    pub(super) fn masquerade(self) -> Rule {
        self.with([Expr::Masquerade]).end()
    }

    pub(super) fn dnat(self, address: IpAddr, port: Option<u16>) -> Rule {
        let to = octets(address);
        let after = Reg(u8::try_from(to.len() / 4).expect("an address has at most sixteen bytes"));
        let mut words = self.with([Expr::Immediate { dreg: Reg(0), data: to }]);
        if let Some(port) = port {
            words = words.with([Expr::Immediate { dreg: after, data: port.to_be_bytes().to_vec() }]);
        }
        let nat = Expr::Dnat { ipv6: address.is_ipv6(), addr: Reg(0), port: port.map(|_| after) };
        words.with([nat]).end()
    }

    pub(super) fn reject(self, reject: Reject) -> Rule {
        self.with([Expr::Reject(reject)]).end()
    }

    pub(super) fn accept(self) -> Rule {
        self.with([Expr::Verdict(Verdict::Accept)]).end()
    }

    pub(super) fn drop(self) -> Rule {
        self.with([Expr::Verdict(Verdict::Drop)]).end()
    }

    pub(super) fn goto(self, chain: &str) -> Rule {
        self.with([Expr::Verdict(Verdict::Goto(chain.to_owned()))]).end()
    }

    pub(super) fn end(self) -> Rule {
        Rule::from(self.0)
    }
}

pub(super) fn base_chain(kind: ChainKind, point: HookPoint, priority: i32, accept: bool, rules: Vec<Rule>) -> Chain {
    Chain { hook: Some(Hook { kind, point, device: None, priority, policy_accept: accept }), rules }
}

pub(super) fn set(key: &[Field]) -> Set {
    let key = key.to_vec();
    Set { key, data: None, interval: false, dynamic: None, counter: false, elements: Default::default() }
}

pub(super) fn interval(key: &[Field]) -> Set {
    Set { interval: true, ..set(key) }
}

pub(super) fn map(key: &[Field]) -> Set {
    Set { data: Some(Field::IfaceIndex), counter: true, ..set(key) }
}

pub(super) fn interval_map(key: &[Field]) -> Set {
    Set { interval: true, ..map(key) }
}

pub(super) fn dynamic(key: &[Field], size: u32, timeout: u32) -> Set {
    // The rule that fills it says `counter`; said of the set too, the kernel would no longer tell it of the rule.
    Set { dynamic: Some(Dynamic { size, timeout }), ..set(key) }
}

/// Builds the key of an element, field by field.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyBuilder {
    from: Vec<u8>,
    to: Vec<u8>,
}

pub(super) fn key() -> KeyBuilder {
    KeyBuilder::default()
}

impl KeyBuilder {
    fn range(mut self, from: &[u8], to: &[u8]) -> Self {
        for (side, bytes) in [(&mut self.from, from), (&mut self.to, to)] {
            side.extend_from_slice(bytes);
            side.resize(side.len().next_multiple_of(4), 0);
        }
        self
    }

    fn value(self, bytes: &[u8]) -> Self {
        self.range(bytes, bytes)
    }

    pub(super) fn iface(self, index: u32) -> Self {
        self.value(&index.to_ne_bytes())
    }

    pub(super) fn addr(self, address: IpAddr) -> Self {
        self.value(&octets(address))
    }

    pub(super) fn addrs(self, from: IpAddr, to: IpAddr) -> Self {
        self.range(&octets(from), &octets(to))
    }

    pub(super) fn proto(self, number: u8) -> Self {
        self.value(&[number])
    }

    pub(super) fn protos(self, lo: u8, hi: u8) -> Self {
        self.range(&[lo], &[hi])
    }

    pub(super) fn port(self, port: u16) -> Self {
        self.value(&port.to_be_bytes())
    }

    pub(super) fn ports(self, lo: u16, hi: u16) -> Self {
        self.range(&lo.to_be_bytes(), &hi.to_be_bytes())
    }

    pub(super) fn icmp_type(self, number: u8) -> Self {
        self.value(&[number])
    }

    pub(super) fn exact(mut self) -> Key {
        self.from.shrink_to_fit();
        Key { from: self.from, to: None }
    }

    pub(super) fn range_key(mut self) -> Key {
        self.from.shrink_to_fit();
        self.to.shrink_to_fit();
        Key { from: self.from, to: Some(self.to) }
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A link name as `meta iifname` loads it: sixteen bytes, NUL padded.
fn link_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}
