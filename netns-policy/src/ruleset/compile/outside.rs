//! What `lan` and `direct` mean in addresses.
//!
//! # Invariants
//!
//! - No two ranges that come out of here for one set overlap: an interval set of the kernel takes no overlap.

use std::net::IpAddr;

use super::Source;
use super::vocabulary::{KeyBuilder, Version, interval, key};
use crate::graph::Service;
use crate::port::{Ports, Protocol};
use crate::ruleset::{Key, Set};

/// IPv4 ranges that are not public and remote: "this network", RFC 1918, CGNAT, loopback, link-local (the metadata
/// address is one), IETF assignments, multicast and reserved; and Azure's metadata address.
const PRIVATE4: [(&str, &str); 10] = [
    ("0.0.0.0", "0.255.255.255"),
    ("10.0.0.0", "10.255.255.255"),
    ("100.64.0.0", "100.127.255.255"),
    ("127.0.0.0", "127.255.255.255"),
    ("168.63.129.16", "168.63.129.16"),
    ("169.254.0.0", "169.254.255.255"),
    ("172.16.0.0", "172.31.255.255"),
    ("192.0.0.0", "192.0.0.255"),
    ("192.168.0.0", "192.168.255.255"),
    ("224.0.0.0", "255.255.255.255"),
];

/// IPv6: unspecified, loopback and mapped, NAT64 (it would reach IPv4 private ranges through the network's translator),
/// 6to4 likewise, unique local, link-local and site-local, multicast.
const PRIVATE6: [(&str, &str); 6] = [
    ("::", "0:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("64:ff9b::", "64:ff9b::ffff:ffff"),
    ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"),
    ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("fe80::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
];

/// A range of addresses, both ends included.
pub(super) type Range = (IpAddr, IpAddr);

fn private_ranges(v: Version) -> Vec<Range> {
    let texts: &[(&str, &str)] = match v {
        Version::V4 => &PRIVATE4,
        Version::V6 => &PRIVATE6,
    };
    let parse = |text: &str| text.parse::<IpAddr>().expect("the constants are addresses");
    texts.iter().map(|(from, to)| (parse(from), parse(to))).collect()
}

/// What `direct` never means, whatever the host looks like.
pub(super) fn private(v: Version) -> Set {
    ranges_set(v, private_ranges(v))
}

/// Whether an address, in network byte order, is public: none of the private ranges.
pub fn is_public(octets: &[u8]) -> bool {
    let address = match (<[u8; 4]>::try_from(octets), <[u8; 16]>::try_from(octets)) {
        (Ok(v4), _) => IpAddr::from(v4),
        (_, Ok(v6)) => IpAddr::from(v6),
        _ => return false,
    };
    !private_ranges(Version::of(address)).iter().any(|(from, to)| (from..=to).contains(&&address))
}

/// What `direct` never means on this host: private ranges, and what is on one of its links.
pub(super) fn not_direct(source: &Source, v: Version) -> Set {
    let on_link = source.host.on_link.iter().map(|prefix| (prefix.network(), prefix.broadcast()));
    let all = private_ranges(v).into_iter().chain(on_link.filter(|(from, _)| Version::of(*from) == v));
    ranges_set(v, join(all.collect()))
}

/// An interval set of these ranges, which must not overlap.
pub(super) fn ranges_set(v: Version, ranges: Vec<Range>) -> Set {
    let elements = ranges.into_iter().map(|(from, to)| (key().addrs(from, to).range_key(), None)).collect();
    Set { elements, ..interval(&[v.addr()]) }
}

/// The same addresses as ranges that do not overlap, lowest first.
pub(super) fn join(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort();
    let mut joined: Vec<Range> = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some((_, end)) if from <= *end => *end = to.max(*end),
            _ => joined.push((from, to)),
        }
    }
    joined
}

/// The ranges that an unrestricted `lan` opens to `service`.
pub(super) fn lan(source: &Source, service: &Service, v: Version) -> Vec<Range> {
    if !service.outbound.lan {
        return Vec::new();
    }
    let prefixes = source.graph.network().lan.iter();
    let ranges = prefixes.map(|prefix| (prefix.network(), prefix.broadcast()));
    join(ranges.filter(|(from, _)| Version::of(*from) == v).collect())
}

/// One range of addresses on some ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Reach {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) ports: Ports,
}

impl Reach {
    /// Ends a key with protocol and ports.
    pub(super) fn fill(&self, start: KeyBuilder) -> Key {
        start.proto(self.ports.protocol().number()).ports(self.ports.lo(), self.ports.hi()).range_key()
    }
}

/// What a restricted `lan` or `direct` opens to `service`.
pub(super) fn reach(service: &Service, v: Version) -> Vec<Reach> {
    disjoint([lan_reach(service, v), direct_reach(service, v)].concat())
}

/// `outbound.lan = ["192.168.1.20/32 tcp:5000"]`.
pub(super) fn lan_reach(service: &Service, v: Version) -> Vec<Reach> {
    let all = service.outbound.lan_only.iter().map(|(prefix, ports)| Reach {
        from: prefix.network(),
        to: prefix.broadcast(),
        ports: *ports,
    });
    disjoint(all.filter(|reach| Version::of(reach.from) == v).collect())
}

/// `outbound.direct = ["tcp:443"]`: everything between the private ranges.
pub(super) fn direct_reach(service: &Service, v: Version) -> Vec<Reach> {
    let ports = service.outbound.direct_only.iter();
    disjoint(
        ports.flat_map(|ports| public(v).into_iter().map(|(from, to)| Reach { from, to, ports: *ports })).collect(),
    )
}

/// The gaps between the private ranges.
fn public(v: Version) -> Vec<Range> {
    let ranges = private_ranges(v);
    let pairs = ranges.iter().zip(ranges.iter().skip(1));
    pairs
        .filter(|((_, end), (start, _))| number(*end) + 1 < number(*start))
        .map(|((_, end), (start, _))| (address(v, number(*end) + 1), address(v, number(*start) - 1)))
        .collect()
}

/// The same addresses and ports as pieces that do not overlap: cut at every end of a range, ports joined in each piece.
fn disjoint(all: Vec<Reach>) -> Vec<Reach> {
    [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|protocol| pieces(&all, protocol)).collect()
}

fn pieces(all: &[Reach], protocol: Protocol) -> Vec<Reach> {
    let all: Vec<&Reach> = all.iter().filter(|reach| reach.ports.protocol() == protocol).collect();
    let Some(v) = all.first().map(|reach| Version::of(reach.from)) else { return Vec::new() };
    let ends = |reach: &&Reach| [number(reach.from), number(reach.to).saturating_add(1)];
    let mut cuts: Vec<u128> = all.iter().flat_map(ends).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let spans = cuts.iter().zip(cuts.iter().skip(1));
    spans
        .flat_map(|(start, end)| {
            let within = all.iter().filter(|reach| number(reach.from) <= *start && number(reach.to) >= *start);
            let ports = join_ports(within.map(|reach| reach.ports).collect());
            ports.into_iter().map(|ports| Reach { from: address(v, *start), to: address(v, *end - 1), ports })
        })
        .collect()
}

fn join_ports(mut ports: Vec<Ports>) -> Vec<Ports> {
    ports.sort();
    let mut joined: Vec<Ports> = Vec::new();
    for next in ports {
        match joined.last_mut() {
            Some(last) if last.overlaps(&next) => {
                let hi = last.hi().max(next.hi());
                *last = Ports::new(next.protocol(), last.lo(), hi).expect("the union of two ranges is a range");
            }
            _ => joined.push(next),
        }
    }
    joined
}

pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

pub(super) fn address(v: Version, number: u128) -> IpAddr {
    match v {
        Version::V4 => IpAddr::V4(u32::try_from(number).expect("between two IPv4 addresses").into()),
        Version::V6 => IpAddr::V6(number.into()),
    }
}
