//! Making it so.
//!
//! # Invariants
//!
//! - The policy is proved, whoever is in the way is told, and the generation and what waits are on record, before
//!   anything is changed. When any of that fails nothing was changed.
//! - `current` names a generation only once the kernel was read back and is as that one says.

use std::collections::BTreeMap;

use netns_policy::changes::Change;
use netns_policy::desired::Desired;
use netns_policy::exposure::Exposure;
use netns_policy::name::NetworkName;
use netns_policy::plan::Step;
use netns_policy::ruleset::compile::Capabilities;
use netns_policy::topology::Place;

use super::recording::{Recording, run};
use super::{
    Applied, Checked, Confirm, Error, How, Occupied, Orchestrator, Planned, Running, TURNS, history, is_up, proved,
};
use crate::clock;
use crate::drift::cookies;
use crate::held;
use crate::kernel::{Linux, listener, occupants, probe};
use crate::lockout;
use crate::reconcile;
use crate::report::Report;
use crate::store::{self, Event, Meta, Number, Pending, Record, Store, StoreError};

/// How many generations are kept.
const KEPT: usize = 100;

/// Which generation is to be in force.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    /// One of the policy as it was read: the one in force if its texts are the same, else a new one.
    Read,
    /// One that is kept, as it was written.
    Kept(Number),
}

impl Orchestrator {
    /// Makes it so, once it is proved that it is what the policy says. A second call does nothing.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::apply_with`].
    pub fn apply(&self) -> Result<Applied, Error> {
        self.apply_with(&How::default())
    }

    /// Makes it so in this way, as a new generation where the policy is another one.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::plan`]; [`Error::Read`] when others can edit the policy
    /// ([`Editable`](crate::policy::Editable)); [`Error::Moved`] when another generation came into force meanwhile;
    /// [`Error::Waits`] while one waits to be confirmed, [`Error::WentBack`] when that was not in time; [`Error::Narrows`];
    /// [`Error::NoWayBack`]; [`Error::Occupied`]; [`Error::Unrecorded`]; [`Error::Step`] when the kernel refuses a step: then nothing is open that neither the old nor
    /// the new policy allows, and the next call goes on from there.
    pub fn apply_with(&self, how: &How) -> Result<Applied, Error> {
        self.apply_but_for(how)?.whole()
    }

    /// The same, where it is no failure that services spoil what is done in their own namespaces: that is in the report.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::apply_with`], but [`Error::Spoiled`].
    pub fn apply_but_for(&self, how: &How) -> Result<Applied, Error> {
        let network = self.check_guarded()?.graph.network().name.clone();
        // Before the state directory is made.
        probe::capabilities()?;
        let store = self.store(&network);
        let base = store.current()?;
        let against = how.against.or(base);
        let _guard = store.lock()?;
        self.settled(&store, &network)?;
        let is = store.current()?;
        if is != against {
            return Err(Error::Moved { against, is });
        }
        // Read under the lock: what was read before may be older than what somebody has applied since.
        let checked = self.check_guarded()?;
        if checked.graph.network().name != network {
            return Err(Error::Moved { against, is });
        }
        self.enforce(checked, &store, how, Goal::Read)
    }

    /// Makes what exists as `checked` says. The caller holds the lock.
    pub(super) fn enforce(&self, checked: Checked, store: &Store, how: &How, goal: Goal) -> Result<Applied, Error> {
        let capabilities = probe::capabilities()?;
        let network = checked.graph.network().name.clone();
        self.remove_leftovers(&network)?;
        let mut planned = self.planned(checked, store, capabilities)?;
        planned.proof = Some(proved(&planned)?);
        if self.adopt_sysctls(&planned, store)? {
            planned = self.planned_again(planned, store, capabilities)?;
        }
        let base = store.current_unless_lost()?;
        let is_new = matches!(goal, Goal::Read);
        let goal = self.goal(store, base, &planned, goal)?;
        let waits = self.allowed(&planned, store, how, (base, goal))?;
        if is_new {
            // Going back is for who may be locked out, and a start for a machine that nobody can walk to.
            self.ports_are_free(&planned)?;
        }
        if how.running == Running::Refuse {
            self.make_way(&planned, how.running)?;
        }
        if !store.generations()?.contains(&goal) {
            write(store, &planned, base, goal)?;
        }
        let pending = match waits {
            Some(within) => {
                Some(self.wait(store, &network, how, Pending::new(goal, base, within, how.session.cloned()))?)
            }
            None => None,
        };
        if let (Running::Stop(_), Err(error)) = (how.running, self.make_way(&planned, how.running)) {
            if pending.is_some() {
                store.forget_pending()?;
            }
            return Err(error);
        }
        // Whoever asks for a change has seen why a place is held closed, or sees it now.
        held::lift(&self.options.run, &network);
        let changes = planned.plan.changes.clone();
        let mut report = Report::default();
        let planned = match self.turns(planned, store, capabilities, &mut report) {
            Ok(planned) => planned,
            Err(error) if pending.is_some() => {
                // It waits for nobody: half of it is worse than either.
                self.undo(store, &network, base).ok();
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        // What one service spoils inside is no reason to leave everybody else with the old one.
        let recorded = self.in_force(store, base, goal, pending.as_ref());
        recorded.map_err(|source| Error::Unrecorded { source })?;
        let pending = match (pending, waits) {
            (Some(mut pending), Some(within)) => {
                // The time is the operator's, not that of the turn.
                pending.begin(within);
                store.record_pending(&pending).map_err(|source| Error::Unrecorded { source })?;
                Some(pending)
            }
            _ => None,
        };
        let notes = self.notes(&planned);
        let proof = planned.proof.expect("every turn is planned with its proof");
        let (checked, addresses) = (planned.checked, planned.addresses);
        let generation = goal;
        Ok(Applied { checked, addresses, changes, report, notes, proof, generation, before: base, pending })
    }

    /// The number of the generation that is to be in force.
    fn goal(&self, store: &Store, base: Option<Number>, planned: &Planned, goal: Goal) -> Result<Number, Error> {
        if let Goal::Kept(number) = goal {
            return Ok(number);
        }
        let digest = store::digest(&planned.checked.sources);
        let kept = store.generations()?;
        // The one in force, or the newest, which may have been cut off before it came into force.
        let same = |number: &Number| store.meta(*number).is_ok_and(|meta| meta.digest == digest);
        let known = base.into_iter().chain(kept.last().copied()).find(same);
        let next = Number(kept.last().map_or(0, |last| last.0) + 1);
        Ok(known.unwrap_or(next))
    }

    /// How long the change waits to be confirmed, if it does.
    fn allowed(
        &self,
        planned: &Planned,
        store: &Store,
        how: &How,
        (base, goal): (Option<Number>, Number),
    ) -> Result<Option<std::time::Duration>, Error> {
        let explicit = matches!(how.confirm, Confirm::Within(_));
        if let Some(session) = how.session.filter(|_| !explicit)
            && let Some(path) =
                lockout::narrowed(session, &planned.observed, &planned.desired, store, &planned.checked.graph)?
        {
            return Err(Error::Narrows { path });
        }
        // Made by a version without generations, or the record is lost: nobody knows what would come back.
        let is_unknown = base.is_none() && !planned.observed.is_nothing();
        Ok(match how.confirm {
            _ if base == Some(goal) => None,
            Confirm::Within(_) if is_unknown && !planned.plan.steps.is_empty() => return Err(Error::NoWayBack),
            _ if is_unknown => None,
            Confirm::Never => None,
            Confirm::OverSsh => how.session.map(|_| Confirm::USUAL),
            Confirm::Within(within) => Some(within),
        })
    }

    /// Sees that no program on the host listens on a port that is about to be led elsewhere: its callers would be taken
    /// from it. What is led elsewhere already stays so.
    fn ports_are_free(&self, planned: &Planned) -> Result<(), Error> {
        let comes = |exposure: &&Exposure| {
            let is_it = |change: &Change| {
                matches!(change, Change::AddEdge(edge) if edge.from == exposure.way.word()
                    && edge.ports == Some(exposure.ports) && exposure.service.as_str() == edge.to)
            };
            exposure.way.is_on_host() && planned.plan.changes.iter().any(is_it)
        };
        for exposure in planned.checked.graph.exposures().iter().filter(comes) {
            let Some(port) = exposure.way.external() else { continue };
            if listener::is_taken(exposure.ports.protocol(), port) {
                return Err(Error::PortTaken { exposure: exposure.to_string(), port, at: exposure.at.clone() });
            }
        }
        Ok(())
    }

    /// Sees that no process is in a service that is removed.
    fn make_way(&self, planned: &Planned, running: Running) -> Result<(), Error> {
        let linux = self.kernel(&planned.desired.network)?;
        let removed = planned.plan.steps.iter().filter_map(|step| match step {
            Step::DeleteNetns { netns } if !netns.contains('+') => Some(netns.clone()),
            _ => None,
        });
        self.vacate(&linux, removed.collect(), running)
    }

    /// Sees that no process is in any of these namespaces, as `running` says.
    pub(super) fn vacate(&self, linux: &Linux, netns: Vec<String>, running: Running) -> Result<(), Error> {
        if running == Running::Leave {
            return Ok(());
        }
        let mut all = Vec::new();
        for netns in netns {
            let occupied = || Ok::<_, Error>(occupants(linux, &netns)?.processes);
            let mut inside = occupied()?;
            if let Running::Stop(patience) = running
                && !inside.is_empty()
            {
                crate::stop::stop(patience, || occupants(linux, &netns).map(|all| all.processes))?;
                inside = occupied()?;
            }
            if !inside.is_empty() {
                all.push(Occupied::new(netns, &inside));
            }
        }
        let stopped = matches!(running, Running::Stop(_));
        if all.is_empty() { Ok(()) } else { Err(Error::Occupied { all, stopped }) }
    }

    /// Goes back to what was in force, at once and for good.
    pub(super) fn undo(&self, store: &Store, network: &NetworkName, back: Option<Number>) -> Result<(), Error> {
        match back {
            Some(back) => {
                // Whatever runs in a service that was new goes on without a network: the operator may be locked out. And
                // what was renumbered is numbered back.
                let how = How { running: Running::Leave, ..How::default() };
                let mut options = self.options.clone();
                options.renumber = true;
                let kept = history::kept(store, back)?;
                let undone = Orchestrator::new(options).enforce(kept, store, &how, Goal::Kept(back))?;
                drop(undone);
            }
            None => {
                let (_, _) = self.take_down(network, store, &mut Vec::new())?;
                store.set_current(None)?;
            }
        }
        // Last, so that a crash before this goes back once more.
        Ok(store.forget_pending()?)
    }

    /// Records that the change waits, and starts who goes back: before anything is changed.
    fn wait(&self, store: &Store, network: &NetworkName, how: &How, pending: Pending) -> Result<Pending, Error> {
        if let Err(error) = store.record_pending(&pending) {
            // It may be there, and not be known to be there for good.
            store.forget_pending().ok();
            return Err(error.into());
        }
        if let Some(Err(source)) = how.hold.map(|hold| hold(network, &pending)) {
            store.forget_pending()?;
            return Err(Error::Hold { source });
        }
        Ok(pending)
    }

    /// Turn after turn, until nothing is left to do.
    fn turns(
        &self,
        mut planned: Planned,
        store: &Store,
        capabilities: Capabilities,
        report: &mut Report,
    ) -> Result<Planned, Error> {
        for turn in 1.. {
            self.carry_out(&planned, store, report, turn == TURNS)?;
            planned = self.planned_again(planned, store, capabilities)?;
            match planned.plan.steps.first() {
                None => {
                    report.spoiled.clear();
                    break;
                }
                // Somebody inside spoils it each time; everybody else is served.
                Some(_) if turn == TURNS && !report.spoiled.is_empty() => break,
                Some(step) if turn == TURNS => {
                    if let Some(spoiled) = reconcile::undone_inside(&planned.plan) {
                        report.spoiled = spoiled;
                        break;
                    }
                    return Err(Error::Unfinished { left: planned.plan.steps.len(), first: Box::new(step.clone()) });
                }
                Some(_) => {}
            }
        }
        Ok(planned)
    }

    /// Records that this generation is in force.
    fn in_force(
        &self,
        store: &Store,
        base: Option<Number>,
        goal: Number,
        pending: Option<&Pending>,
    ) -> Result<(), StoreError> {
        if base == Some(goal) {
            return Ok(());
        }
        store.set_current(Some(goal))?;
        // It is so, with these lines and without old generations or not.
        store.note(if pending.is_some() { Event::Pending } else { Event::Applied }, Some(goal)).ok();
        let kept: Vec<Number> = base.into_iter().chain([goal]).collect();
        store.prune(KEPT, &kept).ok();
        Ok(())
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
        let recorded = store.addresses()?;
        if recorded != planned.book
            && let Err(error) = store.record_addresses(&planned.book)
            // Before anything is made with them: an index that was used once must never be given out again. Where none
            // is new, a full disk keeps nobody from going back.
            && recorded.next_index != planned.book.next_index
        {
            return Err(error.into());
        }
        let linux = self.linux(&planned.desired.network, store)?;
        let done = run(&Recording::strict(&linux, store), &planned.plan, report, last);
        cookies::record(&linux, &planned.plan);
        done
    }
}

fn write(store: &Store, planned: &Planned, base: Option<Number>, number: Number) -> Result<(), Error> {
    let graph = &planned.checked.graph;
    let meta = Meta {
        number,
        parent: base,
        time: clock::now(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot: clock::boot(),
        by: store::caller(),
        hash: graph.hash(),
        digest: store::digest(&planned.checked.sources),
        services: graph.services().count(),
        edges: graph.edges().len(),
        exposures: graph.exposures().len(),
        proved: planned.proof.as_ref().map_or(0, netns_policy::prove::Proof::classes),
    };
    let sources = &planned.checked.sources;
    let rules = rules(&planned.desired);
    store.write_generation(Record { sources, addresses: &planned.book, rules, meta: &meta })?;
    Ok(())
}

/// Every ruleset as nft(8) prints it, each under the name of its namespace: one at a time, for they are long together.
fn rules(desired: &Desired) -> impl Iterator<Item = String> + '_ {
    let links: BTreeMap<u32, String> =
        desired.wires.values().map(|wire| (wire.index, wire.outer.to_string())).collect();
    let fabric = format!("# {}\n{}", desired.fabric_netns(), desired.fabric.display(&links));
    let locks = desired.locks.iter().map(|(place, lock)| {
        let netns = desired.wires.get(place).and_then(|wire| wire.netns.clone());
        let netns = netns.unwrap_or_else(|| if *place == Place::Host { "the host".into() } else { place.to_string() });
        format!("# {netns}\n{}", lock.display(&BTreeMap::new()))
    });
    std::iter::once(fabric).chain(locks)
}
