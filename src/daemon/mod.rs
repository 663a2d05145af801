//! The daemon: compares every network of this machine with its generation, mends drift, and goes back when a generation is
//! not confirmed.
//!
//! # Invariants
//!
//! - Its loss changes nothing in the kernel. Whatever it does, `nsctl apply` does too; a change is made under the lock that
//!   every nsctl takes.
//! - It reads no policy file by itself: a generation comes into force by `apply`, `rollback` or `reload`.
//! - What faces the outside does not run in it.
//! - Blocking work on the kernel is not done on the thread that serves sockets and the watchdog.

mod budget;
mod client;
mod control;
mod metrics;
mod network;
mod snapshot;
mod watch;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netns_policy::name::NetworkName;
use netns_policy::topology::is_netns_of;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::network::{Compared, Watched};
use self::watch::{Voice, Watch};
use self::workers::Fleets;
use crate::kernel::netns;
use crate::worker::Launcher;
use crate::{Orchestrator, clock};

pub use self::client::{ClientError, ask};
pub use self::control::{Reload, Request};
pub use self::snapshot::{NetworkSnapshot, Repair, Snapshot};

/// How often everything is compared although nothing was heard.
pub const EVERY: Duration = Duration::from_secs(60);

/// How long one waits for more after something was heard: one change is many messages.
const MORE: Duration = Duration::from_millis(30);

/// The control socket, in the run directory.
pub const CONTROL: &str = "control.sock";

/// The socket of the metrics, in the run directory.
pub const METRICS: &str = "metrics.sock";

/// Why the daemon does not run.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// Another one does.
    #[error("another daemon listens on {}", path.display())]
    Running {
        /// Its control socket.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

fn refused(action: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Io { action, source }
}

/// What the daemon is told.
#[derive(Clone)]
pub struct Settings {
    /// This network alone; `None`: all that have a record.
    pub network: Option<NetworkName>,
    /// Applies the policy's files, for `reload`: the answer, or the failure, as JSON.
    pub reload: Arc<dyn Fn(&Reload) -> serde_json::Value + Send + Sync>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("network", &self.network).finish_non_exhaustive()
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`DaemonError`], before it says that it is ready; afterwards it goes on whatever happens.
pub fn run(nsctl: Orchestrator, settings: Settings) -> Result<(), DaemonError> {
    raise_descriptor_limit();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // A look is one thing at a time; what is kept of a thread that has nothing to do is memory.
    runtime.enable_all().max_blocking_threads(4).thread_keep_alive(Duration::from_millis(10));
    let runtime = runtime.build().map_err(refused("start the runtime"))?;
    runtime.block_on(Daemon::start(nsctl, settings)?.serve())
}

/// Two sockets a namespace, and systemd's soft limit is 1024.
fn raise_descriptor_limit() {
    const ENOUGH: u64 = 1 << 16;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // What is refused here is told when a socket is.
        setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(ENOUGH)), hard).ok();
    }
}

/// The longest that a compare may take before the daemon counts as hanging: one of a thousand services, with repairs, on
/// a slow machine takes seconds. A reload takes as long as its processes take to end, and is not counted.
const HANGS: Duration = Duration::from_secs(120);

/// Tells systemd that the daemon lives, as long as it does not hang.
async fn beat(every: Duration, busy: Arc<Mutex<Option<Instant>>>) {
    loop {
        let since = *busy.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_none_or(|since| since.elapsed() < HANGS) {
            sd_notify::notify(&[NotifyState::Watchdog]).ok();
        }
        tokio::time::sleep(every).await;
    }
}

struct Daemon {
    nsctl: Orchestrator,
    settings: Settings,
    networks: BTreeMap<NetworkName, Watched>,
    /// When each is compared next.
    due: BTreeMap<NetworkName, Instant>,
    shared: Shared,
    /// The directories that are watched, as they were.
    watched: Vec<(PathBuf, Option<(u64, u64)>)>,
}

/// What is known, for those who ask.
#[derive(Clone)]
struct Shared {
    snapshot: Arc<Mutex<Snapshot>>,
    fleets: Fleets,
}

impl Shared {
    /// All of it, with the workers as they are now.
    fn now(&self) -> Snapshot {
        let mut now = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (network, states) in self.fleets.states() {
            if let Some(network) = now.networks.get_mut(&network) {
                network.workers = states.iter().filter_map(|state| serde_json::to_value(state).ok()).collect();
            }
        }
        now
    }
}

impl Daemon {
    fn start(nsctl: Orchestrator, settings: Settings) -> Result<Self, DaemonError> {
        let snapshot = Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: clock::now(),
            networks: BTreeMap::new(),
        };
        let launcher = Launcher::beside_this_program().map_err(|error| DaemonError::Io {
            action: "find the programs of workers",
            source: io::Error::other(error),
        })?;
        let shared = Shared { snapshot: Arc::new(Mutex::new(snapshot)), fleets: Fleets::new(launcher) };
        Ok(Self { nsctl, settings, networks: BTreeMap::new(), due: BTreeMap::new(), shared, watched: Vec::new() })
    }

    async fn serve(mut self) -> Result<(), DaemonError> {
        let run = self.nsctl.options().run.clone();
        std::fs::create_dir_all(&run).map_err(refused("make the run directory"))?;
        // A directory that is not there cannot be watched.
        let mut private = std::fs::DirBuilder::new();
        let made = private.recursive(true).mode(0o700).create(&self.nsctl.options().state);
        made.map_err(refused("make the state directory"))?;
        let (asked, mut requests) = mpsc::channel(16);
        let control = control::listen(&run.join(CONTROL), asked, self.shared.clone())?;
        let metrics = metrics::listen(&run.join(METRICS), self.shared.clone())?;
        let mut watch = Watch::new(&[]).map_err(refused("listen to the kernel"))?;
        let mut term = signal(SignalKind::terminate()).map_err(refused("wait for signals"))?;
        let mut int = signal(SignalKind::interrupt()).map_err(refused("wait for signals"))?;
        self.find(&mut watch);
        self.compare_due(&mut watch, Instant::now()).await;
        sd_notify::notify(&[NotifyState::Ready]).ok();
        tracing::info!(networks = self.networks.len(), "ready");
        let busy = Arc::new(Mutex::new(None));
        let beat = sd_notify::watchdog_enabled().map(|within| tokio::spawn(beat(within / 2, Arc::clone(&busy))));
        let mut forgiven = Instant::now();
        loop {
            let next = self.due.values().copied().chain(watch.next_wake()).min();
            let next = next.unwrap_or_else(|| Instant::now() + EVERY);
            tokio::select! {
                voices = watch.hear() => match voices {
                    Ok(voices) => self.heard(&voices),
                    Err(error) => {
                        // The compare of every minute remains.
                        tracing::error!("cannot listen to the kernel: {error}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
                () = tokio::time::sleep_until(next.into()) => {}
                request = requests.recv() => if let Some(request) = request { self.answer(request).await },
                _ = term.recv() => break,
                _ = int.recv() => break,
            }
            let now = Instant::now();
            watch.wake(now);
            if now.duration_since(forgiven) >= EVERY {
                watch.forgive();
                forgiven = now;
            }
            *busy.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
            self.compare_due(&mut watch, now).await;
            *busy.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        sd_notify::notify(&[NotifyState::Stopping]).ok();
        self.shared.fleets.stop().await;
        if let Some(beat) = beat {
            beat.abort();
        }
        control.abort();
        metrics.abort();
        std::fs::remove_file(run.join(CONTROL)).ok();
        std::fs::remove_file(run.join(METRICS)).ok();
        tracing::info!("stopped; the rules stay in the kernel");
        Ok(())
    }

    /// Which networks there are.
    fn find(&mut self, watch: &mut Watch) {
        let all = match &self.settings.network {
            Some(only) => vec![only.clone()],
            None => self.nsctl.recorded_networks().unwrap_or_default(),
        };
        for network in all {
            self.networks.entry(network.clone()).or_insert_with(|| {
                self.due.insert(network.clone(), Instant::now());
                Watched::new(self.nsctl.clone(), network)
            });
        }
        let state = self.nsctl.options().state.clone();
        let gone = |network: &NetworkName| self.settings.network.is_none() && !state.join(network.as_str()).is_dir();
        for network in self.networks.keys().filter(|network| gone(network)) {
            self.shared.fleets.want(network, Vec::new());
        }
        self.networks.retain(|network, _| !gone(network));
        self.due.retain(|network, _| self.networks.contains_key(network));
        let options = self.nsctl.options();
        let own = self.networks.values().flat_map(Watched::directories);
        let all: Vec<PathBuf> = [options.netns.clone(), options.state.clone()].into_iter().chain(own).collect();
        // One that comes later, or is replaced, is watched from then on.
        let identity = |path: &PathBuf| std::fs::metadata(path).ok().map(|is| (is.dev(), is.ino()));
        let now: Vec<_> = all.iter().map(|path| (path.clone(), identity(path))).collect();
        if now != self.watched {
            self.watched = now;
            let all: Vec<&Path> = all.iter().map(PathBuf::as_path).collect();
            if let Err(error) = watch.files(&all) {
                tracing::error!("cannot watch the state directory: {error}");
            }
        }
    }

    /// Somebody was heard: their networks are compared soon.
    fn heard(&mut self, voices: &BTreeSet<Voice>) {
        let soon = Instant::now() + MORE;
        for (network, due) in &mut self.due {
            let concerns = voices.iter().any(|voice| match voice {
                Voice::Host | Voice::Files => true,
                Voice::Netns(name) => is_netns_of(network, name),
            });
            if concerns {
                *due = (*due).min(soon);
            }
        }
    }

    /// Compares the networks whose time has come.
    async fn compare_due(&mut self, watch: &mut Watch, now: Instant) {
        self.find(watch);
        let due: Vec<NetworkName> =
            self.due.iter().filter(|(_, due)| **due <= now).map(|(network, _)| network.clone()).collect();
        if due.is_empty() {
            return;
        }
        watch.forget();
        let mut drift = false;
        for network in due {
            let Some(mut watched) = self.networks.remove(&network) else { continue };
            let compared = tokio::task::spawn_blocking(move || {
                let compared = watched.compare();
                (watched, compared)
            });
            let (watched, compared) = match compared.await {
                Ok(compared) => compared,
                Err(error) => {
                    // A panic is a mistake of ours, and no reason to leave the others alone.
                    tracing::error!(%network, "the compare did not end: {error}");
                    let mut anew = Watched::new(self.nsctl.clone(), network.clone());
                    anew.snapshot.error = Some("the compare did not end: a mistake of nsctl's".into());
                    (anew, Compared { again: Some(Duration::from_secs(5)), ..Compared::default() })
                }
            };
            drift |= compared.drift;
            let again = compared.again.map_or(EVERY, |again| again.clamp(MORE, EVERY));
            self.due.insert(network.clone(), Instant::now() + again);
            if let Some(specs) = compared.workers {
                self.shared.fleets.want(&network, specs);
            }
            self.share(&network, &watched);
            self.networks.insert(network, watched);
        }
        watch.settle(drift, Instant::now());
        self.listen_to_namespaces(watch);
    }

    fn listen_to_namespaces(&self, watch: &mut Watch) {
        let pins = &self.nsctl.options().netns;
        let all = netns::pinned(pins).unwrap_or_default();
        let ours = |name: &String| self.networks.keys().any(|network| is_netns_of(network, name));
        watch.namespaces(pins, &all.into_iter().filter(ours).collect());
    }

    fn share(&self, network: &NetworkName, watched: &Watched) {
        let mut shared = self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        shared.networks.insert(network.to_string(), watched.snapshot.clone());
        shared.networks.retain(|name, _| self.due.keys().any(|network| network.as_str() == name));
    }

    /// A request that changes something.
    async fn answer(&mut self, request: control::Asked) {
        let control::Asked { reload, answer } = request;
        let carry_out = Arc::clone(&self.settings.reload);
        let answered = tokio::task::spawn_blocking(move || carry_out(&reload)).await;
        let value =
            answered.unwrap_or_else(|error| serde_json::json!({ "errors": [{ "message": error.to_string() }] }));
        answer.send(value).ok();
        self.due.values_mut().for_each(|due| *due = Instant::now());
    }
}
