//! A transaction as bytes: what a [`Delta`] says, between the brackets that make the kernel take all of it or nothing.

use netns_policy::ruleset::delta::{Delta, Elements, Op, TableId};
use netns_policy::ruleset::{ChainKind, Family, Hook, HookPoint, Set};

use super::abi::{BATCH_GENID, SUBSYSTEM, chain, element, family, hook, msg, nlm, rule, set, table, verdict};
use super::attribute::{Header, Writer};
use super::expression::write_rule;
use super::set::{Element, elements, write_element, write_shape};

/// Most bytes of a list of elements: an attribute has less than 64 KiB, and one element far less than 1 KiB.
const LIST_MAX: usize = 60_000;

/// A transaction, ready to be sent.
pub(super) struct Batch {
    writer: Writer,
    first: u32,
    next: u32,
    /// Which operation each message after the opening bracket belongs to.
    op_of: Vec<usize>,
}

impl Batch {
    /// The transaction that `delta` is; with `generation`, one that the kernel refuses when its rules are of another.
    pub(super) fn new(delta: &Delta, first: u32, generation: Option<u32>) -> Self {
        let mut batch = Self { writer: Writer::default(), first, next: first, op_of: Vec::new() };
        batch.bracket(msg::BATCH_BEGIN, generation);
        for (index, op) in delta.ops.iter().enumerate() {
            batch.op(op);
            let messages = batch.next - first - 1;
            batch.op_of.resize(messages as usize, index);
        }
        batch.bracket(msg::BATCH_END, None);
        batch
    }

    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.writer.bytes()
    }

    /// The sequence number that the next message of the socket may take.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// The operation that the message with this sequence number belongs to; `None` for the brackets.
    pub(super) fn op_of(&self, sequence: u32) -> Option<usize> {
        let index = sequence.wrapping_sub(self.first).checked_sub(1)?;
        self.op_of.get(index as usize).copied()
    }

    fn bracket(&mut self, kind: u16, generation: Option<u32>) {
        let header =
            Header { kind, flags: nlm::F_REQUEST, sequence: self.take(), family: family::UNSPEC, resource: SUBSYSTEM };
        self.writer.message(&header, |w| generation.iter().for_each(|id| w.put_u32(BATCH_GENID, *id)));
    }

    fn take(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next.wrapping_sub(1)
    }

    fn message(&mut self, kind: u16, flags: u16, of: Family, body: impl FnOnce(&mut Writer)) {
        let header = Header {
            kind,
            flags: nlm::F_REQUEST | flags,
            sequence: self.take(),
            family: family_number(of),
            resource: 0,
        };
        self.writer.message(&header, body);
    }

    fn op(&mut self, op: &Op) {
        match op {
            Op::AddTable { table } => self.table(msg::NEWTABLE, nlm::F_CREATE, table),
            Op::WakeTable { table: (of, name) } => self.message(msg::NEWTABLE, 0, *of, |w| {
                w.put_str(table::NAME, name);
                w.put_u32(table::FLAGS, 0);
            }),
            Op::DeleteTable { table } => self.table(msg::DELTABLE, 0, table),
            Op::AddSet { table, set, shape } => self.add_set(table, set, shape),
            Op::DeleteSet { table: (of, table), set } => self.message(msg::DELSET, 0, *of, |w| {
                w.put_str(set::TABLE, table);
                w.put_str(set::NAME, set);
            }),
            Op::AddChain { table, chain, hook } => self.chain(msg::NEWCHAIN, nlm::F_CREATE, table, chain, |w| {
                hook.iter().for_each(|hook| write_hook(w, hook));
            }),
            Op::SetPolicy { table, chain, accept } => {
                self.chain(msg::NEWCHAIN, 0, table, chain, |w| w.put_u32(chain::POLICY, policy(*accept)));
            }
            Op::DeleteChain { table, chain } => self.chain(msg::DELCHAIN, 0, table, chain, |_| ()),
            Op::FlushChain { table: (of, table), chain } => self.message(msg::DELRULE, 0, *of, |w| {
                w.put_str(rule::TABLE, table);
                w.put_str(rule::CHAIN, chain);
            }),
            Op::AddRule { table: (of, table), chain, rule } => {
                self.message(msg::NEWRULE, nlm::F_CREATE | nlm::F_APPEND, *of, |w| {
                    w.put_str(rule::TABLE, table);
                    w.put_str(rule::CHAIN, chain);
                    write_rule(w, rule::EXPRESSIONS, rule);
                });
            }
            Op::AddElements(elements) => self.elements(msg::NEWSETELEM, nlm::F_CREATE, elements),
            Op::DeleteElements(elements) => self.elements(msg::DELSETELEM, 0, elements),
        }
    }

    fn table(&mut self, kind: u16, flags: u16, (of, name): &TableId) {
        self.message(kind, flags, *of, |w| w.put_str(table::NAME, name));
    }

    fn chain(&mut self, kind: u16, flags: u16, (of, table): &TableId, name: &str, more: impl FnOnce(&mut Writer)) {
        self.message(kind, flags, *of, |w| {
            w.put_str(chain::TABLE, table);
            w.put_str(chain::NAME, name);
            more(w);
        });
    }

    fn add_set(&mut self, (of, table): &TableId, name: &str, shape: &Set) {
        // Any number will do that no other set of this transaction has.
        let id = self.next;
        self.message(msg::NEWSET, nlm::F_CREATE, *of, |w| {
            w.put_str(set::TABLE, table);
            w.put_str(set::NAME, name);
            write_shape(w, id, shape);
        });
    }

    fn elements(&mut self, kind: u16, flags: u16, of: &Elements) {
        let all = elements(&of.of);
        let mut rest = &all[..];
        while !rest.is_empty() {
            rest = self.some_elements(kind, flags, of, rest);
        }
    }

    /// Writes a message with as many elements as fit, and gives back the others.
    fn some_elements<'a>(&mut self, kind: u16, flags: u16, of: &Elements, all: &'a [Element]) -> &'a [Element] {
        let mut room = LIST_MAX;
        let fits = |one: &&Element| {
            let enough = one.room() <= room;
            room -= one.room().min(room);
            enough
        };
        let (now, later) = all.split_at(all.iter().take_while(fits).count());
        self.message(kind, flags, of.table.0, |w| {
            w.put_str(element::LIST_TABLE, &of.table.1);
            w.put_str(element::LIST_SET, &of.set);
            w.nest(element::LIST_ELEMENTS, |w| now.iter().for_each(|one| write_element(w, one)));
        });
        later
    }
}

fn write_hook(w: &mut Writer, of: &Hook) {
    w.put_str(
        chain::TYPE,
        match of.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        },
    );
    w.nest(chain::HOOK, |w| {
        w.put_u32(hook::HOOKNUM, hook_number(of.point));
        w.put(hook::PRIORITY, &of.priority.to_be_bytes());
        of.device.iter().for_each(|device| w.put_str(hook::DEV, device));
    });
    w.put_u32(chain::POLICY, policy(of.policy_accept));
}

fn policy(accept: bool) -> u32 {
    (if accept { verdict::ACCEPT } else { verdict::DROP }).cast_unsigned()
}

/// The number of a hook in its family.
pub(super) fn hook_number(point: HookPoint) -> u32 {
    match point {
        HookPoint::Ingress | HookPoint::Prerouting => 0,
        HookPoint::Input => 1,
        HookPoint::Forward => 2,
        HookPoint::Output => 3,
        HookPoint::Postrouting => 4,
    }
}

/// `NFPROTO_*` of a family.
pub(super) fn family_number(of: Family) -> u8 {
    match of {
        Family::Inet => family::INET,
        Family::Netdev => family::NETDEV,
    }
}
