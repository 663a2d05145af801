//! Looking names up: services, tags, ports.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::{PortName, ServiceName, Tag};
use crate::port::Ports;
use crate::suggest::{did_you_mean, list, nearest};
use crate::syntax::findings::{At, Draft, Findings, Sp};
use crate::syntax::reference::{PortRef, Who};
use crate::syntax::service::Service;

use super::merge::Policy;

/// Every service and tag of a policy.
#[derive(Debug)]
pub(crate) struct Names<'a> {
    services: BTreeMap<&'a str, &'a Service>,
    tags: BTreeMap<&'a str, Vec<&'a Service>>,
    declared: &'a BTreeSet<Tag>,
}

/// What a [`PortRef`] is at one service.
pub(crate) enum Found<'a> {
    /// These ports, and the name that the service gives to exactly these.
    Ports(Ports, Option<&'a PortName>),
    /// Declared, but what it is was malformed; that has been reported.
    Broken,
    /// Nothing of that name.
    Missing,
    /// Of that name, but of the other protocol.
    Protocol(Ports),
}

impl<'a> Names<'a> {
    pub(crate) fn new(policy: &'a Policy) -> Self {
        let services = policy.services.iter().map(|service| (service.text.as_str(), service)).collect();
        let mut tags: BTreeMap<&str, Vec<&Service>> = BTreeMap::new();
        for service in &policy.services {
            for tag in service.tags.iter().map(|tag| tag.value.as_str()).collect::<BTreeSet<_>>() {
                tags.entry(tag).or_default().push(service);
            }
        }
        Self { services, tags, declared: &policy.declared_tags }
    }

    /// The names of all services.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'a str> {
        self.services.keys().copied()
    }

    /// The service of that name, whether it is reported or not that there is none.
    pub(crate) fn find(&self, name: &str) -> Option<&'a Service> {
        self.services.get(name).copied()
    }

    /// The service, or E0201.
    pub(crate) fn service(&self, name: &str, at: At, out: &mut Findings) -> Option<&'a Service> {
        let found = self.find(name);
        if found.is_none() && !out.is_full() {
            let names = format!("the services are {}", list(self.all()));
            let draft = Draft::new("E0201", at, format!("there is no service `{}`", name.escape_debug()));
            let meant = if out.is_crowded() { None } else { did_you_mean(name, self.all()) };
            out.add(draft.label("declared nowhere").help(meant.unwrap_or(names)));
        }
        found
    }

    /// The services that have the tag, or E0209.
    pub(crate) fn tagged(&self, tag: &str, at: At, out: &mut Findings) -> &[&'a Service] {
        let found = self.tags.get(tag);
        if found.is_none() && !self.declared.contains(tag) && !out.is_full() {
            let tags = || self.tags.keys().copied();
            let all = if self.tags.is_empty() {
                "no service has a tag".into()
            } else {
                format!("the tags are {}", list(tags()))
            };
            let draft = Draft::new("E0209", at, format!("no service has the tag `{}`", tag.escape_debug()));
            let meant = if out.is_crowded() { None } else { nearest(tag, tags()) };
            let meant = meant.map(|near| format!("did you mean `@{near}`?"));
            out.add(draft.help(meant.unwrap_or(all)));
        }
        found.map_or(&[], Vec::as_slice)
    }

    /// Whether any service has the tag.
    pub(crate) fn has_tag(&self, tag: &str) -> bool {
        self.tags.contains_key(tag) || self.declared.contains(tag)
    }

    /// The services that `who` means, with whether a tag chose them.
    pub(crate) fn services(&self, who: &Sp<Who>, out: &mut Findings) -> Vec<&'a Service> {
        match &who.value {
            Who::Service(name) => self.service(name, who.at, out).into_iter().collect(),
            Who::Tag(tag) => self.tagged(tag, who.at, out).to_vec(),
        }
    }
}

/// The name of a service, if it is well formed and the service is enabled.
pub(crate) fn enabled(service: &Service) -> Option<&ServiceName> {
    service.name.as_ref().filter(|_| service.is_enabled())
}

/// What `port` is at `service`.
pub(crate) fn find_port<'a>(service: &'a Service, port: &PortRef) -> Found<'a> {
    let (name, protocol) = match port {
        PortRef::Number(ports) => return Found::Ports(*ports, exact_name(service, *ports)),
        PortRef::Name(name) => (name, None),
        PortRef::Typed(protocol, name) => (name, Some(*protocol)),
        PortRef::Socket(_) => return Found::Missing,
    };
    match service.ports.iter().find(|declared| declared.name.value == *name).map(|declared| &declared.port) {
        None => Found::Missing,
        Some(None) => Found::Broken,
        Some(Some((_, ports))) if protocol.is_some_and(|protocol| protocol != ports.protocol()) => {
            Found::Protocol(*ports)
        }
        Some(Some((name, ports))) => Found::Ports(*ports, Some(name)),
    }
}

/// The name that the service gives to exactly these ports; the first in the alphabet, should there be two.
pub(crate) fn exact_name(service: &Service, ports: Ports) -> Option<&PortName> {
    let declared = service.ports.iter().filter_map(|declared| declared.port.as_ref());
    declared.filter(|(_, p)| *p == ports).map(|(name, _)| name).min()
}

/// The socket of that name at `service`: its name and its path, or E0230.
pub(crate) fn socket_of<'a>(
    service: &'a Service,
    name: &str,
    at: At,
    out: &mut Findings,
) -> Option<&'a (PortName, String)> {
    if let Some(offered) = service.sockets.iter().find(|offered| offered.name.value == name) {
        return offered.socket.as_ref();
    }
    let names = || service.sockets.iter().map(|offered| offered.name.value.as_str());
    let draft = Draft::new("E0230", at, format!("{} has no socket `{}`", service.text, name.escape_debug()));
    let all = match service.sockets.is_empty() {
        true => format!(
            "declare it: `sockets = {{ {} = \"/run/...\" }}` in `[service.{}]`",
            name.escape_debug(),
            service.text
        ),
        false => format!("its sockets are {}", list(names())),
    };
    out.add(draft.help(did_you_mean(name, names()).unwrap_or(all)));
    None
}

/// The name that a [`PortRef`] uses, or its number.
pub(crate) fn port_text(port: &PortRef) -> String {
    match port {
        PortRef::Name(name) | PortRef::Typed(_, name) => name.escape_debug().to_string(),
        PortRef::Number(ports) => ports.to_string(),
        PortRef::Socket(name) => format!("unix:{}", name.escape_debug()),
    }
}

/// E0204: `service` has no such port.
pub(crate) fn no_port(service: &Service, name: &str, at: At) -> Draft {
    let names = || service.ports.iter().map(|declared| declared.name.value.as_str());
    let message = format!("{} has no port `{}`", service.text, name.escape_debug());
    let all = match service.ports.is_empty() {
        true => format!("{} declares no ports at all", service.text),
        false => format!("its ports are {}", list(names())),
    };
    Draft::new("E0204", at, message).help(did_you_mean(name, names()).unwrap_or(all))
}

/// E0205: the port is of the other protocol.
pub(crate) fn wrong_protocol(service: &Service, port: &PortRef, ports: Ports, at: At) -> Draft {
    let message = format!("port `{}` of {} is {}", port_text(port), service.text, ports.protocol());
    Draft::new("E0205", at, message).help(format!("write \"{}\" or \"{}:{0}\"", port_text(port), ports.protocol()))
}

/// The ports of one service under its own name for them, or E0204 and its kin.
pub(crate) fn port_of<'a>(
    service: &'a Service,
    port: &PortRef,
    at: At,
    out: &mut Findings,
) -> Option<(Ports, Option<&'a PortName>)> {
    match find_port(service, port) {
        Found::Ports(ports, name) => return Some((ports, name)),
        Found::Broken => {}
        Found::Missing if out.is_crowded() => {
            let message = format!("{} has no port `{}`", service.text, port_text(port));
            out.add(Draft::new("E0204", at, message));
        }
        Found::Missing => out.add(no_port(service, &port_text(port), at)),
        Found::Protocol(ports) => out.add(wrong_protocol(service, port, ports, at)),
    }
    None
}
