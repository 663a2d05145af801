//! What the checks of an applied network look at: read once.

use netns_policy::observed::Namespace;
use netns_policy::topology::Place;
use nix::unistd::Pid;

use super::{Check, count, links, listeners, occupants, rules};
use crate::drift::{self, Drift};
use crate::kernel::Linux;
use crate::kernel::process::{Census, identity_at};
use crate::kernel::sysctl::Sysctl;
use crate::orchestrator::{Error, Orchestrator, Planned};

/// Above so many hundredths the table of connections is told of.
const FULL: [u64; 2] = [75, 95];

/// How many differences are told one by one.
const SHOWN: usize = 3;

pub(super) struct View<'a> {
    pub(super) nsctl: &'a Orchestrator,
    pub(super) planned: Planned,
    pub(super) linux: Linux,
    /// The namespaces of ours that are there.
    pub(super) households: Vec<Household>,
    /// The processes in the host's own namespace.
    pub(super) on_host: Vec<Pid>,
    /// How many processes could not be looked at.
    unseen: usize,
}

/// A namespace of ours, and who lives in it.
pub(super) struct Household {
    /// A service, `uplink` or `fabric`.
    pub(super) place: String,
    /// Its name.
    pub(super) netns: String,
    /// The processes in it.
    pub(super) processes: Vec<Pid>,
}

impl Household {
    /// Whether a service lives there; nobody ought to live in the others.
    pub(super) fn is_service(&self) -> bool {
        !self.netns.contains('+')
    }
}

/// Whether something does not work, or does not hold, until somebody acts.
fn is_grave(drift: &Drift) -> bool {
    let alarm = matches!(drift, Drift::ForeignTable { .. } | Drift::OutsideProcess { .. } | Drift::StrayProcess { .. });
    drift.repairable() || alarm
}

impl<'a> View<'a> {
    pub(super) fn new(nsctl: &'a Orchestrator) -> Result<Self, Error> {
        let planned = nsctl.look()?;
        let linux = nsctl.kernel(&planned.desired.network)?;
        let census = Census::take().unwrap_or_default();
        let lives = |path: &std::path::Path| {
            let netns = identity_at(path).ok()?;
            census.processes.get(&netns).cloned()
        };
        let fabric = planned.observed.fabric.iter().map(|_| planned.desired.fabric_netns());
        let network = planned.desired.network.as_str();
        let households = fabric
            .chain(planned.observed.namespaces.keys().cloned())
            .map(|netns| Household {
                place: drift::place_of(network, &netns),
                processes: lives(&linux.pin(&netns)).unwrap_or_default(),
                netns,
            })
            .collect();
        let on_host = lives("/proc/thread-self/ns/net".as_ref()).unwrap_or_default();
        Ok(Self { nsctl, linux, households, on_host, unseen: census.unseen, planned })
    }

    pub(super) fn checks(&self) -> Vec<Check> {
        let mut checks = self.drift();
        checks.extend(rules::checks(self));
        checks.extend(links::checks(self));
        // Where nothing is, nothing can be wrong, and nothing is well.
        if self.planned.observed.fabric.is_some() {
            checks.extend(self.forwarding());
            checks.extend(self.conntrack());
            checks.extend(listeners::checks(self));
            checks.extend(occupants::checks(self));
            checks.extend(self.unseen());
        }
        checks
    }

    /// The namespace of a place, where it is there.
    pub(super) fn namespace(&self, place: &Place) -> Option<&Namespace> {
        self.planned.observed.namespaces.get(&place.netns(&self.planned.desired.network)?)
    }

    fn unseen(&self) -> Option<Check> {
        let number = match self.unseen {
            0 => return None,
            1 => "1 process".to_owned(),
            n => format!("{n} processes"),
        };
        let seen = format!("where {number} of other users live cannot be seen");
        Some(Check::warn("processes", seen, "run it as root of the machine, with CAP_SYS_PTRACE"))
    }

    fn drift(&self) -> Vec<Check> {
        if self.planned.observed.fabric.is_none() {
            return vec![Check::warn("drift", "the policy is not applied", "`nsctl apply`")];
        }
        let Ok(extra) = self.nsctl.extra(&self.planned) else { return Vec::new() };
        let drift = drift::drift(&self.planned, &extra);
        let told = drift.iter().take(SHOWN).map(|one| {
            let check = if is_grave(one) { Check::fail } else { Check::warn };
            check("drift", one.to_string(), one.next().replace("repaired by ", ""))
        });
        let mut told: Vec<Check> = told.collect();
        let more = drift.len().saturating_sub(SHOWN);
        if more > 0 {
            told.push(Check::fail(
                "drift",
                format!("and {}", count(more, "more difference")),
                "`nsctl drift` has them all",
            ));
        }
        super::or_ok(told, "drift", "none: the kernel has what the policy says")
    }

    /// Each knob by which the host and the gateway forward, and the fabric does not.
    fn forwarding(&self) -> Vec<Check> {
        let (desired, observed) = (&self.planned.desired, &self.planned.observed);
        let name = |path: &str| path.replace('/', ".");
        let mut found = Vec::new();
        for (path, value) in &desired.sysctls {
            let is = observed.host.sysctls.get(path);
            if is != Some(value) {
                let is = is.map_or("not there", String::as_str);
                let so = if path.ends_with("/forwarding") { ": nothing comes out that way" } else { "" };
                let seen = format!("{} is {is} and ought to be {value}{so}", name(path));
                found.push(Check::fail("forwarding", seen, "`nsctl apply`; then find who sets it back").at("host"));
            }
        }
        if found.is_empty() && !desired.sysctls.is_empty() {
            let all: Vec<String> =
                desired.sysctls.iter().map(|(path, value)| format!("{} = {value}", name(path))).collect();
            return vec![Check::ok("forwarding", all.join(", ")).at("host")];
        }
        let everybody = Sysctl::ip_forward().read().unwrap_or_default();
        super::or_ok(
            found,
            "forwarding",
            format!("nobody goes out, so nothing of it is ours; net.ipv4.ip_forward = {everybody}"),
        )
    }

    /// How full the tables of connections are: who fills one stops everybody in it.
    fn conntrack(&self) -> Vec<Check> {
        let mut found = Vec::new();
        let mut fullest = (0, String::new());
        let read = || {
            let number = |knob: &str| Sysctl::at(&format!("net/netfilter/{knob}")).read().ok()?.parse::<u64>().ok();
            Ok(number("nf_conntrack_count").zip(number("nf_conntrack_max")))
        };
        let inside = self.households.iter().map(|home| (home.place.clone(), self.linux.inside(&home.netns, read).ok()));
        let mut seen = 0;
        for (place, counted) in inside.chain([("host".to_owned(), read().map_err(drop::<std::io::Error>).ok())]) {
            let Some((count, most)) = counted.flatten().filter(|(_, most)| *most > 0) else { continue };
            seen += 1;
            let hundredths = count.saturating_mul(100) / most;
            let text = format!("{count} of {most} connections are tracked in {place}");
            let next = "find who opens them (`conntrack -L` in there), give that service `limits`, or raise \
                        net.netfilter.nf_conntrack_max on the host";
            match hundredths {
                full if full >= FULL[1] => found.push(Check::fail("conntrack", text.clone(), next).at(place)),
                full if full >= FULL[0] => found.push(Check::warn("conntrack", text.clone(), next).at(place)),
                _ => {}
            }
            if count >= fullest.0 {
                fullest = (count, text);
            }
        }
        if seen == 0 {
            return vec![Check::warn(
                "conntrack",
                "how full the tables of connections are cannot be read",
                "look at it on the host: `sysctl net.netfilter`",
            )];
        }
        super::or_ok(found, "conntrack", format!("there is room in every namespace; the fullest: {}", fullest.1))
    }
}
