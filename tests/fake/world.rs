//! What packets meet on a machine as it is, half made or whole.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netns_policy::observed::Link as Seen;
use netns_policy::ruleset::compile::LEG;
use netns_policy::ruleset::decide::walk::{Leg, Link, Place, World};

use super::Machine;

impl Machine {
    /// Every wire that is up at both ends, with the rules at its ends; forwarding is taken to be on.
    pub fn world(&self) -> World {
        let Some(fabric) = &self.observed.fabric else { return World::default() };
        let up = fabric.links.iter().filter(|(_, link)| link.up);
        let places = up.filter_map(|(name, outer)| self.place(name, outer)).collect();
        World { fabric: fabric.rules.clone(), places, leg: self.leg() }
    }

    fn place(&self, outer_name: &str, outer: &Seen) -> Option<(String, Place)> {
        let joined = |link: &Seen| link.up && link.peer == Some(outer.index) && outer.peer == Some(link.index);
        let full = outer.alias.as_deref()?.rsplit(':').next()?;
        let (links, lock) = match full.strip_prefix('+') {
            Some("host") => (&self.observed.host_links, &self.observed.host_rules),
            Some(gateway) => self.inside(&format!("node+{gateway}"))?,
            None => self.inside(&format!("node-{full}"))?,
        };
        let (name, inner) = links.iter().find(|(_, link)| joined(link))?;
        let place = Place {
            fabric_index: outer.index,
            fabric_link: outer_name.to_owned(),
            index: inner.index,
            link: name.clone(),
            addresses: inner.addresses.iter().copied().collect(),
            lock: lock.clone(),
        };
        Some((full.trim_start_matches('+').to_owned(), place))
    }

    fn inside(
        &self,
        netns: &str,
    ) -> Option<(&std::collections::BTreeMap<String, Seen>, &netns_policy::ruleset::Ruleset)> {
        let namespace = self.observed.namespaces.get(netns)?;
        Some((&namespace.links, &namespace.rules))
    }

    fn leg(&self) -> Option<Leg> {
        let (links, _) = self.inside("node+uplink")?;
        let inner = links.get(LEG)?;
        let (name, outer) = self.observed.host_links.iter().find(|(_, link)| link.peer == Some(inner.index))?;
        let pools: Vec<IpNetwork> = links.get("net0")?.routes.iter().map(|route| route.to).collect();
        let own = self.observed.host_links.values().flat_map(|link| link.addresses.iter().copied());
        let host_addresses: Vec<IpAddr> = own.chain(self.observed.host.addresses.iter().copied()).collect();
        Some(Leg {
            gateway: "uplink".into(),
            inner: Link { index: inner.index, name: LEG.to_owned() },
            outer: Link { index: outer.index, name: name.clone() },
            addresses: inner.addresses.iter().copied().collect(),
            pools,
            host: self.observed.host_rules.clone(),
            host_addresses,
            uplink: Link { index: 2, name: "eth0".into() },
        })
    }
}
