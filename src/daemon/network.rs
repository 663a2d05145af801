//! One network that is watched: compared with its generation, mended, held closed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netns_policy::hold::spoiled;
use netns_policy::name::NetworkName;
use netns_policy::network::HostNetwork;
use netns_policy::plan::{Plan, Site};
use netns_policy::ruleset::compile::Capabilities;

use super::budget::Budget;
use super::snapshot::{NetworkSnapshot, REMEMBERED, Repair};
use super::workers::wanted;
use crate::orchestrator::history::Settled;
use crate::orchestrator::mend::InForce;
use crate::report::chain;
use crate::store::{self, StoreError};
use crate::worker::Spec;
use crate::{Error, Orchestrator, Planned, clock, drift, held};

/// What is left after one turn is a race or a fault: the next turns are for the races.
const TURNS: usize = 4;

/// How soon one tries again that somebody else was changing.
const SOON: Duration = Duration::from_millis(200);

/// What one compare came to.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Whether something was not as it ought to be.
    pub(super) drift: bool,
    /// When to look again although nothing was heard.
    pub(super) again: Option<Duration>,
    /// The workers that ought to run, where that is known: all of the network is as it ought to be.
    pub(super) workers: Option<Vec<Spec>>,
}

/// One network.
#[derive(Debug)]
pub(super) struct Watched {
    network: NetworkName,
    nsctl: Orchestrator,
    in_force: Option<InForce>,
    capabilities: Option<Capabilities>,
    budget: Budget,
    held: BTreeSet<Site>,
    /// What was told of last: an alarm is one line in the log, not one a minute.
    told: Vec<String>,
    /// How often in a row it could not be compared or mended.
    failures: u32,
    /// What the host's own network was when it was last compared: where that has become another one, what is to be done
    /// is no fault of anybody's.
    host: Option<HostNetwork>,
    /// Whether what is held is on record, so that its absence there means that the operator has lifted it.
    recorded: bool,
    pub(super) snapshot: NetworkSnapshot,
}

impl Watched {
    pub(super) fn new(nsctl: Orchestrator, network: NetworkName) -> Self {
        let held = held::read(&nsctl.options().run, &network);
        Self {
            network,
            nsctl,
            in_force: None,
            capabilities: None,
            budget: Budget::default(),
            held,
            told: Vec::new(),
            failures: 0,
            host: None,
            recorded: true,
            snapshot: NetworkSnapshot::default(),
        }
    }

    /// The directories whose files say what is in force, and who is held.
    pub(super) fn directories(&self) -> [PathBuf; 2] {
        let options = self.nsctl.options();
        [options.state.join(self.network.as_str()), options.run.join(self.network.as_str())]
    }

    /// Compares, and mends what can be mended.
    pub(super) fn compare(&mut self) -> Compared {
        let start = Instant::now();
        let compared = self.try_compare();
        self.snapshot.looked = clock::now();
        self.snapshot.look_ms = start.elapsed().as_secs_f64() * 1000.0;
        match compared {
            Ok(compared) => {
                self.snapshot.error = None;
                self.failures = 0;
                compared
            }
            // Somebody else is at work, and may have changed what is in force.
            Err(Error::Moved { .. } | Error::Store(StoreError::Busy { .. })) => {
                Compared { again: Some(SOON), ..Compared::default() }
            }
            Err(error) => {
                let said = chain(&error);
                self.failures += 1;
                // The first may be of a moment: a namespace that goes while one looks.
                match self.failures {
                    1 => tracing::debug!(network = %self.network, "cannot compare or mend: {said}"),
                    2 => tracing::error!(network = %self.network, "cannot compare or mend: {said}"),
                    _ => {}
                }
                self.snapshot.error = (self.failures > 1).then_some(said);
                let pause = SOON * 2u32.saturating_pow(self.failures.min(8));
                Compared { drift: true, again: Some(pause), workers: None }
            }
        }
    }

    fn try_compare(&mut self) -> Result<Compared, Error> {
        let left = match self.nsctl.expire(&self.network)? {
            Settled::Nothing => None,
            Settled::Waits(_, left) => Some(left),
            Settled::WentBack { from, to, rebooted } => {
                let to = to.map_or("nothing".to_owned(), |to| format!("generation {to}"));
                tracing::warn!(network = %self.network, %from, rebooted, "not confirmed: back to {to}");
                None
            }
        };
        self.snapshot.confirm_within = left.map(|left| left.as_secs());
        self.refresh()?;
        let Some(in_force) = self.in_force.clone() else {
            self.snapshot.drift.clear();
            self.snapshot.held.clear();
            self.held.clear();
            return Ok(Compared { drift: false, again: left, workers: Some(Vec::new()) });
        };
        self.lifted();
        let mut drift = false;
        let mut again = left;
        let mut workers = None;
        for turn in 0..TURNS {
            let planned = self.nsctl.look_in(&in_force)?;
            let plan = Orchestrator::left(&planned, &self.held);
            if plan.is_empty() {
                self.host = Some(host_of(&planned));
                let changes = if self.held.is_empty() { planned.plan.changes.clone() } else { Vec::new() };
                let planned = Planned { plan: Plan { changes, ..plan }, ..planned };
                workers = Some(wanted(&planned, &self.nsctl.kernel(&self.network)?));
                let extra = self.nsctl.extra(&planned)?;
                self.tell(drift::drift(&planned, &extra).iter().map(ToString::to_string).collect());
                break;
            }
            let host = host_of(&planned);
            let is_spoiled = self.host.as_ref() == Some(&host);
            self.host = Some(host);
            let sites = spoiled(&plan, &planned.observed, &planned.desired);
            let spent = if is_spoiled { self.budget.spent(&sites, Instant::now()) } else { BTreeSet::new() };
            if !spent.is_empty() {
                self.hold(spent);
            }
            // Only under the lock one knows that it is not half of a change that somebody makes now.
            drift |= self.mend(&in_force, turn == 0, is_spoiled)?;
            again = Some(again.map_or(SOON, |again| again.min(SOON)));
        }
        Ok(Compared { drift, again, workers })
    }

    /// Reads what is in force, if that is another one now.
    fn refresh(&mut self) -> Result<(), Error> {
        let (number, _) = self.nsctl.in_force_now(&self.network)?;
        // A restored backup may have another policy under the same number.
        let digest = number.map(|number| self.nsctl.digest_of(&self.network, number)).transpose()?;
        let known = self.in_force.as_ref().map(|in_force| (in_force.number, store::digest(&in_force.checked.sources)));
        if known == number.zip(digest) {
            return Ok(());
        }
        self.in_force = self.nsctl.load(&self.network, self.capabilities)?;
        self.capabilities = self.in_force.as_ref().map(|in_force| in_force.capabilities).or(self.capabilities);
        self.budget.clear();
        self.snapshot.generation = number;
        let graph = self.in_force.as_ref().map(|in_force| &in_force.checked.graph);
        self.snapshot.services = graph.map_or(0, |graph| graph.services().count());
        self.snapshot.edges = graph.map_or(0, |graph| graph.edges().len());
        let mut exposures = BTreeMap::new();
        for exposure in graph.into_iter().flat_map(|graph| graph.exposures()) {
            *exposures.entry(exposure.way.word().to_owned()).or_default() += 1;
        }
        self.snapshot.exposures = exposures;
        match number {
            Some(number) => tracing::info!(network = %self.network, generation = %number, "in force"),
            None => tracing::info!(network = %self.network, "nothing is in force"),
        }
        Ok(())
    }

    /// Whether the operator has seen to what was held closed.
    fn lifted(&mut self) {
        if self.held.is_empty() {
            return;
        }
        if !self.recorded {
            self.record();
        } else if held::read(&self.nsctl.options().run, &self.network).is_empty() {
            tracing::info!(network = %self.network, "no place is held closed any more");
            self.held.clear();
            self.budget.clear();
            self.snapshot.held.clear();
        }
    }

    /// One turn. Whether something was not as it ought to be.
    fn mend(&mut self, in_force: &InForce, first: bool, is_spoiled: bool) -> Result<bool, Error> {
        let mended = self.nsctl.mend(in_force, &self.held)?;
        let plan = &mended.before.plan;
        if plan.is_empty() {
            return Ok(false);
        }
        let drift: Vec<String> = drift::undone(&mended.before).iter().map(ToString::to_string).collect();
        if first && !is_spoiled {
            tracing::info!(network = %self.network, "followed the host's own network: {}", drift.join("; "));
        } else if first {
            let sites = spoiled(plan, &mended.before.observed, &mended.before.desired);
            self.budget.spend(&sites, Instant::now());
            self.snapshot.repairs += 1;
            self.snapshot.repaired.push(Repair { time: clock::now(), drift: drift.clone() });
            let surplus = self.snapshot.repaired.len().saturating_sub(REMEMBERED);
            self.snapshot.repaired.drain(..surplus);
            let done = mended.report.done.len();
            tracing::warn!(network = %self.network, steps = done, "drift, mended: {}", drift.join("; "));
        }
        for failed in mended.report.spoiled.iter().chain(&mended.report.failed) {
            tracing::warn!(network = %self.network, "cannot {}: {}", failed.step, chain(&failed.source));
        }
        Ok(true)
    }

    /// Holds these places closed from the next turn on.
    fn hold(&mut self, sites: BTreeSet<Site>) {
        let words: Vec<String> = sites.iter().map(held::word).collect();
        tracing::error!(
            network = %self.network,
            places = words.join(", "),
            "mended {} times in a minute: held closed until `nsctl apply`",
            super::budget::MOST,
        );
        self.held.extend(sites);
        self.snapshot.held = self.held.iter().map(held::word).collect();
        self.record();
    }

    fn record(&mut self) {
        let recorded = held::record(&self.nsctl.options().run, &self.network, &self.held);
        self.recorded = recorded.is_ok();
        if let Err(error) = recorded {
            tracing::error!(network = %self.network, "cannot record who is held closed: {error}");
        }
    }

    /// What is left, once for each time that it changes.
    fn tell(&mut self, mut drift: Vec<String>) {
        drift.extend(self.held.iter().map(|site| {
            format!("{} is held closed: it was spoiled {} times in a minute", held::word(site), super::budget::MOST)
        }));
        if drift != self.told {
            drift.iter().filter(|one| !self.told.contains(one)).for_each(|one| {
                tracing::warn!(network = %self.network, "drift, left alone: {one}");
            });
            self.told.clone_from(&drift);
        }
        self.snapshot.held = self.held.iter().map(held::word).collect();
        self.snapshot.drift = drift;
    }
}

/// The host's own network, as far as rules depend on it.
fn host_of(planned: &Planned) -> HostNetwork {
    let nothing = BTreeMap::new();
    HostNetwork { sysctls: nothing.clone(), before: nothing, ..planned.observed.host.clone() }
}
