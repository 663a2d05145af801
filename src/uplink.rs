//! Whether the way out works: other people's rules on the host.
//!
//! # Invariants
//!
//! - At most one datagram a family and call, to a documentation address (RFC 5737, RFC 3849), with a hop limit that ends
//!   it at the next router; none at all where the host has no default route.
//! - Nobody else's rules are changed: what stands in the way is named, with the line that lets the leg pass.

pub(crate) mod culprit;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use netns_policy::graph::Dns;
use netns_policy::network::HostNetwork;
use netns_policy::ruleset::Family;
use netns_policy::ruleset::compile::{LEG, PASSED, host_table};
use netns_policy::topology::{Place, leg_link};

use self::culprit::Way;
use crate::kernel::datagram;
use crate::kernel::netns::Netns;
use crate::kernel::nft::NftSocket;
use crate::orchestrator::{Note, Planned};

/// Rules of somebody else that drop what the leg sends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Blocked {
    /// The chain, as `ip filter FORWARD (policy drop)`.
    pub chain: String,
    /// The line that lets it pass.
    pub remedy: String,
}

/// Enough to leave the gateway and the host, and to end at the next router.
const HOPS: u8 = 2;
const TARGET4: &str = "198.51.100.1";
const TARGET6: &str = "2001:db8::1";

/// How often, and how long apart, the counters are looked at: the kernel forwards at once unless it is very busy.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// What the operator should know of the way out, once the plan is carried out.
pub(crate) fn notes(planned: &Planned, netns_directory: &Path) -> Vec<Note> {
    let Some(netns) = planned.desired.wires.get(&Place::Uplink).and_then(|wire| wire.netns.as_deref()) else {
        return Vec::new();
    };
    let host = &planned.observed.host;
    let mut notes = Vec::new();
    if lacks_resolver(planned) {
        notes.push(Note::NoResolver);
    }
    let senders: Vec<IpAddr> = planned.addresses.leg_gateway().iter().filter(|ip| leads_out(host, *ip)).collect();
    if senders.is_empty() {
        // Who only comes in by ports of the host may be near.
        let mut services = planned.checked.graph.services();
        let goes_out = services.any(|service| !service.outbound.stays_inside() || service.dns == Dns::Direct);
        notes.extend(goes_out.then_some(Note::NoUplink));
        return notes;
    }
    // A host without a way to the IPv6 internet is nothing unusual; one that has no other is.
    if host.uplinks4.is_empty() {
        notes.push(Note::NoIpv4Uplink);
    }
    // A probe that cannot be made proves nothing.
    let stopped = stopped(planned, &netns_directory.join(netns), senders).unwrap_or_default();
    notes.extend(blocked(planned, &stopped).into_iter().map(Note::Blocked));
    notes
}

fn lacks_resolver(planned: &Planned) -> bool {
    let graph = &planned.checked.graph;
    let none = graph.network().resolvers.is_empty() && planned.observed.host.resolvers.is_empty();
    none && graph.services().any(|service| service.dns == Dns::Direct)
}

/// Whether the host has a default route in the family of `ip`.
fn leads_out(host: &HostNetwork, ip: IpAddr) -> bool {
    if ip.is_ipv4() { !host.uplinks4.is_empty() } else { !host.uplinks6.is_empty() }
}

/// The families, as nft(8) names them, in which a packet from one of the gateway's addresses does not come out of the host.
fn stopped(planned: &Planned, netns: &Path, senders: Vec<IpAddr>) -> io::Result<Vec<&'static str>> {
    let table = host_table(&planned.checked.graph);
    let from: Vec<IpAddr> = planned.addresses.leg_gateway().iter().collect();
    let before = passed(&table, &from)?;
    let mut waiting = senders.clone();
    let send = move || senders.iter().try_for_each(|from| datagram::send(LEG, *from, target(*from), HOPS));
    Netns::open(netns)?.run(send)?;
    for look in 0..LOOKS {
        let after = passed(&table, &from)?;
        waiting.retain(|ip| after.get(ip) <= before.get(ip));
        if waiting.is_empty() {
            break;
        }
        sleep(if look == 0 { Duration::ZERO } else { PAUSE });
    }
    Ok(waiting.iter().map(|ip| if ip.is_ipv4() { "ip" } else { "ip6" }).collect())
}

/// How many packets from each of these addresses got through the host. The chain has one rule for each, in this order.
fn passed(table: &str, from: &[IpAddr]) -> io::Result<BTreeMap<IpAddr, u64>> {
    let counts = NftSocket::open()?.rule_counters(Family::Inet, table, PASSED)?;
    Ok(from.iter().copied().zip(counts.iter().map(|count| count.packets)).collect())
}

fn target(from: IpAddr) -> IpAddr {
    let text = if from.is_ipv4() { TARGET4 } else { TARGET6 };
    text.parse().expect("the constants are addresses")
}

/// Who stops packets of these families.
fn blocked(planned: &Planned, stopped: &[&str]) -> Vec<Blocked> {
    if stopped.is_empty() {
        return Vec::new();
    }
    let leg = leg_link(&planned.desired.network);
    let chains = NftSocket::open().and_then(|socket| socket.chains()).unwrap_or_default();
    let legacy: BTreeSet<&str> = stopped.iter().copied().filter(|family| has_legacy_filter(family)).collect();
    culprit::find(&chains, (stopped, Way::Through), &legacy, leg.as_str())
}

/// Whether iptables-legacy(8) has a filter table for the family; `/proc/net` would be that of the process's first thread.
pub(crate) fn has_legacy_filter(family: &str) -> bool {
    let file = if family == "ip" { "ip_tables_names" } else { "ip6_tables_names" };
    let tables = std::fs::read_to_string(Path::new("/proc/thread-self/net").join(file)).unwrap_or_default();
    tables.lines().any(|table| table == "filter")
}
