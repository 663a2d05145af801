//! A class of packets: one set of numbers for each thing that a rule can ask of a packet.
//!
//! What a rule can ask is a [`Var`]: bytes of the frame, lengths, and what the kernel knows beside it. They are taken to
//! be independent of each other, so a class may also hold packets that nobody can build; it never lacks one that
//! somebody can.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use super::numbers::Numbers;

/// Which headers a frame has.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Ip {
    /// EtherType 0x0800.
    V4,
    /// EtherType 0x86dd.
    V6,
    /// Any other EtherType.
    Neither,
}

impl Ip {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Bytes of the shortest header.
    pub(super) fn header(self) -> u128 {
        if self == Self::V4 { 20 } else { 40 }
    }

    pub(super) fn icmp(self) -> u128 {
        if self == Self::V4 { 1 } else { 58 }
    }
}

/// Something that a rule can ask of a packet.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(usize)]
pub(super) enum Var {
    /// Destination address.
    Daddr,
    /// Source address.
    Saddr,
    /// Transport protocol.
    Proto,
    /// What connection tracking says, as a [`Ct`].
    Ct,
    /// Bytes 2 and 3 of the transport header.
    Dport,
    /// Bytes 0 and 1 of the transport header: the port, or type and code of ICMP.
    Sport,
    /// Byte 13 of the transport header.
    Flags,
    /// Bytes that can be read from the transport header on.
    Len,
    /// Byte 8 of the transport header: version and length of the header that an ICMP error embeds.
    EmbVersion,
    /// Its protocol.
    EmbProto,
    /// Its source.
    EmbSaddr,
    /// Its destination.
    EmbDaddr,
    /// Bytes 0 and 1 behind it.
    EmbSport,
    /// Bytes 2 and 3 behind it.
    EmbDport,
    /// IPv4: the field with flags and fragment offset; IPv6: that of the fragment header.
    Frag,
    /// Whether there is an IPv6 fragment header.
    FragHeader,
    /// Whether there is an IPv6 routing header.
    RtHeader,
    /// Whether the kernel makes sense of the network header, so that there is a transport header.
    Sense,
    /// Bytes that can be read from the network header on.
    NetLen,
    /// The EtherType, below a tag.
    Ether,
    /// The type in the link header: that of a tag, where there is one.
    Link,
    /// Whether every `limit` is exhausted.
    Exhausted,
    /// Whether every `ct count` is over.
    Crowded,
}

/// How many there are.
pub(super) const VARS: usize = 23;

const ALL: [Var; VARS] = [
    Var::Daddr,
    Var::Saddr,
    Var::Proto,
    Var::Ct,
    Var::Dport,
    Var::Sport,
    Var::Flags,
    Var::Len,
    Var::EmbVersion,
    Var::EmbProto,
    Var::EmbSaddr,
    Var::EmbDaddr,
    Var::EmbSport,
    Var::EmbDport,
    Var::Frag,
    Var::FragHeader,
    Var::RtHeader,
    Var::Sense,
    Var::NetLen,
    Var::Ether,
    Var::Link,
    Var::Exhausted,
    Var::Crowded,
];

/// What connection tracking can say of a packet.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub(super) enum Ct {
    Invalid,
    New,
    EstablishedThere,
    EstablishedBack,
    RelatedThere,
    RelatedBack,
    Untracked,
}

impl Ct {
    pub(super) const ALL: [Self; 7] = [
        Self::Invalid,
        Self::New,
        Self::EstablishedThere,
        Self::EstablishedBack,
        Self::RelatedThere,
        Self::RelatedBack,
        Self::Untracked,
    ];

    pub(super) fn set(states: &[Self]) -> Numbers {
        Numbers::each(states.iter().map(|state| *state as u128))
    }

    /// The bit of `ct state`.
    pub(super) fn state(self) -> u32 {
        match self {
            Self::Invalid => 1,
            Self::EstablishedThere | Self::EstablishedBack => 2,
            Self::RelatedThere | Self::RelatedBack => 4,
            Self::New => 8,
            Self::Untracked => 64,
        }
    }

    /// `ct direction`, where there is a connection.
    pub(super) fn direction(self) -> Option<u8> {
        match self {
            Self::New | Self::EstablishedThere | Self::RelatedThere => Some(0),
            Self::EstablishedBack | Self::RelatedBack => Some(1),
            Self::Invalid | Self::Untracked => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::New => "new",
            Self::EstablishedThere => "established (as the first packet)",
            Self::EstablishedBack => "established (reply)",
            Self::RelatedThere => "related (as the first packet)",
            Self::RelatedBack => "related (reply)",
            Self::Untracked => "untracked",
        }
    }
}

impl Var {
    pub(super) const ALL: [Self; VARS] = ALL;

    /// Bits of the number; of [`Var::Ct`] those that are needed for it.
    pub(super) fn bits(self, ip: Ip) -> u32 {
        match self {
            Self::Daddr | Self::Saddr | Self::EmbSaddr | Self::EmbDaddr => {
                if ip == Ip::V4 {
                    32
                } else {
                    128
                }
            }
            Self::Proto | Self::Flags | Self::EmbVersion | Self::EmbProto => 8,
            Self::FragHeader | Self::RtHeader | Self::Sense | Self::Exhausted | Self::Crowded => 1,
            Self::Ct => 3,
            _ => 16,
        }
    }

    /// Every number it can be.
    pub(super) fn whole(self, ip: Ip) -> (u128, u128) {
        match (self, self.bits(ip)) {
            (Self::Ct, _) => (0, Ct::ALL.len() as u128 - 1),
            (_, 128) => (0, u128::MAX),
            (_, bits) => (0, (1 << bits) - 1),
        }
    }
}

/// A class of packets.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Class {
    ip: Ip,
    /// `None` where it can be any number. Shared, as most copies are only looked at.
    sets: Rc<[Option<Numbers>; VARS]>,
}

impl Class {
    /// Every frame with these headers, and more: see [`Class::frames`].
    pub(super) fn every(ip: Ip) -> Self {
        let mut class = Self { ip, sets: Rc::default() };
        class.put(
            Var::Ether,
            Some(match ip {
                Ip::V4 => Numbers::one(0x0800),
                Ip::V6 => Numbers::one(0x86dd),
                Ip::Neither => Numbers::range(0, 0xffff).without(&Numbers::each([0x0800, 0x86dd])),
            }),
        );
        class
    }

    /// Every frame, in classes that do not overlap. In IPv4 there are no extension headers, and without a fragment
    /// header the field of one is 0.
    pub(super) fn frames() -> Vec<Self> {
        let none = Numbers::one(0);
        let plain = |ip| Self::every(ip).with(Var::FragHeader, &none).with(Var::RtHeader, &none);
        let unparted = Self::every(Ip::V6).with(Var::FragHeader, &none).with(Var::Frag, &none);
        let parted = Self::every(Ip::V6).with(Var::FragHeader, &Numbers::one(1));
        vec![plain(Ip::V4), unparted, parted, plain(Ip::Neither)]
    }

    /// Every datagram that an IP stack takes: put together from its parts, with a header that is all there.
    pub(super) fn datagrams() -> Vec<Self> {
        let frames = Self::frames().into_iter().filter(|class| class.ip != Ip::Neither);
        let whole = frames.map(|class| {
            // An IPv6 fragment header may stay that says "all of it" (RFC 6946).
            let more_or_offset = if class.ip == Ip::V4 { 0x3fff } else { 0xfff9 };
            let parts = Numbers::masked(16, more_or_offset, 0).expect("few ranges");
            let long = Numbers::range(class.ip.header(), u128::MAX);
            let class = class.with(Var::Frag, &parts).with(Var::NetLen, &long);
            // Of IPv6 the first header is asked alone: those behind it may lead nowhere.
            if class.ip == Ip::V4 { class.with(Var::Sense, &Numbers::one(1)) } else { class }
        });
        whole.collect()
    }

    pub(super) fn ip(&self) -> Ip {
        self.ip
    }

    /// What `var` can be.
    pub(super) fn of(&self, var: Var) -> Numbers {
        let whole = || {
            let (lo, hi) = var.whole(self.ip);
            Numbers::range(lo, hi)
        };
        self.sets[var as usize].clone().unwrap_or_else(whole)
    }

    /// The set of `var`, where it is not every number.
    pub(super) fn narrow(&self, var: Var) -> Option<&Numbers> {
        self.sets[var as usize].as_ref()
    }

    /// The part in which `var` is one of `numbers`, and the rest.
    pub(super) fn split(&self, var: Var, numbers: &Numbers) -> (Option<Self>, Option<Self>) {
        let all = self.of(var);
        if all.is_within(numbers) {
            return (Some(self.clone()), None);
        }
        let inside = all.and(numbers);
        if inside.is_empty() {
            return (None, Some(self.clone()));
        }
        let outside = all.without(numbers);
        (Some(self.set(var, inside)), Some(self.set(var, outside)))
    }

    /// The part in which `var` is one of `numbers`.
    pub(super) fn narrowed(&self, var: Var, numbers: &Numbers) -> Option<Self> {
        let Some(all) = self.narrow(var) else {
            let (lo, hi) = var.whole(self.ip);
            let all = Numbers::range(lo, hi);
            if all.is_within(numbers) {
                return Some(self.clone());
            }
            let inside = if numbers.is_within(&all) { numbers.clone() } else { numbers.and(&all) };
            return (!inside.is_empty()).then(|| self.set(var, inside));
        };
        let inside = all.and(numbers);
        (!inside.is_empty()).then(|| self.set(var, inside))
    }

    fn set(&self, var: Var, numbers: Numbers) -> Self {
        let mut class = self.clone();
        class.put(var, Some(numbers));
        class
    }

    fn put(&mut self, var: Var, numbers: Option<Numbers>) {
        Rc::make_mut(&mut self.sets)[var as usize] = numbers;
    }

    /// For whoever describes a class: the same, with `var` among `numbers`.
    ///
    /// # Panics
    ///
    /// When no number is left.
    #[must_use]
    pub(super) fn with(&self, var: Var, numbers: &Numbers) -> Self {
        self.narrowed(var, numbers).expect("a class that is described has packets")
    }

    /// The same, whatever `var` is.
    #[must_use]
    pub(super) fn any(&self, var: Var) -> Self {
        let mut class = self.clone();
        class.put(var, None);
        class
    }

    pub(super) fn meets(&self, other: &Self) -> bool {
        self.ip == other.ip
            && self.sets.iter().zip(other.sets.iter()).all(|sets| match sets {
                (Some(a), Some(b)) => a.meets(b),
                _ => true,
            })
    }

    /// What both hold.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        if self.ip != other.ip {
            return None;
        }
        let narrow = Var::ALL.into_iter().filter_map(|var| Some((var, other.narrow(var)?)));
        narrow.into_iter().try_fold(self.clone(), |class, (var, numbers)| class.narrowed(var, numbers))
    }

    /// What this one holds and the other does not, in parts that do not overlap.
    pub(super) fn without(&self, other: &Self) -> Vec<Self> {
        if !self.meets(other) {
            return vec![self.clone()];
        }
        let mut rest = Vec::new();
        let mut core = self.clone();
        for (var, numbers) in Var::ALL.into_iter().filter_map(|var| Some((var, other.narrow(var)?))) {
            let (inside, outside) = core.split(var, numbers);
            rest.extend(outside);
            let Some(inside) = inside else { break };
            core = inside;
        }
        rest
    }

    /// Whether a packet with these numbers is one of them.
    #[cfg(test)]
    pub(super) fn holds(&self, ip: Ip, point: &[u128; VARS]) -> bool {
        let inside = |var: Var| self.narrow(var).is_none_or(|numbers| numbers.holds(point[var as usize]));
        self.ip == ip && Var::ALL.into_iter().all(inside)
    }
}

/// How many packets, exactly.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Count([u64; Count::LIMBS]);

impl Count {
    /// 1024 bits; every frame has less than 800.
    const LIMBS: usize = 16;

    /// How many there are in `class`.
    pub(super) fn of(class: &Class) -> Self {
        let mut count = Self::default();
        count.0[0] = 1;
        let mut free_bits = 0;
        for var in Var::ALL {
            match class.narrow(var) {
                // Two to the power of its bits: done at the end in one.
                None if var != Var::Ct => free_bits += var.bits(class.ip) as usize,
                _ => count = count.times(class.of(var).ranges()),
            }
        }
        count.shifted(free_bits)
    }

    fn times(&self, ranges: &[(u128, u128)]) -> Self {
        // The sum of the lengths less one each, and how many of them: neither overflows, as the ranges touch nowhere.
        let less = ranges.iter().fold(0u128, |sum, (lo, hi)| sum + (hi - lo));
        let (Some(factor), false) = (less.checked_add(ranges.len() as u128), ranges.is_empty()) else {
            return if ranges.is_empty() { Self::default() } else { self.shifted(128) };
        };
        let low = self.times_limb(factor as u64);
        let high = (factor >> 64) as u64;
        if high == 0 { low } else { low.plus(&self.times_limb(high).shifted(64)) }
    }

    fn times_limb(&self, factor: u64) -> Self {
        let mut carry = 0u128;
        Self(self.0.map(|limb| {
            let product = u128::from(limb) * u128::from(factor) + carry;
            carry = product >> 64;
            product as u64
        }))
    }

    /// The sum.
    pub(super) fn plus(&self, other: &Self) -> Self {
        let mut carry = false;
        let mut sum = Self::default();
        for (n, to) in sum.0.iter_mut().enumerate() {
            let (half, over) = self.0[n].overflowing_add(other.0[n]);
            let (whole, more) = half.overflowing_add(u64::from(carry));
            (*to, carry) = (whole, over || more);
        }
        sum
    }

    fn shifted(&self, bits: usize) -> Self {
        let (limbs, bits) = (bits / 64, bits % 64);
        let at = |n: Option<usize>| n.map_or(0, |n| self.0[n]);
        let mut shifted = Self::default();
        for (n, to) in shifted.0.iter_mut().enumerate().skip(limbs) {
            let (here, below) = (at(Some(n - limbs)), at((n - limbs).checked_sub(1)));
            *to = if bits == 0 { here } else { here << bits | below >> (64 - bits) };
        }
        shifted
    }
}

impl fmt::Display for Class {
    /// In words: what narrows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.ip {
            Ip::V4 => "IPv4",
            Ip::V6 => "IPv6",
            Ip::Neither => "no IP",
        })?;
        for var in Var::ALL {
            if let Some(numbers) = self.narrow(var).filter(|numbers| !is_usual(var, self.ip, numbers)) {
                write!(f, ", {} ", name(var))?;
                list(f, numbers, |number| text(var, self.ip, number))?;
            }
        }
        Ok(())
    }
}

/// What goes without saying.
fn is_usual(var: Var, ip: Ip, numbers: &Numbers) -> bool {
    match var {
        Var::Ether => ip != Ip::Neither,
        Var::Frag | Var::FragHeader | Var::RtHeader => numbers.holds(0),
        Var::Len => numbers.holds(64),
        Var::Link => numbers.holds(0x0800),
        Var::NetLen => numbers.holds(1500),
        Var::Sense => numbers.holds(1),
        _ => false,
    }
}

fn list(f: &mut fmt::Formatter<'_>, numbers: &Numbers, text: impl Fn(u128) -> String) -> fmt::Result {
    const SHOWN: usize = 4;
    let ranges = numbers.ranges();
    for (n, (lo, hi)) in ranges.iter().take(SHOWN).enumerate() {
        let comma = if n == 0 { "" } else { "|" };
        if lo == hi {
            write!(f, "{comma}{}", text(*lo))?;
        } else {
            write!(f, "{comma}{}..{}", text(*lo), text(*hi))?;
        }
    }
    if ranges.len() > SHOWN { write!(f, "|... ({} ranges)", ranges.len()) } else { Ok(()) }
}

fn name(var: Var) -> &'static str {
    match var {
        Var::Daddr => "to",
        Var::Saddr => "from",
        Var::Proto => "protocol",
        Var::Ct => "connection",
        Var::Dport => "dport",
        Var::Sport => "sport or type",
        Var::Flags => "flags",
        Var::Len => "transport bytes",
        Var::EmbVersion => "embedded version",
        Var::EmbProto => "embedded protocol",
        Var::EmbSaddr => "embedded from",
        Var::EmbDaddr => "embedded to",
        Var::EmbSport => "embedded sport",
        Var::EmbDport => "embedded dport",
        Var::Frag => "fragment field",
        Var::FragHeader => "fragment header",
        Var::RtHeader => "routing header",
        Var::Sense => "well-formed",
        Var::NetLen => "network bytes",
        Var::Ether => "ethertype",
        Var::Link => "link type",
        Var::Exhausted => "limit exhausted",
        Var::Crowded => "connections over",
    }
}

fn text(var: Var, ip: Ip, number: u128) -> String {
    match var {
        Var::Daddr | Var::Saddr | Var::EmbSaddr | Var::EmbDaddr => match (ip, u32::try_from(number)) {
            (Ip::V4, Ok(number)) => Ipv4Addr::from(number).to_string(),
            _ => Ipv6Addr::from(number).to_string(),
        },
        Var::Ct => Ct::ALL.get(number as usize).map_or("?", |ct| ct.word()).to_owned(),
        Var::Proto | Var::EmbProto => match number {
            1 => "icmp".into(),
            6 => "tcp".into(),
            17 => "udp".into(),
            58 => "icmpv6".into(),
            _ => number.to_string(),
        },
        Var::Frag | Var::Flags | Var::EmbVersion | Var::Ether | Var::Link => format!("{number:#x}"),
        Var::FragHeader | Var::RtHeader | Var::Sense | Var::Exhausted | Var::Crowded => {
            if number == 0 { "no" } else { "yes" }.to_owned()
        }
        _ => number.to_string(),
    }
}
