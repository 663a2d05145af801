//! Values in nft(8)'s words: addresses, protocols, types, flags.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::ruleset::{Field, Key, Set};

/// Link names by interface index.
pub(super) type Links = BTreeMap<u32, String>;

/// One field of a key, or an answer. What is too short to be one is written in hexadecimal.
pub(super) fn field(of: Field, bytes: &[u8], links: &Links) -> String {
    match (of, bytes) {
        (Field::IfaceIndex, [a, b, c, d, ..]) => link(u32::from_ne_bytes([*a, *b, *c, *d]), links),
        (Field::Ipv4Addr, [a, b, c, d, ..]) => Ipv4Addr::new(*a, *b, *c, *d).to_string(),
        (Field::Ipv6Addr, bytes) if bytes.len() >= 16 => address6(bytes),
        (Field::InetProto, [number, ..]) => protocol(*number),
        (Field::InetService, [high, low, ..]) => u16::from_be_bytes([*high, *low]).to_string(),
        (Field::IcmpType, [number, ..]) => named(&ICMP_TYPE, (*number).into()),
        (Field::Icmpv6Type, [number, ..]) => named(&ICMP6_TYPE, (*number).into()),
        (_, bytes) => hex(bytes),
    }
}

/// A whole key, with `-` or `/` in the fields that are ranges.
pub(super) fn key(set: &Set, key: &Key, links: &Links) -> String {
    if key.from.is_empty() {
        return "*".into();
    }
    if set.key.is_empty() {
        return hex(&key.from);
    }
    let mut fields = Vec::new();
    let mut at = 0;
    for of in &set.key {
        let end = at + of.padded_len();
        let part = |bytes: &'_ [u8]| bytes.get(at..end).map(<[u8]>::to_vec).unwrap_or_default();
        let from = part(&key.from);
        let to = key.to.as_deref().map_or_else(|| from.clone(), part);
        fields.push(span(*of, &from, &to, links));
        at = end;
    }
    fields.join(" . ")
}

/// A range of one field: a single value, a prefix or two ends.
fn span(of: Field, from: &[u8], to: &[u8], links: &Links) -> String {
    if from == to {
        return field(of, from, links);
    }
    let prefix = matches!(of, Field::Ipv4Addr | Field::Ipv6Addr).then(|| prefix_len(from, to)).flatten();
    match prefix {
        Some(len) => format!("{}/{len}", field(of, from, links)),
        None => format!("{}-{}", field(of, from, links), field(of, to, links)),
    }
}

/// The length of the prefix that is exactly this range.
fn prefix_len(from: &[u8], to: &[u8]) -> Option<usize> {
    let differs: Vec<u8> = from.iter().zip(to).map(|(a, b)| a ^ b).collect();
    let bit = |bytes: &[u8], n: usize| bytes[n / 8] & (0x80 >> (n % 8)) != 0;
    let bits = differs.len() * 8;
    let len = (0..bits).find(|n| bit(&differs, *n))?;
    (len..bits).all(|n| bit(&differs, n) && !bit(from, n)).then_some(len)
}

/// The length of the prefix that this mask leaves, when it is one.
pub(super) fn mask_len(mask: &[u8]) -> Option<usize> {
    let ones = mask.iter().map(|byte| byte.leading_ones() as usize).take_while(|n| *n > 0);
    let mut len = 0;
    for n in ones {
        len += n;
        if n < 8 {
            break;
        }
    }
    let total: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    (total as usize == len).then_some(len)
}

/// An interface by its index: its name when it has one.
pub(super) fn link(index: u32, links: &Links) -> String {
    match links.get(&index) {
        Some(name) => format!("\"{name}\""),
        None if index == 1 => "\"lo\"".into(),
        None => index.to_string(),
    }
}

/// An interface by its name; without the NUL at its end, every name that begins so.
pub(super) fn link_name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0);
    let name = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned();
    let any = if end.is_none() && bytes.len() < 16 { "*" } else { "" };
    format!("\"{name}{any}\"")
}

pub(super) fn address6(bytes: &[u8]) -> String {
    let octets: [u8; 16] = bytes.first_chunk().copied().unwrap_or_default();
    Ipv6Addr::from(octets).to_string()
}

pub(super) fn protocol(number: u8) -> String {
    named(&PROTOCOL, number.into())
}

/// A big-endian number in hexadecimal without leading zeros.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let digits = digits.trim_start_matches('0');
    format!("0x{}", if digits.is_empty() { "0" } else { digits })
}

/// A big-endian number of at most eight bytes in decimal.
pub(super) fn decimal(bytes: &[u8]) -> String {
    bytes.iter().take(8).fold(0u64, |number, byte| (number << 8) | u64::from(*byte)).to_string()
}

/// The names of the bits that are set, in rising order; those without a name as one number.
pub(super) fn flags(names: &[(u32, &str)], bits: u32) -> String {
    let mut rest = bits;
    let mut found = Vec::new();
    for (bit, name) in names {
        if rest & bit != 0 {
            rest &= !bit;
            found.push((*name).to_owned());
        }
    }
    if rest != 0 || bits == 0 {
        found.push(format!("0x{rest:x}"));
    }
    found.join(",")
}

/// The name of a number, or the number.
pub(super) fn named(names: &[(u32, &str)], number: u32) -> String {
    names.iter().find(|(n, _)| *n == number).map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

/// `1d2h3m4s`, without the parts that are zero.
pub(super) fn duration(seconds: u32) -> String {
    let parts = [(seconds / 86_400, 'd'), (seconds / 3600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect()
}

const PROTOCOL: [(u32, &str); 13] = [
    (1, "icmp"),
    (2, "igmp"),
    (6, "tcp"),
    (17, "udp"),
    (33, "dccp"),
    (43, "ipv6-route"),
    (44, "ipv6-frag"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "ipv6-icmp"),
    (132, "sctp"),
    (136, "udplite"),
];

const ICMP_TYPE: [(u32, &str); 15] = [
    (0, "echo-reply"),
    (3, "destination-unreachable"),
    (4, "source-quench"),
    (5, "redirect"),
    (8, "echo-request"),
    (9, "router-advertisement"),
    (10, "router-solicitation"),
    (11, "time-exceeded"),
    (12, "parameter-problem"),
    (13, "timestamp-request"),
    (14, "timestamp-reply"),
    (15, "info-request"),
    (16, "info-reply"),
    (17, "address-mask-request"),
    (18, "address-mask-reply"),
];

const ICMP6_TYPE: [(u32, &str); 18] = [
    (1, "destination-unreachable"),
    (2, "packet-too-big"),
    (3, "time-exceeded"),
    (4, "parameter-problem"),
    (128, "echo-request"),
    (129, "echo-reply"),
    (130, "mld-listener-query"),
    (131, "mld-listener-report"),
    (132, "mld-listener-done"),
    (133, "nd-router-solicit"),
    (134, "nd-router-advert"),
    (135, "nd-neighbor-solicit"),
    (136, "nd-neighbor-advert"),
    (137, "nd-redirect"),
    (138, "router-renumbering"),
    (141, "ind-neighbor-solicit"),
    (142, "ind-neighbor-advert"),
    (143, "mld2-listener-report"),
];

pub(super) const ICMP_CODE: [(u32, &str); 8] = [
    (0, "net-unreachable"),
    (1, "host-unreachable"),
    (2, "prot-unreachable"),
    (3, "port-unreachable"),
    (4, "frag-needed"),
    (9, "net-prohibited"),
    (10, "host-prohibited"),
    (13, "admin-prohibited"),
];

pub(super) const ICMP6_CODE: [(u32, &str); 6] = [
    (0, "no-route"),
    (1, "admin-prohibited"),
    (3, "addr-unreachable"),
    (4, "port-unreachable"),
    (5, "policy-fail"),
    (6, "reject-route"),
];

pub(super) const ADDRESS_TYPE: [(u32, &str); 9] = [
    (0, "unspec"),
    (1, "unicast"),
    (2, "local"),
    (3, "broadcast"),
    (4, "anycast"),
    (5, "multicast"),
    (6, "blackhole"),
    (7, "unreachable"),
    (8, "prohibit"),
];

pub(super) const TCP_FLAG: [(u32, &str); 8] =
    [(1, "fin"), (2, "syn"), (4, "rst"), (8, "psh"), (16, "ack"), (32, "urg"), (64, "ecn"), (128, "cwr")];

pub(super) const CT_STATE: [(u32, &str); 5] =
    [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];

pub(super) const CT_STATUS: [(u32, &str); 7] =
    [(1, "expected"), (2, "seen-reply"), (4, "assured"), (8, "confirmed"), (16, "snat"), (32, "dnat"), (512, "dying")];
