//! Routes of both families.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::address::family;
use super::netlink::{NetlinkError, Request, Rtnl};

pub use netlink_packet_route::route::RouteType;

/// The table that is asked when no rule says otherwise.
pub const MAIN_TABLE: u32 = 254;

/// A route.
///
/// What was added is equal to what is read back, so that a list of routes can be compared with the one that ought to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNetwork,
    /// What becomes of a packet: [`RouteType::Unicast`], or `BlackHole`, `Unreachable`, `Prohibit`.
    pub kind: RouteType,
    /// The index of the link that it goes out by; none for a blackhole, or when there are several.
    pub link: Option<u32>,
    /// The indexes of the links that it goes out by when there are several (`nexthop ... nexthop ...`). Such a route is read
    /// only, never made.
    pub several: Vec<u32>,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// Whether the next hop is on the link although no route says so.
    pub on_link: bool,
    /// The address that a sender takes when it has not chosen one.
    pub source: Option<IpAddr>,
    /// The largest packet on this path, when smaller than the link's.
    pub mtu: Option<u32>,
    /// The routing table.
    pub table: u32,
    /// The smaller one wins.
    pub metric: u32,
    /// Who made it (`RTPROT_*`): 2 the kernel, 3 somebody at boot, 4 an administrator.
    pub protocol: u8,
}

impl Route {
    /// A route to `destination` by the link, in the main table, made by `protocol`.
    pub fn by(link: u32, destination: IpNetwork, protocol: u8) -> Self {
        Self {
            destination,
            kind: RouteType::Unicast,
            link: Some(link),
            several: Vec::new(),
            gateway: None,
            on_link: false,
            source: None,
            mtu: None,
            table: MAIN_TABLE,
            // What the kernel makes of a route without one.
            metric: if destination.is_ipv4() { 0 } else { 1024 },
            protocol,
        }
    }

    /// A route that swallows what goes to `destination`.
    pub fn blackhole(destination: IpNetwork, protocol: u8) -> Self {
        Self::nowhere(RouteType::BlackHole, destination, protocol)
    }

    /// A route of a kind that needs no link.
    pub(super) fn nowhere(kind: RouteType, destination: IpNetwork, protocol: u8) -> Self {
        // The kernel hangs every IPv6 route on a link, and those that lead nowhere on `lo`.
        let link = destination.is_ipv6().then_some(super::link::LOOPBACK);
        Self { kind, link, ..Self::by(0, destination, protocol) }
    }

    /// Every link that it goes out by.
    pub fn links(&self) -> impl Iterator<Item = u32> {
        self.link.into_iter().chain(self.several.iter().copied())
    }

    /// Adds it. `EEXIST` when there is one to the same destination in the table with the same metric.
    pub fn add(&self) -> Request {
        let operation = format!("add the route to {}", self.destination);
        Request::new(RouteNetlinkMessage::NewRoute(self.message()), NLM_F_CREATE | NLM_F_EXCL, operation)
    }

    /// Deletes it; one that is gone already is fine.
    pub fn delete(&self) -> Request {
        let operation = format!("delete the route to {}", self.destination);
        Request::new(RouteNetlinkMessage::DelRoute(self.message()), 0, operation).pardon(Errno::ESRCH)
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(self.destination.ip()),
            destination_prefix_length: self.destination.prefix(),
            table: u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
            protocol: self.protocol.into(),
            scope: self.scope(),
            kind: self.kind,
            flags: if self.on_link { RouteFlags::Onlink } else { RouteFlags::empty() },
            ..RouteHeader::default()
        };
        message.attributes = vec![RouteAttribute::Table(self.table), RouteAttribute::Priority(self.metric)];
        let attributes = &mut message.attributes;
        // The kernel refuses an all-zero IPv4 destination with a prefix other than 0, and needs none for the default route.
        if self.destination.prefix() > 0 {
            attributes.push(RouteAttribute::Destination(self.destination.network().into()));
        }
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
        attributes.extend(self.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
        attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        message
    }

    /// How far the destination is: IPv4 wants a direct route to say that it is on the link.
    fn scope(&self) -> RouteScope {
        let direct = self.kind == RouteType::Unicast && self.gateway.is_none();
        if direct && self.destination.is_ipv4() { RouteScope::Link } else { RouteScope::Universe }
    }

    fn from_message(message: RouteMessage) -> Option<Self> {
        let header = &message.header;
        let unspecified: IpAddr = match header.address_family {
            AddressFamily::Inet => [0; 4].into(),
            AddressFamily::Inet6 => [0; 16].into(),
            _ => return None,
        };
        let mut route = Self {
            destination: IpNetwork::new(unspecified, header.destination_prefix_length).ok()?,
            kind: header.kind,
            link: None,
            several: Vec::new(),
            gateway: None,
            on_link: header.flags.contains(RouteFlags::Onlink),
            source: None,
            mtu: None,
            table: header.table.into(),
            metric: 0,
            protocol: header.protocol.into(),
        };
        message.attributes.into_iter().for_each(|attribute| route.take(attribute));
        Some(route)
    }

    fn take(&mut self, attribute: RouteAttribute) {
        match attribute {
            RouteAttribute::Destination(address) => {
                let network = ip(&address).and_then(|ip| IpNetwork::new(ip, self.destination.prefix()).ok());
                self.destination = network.unwrap_or(self.destination);
            }
            RouteAttribute::Oif(index) => self.link = Some(index),
            RouteAttribute::MultiPath(hops) => self.several = hops.iter().map(|hop| hop.interface_index).collect(),
            RouteAttribute::Gateway(address) => self.gateway = ip(&address),
            RouteAttribute::PrefSource(address) => self.source = ip(&address),
            RouteAttribute::Table(table) => self.table = table,
            RouteAttribute::Priority(metric) => self.metric = metric,
            RouteAttribute::Metrics(metrics) => self.mtu = metrics.iter().find_map(mtu),
            _ => {}
        }
    }
}

fn mtu(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

impl Rtnl {
    /// The routes of one table, or of all, of both families. A table that does not exist has none.
    ///
    /// # Errors
    ///
    /// When the kernel refuses or the list does not hold still.
    pub fn routes(&mut self, table: Option<u32>) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = self.routes_of(AddressFamily::Inet, table)?;
        routes.extend(self.routes_of(AddressFamily::Inet6, table)?);
        Ok(routes)
    }

    fn routes_of(&mut self, family: AddressFamily, table: Option<u32>) -> Result<Vec<Route>, NetlinkError> {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        question.attributes.extend(table.map(RouteAttribute::Table));
        let listed = self.dump("list routes", &RouteNetlinkMessage::GetRoute(question), |message| match message {
            RouteNetlinkMessage::NewRoute(message) => Route::from_message(message),
            _ => None,
        });
        match listed {
            // Kernels before 4.20 take no notice of the table in the question.
            Ok(routes) => {
                Ok(routes.into_iter().filter(|route| table.is_none_or(|table| route.table == table)).collect())
            }
            Err(e) if table.is_some() && e.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }
}
