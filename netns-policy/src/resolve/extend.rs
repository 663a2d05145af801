//! `[extend.NAME]`: what other files add to a service that one file defines.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::FragmentName;
use crate::suggest::{did_you_mean, list};
use crate::syntax::expose::{Clearnet, Expose, Mapped, OnHost, Onion, WireGuard};
use crate::syntax::findings::{At, Draft, Findings, Sp};
use crate::syntax::reference::Who;
use crate::syntax::service::{Declared, Service};
use crate::syntax::socket::Offered;

use super::merge::Settle;

/// E0306: there is nobody to extend.
pub(crate) fn unknown(adds: &Service, names: &BTreeSet<String>) -> Draft {
    let known = || names.iter().map(String::as_str);
    let all = format!("the services are {}", list(known()));
    let draft = Draft::new("E0306", adds.at, format!("there is no service `{}` to extend", adds.text.escape_debug()));
    draft.label("defined nowhere").help(did_you_mean(&adds.text, known()).unwrap_or(all))
}

/// W0309: what is for a service of a fragment that is not there (any more).
pub(crate) fn of_nobody(adds: &Service) -> Draft {
    let shown = adds.text.escape_debug();
    let draft = Draft::new("W0309", adds.at, format!("no fragment defines `{shown}`, so this adds nothing"));
    draft.help(format!("when its package is gone for good, `nsctl grant --revoke {shown}` takes it out"))
}

/// E0306: what is for a service of one fragment, and another one has its name.
pub(crate) fn of_another(adds: &Service, of: &Sp<FragmentName>, service: &Service) -> Draft {
    let by = match &service.fragment {
        Some(other) => format!("the fragment `{other}`"),
        None => "the operator".to_owned(),
    };
    let shown = adds.text.escape_debug();
    let message = format!("this is for the `{shown}` of the fragment `{}`, and {by} defines that service", of.value);
    let draft = Draft::new("E0306", of.at, message).second(service.at, "defined here");
    draft.help(format!("what was granted to one is not granted to the other: `nsctl grant --revoke {shown}`"))
}

/// Takes out what a grant gives at services that are not there (any more), as packages come and go, or are by now
/// somebody else's: what was granted at one is not granted at another that takes its name.
///
/// `targets` is `of` of the grant; `owner` is the fragment that defines a service, or the operator, who is `None`.
pub(crate) fn drop_absent<'a>(
    adds: &mut Service,
    targets: &[(Sp<String>, FragmentName)],
    owner: impl Fn(&str) -> Option<&'a Option<FragmentName>>,
    out: &mut Findings,
) {
    let service = adds.text.escape_debug().to_string();
    let mut idle: BTreeMap<&str, At> = targets.iter().map(|(name, _)| (name.value.as_str(), name.at)).collect();
    let mut keep = |target: &Sp<Who>| {
        let Who::Service(name) = &target.value else {
            return true;
        };
        idle.remove(name.as_str());
        let meant = targets.iter().find(|(of, _)| of.value == *name).map(|(_, fragment)| fragment);
        let shown = name.escape_debug();
        let (message, label) = match owner(name) {
            Some(owner) if owner.as_ref() == meant => return true,
            Some(owner) => {
                let whose = |owner: Option<&FragmentName>| match owner {
                    Some(fragment) => format!("the fragment `{fragment}`"),
                    None => "the operator".to_owned(),
                };
                let (meant, now) = (whose(meant), whose(owner.as_ref()));
                (format!("this is for the `{shown}` of {meant}, and {now} defines that service"), "opens nothing")
            }
            None => (format!("there is no service `{shown}`, so this opens nothing"), "defined nowhere"),
        };
        let draft = Draft::new("W0309", target.at, message).label(label);
        out.add(draft.help(format!("when it is gone for good, `nsctl grant --revoke {service} {shown}` takes it out")));
        false
    };
    adds.connect.retain(|connect| keep(&connect.target));
    adds.open.retain(|open| keep(&open.target));
    for (name, at) in idle {
        let message = format!("nothing is granted at `{}`, so this adds nothing", name.escape_debug());
        out.add(Draft::new("W0309", at, message).help("take the line out"));
    }
}

/// A service with everything that is added to it. It is defined by all of `defined`; when these are several, that has
/// been reported, and so they need not agree.
pub(crate) fn union(defined: Vec<Service>, added: Vec<Service>, out: &mut Findings) -> Service {
    let quiet = defined.len() > 1;
    let (name, text, at) = (defined[0].name.clone(), defined[0].text.clone(), defined[0].at);
    let fragment = defined.iter().filter_map(|service| service.fragment.clone()).min();
    let is_of_fragment = defined.iter().any(|service| service.is_of_fragment);
    let parts: Vec<Service> = defined.into_iter().chain(added).collect();
    let mut settle = Settle { out, quiet };
    let whose = |what: &str| format!("{what} of {}", text.escape_debug());
    Service {
        enabled: settle.one(&parts, |part| part.enabled, &whose("enabled")),
        unit: settle.one(&parts, |part| part.unit.clone(), &whose("unit")),
        tags: parts.iter().flat_map(|part| part.tags.clone()).collect(),
        ports: ports(&parts, &text, &mut settle),
        private: parts.iter().flat_map(|part| part.private.clone()).collect(),
        sockets: sockets(&parts, &text, &mut settle),
        connect: parts.iter().flat_map(|part| part.connect.clone()).collect(),
        open: parts.iter().flat_map(|part| part.open.clone()).collect(),
        wants: parts.iter().flat_map(|part| part.wants.clone()).collect(),
        outbound: settle.one(&parts, |part| part.outbound.clone(), &whose("outbound")),
        dns: settle.one(&parts, |part| part.dns, &whose("dns")),
        flows: settle.one(&parts, |part| part.flows, &whose("limits.flows")),
        new_per_second: settle.one(&parts, |part| part.new_per_second, &whose("limits.new_per_second")),
        tor: parts.iter().filter_map(|part| part.tor).min(),
        was: settle.one(&parts, |part| part.was.clone(), &whose("was")),
        address4: settle.one(&parts, |part| part.address4, &whose("address4")),
        address6: settle.one(&parts, |part| part.address6, &whose("address6")),
        expose: expose(&parts, &text, &mut settle),
        via_ok: parts.iter().flat_map(|part| part.via_ok.clone()).collect(),
        operators: Vec::new(),
        name,
        text,
        at,
        is_of_fragment,
        fragment,
    }
}

fn ports(parts: &[Service], service: &str, settle: &mut Settle<'_>) -> Vec<Declared> {
    let mut named: BTreeMap<&String, Vec<&Declared>> = BTreeMap::new();
    for declared in parts.iter().flat_map(|part| &part.ports) {
        named.entry(&declared.name.value).or_default().push(declared);
    }
    let one = |(name, declared): (&String, Vec<&Declared>)| {
        let said = declared.iter().filter_map(|one| one.port.clone().map(|port| Sp::new(port, one.name.at)));
        let what = format!("ports.{} of {}", name.escape_debug(), service.escape_debug());
        let port = settle.all(said.collect(), &what);
        let at = port.as_ref().map_or(declared[0].name.at, |port| port.at);
        Declared { name: Sp::new(name.clone(), at), port: port.map(|port| port.value) }
    };
    named.into_iter().map(one).collect()
}

fn sockets(parts: &[Service], service: &str, settle: &mut Settle<'_>) -> Vec<Offered> {
    let mut named: BTreeMap<&String, Vec<&Offered>> = BTreeMap::new();
    for offered in parts.iter().flat_map(|part| &part.sockets) {
        named.entry(&offered.name.value).or_default().push(offered);
    }
    let one = |(name, offered): (&String, Vec<&Offered>)| {
        let said = offered.iter().filter_map(|one| one.socket.clone().map(|socket| Sp::new(socket, one.path)));
        let what = format!("sockets.{} of {}", name.escape_debug(), service.escape_debug());
        let socket = settle.all(said.collect(), &what);
        let path = socket.as_ref().map_or(offered[0].path, |socket| socket.at);
        Offered { name: Sp::new(name.clone(), offered[0].name.at), socket: socket.map(|socket| socket.value), path }
    };
    named.into_iter().map(one).collect()
}

/// Ways in are sets too: ports, clients and peers of all parts together.
fn expose(parts: &[Service], service: &str, settle: &mut Settle<'_>) -> Expose {
    let all = || parts.iter().map(|part| &part.expose);
    let onions: Vec<&Onion> = all().filter_map(|expose| expose.onion.as_ref()).collect();
    let onion = (!onions.is_empty()).then(|| Onion {
        ports: mapped(onions.iter().flat_map(|onion| &onion.ports), "expose.onion", service, settle),
        clients: onions.iter().flat_map(|onion| onion.clients.clone()).collect(),
    });
    let tunnels: Vec<&WireGuard> = all().filter_map(|expose| expose.wireguard.as_ref()).collect();
    let wireguard = (!tunnels.is_empty()).then(|| WireGuard {
        ports: tunnels.iter().flat_map(|tunnel| tunnel.ports.clone()).collect(),
        peers: tunnels.iter().flat_map(|tunnel| tunnel.peers.clone()).collect(),
    });
    Expose {
        onion,
        wireguard,
        clearnet: clearnet(all().filter_map(|expose| expose.clearnet.as_ref()).collect(), service, settle),
        lan: on_host(&all().map(|expose| &expose.lan).collect::<Vec<_>>(), "expose.lan", service, settle),
        port: on_host(&all().map(|expose| &expose.port).collect::<Vec<_>>(), "expose.port", service, settle),
    }
}

fn on_host(all: &[&OnHost], way: &str, service: &str, settle: &mut Settle<'_>) -> OnHost {
    let whose = |what: &str| format!("{way}.{what} of {}", service.escape_debug());
    OnHost {
        ports: mapped(all.iter().flat_map(|one| &one.ports), way, service, settle),
        relay: settle.one(all, |one| one.relay, &whose("relay")),
        proxy: settle.one(all, |one| one.proxy, &whose("proxy")),
    }
}

fn clearnet(all: Vec<&Clearnet>, service: &str, settle: &mut Settle<'_>) -> Option<Clearnet> {
    let whose = |what: &str| format!("expose.clearnet.{what} of {}", service.escape_debug());
    Some(Clearnet {
        domain: settle.all(all.iter().map(|one| one.domain.clone()).collect(), &whose("domain"))?,
        port: settle.all(all.iter().map(|one| one.port.clone()).collect(), &whose("port"))?,
        challenge: settle.all(all.iter().filter_map(|one| one.challenge.clone()).collect(), &whose("challenge")),
    })
}

fn mapped<'a>(all: impl Iterator<Item = &'a Mapped>, way: &str, service: &str, settle: &mut Settle<'_>) -> Vec<Mapped> {
    let mut outside: BTreeMap<u16, (At, Vec<Sp<String>>)> = BTreeMap::new();
    for one in all {
        let (at, ports) = outside.entry(one.external.value).or_insert((one.external.at, Vec::new()));
        *at = (*at).min(one.external.at);
        ports.push(one.port.clone());
    }
    let one = |(external, (at, ports)): (u16, (At, Vec<Sp<String>>))| {
        let port = settle.all(ports, &format!("{way}.ports.{external} of {}", service.escape_debug()));
        port.map(|port| Mapped { external: Sp::new(external, at), port })
    };
    outside.into_iter().filter_map(one).collect()
}
