//! A stand-in for the internet, for the demo and for tests.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::kernel::address::Address;
use crate::kernel::link;
use crate::kernel::netlink::Rtnl;
use crate::kernel::netns::Netns;
use crate::kernel::route::Route;
use crate::kernel::wire::{WirePair, no_link_local};

/// A stand-in for the internet inside a sandbox: a namespace with a few well-known addresses, at the end of the
/// sandbox's default route.
#[derive(Debug)]
pub struct Internet {
    netns: Netns,
    wan: Vec<IpAddr>,
    lan: Vec<IpAddr>,
}

/// The sandbox's own end.
const NEAR: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];
/// The first router.
const FAR: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];
const WAN: [&str; 2] = ["203.0.113.10", "2001:db8:ffff::10"];
const LAN: [&str; 1] = ["192.168.1.5"];
const METADATA: [&str; 1] = ["169.254.169.254"];

impl Internet {
    /// Makes it, and a default route to it from the calling thread's namespace, whose `lo` is set up.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn make() -> io::Result<Self> {
        Self::with(WAN.iter().map(|text| parse(text)).collect(), LAN.iter().map(|text| parse(text)).collect())
    }

    /// The same with these addresses on the internet and on the local network.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn with(wan: Vec<IpAddr>, lan: Vec<IpAddr>) -> io::Result<Self> {
        let netns = Netns::unpinned()?;
        let link = WirePair {
            inner: "eth0".into(),
            inner_index: 2,
            outer: "eth0".into(),
            outer_index: 3,
            altname: None,
            alias: None,
            mac: crate::kernel::MAC,
            mtu: 1500,
            group: 0,
        };
        let mut requests = link.bring_up(netns.try_clone()?, &addresses(2, &NEAR), &routes(2, &FAR));
        requests.extend(FAR.iter().map(|far| default(2, parse(far)).add()));
        Rtnl::open()?.pipeline(requests)?;
        let own: Vec<IpAddr> = wan.iter().chain(&lan).copied().chain(METADATA.map(parse)).collect();
        netns.run(move || {
            let mut rtnl = Rtnl::open()?;
            let mut requests = vec![link::set_up(link::LOOPBACK)];
            requests.push(no_link_local(3, "eth0"));
            requests.push(link::set_up(3));
            requests.extend(addresses(3, &FAR).iter().map(Address::add));
            requests.extend(routes(3, &NEAR).iter().map(Route::add));
            requests.extend(own.iter().map(|ip| at(link::LOOPBACK, *ip).add()));
            Ok(rtnl.pipeline(requests)?)
        })?;
        Rtnl::open()?.wait_until_up(&[2], Duration::from_secs(5))?;
        Ok(Self { netns, wan, lan })
    }

    /// The namespace in which the addresses are.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Addresses on the internet.
    pub fn wan(&self) -> Vec<IpAddr> {
        self.wan.clone()
    }

    /// Addresses on the local network.
    pub fn lan(&self) -> Vec<IpAddr> {
        self.lan.clone()
    }

    /// Gives it a route to `to` through the sandbox, as a neighbour has who wants to get in.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn route(&self, to: IpNetwork) -> io::Result<()> {
        let near = NEAR.iter().map(|text| parse(text)).find(|near| near.is_ipv4() == to.is_ipv4());
        let route = Route { gateway: near, on_link: true, ..Route::by(3, to, BOOT) };
        self.netns.run(move || Ok(Rtnl::open()?.pipeline(vec![route.add()])?))
    }
}

fn parse(text: &str) -> IpAddr {
    text.parse().expect("the constants are addresses")
}

fn addresses(link: u32, texts: &[&str]) -> Vec<Address> {
    texts.iter().map(|text| at(link, parse(text))).collect()
}

fn at(link: u32, address: IpAddr) -> Address {
    Address { link, address: IpNetwork::from(address) }
}

fn routes(link: u32, texts: &[&str]) -> Vec<Route> {
    texts.iter().map(|text| Route::by(link, IpNetwork::from(parse(text)), BOOT)).collect()
}

fn default(link: u32, gateway: IpAddr) -> Route {
    let any = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    let route = Route::by(link, any.parse().expect("the constant is a prefix"), BOOT);
    Route { gateway: Some(gateway), on_link: true, ..route }
}

/// `RTPROT_BOOT`: as if somebody had set it up when the machine started.
const BOOT: u8 = 3;
