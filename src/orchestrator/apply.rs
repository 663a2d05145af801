//! Making it so.

use super::recording::{Recording, run};
use super::{Applied, Error, Orchestrator, Planned, TURNS, is_up, proved};
use crate::kernel::probe;
use crate::reconcile;
use crate::report::Report;
use crate::store::Store;

impl Orchestrator {
    /// Makes it so, once it is proved that it is what the policy says. A second call does nothing.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::plan`]; [`Error::Read`] when others can edit the policy ([`Editable`]); [`Error::Step`] when the
    /// kernel refuses a step: then nothing is open that neither the old nor the new policy allows, and the next call goes
    /// on from there.
    pub fn apply(&self) -> Result<Applied, Error> {
        let checked = self.check_guarded()?;
        let capabilities = probe::capabilities()?;
        let store = self.store(&checked.graph.network().name);
        let _guard = store.lock()?;
        self.remove_leftovers(&checked.graph.network().name)?;
        let mut planned = self.planned(checked, &store, capabilities)?;
        planned.proof = Some(proved(&planned)?);
        if self.adopt_sysctls(&planned, &store)? {
            planned = self.planned_again(planned, &store, capabilities)?;
        }
        let changes = planned.plan.changes.clone();
        let mut report = Report::default();
        for turn in 1.. {
            self.carry_out(&planned, &store, &mut report, turn == TURNS)?;
            planned = self.planned_again(planned, &store, capabilities)?;
            match planned.plan.steps.first() {
                None => break,
                // Somebody inside spoils it each time; everybody else is served.
                Some(_) if turn == TURNS && !report.spoiled.is_empty() => {
                    let spoiled = std::mem::take(&mut report.spoiled);
                    return Err(Error::Spoiled { report: Box::new(report), spoiled });
                }
                Some(step) if turn == TURNS => {
                    if let Some(spoiled) = reconcile::undone_inside(&planned.plan) {
                        return Err(Error::Spoiled { report: Box::new(report), spoiled });
                    }
                    return Err(Error::Unfinished { left: planned.plan.steps.len(), first: Box::new(step.clone()) });
                }
                Some(_) => {}
            }
        }
        let notes = self.notes(&planned);
        let proof = planned.proof.expect("every turn is planned with its proof");
        Ok(Applied { checked: planned.checked, addresses: planned.addresses, changes, report, notes, proof })
    }

    /// What another network has set already is not as it was before us: its record of that becomes ours too, so that
    /// whichever goes last sets it back. Says whether there was something.
    fn adopt_sysctls(&self, planned: &Planned, store: &Store) -> Result<bool, Error> {
        let mut before = store.sysctls()?;
        let others = store.sysctls_of_others(|other| is_up(&self.options.netns, other))?;
        let desired = &planned.desired;
        let shared = desired.sysctls.iter().filter_map(|(path, _)| Some((path, others.get(path)?)));
        // With what the kernel tells of a record that was lost.
        let shared = shared.chain(&planned.observed.host.before);
        let missing: Vec<_> = shared.filter(|(path, _)| !before.contains_key(*path)).collect();
        let some = !missing.is_empty();
        before.extend(missing.into_iter().map(|(path, value)| (path.clone(), value.clone())));
        if some {
            store.record_sysctls(&before)?;
        }
        Ok(some)
    }

    fn carry_out(&self, planned: &Planned, store: &Store, report: &mut Report, last: bool) -> Result<(), Error> {
        if store.addresses()? != planned.book {
            // Before anything is made with them: an index that was used once must never be given out again.
            store.record_addresses(&planned.book)?;
        }
        let linux = self.linux(&planned.desired.network, store)?;
        run(&Recording::strict(&linux, store), &planned.plan, report, last)
    }
}
