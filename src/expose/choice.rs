//! What is meant where not all is said, and whether it can be had.

use netns_policy::exposure::Exposure;
use netns_policy::graph::{AllowGraph, Service};
use netns_policy::port::{Ports, Protocol};

use super::refusal::usage;
use super::{Opening, on_host};
use crate::kernel::listener;
use crate::orchestrator::Error;

pub(super) fn service_of<'a>(graph: &'a AllowGraph, name: &str) -> Result<&'a Service, Error> {
    graph.service(name).ok_or_else(|| {
        let known: Vec<_> = graph.services().map(|service| service.name.as_str()).collect();
        usage(format!("there is no service `{name}`"), format!("there are: {}", known.join(", ")))
    })
}

/// The port that is meant: the one that is named, else the only one that can be exposed.
pub(super) fn port_of(service: &Service, wanted: &Opening) -> Result<(String, Ports), Error> {
    let name = &service.name;
    let listed = |ports: &[(String, Ports)]| -> String {
        let all: Vec<String> = ports.iter().map(|(name, ports)| format!("{name} ({ports})")).collect();
        all.join(", ")
    };
    let all: Vec<(String, Ports)> = service.ports.iter().map(|(name, ports)| (name.to_string(), *ports)).collect();
    if let Some(port) = &wanted.port {
        return all.iter().find(|(name, _)| name == port).cloned().ok_or_else(|| {
            let help = if all.is_empty() { "it declares none".to_owned() } else { format!("it has {}", listed(&all)) };
            usage(format!("{name} has no port `{port}`"), help)
        });
    }
    // A private port is never meant, nor is a range, which one number outside cannot stand for.
    let is_private = |port: &str| service.private.iter().any(|private| private.as_str() == port);
    let can_be: Vec<_> = all.iter().filter(|(port, ports)| ports.count() == 1 && !is_private(port)).cloned().collect();
    match can_be.as_slice() {
        [only] => Ok(only.clone()),
        [] if all.is_empty() => {
            let help = format!("declare it: `ports = {{ http = \"tcp:80\" }}` in [service.{name}]");
            Err(usage(format!("{name} declares no port"), help))
        }
        [] => Err(usage(
            format!("no port of {name} can be exposed: each is private or a range"),
            format!("it has {}", listed(&all)),
        )),
        [first, ..] => {
            let help = format!("say which, as in `nsctl expose {name} --{} {}`", wanted.side.word(), first.0);
            Err(usage(format!("{name} has several ports: {}", listed(&can_be)), help))
        }
    }
}

/// Whether nothing else has this port of the machine: neither another way in nor a program on the host.
pub(super) fn is_free(
    graph: &AllowGraph,
    wanted: &Opening,
    (outside, port): (u16, &str),
    protocol: Protocol,
) -> Result<(), Error> {
    let another =
        format!("name another one, as in `nsctl expose {} --{} PORT:{port}`", wanted.service, wanted.side.word());
    let is_same = |there: &&Exposure| there.way.external() == Some(outside) && there.ports.protocol() == protocol;
    if let Some(there) = on_host(graph).find(is_same) {
        let (service, at) = (&there.service, &there.at);
        let message = format!("port {outside} of the machine leads to {service}:{} already ({at})", there.port_name);
        return Err(usage(message, another));
    }
    if listener::is_taken(protocol, outside) {
        let message = format!("port {outside} of the machine is taken: a program on the host listens there");
        return Err(usage(message, another));
    }
    Ok(())
}
