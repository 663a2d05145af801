//! The second lock: what a service takes in, and what it lets out, whatever its wire brings or is sent.

use super::{ESTABLISHED, Facts, LOOSE, RELATED, Right, Spec, echo_request, errors, states, to_port, to_ports};
use crate::graph::{Dns, Service};
use crate::prove::class::{Class, Ct, Ip, Var};
use crate::prove::machine::{Link, Outcome};
use crate::prove::numbers::Numbers;
use crate::topology::Place;

/// The loopback link's index in every namespace.
pub(super) const LO: u32 = 1;

/// What a connection that is held brings: its packets, and ICMP errors about it; never a helper's expectation.
pub(super) fn held(spec: &mut Spec) {
    for ip in Ip::BOTH {
        spec.must(Outcome::Accept, states(&Class::every(ip), &ESTABLISHED));
        spec.must(Outcome::Accept, errors(&states(&Class::every(ip), &RELATED)));
    }
}

/// New connections along a right, and echo. An echo request is no matter of state: one that conntrack does not know may
/// pass as well.
pub(super) fn opened(right: &Right, peer: Var, within: impl Fn(Class) -> Class, spec: &mut Spec) {
    for (ip, client, server) in &right.ends {
        let address = if peer == Var::Saddr { client } else { server };
        let class = Class::every(*ip).with(peer, &Numbers::one(*address));
        spec.must(Outcome::Accept, within(states(&to_ports(&class, right.ports), &[Ct::New])));
        if !right.has_no_echo {
            let echo = echo_request(&class);
            spec.must(Outcome::Accept, within(states(&echo, &[Ct::New])));
            spec.must(Outcome::Accept, states(&echo, &ESTABLISHED));
            spec.may(Outcome::Accept, states(&echo, &[LOOSE, RELATED].concat()));
        }
    }
}

impl Facts<'_> {
    /// What a service takes from a link.
    pub(in crate::prove) fn input(&self, place: &Place, from: &Link) -> Spec {
        if from.index == LO {
            return Spec::everything();
        }
        let mut spec = Spec::default();
        held(&mut spec);
        self.rights_to(place).for_each(|right| opened(right, Var::Saddr, |class| class, &mut spec));
        self.entered(place, &mut spec);
        spec
    }

    /// New connections of who may come in by a port of the host.
    fn entered(&self, place: &Place, spec: &mut Spec) {
        let doors = self.doors().iter().filter(|door| door.to == *place);
        for (door, ip) in doors.flat_map(|door| Ip::BOTH.map(|ip| (door, ip))) {
            let Some(callers) = self.callers(door, ip) else { continue };
            let call = states(&Class::every(ip).with(Var::Saddr, &callers), &[Ct::New]);
            spec.must(Outcome::Accept, to_port(&call, door.protocol, door.port));
        }
    }

    /// What the relay sends by a link: along its rights and no other way, and answers.
    pub(in crate::prove) fn relay_output(&self, by: &Link) -> Spec {
        if by.index == LO {
            return Spec::everything();
        }
        let mut spec = Spec::default();
        held(&mut spec);
        self.rights_from(&Place::Relay).for_each(|right| opened(right, Var::Daddr, |class| class, &mut spec));
        spec
    }

    /// What a service sends by a link. With `dns = "tor"` the question to port 53 of the tor service goes to its port
    /// `dns`.
    pub(in crate::prove) fn output(&self, service: &Service, by: &Link) -> Spec {
        let asked = self.asks_tor(service);
        if by.index == LO {
            // Where the redirect leads is no matter of the link.
            let mut spec = Spec::everything();
            spec.must =
                spec.must.into_iter().flat_map(|(o, class)| without(class, &asked).map(move |c| (o, c))).collect();
            spec.must.extend(asked.iter().map(|(class, to)| (*to, class.clone())));
            return spec;
        }
        let mut spec = Spec::default();
        held(&mut spec);
        let place = Place::Service(service.name.clone());
        let within = |class: Class| self.within_limits(service, class);
        for right in self.rights_from(&place) {
            opened(right, Var::Daddr, within, &mut spec);
        }
        for ip in Ip::BOTH {
            if self.own(&place, ip).is_some() {
                self.outward(service, ip, &mut spec);
            }
        }
        self.redirected(&asked, within, spec)
    }

    /// Beyond the limits nothing new begins.
    fn within_limits(&self, service: &Service, class: Class) -> Class {
        let limits = &service.limits;
        let no = Numbers::one(0);
        let class = if limits.new_per_second.is_some() { class.with(Var::Exhausted, &no) } else { class };
        if limits.flows.is_some() { class.with(Var::Crowded, &no) } else { class }
    }

    /// Outside: the lock knows what is public, not what is remote, and leaves the connection to the gateway.
    fn outward(&self, service: &Service, ip: Ip, spec: &mut Spec) {
        let every = Class::every(ip);
        for way in self.ways_out(service, ip) {
            let class = match way.ports {
                Some(ports) => to_ports(&every, ports),
                None => every.clone(),
            };
            let others: Vec<Ct> = Ct::ALL.into_iter().filter(|ct| *ct != Ct::New).collect();
            spec.may(Outcome::Accept, states(&class.with(Var::Daddr, &way.beyond), &others));
            spec.may(
                Outcome::Accept,
                self.within_limits(service, states(&class.with(Var::Daddr, &way.beyond), &[Ct::New])),
            );
            if let Some(far) = class.narrowed(Var::Daddr, &way.far) {
                // Of a datagram without a protocol nobody knows a connection.
                let far = states(&far, &[Ct::New]).with(Var::Sense, &Numbers::one(1));
                spec.must(Outcome::Accept, self.within_limits(service, far));
            }
        }
    }

    /// The questions that are redirected, and where they go.
    fn asks_tor(&self, service: &Service) -> Vec<(Class, Outcome)> {
        let tor = self.graph.services().find(|other| other.is_tor).filter(|_| service.dns == Dns::Tor);
        let Some(tor) = tor else { return vec![] };
        let dns = tor.ports.iter().find(|(name, _)| name.as_str() == "dns").map(|(_, ports)| ports.lo());
        let Some(dns) = dns else { return vec![] };
        let place = Place::Service(tor.name.clone());
        let asked = Ip::BOTH.into_iter().filter_map(|ip| {
            let address = self.own(&place, ip)?;
            let to = Class::every(ip).with(Var::Daddr, &Numbers::one(address));
            let question = to_ports(&to, "udp:53".parse().expect("the constant is a port"));
            Some((states(&question, &[Ct::New]), Outcome::Redirect(address, Some(dns))))
        });
        asked.collect()
    }

    /// What is redirected passes as what it becomes: a right to the port `dns` lets it.
    fn redirected(&self, asked: &[(Class, Outcome)], within: impl Fn(Class) -> Class, spec: Spec) -> Spec {
        if asked.is_empty() {
            return spec;
        }
        let apart = |all: Vec<(Outcome, Class)>| {
            all.into_iter().flat_map(|(o, class)| without(class, asked).map(move |c| (o, c))).collect()
        };
        let mut apart = Spec { must: apart(spec.must), may: apart(spec.may) };
        for (class, to) in asked {
            apart.must(*to, within(class.clone()));
        }
        apart
    }
}

fn without(class: Class, asked: &[(Class, Outcome)]) -> impl Iterator<Item = Class> + use<> {
    let mut parts = vec![class];
    for (question, _) in asked {
        parts = parts.iter().flat_map(|part| part.without(question)).collect();
    }
    parts.into_iter()
}
