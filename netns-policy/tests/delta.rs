//! [`Delta`] against a ledger that refuses what the kernel refuses.

use std::collections::BTreeMap;

use netns_policy::ruleset::delta::{Delta, Elements, Op, TableId};
use netns_policy::ruleset::{
    Chain, ChainKind, Expr, Family, Field, Hook, HookPoint, Key, Reg, Rule, Ruleset, Set, Table, Verdict,
};
use proptest::prelude::*;

/// Does what the kernel does with a transaction, or says what it would refuse.
fn apply(mut to: Ruleset, delta: &Delta) -> Result<Ruleset, String> {
    for op in &delta.ops {
        step(&mut to, op).map_err(|why| format!("{op}: {why}\nin\n{delta}"))?;
    }
    Ok(to)
}

fn step(to: &mut Ruleset, op: &Op) -> Result<(), &'static str> {
    match op {
        Op::AddTable { table } => {
            to.tables.entry(table.clone()).or_default();
        }
        Op::WakeTable { table } => to.tables.get_mut(table).ok_or("no such table")?.dormant = false,
        Op::DeleteTable { table } => {
            to.tables.remove(table).ok_or("no such table")?;
        }
        Op::FlushChain { table, chain } => chain_of(to, table, chain)?.rules.clear(),
        Op::DeleteChain { table, chain } => {
            let rules = chain_of(to, table, chain)?.rules.len();
            let table = to.tables.get_mut(table).ok_or("no such table")?;
            if rules > 0 || refers(table, |expr| jump(expr) == Some(chain)) {
                return Err("busy");
            }
            table.chains.remove(chain);
        }
        Op::DeleteSet { table, set } => {
            let table = to.tables.get_mut(table).ok_or("no such table")?;
            if refers(table, |expr| asked(expr) == Some(set)) {
                return Err("busy");
            }
            table.sets.remove(set).ok_or("no such set")?;
        }
        Op::AddSet { table, set, shape } => {
            let table = to.tables.get_mut(table).ok_or("no such table")?;
            if !shape.elements.is_empty() || table.sets.insert(set.clone(), shape.clone()).is_some() {
                return Err("exists");
            }
        }
        Op::AddChain { table, chain, hook } => {
            let table = to.tables.get_mut(table).ok_or("no such table")?;
            let new = Chain { hook: hook.clone(), rules: Vec::new() };
            if table.chains.insert(chain.clone(), new).is_some() {
                return Err("exists");
            }
        }
        Op::SetPolicy { table, chain, accept } => {
            chain_of(to, table, chain)?.hook.as_mut().ok_or("no base chain")?.policy_accept = *accept;
        }
        Op::AddRule { table, chain, rule } => {
            let known = to.tables.get(table).ok_or("no such table")?;
            let missing = |expr: &Expr| {
                asked(expr).is_some_and(|set| !known.sets.contains_key(set))
                    || jump(expr).is_some_and(|chain| known.chains.get(chain).is_none_or(|c| c.hook.is_some()))
            };
            if rule.0.iter().any(missing) {
                return Err("refers to what is not there");
            }
            chain_of(to, table, chain)?.rules.push(rule.clone());
        }
        Op::AddElements(e) => elements(to, e, |set, key, answer| set.elements.insert(key, answer).is_none())?,
        Op::DeleteElements(e) => elements(to, e, |set, key, answer| set.elements.remove(&key) == Some(answer))?,
    }
    Ok(())
}

fn chain_of<'a>(to: &'a mut Ruleset, table: &TableId, chain: &str) -> Result<&'a mut Chain, &'static str> {
    to.tables.get_mut(table).ok_or("no such table")?.chains.get_mut(chain).ok_or("no such chain")
}

fn elements(
    to: &mut Ruleset,
    of: &Elements,
    one: impl Fn(&mut Set, Key, Option<Vec<u8>>) -> bool,
) -> Result<(), &'static str> {
    let table = to.tables.get_mut(&of.table).ok_or("no such table")?;
    let set = table.sets.get_mut(&of.set).ok_or("no such set")?;
    let done = of.of.elements.iter().all(|(key, answer)| one(set, key.clone(), answer.clone()));
    done.then_some(()).ok_or("no such element, or there already")
}

fn refers(table: &Table, to: impl Fn(&Expr) -> bool) -> bool {
    table.chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.0).any(to)
}

fn asked(expr: &Expr) -> Option<&String> {
    match expr {
        Expr::Lookup { set, .. } => Some(set),
        _ => None,
    }
}

fn jump(expr: &Expr) -> Option<&String> {
    match expr {
        Expr::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) => Some(chain),
        _ => None,
    }
}

prop_compose! {
    fn a_set()(
        answers in any::<bool>(),
        counter in any::<bool>(),
        elements in prop::collection::btree_map(0u8..6, 0u8..2, 0..5),
    ) -> Set {
        let elements = elements.into_iter().map(|(key, answer)| {
            (Key { from: vec![0, 0, 0, key], to: None }, answers.then(|| vec![answer, 0, 0, 0]))
        });
        Set {
            key: vec![Field::Ipv4Addr],
            data: answers.then_some(Field::IfaceIndex),
            interval: false,
            dynamic: None,
            counter,
            elements: elements.collect(),
        }
    }
}

prop_compose! {
    /// A chain, and numbers from which its rules are made once it is known what they may refer to.
    fn a_chain()(
        hook in prop::option::of((0i32..2, any::<bool>())),
        rules in prop::collection::vec((0usize..4, 0usize..3, any::<bool>()), 0..3),
    ) -> (Option<Hook>, Vec<(usize, usize, bool)>) {
        let hook = hook.map(|(priority, policy_accept)| Hook {
            kind: ChainKind::Filter, point: HookPoint::Input, device: None, priority, policy_accept,
        });
        (hook, rules)
    }
}

prop_compose! {
    fn a_table()(
        sets in prop::collection::btree_map(0u8..3, a_set(), 0..3),
        chains in prop::collection::btree_map(0u8..4, a_chain(), 0..4),
    ) -> Table {
        let sets: BTreeMap<String, Set> = sets.into_iter().map(|(n, set)| (format!("s{n}"), set)).collect();
        let plain: Vec<String> =
            chains.iter().filter(|(_, (hook, _))| hook.is_none()).map(|(n, _)| format!("c{n}")).collect();
        let rule = |from: &str, (what, which, invert): (usize, usize, bool)| {
            let set = sets.keys().nth(which).cloned();
            // Only forward, so that there is no loop.
            let chain = plain.iter().filter(|chain| chain.as_str() > from).nth(which).cloned();
            Rule::from(match (what, set, chain) {
                (0, Some(set), _) => vec![Expr::Lookup { set, sreg: Reg(0), dreg: None, invert }],
                (1, _, Some(chain)) => vec![Expr::Verdict(Verdict::Jump(chain))],
                (2, ..) => vec![Expr::Counter],
                _ => vec![Expr::Verdict(Verdict::Drop)],
            })
        };
        let chains = chains.into_iter().map(|(n, (hook, rules))| {
            let name = format!("c{n}");
            let rules = rules.into_iter().map(|seed| rule(&name, seed)).collect();
            (name, Chain { hook, rules })
        });
        Table { chains: chains.collect(), sets: sets.clone().into(), dormant: false }
    }
}

prop_compose! {
    fn a_ruleset()(tables in prop::collection::btree_map(any::<bool>(), a_table(), 0..3)) -> Ruleset {
        let named = |(netdev, table)| {
            ((if netdev { Family::Netdev } else { Family::Inet }, "t".to_owned()), table)
        };
        Ruleset { tables: tables.into_iter().map(named).collect() }
    }
}

prop_compose! {
    /// Two rulesets of which the second shares about half of its parts with the first, as those of two policies do.
    fn two_rulesets()(
        old in a_ruleset(),
        other in a_ruleset(),
        from_old in prop::collection::vec(any::<bool>(), 24),
    ) -> (Ruleset, Ruleset) {
        let mut choice = from_old.into_iter().cycle();
        let mut new = other;
        for (id, table) in &old.tables {
            let mixed = new.tables.entry(id.clone()).or_default();
            for (name, set) in &table.sets {
                match (choice.next(), mixed.sets.get(name)) {
                    (Some(true), Some(other)) if set.data == other.data => {
                        let elements = other.elements.clone();
                        mixed.sets.insert(name.clone(), Set { elements, ..set.clone() });
                    }
                    (Some(true), _) => {
                        mixed.sets.insert(name.clone(), set.clone());
                    }
                    _ => {}
                }
            }
            for (name, chain) in &table.chains {
                if choice.next() == Some(true) {
                    mixed.chains.insert(name.clone(), chain.clone());
                }
            }
        }
        new.tables.values_mut().for_each(without_dangling);
        (old, new)
    }
}

/// Takes out the rules that refer to what the mixture lacks.
fn without_dangling(table: &mut Table) {
    let sets: Vec<String> = table.sets.keys().cloned().collect();
    let plain = table.chains.iter().filter(|(_, chain)| chain.hook.is_none());
    let plain: Vec<String> = plain.map(|(name, _)| name.clone()).collect();
    let sound = |expr: &Expr| {
        asked(expr).is_none_or(|set| sets.contains(set)) && jump(expr).is_none_or(|chain| plain.contains(chain))
    };
    for chain in table.chains.values_mut() {
        chain.rules.retain(|rule| rule.0.iter().all(sound));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// What is applied is what was desired, and the kernel refuses no step of it.
    #[test]
    fn applying_the_difference_gives_the_desired((old, new) in two_rulesets()) {
        let after = apply(old.clone(), &Delta::between(&old, &new)).map_err(TestCaseError::fail)?;
        prop_assert_eq!(&after, &new);
        prop_assert!(Delta::between(&after, &new).is_empty());
    }

    /// Narrowing, skeleton and additions, each a transaction of its own, come to the same.
    #[test]
    fn the_parts_come_to_the_whole((old, new) in two_rulesets()) {
        let delta = Delta::between(&old, &new);
        let constant = |_: &TableId, set: &str| set == "s1";
        let mut now = old;
        for part in [delta.narrowing(), delta.skeleton(constant), delta.elements_added(constant)] {
            now = apply(now, &part).map_err(TestCaseError::fail)?;
        }
        prop_assert_eq!(now, new);
    }

    /// So do the exchange, the skeleton and what is new.
    #[test]
    fn exchange_and_what_is_new_come_to_the_same_end((old, new) in two_rulesets()) {
        let delta = Delta::between(&old, &new);
        let constant = |_: &TableId, set: &str| set == "s1";
        let mut all = old;
        for part in [delta.exchange(constant), delta.skeleton(constant), delta.elements_new(constant)] {
            all = apply(all, &part).map_err(TestCaseError::fail)?;
        }
        prop_assert_eq!(all, new);
    }

    /// The narrowing part takes elements away and does nothing else.
    #[test]
    fn narrowing_never_adds((old, new) in two_rulesets()) {
        let narrowed = apply(old.clone(), &Delta::between(&old, &new).narrowing()).map_err(TestCaseError::fail)?;
        for (id, table) in &old.tables {
            prop_assert_eq!(&narrowed.tables[id].chains, &table.chains);
            for (name, set) in &table.sets {
                let left = &narrowed.tables[id].sets[name].elements;
                prop_assert!(left.iter().all(|(key, answer)| set.elements.get(key) == Some(answer)));
            }
        }
    }
}

/// A chain that changes only its policy keeps its hook and its rules: no packet passes it by.
#[test]
fn a_policy_is_changed_in_place() {
    let with = |policy_accept| {
        let hook = Hook { kind: ChainKind::Filter, point: HookPoint::Input, device: None, priority: 0, policy_accept };
        let chain = Chain { hook: Some(hook), rules: vec![Rule::from(vec![Expr::Counter])] };
        let table = Table {
            chains: BTreeMap::from([("c".to_owned(), chain)]).into(),
            sets: BTreeMap::new().into(),
            dormant: false,
        };
        Ruleset { tables: BTreeMap::from([((Family::Inet, "t".to_owned()), table)]) }
    };
    let delta = Delta::between(&with(true), &with(false));
    assert_eq!(delta.to_string(), "add chain inet t c { policy drop; }\n");
}

/// An element with another answer goes and comes in one transaction, the going first.
#[test]
fn an_answer_is_changed_by_removing_the_element_first() {
    let with = |answer: u8| {
        let key = Key { from: vec![10, 0, 0, 1], to: None };
        let set = Set {
            key: vec![Field::Ipv4Addr],
            data: Some(Field::IfaceIndex),
            interval: false,
            dynamic: None,
            counter: true,
            elements: BTreeMap::from([(key, Some(u32::from(answer).to_ne_bytes().to_vec()))]).into(),
        };
        let table = Table {
            chains: BTreeMap::new().into(),
            sets: BTreeMap::from([("m".to_owned(), set)]).into(),
            dormant: false,
        };
        Ruleset { tables: BTreeMap::from([((Family::Netdev, "t".to_owned()), table)]) }
    };
    assert_eq!(
        Delta::between(&with(7), &with(8)).to_string(),
        "delete element netdev t m { 10.0.0.1 : 7 }\nadd element netdev t m { 10.0.0.1 : 8 }\n"
    );
}

/// A set that a rule asks inverted allows more when it loses an element.
#[test]
fn taking_from_an_inverted_set_is_no_narrowing() {
    let with = |elements: BTreeMap<_, _>| {
        let set = Set {
            key: vec![Field::Ipv4Addr],
            data: None,
            interval: false,
            dynamic: None,
            counter: false,
            elements: elements.into(),
        };
        let lookup = Expr::Lookup { set: "private".into(), sreg: Reg(0), dreg: None, invert: true };
        let chain = Chain { hook: None, rules: vec![Rule::from(vec![lookup])] };
        let table = Table {
            chains: BTreeMap::from([("c".to_owned(), chain)]).into(),
            sets: BTreeMap::from([("private".to_owned(), set)]).into(),
            dormant: false,
        };
        Ruleset { tables: BTreeMap::from([((Family::Inet, "t".to_owned()), table)]) }
    };
    let key = Key { from: vec![10, 0, 0, 1], to: None };
    let delta = Delta::between(&with(BTreeMap::from([(key, None)])), &with(BTreeMap::new()));
    assert_eq!(delta.to_string(), "delete element inet t private { 10.0.0.1 }\n");
    assert!(delta.narrowing().is_empty());
    assert_eq!(delta.skeleton(|_, _| false), delta);
}

/// A dormant table wakes before anything else, in a transaction that makes no chain.
#[test]
fn a_table_wakes_in_the_part_that_refuses_more() {
    let with = |dormant, chains: &[&str]| {
        let hook = |point| Hook { kind: ChainKind::Filter, point, device: None, priority: 0, policy_accept: false };
        let base = |name: &&str| ((*name).to_owned(), Chain { hook: Some(hook(HookPoint::Input)), rules: Vec::new() });
        let table = Table { chains: chains.iter().map(base).collect(), sets: BTreeMap::new().into(), dormant };
        Ruleset { tables: BTreeMap::from([((Family::Inet, "t".to_owned()), table)]) }
    };
    let (old, new) = (with(true, &["a"]), with(false, &["a", "b"]));
    let delta = Delta::between(&old, &new);
    let constant = |_: &TableId, _: &str| false;
    assert_eq!(delta.narrowing().to_string(), "add table inet t\n");
    assert_eq!(delta.exchange(constant), delta.narrowing());
    assert_eq!(delta.skeleton(constant).ops.len(), 1, "the new chain, and no waking");
    let after = [delta.exchange(constant), delta.skeleton(constant), delta.elements_new(constant)];
    assert_eq!(after.iter().try_fold(old, apply), Ok(new.clone()));
    assert!(Delta::between(&new, &new).is_empty());
}
