//! A panel and a lock, written by hand: every shape of rule, set and map that the product sends.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use netns_policy::ruleset::{
    Base, Chain, ChainKind, CtKey, Dynamic, Expr, Family, Field, Hook, HookPoint, Key, Members, MetaKey, Reg, Reject,
    Rule, Ruleset, Set, Table, Verdict,
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const FIN_TO_ACK: u8 = 0x02 | 0x10;

/// Appends expressions to a rule; registers are given as their numbers.
#[derive(Clone, Default)]
pub struct Build(Vec<Expr>);

pub fn build() -> Build {
    Build::default()
}

impl Build {
    fn with(mut self, expr: Expr) -> Self {
        self.0.push(expr);
        self
    }
    pub fn end(self) -> Rule {
        Rule::from(self.0)
    }
    fn meta(self, key: MetaKey, dreg: u8) -> Self {
        self.with(Expr::Meta { key, dreg: Reg(dreg) })
    }
    fn load(self, base: Base, offset: u32, len: u32, dreg: u8) -> Self {
        self.with(Expr::Payload { base, offset, len, dreg: Reg(dreg) })
    }
    fn cmp(self, equal: bool, data: impl AsRef<[u8]>) -> Self {
        self.with(Expr::Cmp { equal, sreg: Reg(0), data: data.as_ref().to_vec() })
    }
    fn mask(self, mask: &[u8]) -> Self {
        let xor = vec![0; mask.len()];
        self.with(Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), mask: mask.to_vec(), xor })
    }
    pub fn ask(self, set: &str, invert: bool) -> Self {
        self.with(Expr::Lookup { set: set.into(), sreg: Reg(0), dreg: None, invert })
    }
    pub fn update(self, set: &str) -> Self {
        self.with(Expr::Update { set: set.into(), sreg: Reg(0) })
    }
    fn fwd(self, map: &str) -> Rule {
        self.with(Expr::Lookup { set: map.into(), sreg: Reg(0), dreg: Some(Reg(0)), invert: false })
            .with(Expr::Fwd { sreg: Reg(0) })
            .end()
    }
    /// Asks whether a map has the key. Older kernels want the answer of a map to be taken, and nft(8)
    /// does not print a question whose answer nobody reads: so it is compared with 0, which is no interface.
    fn test_map(self, map: &str, scratch: u8) -> Self {
        self.with(Expr::Lookup { set: map.into(), sreg: Reg(0), dreg: Some(Reg(scratch)), invert: false })
            .with(Expr::Cmp { equal: false, sreg: Reg(scratch), data: vec![0; 4] })
    }
    pub fn accept(self) -> Rule {
        self.with(Expr::Verdict(Verdict::Accept)).end()
    }
    pub fn drop(self) -> Rule {
        self.with(Expr::Verdict(Verdict::Drop)).end()
    }
    fn goto(self, chain: &str) -> Rule {
        self.with(Expr::Verdict(Verdict::Goto(chain.into()))).end()
    }
    fn reject(self, how: Reject) -> Rule {
        self.with(Expr::Reject(how)).end()
    }
    fn counter(self) -> Self {
        self.with(Expr::Counter)
    }

    fn protocol(self, ethertype: u16) -> Self {
        self.meta(MetaKey::Protocol, 0).cmp(true, ethertype.to_be_bytes())
    }
    pub fn nfproto(self, v6: bool) -> Self {
        self.meta(MetaKey::Nfproto, 0).cmp(true, [if v6 { 10 } else { 2 }])
    }
    pub fn l4(self, proto: u8) -> Self {
        self.meta(MetaKey::L4proto, 0).cmp(true, [proto])
    }
    pub fn flags(self, mask: u8, equal: bool, value: u8) -> Self {
        self.l4(TCP).load(Base::Transport, 13, 1, 0).mask(&[mask]).cmp(equal, [value])
    }
    fn icmp_type(self, kind: u8) -> Self {
        self.load(Base::Transport, 0, 1, 0).cmp(true, [kind])
    }
    pub fn ct_state(self, mask: u32) -> Self {
        self.with(Expr::Ct { key: CtKey::State, dreg: Reg(0) }).mask(&mask.to_ne_bytes()).cmp(false, [0; 4])
    }
    pub fn daddr(self, v6: bool) -> Self {
        if v6 { self.load(Base::Network, 24, 16, 0) } else { self.load(Base::Network, 16, 4, 0) }
    }
    pub fn saddr(self, v6: bool) -> Self {
        if v6 { self.load(Base::Network, 8, 16, 0) } else { self.load(Base::Network, 12, 4, 0) }
    }
    /// `iif . saddr`, from register 0 on.
    fn iif_saddr(self, v6: bool) -> Self {
        let (offset, len) = if v6 { (8, 16) } else { (12, 4) };
        self.meta(MetaKey::Iif, 0).load(Base::Network, offset, len, 1)
    }
    fn iif_daddr(self, v6: bool) -> Self {
        let (offset, len) = if v6 { (24, 16) } else { (16, 4) };
        self.meta(MetaKey::Iif, 0).load(Base::Network, offset, len, 1)
    }
    fn pair(self, v6: bool) -> Self {
        let (offset, len, dreg) = if v6 { (24, 16, 5) } else { (16, 4, 2) };
        self.iif_saddr(v6).load(Base::Network, offset, len, dreg)
    }
    /// `iif . saddr . daddr . l4proto . port`, with the port at this offset.
    fn flow(self, v6: bool, port: u32) -> Self {
        let at = if v6 { 9 } else { 3 };
        self.pair(v6).meta(MetaKey::L4proto, at).load(Base::Transport, port, 2, at + 1)
    }
    /// `addr . l4proto . dport`, addr from or to.
    pub fn lock_flow(self, v6: bool, from: bool) -> Self {
        let at = if v6 { 4 } else { 1 };
        let addr = if from { self.saddr(v6) } else { self.daddr(v6) };
        addr.meta(MetaKey::L4proto, at).load(Base::Transport, 2, 2, at + 1)
    }
}

pub fn ifname(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

pub const FLOW4: [Field; 5] =
    [Field::IfaceIndex, Field::Ipv4Addr, Field::Ipv4Addr, Field::InetProto, Field::InetService];
pub const FLOW6: [Field; 5] =
    [Field::IfaceIndex, Field::Ipv6Addr, Field::Ipv6Addr, Field::InetProto, Field::InetService];

pub fn set(key: &[Field]) -> Set {
    Set { key: key.to_vec(), data: None, interval: false, dynamic: None, counter: false, elements: Default::default() }
}

pub fn map(key: &[Field]) -> Set {
    Set { data: Some(Field::IfaceIndex), counter: true, ..set(key) }
}

/// Pads each part to four bytes and joins them.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::new();
    for part in parts {
        key.extend_from_slice(part);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    key
}

pub fn exact(parts: &[&[u8]]) -> Key {
    Key { from: join(parts), to: None }
}

pub fn flow4(iif: u32, from: u8, to: u8, proto: u8, port: u16) -> Key {
    let (from, to) = ([10, 203, 0, from], [10, 203, 0, to]);
    exact(&[&iif.to_ne_bytes(), &from, &to, &[proto], &port.to_be_bytes()])
}

pub fn address6(last: u16) -> [u8; 16] {
    Ipv6Addr::new(0xfd00, 0xcb, 0, 0, 0, 0, 0, last).octets()
}

fn flow6(iif: u32, from: u16, to: u16, proto: u8, port: u16) -> Key {
    exact(&[&iif.to_ne_bytes(), &address6(from), &address6(to), &[proto], &port.to_be_bytes()])
}

fn prefix4(text: &str, len: u32) -> Key {
    let from = u32::from(text.parse::<Ipv4Addr>().unwrap());
    let to = from | u32::MAX.checked_shr(len).unwrap_or(0);
    Key { from: from.to_be_bytes().to_vec(), to: Some(to.to_be_bytes().to_vec()) }
}

fn prefix6(text: &str, len: u32) -> Key {
    let from = u128::from(text.parse::<Ipv6Addr>().unwrap());
    let to = from | u128::MAX.checked_shr(len).unwrap_or(0);
    Key { from: from.to_be_bytes().to_vec(), to: Some(to.to_be_bytes().to_vec()) }
}

pub fn range4(from: u32, to: u32) -> Key {
    Key { from: from.to_be_bytes().to_vec(), to: Some(to.to_be_bytes().to_vec()) }
}

/// A base chain for what this namespace sends.
pub fn output(rules: Vec<Rule>) -> Chain {
    Chain { hook: base(ChainKind::Filter, HookPoint::Output, None, 0, true), rules }
}

fn answers(keys: impl IntoIterator<Item = (Key, u32)>) -> Members {
    keys.into_iter().map(|(key, index)| (key, Some(index.to_ne_bytes().to_vec()))).collect()
}

pub fn members(keys: impl IntoIterator<Item = Key>) -> Members {
    keys.into_iter().map(|key| (key, None)).collect()
}

fn types(key: Field, kinds: &[u8]) -> Set {
    Set { elements: members(kinds.iter().map(|kind| exact(&[&[*kind]]))), ..set(&[key]) }
}

fn base(kind: ChainKind, point: HookPoint, device: Option<&str>, priority: i32, policy_accept: bool) -> Option<Hook> {
    Some(Hook { kind, point, device: device.map(str::to_owned), priority, policy_accept })
}

/// Links as (name, index).
pub type Links<'a> = &'a [(&'a str, u32)];

/// The fabric's table for wires a, b and c.
pub fn panel(links: Links<'_>) -> Table {
    let mut table = Table { sets: panel_sets(links).into(), chains: BTreeMap::new().into(), dormant: false };
    let chain = |rules| Chain { hook: None, rules };
    table.chains.insert("p4".into(), chain(panel4()));
    table.chains.insert("p6".into(), chain(panel6()));
    table.chains.insert("panel".into(), chain(panel_entry()));
    for (name, _) in links {
        let hook = base(ChainKind::Filter, HookPoint::Ingress, Some(name), 0, false);
        table.chains.insert(format!("i_{name}"), Chain { hook, rules: vec![build().goto("panel")] });
    }
    table
}

fn panel_entry() -> Vec<Rule> {
    vec![
        build().load(Base::Link, 12, 2, 0).cmp(true, [0x81, 0x00]).counter().drop(),
        build().load(Base::Link, 12, 2, 0).cmp(true, [0x88, 0xa8]).counter().drop(),
        build().protocol(0x0800).goto("p4"),
        build().protocol(0x86dd).goto("p6"),
        build().counter().drop(),
    ]
}

fn panel4() -> Vec<Rule> {
    let ip = || build().protocol(0x0800);
    let embedded = |b: Build| {
        b.meta(MetaKey::Iif, 0)
            .load(Base::Transport, 24, 4, 1)
            .load(Base::Network, 16, 4, 2)
            .load(Base::Transport, 17, 1, 3)
            .load(Base::Transport, 30, 2, 4)
    };
    vec![
        ip().flow(false, 2).fwd("fw4"),
        build().flags(FIN_TO_ACK, false, 2).protocol(0x0800).flow(false, 0).fwd("rp4"),
        build().l4(UDP).protocol(0x0800).flow(false, 0).fwd("rp4"),
        ip().l4(ICMP).pair(false).load(Base::Transport, 0, 1, 3).fwd("ic4"),
        embedded(
            ip().iif_saddr(false)
                .ask("src4", false)
                .l4(ICMP)
                .load(Base::Transport, 0, 1, 0)
                .ask("errors4", false)
                .load(Base::Transport, 8, 1, 0)
                .cmp(true, [0x45]),
        )
        .fwd("rp4"),
        ip().daddr(false).ask("priv4", true).iif_saddr(false).fwd("gw4"),
        ip().saddr(false).ask("priv4", true).iif_daddr(false).fwd("gr4"),
        ip().iif_saddr(false).ask("src4", true).counter().drop(),
        ip().iif_saddr(false).test_map("gw4", 8).counter().end(),
        ip().flow(false, 2).update("den4").end(),
        build()
            .with(Expr::Limit { per_second: 50, burst: 5, over: false })
            .with(Expr::Log { group: 5, prefix: "panel-deny ".into(), snaplen: 0 })
            .end(),
        build().flags(4, true, 4).drop(),
        build().l4(TCP).reject(Reject::TcpReset),
        ip().meta(MetaKey::L4proto, 0).cmp(false, [ICMP]).reject(Reject::IcmpAdminProhibited),
        ip().l4(ICMP).icmp_type(8).reject(Reject::IcmpAdminProhibited),
        build().drop(),
    ]
}

fn panel6() -> Vec<Rule> {
    let ip = || build().protocol(0x86dd);
    let routing = |b: Build| b.with(Expr::RoutingHeaderExists { dreg: Reg(0) }).cmp(true, [1]);
    vec![
        routing(ip()).counter().drop(),
        ip().flow(true, 2).fwd("fw6"),
        build().flags(FIN_TO_ACK, false, 2).protocol(0x86dd).flow(true, 0).fwd("rp6"),
        build().l4(UDP).protocol(0x86dd).flow(true, 0).fwd("rp6"),
        ip().l4(ICMP6).pair(true).load(Base::Transport, 0, 1, 9).fwd("ic6"),
        ip().iif_saddr(true)
            .ask("src6", false)
            .l4(ICMP6)
            .load(Base::Transport, 0, 1, 0)
            .ask("errors6", false)
            .load(Base::Transport, 8, 1, 0)
            .mask(&[0xf0])
            .cmp(true, [0x60])
            .meta(MetaKey::Iif, 0)
            .load(Base::Transport, 32, 16, 1)
            .load(Base::Network, 24, 16, 5)
            .load(Base::Transport, 14, 1, 9)
            .load(Base::Transport, 50, 2, 10)
            .fwd("rp6"),
        ip().daddr(true).ask("priv6", true).iif_saddr(true).fwd("gw6"),
        ip().saddr(true).ask("priv6", true).iif_daddr(true).fwd("gr6"),
        ip().iif_saddr(true).ask("src6", true).counter().drop(),
        ip().flow(true, 2).update("den6").end(),
        build()
            .with(Expr::Limit { per_second: 5, burst: 10, over: true })
            .with(Expr::Log { group: 5, prefix: "panel-deny6 ".into(), snaplen: 100 })
            .end(),
        build().l4(TCP).reject(Reject::TcpReset),
        ip().meta(MetaKey::L4proto, 0).cmp(false, [ICMP6]).reject(Reject::Icmp6AdminProhibited),
        ip().l4(ICMP6).icmp_type(128).reject(Reject::Icmp6AdminProhibited),
        build().drop(),
    ]
}

fn panel_sets(links: Links<'_>) -> BTreeMap<String, Set> {
    let [a, b, c] = [links[0].1, links[1].1, links[2].1];
    let fw4 = [(flow4(a, 1, 2, TCP, 80), b), (flow4(a, 1, 2, UDP, 53), b), (flow4(c, 3, 2, TCP, 8081), b)];
    let rp4 = [(flow4(b, 2, 1, TCP, 80), a), (flow4(b, 2, 1, UDP, 53), a), (flow4(b, 2, 3, TCP, 8081), c)];
    let fw6 = [(flow6(a, 1, 2, TCP, 80), b), (flow6(c, 3, 2, TCP, 8081), b)];
    let rp6 = [(flow6(b, 2, 1, TCP, 80), a), (flow6(b, 2, 3, TCP, 8081), c)];
    let source4 = |index: u32, last| exact(&[&index.to_ne_bytes(), &[10, 203, 0, last]]);
    let source6 = |index: u32, last| exact(&[&index.to_ne_bytes(), &address6(last)]);
    let echo4 = |i: u32, kind| exact(&[&i.to_ne_bytes(), &[10, 203, 0, 1], &[10, 203, 0, 2], &[kind]]);
    let echo6 = |i: u32, kind| exact(&[&i.to_ne_bytes(), &address6(1), &address6(2), &[kind]]);
    let (iif, v4, v6) = (Field::IfaceIndex, Field::Ipv4Addr, Field::Ipv6Addr);
    let denied = Some(Dynamic { size: 4096, timeout: 3600 });
    let private4 = [
        prefix4("0.0.0.0", 8),
        prefix4("10.0.0.0", 8),
        prefix4("100.64.0.0", 10),
        prefix4("169.254.169.254", 32),
        prefix4("172.16.0.0", 12),
        prefix4("224.0.0.0", 3),
        Key { from: vec![192, 0, 2, 3], to: Some(vec![192, 0, 2, 9]) },
    ];
    let private6 = [prefix6("::", 16), prefix6("fc00::", 7), prefix6("fe80::", 10), prefix6("ff00::", 8)];
    let ranged = Key {
        from: join(&[&a.to_ne_bytes(), &[10, 203, 0, 1], &[192, 0, 2, 0], &[TCP], &1000u16.to_be_bytes()]),
        to: Some(join(&[&a.to_ne_bytes(), &[10, 203, 0, 1], &[192, 0, 2, 255], &[TCP], &2000u16.to_be_bytes()])),
    };
    [
        ("fw4", Set { elements: answers(fw4), ..map(&FLOW4) }),
        ("rp4", Set { elements: answers(rp4), ..map(&FLOW4) }),
        ("fw6", Set { elements: answers(fw6), ..map(&FLOW6) }),
        ("rp6", Set { elements: answers(rp6), ..map(&FLOW6) }),
        ("ic4", Set { elements: answers([(echo4(a, 8), b)]), ..map(&[iif, v4, v4, Field::IcmpType]) }),
        ("ic6", Set { elements: answers([(echo6(a, 128), b)]), ..map(&[iif, v6, v6, Field::Icmpv6Type]) }),
        ("gw4", Set { elements: answers([(source4(a, 1), c)]), ..map(&[iif, v4]) }),
        ("gr4", Set { elements: answers([(source4(c, 1), a)]), ..map(&[iif, v4]) }),
        ("gw6", map(&[iif, v6])),
        ("gr6", map(&[iif, v6])),
        ("ranges4", Set { interval: true, elements: answers([(ranged, c)]), ..map(&FLOW4) }),
        ("src4", Set { elements: members([source4(a, 1), source4(b, 2), source4(c, 3)]), ..set(&[iif, v4]) }),
        ("src6", Set { elements: members([source6(a, 1), source6(b, 2)]), ..set(&[iif, v6]) }),
        ("priv4", Set { interval: true, elements: members(private4), ..set(&[v4]) }),
        ("priv6", Set { interval: true, elements: members(private6), ..set(&[v6]) }),
        ("errors4", types(Field::IcmpType, &[3, 11])),
        ("errors6", types(Field::Icmpv6Type, &[1, 2, 3, 4])),
        ("den4", Set { dynamic: denied, ..set(&FLOW4) }),
        ("den6", Set { dynamic: denied, ..set(&FLOW6) }),
    ]
    .map(|(name, set)| (name.to_owned(), set))
    .into()
}

/// The table of a service's namespace.
pub fn lock() -> Table {
    let of = |v6| [if v6 { Field::Ipv6Addr } else { Field::Ipv4Addr }, Field::InetProto, Field::InetService];
    let to4 = [exact(&[&[10, 203, 0, 2], &[TCP], &[0, 80]]), exact(&[&[10, 203, 0, 2], &[UDP], &[0, 53]])];
    let to6 = [exact(&[&address6(2), &[TCP], &[0, 80]])];
    let sets = [
        ("in4", set(&of(false))),
        ("in6", set(&of(true))),
        ("out4", Set { elements: members(to4), ..set(&of(false)) }),
        ("out6", Set { elements: members(to6), ..set(&of(true)) }),
        ("errors4", types(Field::IcmpType, &[3, 11])),
        ("errors6", types(Field::Icmpv6Type, &[1, 2, 3])),
        (
            "private4",
            Set {
                interval: true,
                elements: members([prefix4("10.0.0.0", 8), prefix4("224.0.0.0", 3)]),
                ..set(&[Field::Ipv4Addr])
            },
        ),
    ];
    let filter = |point, rules| Chain { hook: base(ChainKind::Filter, point, None, 0, false), rules };
    let chains = [
        ("input", filter(HookPoint::Input, lock_rules(true))),
        ("output", filter(HookPoint::Output, lock_rules(false))),
        ("forward", filter(HookPoint::Forward, Vec::new())),
    ];
    Table {
        sets: sets.map(|(name, set)| (name.to_owned(), set)).into_iter().collect(),
        chains: chains.map(|(name, chain)| (name.to_owned(), chain)).into_iter().collect(),
        dormant: false,
    }
}

fn lock_rules(input: bool) -> Vec<Rule> {
    let lo = if input { MetaKey::Iif } else { MetaKey::Oif };
    let (four, six) = if input { ("in4", "in6") } else { ("out4", "out6") };
    let error = |v6, icmp, set: &str| {
        let b = build().ct_state(4).nfproto(v6).l4(icmp);
        b.load(Base::Transport, 0, 1, 0).ask(set, false).accept()
    };
    let mut rules = vec![
        build().meta(lo, 0).cmp(true, 1u32.to_ne_bytes()).accept(),
        build().ct_state(2).accept(),
        error(false, ICMP, "errors4"),
        error(true, ICMP6, "errors6"),
        build().nfproto(false).l4(ICMP).icmp_type(8).accept(),
        build().nfproto(true).l4(ICMP6).icmp_type(128).accept(),
        build().ct_state(8).nfproto(false).lock_flow(false, input).ask(four, false).accept(),
        build().ct_state(8).nfproto(true).lock_flow(true, input).ask(six, false).accept(),
    ];
    if !input {
        rules.push(build().nfproto(false).daddr(false).ask("private4", true).accept());
    }
    rules.push(build().counter().end());
    if !input {
        rules.push(build().l4(TCP).reject(Reject::TcpReset));
        rules.push(build().reject(Reject::IcmpxAdminProhibited));
    }
    rules
}

/// The table of the gateway that leads out.
pub fn uplink() -> Table {
    let v4 = |addr: [u8; 4], dreg| Expr::Immediate { dreg: Reg(dreg), data: addr.to_vec() };
    let port = |port: u16, dreg| Expr::Immediate { dreg: Reg(dreg), data: port.to_be_bytes().to_vec() };
    let dport = |b: Build, proto, port: u16| b.l4(proto).load(Base::Transport, 2, 2, 0).cmp(true, port.to_be_bytes());
    let dnat = |ipv6, addr, port: Option<u8>| Expr::Dnat { ipv6, addr: Reg(addr), port: port.map(Reg) };
    let prerouting = vec![
        build().with(Expr::Ct { key: CtKey::Direction, dreg: Reg(0) }).cmp(true, [1]).accept(),
        dport(build().meta(MetaKey::Iifname, 0).cmp(true, ifname("eth0")), TCP, 443)
            .with(v4([10, 0, 0, 1], 0))
            .with(port(8443, 4))
            .with(dnat(false, 0, Some(4)))
            .end(),
        dport(build(), UDP, 53).with(v4([9, 9, 9, 9], 0)).with(dnat(false, 0, None)).end(),
        dport(build(), TCP, 80)
            .with(Expr::Immediate { dreg: Reg(0), data: address6(1).to_vec() })
            .with(port(8080, 4))
            .with(dnat(true, 0, Some(4)))
            .end(),
    ];
    let postrouting = vec![
        build().meta(MetaKey::Oifname, 0).cmp(true, ifname("eth0")).with(Expr::Masquerade).end(),
        build()
            .meta(MetaKey::Iifname, 0)
            .cmp(true, ifname("a"))
            .meta(MetaKey::Oifname, 0)
            .cmp(false, ifname("b"))
            .with(Expr::Masquerade)
            .end(),
    ];
    let status = Expr::Ct { key: CtKey::Status, dreg: Reg(0) };
    let forward = vec![
        build()
            .meta(MetaKey::Oifname, 0)
            .cmp(true, ifname("eth0"))
            .flags(6, true, 2)
            .with(Expr::RtTcpMss { dreg: Reg(0) })
            .with(Expr::SetTcpMss { sreg: Reg(0) })
            .end(),
        build().with(status).mask(&32u32.to_ne_bytes()).cmp(false, [0; 4]).accept(),
        build().with(Expr::FibDaddrType { dreg: Reg(0) }).cmp(true, 2u32.to_ne_bytes()).drop(),
        build()
            .nfproto(false)
            .saddr(false)
            .with(Expr::CountOver { set: "busy".into(), sreg: Reg(0), count: 20 })
            .drop(),
        build().ct_state(1).drop(),
        build().ct_state(6).accept(),
        build().with(Expr::Verdict(Verdict::Jump("more".into()))).end(),
    ];
    let more = vec![build().with(Expr::Verdict(Verdict::Return)).end()];
    let nat = |point, priority, rules| Chain { hook: base(ChainKind::Nat, point, None, priority, true), rules };
    let chains = [
        ("pre", nat(HookPoint::Prerouting, -100, prerouting)),
        ("post", nat(HookPoint::Postrouting, 100, postrouting)),
        ("forward", Chain { hook: base(ChainKind::Filter, HookPoint::Forward, None, -5, true), rules: forward }),
        ("more", Chain { hook: None, rules: more }),
    ];
    let busy = Set { dynamic: Some(Dynamic { size: 1000, timeout: 0 }), ..set(&[Field::Ipv4Addr]) };
    Table {
        sets: BTreeMap::from([("busy".to_owned(), busy)]).into(),
        chains: chains.map(|(name, chain)| (name.to_owned(), chain)).into_iter().collect(),
        dormant: false,
    }
}

/// All three in one namespace.
pub fn everything(links: Links<'_>) -> Ruleset {
    Ruleset {
        tables: BTreeMap::from([
            ((Family::Netdev, "nsctl".to_owned()), panel(links)),
            ((Family::Inet, "nsctl_lock".to_owned()), lock()),
            ((Family::Inet, "nsctl_uplink".to_owned()), uplink()),
        ]),
    }
}
