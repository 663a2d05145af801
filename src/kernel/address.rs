//! The addresses of links.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::netlink::{NetlinkError, Request, Rtnl};

/// An address on a link.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Address {
    /// The index of the link.
    pub link: u32,
    /// The address and its prefix.
    pub address: IpNetwork,
}

impl Address {
    /// Adds it. An IPv6 address may be used at once: nobody else can have it, so there is nothing to detect (`IFA_F_NODAD`).
    pub fn add(&self) -> Request {
        let message = RouteNetlinkMessage::NewAddress(self.message());
        Request::new(
            message,
            NLM_F_CREATE | NLM_F_EXCL,
            format!("add the address {} to link {}", self.address, self.link),
        )
    }

    /// Deletes it; one that is gone already is fine.
    pub fn delete(&self) -> Request {
        let message = RouteNetlinkMessage::DelAddress(self.message());
        let operation = format!("delete the address {} from link {}", self.address, self.link);
        Request::new(message, 0, operation).pardon(Errno::EADDRNOTAVAIL)
    }

    fn message(&self) -> AddressMessage {
        let ip = self.address.ip();
        let mut message = AddressMessage::default();
        message.header.family = family(ip);
        message.header.prefix_len = self.address.prefix();
        message.header.index = self.link;
        message.header.scope = if ip.is_loopback() { AddressScope::Host } else { AddressScope::Universe };
        message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        if ip.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        message
    }

    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewAddress(message) = message else { return None };
        // On a point-to-point link IFA_ADDRESS is the far end, and IFA_LOCAL ours.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let any = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        let address = IpNetwork::new(local.or(any)?, message.header.prefix_len).ok()?;
        Some(Self { link: message.header.index, address })
    }
}

pub(super) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Rtnl {
    /// Every address of the namespace, of both families.
    ///
    /// # Errors
    ///
    /// When the kernel refuses or the list does not hold still.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump("list addresses", &question, Address::from_message)
    }

    /// The addresses of one link, of both families.
    ///
    /// # Errors
    ///
    /// As [`Rtnl::addresses`].
    pub fn addresses_of(&mut self, link: u32) -> Result<Vec<Address>, NetlinkError> {
        let mut question = AddressMessage::default();
        // Kernels before 4.20 take no notice of it.
        question.header.index = link;
        let question = RouteNetlinkMessage::GetAddress(question);
        self.dump("list addresses", &question, |message| {
            Address::from_message(message).filter(|address| address.link == link)
        })
    }
}
