//! How a difference is said, and what to do about it.

use std::fmt;

use super::{Drift, Spot};

/// How many rules or elements are shown of one chain or set.
const SHOWN: usize = 3;

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingFabric { netns } => write!(f, "fabric {netns} is missing"),
            Self::MissingNamespace { netns, .. } => write!(f, "namespace {netns} is missing"),
            Self::UndeclaredNamespace { netns } => write!(f, "namespace {netns} is not in the policy"),
            Self::MissingWire { place } => write!(f, "the wire of {place} is missing"),
            Self::ChangedWire { place, what } => write!(f, "the wire of {place} is changed: {}", what.join(", ")),
            Self::WireDown { place, end } if place == end => write!(f, "the wire of {place} is down at its own end"),
            Self::WireDown { place, end } => write!(f, "the wire of {place} is down at the end in the {end}"),
            Self::OtherAddress { place, is, ought } => write!(f, "{place} has {is} and ought to have {ought}"),
            Self::MissingRoute { place, route } => write!(f, "{place} has lost the route {route}"),
            Self::UndeclaredRoute { place, route } => write!(f, "{place} has the route {route}, which ought not to be"),
            Self::MissingEdge { edge, family } => write!(f, "edge {edge} is missing{}", over(*family)),
            Self::UndeclaredEdge { edge, family } => write!(f, "edge {edge} is not in the policy{}", over(*family)),
            Self::MissingRight { at, edge, family } => {
                write!(f, "edge {edge} is missing from the lock {at}{}", over(*family))
            }
            Self::UndeclaredRight { at, edge, family } => {
                write!(f, "the lock {at} has {edge}, which is not in the policy{}", over(*family))
            }
            Self::ChangedFile { service, file, gone } => write!(f, "{file} of {service} is {}", lost(*gone)),
            Self::UndeclaredFiles { service } => write!(f, "the files of {service} are not in the policy"),
            Self::ChangedLeg { link, gone, what } => {
                let what = if what.is_empty() { String::new() } else { format!(": {}", what.join(", ")) };
                write!(f, "the leg {link} of the uplink is {}{what}", lost(*gone))
            }
            Self::ChangedHostRoute { table, lost } if lost.is_empty() => {
                write!(f, "the host's rules and routes into the pool (table {table}) are changed")
            }
            Self::ChangedHostRoute { table, lost } => {
                write!(f, "the host has lost a rule or route into {} (table {table})", lost.join(" and "))
            }
            Self::UndeclaredHostRoute { table } => {
                write!(f, "the host's rules and routes into the pool (table {table}) are not in the policy")
            }
            Self::UndeclaredLink { link } => write!(f, "link {link} on the host is not in the policy"),
            Self::ForeignTable { netns, family, table } => write!(f, "foreign table {family} {table} in {netns}"),
            Self::ForeignNamespace { netns } => write!(f, "foreign namespace {netns}"),
            Self::Restless { netns } => write!(f, "somebody changes the rules inside {netns} without pause"),
            Self::StrayProcess { service, netns, pid, process, count, .. } => write!(
                f,
                "{service} runs in a namespace that is {netns} no longer: process {pid} ({process}){}",
                others(*count)
            ),
            Self::OutsideProcess { pid, process, unit, count, .. } => {
                write!(f, "{unit} runs outside its namespace: process {pid} ({process}){}", others(*count))
            }
            Self::Undone { step } => f.write_str(step),
            Self::ChangedSysctl { at, sysctl, is, ought } => {
                let is = is.as_ref().map(|is| format!("is {is} and ")).unwrap_or_default();
                write!(f, "sysctl {sysctl} {at} {is}ought to be {ought}")
            }
            Self::ExtraLink { at, link, link_kind } => {
                let kind = link_kind.as_ref().map(|kind| format!(" ({kind})")).unwrap_or_default();
                write!(f, "link {link}{kind} {at} is not ours")
            }
            Self::ManyLinks { at, count: Some(count) } => write!(f, "{count} more links {at} are not ours"),
            Self::ManyLinks { at, count: None } => {
                write!(f, "the links {at} cannot be listed: they are too many, or never hold still")
            }
            rules => rules.of_rules(f),
        }
    }
}

impl Drift {
    fn of_rules(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingTable { at, table } => write!(f, "table {table} {at} is gone, with everything in it"),
            Self::DormantTable { at, table } => write!(f, "table {table} {at} is switched off (dormant)"),
            Self::UndeclaredTable { at, table } => write!(f, "table {table} {at} ought not to be"),
            Self::MissingChain { at, table, chain } => write!(f, "chain {chain} of {table} {at} is gone"),
            Self::UndeclaredChain { at, table, chain } => write!(f, "chain {chain} of {table} {at} ought not to be"),
            Self::ChangedChain { at, table, chain } => {
                write!(f, "chain {chain} of {table} {at} has another hook or policy")
            }
            Self::ChangedRules { at, table, chain, gone, come } => {
                write!(f, "chain {chain} of {table} {at}: ")?;
                changed(f, "rule", gone, come)
            }
            Self::MissingSet { at, table, set } => write!(f, "set {set} of {table} {at} is gone"),
            Self::UndeclaredSet { at, table, set } => write!(f, "set {set} of {table} {at} ought not to be"),
            Self::ChangedSet { at, table, set } => write!(f, "set {set} of {table} {at} is of another kind"),
            Self::ChangedElements { at, table, set, gone, come } => {
                write!(f, "set {set} of {table} {at}: ")?;
                changed(f, "element", gone, come)
            }
            Self::MoreRules { at, count } => write!(f, "{count} more differences of the rules {at}"),
            // Everything else has its words above.
            other => f.write_str(&other.kind()),
        }
    }

    /// The next move, as one line for an operator.
    pub fn next(&self) -> String {
        match self {
            one if one.repairable() => "repaired by `nsctl apply`".into(),
            Self::ForeignTable { netns, family, table } => format!(
                "not ours, and never deleted; look at it: `ip netns exec {netns} nft list table {family} {table}`"
            ),
            Self::ForeignNamespace { netns } => {
                format!("not ours, and never deleted; who is in it: `ip netns pids {netns}`")
            }
            Self::ExtraLink { at, link, .. } => format!(
                "opens nothing: the panel looks at the other end of net0; {}",
                look(at, &format!("ip -d link show {link}"))
            ),
            Self::ManyLinks { at, .. } => {
                format!("opens nothing: the panel looks at the other end of net0; {}", look(at, "ip -br link | head"))
            }
            Self::Restless { netns } => {
                format!("stop whoever has CAP_NET_ADMIN in there: `ip netns pids {netns}`")
            }
            Self::StrayProcess { unit: Some(unit), .. } => format!("`systemctl restart {unit}`"),
            Self::StrayProcess { pid, .. } => {
                format!("it is cut off from its service's wire: stop it (`kill {pid}`) and start the service again")
            }
            Self::OutsideProcess { unit, service, .. } => format!(
                "no lock holds it: give the unit the lines of `nsctl env {service}`, then `systemctl restart {unit}`"
            ),
            _ => String::new(),
        }
    }
}

fn others(count: usize) -> String {
    if count > 1 { format!(" and {} more", count - 1) } else { String::new() }
}

fn over(family: Option<&str>) -> String {
    family.map(|family| format!(" for {family}")).unwrap_or_default()
}

fn lost(gone: bool) -> &'static str {
    if gone { "gone" } else { "changed" }
}

fn look(at: &Spot, command: &str) -> String {
    match &at.netns {
        Some(netns) => format!("look at it: `ip netns exec {netns} {command}`"),
        None => format!("look at it: `{command}`"),
    }
}

fn changed(f: &mut fmt::Formatter<'_>, what: &str, gone: &[String], come: &[String]) -> fmt::Result {
    let said = [(gone, "gone"), (come, "not ours")].into_iter().filter(|(some, _)| !some.is_empty());
    let said: Vec<String> =
        said.map(|(some, how)| format!("{} {how}: {}", count(some.len(), what), few(some))).collect();
    match said.as_slice() {
        [] => write!(f, "its {what}s stand in another order"),
        said => f.write_str(&said.join("; ")),
    }
}

fn few(some: &[String]) -> String {
    let shown: Vec<String> = some.iter().take(SHOWN).map(|one| format!("`{one}`")).collect();
    let more = if some.len() > SHOWN { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// What somebody else wrote or chose as a name, with what no terminal should see replaced.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}
