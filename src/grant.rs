//! `nsctl grant`: the operator's answers to what fragments ask for.
//!
//! An answer is an edge like any other, written into the one file that is ours ([`Own`]) as `[extend.SERVICE]` with the
//! fragment's name: it is for that fragment, and says nothing to another one that takes the service's name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use netns_policy::ask::{Answer, Ask, Wanted};
use netns_policy::graph::{AllowGraph, Edge, Location, Service};
use netns_policy::name::FragmentName;
use toml_edit::{Array, Item, TableLike, Value};

use crate::orchestrator::{Error, Options};
use crate::own::{Form, Own, child};

/// What is granted or taken back.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The service that asks, or with `whole` the fragment.
    pub who: String,
    /// Whether all services of the fragment of that name are meant. Else it is that one service and no other, though a
    /// fragment may have its name.
    pub whole: bool,
    /// `lnd`, `lnd:rpc`, `clightning:unix:rpc`; everything when left out.
    pub target: Option<String>,
    /// Whether it is taken back.
    pub revoke: bool,
}

/// What an answer changes.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The file of ours that says it.
    pub path: PathBuf,
    /// Whether commands with the same `--policy` read that file.
    pub is_heard: bool,
    /// Whether the file says anything else than before.
    differs: bool,
    /// Edges that come, as `a -> b:rpc`.
    pub opened: Vec<String>,
    /// Edges that go.
    pub closed: Vec<String>,
    /// Asks for ports by number that were left open, since nobody named their target.
    pub left: Vec<Ask>,
}

impl Answered {
    /// Whether anything changes.
    pub fn changes(&self) -> bool {
        self.differs
    }
}

/// Answers, and writes the answer down unless `dry_run`. Nothing is opened in the kernel before the next apply.
///
/// # Errors
///
/// When nobody asks for it, when the policy would be refused with it, when the file cannot be written. Nothing is
/// changed then.
pub fn answer(options: &Options, into: Option<&Path>, choice: &Choice, dry_run: bool) -> Result<Answered, Error> {
    let mut own = Own::open(options, into, dry_run)?;
    // Taking back must work where what was granted is what is wrong.
    let before = if choice.revoke { own.policy_before().ok() } else { Some(own.policy_before()?) };
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    if choice.revoke {
        taken = revoke(&mut own, choice, before.as_ref())?;
    } else {
        let asks = before.as_ref().map(|checked| checked.asks.clone()).unwrap_or_default();
        for ask in chosen(choice, &asks)? {
            if choice.target.is_none() && is_by_number(&ask.wanted) {
                left.push(ask);
            } else {
                let target = before.as_ref().and_then(|checked| checked.graph.service(ask.target.as_str()));
                write_down(&mut own, &ask, target)?;
            }
        }
    }
    let after = own.policy_after()?;
    let rights = |graph: &AllowGraph| -> BTreeSet<String> {
        graph.edges().iter().map(ToString::to_string).chain(graph.sockets().iter().map(ToString::to_string)).collect()
    };
    let (old, new) = (before.map(|checked| rights(&checked.graph)), rights(&after.graph));
    // Of a policy that was refused, what it would have opened is not known; what was taken out of the file is.
    let closed = old.as_ref().map_or(taken, |old| old.difference(&new).cloned().collect());
    let opened = old.map_or_else(Vec::new, |old| new.difference(&old).cloned().collect());
    let (path, is_heard, differs) = (own.path().to_owned(), own.is_heard(), own.differs());
    if !dry_run && differs {
        own.write()?;
    }
    Ok(Answered { path, is_heard, differs, opened, closed, left })
}

fn usage(message: String, help: String) -> Error {
    Error::Usage { message, help: Some(help) }
}

/// Whether `target` names what is asked for.
fn names(target: &str, service: &str, wanted: &str) -> bool {
    target == service || target.strip_prefix(service).and_then(|rest| rest.strip_prefix(':')) == Some(wanted)
}

/// The asks that are meant and can be answered.
fn chosen(choice: &Choice, asks: &[Ask]) -> Result<Vec<Ask>, Error> {
    let who = choice.who.as_str();
    let theirs: Vec<&Ask> = asks.iter().filter(|ask| is_of(ask, choice)).collect();
    if theirs.is_empty() {
        return Err(asks_for_nothing(choice, asks));
    }
    let is_meant = |ask: &&&Ask| {
        choice.target.as_ref().is_none_or(|target| names(target, ask.target.as_str(), &ask.wanted.to_string()))
    };
    let meant: Vec<&Ask> = theirs.iter().filter(is_meant).copied().collect();
    if meant.is_empty() {
        let target = choice.target.as_deref().unwrap_or_default();
        let list = all(theirs, |ask| ask.to_string());
        return Err(usage(format!("`{who}` does not ask for {target}"), format!("what is asked for: {list}")));
    }
    if let Some(moot) = meant.iter().find(|ask| ask.answer == Answer::Moot && choice.target.is_some()) {
        let message = format!("{moot} cannot be granted: there is no such thing here");
        return Err(usage(message, "define that service, or ask its package for the port it means".into()));
    }
    Ok(meant.into_iter().filter(|ask| ask.answer == Answer::Open).cloned().collect())
}

/// What `of` says of the asks, each once.
fn all<'a>(asks: impl IntoIterator<Item = &'a Ask>, of: impl Fn(&Ask) -> String) -> String {
    asks.into_iter().map(of).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

/// Nobody of that name asks; who else may have been meant.
fn asks_for_nothing(choice: &Choice, asks: &[Ask]) -> Error {
    let who = choice.who.as_str();
    let services = |of: &dyn Fn(&&Ask) -> bool| all(asks.iter().filter(of), |ask| ask.service.to_string());
    let of_fragment = services(&|ask| ask.fragment.as_str() == who);
    if !choice.whole && !of_fragment.is_empty() {
        let help = format!("name one of its services: {of_fragment}; all of them: `--fragment {who}`");
        return usage(format!("`{who}` is a fragment, and no service of that name asks"), help);
    }
    let what = if choice.whole { "fragment" } else { "service" };
    let help = match asks {
        [] => "no fragment asks for anything".to_owned(),
        _ if choice.whole => format!("these fragments ask: {}", all(asks, |ask| ask.fragment.to_string())),
        _ => format!("these services ask: {}", services(&|_| true)),
    };
    usage(format!("no {what} `{who}` asks for anything"), help)
}

/// Whether an ask is of those that are answered.
fn is_of(ask: &Ask, choice: &Choice) -> bool {
    choice.who == if choice.whole { ask.fragment.as_str() } else { ask.service.as_str() }
}

/// Whether a port is asked for by its number, as `tcp:8332` or `tcp:1-65535`: the name that the target gives a port says
/// what lies behind it, a number does not.
fn is_by_number(wanted: &Wanted) -> bool {
    match wanted {
        Wanted::Port(port) => {
            !port.rsplit(':').next().unwrap_or_default().starts_with(|c: char| c.is_alphabetic() || c == '_')
        }
        Wanted::Socket(_) => false,
    }
}

/// Writes the answer to `ask` down, which is for `target` as it is defined now.
fn write_down(own: &mut Own, ask: &Ask, target: Option<&Service>) -> Result<(), Error> {
    let not_ours =
        || usage("the file of nsctl does not hold tables where it ought to".into(), "mend it by hand".into());
    let extend = child(own.document.as_table_mut(), "extend", Form::Header).ok_or_else(not_ours)?;
    let service = child(extend, ask.service.as_str(), Form::Table).ok_or_else(not_ours)?;
    if service.get("fragment").is_none() {
        service.insert("fragment", Item::Value(ask.fragment.as_str().into()));
    }
    let owner = target.and_then(|target| target.fragment.as_ref()).map(FragmentName::as_str);
    meant_as(service, ask.target.as_str(), owner).ok_or_else(not_ours)?;
    let (key, name) = match &ask.wanted {
        Wanted::Port(port) => ("connect", port),
        Wanted::Socket(socket) => ("open", socket),
    };
    let targets = child(service, key, Form::Dotted).ok_or_else(not_ours)?;
    let empty = Item::Value(Value::Array(Array::new()));
    let list = targets.entry(ask.target.as_str()).or_insert(empty).as_array_mut().ok_or_else(not_ours)?;
    if !list.iter().any(|have| have.as_str() == Some(name)) {
        list.push(name.as_str());
    }
    Ok(())
}

/// Writes down whose the target is. What was granted at one of its name by somebody else goes: nobody grants it now.
fn meant_as(service: &mut dyn TableLike, target: &str, owner: Option<&str>) -> Option<()> {
    let have = service.get("of").and_then(Item::as_table_like).and_then(|of| of.get(target)).and_then(Item::as_str);
    if have == owner {
        return Some(());
    }
    for key in ["connect", "open"] {
        take_out(service, key, "", Some(target));
    }
    forget_owners(service);
    if let Some(owner) = owner {
        child(service, "of", Form::Dotted)?.insert(target, Item::Value(owner.into()));
    }
    Some(())
}

/// Takes out whose the targets are at which nothing is granted any more.
fn forget_owners(service: &mut dyn TableLike) {
    let targets = |key: &str| service.get(key).and_then(Item::as_table_like).map(|of| of.iter().map(|(name, _)| name));
    let granted: BTreeSet<String> =
        ["connect", "open"].iter().filter_map(|key| targets(key)).flatten().map(ToOwned::to_owned).collect();
    let Some(of) = service.get_mut("of").and_then(Item::as_table_like_mut) else {
        return;
    };
    let names: Vec<String> = of.iter().map(|(name, _)| name.to_owned()).collect();
    for name in names.iter().filter(|name| !granted.contains(*name)) {
        of.remove(name);
    }
    if of.is_empty() {
        service.remove("of");
    }
}

/// Takes answers out of the file, whether or not anybody asks any more, and says which.
fn revoke(own: &mut Own, choice: &Choice, policy: Option<&netns_policy::Checked>) -> Result<Vec<String>, Error> {
    let mut taken = Vec::new();
    if let Some(extend) = own.document.get_mut("extend").and_then(Item::as_table_like_mut) {
        let services: Vec<String> = extend.iter().map(|(name, _)| name.to_owned()).collect();
        for name in services {
            let Some(service) = extend.get_mut(&name).and_then(Item::as_table_like_mut) else {
                continue;
            };
            // Only what was granted: what else the file says of the service has been said by another command.
            let Some(of) = service.get("fragment").and_then(Item::as_str).map(ToOwned::to_owned) else {
                continue;
            };
            if choice.who == if choice.whole { of } else { name.clone() } {
                for (key, prefix) in [("connect", ""), ("open", "unix:")] {
                    let out = take_out(service, key, prefix, choice.target.as_deref());
                    taken.extend(out.iter().map(|out| format!("{name} -> {out}")));
                }
                forget_owners(service);
                if service.iter().all(|(key, _)| key == "fragment") {
                    extend.remove(&name);
                }
            }
        }
    }
    if own.document.get("extend").and_then(Item::as_table_like).is_some_and(TableLike::is_empty) {
        own.document.remove("extend");
    }
    if taken.is_empty() { Err(not_granted(own, choice, policy)) } else { Ok(taken) }
}

/// Takes the names that are meant out of the lists below `key`, and says which, as `lnd:rpc`.
fn take_out(service: &mut dyn TableLike, key: &str, prefix: &str, target: Option<&str>) -> Vec<String> {
    let mut taken = Vec::new();
    let Some(targets) = service.get_mut(key).and_then(Item::as_table_like_mut) else {
        return taken;
    };
    let names_of: Vec<String> = targets.iter().map(|(name, _)| name.to_owned()).collect();
    for to in names_of {
        let Some(list) = targets.get_mut(&to).and_then(Item::as_array_mut) else {
            continue;
        };
        list.retain(|have| {
            let wanted = format!("{prefix}{}", have.as_str().unwrap_or_default());
            let stays = target.is_some_and(|target| !names(target, &to, &wanted));
            if !stays {
                taken.push(format!("{to}:{wanted}"));
            }
            stays
        });
        if list.is_empty() {
            targets.remove(&to);
        }
    }
    if targets.is_empty() {
        service.remove(key);
    }
    taken
}

/// Why there is nothing to take back: nobody granted it, or a person did.
fn not_granted(own: &Own, choice: &Choice, policy: Option<&netns_policy::Checked>) -> Error {
    let is_meant = |ask: &&Ask| {
        let target = choice.target.as_deref();
        is_of(ask, choice)
            && ask.answer == Answer::Granted
            && target.is_none_or(|target| names(target, ask.target.as_str(), &ask.wanted.to_string()))
    };
    let granted = policy.and_then(|policy| policy.asks.iter().find(is_meant).map(|ask| (ask, policy)));
    let what =
        choice.target.as_ref().map_or_else(|| choice.who.clone(), |target| format!("{} -> {target}", choice.who));
    let message = format!("{} grants nothing of {what}", own.path().display());
    let Some((ask, policy)) = granted else {
        return usage(message, "`nsctl grant` lists what is asked for, and what was answered".into());
    };
    let at = written_at(&policy.graph, ask);
    let by = match at {
        Some(at) if Path::new(&at.file) == own.path() => "for whatever fragment has that name",
        _ => "which a person wrote",
    };
    let at = at.map_or_else(|| "another place".to_owned(), ToString::to_string);
    usage(message, format!("{ask} is allowed at {at}, {by}: take it out there"))
}

/// Where the edge is written that an ask was answered with.
fn written_at<'a>(graph: &'a AllowGraph, ask: &Ask) -> Option<&'a Location> {
    let (from, to) = (ask.service.as_str(), ask.target.as_str());
    match &ask.wanted {
        Wanted::Socket(name) => graph
            .sockets()
            .iter()
            .find(|edge| edge.from.as_str() == from && edge.to.as_str() == to && edge.name.as_str() == name)
            .map(|edge| &edge.at),
        Wanted::Port(port) => {
            let mut edges =
                graph.edges().iter().filter(|edge| edge.from.to_string() == from && edge.to.to_string() == to);
            let first = edges.clone().next();
            let is_named = |edge: &&Edge| {
                edge.port_name.as_ref().is_some_and(|name| port.rsplit(':').next() == Some(name.as_str()))
            };
            edges.find(is_named).or(first).map(|edge| &edge.at)
        }
    }
}
