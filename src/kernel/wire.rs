//! Wires: veth pairs between two namespaces.
//!
//! # Invariants
//!
//! - The far end is born in its namespace and never moved: moving a link costs an RCU grace period.
//! - Both indexes are chosen by the caller, so that nothing need be read back between creating a wire and using it.
//! - The outer end is down when it is made. Whoever makes the rules sets it up.
//! - One queue each way: with more, the kernel waits for every CPU to let go of the surplus (3.6 times slower).
//! - No ARP, no neighbour discovery, no link-local address, the same Ethernet address at both ends: what is sent into a wire
//!   comes out of it.

use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Prop,
};
use nix::errno::Errno;

use super::address::Address;
use super::link::{self, AddrGenMode, LOOPBACK};
use super::netlink::Request;
use super::netns::Netns;
use super::route::Route;

/// A veth pair: the inner end in the namespace where the request is sent, the outer one in another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WirePair {
    /// The name of the inner end: `net0` in a service.
    pub inner: String,
    /// The index of the inner end. The low ones may be taken even in a fresh namespace: some modules put a link of their own into
    /// each (`sit0`, `tunl0`, `gre0`). The outer end's is a good choice.
    pub inner_index: u32,
    /// The name of the outer end.
    pub outer: String,
    /// The index of the outer end.
    pub outer_index: u32,
    /// Another name of the outer end, for names that do not fit into 15 bytes.
    pub altname: Option<String>,
    /// What `ip link` shows beside the outer end.
    pub alias: Option<String>,
    /// The Ethernet address of both ends.
    pub mac: [u8; 6],
    /// The MTU of both ends.
    pub mtu: u32,
    /// The group of both ends.
    pub group: u32,
}

impl WirePair {
    /// Creates the pair, both ends down. `outer_netns` is where the outer end is born.
    pub fn create(&self, outer_netns: Netns) -> Request {
        let mut peer = self.end(&self.outer, self.outer_index);
        peer.attributes.push(LinkAttribute::NetNsFd(outer_netns.file().as_raw_fd()));
        let mut message = self.end(&self.inner, self.inner_index);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let operation = format!("create the wire {} - {}", self.inner, self.outer);
        Request::new(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, operation).holding(outer_netns)
    }

    fn end(&self, name: &str, index: u32) -> LinkMessage {
        let mut message = link::at(index);
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(self.mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Group(self.group),
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
        ];
        message
    }

    /// Everything that a fresh namespace with this wire needs, in the order in which it works: `lo` up, the pair, no link-local
    /// address, the inner end up, its addresses, its routes. One sendmsg(2).
    pub fn bring_up(&self, outer_netns: Netns, addresses: &[Address], routes: &[Route]) -> Vec<Request> {
        let mut requests = vec![
            link::set_up(LOOPBACK),
            self.create(outer_netns),
            no_link_local(self.inner_index, &self.inner),
            link::set_up(self.inner_index),
        ];
        requests.extend(addresses.iter().map(Address::add));
        requests.extend(routes.iter().map(Route::add));
        requests
    }

    /// What a create message cannot carry for the outer end, to be sent in its namespace while it is still down: no link-local
    /// address, alias, altname. For a new wire: `EEXIST` when it has the altname already.
    pub fn label(&self) -> Vec<Request> {
        let mut requests = vec![no_link_local(self.outer_index, &self.outer)];
        requests.extend(self.alias.as_deref().map(|alias| set_alias(self.outer_index, alias)));
        requests.extend(self.altname.as_deref().map(|altname| add_altname(self.outer_index, altname)));
        requests
    }
}

/// Keeps the link with this index from giving itself an IPv6 address. Only what is set before the link goes up has effect.
pub fn no_link_local(index: u32, name: &str) -> Request {
    let mut message = link::at(index);
    let none = AfSpecInet6::AddrGenMode(AddrGenMode::None);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
    // A kernel without IPv6 has nothing to switch off.
    Request::new(RouteNetlinkMessage::SetLink(message), 0, format!("set addr_gen_mode none on link {name}"))
        .pardon(Errno::EAFNOSUPPORT)
}

/// Gives the link with this index an alias; the empty one takes it away.
pub fn set_alias(index: u32, alias: &str) -> Request {
    let mut message = link::at(index);
    message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    Request::new(RouteNetlinkMessage::SetLink(message), 0, format!("set the alias {alias} on link {index}"))
}

/// Gives the link with this index one more name. `EEXIST` when any link of the namespace has it, this one included.
pub fn add_altname(index: u32, altname: &str) -> Request {
    let message = RouteNetlinkMessage::NewLinkProp(altnamed(index, altname));
    let operation = format!("add the altname {altname} to link {index}");
    Request::new(message, NLM_F_CREATE | NLM_F_EXCL, operation)
}

/// Takes one of its other names from the link with this index.
pub fn remove_altname(index: u32, altname: &str) -> Request {
    let message = RouteNetlinkMessage::DelLinkProp(altnamed(index, altname));
    Request::new(message, 0, format!("remove the altname {altname} from link {index}"))
}

fn altnamed(index: u32, altname: &str) -> LinkMessage {
    let mut message = link::at(index);
    message.attributes.push(LinkAttribute::PropList(vec![Prop::AltIfName(altname.to_owned())]));
    message
}
