//! What must leave and come back: the same promise for what is outside.
//!
//! Written from the prose and never from the compiler:
//!
//! - `direct` opens public, remote addresses: none of the host's own, none on a link of the host, none that is private,
//!   shared, link-local, multicast or metadata, none that leads to such by translation, none of the pools. Addresses
//!   that are reserved for documentation are like any other.
//! - `lan` opens the prefixes of `[network] lan`. A restricted form opens just these ports.
//! - `dns = "direct"` opens port 53 of one address, which the gateway sends on to a resolver.
//! - `expose.lan` and `expose.port` let the prefixes of `[network] lan`, or everybody who is not of the pools, open
//!   connections to one port of one service by a port of the host, and by no other address.
//! - Answers come back, and so do ICMP errors about an open flow, whatever router sends them. Nothing else comes in.
//! - What leaves has the gateway's source, and then the host's.
//! - Parts of datagrams may pass between a service and the gateway where the service may send any to that address.

mod flows;
mod sample;

use std::net::IpAddr;

use crate::address::AddressPlan;
use crate::exposure::{Exposure, Way};
use crate::graph::{AllowGraph, Dns, Service};
use crate::name::ServiceName;
use crate::network::HostNetwork;
use crate::port::Protocol;
use crate::ruleset::expect::{ERRORS4, ERRORS6, Ip};

pub use sample::{classes, destinations};

/// What the promise is about: a policy on a host.
#[derive(Clone, Copy, Debug)]
pub struct Premises<'a> {
    /// The policy.
    pub graph: &'a AllowGraph,
    /// Who has which address.
    pub addresses: &'a AddressPlan,
    /// The host's own network.
    pub host: &'a HostNetwork,
}

/// A class of packets between a service and an address that is nobody's in the fabric.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutsideClass {
    /// The service.
    pub service: ServiceName,
    /// The address it calls or hears from.
    pub remote: IpAddr,
    /// The port there.
    pub port: u16,
    /// The service's own port.
    pub own_port: u16,
    /// What it is.
    pub kind: Kind,
}

/// What a packet is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The service opens a connection.
    New(Protocol),
    /// A later packet of the service, of an open flow.
    Data(Protocol),
    /// A later packet of the service, of no flow.
    MidStream,
    /// The service asks for an echo.
    Echo,
    /// The service sends a datagram of a protocol that is none of ICMP, TCP and UDP.
    OtherProtocol(u8),
    /// The service opens a connection as another one.
    Spoofed(ServiceName),
    /// A neighbour discovery message, which connection tracking leaves alone.
    Untracked,
    /// An answer.
    Reply(Protocol),
    /// What looks like an answer, of no flow.
    Unsolicited(Protocol),
    /// Somebody outside opens a connection to a port of the service's own address.
    Opening(Protocol),
    /// Somebody outside opens a connection to a port of the host, which may be one that leads to the service.
    Call(Protocol),
    /// Somebody outside asks for an echo.
    EchoIn,
    /// A router outside says that a packet of the service cannot go on.
    Error {
        /// The router.
        router: IpAddr,
        /// Type of the message.
        kind: u8,
        /// Whether it is about an open flow.
        open: bool,
    },
    /// Root in the gateway opens a connection as a service.
    FromGateway(ServiceName),
    /// A part of a datagram, to or from outside.
    Fragment {
        /// From the service.
        leaves: bool,
        /// The one with the ports.
        first: bool,
    },
}

/// IPv4 prefixes that are not public: RFC 1918, CGNAT (RFC 6598), link-local with the metadata address, the other
/// metadata address, protocol assignments, multicast; "this network", loopback and the reserved rest, which are no
/// addresses of a remote machine.
pub(crate) const NOT_PUBLIC4: [&str; 11] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "168.63.129.16/32",
    "192.0.0.0/24",
    "224.0.0.0/4",
    "0.0.0.0/8",
    "127.0.0.0/8",
    "240.0.0.0/4",
];

/// The same for IPv6: unique local, link-local, site-local, multicast, NAT64 and 6to4, which lead to IPv4 by
/// translation, and the lowest /16 with the unspecified, the loopback and the mapped addresses.
pub(crate) const NOT_PUBLIC6: [&str; 8] =
    ["fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "::/16"];

fn prefixes(texts: &[&str]) -> Vec<ipnetwork::IpNetwork> {
    texts.iter().map(|text| text.parse().expect("the constants are prefixes")).collect()
}

impl<'a> Premises<'a> {
    fn service(&self, name: &ServiceName) -> Option<&'a Service> {
        self.graph.service(name.as_str())
    }

    /// Whether it has an address of the family.
    fn speaks(&self, service: &Service, class: &OutsideClass) -> bool {
        let own = self.addresses.service(service.name.as_str());
        own.is_some_and(|own| own.iter().any(|own| own.is_ipv4() == class.remote.is_ipv4()))
    }

    /// Whether `service` may send this to `to`; without a protocol, anything at all.
    pub fn reaches(&self, service: &Service, to: IpAddr, ports: Option<(Protocol, u16)>) -> bool {
        self.reaches_lan(service, to, ports) || self.reaches_wan(service, to, ports)
    }

    fn reaches_lan(&self, service: &Service, to: IpAddr, ports: Option<(Protocol, u16)>) -> bool {
        let outbound = &service.outbound;
        let whole = outbound.lan && self.is_lan(to);
        let covers = |only: &crate::port::Ports| ports.is_some_and(|(protocol, port)| only.covers(protocol, port));
        let part = outbound.lan_only.iter().any(|(prefix, only)| prefix.contains(to) && covers(only));
        (whole || part) && !self.is_own(to)
    }

    fn reaches_wan(&self, service: &Service, to: IpAddr, ports: Option<(Protocol, u16)>) -> bool {
        let outbound = &service.outbound;
        let covers = |only: &crate::port::Ports| ports.is_some_and(|(protocol, port)| only.covers(protocol, port));
        (outbound.direct || outbound.direct_only.iter().any(covers)) && self.is_public_and_remote(to)
    }

    fn is_own(&self, to: IpAddr) -> bool {
        self.host.addresses.contains(&to) || self.is_pooled(to)
    }

    fn is_pooled(&self, to: IpAddr) -> bool {
        match to {
            IpAddr::V4(to) => self.addresses.pool4().contains(to),
            IpAddr::V6(to) => self.addresses.pool6().is_some_and(|pool| pool.contains(to)),
        }
    }

    fn is_public(&self, to: IpAddr) -> bool {
        let not_public = if to.is_ipv4() { prefixes(&NOT_PUBLIC4) } else { prefixes(&NOT_PUBLIC6) };
        !not_public.iter().any(|prefix| prefix.contains(to)) && !self.is_pooled(to)
    }

    fn is_public_and_remote(&self, to: IpAddr) -> bool {
        self.is_public(to) && !self.is_own(to) && !self.host.on_link.iter().any(|prefix| prefix.contains(to))
    }

    /// The resolver that answers for the address `to` in the gateway.
    pub fn resolver(&self, to: IpAddr) -> Option<IpAddr> {
        let asked = self.addresses.resolver().iter().any(|address| address == to);
        let written = &self.graph.network().resolvers;
        let known = if written.is_empty() { &self.host.resolvers } else { written };
        known.iter().copied().find(|resolver| asked && resolver.is_ipv4() == to.is_ipv4())
    }

    /// A question to the resolver is a way out of its own.
    fn asks(&self, service: &Service, class: &OutsideClass) -> bool {
        service.dns == Dns::Direct && class.port == 53 && self.resolver(class.remote).is_some()
    }

    /// Whether `from` may come in to `port` of the service itself by a port of the host, and by which.
    pub fn entrance(&self, service: &Service, from: IpAddr, protocol: Protocol, port: u16) -> Option<u16> {
        let here = |exposure: &&Exposure| exposure.service == service.name && exposure.ports.covers(protocol, port);
        self.graph.exposures().iter().filter(here).find_map(|exposure| match exposure.way {
            _ if self.is_pooled(from) || exposure.way.relay().is_some() => None,
            Way::Lan { external, .. } if self.is_lan(from) => Some(external),
            Way::Port { external, .. } => Some(external),
            _ => None,
        })
    }

    /// Where a call of `from` to this port of the host leads, if it is to the service or to a relay for it: the port there,
    /// and whether a relay is between.
    pub fn door(&self, service: &Service, from: IpAddr, protocol: Protocol, outside: u16) -> Option<(u16, bool)> {
        let here = self.graph.exposures().iter().filter(|exposure| exposure.service == service.name);
        let mut doors = here.filter(|exposure| exposure.ports.protocol() == protocol);
        let door = doors.find(|exposure| match exposure.way {
            Way::Lan { external, .. } => external == outside && self.is_lan(from),
            Way::Port { external, .. } => external == outside,
            _ => false,
        })?;
        let relayed = door.way.relay().is_some();
        (!self.is_pooled(from)).then_some((if relayed { outside } else { door.ports.lo() }, relayed))
    }

    fn is_lan(&self, address: IpAddr) -> bool {
        self.graph.network().lan.iter().any(|prefix| prefix.contains(address))
    }

    /// Whether the service may have a flow of this protocol with the remote port of the class.
    fn opens(&self, service: &Service, class: &OutsideClass, protocol: Protocol) -> bool {
        self.reaches(service, class.remote, Some((protocol, class.port))) || self.asks(service, class)
    }

    /// Whether a packet of this class must arrive, outside or at the service; if not, it must not.
    pub fn expected(&self, class: &OutsideClass) -> bool {
        let Some(service) = self.service(&class.service).filter(|service| self.speaks(service, class)) else {
            return false;
        };
        let open = |protocol| self.opens(service, class, protocol);
        match &class.kind {
            Kind::New(protocol) | Kind::Data(protocol) | Kind::Reply(protocol) => open(*protocol),
            Kind::Echo | Kind::OtherProtocol(_) => self.reaches(service, class.remote, None),
            Kind::Error { kind, open: true, .. } => {
                let kinds: &[u8] = if class.remote.is_ipv4() { &ERRORS4 } else { &ERRORS6 };
                kinds.contains(kind) && open(Protocol::Tcp)
            }
            Kind::Fragment { .. } => self.may_send_parts(service, class.remote),
            Kind::Call(protocol) => self.door(service, class.remote, *protocol, class.port).is_some(),
            Kind::MidStream
            | Kind::Untracked
            | Kind::Spoofed(_)
            | Kind::Unsolicited(_)
            | Kind::Opening(_)
            | Kind::EchoIn
            | Kind::Error { open: false, .. }
            | Kind::FromGateway(_) => false,
        }
    }

    /// The fabric tells public addresses, not remote ones: parts that go too far end in the gateway.
    fn may_send_parts(&self, service: &Service, to: IpAddr) -> bool {
        let lan = service.outbound.lan && self.is_lan(to);
        lan || (service.outbound.direct && self.is_public(to))
    }
}

impl OutsideClass {
    /// Version of IP.
    pub fn ip(&self) -> Ip {
        if self.remote.is_ipv4() { Ip::V4 } else { Ip::V6 }
    }
}
