//! Taking a network down.

use std::collections::BTreeMap;

use netns_policy::desired::Desired;
use netns_policy::name::NetworkName;
use netns_policy::plan::{Plan, Step};

use super::recording::{Recording, run};
use super::{Error, Orchestrator, TURNS, told};
use crate::kernel::Kernel as _;
use crate::report::Report;
use crate::store::{Guard, Store, StoreError};

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
    /// Removes all that is ours; the recorded addresses stay, so that the services get them again.
    ///
    /// # Errors
    ///
    /// [`Error::NoNetwork`] when neither a policy nor the state says which; [`Error::Step`] as for apply.
    pub fn down(&self) -> Result<Removed, Error> {
        self.remove(self.network()?)
    }

    /// Removes all that is ours of this network, as [`Orchestrator::down`] does. Asks for no policy.
    ///
    /// # Errors
    ///
    /// [`Error::Step`] as for apply.
    pub fn remove(&self, network: NetworkName) -> Result<Removed, Error> {
        let store = self.store(&network);
        let mut notes = Vec::new();
        let _guard = lock_for_down(&store, &mut notes)?;
        self.remove_leftovers(&network)?;
        let mut linux = self.linux_with(&network, sysctls_for_down(&store, &mut notes));
        let mut report = Report::default();
        let mut first = None;
        for turn in 1.. {
            let observed = linux.observe()?;
            let plan = Plan::between(&observed, &Desired::nothing(&network));
            first.get_or_insert_with(|| plan.clone());
            match plan.steps.first() {
                None => break,
                Some(step) if turn > TURNS => {
                    return Err(Error::Unfinished { left: plan.steps.len(), first: Box::new(step.clone()) });
                }
                Some(_) => {
                    let recording = Recording::lenient(&linux, &store);
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
        notes.dedup();
        Ok(Removed { network, plan: first.unwrap_or_default(), report, notes })
    }
}

/// Taking down must not depend on a disk that takes no more writes.
fn lock_for_down(store: &Store, notes: &mut Vec<String>) -> Result<Option<Guard>, Error> {
    let error = match store.lock() {
        Ok(guard) => return Ok(Some(guard)),
        Err(busy @ StoreError::Busy { .. }) => return Err(busy.into()),
        Err(error) => error,
    };
    notes.push(format!("{}: what was removed is not recorded", told(&error)));
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
        told(&error)
    ));
    BTreeMap::new()
}
