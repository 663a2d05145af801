//! What to send so that one ruleset becomes another.
//!
//! # Invariants
//!
//! - Applying [`Delta::between`]`(a, b)` to `a` gives `b`, in one transaction, with operations in an order that the
//!   kernel accepts: what refers goes before what it refers to, and comes after it.
//! - Between equal rulesets it is empty.
//! - What need not change is not touched: an element more is one operation, and a chain keeps its hook.
//! - [`Delta::narrowing`], [`Delta::skeleton`] and [`Delta::elements_added`], applied one after the other, come to the
//!   same end as the whole; so do [`Delta::exchange`], [`Delta::skeleton`] and [`Delta::elements_new`].

use std::collections::BTreeSet;

use super::{Chain, Expr, Family, Field, Hook, Key, Members, Rule, Ruleset, Set, Table, Verdict};
use crate::shared::Shared;

/// A table, as the kernel finds it.
pub type TableId = (Family, String);

/// One change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Removes every rule of a chain.
    FlushChain {
        /// Its table.
        table: TableId,
        /// Its name.
        chain: String,
    },
    /// Removes elements.
    DeleteElements(Elements),
    /// Removes a chain without rules.
    DeleteChain {
        /// Its table.
        table: TableId,
        /// Its name.
        chain: String,
    },
    /// Removes a set that no rule asks.
    DeleteSet {
        /// Its table.
        table: TableId,
        /// Its name.
        set: String,
    },
    /// Removes a table and all that is in it.
    DeleteTable {
        /// The table.
        table: TableId,
    },
    /// Hangs the chains of a dormant table where they belong. Not in one transaction with a new base chain: the kernel
    /// takes no such thing.
    WakeTable {
        /// The table.
        table: TableId,
    },
    /// Makes an empty table.
    AddTable {
        /// The table.
        table: TableId,
    },
    /// Makes an empty set.
    AddSet {
        /// Its table.
        table: TableId,
        /// Its name.
        set: String,
        /// What it is; without elements.
        shape: Set,
    },
    /// Makes a chain without rules.
    AddChain {
        /// Its table.
        table: TableId,
        /// Its name.
        chain: String,
        /// Its hook.
        hook: Option<Hook>,
    },
    /// Changes the policy of a base chain in place.
    SetPolicy {
        /// Its table.
        table: TableId,
        /// Its name.
        chain: String,
        /// The new policy: `true` accepts.
        accept: bool,
    },
    /// Adds a rule at the end of a chain.
    AddRule {
        /// Its table.
        table: TableId,
        /// The chain.
        chain: String,
        /// The rule.
        rule: Rule,
    },
    /// Adds elements.
    AddElements(Elements),
}

/// Elements of one set that come or go together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Elements {
    /// The table of the set.
    pub table: TableId,
    /// The set's name.
    pub set: String,
    /// What the set is, with the elements concerned and no others.
    pub of: Set,
    /// A rule asks for keys that are *not* in this set, so that taking one away may allow more.
    pub inverted: bool,
}

/// Ordered operations of one transaction.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Delta {
    /// The operations.
    pub ops: Shared<Vec<Op>>,
}

impl Delta {
    /// What turns `observed` into `desired`.
    pub fn between(observed: &Ruleset, desired: &Ruleset) -> Self {
        let mut steps = Steps::default();
        let ids: BTreeSet<&TableId> = observed.tables.keys().chain(desired.tables.keys()).collect();
        for id in ids {
            match (observed.tables.get(id), desired.tables.get(id)) {
                (None, Some(new)) => {
                    steps.add_table.push(Op::AddTable { table: id.clone() });
                    steps.change(id, &Table::default(), new);
                }
                (Some(old), Some(new)) => {
                    let wakes = old.dormant && !new.dormant;
                    steps.wake_table.extend(wakes.then(|| Op::WakeTable { table: id.clone() }));
                    steps.change(id, old, new);
                }
                (Some(_), None) => steps.delete_table.push(Op::DeleteTable { table: id.clone() }),
                (None, None) => {}
            }
        }
        steps.in_order()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The operations for which `keep` holds.
    pub fn filtered(&self, keep: impl Fn(&Op) -> bool) -> Self {
        let mut ops: Vec<Op> = self.ops.iter().filter(|op| keep(op)).cloned().collect();
        ops.shrink_to_fit();
        Self { ops: ops.into() }
    }

    /// The part that can only refuse more: tables that wake, and elements that go, except from sets that some rule asks
    /// inverted.
    pub fn narrowing(&self) -> Self {
        self.filtered(|op| match op {
            Op::WakeTable { .. } => true,
            Op::DeleteElements(e) => !e.inverted,
            _ => false,
        })
    }

    /// Everything but the elements of sets that carry edges: tables, chains, rules, sets, and the elements of sets
    /// which `constant` names (by table and set) or which some rule asks inverted.
    pub fn skeleton(&self, constant: impl Fn(&TableId, &str) -> bool) -> Self {
        self.filtered(|op| match op {
            Op::DeleteElements(e) => e.inverted,
            Op::AddElements(e) => e.inverted || constant(&e.table, &e.set),
            Op::WakeTable { .. } => false,
            _ => true,
        })
    }

    /// The elements that come, except those that [`Delta::skeleton`] has.
    pub fn elements_added(&self, constant: impl Fn(&TableId, &str) -> bool) -> Self {
        self.filtered(|op| matches!(op, Op::AddElements(e) if !e.inverted && !constant(&e.table, &e.set)))
    }

    /// [`Delta::narrowing`], and with it the elements that come in the place of one that goes: a port that was allowed
    /// by itself and is now part of a range is allowed at every moment.
    pub fn exchange(&self, constant: impl Fn(&TableId, &str) -> bool) -> Self {
        let mut exchange = self.narrowing();
        let added = self.elements_added(constant);
        exchange.ops.extend(added.parted(|elements, key| self.succeeds(elements, key)));
        exchange
    }

    /// [`Delta::elements_added`], except those that [`Delta::exchange`] has.
    pub fn elements_new(&self, constant: impl Fn(&TableId, &str) -> bool) -> Self {
        let added = self.elements_added(constant);
        Self { ops: added.parted(|elements, key| !self.succeeds(elements, key)).collect() }
    }

    /// The additions with only those elements for which `keep` holds.
    fn parted(&self, keep: impl Fn(&Elements, &Key) -> bool) -> impl Iterator<Item = Op> {
        self.ops.iter().filter_map(move |op| {
            let Op::AddElements(added) = op else { return None };
            let mut kept = added.of.elements.keys().map(|key| keep(added, key));
            let mut part = added.clone();
            // Most often it is all of them, which are then shared, or none.
            if kept.any(|keep| !keep) {
                part.of.elements = added
                    .of
                    .elements
                    .iter()
                    .filter(|(key, _)| keep(added, key))
                    .map(|(k, a)| (k.clone(), a.clone()))
                    .collect();
            }
            (!part.of.elements.is_empty()).then_some(Op::AddElements(part))
        })
    }

    /// Whether an element that comes says the same as one that goes, at least in part, in a set that is there already.
    fn succeeds(&self, added: &Elements, key: &Key) -> bool {
        let says_the_same = |gone: &Elements| {
            // Between sets of single values there is nothing to exchange, and there may be thousands of them.
            let ranges = gone.of.interval || added.of.interval;
            let alike = ranges && gone.table == added.table && gone.of.key == added.of.key;
            let answer = &added.of.elements[key];
            alike && gone.of.elements.iter().any(|(old, was)| was == answer && overlap(&added.of.key, old, key))
        };
        let made_now =
            |op: &Op| matches!(op, Op::AddSet { table, set, .. } if *table == added.table && *set == added.set);
        let gone = |op: &Op| matches!(op, Op::DeleteElements(gone) if !gone.inverted && says_the_same(gone));
        self.ops.iter().any(gone) && !self.ops.iter().any(made_now)
    }
}

/// Whether two keys of these fields have a value in common.
fn overlap(fields: &[Field], a: &Key, b: &Key) -> bool {
    let mut at = 0;
    fields.iter().all(|field| {
        let range = at..at + field.width();
        at += field.padded_len();
        let reaches = |low: &Key, high: &Key| {
            low.from.get(range.clone()) <= high.to.as_ref().unwrap_or(&high.from).get(range.clone())
        };
        reaches(a, b) && reaches(b, a)
    })
}

/// Operations by kind, so that those of all tables can be put in one order.
#[derive(Default)]
struct Steps {
    wake_table: Vec<Op>,
    flush: Vec<Op>,
    delete_elements: Vec<Op>,
    delete_chain: Vec<Op>,
    delete_set: Vec<Op>,
    delete_table: Vec<Op>,
    add_table: Vec<Op>,
    add_set: Vec<Op>,
    add_chain: Vec<Op>,
    policy: Vec<Op>,
    add_rule: Vec<Op>,
    add_elements: Vec<Op>,
}

/// Whether the set has elements, all in a form that we make: those of a stranger's set go with it.
fn is_of_ours(set: &Set) -> bool {
    let width: usize = set.key.iter().map(|field| field.padded_len()).sum();
    width > 0 && !set.elements.is_empty() && set.elements.keys().all(|key| key.from.len() == width)
}

impl Steps {
    fn in_order(self) -> Delta {
        let ops = [
            self.wake_table,
            self.flush,
            self.delete_elements,
            self.delete_chain,
            self.delete_set,
            self.delete_table,
            self.add_table,
            self.add_set,
            self.add_chain,
            self.policy,
            self.add_rule,
            self.add_elements,
        ];
        Delta { ops: ops.into_iter().flatten().collect() }
    }

    fn change(&mut self, id: &TableId, old: &Table, new: &Table) {
        let remade = Remade::between(old, new);
        self.sets(id, old, new, &remade);
        self.chains(id, old, new, &remade);
    }

    fn sets(&mut self, id: &TableId, old: &Table, new: &Table, remade: &Remade<'_>) {
        for (name, set) in &old.sets {
            // An anonymous set belongs to its rule and goes with it.
            let anonymous = name.starts_with("__");
            if !anonymous && !new.sets.contains_key(name) && is_of_ours(set) {
                // What they allowed ends first, and by itself, as with a set that stays.
                let of = Set { elements: set.elements.clone(), ..shape(set) };
                let (table, set, inverted) = (id.clone(), name.clone(), asks_inverted(old, name));
                self.delete_elements.push(Op::DeleteElements(Elements { table, set, of, inverted }));
            }
            if !anonymous && (remade.sets.contains(name.as_str()) || !new.sets.contains_key(name)) {
                self.delete_set.push(Op::DeleteSet { table: id.clone(), set: name.clone() });
            }
        }
        for (name, set) in &new.sets {
            let kept = old.sets.get(name).filter(|_| !remade.sets.contains(name.as_str()));
            if kept.is_none() {
                self.add_set.push(Op::AddSet { table: id.clone(), set: name.clone(), shape: shape(set) });
            }
            let empty = Shared::default();
            let before = kept.map_or(&empty, |set| &set.elements);
            let inverted = asks_inverted(old, name) || asks_inverted(new, name);
            let of = |elements| Elements {
                table: id.clone(),
                set: name.clone(),
                of: Set { elements, ..shape(set) },
                inverted,
            };
            let (gone, come) = (missing(before, &set.elements), missing(&set.elements, before));
            self.delete_elements.extend((!gone.is_empty()).then(|| Op::DeleteElements(of(gone))));
            self.add_elements.extend((!come.is_empty()).then(|| Op::AddElements(of(come))));
        }
    }

    fn chains(&mut self, id: &TableId, old: &Table, new: &Table, remade: &Remade<'_>) {
        let nothing = Chain::default();
        for (name, chain) in &old.chains {
            let lost = !new.chains.contains_key(name) || remade.chains.contains(name.as_str());
            if !chain.rules.is_empty() && (lost || remade.refilled(name, chain, &new.chains[name])) {
                self.flush.push(Op::FlushChain { table: id.clone(), chain: name.clone() });
            }
            if lost {
                self.delete_chain.push(Op::DeleteChain { table: id.clone(), chain: name.clone() });
            }
        }
        for (name, chain) in &new.chains {
            let kept = old.chains.get(name).filter(|_| !remade.chains.contains(name.as_str()));
            match kept {
                None => self.add_chain.push(Op::AddChain {
                    table: id.clone(),
                    chain: name.clone(),
                    hook: chain.hook.clone(),
                }),
                Some(was) => self.policy.extend(policy_change(id, name, was, chain)),
            }
            if kept.is_none() || remade.refilled(name, kept.unwrap_or(&nothing), chain) {
                let add = |rule: &Rule| Op::AddRule { table: id.clone(), chain: name.clone(), rule: rule.clone() };
                self.add_rule.extend(chain.rules.iter().map(add));
            }
        }
    }
}

/// What cannot be changed in place and so is deleted and added, which whoever refers to it has to let happen.
struct Remade<'a> {
    sets: BTreeSet<&'a str>,
    chains: BTreeSet<&'a str>,
}

impl<'a> Remade<'a> {
    fn between(old: &'a Table, new: &Table) -> Self {
        let set_differs = |(name, set): &(&String, &Set)| new.sets.get(*name).is_some_and(|n| shape(n) != shape(set));
        let chain_differs =
            |(name, chain): &(&String, &Chain)| new.chains.get(*name).is_some_and(|n| !same_place(n, chain));
        Self {
            sets: old.sets.iter().filter(set_differs).map(|(name, _)| name.as_str()).collect(),
            chains: old.chains.iter().filter(chain_differs).map(|(name, _)| name.as_str()).collect(),
        }
    }

    /// Whether the rules of a chain that stays have to be taken out and put in.
    fn refilled(&self, name: &str, old: &Chain, new: &Chain) -> bool {
        let refers = |expr: &Expr| match expr {
            Expr::Lookup { set, .. } | Expr::Update { set, .. } | Expr::CountOver { set, .. } => {
                self.sets.contains(set.as_str())
            }
            Expr::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) => self.chains.contains(chain.as_str()),
            _ => false,
        };
        debug_assert!(!self.chains.contains(name), "a chain that is remade does not stay");
        old.rules != new.rules || old.rules.iter().flat_map(|rule| &rule.0).any(refers)
    }
}

fn shape(set: &Set) -> Set {
    Set { key: set.key.clone(), elements: Shared::default(), ..*set }
}

/// Whether two chains hang at the same place; the policy may differ.
fn same_place(a: &Chain, b: &Chain) -> bool {
    let place = |chain: &Chain| chain.hook.clone().map(|hook| Hook { policy_accept: true, ..hook });
    place(a) == place(b)
}

fn policy_change(id: &TableId, name: &str, old: &Chain, new: &Chain) -> Option<Op> {
    let (old, new) = (old.hook.as_ref()?, new.hook.as_ref()?);
    (old.policy_accept != new.policy_accept).then(|| Op::SetPolicy {
        table: id.clone(),
        chain: name.to_owned(),
        accept: new.policy_accept,
    })
}

/// The elements of `of` that are not, or not with this answer, in `from`.
fn missing(of: &Members, from: &Members) -> Members {
    if from.is_empty() {
        return of.clone();
    }
    of.iter().filter(|(key, answer)| from.get(key) != Some(answer)).map(|(k, a)| (k.clone(), a.clone())).collect()
}

fn asks_inverted(table: &Table, name: &str) -> bool {
    let asks = |expr: &Expr| matches!(expr, Expr::Lookup { set, invert: true, .. } if set == name);
    table.chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.0).any(asks)
}
