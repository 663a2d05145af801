//! Several files to one policy: a union, so that the order of the files cannot matter.

use std::collections::{BTreeMap, BTreeSet};

use crate::syntax::File;
use crate::syntax::findings::{At, Draft, Findings, Sp};
use crate::syntax::obligation::{Never, Test};
use crate::syntax::section::{Defaults, Host, Network, Peer};
use crate::syntax::service::Service;

/// All files together; names are unique, nothing is looked up yet.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    pub(crate) network: Network,
    pub(crate) defaults: Defaults,
    pub(crate) services: Vec<Service>,
    pub(crate) host: Host,
    pub(crate) peers: Vec<Peer>,
    pub(crate) nevers: Vec<Never>,
    pub(crate) tests: Vec<Test>,
}

impl Policy {
    const SERVICES: usize = 1_000;
    const OBLIGATIONS: usize = 1_000;
    const PORTS: usize = 1_000;

    /// The union of the files.
    pub(crate) fn merge(files: Vec<File>, out: &mut Findings) -> Self {
        let mut policy = Self::default();
        for file in files {
            policy.add(file, out);
        }
        if !policy.network.is_named {
            let help = "write `[network]` with `name = \"node\"` in one of the files";
            out.add(Draft::new("E0116", At::top(0), "the network has no name").help(help));
        }
        policy.unique(out);
        policy.limit(out);
        policy
    }

    fn add(&mut self, file: File, out: &mut Findings) {
        let (network, defaults) = (file.network, file.defaults);
        self.network.is_named |= network.is_named;
        agree(&mut self.network.name, network.name, "[network] name", out);
        agree(&mut self.network.pool4, network.pool4, "[network] pool4", out);
        agree(&mut self.network.pool6, network.pool6, "[network] pool6", out);
        agree(&mut self.network.ipv6, network.ipv6, "[network] ipv6", out);
        self.network.lan.extend(network.lan);
        self.network.resolvers.extend(network.resolvers);
        agree(&mut self.defaults.outbound, defaults.outbound, "[defaults] outbound", out);
        agree(&mut self.defaults.dns, defaults.dns, "[defaults] dns", out);
        agree(&mut self.defaults.denied, defaults.denied, "[defaults] denied", out);
        agree(&mut self.defaults.log, defaults.log, "[defaults] log", out);
        self.services.extend(file.services);
        self.host.may_connect.extend(file.host.may_connect);
        self.host.accepts.extend(file.host.accepts);
        self.peers.extend(file.peers);
        self.nevers.extend(file.nevers);
        self.tests.extend(file.tests);
    }

    fn unique(&mut self, out: &mut Findings) {
        once(&mut self.services, |service| (service.text.clone(), service.at), "service", out);
        once(&mut self.peers, |peer| (peer.name.to_string(), peer.at), "peer", out);
        once(&mut self.host.accepts, |accept| (accept.name.value.to_string(), accept.name.at), "port of the host", out);
    }

    fn limit(&mut self, out: &mut Findings) {
        if let Some(service) = self.services.get(Self::SERVICES) {
            let message = format!("{} services, the limit is {}", self.services.len(), Self::SERVICES);
            out.add(Draft::new("E0221", service.at, message));
            self.services.truncate(Self::SERVICES);
        }
        for service in &mut self.services {
            if let Some(port) = service.ports.get(Self::PORTS) {
                let message =
                    format!("{} has {} ports, the limit is {}", service.text, service.ports.len(), Self::PORTS);
                out.add(Draft::new("E0221", port.name.at, message).help("a range is one port: `\"tcp:28332-28333\"`"));
                service.ports.truncate(Self::PORTS);
            }
        }
        let obligations = self.nevers.len() + self.tests.len();
        if obligations > Self::OBLIGATIONS {
            let at = self.nevers.first().map_or(At::top(0), |never| never.at);
            let message = format!("{obligations} invariants and tests, the limit is {}", Self::OBLIGATIONS);
            out.add(Draft::new("E0221", at, message));
            self.nevers.clear();
            self.tests.clear();
        }
    }
}

/// Keeps one value for a setting that two files may both give, if they give the same.
fn agree<T: PartialEq>(kept: &mut Option<Sp<T>>, other: Option<Sp<T>>, what: &str, out: &mut Findings) {
    match (kept.as_ref(), other) {
        (Some(first), Some(other)) if first.value != other.value => {
            let draft = Draft::new("E0307", other.at, format!("two files disagree about `{what}`"));
            out.add(draft.label("set to this here").second(first.at, "and to this here").help("set it in one of them"));
        }
        (None, other) => *kept = other,
        _ => {}
    }
}

/// Reports and drops what has a name that is taken.
fn once<T>(items: &mut Vec<T>, name: fn(&T) -> (String, At), what: &str, out: &mut Findings) {
    let mut seen: BTreeMap<String, At> = BTreeMap::new();
    items.retain(|item| {
        let (name, at) = name(item);
        let first = seen.get(&name).copied();
        if let Some(first) = first {
            let draft = Draft::new("E0301", at, format!("the {what} `{}` is defined twice", name.escape_debug()));
            out.add(draft.label("again here").second(first, "first here").help("keep one of them"));
        }
        seen.entry(name).or_insert(at);
        first.is_none()
    });
}

/// The values of a list without repetitions, ordered.
pub(crate) fn set<T: Ord + Copy>(items: &[Sp<T>]) -> Vec<T> {
    items.iter().map(|item| item.value).collect::<BTreeSet<T>>().into_iter().collect()
}
