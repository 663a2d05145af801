//! How one part of a policy refers to another: services, tags and ports, not yet looked up.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::port::{InvalidPort, Ports, Protocol, number};

use super::decode::{bad_port, string};
use super::findings::{At, Draft, Findings, Sp};
use super::node::Node;

/// A service or all services with a tag.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Who {
    Service(String),
    Tag(String),
}

impl Who {
    pub(crate) fn new(text: &str) -> Self {
        match text.strip_prefix('@') {
            Some(tag) => Self::Tag(tag.to_owned()),
            None => Self::Service(text.to_owned()),
        }
    }
}

/// A string that names a service or a `@tag`.
pub(crate) fn who(node: Node, out: &mut Findings) -> Option<Who> {
    string(node, out).map(|text| Who::new(&text))
}

/// A port of a target.
#[derive(Clone, Debug)]
pub(crate) enum PortRef {
    /// `rpc`
    Name(String),
    /// `tcp:rpc`
    Typed(Protocol, String),
    /// `tcp:8332`, `tcp:53-80`
    Number(Ports),
    /// `unix:rpc`, in what `[[never]]` and `[[test]]` name
    Socket(String),
}

impl PortRef {
    fn parse(text: &str) -> Result<Self, InvalidPort> {
        let is_name = |s: &str| s.starts_with(|c: char| c.is_alphabetic() || c == '_');
        match text.split_once(':') {
            Some(("tcp", name)) if is_name(name) => Ok(Self::Typed(Protocol::Tcp, name.to_owned())),
            Some(("udp", name)) if is_name(name) => Ok(Self::Typed(Protocol::Udp, name.to_owned())),
            Some(("unix", name)) if is_name(name) => Ok(Self::Socket(name.to_owned())),
            None if is_name(text) => Ok(Self::Name(text.to_owned())),
            _ => text.parse().map(Self::Number),
        }
    }

    /// The port that `text` means, or the finding that it means none.
    pub(crate) fn read(text: &str, at: At, out: &mut Findings) -> Option<Self> {
        Self::parse(text).map_err(|error| out.add(bad_port(at, text, &error))).ok()
    }
}

/// A string that refers to a port.
pub(crate) fn port_ref(node: Node, out: &mut Findings) -> Option<PortRef> {
    let at = node.at;
    let text = string(node, out)?;
    match PortRef::read(&text, at, out)? {
        PortRef::Socket(name) => {
            let draft = Draft::new("E0206", at, format!("\"{}\" is a unix socket, not a port", text.escape_debug()));
            out.add(draft.help(format!("a socket is opened by `open.TARGET = [\"{}\"]`", name.escape_debug())));
            None
        }
        port => Some(port),
    }
}

/// What a `[[never]]` or a `[[test]]` names: `SERVICE`, `SERVICE:port`, `@tag`, `@tag:port`, or a word.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    /// The text before the port: a service, a peer or a word of the language.
    pub(crate) who: Who,
    pub(crate) port: Option<PortRef>,
    pub(crate) text: String,
}

/// A string that names a [`Point`].
pub(crate) fn point(node: Node, out: &mut Findings) -> Option<Point> {
    let at = node.at;
    let text = string(node, out)?;
    if text == LINK_LOCAL {
        return Some(Point { who: Who::Service(text.clone()), port: None, text });
    }
    let (who, port) = match text.split_once(':') {
        Some((who, port)) => (who, Some(PortRef::read(port, at, out)?)),
        None => (text.as_str(), None),
    };
    Some(Point { who: Who::new(who), port, text: text.clone() })
}

/// The word for link-local IPv6, which no service can use.
pub(crate) const LINK_LOCAL: &str = "ip6:link-local";

/// A prefix in its plain form: no bit set to the right of the length. A bare address means that one address.
pub(crate) fn prefix(text: &str, at: At, out: &mut Findings) -> Option<IpNetwork> {
    let parsed = match text.split_once('/') {
        Some((ip, "0")) => ip.parse().ok().map(|ip| (ip, Some(0))),
        Some((ip, len)) => ip.parse().ok().zip(number(len).ok().and_then(|len| u8::try_from(len).ok()).map(Some)),
        None => text.parse().ok().map(|ip| (ip, None)),
    };
    let network = parsed.and_then(|(ip, len): (IpAddr, Option<u8>)| {
        IpNetwork::new(ip, len.unwrap_or(if ip.is_ipv4() { 32 } else { 128 })).ok()
    });
    let Some(network) = network else {
        let message = format!("\"{}\" is not a prefix", text.escape_debug());
        out.add(Draft::new("E0110", at, message).help("write an address and a length, as in \"192.168.1.0/24\""));
        return None;
    };
    if network.ip() != network.network() {
        let plain = format!("{}/{}", network.network(), network.prefix());
        let message = format!("{network} has bits to the right of its length");
        out.add(Draft::new("E0503", at, message).help(format!("did you mean `{plain}`?")));
        return None;
    }
    Some(network)
}

/// A string that is a prefix.
pub(crate) fn prefix_node(node: Node, out: &mut Findings) -> Option<IpNetwork> {
    let at = node.at;
    let text = string(node, out)?;
    prefix(&text, at, out)
}

/// A prefix that may stand for a local network.
pub(crate) fn lan_prefix(node: Node, out: &mut Findings) -> Option<IpNetwork> {
    let at = node.at;
    let network = prefix_node(node, out)?;
    is_local(Sp::new(network, at), out).then_some(network)
}

/// Whether a prefix can be a local network at all.
pub(crate) fn is_local(network: Sp<IpNetwork>, out: &mut Findings) -> bool {
    let ip = network.value.ip();
    let what = match network.value.prefix() {
        0 => "the whole Internet",
        _ if ip.is_loopback() => "loopback",
        _ if ip.is_multicast() => "multicast",
        _ => return true,
    };
    let message = format!("{} is {what}, not a local network", network.value);
    out.add(Draft::new("E0504", network.at, message));
    false
}
