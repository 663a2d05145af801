//! `[service.NAME]` and `[extend.NAME]` as written: they have the same keys.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::graph::Dns;
use crate::name::{FragmentName, PortName, ServiceName, Tag};
use crate::port::Ports;

use super::decode::{Table, boolean, items, name, parsed, ports, positive, string, word};
use super::expose::Expose;
use super::findings::{At, Draft, Findings, Sp};
use super::fragment::{self, Want};
use super::node::{Entry, Kind, Node};
use super::outbound::{Outbound, outbound};
use super::section::{Connect, connects, dns};
use super::socket::{Offered, Open, offered, opens};

/// `[service.NAME]`, or what `[extend.NAME]` adds to it.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// `None` when the name is malformed, which has been reported.
    pub(crate) name: Option<ServiceName>,
    /// The name as written.
    pub(crate) text: String,
    pub(crate) at: At,
    /// Whether a fragment defines it.
    pub(crate) is_of_fragment: bool,
    /// Which one; without a name when that is missing or malformed.
    pub(crate) fragment: Option<FragmentName>,
    pub(crate) enabled: Option<Sp<bool>>,
    pub(crate) unit: Option<Sp<String>>,
    pub(crate) tags: Vec<Sp<Tag>>,
    pub(crate) ports: Vec<Declared>,
    pub(crate) private: Vec<Sp<String>>,
    pub(crate) sockets: Vec<Offered>,
    pub(crate) connect: Vec<Connect>,
    pub(crate) open: Vec<Open>,
    pub(crate) wants: Vec<Want>,
    pub(crate) outbound: Option<Sp<Outbound>>,
    pub(crate) dns: Option<Sp<Dns>>,
    pub(crate) flows: Option<Sp<u32>>,
    pub(crate) new_per_second: Option<Sp<u32>>,
    /// `role = "tor"`, and where.
    pub(crate) tor: Option<At>,
    pub(crate) was: Option<Sp<ServiceName>>,
    pub(crate) address4: Option<Sp<Ipv4Addr>>,
    pub(crate) address6: Option<Sp<Ipv6Addr>>,
    pub(crate) expose: Expose,
    /// Neighbours that are no way around tor though they look like one.
    pub(crate) via_ok: Vec<Sp<Trusted>>,
    /// Where keys stand that only the operator may use, and what is said of them in a fragment.
    pub(crate) operators: Vec<(At, &'static str, &'static str)>,
}

impl Service {
    /// Whether it is not switched off.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.is_none_or(|enabled| enabled.value)
    }
}

/// An entry of `via_ok`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Trusted {
    /// `via_ok = true`.
    Everybody,
    /// `via_ok = ["lnd"]`.
    Service(String),
}

/// `[extend.NAME]`.
#[derive(Clone, Debug)]
pub(crate) struct Extend {
    /// `fragment = "NAME"`: it is for the service as that fragment defines it, and for no other of its name.
    pub(crate) of: Option<Sp<FragmentName>>,
    /// `of.TARGET = "NAME"`: that service is meant as this fragment defines it; any other, as the operator does.
    pub(crate) targets: Vec<(Sp<String>, FragmentName)>,
    pub(crate) adds: Service,
}

/// `NAME = "tcp:8332"`.
#[derive(Clone, Debug)]
pub(crate) struct Declared {
    pub(crate) name: Sp<String>,
    /// `None` when either is malformed, which has been reported.
    pub(crate) port: Option<(PortName, Ports)>,
}

/// Every `[service.NAME]` of the file.
pub(crate) fn read_all(file: &mut Table, out: &mut Findings) -> Vec<Service> {
    let one = |entry, out: &mut Findings| {
        let (service, table) = service(entry, out)?;
        table.finish(out);
        Some(service)
    };
    file.named("service", out).into_iter().filter_map(|entry| one(entry, out)).collect()
}

/// Every `[extend.NAME]` of the file.
pub(crate) fn read_extends(file: &mut Table, out: &mut Findings) -> Vec<Extend> {
    let one = |entry, out: &mut Findings| {
        let (adds, mut table) = service(entry, out)?;
        // Who extends by the name of a service alone means targets by their names alone too.
        let of = match table.has("of") {
            true => table.need("fragment", out, fragment::named),
            false => table.read("fragment", out, fragment::named),
        };
        let targets = table.named("of", out);
        let target = |entry: Entry, out: &mut Findings| Some((entry.key, fragment::named(entry.value, out)?));
        let targets = targets.into_iter().filter_map(|entry| target(entry, out)).collect();
        table.finish(out);
        Some(Extend { of, targets, adds })
    };
    file.named("extend", out).into_iter().filter_map(|entry| one(entry, out)).collect()
}

fn service(Entry { key, value }: Entry, out: &mut Findings) -> Option<(Service, Table)> {
    let name = name(&key.value, key.at, "service", out);
    let mut table = Table::open(value, key.at, out)?;
    let operators = fragment::keys_of_the_operator(&table);
    let mut service = Service {
        name,
        text: key.value,
        at: key.at,
        is_of_fragment: false,
        fragment: None,
        enabled: table.read("enabled", out, boolean),
        unit: table.read("unit", out, unit),
        tags: table.list("tags", out, tag),
        ports: table.named("ports", out).into_iter().map(|entry| declared(entry, out)).collect(),
        private: table.list("private", out, string),
        sockets: offered(&mut table, out),
        connect: connects(&mut table, "connect", out),
        open: opens(&mut table, out),
        wants: fragment::wants(&mut table, out),
        outbound: table.read("outbound", out, outbound),
        dns: table.read("dns", out, dns),
        flows: None,
        new_per_second: None,
        tor: table.read("role", out, role).map(|role| role.at),
        was: table.read("was", out, was),
        address4: table.read("address4", out, |node, out| parsed(node, "E0506", out)),
        address6: table.read("address6", out, |node, out| parsed(node, "E0506", out)),
        expose: Expose::read(&mut table, out),
        via_ok: via_ok(&mut table, out),
        operators,
    };
    (service.flows, service.new_per_second) = limits(&mut table, out);
    Some((service, table))
}

/// `true`, or the neighbours that are meant.
fn via_ok(table: &mut Table, out: &mut Findings) -> Vec<Sp<Trusted>> {
    let Some(Entry { value, .. }) = table.take("via_ok") else {
        return Vec::new();
    };
    let at = value.at;
    match value.kind {
        Kind::Boolean(true) => vec![Sp::new(Trusted::Everybody, at)],
        Kind::Boolean(false) => Vec::new(),
        _ => items(value, out, |node, out| string(node, out).map(Trusted::Service)),
    }
}

fn declared(Entry { key, value }: Entry, out: &mut Findings) -> Declared {
    let name = name::<PortName>(&key.value, key.at, "port", out);
    let ports = ports(value, out);
    Declared { name: key, port: name.zip(ports) }
}

fn limits(service: &mut Table, out: &mut Findings) -> (Option<Sp<u32>>, Option<Sp<u32>>) {
    let Some(mut table) = service.table("limits", out) else {
        return (None, None);
    };
    let limits = (table.read("flows", out, positive), table.read("new_per_second", out, positive));
    table.finish(out);
    limits
}

fn role(node: Node, out: &mut Findings) -> Option<()> {
    word(node, &[("tor", ())], out)
}

fn was(node: Node, out: &mut Findings) -> Option<ServiceName> {
    let at = node.at;
    let text = string(node, out)?;
    name(&text, at, "service", out)
}

pub(super) fn tag(node: Node, out: &mut Findings) -> Option<Tag> {
    let at = node.at;
    let text = string(node, out)?;
    name(&text, at, "tag", out)
}

/// A systemd unit name: systemd.unit(5) lists the characters.
fn unit(node: Node, out: &mut Findings) -> Option<String> {
    let at = node.at;
    let text = string(node, out)?;
    let stem = text.strip_suffix(".service").unwrap_or_default();
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '@' | '\\');
    if stem.is_empty() || text.len() > 255 || !stem.chars().all(legal) {
        let message = format!("\"{}\" is not the name of a service unit", text.escape_debug());
        out.add(Draft::new("E0212", at, message).help("as in `unit = \"electrs.service\"`"));
        return None;
    }
    Some(text)
}
