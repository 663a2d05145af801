//! Rules: what the kernel does with a transaction, and what it refuses.

use netns_policy::ruleset::delta::{Delta, Elements, Op, TableId};
use netns_policy::ruleset::{Chain, Expr, Ruleset, Table, Verdict};
use nsctl::kernel::KernelError;
use nsctl::kernel::nft::NftError;

/// The rules after a transaction.
pub fn apply(mut rules: Ruleset, delta: &Delta) -> Result<Ruleset, KernelError> {
    for op in &delta.ops {
        step(&mut rules, op).map_err(|why| {
            let operation = format!("{op}: {why}");
            NftError::Refused { operation, errno: 2, more: vec![], source: std::io::Error::from_raw_os_error(2) }
        })?;
    }
    Ok(rules)
}

/// A chain of a device that is not there is refused (before Linux 6.16).
pub fn check_devices(rules: &Ruleset, delta: &Delta, has: impl Fn(&str) -> bool) -> Result<(), KernelError> {
    for op in &delta.ops {
        let Op::AddChain { table, chain, hook: Some(hook) } = op else { continue };
        let stands = rules.tables.get(table).is_some_and(|table| table.chains.contains_key(chain));
        if stands && hook.device.as_deref().is_some_and(|device| !has(device)) {
            return Err(super::refused("a chain without its device"));
        }
    }
    Ok(())
}

type Refusal = &'static str;

fn table<'a>(rules: &'a mut Ruleset, id: &TableId) -> Result<&'a mut Table, Refusal> {
    rules.tables.get_mut(id).ok_or("no such table")
}

fn chain<'a>(rules: &'a mut Ruleset, id: &TableId, name: &str) -> Result<&'a mut Chain, Refusal> {
    table(rules, id)?.chains.get_mut(name).ok_or("no such chain")
}

fn step(rules: &mut Ruleset, op: &Op) -> Result<(), Refusal> {
    match op {
        Op::AddTable { table } => drop(rules.tables.entry(table.clone()).or_default()),
        Op::WakeTable { table: id } => table(rules, id)?.dormant = false,
        Op::DeleteTable { table } => drop(rules.tables.remove(table).ok_or("no such table")?),
        Op::FlushChain { table, chain: name } => chain(rules, table, name)?.rules.clear(),
        Op::DeleteChain { table: id, chain: name } => {
            if !chain(rules, id, name)?.rules.is_empty() || refers(table(rules, id)?, |expr| leads_to(expr, name)) {
                return Err("busy");
            }
            table(rules, id)?.chains.remove(name);
        }
        Op::DeleteSet { table: id, set } => {
            if refers(table(rules, id)?, |expr| asks(expr) == Some(set)) {
                return Err("busy");
            }
            table(rules, id)?.sets.remove(set).ok_or("no such set")?;
        }
        Op::AddSet { table: id, set, shape } => {
            if table(rules, id)?.sets.insert(set.clone(), shape.clone()).is_some() {
                return Err("exists");
            }
        }
        Op::AddChain { table: id, chain, hook } => {
            let new = Chain { hook: hook.clone(), rules: Vec::new() };
            if table(rules, id)?.chains.insert(chain.clone(), new).is_some() {
                return Err("exists");
            }
        }
        Op::SetPolicy { table, chain: name, accept } => {
            chain(rules, table, name)?.hook.as_mut().ok_or("no base chain")?.policy_accept = *accept;
        }
        Op::AddRule { table: id, chain: name, rule } => {
            let known = table(rules, id)?;
            let missing = |expr: &Expr| asks(expr).is_some_and(|set| !known.sets.contains_key(set));
            if rule.0.iter().any(missing) {
                return Err("asks a set that is not there");
            }
            chain(rules, id, name)?.rules.push(rule.clone());
        }
        Op::AddElements(of) => elements(rules, of, true)?,
        Op::DeleteElements(of) => elements(rules, of, false)?,
    }
    Ok(())
}

fn elements(rules: &mut Ruleset, of: &Elements, add: bool) -> Result<(), Refusal> {
    let set = table(rules, &of.table)?.sets.get_mut(&of.set).ok_or("no such set")?;
    for (key, answer) in &of.of.elements {
        if add {
            set.elements.insert(key.clone(), answer.clone()).map_or(Ok(()), |_| Err("there already"))?;
        } else {
            set.elements.remove(key).ok_or("no such element")?;
        }
    }
    Ok(())
}

fn refers(table: &Table, to: impl Fn(&Expr) -> bool) -> bool {
    table.chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.0).any(to)
}

fn asks(expr: &Expr) -> Option<&String> {
    match expr {
        Expr::Lookup { set, .. } | Expr::Update { set, .. } => Some(set),
        _ => None,
    }
}

fn leads_to(expr: &Expr, chain: &str) -> bool {
    matches!(expr, Expr::Verdict(Verdict::Goto(to) | Verdict::Jump(to)) if to == chain)
}
