//! What is read before and after an attempt: counters of the panel and of both locks, connection tracking, listeners.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use netns_policy::desired::{Desired, Wire};
use netns_policy::explain::stands::stands;
use netns_policy::port::{Ports, Protocol};
use netns_policy::ruleset::compile::{TABLE, host_table};
use netns_policy::ruleset::{Count, Family, Key};
use netns_policy::topology::Place;

use super::dial::{self, Dialled, Met};
use super::judge::{Audience, Evidence, Gap, judge};
use super::{Stranger, Try};
use crate::kernel::Linux;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::listener::{Listener, listeners, receivers};
use crate::kernel::nft::NftSocket;
use crate::kernel::process::processes_in;
use crate::orchestrator::Planned;

/// An attempt, with all that is known before it is made.
pub(super) struct Scene<'a> {
    pub(super) linux: &'a Linux,
    pub(super) planned: &'a Planned,
    pub(super) from: Place,
    pub(super) to: Place,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) allowed: bool,
}

/// What has been counted until a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    own_there: bool,
    /// Of exactly this target.
    own_refused: u64,
    /// Of any target.
    own_refused_any: u64,
    /// Whether the lock would have this target in its list if it had refused it.
    own_lists: bool,
    limited: u64,
    panel_passed: u64,
    panel_has: bool,
    panel_refused: u64,
    there_refused: u64,
}

impl Scene<'_> {
    /// Makes one attempt.
    pub(super) fn attempt(&self, address: IpAddr, strangers: &[Stranger]) -> Try {
        let gap = self.gap();
        let before = self.counts(address);
        let (dialled, unmade) = match gap.as_ref().map_or_else(|| self.dial(address), |_| Ok(Dialled::none())) {
            Ok(dialled) => (dialled, None),
            Err(e) => (Dialled::none(), Some(causes(&e))),
        };
        let after = self.counts(address);
        let rise = |of: fn(&Counts) -> u64| of(&after).saturating_sub(of(&before));
        let evidence = Evidence {
            gap,
            allowed: self.allowed,
            loopback: self.from == self.to,
            outside: self.to == Place::Uplink,
            protocol: self.protocol,
            met: dialled.met,
            unmade,
            own_there: after.own_there,
            own_refused: rise(|counts| counts.own_refused) > 0,
            own_refused_some: !after.own_lists && rise(|counts| counts.own_refused_any) > 0,
            limited: rise(|counts| counts.limited) > 0,
            panel_passed: rise(|counts| counts.panel_passed) > 0,
            // Of ways out one map has those to everybody, and an element may be of another.
            panel_has: after.panel_has && (self.to != Place::Uplink || self.allowed),
            panel_refused: rise(|counts| counts.panel_refused) > 0,
            there_refused: rise(|counts| counts.there_refused) > 0,
            left: self.remembers(&self.from, address, &dialled),
            entered: self.remembers(&self.to, address, &dialled),
            audience: self.audience(address),
            blocked: match dialled.met {
                Met::Silence if self.to == Place::Uplink => self.blocked(),
                _ => Vec::new(),
            },
            from: self.from.to_string(),
            to: self.to.to_string(),
            strangers,
        };
        Try { address, met: dialled.met, elapsed: dialled.elapsed, verdict: judge(&evidence) }
    }

    /// Fails where nobody gets into the caller's namespace.
    fn dial(&self, address: IpAddr) -> io::Result<Dialled> {
        let (protocol, port) = (self.protocol, self.port);
        self.inside(&self.from, move || Ok(dial::dial(address, protocol, port)))
    }

    /// Runs `f` where `place` is.
    fn inside<T: Send + 'static>(
        &self,
        place: &Place,
        f: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        match place.netns(&self.linux.network) {
            Some(netns) => self.linux.inside(&netns, f).map_err(io::Error::other),
            None => f(),
        }
    }

    fn wire(&self, place: &Place) -> Option<&Wire> {
        self.planned.desired.wires.get(place)
    }

    /// What is missing of the way, before anything is tried.
    fn gap(&self) -> Option<Gap> {
        let observed = &self.planned.observed;
        if observed.fabric.is_none() {
            return Some(Gap::NotApplied);
        }
        [&self.from, &self.to].into_iter().find_map(|place| {
            let Some(wire) = self.wire(place) else {
                // Whom nobody may reach has no wire, and then it is the caller's own lock that says so.
                return (place == &self.from && self.from != self.to).then_some(Gap::Unwired(place.clone()));
            };
            if wire.netns.as_ref().is_some_and(|netns| !observed.namespaces.contains_key(netns)) {
                return Some(Gap::Namespace(place.clone()));
            }
            if self.from == self.to {
                return None;
            }
            let outer = observed.fabric.as_ref()?.links.get(wire.outer.as_str());
            match (observed.inner_link(wire), outer) {
                (Some(inner), Some(outer)) if inner.up && outer.up => match observed.whole_wire(wire) {
                    Some(_) => None,
                    None => Some(Gap::Changed(place.clone())),
                },
                (Some(inner), Some(_)) if !inner.up => Some(Gap::Down(place.clone(), "its own end")),
                (Some(_), Some(_)) => Some(Gap::Down(place.clone(), "the end in the fabric")),
                _ => Some(Gap::Wire(place.clone())),
            }
        })
    }

    /// What the elements and rules that this attempt can meet have counted.
    fn counts(&self, address: IpAddr) -> Counts {
        let mut counts = Counts::default();
        self.count_own(address, &mut counts);
        self.count_panel(address, &mut counts);
        counts.there_refused = self.count_there();
        counts
    }

    fn count_own(&self, address: IpAddr, counts: &mut Counts) {
        if self.from == Place::Host {
            let table = host_table(&self.planned.checked.graph);
            let rules = self.rules(&Place::Host, table, "to_fabric");
            counts.own_there = !rules.is_empty();
            counts.own_refused_any = last(&rules);
            return;
        }
        let mut rules = self.rules(&self.from, TABLE.into(), "output");
        counts.own_there = !rules.is_empty();
        counts.own_refused_any = rules.pop().map_or(0, |count| count.packets);
        counts.limited = rules.iter().map(|count| count.packets).sum();
        let key = denied_key(address, self.protocol, self.port);
        let set = if address.is_ipv4() { "denied4" } else { "denied6" };
        let denied =
            self.inside(&self.from, move || NftSocket::open_wary()?.dynamic_elements(Family::Inet, TABLE, set));
        let denied = denied.unwrap_or_default();
        counts.own_refused = denied.get(&key).map_or(0, |count| count.packets);
        // A set that is full takes no more; then the counter behind it has to do.
        counts.own_lists = denied.len() < DENIED || denied.contains_key(&key);
    }

    fn count_panel(&self, address: IpAddr, counts: &mut Counts) {
        let (fabric, Some(client)) = (self.planned.desired.fabric_netns(), self.wire(&self.from)) else { return };
        let read = || {
            let socket = NftSocket::open()?;
            let dump = socket.dump(|family, name| family == Family::Netdev && name == TABLE)?;
            Ok((dump, socket.dynamic_elements(Family::Netdev, TABLE, "denied").unwrap_or_default()))
        };
        let Ok((dump, denied)) = self.linux.inside(&fabric, read) else { return };
        let asked = Ports::new(self.protocol, self.port, self.port).ok();
        // As it is in the kernel, whatever ought to be there.
        let there = Desired { fabric: dump.ruleset, ..self.planned.desired.clone() };
        let version = if address.is_ipv4() { '4' } else { '6' };
        let ours = stands(&there, &self.from, &self.to, asked);
        let ours = ours.iter().filter(|stand| stand.place == "fabric" && stand.set.ends_with(version));
        let ours: Vec<_> = ours.collect();
        counts.panel_has = !ours.is_empty();
        counts.panel_passed =
            ours.iter().filter_map(|stand| dump.counters.get(&stand.id)).map(|count| count.packets).sum();
        let wire = Key { from: client.index.to_ne_bytes().to_vec(), to: None };
        counts.panel_refused = denied.get(&wire).map_or(0, |count| count.packets);
    }

    fn count_there(&self) -> u64 {
        match &self.to {
            Place::Host => last(&self.rules(&self.to, host_table(&self.planned.checked.graph), "from_fabric")),
            Place::Relay | Place::Service(_) => last(&self.rules(&self.to, TABLE.into(), "input")),
            Place::Uplink => last(&self.rules(&self.to, TABLE.into(), "refuse")),
        }
    }

    fn rules(&self, place: &Place, table: String, chain: &'static str) -> Vec<Count> {
        let read = move || NftSocket::open_wary()?.rule_counters(Family::Inet, &table, chain);
        self.inside(place, read).unwrap_or_default()
    }

    /// Whether connection tracking of `place` knows this attempt; nothing where it cannot be asked.
    fn remembers(&self, place: &Place, address: IpAddr, dialled: &Dialled) -> Option<bool> {
        let (source, number, port) = (dialled.source_port?, self.protocol.number(), self.port);
        let look = move || {
            let flows = Conntrack::open().and_then(|mut conntrack| conntrack.dump()).map_err(io::Error::other)?;
            Ok(flows.iter().map(|flow| flow.original).any(|tuple| {
                let ports = (tuple.source_port(), tuple.destination_port());
                tuple.protocol == number && tuple.destination == address && ports == (source, port)
            }))
        };
        self.inside(place, look).ok()
    }

    /// Who would hear it at the target.
    fn audience(&self, address: IpAddr) -> Audience {
        if self.to == Place::Uplink {
            return Audience::Unknown;
        }
        let protocol = self.protocol;
        let hear = move || if protocol == Protocol::Tcp { listeners() } else { receivers() };
        let Ok(all) = self.inside(&self.to, hear) else { return Audience::Unknown };
        let here: Vec<IpAddr> = all.iter().filter(|one| one.port == self.port).map(|one| one.address).collect();
        if here.is_empty() {
            return self.nobody(hear);
        }
        audience_of(&here, address)
    }

    /// Nobody listens: is anybody there at all?
    fn nobody(&self, hear: impl FnOnce() -> io::Result<Vec<Listener>>) -> Audience {
        let Some(netns) = self.to.netns(&self.linux.network) else {
            return Audience::Nobody { inside: None, astray: Vec::new(), on_host: false };
        };
        let inside = self.linux.open(&netns).ok().and_then(|netns| processes_in(&netns).ok());
        let unit = match &self.to {
            Place::Service(name) => self.planned.checked.graph.service(name.as_str()).and_then(|s| s.unit.as_deref()),
            _ => None,
        };
        // Where this command runs is the host.
        let on_host = hear().is_ok_and(|all| all.iter().any(|one| one.port == self.port));
        let of_unit = unit.map(processes_of).unwrap_or_default();
        let astray = match &inside {
            Some(inside) => {
                of_unit.into_iter().filter(|pid| !inside.processes.iter().any(|p| p.as_raw() == *pid)).collect()
            }
            None => Vec::new(),
        };
        Audience::Nobody { inside: inside.map(|inside| inside.processes.len()), astray, on_host }
    }

    /// Chains of the host that stop what leaves.
    fn blocked(&self) -> Vec<String> {
        let notes = crate::uplink::notes(self.planned, &self.linux.netns_directory);
        notes
            .into_iter()
            .filter_map(|note| match note {
                crate::Note::Blocked(blocked) => Some(format!("{}; {}", blocked.chain, blocked.remedy)),
                crate::Note::NoUplink => Some("the host has no default route".to_owned()),
                _ => None,
            })
            .collect()
    }
}

/// How many targets a lock remembers (`size` of its sets `denied`).
const DENIED: usize = 1024;

impl Dialled {
    /// Nothing was tried.
    fn none() -> Self {
        Self { met: Met::Untried, elapsed: Duration::ZERO, source_port: None, socket: None }
    }
}

/// An error and what it comes from.
fn causes(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn last(counts: &[Count]) -> u64 {
    counts.last().map_or(0, |count| count.packets)
}

/// The element of a lock's `denied` for a target: address, protocol and port, each padded to four bytes.
pub(super) fn denied_key(address: IpAddr, protocol: Protocol, port: u16) -> Key {
    let mut from = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    from.extend([protocol.number(), 0, 0, 0]);
    from.extend(port.to_be_bytes());
    from.extend([0, 0]);
    Key { from, to: None }
}

/// What the lock of `from` counted of refusals of `ports`, or of any, at these addresses.
pub(super) fn refusals(linux: &Linux, from: &Place, addresses: &[IpAddr], ports: Option<Ports>) -> Option<u64> {
    let read = || {
        let socket = NftSocket::open_wary()?;
        let four = socket.dynamic_elements(Family::Inet, TABLE, "denied4")?;
        Ok((four, socket.dynamic_elements(Family::Inet, TABLE, "denied6")?))
    };
    let (four, six) = linux.inside(&from.netns(&linux.network)?, read).ok()?;
    let prefixes: Vec<Vec<u8>> = addresses.iter().map(|address| denied_key(*address, Protocol::Tcp, 0).from).collect();
    let about = |key: &Key| {
        let address = prefixes
            .iter()
            .any(|prefix| key.from.len() == prefix.len() && key.from[..prefix.len() - 8] == prefix[..prefix.len() - 8]);
        let rest = &key.from[key.from.len().saturating_sub(8)..];
        let port = || Some(u16::from_be_bytes(rest.get(4..6)?.try_into().ok()?));
        let asked = |ports: Ports| {
            ports.protocol().number() == rest[0] && port().is_some_and(|port| (ports.lo()..=ports.hi()).contains(&port))
        };
        address && ports.is_none_or(asked)
    };
    Some(four.iter().chain(&six).filter(|(key, _)| about(key)).map(|(_, count)| count.packets).sum())
}

/// Whether those who listen at `here` hear what comes to `address`.
fn audience_of(here: &[IpAddr], address: IpAddr) -> Audience {
    let hears =
        |one: &IpAddr| one.to_canonical() == address || (one.is_unspecified() && one.is_ipv4() == address.is_ipv4());
    if here.iter().any(hears) {
        return Audience::Listens;
    }
    // `::` takes IPv4 too, unless the program said that it shall not; nothing here tells.
    if address.is_ipv4() && here.iter().any(|one| one.is_unspecified()) {
        return Audience::PerhapsBoth;
    }
    if here.iter().all(|one| one.to_canonical().is_loopback()) {
        return Audience::Loopback(here.to_vec());
    }
    let family = |one: &&IpAddr| one.to_canonical().is_ipv4() == address.is_ipv4();
    let same: Vec<IpAddr> = here.iter().filter(family).copied().collect();
    if same.is_empty() { Audience::OtherFamily(here.to_vec()) } else { Audience::OtherAddress(same) }
}

/// The processes of a unit, as its control group lists them.
fn processes_of(unit: &str) -> Vec<i32> {
    let file = Path::new("/sys/fs/cgroup/system.slice").join(unit).join("cgroup.procs");
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_where_nobody_comes_is_told_from_who_hears() {
        let of = |here: &[&str], address: &str| {
            let here: Vec<IpAddr> = here.iter().map(|one| one.parse().unwrap()).collect();
            audience_of(&here, address.parse().unwrap())
        };
        for here in [&["0.0.0.0"][..], &["10.0.0.1"], &["127.0.0.1", "10.0.0.1"], &["::ffff:10.0.0.1"]] {
            assert_eq!(of(here, "10.0.0.1"), Audience::Listens, "{here:?}");
        }
        assert_eq!(of(&["::"], "10.0.0.1"), Audience::PerhapsBoth);
        assert_eq!(of(&["::"], "fd00::1"), Audience::Listens);
        assert!(matches!(of(&["127.0.0.1", "::1"], "10.0.0.1"), Audience::Loopback(_)));
        assert!(matches!(of(&["::ffff:127.0.0.1"], "fd00::1"), Audience::Loopback(_)));
        assert!(matches!(of(&["0.0.0.0"], "fd00::1"), Audience::OtherFamily(_)));
        assert!(matches!(of(&["10.0.0.1"], "fd00::1"), Audience::OtherFamily(_)));
        assert!(matches!(of(&["10.0.0.2"], "10.0.0.1"), Audience::OtherAddress(_)));
    }
}
