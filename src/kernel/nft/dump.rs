//! A ruleset, read back from the kernel.

use std::collections::BTreeMap;
use std::io;

use netns_policy::ruleset::{
    Chain, ChainKind, Count, Expr, Family, Hook, HookPoint, Key, Rule, STRANGE_HOOK, Set, Table,
};

use super::Dump;
use super::abi::{GEN_ID, LIST_ELEM, chain, element, family, hook, msg, nlm, rule, set, table, verdict};
use super::attribute::Attributes;
use super::batch::family_number;
use super::expression::read_rule;
use super::set::{Element, Read, join, read_element, read_shape};
use super::socket::Link;

/// The number of the current generation.
pub(super) fn generation(link: &Link) -> io::Result<u32> {
    let mut generation = None;
    link.ask(
        msg::GETGEN,
        0,
        family::UNSPEC,
        |_| (),
        |answer| {
            if answer.kind == msg::NEWGEN {
                generation = answer.attributes.u32(GEN_ID);
            }
        },
    )?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Everything, or `None` when it changed meanwhile.
pub(super) fn consistent(link: &Link, ours: impl Fn(Family, &str) -> bool) -> io::Result<Option<Dump>> {
    let generation = generation(link)?;
    let mut dump = Dump { generation, ..Dump::default() };
    match fill(link, &ours, &mut dump) {
        Ok(true) if self::generation(link)? == generation => Ok(Some(dump)),
        Ok(_) => Ok(None),
        // A table or set went between two questions.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Asks for it all; `false` when an answer was not of one moment.
fn fill(link: &Link, ours: impl Fn(Family, &str) -> bool, dump: &mut Dump) -> io::Result<bool> {
    let mut wanted = Vec::new();
    let mut whole = link.ask(
        msg::GETTABLE,
        nlm::F_DUMP,
        family::UNSPEC,
        |_| (),
        |answer| {
            let name = answer.attributes.str(table::NAME).unwrap_or_default();
            if let Some(of) = known_family(answer.family).filter(|of| ours(*of, &name)) {
                // Whose it is matters nothing; any other flag takes it out of force, or is one that nobody here knows.
                let flags = answer.attributes.u32(table::FLAGS).unwrap_or(0);
                let dormant = flags & !(table::F_OWNER | table::F_PERSIST) != 0;
                wanted.push((of, name.clone(), dormant));
            }
            dump.tables.push((family_name(answer.family), name));
        },
    )?;
    for (of, name, dormant) in wanted {
        let mut read = Table { dormant, ..Table::default() };
        whole &= read_chains(link, of, &name, &mut read)?;
        whole &= read_rules(link, of, &name, &mut read)?;
        whole &= read_sets(link, of, &name, &mut read)?;
        for (set, shape) in &mut read.sets {
            let (elements, same) = read_elements(link, of, &name, set, shape)?;
            whole &= same;
            keep(dump, &name, set, shape, elements);
        }
        dump.ruleset.tables.insert((of, name), read);
    }
    Ok(whole)
}

fn keep(dump: &mut Dump, table: &str, set: &str, shape: &mut Set, elements: Vec<Read>) {
    if shape.dynamic.is_some() {
        return;
    }
    let counted = elements.iter().filter_map(|(key, _, count)| Some((key.clone(), (*count)?)));
    dump.counters.extend(counted.map(|(key, count)| ((table.to_owned(), set.to_owned(), key), count)));
    shape.elements = elements.into_iter().map(|(key, answer, _)| (key, answer)).collect();
}

/// The elements of a dynamic set, or `None` when they are not of one moment.
pub(super) fn dynamic_elements(
    link: &Link,
    of: Family,
    table: &str,
    set: &str,
) -> io::Result<Option<BTreeMap<Key, Count>>> {
    let shape = Set {
        key: Vec::new(),
        data: None,
        interval: false,
        dynamic: None,
        counter: false,
        elements: Default::default(),
    };
    let (elements, whole) = read_elements(link, of, table, set, &shape)?;
    let counted = elements.into_iter().map(|(key, _, count)| (key, count.unwrap_or_default())).collect();
    Ok(whole.then_some(counted))
}

fn read_chains(link: &Link, of: Family, table: &str, into: &mut Table) -> io::Result<bool> {
    // This dump knows no filter by table.
    link.ask(
        msg::GETCHAIN,
        nlm::F_DUMP,
        family_number(of),
        |_| (),
        |answer| {
            let a = answer.attributes;
            if a.str(chain::TABLE).as_deref() == Some(table) {
                into.chains.insert(a.str(chain::NAME).unwrap_or_default(), read_chain(of, a));
            }
        },
    )
}

/// A chain without its rules. A hook that the model has no words for stands as a rule that nobody desires.
fn read_chain(of: Family, a: Attributes<'_>) -> Chain {
    if a.get(chain::HOOK).is_none() {
        return Chain::default();
    }
    let hook = read_hook(of, a);
    let strange = hook.is_none().then(|| Rule::from(vec![Expr::Unknown(STRANGE_HOOK.into())]));
    Chain { hook, rules: strange.into_iter().collect() }
}

fn read_hook(of: Family, a: Attributes<'_>) -> Option<Hook> {
    let at = a.nested(chain::HOOK);
    let devices = at.nested(hook::DEVS).iter().count();
    // A single one that has no name of its own is a prefix of names.
    if devices > 1 || (devices == 1 && at.get(hook::DEV).is_none()) {
        return None;
    }
    Some(Hook {
        kind: match a.str(chain::TYPE)?.as_str() {
            "filter" => ChainKind::Filter,
            "nat" => ChainKind::Nat,
            _ => return None,
        },
        point: match (of, at.u32(hook::HOOKNUM)?) {
            (Family::Netdev, 0) => HookPoint::Ingress,
            (Family::Inet, 0) => HookPoint::Prerouting,
            (Family::Inet, 1) => HookPoint::Input,
            (Family::Inet, 2) => HookPoint::Forward,
            (Family::Inet, 3) => HookPoint::Output,
            (Family::Inet, 4) => HookPoint::Postrouting,
            _ => return None,
        },
        device: at.str(hook::DEV),
        priority: at.u32(hook::PRIORITY)?.cast_signed(),
        policy_accept: a.u32(chain::POLICY)? == verdict::ACCEPT.cast_unsigned(),
    })
}

fn read_rules(link: &Link, of: Family, table: &str, into: &mut Table) -> io::Result<bool> {
    let of_table = |w: &mut super::attribute::Writer| w.put_str(rule::TABLE, table);
    link.ask(msg::GETRULE, nlm::F_DUMP, family_number(of), of_table, |answer| {
        let a = answer.attributes;
        // An old kernel ignores the filter.
        if a.str(rule::TABLE).as_deref() == Some(table) {
            let chain = into.chains.entry(a.str(rule::CHAIN).unwrap_or_default()).or_default();
            chain.rules.push(read_rule(a.nested(rule::EXPRESSIONS)));
        }
    })
}

fn read_sets(link: &Link, of: Family, table: &str, into: &mut Table) -> io::Result<bool> {
    let of_table = |w: &mut super::attribute::Writer| w.put_str(set::TABLE, table);
    link.ask(msg::GETSET, nlm::F_DUMP, family_number(of), of_table, |answer| {
        let a = answer.attributes;
        if a.str(set::TABLE).as_deref() == Some(table) {
            into.sets.insert(a.str(set::NAME).unwrap_or_default(), read_shape(a));
        }
    })
}

fn read_elements(link: &Link, of: Family, table: &str, set: &str, shape: &Set) -> io::Result<(Vec<Read>, bool)> {
    let mut found: Vec<Element> = Vec::new();
    let of_set = |w: &mut super::attribute::Writer| {
        w.put_str(element::LIST_TABLE, table);
        w.put_str(element::LIST_SET, set);
    };
    let whole = link.ask(msg::GETSETELEM, nlm::F_DUMP, family_number(of), of_set, |answer| {
        let list = answer.attributes.nested(element::LIST_ELEMENTS);
        let listed = list.iter().filter(|(kind, _)| *kind == LIST_ELEM);
        found.extend(listed.map(|(_, one)| read_element(Attributes::new(one))));
    })?;
    Ok((join(shape, found), whole))
}

fn known_family(number: u8) -> Option<Family> {
    match number {
        family::INET => Some(Family::Inet),
        family::NETDEV => Some(Family::Netdev),
        _ => None,
    }
}

/// A family as nft(8) names it.
pub(super) fn family_name(number: u8) -> String {
    match number {
        family::INET => "inet".into(),
        family::IPV4 => "ip".into(),
        family::ARP => "arp".into(),
        family::NETDEV => "netdev".into(),
        family::BRIDGE => "bridge".into(),
        family::IPV6 => "ip6".into(),
        other => other.to_string(),
    }
}
