//! The workers of one network: which ought to run, and how they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::state::Shown;
use super::tend::Tender;
use super::{Event, Launcher, Phase, Spec, WorkerState};

/// How patient a fleet is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a worker may take until it is ready, or has taken a change.
    pub ready: Duration,
    /// How often it gives a sign of life.
    pub beat: Duration,
    /// After how long without one it is killed.
    pub silence: Duration,
    /// How long it may take to end when it is asked to.
    pub grace: Duration,
    /// The pause after a first failure; it doubles with each in a row.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// After how long of health earlier failures are forgotten.
    pub forgive: Duration,
    /// How long connections may go on in a worker that another one has replaced.
    pub farewell: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ready: Duration::from_secs(10),
            beat: Duration::from_secs(1),
            silence: Duration::from_secs(6),
            grace: Duration::from_secs(2),
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(30),
            forgive: Duration::from_secs(60),
            farewell: Duration::from_secs(24 * 3600),
        }
    }
}

/// Who is told what happens.
pub(super) type Told = Arc<dyn Fn(&Event) + Send + Sync>;

/// The workers of one network. All its methods but [`Fleet::states`] want a tokio runtime with time and I/O.
///
/// A fleet that is dropped kills its workers as soon as the runtime gets to it; [`Fleet::stop`] waits for the last one.
pub struct Fleet {
    launcher: Arc<Launcher>,
    timing: Timing,
    told: Told,
    members: BTreeMap<String, Member>,
}

struct Member {
    wanted: watch::Sender<Option<Arc<Spec>>>,
    shown: Arc<Shown>,
    tender: JoinHandle<()>,
}

impl Fleet {
    /// Nobody yet. `told` hears what happens; it must not block.
    pub fn new(launcher: Launcher, timing: Timing, told: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self { launcher: Arc::new(launcher), timing, told: Arc::new(told), members: BTreeMap::new() }
    }

    /// These ought to run, and no others; of two with one name the last. Returns at once: see [`Fleet::settled`].
    ///
    /// A worker whose work is another one now is told so and goes on, and connections that are still allowed with it.
    pub fn want(&mut self, specs: Vec<Spec>) {
        self.members.retain(|_, member| member.shown.state().phase != Phase::Stopped || member.is_wanted());
        let mut specs: BTreeMap<String, Arc<Spec>> =
            specs.into_iter().map(|spec| (spec.name.clone(), Arc::new(spec))).collect();
        for (name, member) in &self.members {
            member.want(specs.remove(name));
        }
        for (name, spec) in specs {
            let member = self.hire(&name, spec);
            self.members.insert(name, member);
        }
    }

    fn hire(&self, name: &str, spec: Arc<Spec>) -> Member {
        let shown = Arc::new(Shown::new(name, spec.work.kind()));
        let (wanted, receiver) = watch::channel(Some(spec));
        let tender = Tender::new(
            name.to_owned(),
            self.launcher.clone(),
            self.timing,
            receiver,
            shown.clone(),
            self.told.clone(),
        );
        Member { wanted, shown, tender: tokio::spawn(tender.tend()) }
    }

    /// How they are, by name.
    pub fn states(&self) -> Vec<WorkerState> {
        self.members.values().map(|member| member.shown.state()).collect()
    }

    /// Waits until what was wanted last is so, or has failed: each worker is ready, backing off or gone.
    pub async fn settled(&self) {
        for member in self.members.values() {
            // An error means that nobody will change it any more.
            member.shown.watch().wait_for(|inner| !inner.pending).await.ok();
        }
    }

    /// Ends all of them, and returns when the last process is gone.
    pub async fn stop(mut self) {
        self.want(Vec::new());
        for (_, member) in self.members {
            drop(member.wanted);
            member.tender.await.ok();
        }
    }
}

impl Member {
    fn is_wanted(&self) -> bool {
        self.wanted.borrow().is_some()
    }

    fn want(&self, spec: Option<Arc<Spec>>) {
        self.wanted.send_if_modified(|now| {
            let differs = *now != spec;
            if differs {
                // Before the tender can answer.
                self.shown.expects();
                *now = spec;
            }
            differs
        });
    }
}
