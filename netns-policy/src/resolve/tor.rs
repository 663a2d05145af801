//! `outbound = "tor"` and `dns = "tor"`: who needs the service with `role = "tor"`, and which one that is.

use crate::graph::Dns;
use crate::name::PortName;
use crate::port::Ports;
use crate::syntax::findings::{At, Draft, Findings, Sp};
use crate::syntax::outbound::Outbound;
use crate::syntax::reference::PortRef;
use crate::syntax::service::Service;

use super::merge::Policy;
use super::names::{Found, find_port, port_of};

/// One service that needs tor.
#[derive(Debug)]
pub(crate) struct Need<'a> {
    pub(crate) client: &'a Service,
    /// For names, not for streams.
    pub(crate) is_dns: bool,
    /// Where it says so: in the service or in the defaults.
    pub(crate) at: At,
}

const SOCKS: &str = "socks";

/// The port of the tor service that streams go to; [`service`] has reported when there is none.
pub(crate) fn socks(tor: &Service) -> Option<(Ports, Option<&PortName>)> {
    match find_port(tor, &PortRef::Name(SOCKS.to_owned())) {
        Found::Ports(ports, name) => Some((ports, name)),
        _ => None,
    }
}

/// The outbound of a service: its own, or the default. The default is the operator's word about services of the
/// operator: what a fragment defines stays inside until somebody says otherwise of that very service.
pub(crate) fn outbound<'a>(policy: &'a Policy, service: &'a Service) -> Option<&'a Sp<Outbound>> {
    let default = policy.defaults.outbound.as_ref().filter(|_| !service.is_of_fragment);
    service.outbound.as_ref().or(default)
}

/// The dns of a service: its own, or the default, as for [`outbound`].
pub(crate) fn dns(policy: &Policy, service: &Service) -> Option<Sp<Dns>> {
    service.dns.or(policy.defaults.dns.filter(|_| !service.is_of_fragment))
}

/// Every enabled service that needs tor.
pub(crate) fn needs<'a>(policy: &'a Policy, out: &mut Findings) -> Vec<Need<'a>> {
    let mut needs = Vec::new();
    for client in policy.services.iter().filter(|service| service.is_enabled()) {
        let stream = outbound(policy, client).filter(|outbound| outbound.value.tor);
        let names = dns(policy, client).filter(|dns| dns.value == Dns::Tor);
        if let Some(outbound) = stream {
            check_leak(policy, client, outbound, out);
            needs.push(Need { client, is_dns: false, at: outbound.at });
        }
        needs.extend(names.map(|dns| Need { client, is_dns: true, at: dns.at }));
    }
    needs
}

fn check_leak(policy: &Policy, client: &Service, outbound: &Sp<Outbound>, out: &mut Findings) {
    let leaves = outbound.value.direct || !outbound.value.direct_only.is_empty();
    let Some(dns) = dns(policy, client).filter(|dns| dns.value == Dns::Direct && !leaves) else {
        return;
    };
    let message = format!("{} goes out through tor, but its names would be asked for outside of it", client.text);
    let draft = Draft::new("E0802", dns.at, message).label("names go this way");
    out.add(
        draft.second(outbound.at, "everything else goes this way").help("write `dns = \"tor\"` or `dns = \"names\"`"),
    );
}

/// The service with `role = "tor"`; reports when it is missing while it is needed, or when there are two.
pub(crate) fn service<'a>(policy: &'a Policy, needs: &[Need<'_>], out: &mut Findings) -> Option<&'a Service> {
    let mut with_role = policy.services.iter().filter(|service| service.is_enabled() && service.tor.is_some());
    let Some(tor) = with_role.next() else {
        for need in needs {
            let draft = Draft::new(
                "E0801",
                need.at,
                format!("{} needs tor, and no service has `role = \"tor\"`", need.client.text),
            );
            out.add(draft.help("give the service that runs tor `role = \"tor\"` and a port named `socks`"));
        }
        return None;
    };
    let role = tor.tor.unwrap_or(tor.at);
    for other in with_role {
        let (first, again) = role.in_order(other.tor.unwrap_or(other.at));
        let draft = Draft::new("E0809", again, "two services have `role = \"tor\"`");
        out.add(draft.second(first, "the first is here").help("there is one tor service in a network"));
    }
    let _reported = port_of(tor, &PortRef::Name(SOCKS.to_owned()), role, out);
    for need in needs.iter().filter(|need| need.client.text == tor.text && !need.is_dns) {
        let draft = Draft::new("E0803", need.at, format!("{} is the tor service itself", tor.text));
        out.add(draft.help(format!("write `outbound = \"direct\"` in `[service.{}]`", tor.text)));
    }
    Some(tor)
}
