//! Which workers a network needs, and their fleets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use netns_policy::name::NetworkName;
use netns_policy::relay::{Relay, relays};
use netns_policy::topology::Place;

use crate::kernel::Linux;
use crate::orchestrator::Planned;
use crate::worker::relay::{Config, Limits, Route};
use crate::worker::{Event, Fleet, Launcher, Spec, Timing, Work, WorkerState};

/// The name of the one relay of a network: one process carries all of them.
const RELAY: &str = "relay";

/// The workers that this policy asks for.
pub(super) fn wanted(planned: &Planned, linux: &Linux) -> Vec<Spec> {
    let routes: Vec<Route> = relays(&planned.checked.graph, &planned.addresses).iter().flat_map(routes).collect();
    if routes.is_empty() {
        return Vec::new();
    }
    let Some(netns) = Place::Relay.netns(&planned.desired.network) else { return Vec::new() };
    let work = Work::Relay(Config { routes, limits: Limits::default() });
    vec![Spec { name: RELAY.to_owned(), netns: linux.pin(&netns), work, program: None, secrets: BTreeMap::new() }]
}

/// One for each version of IP that both ends have.
fn routes(relay: &Relay) -> Vec<Route> {
    let same = |listen: &SocketAddr| relay.to.iter().find(|to| to.is_ipv4() == listen.is_ipv4()).copied();
    let version = |address: &SocketAddr| if address.is_ipv4() { 4 } else { 6 };
    let pairs = relay.listen.iter().filter_map(|listen| Some((*listen, same(listen)?)));
    pairs
        .map(|(listen, target)| Route {
            name: format!("{}:{}/{}/{}", relay.service, relay.port_name, listen.port(), version(&listen)),
            listen,
            target,
            proxy: relay.proxy,
            sources: relay.sources.iter().filter(|prefix| prefix.is_ipv4() == listen.is_ipv4()).copied().collect(),
        })
        .collect()
}

/// The fleets of all networks, for the loop that changes them and for whoever asks how they are.
#[derive(Clone)]
pub(super) struct Fleets {
    launcher: Launcher,
    all: Arc<Mutex<BTreeMap<NetworkName, Fleet>>>,
}

impl Fleets {
    /// None yet.
    pub(super) fn new(launcher: Launcher) -> Self {
        Self { launcher, all: Arc::default() }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<NetworkName, Fleet>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These ought to run in this network, and no others.
    pub(super) fn want(&self, network: &NetworkName, specs: Vec<Spec>) {
        let mut all = self.all();
        if specs.is_empty() && !all.contains_key(network) {
            return;
        }
        let fleet = all.entry(network.clone()).or_insert_with(|| {
            let named = network.clone();
            Fleet::new(self.launcher.clone(), Timing::default(), move |event| tell(&named, event))
        });
        fleet.want(specs);
    }

    /// How they are, by network.
    pub(super) fn states(&self) -> BTreeMap<String, Vec<WorkerState>> {
        self.all().iter().map(|(network, fleet)| (network.to_string(), fleet.states())).collect()
    }

    /// Ends all of them.
    pub(super) async fn stop(&self) {
        let all = std::mem::take(&mut *self.all());
        for (_, fleet) in all {
            fleet.stop().await;
        }
    }
}

fn tell(network: &NetworkName, event: &Event) {
    match event {
        Event::Ready { worker, pid } => tracing::info!(%network, worker, pid, "serves"),
        Event::Failed { worker, why, pause } => {
            tracing::warn!(%network, worker, pause_ms = u64::try_from(pause.as_millis()).ok(), "failed: {why}");
        }
        Event::Stopped { worker } => tracing::info!(%network, worker, "ended"),
        Event::Line { worker, text } => tracing::info!(%network, worker, "says: {text}"),
    }
}
