//! Which open connections end with a right that is taken away.
//!
//! A lock accepts what is established, so an entry of conntrack would outlive its edge. It is deleted by its exact
//! tuple, in every namespace that holds one; a table is never flushed, because other connections live in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ruleset::delta::{Delta, Op};
use crate::ruleset::{Base, Expr, Field, Key, Ruleset, Set};
use crate::topology::Place;

/// The first packet of a connection, as conntrack remembers it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Opening {
    /// Source.
    pub from: IpAddr,
    /// Destination, before any translation.
    pub to: IpAddr,
    /// Protocol number.
    pub protocol: u8,
    /// Destination port; 0 for protocols without.
    pub port: u16,
    /// Who answers, and from which port: destination and port behind any translation.
    pub server: (IpAddr, u16),
}

/// A right in one lock, as a shape of connections.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Right {
    from: Option<(IpAddr, IpAddr)>,
    to: Option<(IpAddr, IpAddr)>,
    protocol: Option<u8>,
    ports: Option<(u16, u16)>,
    /// Destinations to which it does not extend.
    except: Vec<(IpAddr, IpAddr)>,
    /// Destination and ports are those behind a translation.
    translated: bool,
}

/// The connections to end in one namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cuts {
    gone: Vec<Right>,
    kept: Vec<Right>,
}

impl Cuts {
    /// The connections that `delta` at `place` takes the right from that they have in `old`, the lock as it is, and to
    /// which `new`, the lock as it will be, gives no other.
    pub fn of(place: &Place, delta: &Delta, old: &Ruleset, new: &Ruleset) -> Self {
        let gone = delta.ops.iter().filter_map(|op| match op {
            Op::DeleteElements(elements) => Some((elements.set.as_str(), &elements.of)),
            _ => None,
        });
        let gone: Vec<Right> = gone.flat_map(|(name, set)| rights(place, name, set, old)).collect();
        if gone.is_empty() {
            return Self::default();
        }
        let sets = new.tables.values().flat_map(|table| &table.sets);
        Self { gone, kept: sets.flat_map(|(name, set)| rights(place, name, set, new)).collect() }
    }

    /// Whether there is nothing to cut.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty()
    }

    /// Whether this connection has lost its right.
    pub fn hits(&self, opening: &Opening) -> bool {
        let holds = |right: &Right| right.covers(opening);
        self.gone.iter().any(holds) && !self.kept.iter().any(holds)
    }
}

impl Right {
    fn covers(&self, opening: &Opening) -> bool {
        let within = |range: &Option<(IpAddr, IpAddr)>, address: IpAddr| {
            range.is_none_or(|(lo, hi)| lo.is_ipv4() == address.is_ipv4() && (lo..=hi).contains(&address))
        };
        let (to, port) = if self.translated { opening.server } else { (opening.to, opening.port) };
        within(&self.from, opening.from)
            && within(&self.to, to)
            && self.protocol.is_none_or(|protocol| protocol == opening.protocol)
            && self.ports.is_none_or(|(lo, hi)| (lo..=hi).contains(&port))
            && !self.except.iter().any(|range| within(&Some(*range), opening.to))
    }
}

/// What the elements of a set allow; nothing for sets that give no right.
fn rights(place: &Place, name: &str, set: &Set, lock: &Ruleset) -> Vec<Right> {
    let stem = name.trim_end_matches(['4', '6']);
    let connection = matches!(stem, "in" | "in_ranges" | "in_echo" | "out" | "out_ranges" | "out_echo");
    let outside = matches!(stem, "direct" | "direct_ports" | "lan" | "reach" | "resolvers");
    // On the host, `lan` is no right of the host's own connections.
    let enters = stem == "exposed";
    let gives = connection || enters || (outside && *place != Place::Host);
    if !gives {
        return Vec::new();
    }
    let from_first = stem.starts_with("in") || enters || *place == Place::Uplink;
    let echo = stem.ends_with("_echo");
    let own = set.elements.keys().map(|key| right(set, key, from_first, echo));
    match stem {
        // A question is remembered as it was asked, before its translation to what the set has.
        "resolvers" => {
            let asked = |right: Right| translated(lock).map(move |to| Right { to: Some((to, to)), ..right.clone() });
            own.flat_map(asked).map(|right| Right { ports: Some((53, 53)), ..right }).collect()
        }
        "direct" => own.map(|right| public(right, name, lock)).collect(),
        "exposed" => own.map(|right| Right { translated: true, ..right }).collect(),
        _ => own.collect(),
    }
}

/// The destinations that the lock translates.
fn translated(lock: &Ruleset) -> impl Iterator<Item = IpAddr> {
    let chains = lock.tables.values().flat_map(|table| table.chains.values());
    let rules = chains.flat_map(|chain| &chain.rules).map(|rule| &rule.0[..]);
    let rules = rules.filter(|rule| rule.iter().any(|expr| matches!(expr, Expr::Dnat { .. })));
    rules.flat_map(|rule| rule.windows(2)).filter_map(|pair| match pair {
        [Expr::Payload { base: Base::Network, .. }, Expr::Cmp { equal: true, data, .. }] => address(data),
        _ => None,
    })
}

/// `direct` does not mean what the lock takes out of it.
fn public(right: Right, name: &str, lock: &Ruleset) -> Right {
    let (lo, hi): (IpAddr, IpAddr) = match name.ends_with('4') {
        true => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into()),
        false => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from(u128::MAX).into()),
    };
    let sets = lock.tables.values().flat_map(|table| &table.sets);
    let excluded = sets.filter(|(set, _)| matches!(set.trim_end_matches(['4', '6']), "not_direct" | "private"));
    let ranges = excluded
        .flat_map(|(_, set)| set.elements.keys())
        .filter_map(|key| address(&key.from).zip(address(key.to.as_ref().unwrap_or(&key.from))));
    Right { to: Some((lo, hi)), except: ranges.collect(), ..right }
}

fn right(set: &Set, key: &Key, from_first: bool, echo: bool) -> Right {
    let mut right = Right::default();
    let mut at = 0;
    let mut next_is_from = from_first;
    for field in &set.key {
        let side = |bytes: &[u8]| bytes.get(at..at + field.width()).map(<[u8]>::to_vec).unwrap_or_default();
        let (lo, hi) = (side(&key.from), side(key.to.as_ref().unwrap_or(&key.from)));
        match field {
            Field::Ipv4Addr | Field::Ipv6Addr => {
                let range = address(&lo).zip(address(&hi));
                *(if next_is_from { &mut right.from } else { &mut right.to }) = range;
                if echo {
                    right.protocol = Some(if *field == Field::Ipv4Addr { 1 } else { 58 });
                }
                next_is_from = false;
            }
            Field::InetProto => right.protocol = lo.first().copied().filter(|_| lo == hi),
            Field::InetService => right.ports = port(&lo).zip(port(&hi)),
            Field::IcmpType | Field::Icmpv6Type | Field::IfaceIndex => {}
        }
        at += field.padded_len();
    }
    right
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}

fn port(bytes: &[u8]) -> Option<u16> {
    <[u8; 2]>::try_from(bytes).ok().map(u16::from_be_bytes)
}
