//! `expose.onion`, `.wireguard`, `.clearnet`, `.lan` and `.port` as written.

use crate::port::number;

use super::decode::{Table, bad_port, boolean, items, string, word};
use super::findings::{At, Draft, Findings, Sp};
use super::node::{Entry, Node};

/// Everything under `expose` of one service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expose {
    pub(crate) onion: Option<Onion>,
    pub(crate) wireguard: Option<WireGuard>,
    pub(crate) clearnet: Option<Clearnet>,
    pub(crate) lan: OnHost,
    pub(crate) port: OnHost,
}

/// `expose.lan` and `expose.port`: on ports of the machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct OnHost {
    pub(crate) ports: Vec<Mapped>,
    pub(crate) relay: Option<Sp<bool>>,
    /// `proxy = "v2"`, which only a relay can write.
    pub(crate) proxy: Option<Sp<ProxyVersion>>,
}

/// Which version of the PROXY protocol.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum ProxyVersion {
    V2,
}

/// `[expose]` at the top: `all = "off"` closes every way in.
pub(crate) fn all_off(file: &mut Table, out: &mut Findings) -> bool {
    let Some(mut table) = file.table("expose", out) else {
        return false;
    };
    let off = table.read("all", out, |node, out| word(node, &[("off", ())], out));
    table.finish(out);
    off.is_some()
}

/// `"EXTERNAL" = "portname"`.
#[derive(Clone, Debug)]
pub(crate) struct Mapped {
    pub(crate) external: Sp<u16>,
    pub(crate) port: Sp<String>,
}

/// `expose.onion`.
#[derive(Clone, Debug)]
pub(crate) struct Onion {
    pub(crate) ports: Vec<Mapped>,
    pub(crate) clients: Vec<Sp<String>>,
}

/// `expose.wireguard`.
#[derive(Clone, Debug)]
pub(crate) struct WireGuard {
    pub(crate) ports: Vec<Sp<String>>,
    pub(crate) peers: Vec<Sp<String>>,
}

/// `expose.clearnet`.
#[derive(Clone, Debug)]
pub(crate) struct Clearnet {
    pub(crate) domain: Sp<String>,
    pub(crate) port: Sp<String>,
    pub(crate) challenge: Option<Sp<String>>,
}

impl Expose {
    pub(crate) fn read(service: &mut Table, out: &mut Findings) -> Self {
        let Some(mut table) = service.table("expose", out) else {
            return Self::default();
        };
        let expose = Self {
            onion: table.table("onion", out).map(|table| onion(table, out)),
            wireguard: table.table("wireguard", out).map(|table| wireguard(table, out)),
            clearnet: table.table("clearnet", out).and_then(|table| clearnet(table, out)),
            lan: table.table("lan", out).map(|table| on_host(table, out)).unwrap_or_default(),
            port: table.table("port", out).map(|table| on_host(table, out)).unwrap_or_default(),
        };
        table.finish(out);
        expose
    }
}

fn onion(mut table: Table, out: &mut Findings) -> Onion {
    let ports = mapped(&mut table, out);
    let clients = table.read("clients", out, |node, out| Some(items(node, out, string)));
    if let Some(nobody) = clients.as_ref().filter(|clients| clients.value.is_empty()) {
        // Left out it means everybody. A list that somebody emptied was not meant to open the door.
        let draft = Draft::new("E0110", nobody.at, "an onion service for no client at all");
        out.add(
            draft.help("leave `clients` out to let everybody in who knows the address; else leave out the exposure"),
        );
    }
    table.finish(out);
    Onion { ports, clients: clients.map(|clients| clients.value).unwrap_or_default() }
}

fn on_host(mut table: Table, out: &mut Findings) -> OnHost {
    let ports = mapped(&mut table, out);
    let relay = table.read("relay", out, boolean);
    let proxy = table.read("proxy", out, |node, out| word(node, &[("v2", ProxyVersion::V2)], out));
    if let Some(proxy) = proxy.filter(|_| !relay.is_some_and(|relay| relay.value)) {
        let draft = Draft::new("E0110", proxy.at, "`proxy` without `relay = true`: there is nobody who could write it");
        out.add(
            draft.help("write `relay = true` beside it, or leave it out: without a relay the service sees the client"),
        );
    }
    table.finish(out);
    OnHost { ports, relay, proxy }
}

fn mapped(table: &mut Table, out: &mut Findings) -> Vec<Mapped> {
    let Some(ports) = table.take("ports") else {
        no_port(table.at, out);
        return Vec::new();
    };
    let at = ports.key.at;
    let entries = Table::open(ports.value, at, out).map(Table::into_entries);
    if entries.as_ref().is_some_and(Vec::is_empty) {
        no_port(at, out);
    }
    entries.unwrap_or_default().into_iter().filter_map(|entry| one_mapped(entry, out)).collect()
}

fn one_mapped(Entry { key, value }: Entry, out: &mut Findings) -> Option<Mapped> {
    let external = number(&key.value).map_err(|error| out.add(bad_port(key.at, &key.value, &error))).ok();
    let at = value.at;
    let port = string(value, out)?;
    Some(Mapped { external: Sp::new(external?, key.at), port: Sp::new(port, at) })
}

fn no_port(at: At, out: &mut Findings) {
    let help = "say which, as in `ports = { \"80\" = \"http\" }`: first the port outside, then the name inside";
    out.add(Draft::new("E0601", at, "exposed without a port").help(help));
}

fn wireguard(mut table: Table, out: &mut Findings) -> WireGuard {
    let at = table.at;
    let ports = table.list("ports", out, string);
    if ports.is_empty() {
        out.add(Draft::new("E0601", at, "exposed without a port").help("say which, as in `ports = [\"http\"]`"));
    }
    let peers = table.need("peers", out, |node: Node, out| Some(items(node, out, string)));
    table.finish(out);
    WireGuard { ports, peers: peers.map(|peers| peers.value).unwrap_or_default() }
}

fn clearnet(mut table: Table, out: &mut Findings) -> Option<Clearnet> {
    let domain = table.need("domain", out, string);
    if !table.has("port") {
        out.add(Draft::new("E0601", table.at, "exposed without a port").help("say which, as in `port = \"http\"`"));
    }
    let port = table.read("port", out, string);
    let challenge = table.read("challenge", out, string);
    table.finish(out);
    Some(Clearnet { domain: domain?, port: port?, challenge })
}
