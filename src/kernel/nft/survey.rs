//! Rules of others, as far as they decide whether a packet passes, and what single rules counted.

use std::io;

use netns_policy::ruleset::{Count, Family, Rule};

use super::abi::{chain, counter, expr, family, hook, msg, nlm, rule, verdict};
use super::attribute::{Attributes, Writer};
use super::batch::family_number;
use super::dump::family_name;
use super::expression::read_rule;
use super::socket::Link;

/// A chain of any table of the namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListedChain {
    /// The family as nft(8) names it.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub name: String,
    /// Where it hangs, for a base chain.
    pub base: Option<ListedHook>,
    /// Its rules; what the model has no words for is unknown in them.
    pub rules: Vec<Rule>,
}

/// Where a base chain of the IP families hangs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ListedHook {
    /// `NF_INET_*`: 2 is forward.
    pub number: u32,
    /// Lower runs earlier.
    pub priority: i32,
    /// Whether it accepts what no rule judged.
    pub policy_accept: bool,
}

/// Every chain with its rules, in the kernel's order; `None` when they are not of one moment.
pub(super) fn chains(link: &Link) -> io::Result<Option<Vec<ListedChain>>> {
    let mut all: Vec<ListedChain> = Vec::new();
    let mut whole = link.ask(
        msg::GETCHAIN,
        nlm::F_DUMP,
        family::UNSPEC,
        |_| (),
        |answer| {
            let a = answer.attributes;
            all.push(ListedChain {
                family: family_name(answer.family),
                table: a.str(chain::TABLE).unwrap_or_default(),
                name: a.str(chain::NAME).unwrap_or_default(),
                base: base(a),
                rules: Vec::new(),
            });
        },
    )?;
    whole &= link.ask(
        msg::GETRULE,
        nlm::F_DUMP,
        family::UNSPEC,
        |_| (),
        |answer| {
            let a = answer.attributes;
            let (of, table, name) = (family_name(answer.family), a.str(rule::TABLE), a.str(rule::CHAIN));
            let owner = all.iter_mut().find(|chain| {
                chain.family == of && Some(&chain.name) == name.as_ref() && Some(&chain.table) == table.as_ref()
            });
            owner.into_iter().for_each(|chain| chain.rules.push(read_rule(a.nested(rule::EXPRESSIONS))));
        },
    )?;
    Ok(whole.then_some(all))
}

fn base(a: Attributes<'_>) -> Option<ListedHook> {
    let at = a.nested(chain::HOOK);
    Some(ListedHook {
        number: at.u32(hook::HOOKNUM)?,
        priority: at.u32(hook::PRIORITY)?.cast_signed(),
        policy_accept: a.u32(chain::POLICY)? == verdict::ACCEPT.cast_unsigned(),
    })
}

/// What the first counter of each rule of a chain counted, in order; rules without one are left out.
pub(super) fn rule_counters(link: &Link, of: Family, table: &str, chain: &str) -> io::Result<Option<Vec<Count>>> {
    let mut counts = Vec::new();
    let of_chain = |w: &mut Writer| {
        w.put_str(rule::TABLE, table);
        w.put_str(rule::CHAIN, chain);
    };
    let whole = link.ask(msg::GETRULE, nlm::F_DUMP, family_number(of), of_chain, |answer| {
        let a = answer.attributes;
        // An old kernel ignores the filter.
        if a.str(rule::TABLE).as_deref() == Some(table) && a.str(rule::CHAIN).as_deref() == Some(chain) {
            counts.extend(counted(a.nested(rule::EXPRESSIONS)));
        }
    })?;
    Ok(whole.then_some(counts))
}

fn counted(expressions: Attributes<'_>) -> Option<Count> {
    let mut all = expressions.iter().map(|(_, one)| Attributes::new(one));
    let body = all.find(|one| one.str(expr::NAME).as_deref() == Some("counter"))?.nested(expr::DATA);
    Some(Count { packets: body.u64(counter::PACKETS)?, bytes: body.u64(counter::BYTES)? })
}
