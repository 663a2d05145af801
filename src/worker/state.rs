//! How a worker is, for people and programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Count, Fence, Kind};

/// What a worker is doing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Started, and not ready yet.
    Starting,
    /// It serves.
    Ready,
    /// It failed, and is started again after a pause.
    BackingOff,
    /// It is being ended.
    Stopping,
    /// It is gone, as it ought to be.
    Stopped,
}

/// How one worker is. As JSON it only ever grows.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WorkerState {
    /// Its name.
    pub name: String,
    /// What kind it is.
    pub kind: Kind,
    /// What it is doing.
    pub phase: Phase,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// The process, while there is one.
    pub pid: Option<u32>,
    /// How often it was started again after a failure.
    pub restarts: u64,
    /// Failures in a row; more than a few are a crash loop. A minute of health forgets them.
    pub failures: u32,
    /// Why it failed last, in one line.
    pub why: Option<String>,
    /// How long it is waited before the next start, in milliseconds, counted from `since`.
    pub pause: Option<u64>,
    /// What holds it, as it says itself.
    pub fences: Vec<Fence>,
    /// Its connections, those of its predecessors included.
    pub connections: Count,
}

impl WorkerState {
    /// How it is, in a few words: `ready`, `starting`, `backing off: it was ended by SIGKILL`, `crash loop: ...`.
    pub fn in_words(&self) -> String {
        let why = self.why.as_deref().unwrap_or("it failed");
        match self.phase {
            Phase::Starting => "starting".into(),
            Phase::Ready => "ready".into(),
            Phase::BackingOff if self.is_crash_loop() => format!("crash loop: {why}"),
            Phase::BackingOff => format!("backing off: {why}"),
            Phase::Stopping => "stopping".into(),
            Phase::Stopped => "stopped".into(),
        }
    }

    /// Whether it fails again and again.
    pub fn is_crash_loop(&self) -> bool {
        self.failures >= 5
    }
}

/// Something that happened, for a log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// A worker serves.
    Ready {
        /// Its name.
        worker: String,
        /// Its process.
        pid: u32,
    },
    /// A worker failed.
    Failed {
        /// Its name.
        worker: String,
        /// Why, in one line.
        why: String,
        /// When it is started again.
        pause: Duration,
    },
    /// A worker was ended, as it ought to be.
    Stopped {
        /// Its name.
        worker: String,
    },
    /// A worker printed a line.
    Line {
        /// Its name.
        worker: String,
        /// The line, without anything that a terminal obeys.
        text: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { worker, pid } => write!(f, "worker {worker} is ready, process {pid}"),
            Self::Failed { worker, why, pause } => {
                write!(f, "worker {worker} failed: {why}; again in {:.1} s", pause.as_secs_f32())
            }
            Self::Stopped { worker } => write!(f, "worker {worker} is gone"),
            Self::Line { worker, text } => write!(f, "worker {worker}: {text}"),
        }
    }
}

/// The state of one worker as its tender tells it, for all who look.
#[derive(Debug)]
pub(super) struct Shown(watch::Sender<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) state: WorkerState,
    /// Whether what was wanted last has not had its answer yet.
    pub(super) pending: bool,
    /// Counts of processes that live.
    live: BTreeMap<u32, Count>,
    /// Counts of those that are gone.
    gone: Count,
}

impl Shown {
    pub(super) fn new(name: &str, kind: Kind) -> Self {
        let state = WorkerState {
            name: name.to_owned(),
            kind,
            phase: Phase::Starting,
            since: now(),
            pid: None,
            restarts: 0,
            failures: 0,
            why: None,
            pause: None,
            fences: Vec::new(),
            connections: Count::default(),
        };
        let inner = Inner { state, pending: true, live: BTreeMap::new(), gone: Count::default() };
        Self(watch::Sender::new(inner))
    }

    pub(super) fn state(&self) -> WorkerState {
        self.0.borrow().state.clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Inner> {
        self.0.subscribe()
    }

    /// Something else is wanted.
    pub(super) fn expects(&self) {
        self.0.send_modify(|inner| inner.pending = true);
    }

    pub(super) fn starting(&self, again: bool) {
        self.phase(Phase::Starting, |state| {
            state.restarts += u64::from(again);
            state.fences.clear();
        });
    }

    pub(super) fn started(&self, pid: u32) {
        self.0.send_modify(|inner| inner.state.pid = Some(pid));
    }

    pub(super) fn hello(&self, fences: Vec<Fence>) {
        self.0.send_modify(|inner| inner.state.fences = fences);
    }

    /// It serves what was wanted.
    pub(super) fn ready(&self) {
        self.0.send_modify(|inner| {
            if inner.state.phase != Phase::Ready {
                (inner.state.phase, inner.state.since) = (Phase::Ready, now());
            }
            inner.pending = false;
        });
    }

    pub(super) fn healthy(&self) {
        self.0.send_if_modified(|inner| std::mem::take(&mut inner.state.failures) > 0);
    }

    pub(super) fn backing_off(&self, why: &str, pause: Duration, failures: u32) {
        self.phase(Phase::BackingOff, |state| {
            state.why = Some(why.to_owned());
            state.pause = Some(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
            state.failures = failures;
            state.pid = None;
            state.fences.clear();
        });
        self.0.send_modify(|inner| inner.pending = false);
    }

    pub(super) fn stopping(&self) {
        self.phase(Phase::Stopping, |_| {});
    }

    pub(super) fn stopped(&self) {
        self.phase(Phase::Stopped, |state| {
            state.pid = None;
            state.failures = 0;
            state.fences.clear();
        });
        self.0.send_modify(|inner| inner.pending = false);
    }

    /// A process says what it has.
    pub(super) fn counts(&self, pid: u32, count: Count) {
        self.0.send_modify(|inner| {
            inner.live.insert(pid, count);
            inner.sum();
        });
    }

    /// A process is gone.
    pub(super) fn gone(&self, pid: u32) {
        self.0.send_modify(|inner| {
            if let Some(count) = inner.live.remove(&pid) {
                inner.gone = inner.gone.and(Count { open: 0, ..count });
            }
            inner.sum();
        });
    }

    fn phase(&self, phase: Phase, more: impl FnOnce(&mut WorkerState)) {
        self.0.send_modify(|inner| {
            if inner.state.phase != phase {
                (inner.state.phase, inner.state.since) = (phase, now());
            }
            inner.state.pause = None;
            more(&mut inner.state);
        });
    }
}

impl Inner {
    fn sum(&mut self) {
        self.state.connections = self.live.values().fold(self.gone, |sum, count| sum.and(*count));
    }
}

impl Count {
    fn and(self, other: Self) -> Self {
        // Saturating: a number from a worker can be any.
        Self {
            open: self.open.saturating_add(other.open),
            total: self.total.saturating_add(other.total),
            refused: self.refused.saturating_add(other.refused),
            unanswered: self.unanswered.saturating_add(other.unanswered),
            evicted: self.evicted.saturating_add(other.evicted),
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_says_itself_in_words() {
        let shown = Shown::new("relay", Kind::Relay);
        let as_read = |shown: &Shown| -> WorkerState {
            serde_json::from_str(&serde_json::to_string(&shown.state()).unwrap()).unwrap()
        };
        assert_eq!(as_read(&shown), shown.state());
        assert_eq!(as_read(&shown).in_words(), "starting");
        shown.starting(false);
        shown.started(7);
        shown.hello(vec![Fence::Seccomp, Fence::NoNewPrivileges]);
        shown.ready();
        assert_eq!((as_read(&shown).in_words().as_str(), as_read(&shown)), ("ready", shown.state()));
        for (failures, words) in [(1, "backing off: it ended"), (5, "crash loop: it ended")] {
            shown.backing_off("it ended", Duration::from_secs(1), failures);
            assert_eq!((as_read(&shown).in_words().as_str(), as_read(&shown)), (words, shown.state()));
        }
    }

    #[test]
    fn what_a_worker_counted_is_not_lost_with_it() {
        let shown = Shown::new("relay", Kind::Relay);
        let count = Count { open: 3, total: 10, refused: 2, unanswered: 1, evicted: 0 };
        shown.counts(1, count);
        // Another one beside it, and then alone.
        shown.counts(2, Count { open: 1, total: 1, ..Count::default() });
        assert_eq!(shown.state().connections, Count { open: 4, total: 11, ..count });
        shown.gone(1);
        assert_eq!(shown.state().connections, Count { open: 1, total: 11, ..count });
        // Whatever a worker says, nothing overflows.
        shown.counts(3, Count { total: u64::MAX, ..Count::default() });
        assert_eq!(shown.state().connections.total, u64::MAX);
    }
}
