//! Fragments: files that may define services and ask for edges, and nothing else.
//!
//! # Invariants
//!
//! - What a fragment says opens nothing by itself: no edge, no socket, no way in or out, not by way of a tag, a role, a
//!   default, an address or the name of another service.
//! - Everything in it is decoded like the same words of an operator, so that a secret is masked wherever it stands.

use crate::graph::Dns;
use crate::name::{FragmentName, PortName};

use super::decode::{Table, boolean, items, name, string};
use super::findings::{At, Draft, Findings, Sp};
use super::node::{Entry, Kind, Node};
use super::outbound::Outbound;
use super::reference::{PortRef, port_ref};
use super::service::Service;
use super::{File, expose::Expose};

/// Who speaks in a file.
#[derive(Clone, Debug, Default)]
pub(crate) enum Speaker {
    /// Somebody who may say everything.
    #[default]
    Operator,
    /// A fragment; without a name when that is missing or malformed, which has been reported.
    Fragment(Option<FragmentName>),
}

impl Speaker {
    /// How findings call a fragment; `None` for the operator.
    fn called(&self) -> Option<String> {
        match self {
            Self::Operator => None,
            Self::Fragment(None) => Some("a fragment".into()),
            Self::Fragment(Some(name)) => Some(format!("the fragment `{name}`")),
        }
    }
}

/// `wants.TARGET = { ports = ["rpc"], why = "..." }`, or short `wants.TARGET = ["rpc"]`.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) target: Sp<String>,
    /// Each with its text as written.
    pub(crate) ports: Vec<Sp<(PortRef, String)>>,
    pub(crate) sockets: Vec<Sp<String>>,
    pub(crate) why: Option<String>,
    pub(crate) optional: bool,
}

/// The table `wants`.
pub(crate) fn wants(table: &mut Table, out: &mut Findings) -> Vec<Want> {
    table.named("wants", out).into_iter().filter_map(|entry| want(entry, out)).collect()
}

fn want(Entry { key, value }: Entry, out: &mut Findings) -> Option<Want> {
    if key.value.starts_with('@') {
        let draft = Draft::new("E0110", key.at, "a fragment asks for services by name, not by tag");
        out.add(draft.help("who has a tag is the operator's business: name each service"));
        return None;
    }
    // A word such as `host` is nobody who could be asked for.
    name::<crate::name::ServiceName>(&key.value, key.at, "service", out)?;
    let (mut ports, mut sockets, mut why, mut optional) = (Vec::new(), Vec::new(), None, false);
    if matches!(value.kind, Kind::Array(_)) {
        ports = items(value, out, wanted_port);
    } else {
        let mut table = Table::open(value, key.at, out)?;
        ports.extend(table.list("ports", out, wanted_port));
        sockets.extend(table.list("sockets", out, socket_name));
        why = table.read("why", out, string).map(|why| why.value);
        optional = table.read("optional", out, boolean).is_some_and(|optional| optional.value);
        table.finish(out);
    }
    if ports.is_empty() && sockets.is_empty() {
        out.add(Draft::new("W0227", key.at, "no port is listed, so this asks for nothing"));
    }
    Some(Want { target: key, ports, sockets, why, optional })
}

fn wanted_port(node: Node, out: &mut Findings) -> Option<(PortRef, String)> {
    let text = if let Kind::String(text) = &node.kind { text.clone() } else { String::new() };
    port_ref(node, out).map(|port| (port, text))
}

fn socket_name(node: Node, out: &mut Findings) -> Option<String> {
    let at = node.at;
    let text = string(node, out)?;
    name::<PortName>(&text, at, "socket", out).map(|_| text)
}

/// The name of a fragment.
pub(crate) fn named(node: Node, out: &mut Findings) -> Option<FragmentName> {
    let at = node.at;
    let text = string(node, out)?;
    name(&text, at, "fragment", out)
}

/// `fragment = "NAME"`, which makes a fragment of the file; every file of a package must have it.
pub(crate) fn speaker(table: &mut Table, is_vendor: bool, top: At, out: &mut Findings) -> Speaker {
    if !table.has("fragment") && !is_vendor {
        table.know("fragment");
        return Speaker::Operator;
    }
    if !table.has("fragment") {
        let draft = Draft::new("E0115", top, "a file of a package says whose it is: `fragment` is missing");
        out.add(draft.help("write `fragment = \"NAME\"`: it may define services, and ask for edges by `wants`"));
    }
    Speaker::Fragment(table.read("fragment", out, named).map(|name| name.value))
}

/// Who may say everything has nobody to ask.
pub(crate) fn refuse_wants(file: &File, out: &mut Findings) {
    let adds = file.extends.iter().map(|extend| &extend.adds);
    for want in file.services.iter().chain(adds).flat_map(|service| &service.wants) {
        let draft = Draft::new("E0302", want.target.at, "only a fragment asks; this file may open the edge itself");
        out.add(draft.help(format!("write `connect.{} = [...]`", want.target.value.escape_debug())));
    }
}

/// Tables that are the operator's alone, and what they would do in a fragment.
const TABLES: [(&str, &str); 9] = [
    ("declare_tags", "declare a tag"),
    ("defaults", "set a default of others"),
    ("expose", "close what others have opened"),
    ("extend", "extend a service"),
    ("host", "give the host an edge"),
    ("network", "set up the network"),
    ("never", "forbid others something"),
    ("peer", "let a peer in"),
    ("test", "judge the policy"),
];

/// Where the operator's tables stand, before they are decoded.
pub(crate) fn tables_of_the_operator(table: &Table) -> Vec<(At, &'static str)> {
    TABLES.iter().filter_map(|(key, what)| table.place(key).map(|at| (at, *what))).collect()
}

/// Keys of a service that are the operator's alone, and what they would do in a fragment. `connect`, `open`, `outbound`
/// and `dns` are judged by what they hold.
const KEYS: [(&str, &str, &str); 7] = [
    ("address4", "take an address", "leave it out: services keep the address they are given"),
    ("address6", "take an address", "leave it out: services keep the address they are given"),
    ("expose", "let anybody in from outside", "leave it out: the operator says who is let in, by `nsctl expose`"),
    ("role", "take a role in the network", "leave it out: the operator gives roles, by `[extend.NAME] role = ...`"),
    (
        "tags",
        "join a group",
        "leave it out: edges of others speak of tags, so the operator adds them, by `[extend.NAME] tags = [...]`",
    ),
    ("via_ok", "call a way around tor harmless", "leave it out: that is the operator's to say"),
    (
        "was",
        "take over the address of another service",
        "leave it out: the operator says who was who, by `[extend.NAME] was = ...`",
    ),
];

/// Where such keys stand, before they are decoded.
pub(crate) fn keys_of_the_operator(table: &Table) -> Vec<(At, &'static str, &'static str)> {
    KEYS.iter().filter_map(|(key, what, help)| table.place(key).map(|at| (at, *what, *help))).collect()
}

/// Takes out of a fragment what it may not say, and reports it.
pub(crate) fn restrict(file: File, tables: &[(At, &'static str)], out: &mut Findings) -> File {
    let Some(called) = file.speaker.called() else {
        return file;
    };
    for (at, what) in tables {
        let draft = Draft::new("E0303", *at, format!("{called} would {what}; it may only ask"));
        out.add(
            draft.help("it may define services, and ask for edges by `wants`; the rest is the operator's to write"),
        );
    }
    let services = file.services.into_iter().map(|service| restrict_service(service, &called, out)).collect();
    File { speaker: file.speaker, spoken: file.spoken, services, ..File::default() }
}

fn restrict_service(mut service: Service, called: &str, out: &mut Findings) -> Service {
    let grant = format!("ask by `wants.TARGET = [...]`; `nsctl grant {}` answers", service.text.escape_debug());
    let targets = service.connect.iter().map(|connect| connect.target.at);
    for at in targets.chain(service.open.iter().map(|open| open.target.at)) {
        out.add(Draft::new("E0303", at, format!("{called} would open an edge; it may only ask")).help(grant.clone()));
    }
    for (at, what, help) in &service.operators {
        out.add(Draft::new("E0303", *at, format!("{called} would {what}; it may only ask")).help(*help));
    }
    if let Some(outbound) = service.outbound.as_ref().filter(|outbound| outbound.value != Outbound::default()) {
        let draft = Draft::new("E0303", outbound.at, format!("{called} would go out; it may only ask"));
        out.add(draft.help("leave it out: the operator lets it out, by `[extend.NAME] outbound = ...`"));
    }
    if let Some(dns) = service.dns.filter(|dns| matches!(dns.value, Dns::Tor | Dns::Direct)) {
        let draft =
            Draft::new("E0303", dns.at, format!("{called} would ask outside for names; it may only ask for edges"));
        out.add(draft.help("write \"none\" or \"names\": the operator says more, by `[extend.NAME] dns = ...`"));
    }
    service.connect.clear();
    service.open.clear();
    service.tags.clear();
    service.via_ok.clear();
    service.expose = Expose::default();
    (service.tor, service.was, service.address4, service.address6) = (None, None, None, None);
    // What it may say of these is what holds anyway. Unsaid, the operator can say otherwise.
    (service.outbound, service.dns) = (None, None);
    service
}
