//! `nsctl grant`: the operator's answers to what fragments ask for.
//!
//! An answer is an edge like any other, written into the one file that is ours ([`Own`]) as `[extend.SERVICE]` with the
//! fragment's name: it is for that fragment, and says nothing to another one that takes the service's name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use netns_policy::ask::{Answer, Ask, Wanted};
use netns_policy::graph::AllowGraph;
use toml_edit::{Array, Item, Table, TableLike, Value};

use crate::orchestrator::{Error, Options};
use crate::own::{self, Own};

/// What is granted or taken back.
#[derive(Clone, Debug)]
pub struct Choice {
    /// A fragment, or a service of one.
    pub who: String,
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
    let mut own = Own::open(options, into)?;
    // Taking back must work where what was granted is what is wrong.
    let before = if choice.revoke { own.policy_before().ok() } else { Some(own.policy_before()?) };
    if choice.revoke {
        revoke(&mut own, choice, before.as_ref())?;
    } else {
        for ask in &chosen(choice, &before.as_ref().map(|checked| checked.asks.clone()).unwrap_or_default())? {
            write_down(&mut own, ask)?;
        }
    }
    let after = own.policy_after()?;
    let rights = |graph: &AllowGraph| -> BTreeSet<String> {
        graph.edges().iter().map(ToString::to_string).chain(graph.sockets().iter().map(ToString::to_string)).collect()
    };
    let (old, new) = (before.map(|checked| rights(&checked.graph)), rights(&after.graph));
    let old = old.unwrap_or_else(|| new.clone());
    let (path, is_heard, differs) = (own.path().to_owned(), own.is_heard(), own.differs());
    if !dry_run && differs {
        own::prepare(&path)?;
        own.write()?;
    }
    let (opened, closed) = (new.difference(&old).cloned().collect(), old.difference(&new).cloned().collect());
    Ok(Answered { path, is_heard, differs, opened, closed })
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
    let theirs: Vec<&Ask> = asks.iter().filter(|ask| is_of(ask, who)).collect();
    if let Some(other) = theirs.iter().find(|ask| ask.fragment != theirs[0].fragment) {
        let message = format!("`{who}` is a fragment, and a service of `{}`", other.fragment);
        return Err(usage(message, "name the service that is meant, by a name of its own".into()));
    }
    let all = || asks.iter().map(|ask| ask.service.as_str()).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    if theirs.is_empty() {
        let help = if asks.is_empty() {
            "no fragment asks for anything".to_owned()
        } else {
            format!("these ask: {}", all().join(", "))
        };
        return Err(usage(format!("`{who}` asks for nothing"), help));
    }
    let is_meant = |ask: &&&Ask| {
        choice.target.as_ref().is_none_or(|target| names(target, ask.target.as_str(), &ask.wanted.to_string()))
    };
    let meant: Vec<&Ask> = theirs.iter().filter(is_meant).copied().collect();
    if meant.is_empty() {
        let target = choice.target.as_deref().unwrap_or_default();
        let list: Vec<String> = theirs.iter().map(|ask| format!("{}:{}", ask.target, ask.wanted)).collect();
        return Err(usage(format!("`{who}` does not ask for {target}"), format!("it asks for {}", list.join(", "))));
    }
    if let Some(moot) = meant.iter().find(|ask| ask.answer == Answer::Moot && choice.target.is_some()) {
        let message = format!("{}:{} cannot be granted: there is no such thing here", moot.target, moot.wanted);
        return Err(usage(message, "define that service, or ask its package for the port it means".into()));
    }
    Ok(meant.into_iter().filter(|ask| ask.answer == Answer::Open).cloned().collect())
}

fn is_of(ask: &Ask, who: &str) -> bool {
    ask.fragment.as_str() == who || ask.service.as_str() == who
}

fn write_down(own: &mut Own, ask: &Ask) -> Result<(), Error> {
    let not_ours =
        || usage("the file of nsctl does not hold tables where it ought to".into(), "mend it by hand".into());
    let extend = child(own.document.as_table_mut(), "extend", Form::Header).ok_or_else(not_ours)?;
    let service = child(extend, ask.service.as_str(), Form::Table).ok_or_else(not_ours)?;
    if service.get("fragment").is_none() {
        service.insert("fragment", Item::Value(ask.fragment.as_str().into()));
    }
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

/// How a new table is written.
enum Form {
    /// Not at all: only what is below it has a header.
    Header,
    /// With a header of its own.
    Table,
    /// As `key.NAME = ...` in the table above it.
    Dotted,
}

fn child<'a>(parent: &'a mut dyn TableLike, key: &str, form: Form) -> Option<&'a mut dyn TableLike> {
    let mut new = Table::new();
    new.set_implicit(matches!(form, Form::Header));
    new.set_dotted(matches!(form, Form::Dotted));
    parent.entry(key).or_insert(Item::Table(new)).as_table_like_mut()
}

/// Takes answers out of the file, whether or not anybody asks any more.
fn revoke(own: &mut Own, choice: &Choice, policy: Option<&netns_policy::Checked>) -> Result<(), Error> {
    let mut found = false;
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
            if name == choice.who || of == choice.who {
                found |= take_out(service, "connect", "", choice.target.as_deref());
                found |= take_out(service, "open", "unix:", choice.target.as_deref());
                if service.iter().all(|(key, _)| key == "fragment") {
                    extend.remove(&name);
                }
            }
        }
    }
    if own.document.get("extend").and_then(Item::as_table_like).is_some_and(TableLike::is_empty) {
        own.document.remove("extend");
    }
    if found { Ok(()) } else { Err(not_granted(own, choice, policy)) }
}

fn take_out(service: &mut dyn TableLike, key: &str, prefix: &str, target: Option<&str>) -> bool {
    let Some(targets) = service.get_mut(key).and_then(Item::as_table_like_mut) else {
        return false;
    };
    let mut found = false;
    let names_of: Vec<String> = targets.iter().map(|(name, _)| name.to_owned()).collect();
    for to in names_of {
        let Some(list) = targets.get_mut(&to).and_then(Item::as_array_mut) else {
            continue;
        };
        let before = list.len();
        let is_meant = |have: &Value| {
            let wanted = format!("{prefix}{}", have.as_str().unwrap_or_default());
            target.is_none_or(|target| names(target, &to, &wanted))
        };
        list.retain(|have| !is_meant(have));
        found |= list.len() < before;
        if list.is_empty() {
            targets.remove(&to);
        }
    }
    if targets.is_empty() {
        service.remove(key);
    }
    found
}

/// Why there is nothing to take back: nobody granted it, or a person did.
fn not_granted(own: &Own, choice: &Choice, policy: Option<&netns_policy::Checked>) -> Error {
    let is_meant = |ask: &&Ask| {
        let target = choice.target.as_deref();
        is_of(ask, &choice.who)
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
    let edge = policy
        .graph
        .edges()
        .iter()
        .find(|edge| edge.from.to_string() == ask.service.as_str() && edge.to.to_string() == ask.target.as_str());
    let at = edge.map(|edge| edge.at.to_string()).unwrap_or_else(|| "another file".into());
    usage(message, format!("{ask} is allowed at {at}, which a person wrote: take it out there"))
}
