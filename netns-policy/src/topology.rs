//! Which namespaces there are, and the names of their wires.
//!
//! # Invariants
//!
//! - Every name here follows from the policy alone.
//! - What is ours can be told by name: a service's namespace is `<network>-<service>`; the fabric's and the gateways'
//!   hold a `+`, which no service name may.

use std::collections::BTreeSet;
use std::fmt;

use crate::graph::{AllowGraph, Dns, Service};
use crate::name::{LinkName, NetworkName, ServiceName};

/// Somewhere a wire ends that is not the fabric.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Place {
    /// The machine's own namespace.
    Host,
    /// The gateway where workers hand on what comes in by exposures with `relay = true`.
    Relay,
    /// A service's namespace.
    Service(ServiceName),
    /// The gateway of `outbound = "direct"` and `"lan"`, and of the exposures `lan` and `port`.
    Uplink,
}

impl Place {
    /// The namespace's name; `None` for the host's.
    pub fn netns(&self, network: &NetworkName) -> Option<String> {
        match self {
            Self::Host => None,
            Self::Relay => Some(format!("{network}+relay")),
            Self::Service(name) => Some(format!("{network}-{name}")),
            Self::Uplink => Some(format!("{network}+uplink")),
        }
    }

    /// What the link in the fabric is called before it is made to fit.
    pub fn long_name(&self) -> String {
        match self {
            Self::Host => "+host".into(),
            Self::Relay => "+relay".into(),
            Self::Service(name) => name.to_string(),
            Self::Uplink => "+uplink".into(),
        }
    }

    /// The place that is called so; `None` when none can be.
    pub fn from_long_name(name: &str) -> Option<Self> {
        match name {
            "+host" => Some(Self::Host),
            "+relay" => Some(Self::Relay),
            "+uplink" => Some(Self::Uplink),
            service => service.parse().ok().map(Self::Service),
        }
    }

    /// The link in the fabric.
    pub fn link(&self) -> LinkName {
        LinkName::for_name(&self.long_name())
    }

    /// The link at this end.
    pub fn inner_link(&self, network: &NetworkName) -> LinkName {
        match self {
            Self::Host => LinkName::for_name(&format!("{network}+host")),
            Self::Relay | Self::Service(_) | Self::Uplink => LinkName::from_kernel("net0"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.pad("host"),
            // `relay` may be the name of a service.
            Self::Relay => f.pad("+relay"),
            Self::Service(name) => name.fmt(f),
            Self::Uplink => f.pad("uplink"),
        }
    }
}

/// The name of the fabric's namespace.
pub fn fabric_netns(network: &NetworkName) -> String {
    format!("{network}+fabric")
}

/// The host's end of the uplink's leg.
pub fn leg_link(network: &NetworkName) -> LinkName {
    LinkName::for_name(&format!("{network}+leg"))
}

/// Whether a namespace of this name belongs to `network`, as far as its name tells.
pub fn is_netns_of(network: &NetworkName, netns: &str) -> bool {
    let rest = netns.strip_prefix(network.as_str());
    rest.is_some_and(|rest| rest.starts_with(['-', '+']))
}

/// Whether a service needs the uplink: to go out, to ask a resolver there, or to answer who comes in by it.
pub fn uses_uplink(graph: &AllowGraph, service: &Service) -> bool {
    !service.outbound.stays_inside() || service.dns == Dns::Direct || answers_outside(graph, service)
}

/// Whether people outside reach a service itself by a port of the host, and so its answers have to find their way out.
fn answers_outside(graph: &AllowGraph, service: &Service) -> bool {
    let mut own = graph.exposures().iter().filter(|exposure| exposure.service == service.name);
    own.any(|exposure| exposure.way.is_on_host() && exposure.way.relay().is_none())
}

/// Every place that has a wire under this policy.
pub fn places(graph: &AllowGraph) -> BTreeSet<Place> {
    let mut places: BTreeSet<Place> = graph.services().map(|s| Place::Service(s.name.clone())).collect();
    let comes_in = graph.exposures().iter().any(|exposure| exposure.way.is_on_host());
    if comes_in || graph.services().any(|service| uses_uplink(graph, service)) {
        places.insert(Place::Uplink);
    }
    if graph.exposures().iter().any(|exposure| exposure.way.relay().is_some()) {
        places.insert(Place::Relay);
    }
    if graph.uses_host() {
        places.insert(Place::Host);
    }
    places
}
