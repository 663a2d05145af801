//! `[network]`, `[defaults]`, `[host]` and `[peer.NAME]` as written.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::graph::{Denied, Dns};
use crate::name::{NetworkName, PeerName, PortName};
use crate::port::Ports;

use super::decode::{Table, boolean, name, parsed, ports, secret, string, word};
use super::findings::{At, Draft, Findings, Sp};
use super::node::{Entry, Kind, Node};
use super::outbound::{Outbound, outbound};
use super::reference::{PortRef, Who, lan_prefix, port_ref, prefix_node, who};

/// `[network]`.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// Whether there is a name at all, be it malformed.
    pub(crate) is_named: bool,
    pub(crate) name: Option<Sp<NetworkName>>,
    pub(crate) pool4: Option<Sp<IpNetwork>>,
    pub(crate) pool6: Option<Sp<IpNetwork>>,
    pub(crate) ipv6: Option<Sp<bool>>,
    pub(crate) lan: Vec<Sp<IpNetwork>>,
    pub(crate) resolvers: Vec<Sp<IpAddr>>,
}

impl Network {
    pub(crate) fn read(file: &mut Table, out: &mut Findings) -> Self {
        let Some(mut table) = file.table("network", out) else {
            return Self::default();
        };
        let network = Self {
            is_named: table.has("name"),
            name: table.read("name", out, network_name),
            pool4: table.read("pool4", out, prefix_node),
            pool6: table.read("pool6", out, prefix_node),
            ipv6: table.read("ipv6", out, boolean),
            lan: table.list("lan", out, lan_prefix),
            resolvers: table.list("resolvers", out, resolver),
        };
        table.finish(out);
        network
    }
}

fn network_name(node: Node, out: &mut Findings) -> Option<NetworkName> {
    let at = node.at;
    let text = string(node, out)?;
    name(&text, at, "network", out)
}

fn resolver(node: Node, out: &mut Findings) -> Option<IpAddr> {
    parsed(node, "E0110", out)
}

/// `[defaults]`.
#[derive(Debug, Default)]
pub(crate) struct Defaults {
    pub(crate) outbound: Option<Sp<Outbound>>,
    /// The same as one value, to tell whether two files agree.
    pub(crate) dns: Option<Sp<Dns>>,
    pub(crate) denied: Option<Sp<Denied>>,
    pub(crate) log: Option<Sp<bool>>,
}

impl Defaults {
    pub(crate) fn read(file: &mut Table, out: &mut Findings) -> Self {
        let Some(mut table) = file.table("defaults", out) else {
            return Self::default();
        };
        let defaults = Self {
            outbound: table.read("outbound", out, outbound),
            dns: table.read("dns", out, dns),
            denied: table.read("denied", out, denied),
            log: table.read("log", out, boolean),
        };
        table.finish(out);
        defaults
    }
}

/// The value of `dns`.
pub(crate) fn dns(node: Node, out: &mut Findings) -> Option<Dns> {
    let words = [("none", Dns::None), ("names", Dns::Names), ("tor", Dns::Tor), ("direct", Dns::Direct)];
    word(node, &words, out)
}

fn denied(node: Node, out: &mut Findings) -> Option<Denied> {
    word(node, &[("reject", Denied::Reject), ("drop", Denied::Drop)], out)
}

/// `connect.TARGET = [ports]` and `may_connect.TARGET = [ports]`.
#[derive(Clone, Debug)]
pub(crate) struct Connect {
    pub(crate) target: Sp<Who>,
    pub(crate) ports: Vec<Sp<PortRef>>,
}

/// The table `key` of connections.
pub(crate) fn connects(table: &mut Table, key: &'static str, out: &mut Findings) -> Vec<Connect> {
    let connect = |Entry { key, value }: Entry, out: &mut Findings| {
        let ports = super::decode::items(value, out, port_ref);
        Connect { target: Sp::new(Who::new(&key.value), key.at), ports }
    };
    table.named(key, out).into_iter().map(|entry| connect(entry, out)).collect()
}

/// `[host]`.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) may_connect: Vec<Connect>,
    pub(crate) accepts: Vec<Accept>,
}

/// `accepts.NAME = { port = "tcp:8000", from = ["svc", "@tag"] }`.
#[derive(Clone, Debug)]
pub(crate) struct Accept {
    pub(crate) name: Sp<PortName>,
    pub(crate) ports: Sp<Ports>,
    pub(crate) from: Vec<Sp<Who>>,
}

impl Host {
    pub(crate) fn read(file: &mut Table, out: &mut Findings) -> Self {
        let Some(mut table) = file.table("host", out) else {
            return Self::default();
        };
        let may_connect = connects(&mut table, "may_connect", out);
        let accepts = table.named("accepts", out).into_iter().filter_map(|entry| accept(entry, out)).collect();
        table.finish(out);
        Self { may_connect, accepts }
    }
}

fn accept(Entry { key, value }: Entry, out: &mut Findings) -> Option<Accept> {
    let name = name(&key.value, key.at, "port", out);
    let mut table = Table::open(value, key.at, out)?;
    let ports = table.need("port", out, ports);
    let from = table.list("from", out, who);
    table.finish(out);
    Some(Accept { name: Sp::new(name?, key.at), ports: ports?, from })
}

/// `[peer.NAME]`.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: PeerName,
    pub(crate) at: At,
    pub(crate) wireguard: Option<Sp<String>>,
    pub(crate) onion: Option<Sp<String>>,
}

/// Every `[peer.NAME]` of the file.
pub(crate) fn read_peers(file: &mut Table, out: &mut Findings) -> Vec<Peer> {
    file.named("peer", out).into_iter().filter_map(|entry| peer(entry, out)).collect()
}

fn peer(Entry { key, value }: Entry, out: &mut Findings) -> Option<Peer> {
    let name = name(&key.value, key.at, "peer", out);
    let mut table = Table::open(value, key.at, out)?;
    table.guards_secrets = true;
    let wireguard = table.read("wireguard", out, wireguard_key);
    let onion = table.read("onion", out, onion_key);
    allowed_ips(&mut table, out);
    table.finish(out);
    Some(Peer { name: name?, at: key.at, wireguard, onion })
}

/// What wg(8) calls AllowedIPs is no business of a policy: who has which address follows from it.
fn allowed_ips(table: &mut Table, out: &mut Findings) {
    for key in ["allowed_ips", "allowed-ips", "allowedips", "AllowedIPs"] {
        let Some(Entry { key, value }) = table.take_unknown(key) else {
            continue;
        };
        let at = value.at;
        let items = if let Kind::Array(items) = value.kind { items } else { vec![value] };
        let all = |node: &Node| matches!(&node.kind, Kind::String(text) if text.split(',').any(|one| one.trim().ends_with("/0")));
        let draft = if items.iter().any(all) {
            Draft::new("E0703", at, "this peer would take the traffic of everybody to itself")
        } else {
            Draft::new(
                "E0702",
                key.at,
                "a peer does not say its addresses: two that overlap would take from each other",
            )
        };
        out.add(
            draft.help("leave it out: nsctl assigns an address to each peer, and lets it reach what is exposed to it"),
        );
    }
}

/// Base64 of 32 bytes, as `wg pubkey` prints it: 43 characters and `=`, the last two bits zero.
fn wireguard_key(node: Node, out: &mut Findings) -> Option<String> {
    let at = node.at;
    let text = string(node, out)?;
    let bytes = text.as_bytes();
    let base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    let fine = bytes.len() == 44 && bytes[43] == b'=' && bytes[..43].iter().all(base64);
    // 43 characters hold 258 bits: the last one may only be one whose two low bits are zero.
    let canonical = fine && b"AEIMQUYcgkosw048".contains(&bytes[42]);
    if !canonical {
        let why = if fine { "is not the canonical form of its key" } else { "is not base64 of 32 bytes" };
        out.add(
            Draft::new("E0707", at, format!("this WireGuard public key {why}")).help("write what `wg pubkey` prints"),
        );
    }
    canonical.then_some(text)
}

/// `descriptor:x25519:` and base32 of 32 bytes, as in a `.auth` file of Tor (rend-spec-v3, appendix G.1.2).
fn onion_key(node: Node, out: &mut Findings) -> Option<String> {
    let at = node.at;
    let text = string(node, out)?;
    if text.split(':').next().is_some_and(|address| address.len() == 56) {
        // ADDRESS:descriptor:x25519:KEY is a line of a client's `.auth_private` file.
        out.mask(at);
        out.add(secret(at, &Sp::new("onion".into(), at)));
        return None;
    }
    let key = text.strip_prefix("descriptor:x25519:").unwrap_or_default().as_bytes();
    let base32 = |b: &u8| b.is_ascii_uppercase() || (b'2'..=b'7').contains(b);
    // 52 characters hold 260 bits: the four low bits of the last one must be zero.
    let fine = key.len() == 52 && key.iter().all(base32) && matches!(key[51], b'A' | b'Q');
    if !fine {
        out.add(
            Draft::new("E0608", at, "this is not the public key of an onion client")
                .help("expected `descriptor:x25519:` and 52 characters of base32"),
        );
    }
    fine.then_some(text)
}
