//! The table of ours on the host: its lock on its own wire, the leg, and nobody else's traffic.

use super::lock::{LO, held, opened};
use super::{Facts, Right, Spec, addresses, states, to_port};
use crate::prove::class::{Class, Ct, Ip, Var};
use crate::prove::machine::{Link, Outcome};
use crate::prove::numbers::Numbers;
use crate::topology::{Place, leg_link};

/// New connections along a right, as far as they begin at their beginning: the host's connection tracking may take a
/// segment from the middle for a new one (`nf_conntrack_tcp_loose`), where that of a service calls it invalid. A reset
/// opens nothing, and of a header that is cut off nobody knows a connection: these may pass.
fn begun(right: &Right, peer: Var, spec: &mut Spec) {
    let mut any = Spec::default();
    opened(right, peer, |class| class, &mut any);
    let bits = |mask, value| Numbers::masked(8, mask, value).expect("few ranges");
    let (opening, reset) = (bits(SYN | ACK, SYN), bits(RST, RST));
    for (outcome, class) in any.must {
        if class.of(Var::Proto) != Numbers::one(TCP) {
            spec.must(outcome, class);
            continue;
        }
        let whole = class.with(Var::Len, &Numbers::range(FLAGS + 1, u128::from(u16::MAX)));
        spec.must(outcome, whole.with(Var::Flags, &opening));
        spec.may(outcome, whole.with(Var::Flags, &reset));
        spec.may(outcome, class.with(Var::Len, &Numbers::range(0, FLAGS)));
    }
    spec.may.extend(any.may);
}

const TCP: u128 = 6;
/// `tcp flags`, and which byte of the header they are.
const SYN: u128 = 0x02;
const RST: u128 = 0x04;
const ACK: u128 = 0x10;
const FLAGS: u128 = 13;

/// A link of ours, of whichever network.
fn is_ours(link: &Link) -> bool {
    link.group == crate::desired::GROUP
}

impl Facts<'_> {
    fn is_wire(&self, link: &Link) -> bool {
        link.name == Place::Host.inner_link(&self.graph.network().name).as_str()
    }

    fn is_leg(&self, link: &Link) -> bool {
        link.name == leg_link(&self.graph.network().name).as_str()
    }

    fn has_leg(&self) -> bool {
        self.wires.contains_key(&Place::Uplink)
    }

    /// Whether there is anything of ours on the host.
    pub(in crate::prove) fn has_host_table(&self) -> bool {
        self.has_leg() || self.wires.contains_key(&Place::Host)
    }

    /// The addresses that the host answers for, by version: its own, ours, and those of its loopback.
    pub(in crate::prove) fn host_local(&self) -> Vec<(Ip, Numbers)> {
        Ip::BOTH.map(|ip| (ip, self.local(ip))).into()
    }

    fn local(&self, ip: Ip) -> Numbers {
        let loopback = match ip {
            Ip::V4 => Numbers::range(0x7f00_0000, 0x7fff_ffff),
            _ => Numbers::one(1),
        };
        addresses(ip, self.host.addresses.iter().copied()).or(&self.ours_on_host()(ip)).or(&loopback)
    }

    fn ours_on_host(&self) -> impl Fn(Ip) -> Numbers {
        let wire = self.addresses.of(&Place::Host).filter(|_| self.wires.contains_key(&Place::Host));
        let leg = self.has_leg().then(|| self.addresses.leg_host());
        move |ip| addresses(ip, [wire, leg].into_iter().flatten().flat_map(|own| own.iter().collect::<Vec<_>>()))
    }

    /// A port of the host that is exposed is the same port of the gateway's end of the leg, for those who may come in by it,
    /// from any link that is not ours. All else goes on as it is.
    pub(in crate::prove) fn host_prerouting(&self, from: &Link) -> Spec {
        let mut spec = Spec::everything();
        if is_ours(from) {
            return spec;
        }
        for (door, ip) in self.doors().iter().flat_map(|door| Ip::BOTH.map(|ip| (door, ip))) {
            let (Some(end), Some(callers)) = (self.leg_end(ip), self.callers(door, ip)) else { continue };
            let call = states(&Class::every(ip).with(Var::Saddr, &callers), &[Ct::New]);
            let call = to_port(&call, door.protocol, door.outside);
            spec.instead(Outcome::Redirect(end, None), call.with(Var::Daddr, &self.local(ip)));
        }
        spec
    }

    /// Who comes in by a port, on the way to the gateway.
    fn entering_by_leg(&self, spec: &mut Spec) {
        for (door, ip) in self.doors().iter().flat_map(|door| Ip::BOTH.map(|ip| (door, ip))) {
            let (Some(end), Some(callers)) = (self.leg_end(ip), self.callers(door, ip)) else { continue };
            let call = Class::every(ip).with(Var::Saddr, &callers).with(Var::Daddr, &Numbers::one(end));
            spec.must(Outcome::Accept, states(&to_port(&call, door.protocol, door.outside), &[Ct::New]));
        }
    }

    /// What the host takes from a link: from its wire what edges open, from the leg answers alone; from other links
    /// everything, but nothing for its addresses in the fabric.
    pub(in crate::prove) fn host_input(&self, from: &Link) -> Spec {
        let mut spec = Spec::default();
        if self.is_wire(from) {
            held(&mut spec);
            self.rights_to(&Place::Host).for_each(|right| begun(right, Var::Saddr, &mut spec));
            return spec;
        }
        if self.is_leg(from) {
            held(&mut spec);
            return spec;
        }
        if from.index == LO {
            return Spec::everything();
        }
        let ours = self.ours_on_host();
        for ip in Ip::BOTH {
            let others = super::whole(ip).without(&ours(ip));
            spec.must(Outcome::Accept, Class::every(ip).with(Var::Daddr, &others));
        }
        spec
    }

    /// What the host sends: into its wire along its edges, elsewhere whatever it likes.
    pub(in crate::prove) fn host_output(&self, by: &Link) -> Spec {
        if !self.is_wire(by) {
            return Spec::everything();
        }
        let mut spec = Spec::default();
        held(&mut spec);
        self.rights_from(&Place::Host).for_each(|right| begun(right, Var::Daddr, &mut spec));
        spec
    }

    /// What the host forwards: nothing by its own wire; from the leg to the outside, and answers back; of everybody else
    /// what it forwarded before us.
    pub(in crate::prove) fn host_forward(&self, from: &Link, by: &Link) -> Spec {
        let mut spec = Spec::default();
        if self.is_wire(from) || self.is_wire(by) {
            return spec;
        }
        if self.is_leg(from) {
            Ip::BOTH.into_iter().for_each(|ip| self.leaving_by_leg(ip, &mut spec));
            return spec;
        }
        if self.is_leg(by) {
            held(&mut spec);
            self.entering_by_leg(&mut spec);
            return spec;
        }
        for ip in Ip::BOTH {
            if !self.was_off(ip, from, by) {
                spec.must(Outcome::Accept, Class::every(ip));
            }
        }
        spec
    }

    /// Who may go where, the gateway has asked: here an address of the host never, what some service may reach always.
    fn leaving_by_leg(&self, ip: Ip, spec: &mut Spec) {
        let ours = self.ours_on_host()(ip);
        let local = addresses(ip, self.host.addresses.iter().copied()).or(&ours);
        let services = || self.graph.services();
        let far = services()
            .flat_map(|service| self.ways_out(service, ip))
            .fold(Numbers::new(vec![]), |all, way| all.or(&way.far));
        let asks = services().any(|service| service.dns == crate::graph::Dns::Direct);
        let resolver = self.resolver(ip).map_or(Numbers::new(vec![]), Numbers::one);
        let must = if asks { far.or(&resolver) } else { far };
        let must = must.without(&local);
        if !must.is_empty() {
            spec.must(Outcome::Accept, Class::every(ip).with(Var::Daddr, &must));
        }
        // What is public, though no service may go there; and the prefixes that somebody may reach on some port.
        let only = services().flat_map(|service| service.outbound.lan_only.iter().map(|(prefix, _)| prefix));
        let beyond = self.remote(ip).or(&self.lan(ip)).or(&super::prefixes(ip, only)).or(&resolver).without(&local);
        // Who came in by a port may be anybody; what is answered, the gateway has asked.
        if !self.doors().is_empty() {
            let answer = states(&Class::every(ip), &[Ct::EstablishedBack]);
            spec.must(Outcome::Accept, answer.with(Var::Daddr, &super::whole(ip).without(&self.local(ip))));
        }
        // The pools' other addresses are not to be had from here by any route.
        spec.may(Outcome::Accept, Class::every(ip).with(Var::Daddr, &beyond));
    }

    /// The links on which somebody may be who comes in: those where a prefix of `lan` lies.
    pub(in crate::prove) fn links_of_callers(&self, ip: Ip) -> Vec<&str> {
        if self.doors().is_empty() {
            return vec![];
        }
        let lan = self.lan(ip);
        let near = self.host.links.iter().filter(|(_, prefixes)| super::prefixes(ip, *prefixes).meets(&lan));
        near.map(|(link, _)| link.as_str()).collect()
    }

    /// Whether forwarding between two links that are not ours was off, and is on because of the leg.
    fn was_off(&self, ip: Ip, from: &Link, by: &Link) -> bool {
        let off = |path: &str| self.host.original(path) == Some("0");
        let ours = is_ours;
        match ip {
            _ if !self.has_leg() => false,
            // One switch for all links there.
            Ip::V6 => {
                let sends_on = !self.host.uplinks6.is_empty() || !self.links_of_callers(ip).is_empty();
                let sends_on = sends_on && self.graph.network().pool6.is_some();
                let switched = off("net/ipv6/conf/all/forwarding") && sends_on;
                switched && !ours(from) && !ours(by)
            }
            _ => {
                let link = self.host.uplinks4.contains(&from.name) || self.links_of_callers(ip).contains(&&*from.name);
                let switched = off(&format!("net/ipv4/conf/{}/forwarding", from.name));
                off("net/ipv4/ip_forward") && link && switched && !ours(by)
            }
        }
    }

    /// What comes from the gateway leaves with the host's own source.
    pub(in crate::prove) fn host_postrouting(&self, by: &Link) -> Spec {
        if !self.has_leg() || self.is_wire(by) {
            return Spec::everything();
        }
        let mut spec = Spec::default();
        for ip in Ip::BOTH {
            let new = states(&Class::every(ip), &[Ct::New]);
            let from = addresses(ip, self.addresses.leg_gateway().iter());
            let these = new.narrowed(Var::Saddr, &from);
            let rest = these.as_ref().map_or(vec![Class::every(ip)], |these| Class::every(ip).without(these));
            rest.into_iter().for_each(|class| spec.must(Outcome::Accept, class));
            these.into_iter().for_each(|class| spec.must(Outcome::Masquerade, class));
        }
        spec
    }
}
