//! A panel and its locks, written by hand for a list of edges: rules that are known to work in a kernel, in the form
//! that the oracle reads. Not the compiler: it knows no ranges, gateways or ways in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netns_policy::port::Protocol;
use netns_policy::ruleset::decide::walk::{Place, World};
use netns_policy::ruleset::*;

/// From, to, protocol, port.
pub type Edge<'a> = (&'a str, &'a str, Protocol, u16);

/// The number of a place, from 1: the last part of its addresses.
fn number(places: &[&str], name: &str) -> Option<u8> {
    Some(u8::try_from(places.iter().position(|place| *place == name)?).unwrap() + 1)
}

pub fn address4(places: &[&str], name: &str) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::new(10, 203, 0, number(places, name)?))
}

pub fn address6(places: &[&str], name: &str) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::new(0xfd00, 0xcb, 0, 0, 0, 0, 0, number(places, name)?.into()))
}

fn wire(places: &[&str], name: &str) -> u32 {
    10 + u32::from(number(places, name).unwrap())
}

/// The whole world for these places and edges.
pub fn world(places: &[&str], edges: &[Edge<'_>]) -> World {
    let place = |name: &&str| {
        let addresses: [IpAddr; 2] = [address4(places, name).unwrap().into(), address6(places, name).unwrap().into()];
        let place = Place {
            fabric_index: wire(places, name),
            fabric_link: format!("s_{name}"),
            index: 2,
            link: "net0".into(),
            addresses: addresses.into(),
            lock: single(Family::Inet, "lock", lock(places, name, edges)),
        };
        (name.to_string(), place)
    };
    World {
        fabric: single(Family::Netdev, "panel", panel(places, edges)),
        places: places.iter().map(place).collect(),
        leg: None,
    }
}

fn single(family: Family, name: &str, table: Table) -> Ruleset {
    Ruleset { tables: BTreeMap::from([((family, name.to_owned()), table)]) }
}

// ---- expressions ---------------------------------------------------------------------------------------------------

pub const TH: Base = Base::Transport;
pub const NET: Base = Base::Network;

pub fn meta(key: MetaKey, reg: u8) -> Expr {
    Expr::Meta { key, dreg: Reg(reg) }
}

pub fn load(base: Base, offset: u32, len: u32, reg: u8) -> Expr {
    Expr::Payload { base, offset, len, dreg: Reg(reg) }
}

pub fn is(reg: u8, data: &[u8]) -> Expr {
    Expr::Cmp { equal: true, sreg: Reg(reg), data: data.into() }
}

pub fn is_not(reg: u8, data: &[u8]) -> Expr {
    Expr::Cmp { equal: false, sreg: Reg(reg), data: data.into() }
}

pub fn and(reg: u8, mask: &[u8]) -> Expr {
    Expr::Bitwise { sreg: Reg(reg), dreg: Reg(reg), mask: mask.into(), xor: vec![0; mask.len()] }
}

pub fn find(set: &str, reg: u8) -> Expr {
    Expr::Lookup { set: set.into(), sreg: Reg(reg), dreg: None, invert: false }
}

pub fn miss(set: &str, reg: u8) -> Expr {
    Expr::Lookup { set: set.into(), sreg: Reg(reg), dreg: None, invert: true }
}

pub fn map(set: &str, reg: u8, dreg: u8) -> Expr {
    Expr::Lookup { set: set.into(), sreg: Reg(reg), dreg: Some(Reg(dreg)), invert: false }
}

pub fn proto(number: u8) -> [Expr; 2] {
    [meta(MetaKey::L4proto, 0), is(0, &[number])]
}

pub fn ct(bits: u32) -> [Expr; 3] {
    [Expr::Ct { key: CtKey::State, dreg: Reg(0) }, and(0, &bits.to_ne_bytes()), is_not(0, &[0; 4])]
}

pub const ACCEPT: Expr = Expr::Verdict(Verdict::Accept);
pub const DROP: Expr = Expr::Verdict(Verdict::Drop);

pub fn rule(parts: impl IntoIterator<Item = Expr>) -> Rule {
    Rule::from(parts.into_iter().collect::<Vec<_>>())
}

fn concat<const N: usize>(parts: [&[Expr]; N]) -> Rule {
    Rule::from(parts.concat())
}

// ---- keys ----------------------------------------------------------------------------------------------------------

/// A key of fields, each padded to four bytes.
pub fn key(fields: &[&[u8]]) -> Key {
    let mut from = Vec::new();
    for field in fields {
        from.extend(*field);
        from.resize(from.len().next_multiple_of(4), 0);
    }
    Key { from, to: None }
}

pub fn set(fields: &[Field], keys: impl IntoIterator<Item = Key>) -> Set {
    Set {
        key: fields.into(),
        data: None,
        interval: false,
        dynamic: None,
        counter: false,
        elements: keys.into_iter().map(|key| (key, None)).collect(),
    }
}

pub fn map_of(fields: &[Field], elements: impl IntoIterator<Item = (Key, u32)>) -> Set {
    let elements = elements.into_iter().map(|(key, index)| (key, Some(index.to_ne_bytes().to_vec()))).collect();
    Set { data: Some(Field::IfaceIndex), counter: true, elements, ..set(fields, []) }
}

/// What differs between the two families.
struct Ip {
    tail: &'static str,
    ethertype: [u8; 2],
    nfproto: u8,
    icmp: u8,
    field: Field,
    icmp_field: Field,
    /// Offset and length of the source in the header, and of the destination.
    saddr: (u32, u32),
    daddr: (u32, u32),
    /// In an ICMP error: offset of the inner protocol, destination, source port.
    inner: (u32, u32, u32),
    errors: &'static [u8],
    echo: (u8, u8),
    refusal: Reject,
}

const IP4: Ip = Ip {
    tail: "4",
    ethertype: [8, 0],
    nfproto: 2,
    icmp: 1,
    field: Field::Ipv4Addr,
    icmp_field: Field::IcmpType,
    saddr: (12, 4),
    daddr: (16, 4),
    inner: (17, 24, 28),
    errors: &[3, 11],
    echo: (8, 0),
    refusal: Reject::IcmpAdminProhibited,
};
const IP6: Ip = Ip {
    tail: "6",
    ethertype: [0x86, 0xdd],
    nfproto: 10,
    icmp: 58,
    field: Field::Ipv6Addr,
    icmp_field: Field::Icmpv6Type,
    saddr: (8, 16),
    daddr: (24, 16),
    inner: (14, 32, 48),
    errors: &[1, 2, 3],
    echo: (128, 129),
    refusal: Reject::Icmp6AdminProhibited,
};

impl Ip {
    fn name(&self, head: &str) -> String {
        format!("{head}{}", self.tail)
    }

    fn address(&self, places: &[&str], name: &str) -> Vec<u8> {
        match self.field {
            Field::Ipv4Addr => address4(places, name).unwrap().octets().into(),
            _ => address6(places, name).unwrap().octets().into(),
        }
    }

    /// Registers of an address.
    fn words(&self) -> u8 {
        u8::try_from(self.saddr.1 / 4).unwrap()
    }

    /// First register after two addresses that start at 1.
    fn after(&self) -> u8 {
        1 + 2 * self.words()
    }

    /// `iif . saddr . daddr . l4proto . th port`, the port at `offset`.
    fn flow(&self, port: u32) -> Vec<Expr> {
        let after = self.after();
        vec![
            meta(MetaKey::Iif, 0),
            load(NET, self.saddr.0, self.saddr.1, 1),
            load(NET, self.daddr.0, self.daddr.1, 1 + self.words()),
            meta(MetaKey::L4proto, after),
            load(TH, port, 2, after + 1),
        ]
    }

    fn fwd(&self, set: &str) -> Vec<Expr> {
        vec![map(&self.name(set), 0, 15), Expr::Fwd { sreg: Reg(15) }]
    }

    fn source(&self) -> Vec<Expr> {
        vec![meta(MetaKey::Iif, 0), load(NET, self.saddr.0, self.saddr.1, 1)]
    }

    /// An error from an honest source: the packet's own destination is the owner of the embedded packet. `port` is 0
    /// for its source port, 2 for its destination port.
    fn error(&self, set: &str, port: u32) -> Rule {
        let (protocol, daddr, ports) = self.inner;
        let after = self.after();
        let key = [
            meta(MetaKey::Iif, 0),
            load(TH, daddr, self.daddr.1, 1),
            load(NET, self.daddr.0, self.daddr.1, 1 + self.words()),
            load(TH, protocol, 1, after),
            load(TH, ports + port, 2, after + 1),
        ];
        let kind = [load(TH, 0, 1, 0), find(&self.name("errors"), 0), load(TH, 8, 1, 0), and(0, &[0xf0])];
        let version = [is(0, if self.nfproto == 2 { &[0x40] } else { &[0x60] })];
        let source = [self.source(), vec![find(&self.name("src"), 0)]].concat();
        concat([&source, &proto(self.icmp), &kind, &version, &key, &self.fwd(set)])
    }
}

// ---- the panel -----------------------------------------------------------------------------------------------------

fn panel(places: &[&str], edges: &[Edge<'_>]) -> Table {
    let mut table = Table::default();
    let goto = |chain: &str| Expr::Verdict(Verdict::Goto(chain.into()));
    let tag = |tpid: [u8; 2]| rule([load(Base::Link, 12, 2, 0), is(0, &tpid), Expr::Counter, DROP]);
    // The odd load keeps later fragments out: it is not aligned, so that the kernel does not do it the quick way, which
    // takes the data of a later fragment (in IPv6 the flow label) for ports.
    let unfragmented = load(TH, 1, 2, 0);
    let to =
        |ip: &Ip| rule([meta(MetaKey::Protocol, 0), is(0, &ip.ethertype), unfragmented.clone(), goto(&ip.name("p"))]);
    let rules = vec![tag([0x81, 0]), tag([0x88, 0xa8]), to(&IP4), to(&IP6), rule([Expr::Counter, DROP])];
    table.chains.insert("panel".into(), Chain { hook: None, rules });
    for ip in [&IP4, &IP6] {
        table.chains.insert(ip.name("p"), Chain { hook: None, rules: panel_rules(ip) });
        panel_sets(&mut table, ip, places, edges);
    }
    for place in places {
        let hook = Hook {
            kind: ChainKind::Filter,
            point: HookPoint::Ingress,
            device: Some(format!("s_{place}")),
            priority: 0,
            policy_accept: false,
        };
        table.chains.insert(format!("i_{place}"), Chain { hook: Some(hook), rules: vec![rule([goto("panel")])] });
    }
    table
}

fn panel_rules(ip: &Ip) -> Vec<Rule> {
    let tcp_flags = |mask: u8| [&proto(6)[..], &[load(TH, 13, 1, 0), and(0, &[mask])]].concat();
    let echo = [
        meta(MetaKey::Iif, 0),
        load(NET, ip.saddr.0, ip.saddr.1, 1),
        load(NET, ip.daddr.0, ip.daddr.1, 1 + ip.words()),
        load(TH, 0, 1, ip.after()),
    ];
    let rt = [Expr::RoutingHeaderExists { dreg: Reg(0) }, is(0, &[1]), Expr::Counter, DROP];
    let limit = Expr::Limit { per_second: 50, burst: 5, over: false };
    let log = Expr::Log { group: 5, prefix: "panel-deny ".into(), snaplen: 0 };
    let not_icmp = [meta(MetaKey::L4proto, 0), is_not(0, &[ip.icmp]), Expr::Reject(ip.refusal)];
    let request = [load(TH, 0, 1, 0), is(0, &[ip.echo.0]), Expr::Reject(ip.refusal)];
    let mut rules = vec![
        concat([&ip.flow(2), &ip.fwd("fw")]),
        concat([&tcp_flags(0x12), &[is_not(0, &[0x02])], &ip.flow(0), &ip.fwd("rp")]),
        concat([&proto(17), &ip.flow(0), &ip.fwd("rp")]),
        concat([&proto(ip.icmp), &echo, &ip.fwd("ic")]),
        ip.error("rp", 2),
        ip.error("fw", 0),
        concat([&ip.source(), &[miss(&ip.name("src"), 0), Expr::Counter, DROP]]),
        concat([&ip.flow(2), &[Expr::Update { set: ip.name("den"), sreg: Reg(0) }]]),
        rule([limit, log]),
        concat([&tcp_flags(0x04), &[is(0, &[0x04]), DROP]]),
        concat([&proto(6), &[Expr::Reject(Reject::TcpReset)]]),
        rule(not_icmp),
        concat([&proto(ip.icmp), &request]),
        rule([DROP]),
    ];
    if ip.nfproto == 10 {
        rules.insert(0, rule(rt));
    }
    rules
}

fn panel_sets(table: &mut Table, ip: &Ip, places: &[&str], edges: &[Edge<'_>]) {
    let index = |place: &str| wire(places, place);
    let end = |place: &str| ip.address(places, place);
    let flow = |from: &str, to: &str, last: &[&[u8]]| {
        let (iif, saddr, daddr) = (index(from).to_ne_bytes(), end(from), end(to));
        (key(&[&[&iif[..], &saddr, &daddr][..], last].concat()), index(to))
    };
    let fields = [Field::IfaceIndex, ip.field, ip.field, Field::InetProto, Field::InetService];
    let forward = edges.iter().map(|(a, b, p, port)| flow(a, b, &[&[p.number()], &port.to_be_bytes()]));
    let reply = edges.iter().map(|(a, b, p, port)| flow(b, a, &[&[p.number()], &port.to_be_bytes()]));
    let echo = edges.iter().flat_map(|(a, b, ..)| [flow(a, b, &[&[ip.echo.0]]), flow(b, a, &[&[ip.echo.1]])]);
    let sources = places.iter().map(|place| key(&[&index(place).to_ne_bytes(), &end(place)]));
    table.sets.insert(ip.name("fw"), map_of(&fields, forward));
    table.sets.insert(ip.name("rp"), map_of(&fields, reply));
    table.sets.insert(ip.name("ic"), map_of(&[Field::IfaceIndex, ip.field, ip.field, ip.icmp_field], echo));
    table.sets.insert(ip.name("src"), set(&[Field::IfaceIndex, ip.field], sources));
    table.sets.insert(ip.name("errors"), set(&[ip.icmp_field], ip.errors.iter().map(|kind| key(&[&[*kind]]))));
    let dynamic = Some(Dynamic { size: 4096, timeout: 3600 });
    table.sets.insert(ip.name("den"), Set { dynamic, ..set(&fields, []) });
}

// ---- a lock --------------------------------------------------------------------------------------------------------

fn lock(places: &[&str], name: &str, edges: &[Edge<'_>]) -> Table {
    let mut table = Table::default();
    for ip in [&IP4, &IP6] {
        let fields = [ip.field, Field::InetProto, Field::InetService];
        let far = |place: &str, p: &Protocol, port: &u16| {
            key(&[&ip.address(places, place), &[p.number()], &port.to_be_bytes()])
        };
        let inward = edges.iter().filter(|edge| edge.1 == name).map(|(from, _, p, port)| far(from, p, port));
        let outward = edges.iter().filter(|edge| edge.0 == name).map(|(_, to, p, port)| far(to, p, port));
        table.sets.insert(ip.name("in"), set(&fields, inward));
        table.sets.insert(ip.name("out"), set(&fields, outward));
        table.sets.insert(ip.name("errors"), set(&[ip.icmp_field], ip.errors.iter().map(|kind| key(&[&[*kind]]))));
    }
    let input = direction(HookPoint::Input, MetaKey::Iifname, "in", |ip| ip.saddr);
    let mut output = direction(HookPoint::Output, MetaKey::Oifname, "out", |ip| ip.daddr);
    output.rules.push(concat([&proto(6), &[Expr::Reject(Reject::TcpReset)]]));
    output.rules.push(rule([Expr::Reject(Reject::IcmpxAdminProhibited)]));
    table.chains.extend([("input".to_owned(), input), ("output".to_owned(), output)]);
    table
}

fn direction(point: HookPoint, link: MetaKey, set: &str, far: impl Fn(&Ip) -> (u32, u32)) -> Chain {
    let mut lo = [0; 16];
    lo[..2].copy_from_slice(b"lo");
    let mut rules = vec![rule([meta(link, 0), is(0, &lo), ACCEPT]), concat([&ct(2), &[ACCEPT]])];
    for ip in [&IP4, &IP6] {
        let family = [meta(MetaKey::Nfproto, 0), is(0, &[ip.nfproto])];
        let (offset, len) = far(ip);
        let after = ip.words();
        let key = [load(NET, offset, len, 0), meta(MetaKey::L4proto, after), load(TH, 2, 2, after + 1)];
        let kind = [load(TH, 0, 1, 0), find(&ip.name("errors"), 0)];
        let echo = [load(TH, 0, 1, 0), is(0, &[ip.echo.0])];
        rules.push(concat([&ct(4), &family, &proto(ip.icmp), &kind, &[ACCEPT]]));
        rules.push(concat([&family, &proto(ip.icmp), &echo, &[ACCEPT]]));
        rules.push(concat([&ct(8), &family, &key, &[find(&ip.name(set), 0), ACCEPT]]));
    }
    rules.push(rule([Expr::Counter]));
    let hook = Hook { kind: ChainKind::Filter, point, device: None, priority: 0, policy_accept: false };
    Chain { hook: Some(hook), rules }
}
