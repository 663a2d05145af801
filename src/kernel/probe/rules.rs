//! What the locks and the gateways use of nftables and conntrack, tried inside one namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use netns_policy::ruleset::delta::Delta;
use netns_policy::ruleset::{
    Base, Chain, ChainKind, CtKey, Dynamic, Expr, Family, Field, Hook, HookPoint, Key, MetaKey, Reg, Reject, Rule,
    Ruleset, Set, Table, Verdict,
};

use super::super::conntrack::{Conntrack, Flow, Transport, Tuple};
use super::super::link::LOOPBACK;
use super::super::netlink::Rtnl;
use super::super::nft::NftSocket;
use super::nflog::Listener;
use super::{Missing, Trial};

/// The rules of this namespace, in which every trial has a table of its own.
type Rules = ();

const STAGES: [&[Trial<Rules>]; 2] = [
    &[Trial { what: "nftables", config: "CONFIG_NF_TABLES_INET", module: Some("nf_tables"), run: tables }],
    &[
        Trial {
            what: "sets of address and port ranges",
            config: "CONFIG_NF_TABLES of Linux 5.6 or newer",
            module: None,
            run: ranges,
        },
        Trial {
            what: "sets that packets fill",
            config: "CONFIG_NF_TABLES of Linux 4.10 or newer",
            module: None,
            run: dynamic,
        },
        Trial { what: "connection tracking in rules", config: "CONFIG_NFT_CT", module: Some("nft_ct"), run: track },
        Trial {
            what: "tracked connections that can be ended",
            config: "CONFIG_NF_CT_NETLINK",
            module: Some("nf_conntrack_netlink"),
            run: cut,
        },
        Trial {
            what: "limit of connections (`ct count`)",
            config: "CONFIG_NFT_CONNLIMIT",
            module: Some("nft_connlimit"),
            run: count_connections,
        },
        Trial { what: "limit of rates", config: "CONFIG_NFT_LIMIT", module: Some("nft_limit"), run: limit },
        Trial {
            what: "refusal of packets (`reject`)",
            config: "CONFIG_NFT_REJECT_INET",
            module: Some("nft_reject_inet"),
            run: reject,
        },
        Trial { what: "log of refusals in rules", config: "CONFIG_NFT_LOG", module: Some("nft_log"), run: log_rule },
        Trial {
            what: "log of refusals that can be read (NFLOG)",
            config: "CONFIG_NETFILTER_NETLINK_LOG",
            module: Some("nfnetlink_log"),
            run: log,
        },
        Trial {
            what: "address translation at the way out (`masquerade`)",
            config: "CONFIG_NFT_MASQ",
            module: Some("nft_masq"),
            run: masquerade,
        },
        Trial {
            what: "address translation at the way in (`dnat`)",
            config: "CONFIG_NFT_NAT",
            module: Some("nft_nat"),
            run: dnat,
        },
        Trial {
            what: "questions to the routing table (`fib`)",
            config: "CONFIG_NFT_FIB_INET",
            module: Some("nft_fib_inet"),
            run: fib,
        },
        Trial {
            what: "look at IPv6 extension headers",
            config: "CONFIG_NF_TABLES of Linux 4.12 or newer",
            module: None,
            run: extension_header,
        },
        Trial {
            what: "change of the TCP segment size",
            config: "CONFIG_NF_TABLES of Linux 4.14 or newer",
            module: None,
            run: segment_size,
        },
    ],
];

/// Far more than a packet takes over loopback.
const PATIENCE: Duration = Duration::from_millis(300);
const PORT: u16 = 1000;
const GROUP: u16 = 1;
const REG: Reg = Reg(0);
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Whether there is nftables at all, and what is missing of it.
pub(super) fn missing() -> (bool, Vec<Missing>) {
    let none = super::missing(&STAGES[..1], &mut ());
    if none.is_empty() { (true, super::missing(&STAGES[1..], &mut ())) } else { (false, none) }
}

fn tables(_: &mut Rules) -> io::Result<()> {
    Rtnl::open()?.set_up(&[LOOPBACK])?;
    make("tables", filter(HookPoint::Forward, vec![Expr::Counter, Expr::Verdict(Verdict::Accept)]), None)
}

fn ranges(_: &mut Rules) -> io::Result<()> {
    let key = |address: [u8; 4], port: u16| [&address[..], &port.to_be_bytes(), &[0, 0]].concat();
    let range = Key { from: key([10, 0, 0, 0], 1), to: Some(key([10, 0, 0, 255], 9)) };
    let shape = set(&[Field::Ipv4Addr, Field::InetService]);
    let ranges = Set { interval: true, elements: BTreeMap::from([(range, None)]).into(), ..shape };
    let rule = vec![
        Expr::Payload { base: Base::Network, offset: 16, len: 4, dreg: Reg(0) },
        Expr::Payload { base: Base::Transport, offset: 2, len: 2, dreg: Reg(1) },
        Expr::Lookup { set: "set".into(), sreg: REG, dreg: None, invert: false },
    ];
    make("ranges", filter(HookPoint::Forward, rule), Some(ranges))
}

fn dynamic(_: &mut Rules) -> io::Result<()> {
    let filled = Set { dynamic: Some(Dynamic { size: 16, timeout: 60 }), counter: true, ..set(&[Field::IfaceIndex]) };
    let rule = vec![Expr::Meta { key: MetaKey::Oif, dreg: REG }, Expr::Update { set: "set".into(), sreg: REG }];
    make("dynamic", filter(HookPoint::Output, rule), Some(filled))?;
    send_to_self()?;
    match NftSocket::open()?.dynamic_elements(Family::Inet, "dynamic", "set")?.is_empty() {
        true => Err(io::Error::other("a packet left nothing in the set")),
        false => Ok(()),
    }
}

fn track(_: &mut Rules) -> io::Result<()> {
    let load = |key| Expr::Ct { key, dreg: REG };
    make(
        "track",
        filter(HookPoint::Forward, vec![load(CtKey::State), load(CtKey::Direction), load(CtKey::Status)]),
        None,
    )
}

/// A tracked connection can be named and deleted. Listing them is of the same module, and walks the machine's whole hash
/// table: 10 ms where that is large.
fn cut(_: &mut Rules) -> io::Result<()> {
    make("cut", filter(HookPoint::Output, vec![Expr::Ct { key: CtKey::State, dreg: REG }]), None)?;
    send_to_self()?;
    let me = Ipv4Addr::LOCALHOST.into();
    let transport = Transport::Ports { source: PORT, destination: PORT };
    let tuple = Tuple { source: me, destination: me, protocol: UDP, transport };
    let flow = Flow { original: tuple, reply: tuple, status: 0, zone: 0, mark: 0, id: None };
    match Conntrack::open()?.delete(&flow)? {
        true => Ok(()),
        false => Err(io::Error::other("a connection was tracked, and cannot be found")),
    }
}

fn count_connections(_: &mut Rules) -> io::Result<()> {
    make("count", filter(HookPoint::Input, vec![Expr::CtCountOver { count: 1000 }]), None)
}

fn limit(_: &mut Rules) -> io::Result<()> {
    make("limit", filter(HookPoint::Forward, vec![Expr::Limit { per_second: 20, burst: 50, over: true }]), None)
}

fn reject(_: &mut Rules) -> io::Result<()> {
    let refuse = |protocol, with| Rule::from(with_protocol(protocol, vec![Expr::Reject(with)]));
    let rules = vec![refuse(TCP, Reject::TcpReset), refuse(UDP, Reject::IcmpxAdminProhibited)];
    make("reject", Chain { rules, ..filter(HookPoint::Forward, vec![]) }, None)
}

fn log_rule(_: &mut Rules) -> io::Result<()> {
    make("log", filter(HookPoint::Output, vec![Expr::Log { group: GROUP, prefix: "probe ".into(), snaplen: 64 }]), None)
}

fn log(_: &mut Rules) -> io::Result<()> {
    let mut listener = Listener::bind(GROUP)?;
    send_to_self()?;
    listener.packet(PATIENCE)
}

fn masquerade(_: &mut Rules) -> io::Result<()> {
    make("masquerade", nat(HookPoint::Postrouting, vec![Expr::Masquerade]), None)
}

fn dnat(_: &mut Rules) -> io::Result<()> {
    let to = Expr::Immediate { dreg: Reg(0), data: Ipv4Addr::LOCALHOST.octets().to_vec() };
    let port = Expr::Immediate { dreg: Reg(1), data: PORT.to_be_bytes().to_vec() };
    let nat4 = Expr::Meta { key: MetaKey::Nfproto, dreg: REG };
    let ipv4 = Expr::Cmp { equal: true, sreg: REG, data: vec![2] };
    let translate = Expr::Dnat { ipv6: false, addr: Reg(0), port: Some(Reg(1)) };
    let rule = [vec![nat4, ipv4], with_protocol(UDP, vec![to, port, translate])].concat();
    make("dnat", nat(HookPoint::Prerouting, rule), None)
}

fn fib(_: &mut Rules) -> io::Result<()> {
    make("fib", filter(HookPoint::Forward, vec![Expr::FibDaddrType { dreg: REG }]), None)
}

fn extension_header(_: &mut Rules) -> io::Result<()> {
    make("exthdr", filter(HookPoint::Forward, vec![Expr::RoutingHeaderExists { dreg: REG }]), None)
}

fn segment_size(_: &mut Rules) -> io::Result<()> {
    let clamp = vec![Expr::RtTcpMss { dreg: REG }, Expr::SetTcpMss { sreg: REG }];
    make("mss", filter(HookPoint::Forward, with_protocol(TCP, clamp)), None)
}

fn with_protocol(number: u8, then: Vec<Expr>) -> Vec<Expr> {
    let mut rule =
        vec![Expr::Meta { key: MetaKey::L4proto, dreg: REG }, Expr::Cmp { equal: true, sreg: REG, data: vec![number] }];
    rule.extend(then);
    rule
}

fn filter(point: HookPoint, rule: Vec<Expr>) -> Chain {
    let hook = Hook { kind: ChainKind::Filter, point, device: None, priority: 0, policy_accept: true };
    Chain { hook: Some(hook), rules: vec![Rule::from(rule)] }
}

fn nat(point: HookPoint, rule: Vec<Expr>) -> Chain {
    let hook = Hook { kind: ChainKind::Nat, point, device: None, priority: 0, policy_accept: true };
    Chain { hook: Some(hook), rules: vec![Rule::from(rule)] }
}

fn set(key: &[Field]) -> Set {
    Set { key: key.to_vec(), data: None, interval: false, dynamic: None, counter: false, elements: Default::default() }
}

/// Makes a table with this chain, and this set under the name `set`.
fn make(table: &str, chain: Chain, set: Option<Set>) -> io::Result<()> {
    let sets = set.into_iter().map(|set| ("set".to_owned(), set)).collect();
    let table_id = (Family::Inet, table.to_owned());
    let made = Table { chains: BTreeMap::from([("chain".to_owned(), chain)]).into(), sets, dormant: false };
    let delta = Delta::between(&Ruleset::default(), &Ruleset { tables: BTreeMap::from([(table_id, made)]) });
    NftSocket::open()?.commit(&delta, None).map_err(io::Error::other)
}

/// One datagram over loopback.
fn send_to_self() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT))?;
    socket.send_to(b"probe", (Ipv4Addr::LOCALHOST, PORT)).map(drop)
}
