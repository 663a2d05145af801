//! Taking a network down.

use std::collections::BTreeMap;

use netns_policy::desired::Desired;
use netns_policy::name::NetworkName;
use netns_policy::plan::{Plan, Step};
use netns_policy::topology::is_netns_of;

use super::recording::{Recording, run};
use super::{Error, Orchestrator, Running, TURNS};
use crate::drift::cookies;
use crate::held;
use crate::kernel::{Kernel as _, netns};
use crate::report::{Report, chain};
use crate::store::{Event, Guard, Store, StoreError};

/// What `down` did.
#[derive(Debug)]
pub struct Removed {
    /// The network that was taken down.
    pub network: NetworkName,
    /// What was planned.
    pub plan: Plan,
    /// What was done.
    pub report: Report,
    /// What the operator should know of how it was done.
    pub notes: Vec<String>,
}

impl Orchestrator {
    /// Removes all that is ours; the recorded addresses and generations stay. A service in which processes run is not
    /// removed.
    ///
    /// # Errors
    ///
    /// [`Error::NoNetwork`] when neither a policy nor the state says which; [`Error::Occupied`]; [`Error::Step`] as for
    /// apply.
    pub fn down(&self) -> Result<Removed, Error> {
        self.remove(self.network()?, Running::Refuse)
    }

    /// Removes all that is ours of this network, as [`Orchestrator::down`] does, with these words about what runs in it.
    /// Asks for no policy.
    ///
    /// # Errors
    ///
    /// [`Error::Occupied`]; [`Error::Step`] as for apply.
    pub fn remove(&self, network: NetworkName, running: Running) -> Result<Removed, Error> {
        let store = self.store(&network);
        let mut notes = Vec::new();
        let _guard = lock_for_down(&store, &mut notes)?;
        let linux = self.linux_with(&network, BTreeMap::new());
        let netns = netns::pinned(&self.options.netns).unwrap_or_default();
        let services = netns.into_iter().filter(|netns| is_netns_of(&network, netns) && !netns.contains('+'));
        let ours = linux.observe()?.namespaces;
        self.vacate(&linux, services.filter(|netns| ours.contains_key(netns)).collect(), running)?;
        // First, so that nobody brings back what is half down.
        let forgotten = store.forget_pending();
        let recorded = is_recorded(&store).and_then(|is| if is { store.set_current(None) } else { Ok(()) });
        if let Err(error) = recorded.and(forgotten) {
            notes.push(format!("{}: the generation stays recorded as in force", chain(&error)));
        }
        cookies::forget(&linux);
        held::lift(&self.options.run, &network);
        let (first, report) = self.take_down(&network, &store, &mut notes)?;
        if !report.done.is_empty() {
            store.note(Event::Down, None).unwrap_or_else(|error| notes.push(chain(&error)));
        }
        notes.dedup();
        Ok(Removed { network, plan: first, report, notes })
    }

    /// Removes what there is. The caller holds the lock, where there is one to be had.
    pub(super) fn take_down(
        &self,
        network: &NetworkName,
        store: &Store,
        notes: &mut Vec<String>,
    ) -> Result<(Plan, Report), Error> {
        self.remove_leftovers(network)?;
        let mut linux = self.linux_with(network, sysctls_for_down(store, notes));
        let mut report = Report::default();
        let mut first = None;
        for turn in 1.. {
            let observed = linux.observe()?;
            let plan = Plan::between(&observed, &Desired::nothing(network));
            first.get_or_insert_with(|| plan.clone());
            match plan.steps.first() {
                None => break,
                Some(step) if turn > TURNS => {
                    return Err(Error::Unfinished { left: plan.steps.len(), first: Box::new(step.clone()) });
                }
                Some(_) => {
                    let recording = Recording::lenient(&linux, store);
                    run(&recording, &plan, &mut report, turn == TURNS)?;
                    notes.extend(recording.failed.take());
                }
            }
            // What was set back is no longer to be set back, whether that could be recorded or not.
            for step in &report.done {
                if let Step::RestoreSysctl { path, .. } = step {
                    linux.before.remove(path);
                }
            }
        }
        Ok((first.unwrap_or_default(), report))
    }
}

/// Whether the record says that a generation is in force.
fn is_recorded(store: &Store) -> Result<bool, StoreError> {
    match store.current() {
        Ok(current) => Ok(current.is_some()),
        // A link that names nothing goes as well.
        Err(StoreError::Lost { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Taking down must not depend on a disk that takes no more writes.
fn lock_for_down(store: &Store, notes: &mut Vec<String>) -> Result<Option<Guard>, Error> {
    let error = match store.lock() {
        Ok(guard) => return Ok(Some(guard)),
        Err(busy @ StoreError::Busy { .. }) => return Err(busy.into()),
        Err(error) => error,
    };
    notes.push(format!("{}: what was removed is not recorded", chain(&error)));
    match store.lock_as_it_is() {
        Ok(guard) => Ok(Some(guard)),
        Err(busy @ StoreError::Busy { .. }) => Err(busy.into()),
        Err(_) => Ok(None),
    }
}

fn sysctls_for_down(store: &Store, notes: &mut Vec<String>) -> BTreeMap<String, String> {
    let error = match store.sysctls() {
        Ok(before) => return before,
        Err(error) => error,
    };
    let aside = match (&error, store.set_sysctls_aside()) {
        (StoreError::Corrupt { .. }, Ok(aside)) => format!("; it is {} now", aside.display()),
        _ => String::new(),
    };
    notes.push(format!(
        "{}{aside}: only forwarding that our rules tell of is set back; see `sysctl -a -r forwarding`",
        chain(&error)
    ));
    BTreeMap::new()
}
