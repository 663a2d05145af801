//! Which chain of the host stops a link of ours, and the line that lets it pass.

use std::collections::BTreeSet;

use netns_policy::ruleset::compile::TABLE;
use netns_policy::ruleset::{Expr, Verdict};

use super::Blocked;
use crate::kernel::nft::ListedChain;

/// Which way packets take through the host by a link of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// From it or to it, on to somebody else.
    Through,
    /// From it to the host itself.
    In,
    /// From the host itself to it.
    Out,
}

impl Way {
    /// `NF_INET_*`, and what iptables(8) calls its chain there.
    fn hook(self) -> (u32, &'static str) {
        match self {
            Self::Through => (2, "FORWARD"),
            Self::In => (1, "INPUT"),
            Self::Out => (3, "OUTPUT"),
        }
    }
}

/// The chains that may stop packets of the `stopped` families (`ip`, `ip6`) on their way by `leg`: those that drop by
/// policy; if there is none, iptables-legacy's, whose rules cannot be read, and those that have any rule against packets.
pub(crate) fn find(
    chains: &[ListedChain],
    (stopped, way): (&[&str], Way),
    legacy: &BTreeSet<&str>,
    leg: &str,
) -> Vec<Blocked> {
    let mut suspects: Vec<&ListedChain> = chains.iter().filter(|chain| is_suspect(chain, stopped, way)).collect();
    suspects.sort_by_key(|chain| chain.base.map(|base| base.priority));
    let named = |chain: &&ListedChain| {
        let policy = if drops(chain) { "policy drop" } else { "one of its rules" };
        let name = format!("{} {} {} ({policy})", chain.family, chain.table, chain.name);
        Blocked { chain: name, remedy: remedy(chains, chain, way, leg) }
    };
    // Once its remedy was followed it is another one that drops.
    let certain: Vec<_> =
        suspects.iter().filter(|chain| drops(chain) && !lets_pass(chains, chain, leg)).map(named).collect();
    if !certain.is_empty() {
        return certain;
    }
    let doubtful = suspects.iter().filter(|chain| !lets_pass(chains, chain, leg) && has_refusal(chain)).map(named);
    legacy.iter().map(|family| legacy_filter(family, way, leg)).chain(doubtful).collect()
}

fn is_suspect(chain: &ListedChain, stopped: &[&str], way: Way) -> bool {
    let ours = chain.family == "inet" && chain.table.strip_prefix(TABLE).is_some_and(|rest| rest.starts_with('-'));
    let judges = chain.family == "inet" || stopped.contains(&chain.family.as_str());
    judges && !ours && chain.base.is_some_and(|base| base.number == way.hook().0)
}

/// Whether a base chain drops what no rule judged.
pub(crate) fn drops(chain: &ListedChain) -> bool {
    chain.base.is_some_and(|base| !base.policy_accept)
}

/// Whether some rule of the table accepts what comes in by the leg.
fn lets_pass(chains: &[ListedChain], of: &ListedChain, leg: &str) -> bool {
    let names_leg = |expr: &Expr| match expr {
        Expr::Cmp { equal: true, data, .. } => {
            data.strip_prefix(leg.as_bytes()).is_some_and(|rest| rest.iter().all(|b| *b == 0))
        }
        _ => false,
    };
    let accepts = |expr: &Expr| matches!(expr, Expr::Verdict(Verdict::Accept));
    let rules = same_table(chains, of).flat_map(|chain| &chain.rules);
    rules.into_iter().any(|rule| rule.0.iter().any(names_leg) && rule.0.iter().any(accepts))
}

/// Whether a rule drops, refuses, or leads to where that may happen.
pub(crate) fn has_refusal(chain: &ListedChain) -> bool {
    let refuses = |expr: &Expr| match expr {
        Expr::Verdict(verdict) => !matches!(verdict, Verdict::Accept | Verdict::Return),
        Expr::Reject(_) => true,
        // What iptables-nft(8) says with an extension of its own, and queues.
        Expr::Unknown(name) => matches!(name.as_str(), "target" | "reject" | "queue"),
        _ => false,
    };
    chain.rules.iter().flat_map(|rule| &rule.0).any(refuses)
}

fn same_table<'a>(chains: &'a [ListedChain], of: &'a ListedChain) -> impl Iterator<Item = &'a ListedChain> {
    chains.iter().filter(|chain| chain.family == of.family && chain.table == of.table)
}

/// The line in the words of whoever keeps the chain: he would take away what others put into it.
fn remedy(chains: &[ListedChain], of: &ListedChain, way: Way, leg: &str) -> String {
    let has = |name: &str| same_table(chains, of).any(|chain| chain.name == name);
    let iptables = if of.family == "ip6" { "ip6tables" } else { "iptables" };
    if has("DOCKER-USER") && way == Way::Through {
        return both(way, |flag, _| format!("{iptables} -I DOCKER-USER {flag} {leg} -j ACCEPT"));
    }
    if has("ufw-user-forward") || has("ufw6-user-forward") {
        let route = if way == Way::Through { "route " } else { "" };
        return both(way, |_, word| format!("ufw {route}allow {word} on {leg}"));
    }
    if of.table == "firewalld" {
        let zone = format!("firewall-cmd --zone=trusted --add-interface={leg}");
        return format!("{zone} && {}", zone.replacen("firewall-cmd", "firewall-cmd --permanent", 1));
    }
    let ListedChain { family, table, name, .. } = of;
    // Quoted twice: for the shell, and for nft(8), to which a plus sign is no part of a name.
    both(way, |_, word| format!("nft 'insert rule {family} {table} {name} {}ifname \"{leg}\" accept'", &word[..1]))
}

fn legacy_filter(family: &str, way: Way, leg: &str) -> Blocked {
    let iptables = if family == "ip6" { "ip6tables-legacy" } else { "iptables-legacy" };
    let chain = way.hook().1;
    Blocked {
        chain: format!("{iptables} filter {chain}"),
        remedy: both(way, |flag, _| format!("{iptables} -I {chain} {flag} {leg} -j ACCEPT")),
    }
}

/// The way out and the way back of the answers, where somebody else is at the other end; the host knows its own answers.
fn both(way: Way, line: impl Fn(&str, &str) -> String) -> String {
    match way {
        Way::Through => format!("{} && {}", line("-i", "in"), line("-o", "out")),
        Way::In => line("-i", "in"),
        Way::Out => line("-o", "out"),
    }
}

#[cfg(test)]
mod tests {
    use netns_policy::ruleset::Rule;

    use super::*;
    use crate::kernel::nft::ListedHook;

    fn chain(path: &str, policy_accept: Option<bool>, rules: Vec<Vec<Expr>>) -> ListedChain {
        let [family, table, name] = path.split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap();
        let base = policy_accept.map(|policy_accept| ListedHook { number: 2, priority: 0, policy_accept });
        ListedChain { family, table, name, base, rules: rules.into_iter().map(Rule::from).collect() }
    }

    fn found(chains: &[ListedChain], stopped: &[&str]) -> Vec<(String, String)> {
        let all = find(chains, (stopped, Way::Through), &BTreeSet::new(), "node+leg");
        all.into_iter().map(|blocked| (blocked.chain, blocked.remedy)).collect()
    }

    const DROP: Expr = Expr::Verdict(Verdict::Drop);

    #[test]
    fn a_chain_that_drops_by_policy_is_named_before_one_with_a_drop() {
        let chains = [
            chain("inet mine forward", Some(true), vec![vec![DROP]]),
            chain("ip filter FORWARD", Some(false), vec![]),
            chain("inet nsctl-node forward", Some(false), vec![]),
        ];
        let remedy = "nft 'insert rule ip filter FORWARD iifname \"node+leg\" accept' && \
                      nft 'insert rule ip filter FORWARD oifname \"node+leg\" accept'";
        assert_eq!(found(&chains, &["ip"]), [("ip filter FORWARD (policy drop)".to_owned(), remedy.to_owned())]);
        assert_eq!(found(&chains, &["ip6"])[0].0, "inet mine forward (one of its rules)");
    }

    #[test]
    fn each_keeper_of_rules_is_told_in_its_own_words() {
        let docker = [chain("ip filter FORWARD", Some(false), vec![]), chain("ip filter DOCKER-USER", None, vec![])];
        let remedy = "iptables -I DOCKER-USER -i node+leg -j ACCEPT && iptables -I DOCKER-USER -o node+leg -j ACCEPT";
        assert_eq!(found(&docker, &["ip"])[0].1, remedy);
        let ufw =
            [chain("ip6 filter FORWARD", Some(false), vec![]), chain("ip6 filter ufw6-user-forward", None, vec![])];
        assert_eq!(found(&ufw, &["ip6"])[0].1, "ufw route allow in on node+leg && ufw route allow out on node+leg");
        let firewalld =
            [chain("inet firewalld filter_FORWARD", Some(true), vec![vec![Expr::Unknown("reject".into())]])];
        assert!(
            found(&firewalld, &["ip"])[0].1.starts_with("firewall-cmd --zone=trusted --add-interface=node+leg && ")
        );
    }

    #[test]
    fn a_chain_that_lets_the_leg_pass_is_not_named_again() {
        let mut name = b"node+leg".to_vec();
        name.resize(16, 0);
        let pass = vec![
            Expr::Cmp { equal: true, sreg: netns_policy::ruleset::Reg(0), data: name },
            Expr::Verdict(Verdict::Accept),
        ];
        let chains =
            [chain("ip filter FORWARD", Some(false), vec![pass]), chain("inet mine forward", Some(false), vec![])];
        assert_eq!(found(&chains, &["ip"]).len(), 1);
        assert_eq!(found(&chains, &["ip"])[0].0, "inet mine forward (policy drop)");
    }

    #[test]
    fn what_iptables_legacy_has_cannot_be_read_and_is_named() {
        let named = find(&[], (&["ip"], Way::Through), &BTreeSet::from(["ip"]), "node+leg");
        assert_eq!(named[0].chain, "iptables-legacy filter FORWARD");
    }
    #[test]
    fn what_the_host_itself_takes_and_sends_is_another_chain_with_another_line() {
        let at = |path: &str, number| {
            let base = Some(ListedHook { number, priority: 0, policy_accept: false });
            ListedChain { base, ..chain(path, None, vec![]) }
        };
        let ufw =
            [at("ip filter INPUT", 1), at("ip filter OUTPUT", 3), chain("ip filter ufw-user-forward", None, vec![])];
        let found = |way| find(&ufw, (&["ip"], way), &BTreeSet::new(), "node+host");
        let said = |way| found(way).into_iter().map(|blocked| (blocked.chain, blocked.remedy)).collect::<Vec<_>>();
        let line = |chain: &str, remedy: &str| vec![(format!("ip filter {chain} (policy drop)"), remedy.to_owned())];
        assert_eq!(said(Way::In), line("INPUT", "ufw allow in on node+host"));
        assert_eq!(said(Way::Out), line("OUTPUT", "ufw allow out on node+host"));
        assert_eq!(said(Way::Through), []);
    }
}
