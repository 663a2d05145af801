//! Generations: looked at, gone back to, confirmed, let go.

use std::thread::sleep;
use std::time::Duration;

use netns_policy::diagnostic::Source;
use netns_policy::difference::{Difference, differences};
use netns_policy::graph::AllowGraph;
use netns_policy::name::NetworkName;
use serde::Serialize;

use super::apply::Goal;
use super::{Applied, Checked, Confirm, Error, How, Orchestrator, Running};
use crate::session::Session;
use crate::store::{Event, Fate, Meta, Number, Pending, Store, StoreError};

/// One line of `nsctl generations`.
#[derive(Clone, Debug, Serialize)]
pub struct Generation {
    /// What it is.
    #[serde(flatten)]
    pub meta: Meta,
    /// `in force`, `waits to be confirmed`, `was in force`, or `never in force`; with `, cannot be read` when all else
    /// here is empty for that.
    pub state: String,
}

/// What a generation that waited came to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Settled {
    /// None waited.
    Nothing,
    /// It waits still, for so long.
    Waits(Pending, Duration),
    /// It was not confirmed, and this one is in force again; `None` when all was taken down.
    WentBack {
        /// The one that was not confirmed.
        from: Number,
        /// The one that is in force.
        to: Option<Number>,
        /// Whether the machine was started anew meanwhile.
        rebooted: bool,
    },
}

impl Orchestrator {
    /// Which network is meant where no policy is needed: the one named, else the policy's, else the only one on record.
    ///
    /// # Errors
    ///
    /// [`Error::NoNetwork`].
    pub fn recorded_network(&self, named: Option<&NetworkName>) -> Result<NetworkName, Error> {
        if let Some(named) = named {
            return Ok(named.clone());
        }
        if let Ok(checked) = self.check() {
            return Ok(checked.graph.network().name.clone());
        }
        match self.networks()?.as_slice() {
            [only] => Ok(only.clone()),
            known => Err(Error::NoNetwork { known: known.to_vec() }),
        }
    }

    /// Every generation that is kept, the oldest first.
    ///
    /// # Errors
    ///
    /// When the records cannot be read.
    pub fn generations(&self, network: &NetworkName) -> Result<Vec<Generation>, Error> {
        let store = self.store(network);
        let (current, pending, journal) = (store.current_unless_lost()?, store.pending()?, store.journal()?);
        let was = |number: Number| {
            journal.iter().any(|entry| entry.generation == Some(number) && entry.event != Event::Expired)
        };
        let state = |number: Number| match &pending {
            Some(pending) if pending.generation == number => "waits to be confirmed",
            _ if current == Some(number) => "in force",
            _ if was(number) => "was in force",
            _ => "never in force",
        };
        let all = store.generations()?.into_iter();
        let one = |number| match store.meta(number) {
            Ok(meta) => Ok(Generation { meta, state: state(number).into() }),
            // It is no reason not to tell of the others.
            Err(StoreError::Corrupt { .. }) => {
                Ok(Generation { meta: Meta::unknown(number), state: format!("{}, cannot be read", state(number)) })
            }
            Err(error) => Err(error.into()),
        };
        all.map(one).collect()
    }

    /// The generation in force, if there is one, and the one that waits to be confirmed.
    ///
    /// # Errors
    ///
    /// When the records cannot be read.
    pub fn in_force_now(&self, network: &NetworkName) -> Result<(Option<Number>, Option<Pending>), Error> {
        let store = self.store(network);
        Ok((store.current()?, store.pending()?))
    }

    /// The digest of the texts of a generation.
    ///
    /// # Errors
    ///
    /// When it is not kept.
    pub fn digest_of(&self, network: &NetworkName, number: Number) -> Result<String, Error> {
        Ok(self.store(network).meta(number)?.digest)
    }

    /// What two generations differ in, as edges; `to` defaults to the one in force, `from` to the one before `to`.
    ///
    /// # Errors
    ///
    /// [`Error::NoParent`]; when one of them is not kept, or cannot be read by this version.
    pub fn diff(
        &self,
        network: &NetworkName,
        from: Option<Number>,
        to: Option<Number>,
    ) -> Result<(Number, Number, Vec<Difference>), Error> {
        let store = self.store(network);
        let to = match to {
            Some(to) => to,
            None => store.current()?.ok_or(Error::NoParent)?,
        };
        let from = match from {
            Some(from) => from,
            None => store.meta(to)?.parent.ok_or(Error::NoParent)?,
        };
        let graph = |number| Ok::<AllowGraph, Error>(kept(&store, number)?.graph);
        Ok((from, to, differences(&graph(from)?, &graph(to)?)))
    }

    /// Puts a generation that is kept into force again: the one named, else the one before that which is in force. Of one
    /// that waits to be confirmed nothing is waited for any more.
    ///
    /// # Errors
    ///
    /// [`Error::NoParent`]; as [`Orchestrator::apply_with`].
    pub fn rollback(&self, network: &NetworkName, to: Option<Number>, how: &How) -> Result<Applied, Error> {
        let store = self.store(network);
        let _guard = store.lock()?;
        let pending = store.pending()?;
        let is = store.current_unless_lost()?;
        if let Some(against) = how.against
            && is != Some(against)
        {
            return Err(Error::Moved { against: Some(against), is });
        }
        let to = match (to, &pending) {
            (Some(to), _) => to,
            (None, Some(pending)) => pending.back.ok_or(Error::NoParent)?,
            (None, None) => store.meta(is.ok_or(Error::NoParent)?)?.parent.ok_or(Error::NoParent)?,
        };
        let checked = kept(&store, to)?;
        let mut options = self.options.clone();
        // What was renumbered since is numbered back.
        options.renumber = true;
        let back = Orchestrator::new(options);
        let applied = if pending.is_some() {
            // This is what it waits for, or instead of it: nobody is to be asked once more. Whoever closes their own way
            // by it has said so by asking for a confirmation all the same.
            let session = how.session.filter(|_| !matches!(how.confirm, Confirm::Within(_)));
            let how = How { confirm: Confirm::Never, session, ..*how };
            let applied = back.enforce(checked, &store, &how, Goal::Kept(to))?;
            store.forget_pending().map_err(|source| Error::Unrecorded { source })?;
            applied
        } else {
            back.enforce(checked, &store, how, Goal::Kept(to))?
        };
        store.note(Event::RolledBack, Some(to)).ok();
        applied.whole()
    }

    /// Closes every way in from outside, as a generation of its own that differs from the one in force in nothing else:
    /// whatever the policy's files say by now, and whether they can be read. Of a generation that waits to be confirmed, the
    /// one before it is taken. `None` where none is in force.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::apply_with`].
    pub fn close_all(&self, network: &NetworkName) -> Result<Option<Applied>, Error> {
        let store = self.store(network);
        let _guard = store.lock()?;
        let mut pending = store.pending()?;
        let waits = pending.as_ref().and_then(|pending| pending.back);
        let Some(number) = waits.or(store.current()?) else { return Ok(None) };
        let mut sources = store.sources(number)?;
        if !Checked::of(sources.clone())?.graph.exposes_nothing() {
            let words = "# nsctl expose --all off\nschema = 1\n[expose]\nall = \"off\"\n";
            sources.push(Source::toml("(nsctl expose --all off)", words));
        }
        let how = How { running: Running::Leave, ..How::default() };
        let checked = Checked::of(sources)?;
        let applied = match self.enforce(checked.clone(), &store, &how, Goal::Read) {
            // Old generations are worth less than a closed door.
            Err(Error::Store(StoreError::Io { .. })) => {
                let kept: Vec<Number> = store.current()?.into_iter().chain([number]).collect();
                store.prune(kept.len(), &kept).ok();
                self.enforce(checked, &store, &how, Goal::Read)?
            }
            other => other?,
        };
        match &mut pending {
            // It would be taken down, and still is: nobody has confirmed what it was.
            Some(pending) if pending.back.is_none() => {
                pending.generation = applied.generation;
                store.record_pending(pending)?;
            }
            Some(_) => store.forget_pending()?,
            None => {}
        }
        Ok(Some(applied))
    }

    /// Makes the generation in force so again, whatever the policy's files say by now: after the machine was started, and
    /// to mend. With what a generation that waited came to; nothing is made where none is in force.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::apply_with`], but that it is no error when services spoil what is done in their namespaces.
    pub fn restore(&self, network: &NetworkName) -> Result<(Settled, Option<Applied>), Error> {
        let store = self.store(network);
        let _guard = store.lock()?;
        let settled = self.settle(&store, network)?;
        let Some(number) = store.current()? else { return Ok((settled, None)) };
        let how = How { running: Running::Leave, ..How::default() };
        Ok((settled, Some(self.enforce(kept(&store, number)?, &store, &how, Goal::Kept(number))?)))
    }

    /// Keeps what waits. `session` is the connection of the caller.
    ///
    /// # Errors
    ///
    /// [`Error::NothingWaits`]; [`Error::SameSession`]; [`Error::NotWhole`]; [`Error::WentBack`] when it is too late.
    pub fn confirm(&self, network: &NetworkName, session: Option<&Session>) -> Result<Number, Error> {
        let store = self.store(network);
        let _guard = store.lock()?;
        match self.settle(&store, network)? {
            Settled::Nothing => Err(Error::NothingWaits),
            Settled::WentBack { from, to, rebooted } => Err(Error::WentBack { from, to, rebooted }),
            Settled::Waits(pending, _) => {
                let generation = pending.generation;
                if let Some(session) = session.filter(|session| pending.session.as_ref() == Some(session)) {
                    return Err(Error::SameSession { generation, session: session.clone() });
                }
                if store.current()? != Some(generation) {
                    return Err(Error::NotWhole { generation });
                }
                store.forget_pending()?;
                // It is so, with this line or without.
                store.note(Event::Confirmed, Some(generation)).ok();
                Ok(generation)
            }
        }
    }

    /// Waits until what waits is confirmed, replaced or too late, and goes back then: what a process of its own does, so
    /// that it happens without the daemon too.
    ///
    /// # Errors
    ///
    /// When the record cannot be read at all. What fails later is tried again, without end.
    pub fn hold(&self, network: &NetworkName) -> Result<Settled, Error> {
        const STEP: Duration = Duration::from_millis(500);
        const LONGEST: Duration = Duration::from_secs(30);
        let store = self.store(network);
        let Some(first) = store.pending()? else { return Ok(Settled::Nothing) };
        let mut pause = STEP;
        loop {
            let waits = match store.pending() {
                // It changes while it is read when the time begins anew; and a process may be short of something.
                Err(_) => None,
                Ok(Some(pending)) if pending.generation == first.generation => match pending.fate() {
                    Fate::Waits(left) => Some(left),
                    Fate::Expired | Fate::Rebooted => match self.expire(network) {
                        Ok(Settled::Waits(_, left)) => Some(left),
                        Ok(settled) => return Ok(settled),
                        Err(_) => None,
                    },
                },
                Ok(_) => return Ok(Settled::Nothing),
            };
            match waits {
                // Sleeping does not count the time that the machine is suspended, so never sleep long.
                Some(left) => {
                    pause = STEP;
                    sleep(left.min(STEP));
                }
                None => {
                    sleep(pause);
                    pause = (pause * 2).min(LONGEST);
                }
            }
        }
    }

    /// Goes back if what waits is too late.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::apply_with`].
    pub fn expire(&self, network: &NetworkName) -> Result<Settled, Error> {
        let store = self.store(network);
        if store.pending()?.is_none() {
            return Ok(Settled::Nothing);
        }
        let _guard = store.lock()?;
        self.settle(&store, network)
    }

    /// The same for who is about to change something, who cannot go on then.
    pub(super) fn settled(&self, store: &Store, network: &NetworkName) -> Result<(), Error> {
        match self.settle(store, network)? {
            Settled::Nothing => Ok(()),
            Settled::Waits(pending, left) => Err(Error::Waits { pending, left }),
            Settled::WentBack { from, to, rebooted } => Err(Error::WentBack { from, to, rebooted }),
        }
    }

    /// What waits, dealt with. The caller holds the lock.
    fn settle(&self, store: &Store, network: &NetworkName) -> Result<Settled, Error> {
        let Some(pending) = store.pending()? else { return Ok(Settled::Nothing) };
        if store.current_unless_lost()?.is_some_and(|is| is > pending.generation) {
            // A later one is in force: whoever put it there was cut off before they could say so here.
            store.forget_pending()?;
            return Ok(Settled::Nothing);
        }
        let rebooted = match pending.fate() {
            Fate::Waits(left) => return Ok(Settled::Waits(pending, left)),
            Fate::Expired => false,
            Fate::Rebooted => true,
        };
        self.undo(store, network, pending.back)?;
        store.note(Event::Expired, Some(pending.generation)).ok();
        Ok(Settled::WentBack { from: pending.generation, to: pending.back, rebooted })
    }
}

/// The policy of a generation. It was one when it was written; another version may see more in it.
pub(super) fn kept(store: &Store, number: Number) -> Result<Checked, Error> {
    Checked::of(store.sources(number)?)
}
