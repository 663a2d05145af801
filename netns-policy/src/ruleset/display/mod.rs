//! A ruleset as `nft list ruleset` (1.0.6) prints it, and changes as lines that nft(8) takes.
//!
//! Counters are not part of the model and are printed as zero.

mod phrase;
mod rule;
mod value;

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::delta::{Delta, Elements, Op, TableId};
use super::{Chain, ChainKind, Family, Field, Hook, HookPoint, Key, Rule, Ruleset, Set, Table};
use value::Links;

impl Ruleset {
    /// What `nft list ruleset` prints where interfaces have these names.
    pub fn display(&self, links: &BTreeMap<u32, String>) -> String {
        let tables = self
            .tables
            .iter()
            .map(|((family, name), table)| format!("table {family} {name} {{\n{}}}\n", table_body(table, links)));
        tables.collect()
    }
}

impl Rule {
    /// The rule in one line, as nft(8) would print it in this table.
    pub fn display(&self, table: &Table, links: &BTreeMap<u32, String>) -> String {
        rule::words(self, |name| table.sets.get(name), links)
    }
}

impl super::Set {
    /// The key of an element as nft(8) lists it; `links` names the indexes.
    pub fn key_in_words(&self, key: &Key, links: &BTreeMap<u32, String>) -> String {
        value::key(self, key, links)
    }

    /// One of its elements as nft(8) prints it, with what a map answers and without what it counted.
    pub fn display(&self, key: &Key, links: &BTreeMap<u32, String>) -> String {
        element(self, key, self.elements.get(key).and_then(Option::as_deref), "", links)
    }
}

impl Delta {
    /// The operations as lines for nft(8), one for each element. `sets` are those that rules may ask: of the ruleset
    /// that is desired.
    pub fn display(&self, desired: &Ruleset, links: &BTreeMap<u32, String>) -> String {
        let mut lines = String::new();
        for op in &self.ops {
            for line in op.lines(desired, links) {
                lines.push_str(&line);
                lines.push('\n');
            }
        }
        lines
    }
}

/// The operations as lines for nft(8), with interfaces by number.
impl fmt::Display for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display(&self.shapes(), &BTreeMap::new()))
    }
}

impl Delta {
    /// The sets that this change itself tells of.
    fn shapes(&self) -> Ruleset {
        let mut known = Ruleset::default();
        for op in &self.ops {
            let (table, name, set) = match op {
                Op::AddSet { table, set, shape } => (table, set, shape),
                Op::AddElements(e) | Op::DeleteElements(e) => (&e.table, &e.set, &e.of),
                _ => continue,
            };
            known.tables.entry(table.clone()).or_default().sets.insert(name.clone(), set.clone());
        }
        known
    }
}

/// In one line for nft(8); of many elements the first, and how many more there are.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines(&Ruleset::default(), &BTreeMap::new());
        let Some((first, more)) = lines.split_first() else { return Ok(()) };
        f.write_str(first)?;
        if !more.is_empty() {
            write!(f, " and {} more", more.len())?;
        }
        Ok(())
    }
}

impl Op {
    fn lines(&self, sets: &Ruleset, links: &Links) -> Vec<String> {
        let at = |(family, table): &TableId, name: &str| format!("{family} {table} {name}");
        let line = match self {
            Self::FlushChain { table, chain } => format!("flush chain {}", at(table, chain)),
            Self::DeleteChain { table, chain } => format!("delete chain {}", at(table, chain)),
            Self::DeleteSet { table, set } => format!("delete set {}", at(table, set)),
            Self::DeleteTable { table: (family, name) } => format!("delete table {family} {name}"),
            // Without a word of flags nft(8) takes them away.
            Self::AddTable { table: (family, name) } | Self::WakeTable { table: (family, name) } => {
                format!("add table {family} {name}")
            }
            Self::AddSet { table, set, shape } => {
                let lines = set_lines(shape).join("; ");
                format!("add {} {} {{ {lines}; }}", set_word(shape), at(table, set))
            }
            Self::AddChain { table, chain, hook: Some(hook) } => {
                format!("add chain {} {{ {} }}", at(table, chain), hook_words(hook))
            }
            Self::AddChain { table, chain, hook: None } => format!("add chain {}", at(table, chain)),
            Self::SetPolicy { table, chain, accept } => {
                format!("add chain {} {{ policy {}; }}", at(table, chain), policy(*accept))
            }
            Self::AddRule { table, chain, rule } => {
                let known = sets.tables.get(table);
                let words = rule::words(rule, |name| known?.sets.get(name), links);
                format!("add rule {} {words}", at(table, chain))
            }
            Self::AddElements(elements) => return element_lines("add", elements, links),
            Self::DeleteElements(elements) => return element_lines("delete", elements, links),
        };
        vec![line]
    }
}

fn element_lines(verb: &str, of: &Elements, links: &Links) -> Vec<String> {
    let (family, table) = &of.table;
    let line = |(key, answer): (&Key, &Option<Vec<u8>>)| {
        let element = element(&of.of, key, answer.as_deref(), "", links);
        format!("{verb} element {family} {table} {} {{ {element} }}", of.set)
    };
    of.of.elements.iter().map(line).collect()
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Netdev => "netdev",
        })
    }
}

fn table_body(table: &Table, links: &Links) -> String {
    let sets = table.sets.iter().map(|(name, set)| set_block(name, set, links));
    let chains = table.chains.iter().map(|(name, chain)| chain_block(name, chain, table, links));
    let flags = table.dormant.then(|| "\tflags dormant\n".to_owned());
    flags.into_iter().chain(sets).chain(chains).collect::<Vec<_>>().join("\n")
}

fn chain_block(name: &str, chain: &Chain, table: &Table, links: &Links) -> String {
    let mut block = format!("\tchain {name} {{\n");
    if let Some(hook) = &chain.hook {
        writeln!(block, "\t\t{}", hook_words(hook)).expect("a string takes all");
    }
    for rule in &chain.rules {
        writeln!(block, "\t\t{}", rule.display(table, links)).expect("a string takes all");
    }
    block + "\t}\n"
}

fn hook_words(hook: &Hook) -> String {
    let kind = match hook.kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    };
    let point = match hook.point {
        HookPoint::Ingress => "ingress",
        HookPoint::Prerouting => "prerouting",
        HookPoint::Input => "input",
        HookPoint::Forward => "forward",
        HookPoint::Output => "output",
        HookPoint::Postrouting => "postrouting",
    };
    let device = hook.device.as_ref().map(|name| format!(" device \"{name}\"")).unwrap_or_default();
    let (priority, policy) = (priority(hook), policy(hook.policy_accept));
    format!("type {kind} hook {point}{device} priority {priority}; policy {policy};")
}

fn policy(accept: bool) -> &'static str {
    if accept { "accept" } else { "drop" }
}

/// A priority by the name of one that is near, as nft(8) has them.
fn priority(hook: &Hook) -> String {
    let names = [("raw", -300), ("mangle", -150), ("filter", 0), ("security", 50)];
    let nat = match hook.point {
        HookPoint::Prerouting => Some(("dstnat", -100)),
        HookPoint::Postrouting => Some(("srcnat", 100)),
        _ => None,
    };
    let near = names.into_iter().chain(nat).find(|(_, number)| hook.priority.abs_diff(*number) <= 10);
    match near.map(|(name, number)| (name, hook.priority - number)) {
        None => hook.priority.to_string(),
        Some((name, 0)) => name.into(),
        Some((name, above @ 1..)) => format!("{name} + {above}"),
        Some((name, below)) => format!("{name} - {}", -below),
    }
}

fn set_word(set: &Set) -> &'static str {
    if set.data.is_some() { "map" } else { "set" }
}

/// What defines a set, line by line.
fn set_lines(set: &Set) -> Vec<String> {
    let mut key = set.key.iter().map(|field| field.name()).collect::<Vec<_>>().join(" . ");
    if let Some(answer) = set.data {
        write!(key, " : {}", answer.name()).expect("a string takes all");
    }
    let mut lines = vec![format!("type {key}")];
    let timeout = set.dynamic.map_or(0, |dynamic| dynamic.timeout);
    lines.extend(set.dynamic.map(|dynamic| format!("size {}", dynamic.size)));
    let flags = [(set.interval, "interval"), (set.dynamic.is_some(), "dynamic"), (timeout > 0, "timeout")];
    let flags: Vec<&str> = flags.iter().filter(|(on, _)| *on).map(|(_, flag)| *flag).collect();
    if !flags.is_empty() {
        lines.push(format!("flags {}", flags.join(",")));
    }
    if timeout > 0 {
        lines.push(format!("timeout {}", value::duration(timeout)));
    }
    lines.extend(set.counter.then(|| "counter".to_owned()));
    lines
}

fn set_block(name: &str, set: &Set, links: &Links) -> String {
    let mut block = format!("\t{} {name} {{\n", set_word(set));
    for line in set_lines(set) {
        writeln!(block, "\t\t{line}").expect("a string takes all");
    }
    if !set.elements.is_empty() {
        writeln!(block, "\t\telements = {{ {} }}", listed(set, links)).expect("a string takes all");
    }
    block + "\t}\n"
}

/// The elements in nft(8)'s order and its number of columns.
fn listed(set: &Set, links: &Links) -> String {
    let columns = match set.key[..] {
        [Field::Ipv4Addr] => 2,
        [Field::IfaceIndex | Field::InetProto | Field::InetService] => 5,
        _ => 1,
    };
    let counter = if set.counter { " counter packets 0 bytes 0" } else { "" };
    let mut text = String::new();
    for (n, (key, answer)) in sorted(set).into_iter().enumerate() {
        text.push_str(match n {
            0 => "",
            n if n % columns == 0 => ",\n\t\t\t     ",
            _ => ", ",
        });
        text.push_str(&element(set, key, answer, counter, links));
    }
    text
}

fn element(set: &Set, key: &Key, answer: Option<&[u8]>, counter: &str, links: &Links) -> String {
    let key = value::key(set, key, links);
    match (answer, set.data) {
        (Some(answer), Some(field)) => format!("{key}{counter} : {}", value::field(field, answer, links)),
        (Some(answer), None) => format!("{key}{counter} : {}", value::hex(answer)),
        (None, _) => format!("{key}{counter}"),
    }
}

/// nft(8) sorts keys as numbers: those of one field by value, concatenations as if the last byte were the highest.
/// Ranges of concatenations stay as the kernel has them.
fn sorted(set: &Set) -> Vec<(&Key, Option<&[u8]>)> {
    let mut elements: Vec<_> = set.elements.iter().map(|(key, answer)| (key, answer.as_deref())).collect();
    let concatenated = set.key.len() > 1;
    let low_first = concatenated && !set.interval || set.key == [Field::IfaceIndex];
    if low_first {
        elements.sort_by(|(a, _), (b, _)| a.from.iter().rev().cmp(b.from.iter().rev()));
    }
    elements
}
