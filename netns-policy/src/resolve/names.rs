//! Looking names up: services, tags, ports.

use std::collections::BTreeMap;

use crate::name::{PortName, ServiceName};
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
            for tag in &service.tags {
                tags.entry(tag.value.as_str()).or_default().push(service);
            }
        }
        Self { services, tags }
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
        if found.is_none() && !out.is_full() {
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
        self.tags.contains_key(tag)
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
    service.name.as_ref().filter(|_| service.enabled)
}

/// What `port` is at `service`.
pub(crate) fn find_port<'a>(service: &'a Service, port: &PortRef) -> Found<'a> {
    let (name, protocol) = match port {
        PortRef::Number(ports) => return Found::Ports(*ports, exact_name(service, *ports)),
        PortRef::Name(name) => (name, None),
        PortRef::Typed(protocol, name) => (name, Some(*protocol)),
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

fn exact_name(service: &Service, ports: Ports) -> Option<&PortName> {
    service.ports.iter().filter_map(|declared| declared.port.as_ref()).find(|(_, p)| *p == ports).map(|(name, _)| name)
}

/// The name that a [`PortRef`] uses, or its number.
pub(crate) fn port_text(port: &PortRef) -> String {
    match port {
        PortRef::Name(name) | PortRef::Typed(_, name) => name.escape_debug().to_string(),
        PortRef::Number(ports) => ports.to_string(),
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
