//! Ways in from outside. An exposure is an edge whose origin stands outside the fabric.

use std::collections::BTreeSet;
use std::fmt;

use crate::graph::Location;
use crate::name::{PeerName, PortName, ServiceName};
use crate::port::Ports;

/// One port of one service, reachable from outside in one way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Exposure {
    /// The service that is reached.
    pub service: ServiceName,
    /// The name of its port.
    pub port_name: PortName,
    /// The port itself.
    pub ports: Ports,
    /// How.
    pub way: Way,
    /// Where it is written.
    pub at: Location,
}

/// How a service is reached from outside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Way {
    /// `expose.clearnet`: a name with automatic TLS.
    Clearnet {
        /// The domain name.
        domain: String,
        /// The ACME challenge, as written (`http-01`, `tls-alpn-01`, `dns-01`).
        challenge: Option<String>,
    },
    /// `expose.lan`: from the prefixes of `[network] lan`, on this port of the host.
    Lan {
        /// Port on the host.
        external: u16,
        /// Through the gateway `relay`, or straight to the service.
        relay: Option<Handover>,
    },
    /// `expose.onion`: a Tor v3 onion service.
    Onion {
        /// Port of the onion address.
        external: u16,
        /// Who may; empty means everybody who knows the address.
        clients: BTreeSet<PeerName>,
    },
    /// `expose.port`: a plain port of the uplink.
    Port {
        /// Port on the host.
        external: u16,
        /// Through the gateway `relay`, or straight to the service.
        relay: Option<Handover>,
    },
    /// `expose.wireguard`: peers in a tunnel.
    WireGuard {
        /// Who may.
        peers: BTreeSet<PeerName>,
    },
}

/// How a worker in the gateway `relay` hands a connection on (`relay = true`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Handover {
    /// As it is: the service sees the relay's address.
    Bare,
    /// Behind a header of the PROXY protocol, version 2, which names the client (`proxy = "v2"`).
    ProxyV2,
}

impl Way {
    /// Whether it is a port of the host: `lan` or `port`.
    pub fn is_on_host(&self) -> bool {
        matches!(self, Self::Lan { .. } | Self::Port { .. })
    }

    /// How a relay hands its connections on; `None` where there is no relay between.
    pub fn relay(&self) -> Option<Handover> {
        match self {
            Self::Lan { relay, .. } | Self::Port { relay, .. } => *relay,
            Self::Clearnet { .. } | Self::Onion { .. } | Self::WireGuard { .. } => None,
        }
    }

    /// The port outside, for ways that have one of their own.
    pub fn external(&self) -> Option<u16> {
        match self {
            Self::Lan { external, .. } | Self::Onion { external, .. } | Self::Port { external, .. } => Some(*external),
            Self::Clearnet { .. } | Self::WireGuard { .. } => None,
        }
    }

    /// The word for it in the language.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Clearnet { .. } => "clearnet",
            Self::Lan { .. } => "lan",
            Self::Onion { .. } => "onion",
            Self::Port { .. } => "port",
            Self::WireGuard { .. } => "wireguard",
        }
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}:{}", self.way.word(), self.service, self.port_name)
    }
}
