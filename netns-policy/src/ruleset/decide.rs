//! The oracle: what the kernel would do with a packet, said by running the rules.
//!
//! It shares the types of [`super`] with the compiler and nothing else. [`run`] is one base chain, [`hook`] everything
//! at one hook of a table, [`walk::World::carry`] the whole way from one namespace through the fabric to another.
//!
//! - Semantics are those of `nft_do_chain` and of the `*_eval` functions of Linux 6.18: sixteen registers of four
//!   bytes, loads that fill up with zeros, a rule that ends where an expression does not match.
//! - What does not depend on the packet alone (interfaces, connection, routing, fill of dynamic sets) is in [`Env`].
//! - Nothing panics. What the kernel would refuse to load (an unknown chain or set, a register that is none, jumps in a
//!   circle) matches nothing or drops the packet.

pub mod conntrack;
mod key;
mod machine;
pub mod walk;
mod world;

use std::net::IpAddr;

use super::{Chain, ChainKind, Family, HookPoint, Key, Reject, Ruleset, Table};
use crate::packet::{Packet, View};
use conntrack::CtState;

/// What a rule can ask for that is not in the packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Env<'a> {
    /// Index of the incoming interface, 0 for none.
    pub iif: u32,
    /// Its name, empty for none.
    pub iifname: &'a str,
    /// Index of the outgoing interface, 0 for none.
    pub oif: u32,
    /// Its name, empty for none.
    pub oifname: &'a str,
    /// Group of the incoming interface; `None` for [`crate::desired::GROUP`] where its name has a `+`, else 0.
    pub iifgroup: Option<u32>,
    /// Group of the outgoing interface, likewise.
    pub oifgroup: Option<u32>,
    /// The connection; `None` where there is none: in the netdev family, or for an invalid packet.
    pub ct: Option<CtState>,
    /// `fib daddr type`: [`UNICAST`], [`LOCAL`] or another `RTN_*`.
    pub fib_daddr_type: u32,
    /// Every `limit` has been reached.
    pub limits_exhausted: bool,
    /// Every dynamic set is full, and the packet's key is not in it.
    pub dynamic_full: bool,
    /// Connections that an element of a `ct count` set holds, this packet's included.
    pub connections: u32,
    /// `rt mtu`: the MSS that the route allows; `None` where the packet has no route yet.
    pub tcp_mss: Option<u16>,
}

/// `RTN_UNICAST`: an address elsewhere.
pub const UNICAST: u32 = 1;
/// `RTN_LOCAL`: an address of this namespace.
pub const LOCAL: u32 = 2;

impl Default for Env<'_> {
    fn default() -> Self {
        Self {
            iif: 0,
            iifname: "",
            oif: 0,
            oifname: "",
            iifgroup: None,
            oifgroup: None,
            ct: None,
            fib_daddr_type: UNICAST,
            limits_exhausted: false,
            dynamic_full: false,
            connections: 1,
            tcp_mss: None,
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// It goes on.
    Accept,
    /// It is gone, silently.
    Drop,
    /// It is gone, and its sender is told.
    Rejected(Reject),
    /// It leaves by the interface with this index.
    Forwarded(u32),
}

/// How a packet is rewritten.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Nat {
    /// The source becomes the address of the outgoing link.
    Masquerade,
    /// The destination becomes this.
    Destination {
        /// The address.
        address: IpAddr,
        /// The port, if it changes.
        port: Option<u16>,
    },
}

/// What the rules say, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome<'a> {
    /// The verdict.
    pub decision: Decision,
    /// The last rewriting on the way.
    pub nat: Option<Nat>,
    /// Every rule that was run to its end: its chain, and its number in the chain from 0. A rule that decided is last;
    /// when a policy did, the last entry is just the last rule that matched.
    pub trace: Vec<(&'a str, usize)>,
    /// The elements that were found on the way: name of the set, key.
    pub elements: Vec<(&'a str, &'a Key)>,
}

impl Outcome<'_> {
    fn new(decision: Decision) -> Self {
        Self { decision, nat: None, trace: Vec::new(), elements: Vec::new() }
    }
}

/// Which headers a base chain sees: of the frame, or of the datagram.
fn view(point: HookPoint, packet: &Packet) -> Option<View<'_>> {
    if point == HookPoint::Ingress { packet.at_ingress() } else { packet.in_stack() }
}

/// Runs one base chain. A packet that no such hook ever sees (a frame that is no IP, in the inet family) is dropped, as
/// the kernel does before it comes there; so is every packet when there is no such base chain.
pub fn run<'a>(table: &'a Table, base_chain: &str, packet: &Packet, env: &Env<'_>) -> Outcome<'a> {
    let Some((name, chain)) = table.chains.get_key_value(base_chain) else {
        return Outcome::new(Decision::Drop);
    };
    let Some(view) = chain.hook.as_ref().and_then(|hook| view(hook.point, packet)) else {
        return Outcome::new(Decision::Drop);
    };
    let mut outcome = Outcome::new(Decision::Accept);
    machine::Machine::new(table, name, chain, &view, env).run(&mut outcome);
    outcome
}

/// Runs every base chain that a table has at a hook, lowest priority number first: an accepted packet comes to the next
/// one, any other decision is the last. Chains of equal priority run in the order of their names.
///
/// `device` is the interface of an ingress hook. Without any chain the packet passes.
pub fn hook<'a>(
    table: &'a Table,
    point: HookPoint,
    device: Option<&str>,
    packet: &Packet,
    env: &Env<'_>,
) -> Outcome<'a> {
    sequence(base_chains(table, point, device).collect(), point, packet, env)
}

/// The same for all tables of a family in a namespace.
pub fn hooks<'a>(
    ruleset: &'a Ruleset,
    family: Family,
    point: HookPoint,
    device: Option<&str>,
    packet: &Packet,
    env: &Env<'_>,
) -> Outcome<'a> {
    let tables = ruleset.tables.iter().filter(|((of, _), _)| *of == family);
    sequence(tables.flat_map(|(_, table)| base_chains(table, point, device)).collect(), point, packet, env)
}

/// A base chain with what it takes to run it in its turn.
struct Base<'a> {
    priority: i32,
    kind: ChainKind,
    table: &'a Table,
    name: &'a str,
    chain: &'a Chain,
}

fn base_chains<'a>(table: &'a Table, point: HookPoint, device: Option<&str>) -> impl Iterator<Item = Base<'a>> {
    let chains = table.chains.iter().filter(|_| !table.dormant);
    chains.filter_map(move |(name, chain)| {
        let hook = chain.hook.as_ref().filter(|hook| hook.point == point && hook.device.as_deref() == device)?;
        Some(Base { priority: hook.priority, kind: hook.kind, table, name, chain })
    })
}

fn sequence<'a>(mut chains: Vec<Base<'a>>, point: HookPoint, packet: &Packet, env: &Env<'_>) -> Outcome<'a> {
    let Some(view) = view(point, packet) else {
        return Outcome::new(Decision::Drop);
    };
    chains.sort_by_key(|base| base.priority);
    let mut outcome = Outcome::new(Decision::Accept);
    for base in chains {
        // nf_nat_inet_fn asks only while the connection is not set up, and never without one.
        if base.kind == ChainKind::Nat && !env.ct.is_some_and(|ct| ct.is_new()) {
            continue;
        }
        machine::Machine::new(base.table, base.name, base.chain, &view, env).run(&mut outcome);
        if outcome.decision != Decision::Accept {
            break;
        }
    }
    outcome
}
