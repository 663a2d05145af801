//! `outbound`: a word, a list of words, or a table with restrictions.

use ipnetwork::IpNetwork;

use crate::port::Ports;

use super::decode::{Table, boolean, items, ports, string, word};
use super::findings::{Draft, Findings, Sp};
use super::node::{Kind, Node};
use super::reference::{is_local, prefix};

/// What a service may reach outside, as written.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Outbound {
    pub(crate) tor: bool,
    pub(crate) lan: bool,
    pub(crate) direct: bool,
    /// These ports of these prefixes.
    pub(crate) lan_only: Vec<Sp<(IpNetwork, Ports)>>,
    /// These ports of everything that `[network] lan` means.
    pub(crate) lan_ports: Vec<Ports>,
    pub(crate) direct_only: Vec<Ports>,
}

#[derive(Clone, Copy, PartialEq)]
enum Word {
    Direct,
    Lan,
    None,
    Tor,
}

const WORDS: [(&str, Word); 4] =
    [("none", Word::None), ("tor", Word::Tor), ("lan", Word::Lan), ("direct", Word::Direct)];

/// The value of `outbound`.
pub(crate) fn outbound(node: Node, out: &mut Findings) -> Option<Outbound> {
    let at = node.at;
    match node.kind {
        Kind::Table(_) => Table::open(node, at, out).map(|table| from_table(table, out)),
        Kind::Array(_) => {
            let words = items(node, out, read_word);
            if let Some(none) = words.iter().find(|word| word.value == Word::None && words.len() > 1) {
                out.add(Draft::new("E0110", none.at, "\"none\" stands alone or not at all"));
            }
            Some(from_words(words.iter().map(|word| word.value)))
        }
        _ => read_word(node, out).map(|word| from_words([word])),
    }
}

fn read_word(node: Node, out: &mut Findings) -> Option<Word> {
    word(node, &WORDS, out)
}

fn from_words(words: impl IntoIterator<Item = Word>) -> Outbound {
    let mut outbound = Outbound::default();
    for word in words {
        match word {
            Word::Direct => outbound.direct = true,
            Word::Lan => outbound.lan = true,
            Word::None => {}
            Word::Tor => outbound.tor = true,
        }
    }
    outbound
}

fn from_table(mut table: Table, out: &mut Findings) -> Outbound {
    let tor = table.read("tor", out, boolean).is_some_and(|tor| tor.value);
    let mut outbound = Outbound { tor, ..Outbound::default() };
    if let Some(direct) = table.take("direct") {
        match direct.value.kind {
            Kind::Boolean(all) => outbound.direct = all,
            _ => outbound.direct_only = items(direct.value, out, ports).into_iter().map(|ports| ports.value).collect(),
        }
    }
    if let Some(lan) = table.take("lan") {
        match lan.value.kind {
            Kind::Boolean(all) => outbound.lan = all,
            _ => read_lan(lan.value, &mut outbound, out),
        }
    }
    table.finish(out);
    // The order of a list says nothing, and nor does a repetition.
    outbound.lan_only.sort();
    outbound.lan_only.dedup();
    outbound.lan_ports.sort();
    outbound.lan_ports.dedup();
    outbound.direct_only.sort();
    outbound.direct_only.dedup();
    outbound
}

fn read_lan(node: Node, outbound: &mut Outbound, out: &mut Findings) {
    for item in items(node, out, lan_item) {
        match item.value {
            (Some(prefix), ports) => outbound.lan_only.push(Sp::new((prefix, ports), item.at)),
            (None, ports) => outbound.lan_ports.push(ports),
        }
    }
}

/// `192.168.1.20/32 tcp:5000` or `tcp:53`.
fn lan_item(node: Node, out: &mut Findings) -> Option<(Option<IpNetwork>, Ports)> {
    let at = node.at;
    let text = string(node, out)?;
    let (network, port) = match text.split_once(' ') {
        Some((network, port)) => (Some(prefix(network, at, out)?), port),
        None if text.contains('/') || text.parse::<std::net::IpAddr>().is_ok() => {
            let message = format!("\"{}\" does not say which port", text.escape_debug());
            out.add(
                Draft::new("E0206", at, message).help(format!("write it behind the prefix, as in \"{text} tcp:5000\"")),
            );
            return None;
        }
        None => (None, text.as_str()),
    };
    if network.is_some_and(|network| !is_local(Sp::new(network, at), out)) {
        return None;
    }
    let ports = port.parse().map_err(|error| out.add(super::decode::bad_port(at, port, &error))).ok()?;
    Some((network, ports))
}
