//! The rules, run on a class of packets instead of one: where they tell packets apart, the class is divided.
//!
//! What comes out are [`Leaf`]s: classes in which no rule makes a difference, each with its one outcome, none
//! overlapping, and together just what went in. A rule that matches nothing of a class does not divide it.
//!
//! Semantics are those of [`crate::ruleset::decide`]. What is not understood is no guess but an [`Unreadable`].

use std::collections::BTreeMap;
use std::rc::Rc;

use super::class::{Class, Count, Ct, Ip, Var};
use super::index::{Asked, Index, number};
use super::numbers::Numbers;
use crate::graph::Limits;
use crate::ruleset::{
    Base, Chain, ChainKind, CtKey, Expr, Family, Field, HookPoint, MetaKey, Reg, Rule, Ruleset, STRANGE_HOOK, Table,
    Verdict,
};

/// A link as rules see it.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) group: u32,
}

/// Where a packet is, apart from what is in it.
#[derive(Clone, Debug)]
pub(super) struct At<'a> {
    pub(super) point: HookPoint,
    /// Of an ingress hook.
    pub(super) device: Option<&'a str>,
    pub(super) iif: Option<&'a Link>,
    pub(super) oif: Option<&'a Link>,
    /// The addresses that the routing table calls local; none where they are not known.
    pub(super) local: &'a [(Ip, Numbers)],
}

/// What becomes of a packet that is not dropped.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Outcome {
    /// It goes on.
    Accept,
    /// It goes into the wire with this index.
    Forward(u32),
    /// It goes on with the source of the link it leaves by.
    Masquerade,
    /// It goes on to this address, and port if that changes.
    Redirect(u128, Option<u16>),
}

/// A class that the rules do not divide.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) class: Class,
    /// `None` when it is dropped or refused.
    pub(super) outcome: Option<Outcome>,
}

/// A rule that the proof cannot follow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Unreadable {
    pub(super) chain: String,
    pub(super) rule: usize,
    pub(super) why: &'static str,
}

/// One namespace's rules, ready to be run.
pub(super) struct Machine<'a> {
    ruleset: &'a Ruleset,
    /// What rules may count and measure by: with other numbers they limit something else.
    pub(super) limits: Limits,
    /// By table and set; `None` for one that cannot be read.
    indexes: BTreeMap<(&'a (Family, String), &'a str), Option<Index>>,
}

/// A class on its way, with what a translation has made of its destination.
#[derive(Clone)]
struct Packets {
    class: Class,
    redirect: Option<(u128, Option<u16>)>,
}

/// What a register holds.
#[derive(Clone, Debug)]
enum Value {
    Bytes(Vec<u8>),
    /// `((var >> shift) & mask) ^ xor`, so many bits wide.
    Bits {
        var: Var,
        shift: u32,
        bits: u32,
        mask: u128,
        xor: u128,
    },
    /// By what connection tracking says.
    State(Rc<[u128]>),
    /// `fib daddr type`.
    Fib,
    /// The answer of a map, of which only the least is known.
    Answer {
        has_zero: bool,
    },
}

/// The sixteen registers: first one, how many, what is in them.
#[derive(Clone, Default)]
struct Registers(Vec<(u8, u8, Value)>);

impl Registers {
    /// Stores a value over whatever was there; what it covers only in part is gone.
    fn store(&mut self, reg: u8, value: Value) {
        let count = u8::try_from(value.width().div_ceil(4)).unwrap_or(u8::MAX);
        let end = reg.saturating_add(count);
        self.0.retain(|(start, count, _)| start.saturating_add(*count) <= reg || end <= *start);
        self.0.push((reg, count, value));
    }

    fn load(&self, reg: u8) -> Result<&Value, &'static str> {
        let found = self.0.iter().find(|(start, ..)| *start == reg);
        found.map(|(.., value)| value).ok_or("it reads a register that it has not loaded")
    }
}

/// What the rest of a rule makes of packets that came so far.
enum Effect<'a> {
    None,
    Decide(Option<Outcome>),
    Goto(&'a str),
    Jump(&'a str),
    Return,
}

/// What one rule makes of a class.
struct Ran<'a> {
    matched: Vec<(Packets, Effect<'a>)>,
    missed: Vec<Packets>,
}

/// What a chain makes of classes.
#[derive(Default)]
struct Walked {
    decided: Vec<(Packets, Option<Outcome>)>,
    /// Came to the end.
    ended: Vec<Packets>,
}

const DEEPEST: usize = 16;

impl<'a> Machine<'a> {
    pub(super) fn new(ruleset: &'a Ruleset) -> Self {
        let sets = ruleset.tables.iter().flat_map(|(table, inner)| inner.sets.iter().map(move |set| (table, set)));
        let sets = sets.filter(|(_, (_, set))| set.dynamic.is_none());
        let indexes = sets.map(|(table, (name, set))| ((table, name.as_str()), Index::new(set).ok())).collect();
        Self { ruleset, limits: Limits::default(), indexes }
    }

    /// Every base chain of a family at a hook, in their order. Without any, everything goes on.
    ///
    /// # Errors
    ///
    /// [`Unreadable`].
    ///
    /// # Panics
    ///
    /// When the leaves are not exactly `class`: a bug of this module, for which there is no proof to be had.
    pub(super) fn run(&self, family: Family, at: &At<'_>, class: &Class) -> Result<Vec<Leaf>, Unreadable> {
        self.unasked(family)?;
        let mut going = vec![(Packets { class: class.clone(), redirect: None }, Outcome::Accept)];
        let mut leaves = Vec::new();
        for (table, name, chain) in self.chains(family, at) {
            let hook = chain.hook.as_ref().expect("a base chain has a hook");
            let mut next = Vec::new();
            for (packets, before) in going {
                // nf_nat_inet_fn asks only while the connection is not set up.
                let (asked, passed) = match hook.kind {
                    ChainKind::Nat => packets.class.split(Var::Ct, &Ct::set(&[Ct::New])),
                    ChainKind::Filter => (Some(packets.class.clone()), None),
                };
                next.extend(passed.map(|class| (Packets { class, ..packets.clone() }, before)));
                let Some(class) = asked else { continue };
                let run = Run { machine: self, table, at };
                let Walked { decided, ended } =
                    run.chain(name, chain, vec![Packets { class, ..packets.clone() }], 0)?;
                let policy = hook.policy_accept.then_some(Outcome::Accept);
                let ended = ended.into_iter().map(|packets| (packets, policy));
                for (mut packets, outcome) in decided.into_iter().chain(ended) {
                    match outcome {
                        Some(Outcome::Accept) => next.push((packets, before)),
                        Some(translated @ Outcome::Masquerade) => next.push((packets, translated)),
                        Some(translated @ Outcome::Redirect(address, port)) => {
                            packets.redirect = Some((address, port));
                            next.push((packets, translated));
                        }
                        over => leaves.push(Leaf { class: packets.class, outcome: over }),
                    }
                }
            }
            going = next;
        }
        leaves
            .extend(going.into_iter().map(|(packets, outcome)| Leaf { class: packets.class, outcome: Some(outcome) }));
        let sum = leaves.iter().fold(Count::default(), |sum, leaf| sum.plus(&Count::of(&leaf.class)));
        assert!(sum == Count::of(class), "the leaves are exactly what they were divided from");
        Ok(leaves)
    }

    /// That no chain hangs where nobody asks: at a hook of another family, or at one that the model has no word for.
    fn unasked(&self, family: Family) -> Result<(), Unreadable> {
        for ((of, _), table) in &self.ruleset.tables {
            for (name, chain) in &table.chains {
                let why = match &chain.hook {
                    Some(_) if *of != family => "it hangs at a hook of another family",
                    None if chain.rules.iter().any(is_strange_hook) => "it hangs at a hook that nobody here knows",
                    _ => continue,
                };
                return Err(Unreadable { chain: name.clone(), rule: 0, why });
            }
        }
        Ok(())
    }

    fn chains(&self, family: Family, at: &At<'_>) -> Vec<(&'a (Family, String), &'a str, &'a Chain)> {
        let tables = self.ruleset.tables.iter().filter(|((of, _), table)| *of == family && !table.dormant);
        let all = tables.flat_map(|(key, table)| table.chains.iter().map(move |(name, chain)| (key, name, chain)));
        let here = all.filter_map(|(key, name, chain)| {
            let hook = chain.hook.as_ref()?;
            let meant = hook.point == at.point && hook.device.as_deref() == at.device;
            meant.then_some((hook.priority, key, name.as_str(), chain))
        });
        let mut here: Vec<_> = here.collect();
        here.sort_by_key(|(priority, ..)| *priority);
        here.into_iter().map(|(_, key, name, chain)| (key, name, chain)).collect()
    }

    fn table(&self, key: &(Family, String)) -> &'a Table {
        &self.ruleset.tables[key]
    }
}

/// A table at work.
struct Run<'m, 'a> {
    machine: &'m Machine<'a>,
    table: &'a (Family, String),
    at: &'m At<'m>,
}

impl<'a> Run<'_, 'a> {
    fn chain(&self, name: &str, chain: &'a Chain, going: Vec<Packets>, depth: usize) -> Result<Walked, Unreadable> {
        let mut walked = Walked::default();
        let mut going = going;
        for (rule_number, rule) in chain.rules.iter().enumerate().filter(|(_, rule)| decides(rule)) {
            let mut next = Vec::new();
            for packets in going {
                let ran = self.rule(rule, &packets);
                let Ran { matched, missed } =
                    ran.map_err(|why| Unreadable { chain: name.to_owned(), rule: rule_number, why })?;
                next.extend(missed);
                for (packets, effect) in matched {
                    let (target, comes_back) = match effect {
                        Effect::None => {
                            next.push(packets);
                            continue;
                        }
                        Effect::Decide(outcome) => {
                            walked.decided.push((packets, outcome));
                            continue;
                        }
                        Effect::Return => {
                            walked.ended.push(packets);
                            continue;
                        }
                        Effect::Goto(target) => (target, false),
                        Effect::Jump(target) => (target, true),
                    };
                    let Some(to) = self.machine.table(self.table).chains.get(target).filter(|_| depth < DEEPEST) else {
                        walked.decided.push((packets, None));
                        continue;
                    };
                    let inner = self.chain(target, to, vec![packets], depth + 1)?;
                    walked.decided.extend(inner.decided);
                    if comes_back { next.extend(inner.ended) } else { walked.ended.extend(inner.ended) }
                }
            }
            going = next;
        }
        walked.ended.extend(going);
        Ok(walked)
    }

    fn rule(&self, rule: &'a Rule, packets: &Packets) -> Result<Ran<'a>, &'static str> {
        let mut going = vec![(packets.clone(), Registers::default())];
        let (mut matched, mut missed) = (Vec::new(), Vec::new());
        for (n, expr) in rule.0.iter().enumerate() {
            if ends(expr) {
                for (packets, registers) in going.drain(..) {
                    matched.push((packets, effect(expr, &registers)?));
                }
                break;
            }
            let mut next = Vec::new();
            for (packets, registers) in going {
                self.expr(expr, &rule.0[n + 1..], packets, registers, &mut next, &mut missed)?;
            }
            going = next;
        }
        matched.extend(going.into_iter().map(|(packets, _)| (packets, Effect::None)));
        if matched.is_empty() {
            // Nobody was told apart.
            missed = vec![packets.clone()];
        }
        Ok(Ran { matched, missed })
    }

    /// One expression on the way: who goes on, and who does not match.
    fn expr(
        &self,
        expr: &Expr,
        rest: &[Expr],
        packets: Packets,
        mut registers: Registers,
        next: &mut Vec<(Packets, Registers)>,
        missed: &mut Vec<Packets>,
    ) -> Result<(), &'static str> {
        let mut divide = |packets: Packets, registers: Registers, var: Var, numbers: &Numbers| {
            let (inside, outside) = packets.class.split(var, numbers);
            next.extend(inside.map(|class| (Packets { class, ..packets.clone() }, registers)));
            missed.extend(outside.map(|class| Packets { class, ..packets }));
        };
        let is = |yes: bool| Numbers::one(u128::from(yes));
        match expr {
            Expr::Counter | Expr::Log { .. } => next.push((packets, registers)),
            Expr::Immediate { dreg, data } => {
                registers.store(dreg.0, Value::Bytes(data.clone()));
                next.push((packets, registers));
            }
            Expr::Limit { per_second, burst, over } => {
                let rate = self.machine.limits.new_per_second;
                // So many at once as in a second, five at least.
                if rate.is_none_or(|rate| *per_second != u64::from(rate) || *burst != rate.max(5)) {
                    return Err("it limits how many come in a second by other numbers than the policy's");
                }
                divide(packets, registers, Var::Exhausted, &is(*over));
            }
            Expr::CtCountOver { count } => {
                if self.machine.limits.flows != Some(*count) {
                    return Err("it limits how many connections there are by another number than the policy's");
                }
                divide(packets, registers, Var::Crowded, &is(true));
            }
            Expr::Meta { .. }
            | Expr::Payload { .. }
            | Expr::RoutingHeaderExists { .. }
            | Expr::FragmentHeaderExists { .. }
            | Expr::Ct { .. }
            | Expr::FibDaddrType { .. } => {
                let Some((dreg, load)) = self.load(expr, &packets)? else {
                    missed.push(packets);
                    return Ok(());
                };
                let mut class = Some(packets.class.clone());
                for (var, numbers) in &load.needs {
                    let Some(here) = class else { break };
                    let (inside, outside) = here.split(*var, numbers);
                    missed.extend(outside.map(|class| Packets { class, ..packets.clone() }));
                    class = inside;
                }
                registers.store(dreg, load.value);
                next.extend(class.map(|class| (Packets { class, ..packets }, registers)));
            }
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                let value = registers.load(sreg.0)?.masked(mask, xor)?;
                registers.store(dreg.0, value);
                next.push((packets, registers));
            }
            Expr::Cmp { equal, sreg, data } => match registers.load(sreg.0)? {
                Value::Bytes(bytes) => {
                    let head = bytes.get(..data.len()).ok_or("it compares more bytes than it has loaded")?;
                    if (head == &data[..]) == *equal { next.push((packets, registers)) } else { missed.push(packets) }
                }
                Value::Answer { has_zero: false } if !equal && data.iter().all(|byte| *byte == 0) => {
                    next.push((packets, registers));
                }
                Value::Answer { .. } => return Err("it compares the answer of a map"),
                Value::Bits { var, shift, bits, mask, xor } => {
                    let (var, numbers) = (*var, equals(*var, packets.class.ip(), (*shift, *bits, *mask, *xor), data)?);
                    let numbers = if *equal { numbers } else { complement(var, packets.class.ip(), &numbers) };
                    divide(packets, registers, var, &numbers);
                }
                Value::State(values) => {
                    let holds = |value: &u128| (*value == number(data)) == *equal;
                    let states = Numbers::each((0u128..).zip(values.iter()).filter(|(_, v)| holds(v)).map(|(n, _)| n));
                    divide(packets, registers, Var::Ct, &states);
                }
                Value::Fib => {
                    // RTN_LOCAL; what else there is depends on more than addresses.
                    if data[..] != 2u32.to_ne_bytes() {
                        return Err("it asks for another type of address than a local one");
                    }
                    if self.at.local.is_empty() {
                        return Err("it asks whether an address is local, where nobody here knows which are");
                    }
                    let local = self.at.local.iter().filter(|(ip, _)| *ip == packets.class.ip());
                    let local = local.fold(Numbers::new(vec![]), |all, (_, some)| all.or(some));
                    if let Some((to, _)) = packets.redirect {
                        let goes_on = local.holds(to) == *equal;
                        if goes_on {
                            next.push((packets, registers))
                        } else {
                            missed.push(packets)
                        }
                        return Ok(());
                    }
                    let numbers = if *equal { local } else { complement(Var::Daddr, packets.class.ip(), &local) };
                    divide(packets, registers, Var::Daddr, &numbers);
                }
            },
            Expr::Lookup { set, sreg, dreg, invert } => {
                let (name, set) =
                    self.machine.table(self.table).sets.get_key_value(set).ok_or("it asks a set that is not there")?;
                let index = self.machine.indexes.get(&(self.table, name.as_str())).and_then(Option::as_ref);
                let index = index.ok_or("it asks a set that cannot be read")?;
                let mut key = Vec::new();
                let mut at = sreg.0;
                for field in &set.key {
                    key.push(registers.load(at)?.asked(field.width(), packets.class.ip())?);
                    at += u8::try_from(field.padded_len() / 4).map_err(|_| "its key is too long")?;
                }
                // Only who sends by the answer has to be told apart by it.
                if set.interval && set.key.contains(&Field::IfaceIndex) && self.at.point != HookPoint::Ingress {
                    return Err("it asks for a range of interfaces");
                }
                let answers = dreg.is_some_and(|dreg| is_sent_by(rest, dreg));
                let (hits, misses) = index.ask(&packets.class, &key, answers);
                let these = |class: Class| Packets { class, ..packets.clone() };
                if *invert {
                    next.extend(misses.into_iter().map(|class| (these(class), registers.clone())));
                    missed.extend(hits.into_iter().map(|(class, _)| these(class)));
                    return Ok(());
                }
                missed.extend(misses.into_iter().map(these));
                for (class, answer) in hits {
                    let mut registers = registers.clone();
                    if let (Some(dreg), Some(data)) = (dreg, set.data) {
                        let value = if answers {
                            Value::Bytes(answer.to_be_bytes()[16 - data.width()..].to_vec())
                        } else {
                            Value::Answer { has_zero: index.has_zero }
                        };
                        registers.store(dreg.0, value);
                    }
                    next.push((these(class), registers));
                }
            }
            Expr::Unknown(_) => return Err("it has an expression that nobody here knows"),
            Expr::Update { .. } | Expr::CountOver { .. } => return Err("its verdict depends on how full a set is"),
            Expr::RtTcpMss { .. } | Expr::SetTcpMss { .. } => return Err("its verdict depends on a route"),
            Expr::Fwd { .. } | Expr::Verdict(_) | Expr::Reject(_) | Expr::Masquerade | Expr::Dnat { .. } => {
                unreachable!("what ends a rule has been told by `ends`")
            }
        }
        Ok(())
    }

    /// What a load gives and needs; `None` when it never matches.
    fn load(&self, expr: &Expr, packets: &Packets) -> Result<Option<(u8, Load)>, &'static str> {
        let ip = packets.class.ip();
        let known = |bytes: &[u8]| Load { value: Value::Bytes(bytes.to_vec()), needs: vec![] };
        let index = |link: Option<&Link>| known(&link.map_or(0, |link| link.index).to_ne_bytes());
        let group = |link: Option<&Link>| known(&link.map_or(0, |link| link.group).to_ne_bytes());
        let name = |link: Option<&Link>| {
            let mut bytes = link.map_or(Vec::new(), |link| link.name.bytes().take(15).collect());
            bytes.resize(16, 0);
            known(&bytes)
        };
        Ok(Some(match expr {
            Expr::Meta { key, dreg } => {
                let load = match key {
                    MetaKey::Iif => index(self.at.iif),
                    MetaKey::Oif => index(self.at.oif),
                    MetaKey::Iifgroup => group(self.at.iif),
                    MetaKey::Oifgroup => group(self.at.oif),
                    MetaKey::Iifname => name(self.at.iif),
                    MetaKey::Oifname => name(self.at.oif),
                    MetaKey::Nfproto if self.at.point == HookPoint::Ingress => known(&[5]),
                    MetaKey::Nfproto => known(&[if ip == Ip::V4 { 2 } else { 10 }]),
                    MetaKey::Protocol => Load::of(Var::Ether, 16),
                    MetaKey::L4proto if ip == Ip::Neither => return Ok(None),
                    MetaKey::L4proto => Load::of(Var::Proto, 8).needing(Var::Sense, Numbers::one(1)),
                };
                (dreg.0, load)
            }
            Expr::Payload { base, offset, len, dreg } => match self.payload(*base, *offset, *len, packets)? {
                Some(load) => (dreg.0, load),
                None => return Ok(None),
            },
            Expr::RoutingHeaderExists { dreg } if ip == Ip::V6 => (dreg.0, Load::yes_or_no(Var::RtHeader)),
            Expr::FragmentHeaderExists { dreg } if ip == Ip::V6 => (dreg.0, Load::yes_or_no(Var::FragHeader)),
            Expr::Ct { key: CtKey::State, dreg } => {
                let states = Ct::ALL.map(|ct| number(&ct.state().to_ne_bytes()));
                (dreg.0, Load { value: Value::State(states.into()), needs: vec![] })
            }
            Expr::Ct { key: CtKey::Direction, dreg } => {
                let known: Vec<Ct> = Ct::ALL.into_iter().filter(|ct| ct.direction().is_some()).collect();
                let directions = Ct::ALL.map(|ct| u128::from(ct.direction().unwrap_or_default()));
                let load = Load { value: Value::State(directions.into()), needs: vec![] };
                (dreg.0, load.needing(Var::Ct, Ct::set(&known)))
            }
            Expr::Ct { key: CtKey::Status, .. } => return Err("it asks for the status of a connection"),
            Expr::FibDaddrType { dreg } => (dreg.0, Load { value: Value::Fib, needs: vec![] }),
            _ => return Ok(None),
        }))
    }

    fn payload(&self, base: Base, offset: u32, len: u32, packets: &Packets) -> Result<Option<Load>, &'static str> {
        const ODD: &str = "it loads bytes that nobody here has a name for";
        let class = &packets.class;
        let ip = class.ip();
        let enough = Numbers::range(u128::from(offset) + u128::from(len), u128::MAX);
        let load = match (base, ip, offset, len) {
            (Base::Link, _, 12, 2) if self.at.point == HookPoint::Ingress => return Ok(Some(Load::of(Var::Link, 16))),
            (Base::Network, Ip::V4, 6, 2) => Load::of(Var::Frag, 16),
            (Base::Network, Ip::V4, 12, 4) | (Base::Network, Ip::V6, 8, 16) => Load::of(Var::Saddr, len * 8),
            (Base::Network, Ip::V4, 16, 4) | (Base::Network, Ip::V6, 24, 16) => match packets.redirect {
                Some((address, _)) => {
                    let bytes = address.to_be_bytes()[16 - len as usize..].to_vec();
                    Load { value: Value::Bytes(bytes), needs: vec![] }
                }
                None => Load::of(Var::Daddr, len * 8),
            },
            (Base::Transport, Ip::Neither, ..) => return Ok(None),
            (Base::Transport, _, 0, 1) => {
                Load { value: Value::Bits { var: Var::Sport, shift: 8, bits: 8, mask: 0xff, xor: 0 }, needs: vec![] }
            }
            (Base::Transport, _, 0, 2) => Load::of(Var::Sport, 16),
            (Base::Transport, _, 2, 2) => match packets.redirect {
                Some((_, Some(port))) => Load { value: Value::Bytes(port.to_be_bytes().to_vec()), needs: vec![] },
                _ => Load::of(Var::Dport, 16),
            },
            (Base::Transport, _, 13, 1) => Load::of(Var::Flags, 8),
            (Base::Transport, _, 8, 1) => Load::of(Var::EmbVersion, 8),
            (Base::Transport, Ip::V4, 17, 1) | (Base::Transport, Ip::V6, 14, 1) => Load::of(Var::EmbProto, 8),
            (Base::Transport, Ip::V4, 20, 4) | (Base::Transport, Ip::V6, 16, 16) => Load::of(Var::EmbSaddr, len * 8),
            (Base::Transport, Ip::V4, 24, 4) | (Base::Transport, Ip::V6, 32, 16) => Load::of(Var::EmbDaddr, len * 8),
            (Base::Transport, Ip::V4, 28, 2) | (Base::Transport, Ip::V6, 48, 2) => Load::of(Var::EmbSport, 16),
            (Base::Transport, Ip::V4, 30, 2) | (Base::Transport, Ip::V6, 50, 2) => Load::of(Var::EmbDport, 16),
            _ => return Err(ODD),
        };
        Ok(Some(match base {
            Base::Network => load.needing(Var::NetLen, enough),
            _ => {
                let load = load.needing(Var::Sense, Numbers::one(1)).needing(Var::Len, enough);
                // nft_payload_fast_eval reads on where there is no transport header; what is not quick does not.
                let quick = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
                if quick { load } else { headed(load, ip) }
            }
        }))
    }
}

/// What is read of a hook that the model has no word for.
fn is_strange_hook(rule: &Rule) -> bool {
    matches!(&rule.0[..], [Expr::Unknown(name)] if name == STRANGE_HOOK)
}

/// Whether a rule can decide anything: what only asks, counts, logs, remembers or clamps is no matter of what passes.
pub(super) fn decides(rule: &Rule) -> bool {
    !rule.0.iter().all(|expr| match expr {
        Expr::Meta { .. }
        | Expr::Payload { .. }
        | Expr::RoutingHeaderExists { .. }
        | Expr::FragmentHeaderExists { .. }
        | Expr::Cmp { .. }
        | Expr::Bitwise { .. }
        | Expr::Lookup { .. }
        | Expr::Update { .. }
        | Expr::CountOver { .. }
        | Expr::CtCountOver { .. }
        | Expr::Immediate { .. }
        | Expr::Log { .. }
        | Expr::Limit { .. }
        | Expr::Counter
        | Expr::Ct { .. }
        | Expr::FibDaddrType { .. }
        | Expr::RtTcpMss { .. }
        | Expr::SetTcpMss { .. } => true,
        Expr::Verdict(_)
        | Expr::Fwd { .. }
        | Expr::Reject(_)
        | Expr::Masquerade
        | Expr::Dnat { .. }
        | Expr::Unknown(_) => false,
    })
}

/// Whether a rule ends with this expression.
fn ends(expr: &Expr) -> bool {
    matches!(expr, Expr::Verdict(_) | Expr::Fwd { .. } | Expr::Reject(_) | Expr::Masquerade | Expr::Dnat { .. })
}

/// Whether packets are sent by what is in the register now.
fn is_sent_by(rest: &[Expr], reg: Reg) -> bool {
    for expr in rest {
        match expr {
            Expr::Fwd { sreg } => return *sreg == reg,
            Expr::Meta { dreg, .. } | Expr::Payload { dreg, .. } | Expr::Immediate { dreg, .. } if *dreg == reg => {
                return false;
            }
            _ => {}
        }
    }
    false
}

/// What the expression that ends a rule does.
fn effect<'a>(expr: &'a Expr, registers: &Registers) -> Result<Effect<'a>, &'static str> {
    let constant = |reg: Reg| match registers.load(reg.0)? {
        Value::Bytes(bytes) => Ok(&bytes[..]),
        _ => Err("where it sends packets is not known"),
    };
    Ok(match expr {
        Expr::Verdict(Verdict::Accept) => Effect::Decide(Some(Outcome::Accept)),
        Expr::Verdict(Verdict::Goto(chain)) => Effect::Goto(chain),
        Expr::Verdict(Verdict::Jump(chain)) => Effect::Jump(chain),
        Expr::Verdict(Verdict::Return) => Effect::Return,
        Expr::Masquerade => Effect::Decide(Some(Outcome::Masquerade)),
        Expr::Fwd { sreg } => {
            let index = <[u8; 4]>::try_from(constant(*sreg)?).map_err(|_| "it forwards to what is no index")?;
            Effect::Decide(Some(Outcome::Forward(u32::from_ne_bytes(index))))
        }
        Expr::Dnat { addr, port, .. } => {
            let port = match port {
                Some(reg) => Some(u16::try_from(number(constant(*reg)?)).map_err(|_| "it translates to no port")?),
                None => None,
            };
            Effect::Decide(Some(Outcome::Redirect(number(constant(*addr)?), port)))
        }
        _ => Effect::Decide(None),
    })
}

/// A load: what it gives, and what must be so for it to be done.
struct Load {
    value: Value,
    needs: Vec<(Var, Numbers)>,
}

impl Load {
    fn of(var: Var, bits: u32) -> Self {
        let mask = if bits >= 128 { u128::MAX } else { (1 << bits) - 1 };
        Self { value: Value::Bits { var, shift: 0, bits, mask, xor: 0 }, needs: vec![] }
    }

    fn needing(mut self, var: Var, numbers: Numbers) -> Self {
        self.needs.push((var, numbers));
        self
    }

    /// A yes or no, which the kernel loads as a byte.
    fn yes_or_no(var: Var) -> Self {
        Self { value: Value::Bits { var, shift: 0, bits: 8, mask: 1, xor: 0 }, needs: vec![] }
    }
}

/// Only of a datagram that is not a later part of another.
fn headed(load: Load, ip: Ip) -> Load {
    let offset = if ip == Ip::V4 { 0x1fff } else { 0xfff8 };
    let first = Numbers::masked(16, offset, 0).expect("few ranges");
    load.needing(Var::Frag, first)
}

fn complement(var: Var, ip: Ip, numbers: &Numbers) -> Numbers {
    let (lo, hi) = var.whole(ip);
    Numbers::range(lo, hi).without(numbers)
}

/// The numbers of `var` for which the value is `data`.
fn equals(
    var: Var,
    ip: Ip,
    (shift, bits, mask, xor): (u32, u32, u128, u128),
    data: &[u8],
) -> Result<Numbers, &'static str> {
    if data.len() * 8 != bits as usize {
        return Err("it compares another number of bytes than it has loaded");
    }
    let value = number(data) ^ xor;
    if value & !mask != 0 {
        return Ok(Numbers::new(vec![]));
    }
    Numbers::masked(var.bits(ip), mask << shift, value << shift).ok_or("its mask leaves too many holes")
}

impl Value {
    /// Bytes that it takes.
    fn width(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Bits { bits, .. } => *bits as usize / 8,
            Self::State(_) | Self::Fib | Self::Answer { .. } => 4,
        }
    }

    fn masked(&self, and: &[u8], xor: &[u8]) -> Result<Self, &'static str> {
        let (and_number, xor_number) = (number(and), number(xor));
        match self {
            Self::Bytes(bytes) if bytes.len() == and.len() && xor.len() == and.len() => {
                Ok(Self::Bytes(bytes.iter().zip(and).zip(xor).map(|((byte, and), xor)| byte & and ^ xor).collect()))
            }
            Self::Bits { var, shift, bits, mask, xor: before } if *bits as usize == and.len() * 8 => Ok(Self::Bits {
                var: *var,
                shift: *shift,
                bits: *bits,
                mask: mask & and_number,
                xor: before & and_number ^ xor_number,
            }),
            Self::State(values) if and.len() == 4 => {
                Ok(Self::State(values.iter().map(|value| value & and_number ^ xor_number).collect()))
            }
            _ => Err("it masks what cannot be masked here"),
        }
    }

    /// The value as one field of a key.
    fn asked(&self, width: usize, ip: Ip) -> Result<Asked, &'static str> {
        match self {
            Self::Bytes(bytes) if bytes.len() == width => Ok(Asked::Known(number(bytes))),
            // Only the highest bits, all of them: then a range of the one is a range of the other.
            Self::Bits { var, shift, bits, mask, xor: 0 }
                if *bits as usize == width * 8
                    && var.bits(ip) == shift + bits
                    && (*bits == 128 || *mask == (1 << bits) - 1) =>
            {
                Ok(Asked::Var(*var, *shift))
            }
            _ => Err("it asks a set for what is no field of its key"),
        }
    }
}
