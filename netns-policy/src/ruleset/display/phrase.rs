//! The words for what a rule loads, compares and does.

use super::value::{self, Links};
use crate::ruleset::{Field, MetaKey, Verdict};

/// How the values of a property are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Group,
    Link,
    LinkName,
    Protocol,
    Nfproto,
    EtherType,
    Direction,
    Flags(&'static [(u32, &'static str)]),
    Names(&'static [(u32, &'static str)]),
    AddressType,
    Exists,
    Ipv4,
    Ipv6,
    Field(Field),
    Number,
    Raw,
}

/// A constant that a property of this kind is compared with.
pub(super) fn constant(kind: Kind, data: &[u8], links: &Links) -> String {
    let host = data.first_chunk().map_or_else(|| u32::from(*data.first().unwrap_or(&0)), |c| u32::from_ne_bytes(*c));
    match kind {
        Kind::Group => host.to_string(),
        Kind::Link => value::link(host, links),
        Kind::LinkName => value::link_name(data),
        Kind::Protocol => value::field(Field::InetProto, data, links),
        Kind::Nfproto => value::named(&[(2, "ipv4"), (10, "ipv6")], host),
        Kind::EtherType => ether_type(data),
        Kind::Direction => value::named(&[(0, "original"), (1, "reply")], host),
        Kind::Flags(names) => value::flags(names, host),
        Kind::Names(names) => value::named(names, host),
        Kind::AddressType => value::named(&value::ADDRESS_TYPE, host),
        Kind::Ipv4 => short(Field::Ipv4Addr, data, links),
        Kind::Ipv6 => short(Field::Ipv6Addr, data, links),
        Kind::Field(field) => value::field(field, data, links),
        Kind::Number => value::decimal(data),
        Kind::Exists | Kind::Raw => value::hex(data),
    }
}

pub(super) fn meta_name(key: MetaKey) -> (&'static str, Kind) {
    match key {
        MetaKey::Iif => ("iif", Kind::Link),
        MetaKey::Iifgroup => ("iifgroup", Kind::Group),
        MetaKey::Iifname => ("iifname", Kind::LinkName),
        MetaKey::L4proto => ("meta l4proto", Kind::Protocol),
        MetaKey::Nfproto => ("meta nfproto", Kind::Nfproto),
        MetaKey::Oif => ("oif", Kind::Link),
        MetaKey::Oifgroup => ("oifgroup", Kind::Group),
        MetaKey::Oifname => ("oifname", Kind::LinkName),
        MetaKey::Protocol => ("meta protocol", Kind::EtherType),
    }
}

fn ether_type(data: &[u8]) -> String {
    match data {
        [0x08, 0x00] => "ip".into(),
        [0x08, 0x06] => "arp".into(),
        [0x81, 0x00] => "8021q".into(),
        [0x88, 0xa8] => "8021ad".into(),
        [0x86, 0xdd] => "ip6".into(),
        other => value::hex(other),
    }
}

/// An address; of fewer bytes than it has, the prefix that they are.
fn short(of: Field, data: &[u8], links: &Links) -> String {
    let mut whole = data.to_vec();
    whole.resize(of.width(), 0);
    let shown = value::field(of, &whole, links);
    if data.len() < of.width() { format!("{shown}/{}", data.len() * 8) } else { shown }
}

pub(super) fn verdict_words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Goto(chain) => format!("goto {chain}"),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Return => "return".into(),
    }
}

pub(super) fn log_words(group: u16, prefix: &str, snaplen: u32) -> String {
    let prefix = if prefix.is_empty() { String::new() } else { format!(" prefix \"{prefix}\"") };
    let snaplen = if snaplen == 0 { String::new() } else { format!(" snaplen {snaplen}") };
    format!("log{prefix} group {group}{snaplen}")
}

pub(super) fn limit_words(per_second: u64, burst: u32, over: bool) -> String {
    let over = if over { "over " } else { "" };
    // nft(8) leaves its default burst out.
    let burst = if burst == 5 { String::new() } else { format!(" burst {burst} packets") };
    format!("limit rate {over}{per_second}/second{burst}")
}
