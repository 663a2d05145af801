//! The life of one worker: started, watched, changed, ended, started again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::backoff::Backoff;
use super::fleet::{Timing, Told};
use super::listeners::Listeners;
use super::message::{Order, Word, tame};
use super::running::{Failure, Running, in_one_line};
use super::state::Shown;
use super::{Event, Launcher, Secret, Spec};

/// Looks after one worker until nobody can want it any more.
pub(super) struct Tender {
    name: String,
    launcher: Arc<Launcher>,
    timing: Timing,
    wanted: watch::Receiver<Option<Arc<Spec>>>,
    shown: Arc<Shown>,
    told: Told,
    listeners: Listeners,
    /// Workers that were replaced and still have connections.
    leaving: JoinSet<()>,
}

/// How a worker came to an end that is no failure.
enum End {
    /// It is not wanted any more.
    Unwanted,
    /// Another one has to do what is wanted now.
    Replaced(Arc<Spec>),
}

impl Tender {
    pub(super) fn new(
        name: String,
        launcher: Arc<Launcher>,
        timing: Timing,
        wanted: watch::Receiver<Option<Arc<Spec>>>,
        shown: Arc<Shown>,
        told: Told,
    ) -> Self {
        let (listeners, leaving) = (Listeners::default(), JoinSet::new());
        Self { name, launcher, timing, wanted, shown, told, listeners, leaving }
    }

    pub(super) async fn tend(mut self) {
        let mut backoff = Backoff::default();
        let mut again = false;
        loop {
            let Some(spec) = self.now_wanted() else {
                self.rest().await;
                (again, backoff) = (false, Backoff::default());
                if self.wanted.changed().await.is_err() {
                    return;
                }
                continue;
            };
            self.shown.starting(again);
            let born = Instant::now();
            match self.serve(spec).await {
                Ok(()) => (again, backoff) = (false, Backoff::default()),
                Err(why) => {
                    again = true;
                    let pause = backoff.after(born.elapsed(), &self.timing);
                    self.shown.backing_off(&why, pause, backoff.failures());
                    (self.told)(&Event::Failed { worker: self.name.clone(), why, pause });
                    tokio::select! {
                        () = sleep(pause) => {}
                        // Perhaps this one can be done.
                        _ = self.wanted.changed() => backoff.reset(),
                    }
                }
            }
        }
    }

    /// What is wanted, which is nothing once the fleet is gone.
    fn now_wanted(&mut self) -> Option<Arc<Spec>> {
        let is_over = self.wanted.has_changed().is_err();
        self.wanted.borrow_and_update().clone().filter(|_| !is_over)
    }

    /// Lets go of everything.
    async fn rest(&mut self) {
        while self.leaving.join_next().await.is_some() {}
        self.listeners = Listeners::default();
        self.shown.stopped();
        (self.told)(&Event::Stopped { worker: self.name.clone() });
    }

    /// One process from its start to its end, or why it failed.
    async fn serve(&mut self, spec: Arc<Spec>) -> Result<(), String> {
        let mut running = self.start(&spec).map_err(|failure| in_one_line(&failure))?;
        let pid = running.pid();
        self.shown.started(pid);
        let end = match configure(&running, &spec, &self.listeners, self.timing.beat) {
            Ok(()) => self.watch(&mut running, spec).await,
            Err(failure) => Err(failure),
        };
        let result = match end {
            Ok(End::Unwanted) => {
                self.shown.stopping();
                running.end(self.timing.grace).await;
                Ok(())
            }
            Ok(End::Replaced(spec)) => {
                self.see_off(running, &spec);
                return Ok(());
            }
            Err(Failure::Ended(_)) => Err(running.killed_after(Duration::from_millis(500)).await.in_words()),
            Err(failure) => {
                running.killed_after(Duration::ZERO).await;
                Err(in_one_line(&failure))
            }
        };
        self.shown.gone(pid);
        result
    }

    fn start(&mut self, spec: &Spec) -> Result<Running, Failure> {
        let addresses = addresses(spec);
        self.listeners.bind(&spec.netns, &addresses)?;
        self.listeners.keep(&addresses);
        Running::of(self.launcher.launch(spec)?).map_err(Failure::Order)
    }

    /// Hears a worker out and passes on what is wanted, until it ends or has to.
    async fn watch(&mut self, running: &mut Running, spec: Arc<Spec>) -> Result<End, Failure> {
        let pid = running.pid();
        // How many of the orders given it has not answered yet.
        let (mut greeted, mut due, mut spec) = (false, 1, spec);
        let born = Instant::now();
        let mut deadline = born + self.timing.ready;
        loop {
            let word = tokio::select! {
                // What it has said counts, even when nobody listened for a while.
                biased;
                word = running.speech.word() => word?,
                text = running.lines.next() => {
                    (self.told)(&Event::Line { worker: self.name.clone(), text });
                    continue;
                }
                _ = self.wanted.changed() => {
                    let Some(wanted) = self.now_wanted() else { return Ok(End::Unwanted) };
                    if !self.can_take(running, &spec, &wanted)? {
                        return Ok(End::Replaced(wanted));
                    }
                    (spec, due, deadline) = (wanted, due + 1, Instant::now() + self.timing.ready);
                    continue;
                }
                () = sleep_until(deadline) => {
                    return Err(if due == 0 { Failure::Silent(self.timing.silence) } else { Failure::NotReady(self.timing.ready) });
                }
            };
            match word {
                Word::Hello { pid: said, fences } if !greeted && said == pid => {
                    if !running.is_held_by(&fences) {
                        return Err(Failure::Protocol("is not held as it has to be: it has rights, or another's user"));
                    }
                    greeted = true;
                    self.shown.hello(fences);
                }
                Word::Ready if greeted && due > 0 => {
                    due -= 1;
                    if due == 0 {
                        // Only now: until then the worker may still have been busy with what was there before.
                        self.listeners.keep(&addresses(&spec));
                        self.shown.ready();
                        (self.told)(&Event::Ready { worker: self.name.clone(), pid });
                    }
                }
                Word::Alive(count) if greeted => {
                    self.shown.counts(pid, count);
                    // The gateway may be another one now: nobody comes to these listeners any more.
                    self.listeners.are_in(&spec.netns)?;
                }
                Word::Failed { why } => return Err(Failure::Said(tame(&why))),
                Word::Hello { .. } | Word::Ready | Word::Alive(_) => {
                    return Err(Failure::Protocol("said what it may not say at this point"));
                }
            }
            if due == 0 {
                deadline = Instant::now() + self.timing.silence;
                if born.elapsed() >= self.timing.forgive {
                    self.shown.healthy();
                }
            }
        }
    }

    /// Tells a worker what is wanted now. No, when it takes another one.
    fn can_take(&mut self, running: &Running, spec: &Spec, wanted: &Spec) -> Result<bool, Failure> {
        let is_same = spec.netns == wanted.netns && spec.program == wanted.program;
        if !is_same || !spec.work.can_become(&wanted.work) {
            return Ok(false);
        }
        self.listeners.are_in(&wanted.netns)?;
        self.listeners.bind(&wanted.netns, &addresses(wanted))?;
        configure(running, wanted, &self.listeners, self.timing.beat)?;
        Ok(true)
    }

    /// Lets a worker that is replaced go on with the connections that are still allowed.
    fn see_off(&mut self, running: Running, wanted: &Spec) {
        let farewell = Farewell { timing: self.timing, wanted: self.wanted.clone(), shown: self.shown.clone() };
        let order = order(wanted, Vec::new(), Vec::new(), self.timing.beat);
        self.leaving.spawn(farewell.say(running, order));
        while self.leaving.try_join_next().is_some() {}
    }
}

/// What a worker is still watched with that was replaced.
struct Farewell {
    timing: Timing,
    wanted: watch::Receiver<Option<Arc<Spec>>>,
    shown: Arc<Shown>,
}

impl Farewell {
    async fn say(mut self, mut running: Running, order: Result<Order, Failure>) {
        let pid = running.pid();
        let told = order.and_then(|order| {
            running.speech.order(&Order::Drain, &[])?;
            running.speech.order(&order, &[])
        });
        if told.is_ok() {
            self.listen(&mut running).await;
        }
        running.end(self.timing.grace).await;
        self.shown.gone(pid);
    }

    /// Until it has ended, has to, or is not heard of any more.
    async fn listen(&mut self, running: &mut Running) {
        let pid = running.pid();
        let last = Instant::now() + self.timing.farewell;
        let mut deadline = Instant::now() + self.timing.silence;
        loop {
            tokio::select! {
                biased;
                word = running.speech.word() => match word {
                    Ok(Word::Alive(count)) => self.shown.counts(pid, count),
                    Ok(Word::Ready) => {}
                    Ok(_) | Err(_) => return,
                },
                _ = running.lines.next() => continue,
                changed = self.wanted.changed() => {
                    let wanted = self.wanted.borrow_and_update().clone();
                    let Some(wanted) = wanted.filter(|_| changed.is_ok()) else { return };
                    let order = order(&wanted, Vec::new(), Vec::new(), self.timing.beat);
                    if order.and_then(|order| running.speech.order(&order, &[])).is_err() {
                        return;
                    }
                }
                () = sleep_until(deadline.min(last)) => return,
            }
            deadline = Instant::now() + self.timing.silence;
        }
    }
}

fn addresses(spec: &Spec) -> BTreeSet<SocketAddr> {
    spec.work.listeners().into_values().collect()
}

fn order(spec: &Spec, sockets: Vec<String>, secrets: Vec<String>, beat: Duration) -> Result<Order, Failure> {
    let config = spec.work.config().map_err(|error| Failure::Order(error.into()))?;
    let beat = u64::try_from(beat.as_millis()).unwrap_or(u64::MAX);
    Ok(Order::Configure { config, sockets, secrets, beat })
}

/// Tells a worker what to do, lends it the listeners for it and lets it know its secrets.
fn configure(running: &Running, spec: &Spec, listeners: &Listeners, beat: Duration) -> Result<(), Failure> {
    let wanted = spec.work.listeners();
    let lent: Vec<(&String, BorrowedFd)> =
        wanted.iter().filter_map(|(name, address)| Some((name, listeners.at(address)?.as_fd()))).collect();
    let files: Vec<OwnedFd> =
        spec.secrets.values().map(Secret::to_file).collect::<Result<_, _>>().map_err(Failure::Order)?;
    let sockets = lent.iter().map(|(name, _)| (*name).clone()).collect();
    let order = order(spec, sockets, spec.secrets.keys().cloned().collect(), beat)?;
    let lent = lent.into_iter().map(|(_, descriptor)| descriptor);
    let descriptors: Vec<BorrowedFd> = lent.chain(files.iter().map(|file| file.as_fd())).collect();
    running.speech.order(&order, &descriptors)
}
