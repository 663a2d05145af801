//! The virtual machine of nftables: `nft_do_chain` and the expressions.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::conntrack::CtState;
use super::{Decision, Env, Nat, Outcome, key};
use crate::packet::{IPV4, View};
use crate::ruleset::{Base, Chain, CtKey, Expr, HookPoint, MetaKey, Reg, Rule, Table, Verdict};

/// `NFT_JUMP_STACK_SIZE`.
const JUMP_STACK: usize = 16;
/// More chains than any rule set leads a packet through; the kernel refuses circles when they are loaded.
const MOST_CHAINS: usize = 1024;
/// `NFPROTO_NETDEV`, which `meta nfproto` gives in a netdev table.
const NETDEV: u8 = 5;

const REGISTERS: usize = 16;
const REGISTER: usize = 4;

/// What an expression does to the run.
enum Step<'a> {
    /// The next expression.
    Next,
    /// The rule does not match.
    Break,
    Decide(Decision),
    Goto(&'a str),
    Jump(&'a str),
    Return,
}

/// `Break` for a load that could not be done.
fn done<T>(loaded: Option<T>) -> Step<'static> {
    loaded.map_or(Step::Break, |_| Step::Next)
}

fn only_if(matches: bool) -> Step<'static> {
    if matches { Step::Next } else { Step::Break }
}

/// The sixteen registers.
struct Registers([u8; REGISTERS * REGISTER]);

impl Registers {
    fn load(&self, reg: Reg, len: usize) -> Option<&[u8]> {
        let start = usize::from(reg.0) * REGISTER;
        self.0.get(start..start.checked_add(len)?)
    }

    /// Stores a value; the rest of its last register becomes zero.
    fn store(&mut self, reg: Reg, value: &[u8]) -> Option<()> {
        let start = usize::from(reg.0) * REGISTER;
        let place = self.0.get_mut(start..start.checked_add(value.len().next_multiple_of(REGISTER))?)?;
        let (bytes, padding) = place.split_at_mut(value.len());
        bytes.copy_from_slice(value);
        padding.fill(0);
        Some(())
    }

    fn number(&self, reg: Reg) -> Option<u32> {
        Some(u32::from_ne_bytes(self.load(reg, 4)?.try_into().ok()?))
    }
}

/// One base chain at work on one packet.
pub(super) struct Machine<'a, 'p> {
    table: &'a Table,
    base: (&'a str, &'a Chain),
    view: &'p View<'p>,
    env: &'p Env<'p>,
    registers: Registers,
}

impl<'a, 'p> Machine<'a, 'p> {
    pub(super) fn new(table: &'a Table, name: &'a str, chain: &'a Chain, view: &'p View<'p>, env: &'p Env<'p>) -> Self {
        Self { table, base: (name, chain), view, env, registers: Registers([0; REGISTERS * REGISTER]) }
    }

    fn point(&self) -> HookPoint {
        self.base.1.hook.as_ref().map_or(HookPoint::Ingress, |hook| hook.point)
    }

    /// Runs to a decision, which it writes into `outcome` with what led there.
    pub(super) fn run(mut self, outcome: &mut Outcome<'a>) {
        outcome.decision = match self.walk(outcome) {
            Some(decision) => decision,
            None if self.base.1.hook.as_ref().is_some_and(|hook| hook.policy_accept) => Decision::Accept,
            None => Decision::Drop,
        };
    }

    /// The decision of a rule; `None` when the chain came to its end.
    fn walk(&mut self, outcome: &mut Outcome<'a>) -> Option<Decision> {
        let (mut name, mut rules) = (self.base.0, &self.base.1.rules[..]);
        let mut number = 0;
        let mut stack = Vec::new();
        let mut entered = 0;
        loop {
            let Some(rule) = rules.get(number) else {
                (name, rules, number) = stack.pop()?;
                continue;
            };
            let step = self.rule(rule, outcome);
            if !matches!(step, Step::Break) {
                outcome.trace.push((name, number));
            }
            number += 1;
            match step {
                Step::Next | Step::Break => continue,
                Step::Decide(decision) => return Some(decision),
                Step::Return => {
                    (name, rules, number) = stack.pop()?;
                    continue;
                }
                Step::Jump(_) => stack.push((name, rules, number)),
                Step::Goto(_) => (),
            }
            entered += 1;
            if stack.len() > JUMP_STACK || entered > MOST_CHAINS {
                return Some(Decision::Drop);
            }
            let (Step::Jump(target) | Step::Goto(target)) = step else { continue };
            let Some(chain) = self.table.chains.get(target) else {
                return Some(Decision::Drop);
            };
            (name, rules, number) = (target, &chain.rules, 0);
        }
    }

    /// Runs a rule up to the first expression that does not let it go on.
    fn rule(&mut self, rule: &'a Rule, outcome: &mut Outcome<'a>) -> Step<'a> {
        rule.0
            .iter()
            .map(|expr| self.expr(expr, outcome))
            .find(|step| !matches!(step, Step::Next))
            .unwrap_or(Step::Next)
    }

    fn expr(&mut self, expr: &'a Expr, outcome: &mut Outcome<'a>) -> Step<'a> {
        match expr {
            Expr::Meta { key, dreg } => done(self.meta(*key, *dreg)),
            Expr::Payload { base, offset, len, dreg } => done(self.payload(*base, *offset, *len, *dreg)),
            Expr::RoutingHeaderExists { dreg } => done(self.exists(*dreg, self.view.has_routing_header())),
            Expr::FragmentHeaderExists { dreg } => done(self.exists(*dreg, self.view.has_fragment_header())),
            // What cannot be read does not match: the kernel may be of another mind, so nobody should rely on it.
            Expr::Unknown(_) => Step::Break,
            Expr::CtCountOver { count } => only_if(self.env.connections > *count),
            Expr::Ct { key, dreg } => done(self.ct(*key, *dreg)),
            Expr::FibDaddrType { dreg } => done(self.store_number(*dreg, self.env.fib_daddr_type)),
            Expr::RtTcpMss { dreg } => done(self.tcp_mss(*dreg)),
            Expr::Immediate { dreg, data } => done(self.registers.store(*dreg, data)),
            Expr::Bitwise { sreg, dreg, mask, xor } => done(self.bitwise(*sreg, *dreg, mask, xor)),
            Expr::Cmp { equal, sreg, data } => {
                only_if(self.registers.load(*sreg, data.len()).is_some_and(|value| (value == &data[..]) == *equal))
            }
            Expr::Lookup { set, sreg, dreg, invert } => done(self.lookup(set, *sreg, *dreg, *invert, outcome)),
            Expr::Update { set, .. } => only_if(self.table.sets.contains_key(set) && !self.env.dynamic_full),
            Expr::CountOver { set, count, .. } => {
                let placed = self.table.sets.contains_key(set) && !self.env.dynamic_full;
                only_if(placed && self.env.connections > *count)
            }
            // nft_limit: with `over` it matches what is beyond, without it what is not.
            Expr::Limit { over, .. } => only_if(self.env.limits_exhausted == *over),
            Expr::Log { .. } | Expr::Counter => Step::Next,
            Expr::SetTcpMss { .. } => only_if(self.is_tcp()),
            Expr::Fwd { sreg } => {
                self.registers.number(*sreg).map_or(Step::Break, |index| Step::Decide(Decision::Forwarded(index)))
            }
            Expr::Reject(reject) => Step::Decide(Decision::Rejected(*reject)),
            Expr::Masquerade => translated(outcome, Some(Nat::Masquerade)),
            Expr::Dnat { ipv6, addr, port } => translated(outcome, self.destination(*ipv6, *addr, *port)),
            Expr::Verdict(verdict) => step_of(verdict),
        }
    }

    fn store_number(&mut self, dreg: Reg, number: u32) -> Option<()> {
        self.registers.store(dreg, &number.to_ne_bytes())
    }

    fn meta(&mut self, key: MetaKey, dreg: Reg) -> Option<()> {
        match key {
            MetaKey::Iif => self.store_number(dreg, self.env.iif),
            MetaKey::Oif => self.store_number(dreg, self.env.oif),
            MetaKey::Iifgroup => self.store_number(dreg, self.env.iifgroup.unwrap_or_else(|| group(self.env.iifname))),
            MetaKey::Oifgroup => self.store_number(dreg, self.env.oifgroup.unwrap_or_else(|| group(self.env.oifname))),
            MetaKey::Iifname => self.registers.store(dreg, &link_name(self.env.iifname)),
            MetaKey::Oifname => self.registers.store(dreg, &link_name(self.env.oifname)),
            MetaKey::L4proto => self.registers.store(dreg, &[self.view.transport?.protocol]),
            MetaKey::Protocol => self.registers.store(dreg, &self.view.protocol.to_be_bytes()),
            MetaKey::Nfproto => {
                let inet = if self.view.protocol == IPV4 { 2 } else { 10 };
                let nfproto = if self.point() == HookPoint::Ingress { NETDEV } else { inet };
                self.registers.store(dreg, &[nfproto])
            }
        }
    }

    fn payload(&mut self, base: Base, offset: u32, len: u32, dreg: Reg) -> Option<()> {
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        match base {
            // What this namespace sends has no link-layer header yet.
            Base::Link if self.point() == HookPoint::Output => None,
            Base::Link => self.registers.store(dreg, self.view.link(offset, len)?),
            Base::Network => self.registers.store(dreg, self.view.network(offset, len)?),
            Base::Transport => self.registers.store(dreg, self.view.transport(offset, len)?),
        }
    }

    fn exists(&mut self, dreg: Reg, header: Option<bool>) -> Option<()> {
        self.registers.store(dreg, &[u8::from(header?)])
    }

    fn ct(&mut self, key: CtKey, dreg: Reg) -> Option<()> {
        let connection = self.env.ct.filter(|ct| ct.has_connection());
        match key {
            CtKey::State => self.store_number(dreg, self.env.ct.map_or(CtState::INVALID, |ct| ct.state)),
            CtKey::Direction => self.registers.store(dreg, &[connection?.direction]),
            CtKey::Status => self.store_number(dreg, connection?.status),
        }
    }

    fn tcp_mss(&mut self, dreg: Reg) -> Option<()> {
        self.registers.store(dreg, &self.env.tcp_mss?.to_be_bytes())
    }

    fn is_tcp(&self) -> bool {
        self.view.transport.is_some_and(|transport| transport.protocol == 6) && self.view.transport(0, 20).is_some()
    }

    fn bitwise(&mut self, sreg: Reg, dreg: Reg, mask: &[u8], xor: &[u8]) -> Option<()> {
        let value = self.registers.load(sreg, mask.len())?;
        let result: Vec<u8> =
            value.iter().zip(mask).zip(xor).map(|((value, mask), xor)| (value & mask) ^ xor).collect();
        (result.len() == mask.len()).then_some(())?;
        self.registers.store(dreg, &result)
    }

    fn lookup(
        &mut self,
        name: &'a str,
        sreg: Reg,
        dreg: Option<Reg>,
        invert: bool,
        outcome: &mut Outcome<'a>,
    ) -> Option<()> {
        let set = self.table.sets.get(name)?;
        let found = key::find(set, self.registers.load(sreg, key::key_len(set))?);
        if found.is_some() == invert {
            return None;
        }
        let Some((element, answer)) = found else { return Some(()) };
        outcome.elements.push((name, element));
        dreg.map_or(Some(()), |dreg| self.registers.store(dreg, answer?))
    }

    fn destination(&self, ipv6: bool, addr: Reg, port: Option<Reg>) -> Option<Nat> {
        let port = match port {
            Some(reg) => Some(u16::from_be_bytes(self.registers.load(reg, 2)?.try_into().ok()?)),
            None => None,
        };
        let address = if ipv6 {
            Ipv6Addr::from(<[u8; 16]>::try_from(self.registers.load(addr, 16)?).ok()?).into()
        } else {
            Ipv4Addr::from(<[u8; 4]>::try_from(self.registers.load(addr, 4)?).ok()?).into()
        };
        Some(Nat::Destination { address, port })
    }
}

fn step_of(verdict: &Verdict) -> Step<'_> {
    match verdict {
        Verdict::Accept => Step::Decide(Decision::Accept),
        Verdict::Drop => Step::Decide(Decision::Drop),
        Verdict::Goto(chain) => Step::Goto(chain),
        Verdict::Jump(chain) => Step::Jump(chain),
        Verdict::Return => Step::Return,
    }
}

/// A translated packet is accepted (`nf_nat_setup_info`).
fn translated<'a>(outcome: &mut Outcome<'_>, nat: Option<Nat>) -> Step<'a> {
    if nat.is_none() {
        return Step::Break;
    }
    outcome.nat = nat;
    Step::Decide(Decision::Accept)
}

/// A link name as `meta iifname` loads it: 16 bytes, the last a NUL.
/// On the host, where groups are asked for, links of ours are those with a `+` in their name.
fn group(link: &str) -> u32 {
    if link.contains('+') { crate::desired::GROUP } else { 0 }
}

fn link_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
    bytes
}
