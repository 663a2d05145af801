//! The gateway `uplink`: what it forwards, translates, takes and says.

use super::lock::{LO, held};
use super::{ESTABLISHED, Facts, LOOSE, RELATED, Spec, carrying, errors, from_port, states, to_port, to_ports};
use crate::graph::Dns;
use crate::prove::class::{Class, Ct, Ip, Var};
use crate::prove::machine::{Link, Outcome};
use crate::prove::numbers::Numbers;
use crate::topology::Place;

/// Its wire and its end of the leg.
const WIRE: &str = "net0";
const LEG: &str = "up0";

/// Of a connection that may live.
const KNOWN: [Ct; 5] = [Ct::New, Ct::EstablishedThere, Ct::EstablishedBack, Ct::RelatedThere, Ct::RelatedBack];

impl Facts<'_> {
    /// A question to the resolver's address is sent on to a resolver; from the leg, a port of its end is one of a service.
    pub(in crate::prove) fn gateway_prerouting(&self, from: &Link) -> Spec {
        let mut spec = Spec::everything();
        if from.name == LEG {
            self.entering(&mut spec);
        }
        if from.name != WIRE {
            return spec;
        }
        for ip in Ip::BOTH {
            let (Some(to), asked) = (self.resolver(ip), self.resolver_asked(ip)) else { continue };
            if asked.is_empty() {
                continue;
            }
            let every = states(&Class::every(ip).with(Var::Daddr, &asked), &[Ct::New]);
            for ports in ["tcp:53", "udp:53"] {
                let question = to_ports(&every, ports.parse().expect("the constants are ports"));
                spec.instead(Outcome::Redirect(to, None), question);
            }
        }
        spec
    }

    /// The host has translated its own port to the same one here. Who may come in, `forward` asks.
    fn entering(&self, spec: &mut Spec) {
        for (door, ip) in self.doors().iter().flat_map(|door| Ip::BOTH.map(|ip| (door, ip))) {
            let (Some(end), Some(own)) = (self.leg_end(ip), self.own(&door.to, ip)) else { continue };
            let called = states(&Class::every(ip).with(Var::Daddr, &Numbers::one(end)), &[Ct::New]);
            let port = u16::try_from(door.port).expect("it is a port");
            spec.instead(Outcome::Redirect(own, Some(port)), to_port(&called, door.protocol, door.outside));
        }
    }

    /// Who comes in, packet by packet, and what is answered.
    fn passing(&self, ip: Ip, comes_in: bool, spec: &mut Spec) {
        for door in self.doors() {
            let (Some(own), Some(callers)) = (self.own(&door.to, ip), self.callers(door, ip)) else { continue };
            let own = Numbers::one(own);
            let every = Class::every(ip);
            let class = if comes_in {
                let call = every.with(Var::Saddr, &callers).with(Var::Daddr, &own);
                states(&to_port(&call, door.protocol, door.port), &KNOWN)
            } else {
                let answer = every.with(Var::Daddr, &callers).with(Var::Saddr, &own);
                states(&from_port(&answer, door.protocol, door.port), &[Ct::EstablishedBack])
            };
            spec.must(Outcome::Accept, class);
        }
    }

    /// What it forwards: out, what may go out, packet by packet; back, what a connection brings.
    pub(in crate::prove) fn gateway_forward(&self, from: &Link, by: &Link) -> Spec {
        let mut spec = Spec::default();
        match (from.name.as_str(), by.name.as_str()) {
            (LEG, WIRE) => {
                for ip in Ip::BOTH {
                    spec.must(Outcome::Accept, states(&Class::every(ip), &[Ct::EstablishedBack]));
                    spec.must(Outcome::Accept, errors(&states(&Class::every(ip), &RELATED)));
                    self.passing(ip, true, &mut spec);
                }
            }
            (WIRE, LEG) => {
                for ip in Ip::BOTH {
                    self.leaving(ip, &mut spec);
                    self.passing(ip, false, &mut spec);
                }
            }
            _ => {}
        }
        spec
    }

    fn leaving(&self, ip: Ip, spec: &mut Spec) {
        for service in self.graph.services() {
            let Some(own) = self.own(&Place::Service(service.name.clone()), ip) else { continue };
            let class = states(&Class::every(ip).with(Var::Saddr, &Numbers::one(own)), &KNOWN);
            for way in self.ways_out(service, ip) {
                let Some(far) = class.narrowed(Var::Daddr, &way.far) else { continue };
                spec.must(
                    Outcome::Accept,
                    match way.ports {
                        Some(ports) => to_ports(&far, ports),
                        None => far,
                    },
                );
            }
            // What the resolver's address has become. It may be the host's or private: it is a way of its own.
            if let (Dns::Direct, Some(to)) = (service.dns, self.resolver(ip)) {
                let questions = class.with(Var::Daddr, &Numbers::one(to)).with(Var::Dport, &Numbers::one(53));
                for ports in ["tcp:53", "udp:53"] {
                    spec.must(Outcome::Accept, to_ports(&questions, ports.parse().expect("the constants are ports")));
                }
                // No other protocol is translated, so none comes here with that destination as a question.
                let any = questions.with(Var::Sense, &Numbers::one(1)).with(Var::Len, &super::at_least(4));
                spec.may(Outcome::Accept, any);
            }
        }
        // A service's error about what came from outside.
        let host = super::addresses(ip, self.host.addresses.iter().copied());
        let far = super::whole(ip).without(&host);
        spec.may(Outcome::Accept, errors(&states(&Class::every(ip).with(Var::Daddr, &far), &RELATED)));
    }

    /// What leaves by the leg has the gateway's own source.
    pub(in crate::prove) fn gateway_postrouting(&self, by: &Link) -> Spec {
        if by.name == LEG { masqueraded(|class| class) } else { Spec::everything() }
    }

    /// Nobody may open anything to the gateway itself.
    pub(in crate::prove) fn gateway_input(&self, from: &Link) -> Spec {
        if from.index == LO {
            return Spec::everything();
        }
        let mut spec = Spec::default();
        held(&mut spec);
        spec
    }

    /// It says nothing of its own but errors and refusals.
    pub(in crate::prove) fn gateway_output(&self, by: &Link) -> Spec {
        if by.index == LO {
            return Spec::everything();
        }
        let mut spec = Spec::default();
        held(&mut spec);
        for ip in Ip::BOTH {
            let every = Class::every(ip);
            spec.must(Outcome::Accept, errors(&states(&every, &KNOWN)));
            spec.may(Outcome::Accept, errors(&states(&every, &LOOSE)));
            if by.name == WIRE {
                let resets = Numbers::masked(8, 0x04, 0x04).expect("few ranges");
                let reset = carrying(&every, 6, 14).with(Var::Flags, &resets);
                spec.must(Outcome::Accept, states(&reset, &RELATED));
                spec.must(Outcome::Accept, states(&reset, &ESTABLISHED));
            }
        }
        spec
    }
}

/// The first packet of a connection among `which` gets the source of the link; all others go on as they are.
pub(super) fn masqueraded(which: impl Fn(Class) -> Class) -> Spec {
    let mut spec = Spec::default();
    for ip in Ip::BOTH {
        let these = which(states(&Class::every(ip), &[Ct::New]));
        for rest in Class::every(ip).without(&these) {
            spec.must(Outcome::Accept, rest);
        }
        spec.must(Outcome::Masquerade, these);
    }
    spec
}
