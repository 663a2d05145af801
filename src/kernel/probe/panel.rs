//! The panel in small: two wires, a map that says which wire a packet goes into, one datagram through it.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use ipnetwork::IpNetwork;
use netns_policy::ruleset::delta::Delta;
use netns_policy::ruleset::{
    Base, Chain, ChainKind, Expr, Family, Field, Hook, HookPoint, Key, MetaKey, Reg, Reject, Rule, Ruleset, Set, Table,
    Verdict,
};

use super::super::address::Address;
use super::super::netlink::{NetlinkError, Request, Rtnl};
use super::super::netns::Netns;
use super::super::nft::NftSocket;
use super::super::route::Route;
use super::super::wire::WirePair;
use super::super::{GROUP, MAC, PROTOCOL};
use super::Trial;

pub(super) const STAGES: [&[Trial<Panel>]; 4] = [
    &[Trial { what: "wires between namespaces", config: "CONFIG_VETH", module: Some("veth"), run: Panel::wire }],
    &[Trial {
        what: "rules on a wire (nftables family netdev)",
        config: "CONFIG_NF_TABLES_NETDEV",
        module: Some("nf_tables"),
        run: Panel::hook,
    }],
    &[Trial {
        what: "handing a packet to the wire that a map names (`fwd`)",
        config: "CONFIG_NFT_FWD_NETDEV",
        module: Some("nft_fwd_netdev"),
        run: Panel::forward,
    }],
    &[Trial {
        what: "counters of map elements",
        config: "CONFIG_NF_TABLES of Linux 5.7 or newer",
        module: None,
        run: Panel::count,
    }],
];

/// Both addresses are of RFC 5737's first block; nobody outside can see them.
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OPEN: u16 = 1000;
const CLIENT_WIRE: u32 = 101;
const SERVER_WIRE: u32 = 102;
const UDP: u8 = 17;

const TABLE: &str = "probe";
const MAP: &str = "edges";
/// Far more than a datagram takes between two namespaces of one machine.
const PATIENCE: Duration = Duration::from_millis(300);
const TRIES: usize = 3;

/// A client, a server, and a fabric between them.
pub(super) struct Panel {
    client: Netns,
    fabric: Netns,
    server: Netns,
}

impl Panel {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { client: Netns::unpinned()?, fabric: Netns::unpinned()?, server: Netns::unpinned()? })
    }

    fn wire(&mut self) -> io::Result<()> {
        let ends = [(&self.client, CLIENT, CLIENT_WIRE), (&self.server, SERVER, SERVER_WIRE)];
        for (netns, address, index) in ends {
            let outer = self.fabric.try_clone()?;
            in_netns(netns, move |rtnl| rtnl.pipeline(bring_up(outer, address, index)))?;
        }
        in_netns(&self.fabric, |rtnl| {
            rtnl.set_up(&[CLIENT_WIRE, SERVER_WIRE])?;
            rtnl.wait_until_up(&[CLIENT_WIRE, SERVER_WIRE], Duration::from_secs(2))
        })?;
        let settle = |index: u32| move |rtnl: &mut Rtnl| rtnl.wait_until_up(&[index], Duration::from_secs(2));
        in_netns(&self.client, settle(CLIENT_WIRE))?;
        in_netns(&self.server, settle(SERVER_WIRE))
    }

    fn hook(&mut self) -> io::Result<()> {
        self.change(&Ruleset::default(), &ruleset(vec![], None))
    }

    fn forward(&mut self) -> io::Result<()> {
        self.change(&ruleset(vec![], None), &ruleset(vec![fwd()], Some(map())))?;
        let client = self.client.run(|| UdpSocket::bind((CLIENT, 0)))?;
        let server = self.server.run(|| UdpSocket::bind((SERVER, OPEN)))?;
        server.set_read_timeout(Some(PATIENCE))?;
        for _ in 0..TRIES {
            client.send_to(b"probe", (SERVER, OPEN))?;
            match server.recv_from(&mut [0; 16]) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                received => return received.map(drop),
            }
        }
        Err(io::Error::new(ErrorKind::TimedOut, "the rule was taken, but no packet arrived"))
    }

    fn count(&mut self) -> io::Result<()> {
        let dump = self.fabric.run(|| NftSocket::open()?.dump(|_, name| name == TABLE))?;
        match dump.counters.values().any(|count| count.packets > 0) {
            true => Ok(()),
            false => Err(io::Error::other("an element that let a packet pass counted none")),
        }
    }

    /// Whether the panel itself can refuse: what the server sends is answered at once.
    ///
    /// The rule hangs on the other wire, so that this change takes nothing away: the kernel would wait with the next
    /// close(2) until what was taken away is destroyed.
    pub(super) fn refuses(&self) -> bool {
        let before = ruleset(vec![fwd()], Some(map()));
        let mut after = before.clone();
        let reject = Rule::from(vec![Expr::Reject(Reject::IcmpAdminProhibited)]);
        let chain = Chain { hook: Some(ingress(SERVER_WIRE)), rules: vec![reject] };
        after.tables.values_mut().for_each(|table| {
            table.chains.insert("refusal".into(), chain.clone());
        });
        let refused = || -> io::Result<bool> {
            self.change(&before, &after)?;
            let server = self.server.run(|| UdpSocket::bind((SERVER, 0)))?;
            server.connect((CLIENT, OPEN))?;
            server.set_read_timeout(Some(PATIENCE))?;
            server.send(b"probe")?;
            let answer = server.recv(&mut [0; 16]);
            Ok(answer.is_err_and(|e| e.kind() == ErrorKind::HostUnreachable))
        };
        refused().unwrap_or(false)
    }

    fn change(&self, before: &Ruleset, after: &Ruleset) -> io::Result<()> {
        let delta = Delta::between(before, after);
        self.fabric.run(move || NftSocket::open()?.commit(&delta, None).map_err(io::Error::other))
    }
}

fn in_netns(netns: &Netns, f: impl FnOnce(&mut Rtnl) -> Result<(), NetlinkError> + Send + 'static) -> io::Result<()> {
    netns.run(move || Ok(f(&mut Rtnl::open()?)?))
}

fn bring_up(fabric: Netns, address: Ipv4Addr, index: u32) -> Vec<Request> {
    let pair = WirePair {
        inner: "net0".into(),
        inner_index: index,
        outer: outer(index),
        outer_index: index,
        altname: None,
        alias: None,
        mac: MAC,
        mtu: netns_policy::desired::INNER_MTU,
        group: GROUP,
    };
    let own = Address { link: index, address: IpNetwork::from(std::net::IpAddr::from(address)) };
    let others = IpNetwork::new(Ipv4Addr::new(192, 0, 2, 0).into(), 24).expect("24 is a prefix length");
    pair.bring_up(fabric, &[own], &[Route::by(index, others, PROTOCOL)])
}

fn outer(index: u32) -> String {
    format!("probe{index}")
}

fn ingress(wire: u32) -> Hook {
    Hook {
        kind: ChainKind::Filter,
        point: HookPoint::Ingress,
        device: Some(outer(wire)),
        priority: 0,
        policy_accept: false,
    }
}

/// The panel with these rules, and a map when they ask one.
fn ruleset(rules: Vec<Rule>, map: Option<Set>) -> Ruleset {
    let goto = Rule::from(vec![Expr::Verdict(Verdict::Goto("panel".into()))]);
    let chains = BTreeMap::from([
        ("wire".to_owned(), Chain { hook: Some(ingress(CLIENT_WIRE)), rules: vec![goto] }),
        ("panel".to_owned(), Chain { hook: None, rules }),
    ]);
    let sets = map.into_iter().map(|map| (MAP.to_owned(), map)).collect();
    Ruleset {
        tables: BTreeMap::from([(
            (Family::Netdev, TABLE.to_owned()),
            Table { chains: chains.into(), sets, dormant: false },
        )]),
    }
}

/// `fwd to iif . ip saddr . ip daddr . meta l4proto . th dport map @edges`.
fn fwd() -> Rule {
    let load = |base, offset, len, dreg| Expr::Payload { base, offset, len, dreg: Reg(dreg) };
    Rule::from(vec![
        Expr::Meta { key: MetaKey::Iif, dreg: Reg(0) },
        load(Base::Network, 12, 4, 1),
        load(Base::Network, 16, 4, 2),
        Expr::Meta { key: MetaKey::L4proto, dreg: Reg(3) },
        load(Base::Transport, 2, 2, 4),
        Expr::Lookup { set: MAP.into(), sreg: Reg(0), dreg: Some(Reg(0)), invert: false },
        Expr::Fwd { sreg: Reg(0) },
    ])
}

fn map() -> Set {
    let mut key = CLIENT_WIRE.to_ne_bytes().to_vec();
    key.extend(CLIENT.octets());
    key.extend(SERVER.octets());
    key.extend([UDP, 0, 0, 0]);
    key.extend(OPEN.to_be_bytes());
    key.extend([0, 0]);
    Set {
        key: vec![Field::IfaceIndex, Field::Ipv4Addr, Field::Ipv4Addr, Field::InetProto, Field::InetService],
        data: Some(Field::IfaceIndex),
        interval: false,
        dynamic: None,
        counter: true,
        elements: BTreeMap::from([(Key { from: key, to: None }, Some(SERVER_WIRE.to_ne_bytes().to_vec()))]).into(),
    }
}
