//! Several files to one policy: a union of sets, so that neither the order of the files nor how the words are parted
//! among them can matter.
//!
//! # Invariants
//!
//! - Whatever is said of one thing is collected first, from all files, and judged then: nothing depends on which of two
//!   files is read first but the place that a finding names first.
//! - Where files disagree the policy is refused. What is looked at further is then the same value whoever said it.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::{FragmentName, Tag};
use crate::syntax::File;
use crate::syntax::findings::{At, Draft, Findings, Sp};
use crate::syntax::fragment::Speaker;
use crate::syntax::obligation::{Never, Test};
use crate::syntax::reference::Who;
use crate::syntax::section::{Accept, Defaults, Host, Network, Peer};
use crate::syntax::service::{Extend, Service};

use super::extend;

/// All files together; names are unique, nothing is looked up yet.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    pub(crate) network: Network,
    pub(crate) defaults: Defaults,
    /// Ordered by name; what extends them is in them.
    pub(crate) services: Vec<Service>,
    pub(crate) host: Host,
    pub(crate) peers: Vec<Peer>,
    pub(crate) nevers: Vec<Never>,
    pub(crate) tests: Vec<Test>,
    /// Tags that somebody may have, though nobody does.
    pub(crate) declared_tags: BTreeSet<Tag>,
    /// Some file says `[expose] all = "off"`.
    pub(crate) exposes_nothing: bool,
}

impl Policy {
    const SERVICES: usize = 1_000;
    const OBLIGATIONS: usize = 1_000;
    const PORTS: usize = 1_000;

    /// The union of the files.
    pub(crate) fn merge(files: Vec<File>, out: &mut Findings) -> Self {
        fragments_once(&files, out);
        let mut all = All::default();
        files.into_iter().for_each(|file| all.add(file));
        if !all.networks.iter().any(|network| network.is_named) {
            let help = "write `[network]` with `name = \"node\"` in one of the files";
            out.add(Draft::new("E0116", At::top(0), "the network has no name").help(help));
        }
        let mut policy = Self {
            network: network(all.networks, out),
            defaults: defaults(all.defaults, out),
            services: services(all.services, all.extends, out),
            host: Host { may_connect: all.may_connect, accepts: accepts(all.accepts, out) },
            peers: peers(all.peers, out),
            nevers: all.nevers,
            tests: all.tests,
            declared_tags: all.declared_tags.into_iter().map(|tag| tag.value).collect(),
            exposes_nothing: all.exposes_nothing,
        };
        policy.limit(out);
        policy
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

/// Everything that any file says, nothing of it compared yet.
#[derive(Default)]
struct All {
    networks: Vec<Network>,
    defaults: Vec<Defaults>,
    services: Vec<Service>,
    extends: Vec<Extend>,
    may_connect: Vec<crate::syntax::section::Connect>,
    accepts: Vec<Accept>,
    peers: Vec<Peer>,
    nevers: Vec<Never>,
    tests: Vec<Test>,
    declared_tags: Vec<Sp<Tag>>,
    exposes_nothing: bool,
}

impl All {
    fn add(&mut self, file: File) {
        self.networks.push(file.network);
        self.defaults.push(file.defaults);
        self.services.extend(file.services);
        self.extends.extend(file.extends);
        self.may_connect.extend(file.host.may_connect);
        self.accepts.extend(file.host.accepts);
        self.peers.extend(file.peers);
        self.nevers.extend(file.nevers);
        self.tests.extend(file.tests);
        self.declared_tags.extend(file.declared_tags);
        self.exposes_nothing |= file.exposes_nothing;
    }
}

/// Two files that are the same fragment could speak for each other's services.
fn fragments_once(files: &[File], out: &mut Findings) {
    let mut seen: BTreeMap<&FragmentName, At> = BTreeMap::new();
    for file in files {
        let (Speaker::Fragment(Some(name)), Some(at)) = (&file.speaker, file.spoken) else {
            continue;
        };
        if let Some(first) = seen.insert(name, at) {
            out.add(twice("fragment", name.as_str(), at, first).help("give one of them another name"));
        }
    }
}

fn network(all: Vec<Network>, out: &mut Findings) -> Network {
    let mut settle = Settle { out, quiet: false };
    Network {
        is_named: all.iter().any(|network| network.is_named),
        name: settle.one(&all, |network| network.name.clone(), "[network] name"),
        pool4: settle.one(&all, |network| network.pool4, "[network] pool4"),
        pool6: settle.one(&all, |network| network.pool6, "[network] pool6"),
        ipv6: settle.one(&all, |network| network.ipv6, "[network] ipv6"),
        lan: all.iter().flat_map(|network| network.lan.clone()).collect(),
        resolvers: all.iter().flat_map(|network| network.resolvers.clone()).collect(),
    }
}

fn defaults(all: Vec<Defaults>, out: &mut Findings) -> Defaults {
    let mut settle = Settle { out, quiet: false };
    Defaults {
        outbound: settle.one(&all, |defaults| defaults.outbound.clone(), "[defaults] outbound"),
        dns: settle.one(&all, |defaults| defaults.dns, "[defaults] dns"),
        denied: settle.one(&all, |defaults| defaults.denied, "[defaults] denied"),
        log: settle.one(&all, |defaults| defaults.log, "[defaults] log"),
    }
}

fn services(defined: Vec<Service>, extends: Vec<Extend>, out: &mut Findings) -> Vec<Service> {
    let mut defined = by_name(defined, |service| service.text.clone());
    let names: BTreeSet<String> = defined.keys().cloned().collect();
    let owners: BTreeMap<String, Option<FragmentName>> =
        defined.iter().map(|(name, services)| (name.clone(), services[0].fragment.clone())).collect();
    let mut added: BTreeMap<String, Vec<Service>> = BTreeMap::new();
    for Extend { of, targets, mut adds } in extends {
        match defined.get(&adds.text) {
            None if of.is_some() => out.add(extend::of_nobody(&adds)),
            None => out.add(extend::unknown(&adds, &names)),
            Some(services) => {
                if let Some(of) = &of {
                    if services.iter().any(|service| service.fragment.as_ref() != Some(&of.value)) {
                        out.add(extend::of_another(&adds, of, &services[0]));
                        continue;
                    }
                    extend::drop_absent(&mut adds, &targets, |name| owners.get(name), out);
                }
                added.entry(adds.text.clone()).or_default().push(adds);
            }
        }
    }
    let whole = |(name, services): (&String, &mut Vec<Service>)| {
        each_once(services, |service| service.at, "service", name, out);
        let parts = std::mem::take(services);
        let more = added.remove(name).unwrap_or_default();
        extend::union(parts, more, out)
    };
    defined.iter_mut().map(whole).collect()
}

fn peers(all: Vec<Peer>, out: &mut Findings) -> Vec<Peer> {
    let mut peers = Vec::new();
    for (name, mut parts) in by_name(all, |peer| peer.name.to_string()) {
        each_once(&mut parts, |peer| peer.at, "peer", &name, out);
        let mut settle = Settle { out, quiet: true };
        peers.push(Peer {
            name: parts[0].name.clone(),
            at: parts[0].at,
            wireguard: settle.one(&parts, |peer| peer.wireguard.clone(), "wireguard"),
            onion: settle.one(&parts, |peer| peer.onion.clone(), "onion"),
        });
    }
    peers
}

fn accepts(all: Vec<Accept>, out: &mut Findings) -> Vec<Accept> {
    let mut accepts = Vec::new();
    for (name, mut parts) in by_name(all, |accept| accept.name.value.to_string()) {
        each_once(&mut parts, |accept| accept.name.at, "port of the host", &name, out);
        let ports = parts.iter().map(|accept| accept.ports).min().expect("a name stands here because of a port");
        let from: Vec<Sp<Who>> = parts.iter().flat_map(|accept| accept.from.clone()).collect();
        accepts.push(Accept { name: parts[0].name.clone(), ports, from });
    }
    accepts
}

fn by_name<T>(items: Vec<T>, name: fn(&T) -> String) -> BTreeMap<String, Vec<T>> {
    let mut named: BTreeMap<String, Vec<T>> = BTreeMap::new();
    for item in items {
        named.entry(name(&item)).or_default().push(item);
    }
    named
}

/// Reports what is defined more than once; the first place stands first then.
fn each_once<T>(parts: &mut [T], at: fn(&T) -> At, what: &str, name: &str, out: &mut Findings) {
    parts.sort_by_key(at);
    for again in &parts[1..] {
        let help = if what == "service" {
            format!("keep one of them; what another file adds stands in `[extend.{}]`", name.escape_debug())
        } else {
            "keep one of them".to_owned()
        };
        out.add(twice(what, name, at(again), at(&parts[0])).help(help));
    }
}

fn twice(what: &str, name: &str, at: At, first: At) -> Draft {
    let draft = Draft::new("E0301", at, format!("the {what} `{}` is defined twice", name.escape_debug()));
    draft.label("again here").second(first, "first here")
}

/// Brings what several places say about one setting down to one value.
pub(crate) struct Settle<'a> {
    pub(crate) out: &'a mut Findings,
    /// Whether a disagreement has been reported as something else.
    pub(crate) quiet: bool,
}

impl Settle<'_> {
    /// The value that all say who say any; E0307 when they differ.
    pub(crate) fn one<P, T: Ord>(&mut self, parts: &[P], value: fn(&P) -> Option<Sp<T>>, what: &str) -> Option<Sp<T>> {
        self.all(parts.iter().filter_map(value).collect(), what)
    }

    /// The same for values at hand.
    pub(crate) fn all<T: Ord>(&mut self, mut said: Vec<Sp<T>>, what: &str) -> Option<Sp<T>> {
        said.sort_by_key(|value| value.at);
        let first = said.first()?;
        let other = said.iter().find(|other| other.value != first.value);
        if let Some(other) = other.filter(|_| !self.quiet) {
            let draft = Draft::new("E0307", other.at, format!("two places disagree about `{what}`"));
            let draft = draft.label("set to this here").second(first.at, "and to this here");
            self.out.add(draft.help("set it in one of them"));
        }
        // The least, and not the first: what is found out about it must not depend on who is read first.
        said.into_iter().reduce(|least, other| if other.value < least.value { other } else { least })
    }
}

/// The values of a list without repetitions, ordered.
pub(crate) fn set<T: Ord + Copy>(items: &[Sp<T>]) -> Vec<T> {
    items.iter().map(|item| item.value).collect::<BTreeSet<T>>().into_iter().collect()
}
