//! `[service.NAME]` as written.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::graph::{Dns, Limits};
use crate::name::{PortName, ServiceName, Tag};
use crate::port::Ports;

use super::decode::{Table, boolean, name, parsed, ports, positive, string, word};
use super::expose::Expose;
use super::findings::{At, Draft, Findings, Sp};
use super::node::{Entry, Node};
use super::not_yet;
use super::outbound::{Outbound, outbound};
use super::section::{Connect, connects, dns};

/// `[service.NAME]`.
#[derive(Debug)]
pub(crate) struct Service {
    /// `None` when the name is malformed, which has been reported.
    pub(crate) name: Option<ServiceName>,
    /// The name as written.
    pub(crate) text: String,
    pub(crate) at: At,
    pub(crate) enabled: bool,
    pub(crate) unit: Option<Sp<String>>,
    pub(crate) tags: Vec<Sp<Tag>>,
    pub(crate) ports: Vec<Declared>,
    pub(crate) private: Vec<Sp<String>>,
    pub(crate) connect: Vec<Connect>,
    pub(crate) outbound: Option<Sp<Outbound>>,
    pub(crate) dns: Option<Sp<Dns>>,
    pub(crate) limits: Limits,
    /// `role = "tor"`, and where.
    pub(crate) tor: Option<At>,
    pub(crate) was: Option<Sp<ServiceName>>,
    pub(crate) address4: Option<Sp<Ipv4Addr>>,
    pub(crate) address6: Option<Sp<Ipv6Addr>>,
    pub(crate) expose: Expose,
}

/// `NAME = "tcp:8332"`.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) name: Sp<String>,
    /// `None` when either is malformed, which has been reported.
    pub(crate) port: Option<(PortName, Ports)>,
}

/// Every `[service.NAME]` of the file.
pub(crate) fn read_all(file: &mut Table, out: &mut Findings) -> Vec<Service> {
    file.named("service", out).into_iter().filter_map(|entry| service(entry, out)).collect()
}

fn service(Entry { key, value }: Entry, out: &mut Findings) -> Option<Service> {
    let name = name(&key.value, key.at, "service", out);
    let mut table = Table::open(value, key.at, out)?;
    not_yet(&mut table, "wants", out);
    let service = Service {
        name,
        text: key.value,
        at: key.at,
        enabled: table.read("enabled", out, boolean).is_none_or(|enabled| enabled.value),
        unit: table.read("unit", out, unit),
        tags: table.list("tags", out, tag),
        ports: table.named("ports", out).into_iter().map(|entry| declared(entry, out)).collect(),
        private: table.list("private", out, string),
        connect: connects(&mut table, "connect", out),
        outbound: table.read("outbound", out, outbound),
        dns: table.read("dns", out, dns),
        limits: limits(&mut table, out),
        tor: table.read("role", out, role).map(|role| role.at),
        was: table.read("was", out, was),
        address4: table.read("address4", out, |node, out| parsed(node, "E0506", out)),
        address6: table.read("address6", out, |node, out| parsed(node, "E0506", out)),
        expose: Expose::read(&mut table, out),
    };
    table.finish(out);
    Some(service)
}

fn declared(Entry { key, value }: Entry, out: &mut Findings) -> Declared {
    let name = name::<PortName>(&key.value, key.at, "port", out);
    let ports = ports(value, out);
    Declared { name: key, port: name.zip(ports) }
}

fn limits(service: &mut Table, out: &mut Findings) -> Limits {
    let Some(mut table) = service.table("limits", out) else {
        return Limits::default();
    };
    let flows = table.read("flows", out, positive).map(|flows| flows.value);
    let new_per_second = table.read("new_per_second", out, positive).map(|rate| rate.value);
    table.finish(out);
    Limits { flows, new_per_second }
}

fn role(node: Node, out: &mut Findings) -> Option<()> {
    word(node, &[("tor", ())], out)
}

fn was(node: Node, out: &mut Findings) -> Option<ServiceName> {
    let at = node.at;
    let text = string(node, out)?;
    name(&text, at, "service", out)
}

fn tag(node: Node, out: &mut Findings) -> Option<Tag> {
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
