//! What the daemon does with a generation: looks, and mends.

use std::collections::BTreeSet;
use std::sync::Arc;

use netns_policy::name::NetworkName;
use netns_policy::plan::{Plan, Site};
use netns_policy::ruleset::compile::Capabilities;

use super::recording::{Recording, run};
use super::{Checked, Error, Orchestrator, Planned, history, proved};
use crate::drift::cookies;
use crate::kernel::probe;
use crate::report::Report;
use crate::store::Number;

/// A generation that is in force, read once: what does not change while it is.
#[derive(Clone, Debug)]
pub struct InForce {
    /// Its number.
    pub number: Number,
    /// The network.
    pub network: NetworkName,
    /// The policy.
    pub checked: Arc<Checked>,
    /// What the kernel can do.
    pub capabilities: Capabilities,
}

/// What was mended.
#[derive(Debug)]
pub struct Mended {
    /// What was not as it ought to be, and who is held closed.
    pub before: Planned,
    /// What was done about it.
    pub report: Report,
}

impl Orchestrator {
    /// Reads the generation in force; `None` when none is. Tries what the kernel can do, which makes scratch namespaces:
    /// `known` is taken where that was tried before.
    ///
    /// # Errors
    ///
    /// When the records cannot be read, or the kernel lacks something.
    pub fn load(&self, network: &NetworkName, known: Option<Capabilities>) -> Result<Option<InForce>, Error> {
        let store = self.store(network);
        let Some(number) = store.current()? else { return Ok(None) };
        let checked = Arc::new(history::kept(&store, number)?);
        let capabilities = known.map_or_else(probe::capabilities, Ok)?;
        Ok(Some(InForce { number, network: network.clone(), checked, capabilities }))
    }

    /// The kernel beside it, with nothing changed.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked.
    pub fn look_in(&self, in_force: &InForce) -> Result<Planned, Error> {
        let store = self.store(&in_force.network);
        self.planned(Checked::clone(&in_force.checked), &store, in_force.capabilities)
    }

    /// Makes it so again in one turn, but for the places that are held: those are closed. Nothing is done when another
    /// generation came into force, or somebody changes the network now.
    ///
    /// # Errors
    ///
    /// [`Error::Moved`]; [`StoreError::Busy`](crate::store::StoreError::Busy); [`Error::Step`] as for apply.
    pub fn mend(&self, in_force: &InForce, held: &BTreeSet<Site>) -> Result<Mended, Error> {
        let store = self.store(&in_force.network);
        let _guard = store.lock_at_once()?;
        let (is, pending) = (store.current()?, store.pending()?);
        if is != Some(in_force.number) || pending.is_some_and(|pending| pending.generation != in_force.number) {
            return Err(Error::Moved { against: Some(in_force.number), is });
        }
        self.remove_leftovers(&in_force.network)?;
        let before = self.look_in(in_force)?;
        let plan = before.plan.holding(held, &before.observed, &before.desired);
        let mut report = Report::default();
        if !plan.is_empty() {
            proved(&before)?;
            if store.addresses()? != before.book {
                store.record_addresses(&before.book)?;
            }
            let linux = self.linux(&in_force.network, &store)?;
            let done = run(&Recording::strict(&linux, &store), &plan, &mut report, false);
            cookies::record(&linux, &plan);
            done?;
        }
        Ok(Mended { before: Planned { plan, ..before }, report })
    }

    /// What `planned` leaves to do beside the held places.
    pub fn left(planned: &Planned, held: &BTreeSet<Site>) -> Plan {
        planned.plan.holding(held, &planned.observed, &planned.desired)
    }

    /// The networks that have a record under the state directory.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn recorded_networks(&self) -> Result<Vec<NetworkName>, Error> {
        Ok(crate::store::Store::networks(&self.options.state)?)
    }
}
