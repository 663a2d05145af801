//! The live prober: really connects, from inside each namespace, and compares what was seen with what was expected.
//!
//! It takes places and probes and gives a [`Report`]; it knows no policy. Where nothing listens on a probed port, a
//! listener of its own is put there for the time of the run, so that "closed" is said of a port where somebody would
//! have answered.
//!
//! # Invariants
//!
//! - What could not be proved is in [`Report::unproven`] with a reason. It is never counted as passed.
//! - A datagram that reached a listener is noticed there, even when the answer was lost on its way back.
//! - Nothing outlives [`run`]: no thread, no socket, no changed limit.
//!
//! # What it costs those who are probed
//!
//! A real TCP service sees connections that are reset at once, a real UDP service datagrams of 25 bytes. While the run
//! lasts, a service that starts finds its port taken if the probes ask for it, and a probed port on which nothing
//! listens accepts TCP from everybody whom the rules let in, the host's included, to say 25 bytes and hang up.
//!
//! A TCP handshake whose answers are lost is not visible to a listener: such a port counts as silent, which it is.

mod judge;
mod limit;
mod listen;
mod probe;
mod token;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use netns_policy::port::Protocol;
use thiserror::Error;

use crate::kernel::netns::Netns;
use judge::Judgement;
use listen::{Holders, Listeners, Socket};
use token::Nonce;

/// Somewhere that probes start from or go to: a service, the host, the stand-in for a network outside.
#[derive(Debug)]
pub struct Place {
    /// Its name, unique in a run.
    pub name: String,
    /// The namespace in which its sockets are made.
    pub netns: Netns,
    /// Its addresses: where a real program holds a port on some of them, the listeners take the others one by one.
    pub addresses: Vec<IpAddr>,
    /// The link that link-local addresses are meant on: `net0` in a service.
    pub link: String,
}

/// What a probe should find.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expected {
    /// A listener is reached and its answer comes back.
    Open,
    /// No listener is reached.
    Closed,
}

/// One attempt to reach a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Probe {
    /// The place in which it starts.
    pub from: String,
    /// The place that it should arrive in.
    pub to: String,
    /// The address that is dialled, which need not be one of the target's own: a port may be forwarded to it.
    pub address: IpAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port that is dialled and listened on.
    pub port: u16,
    /// What ought to happen.
    pub expected: Expected,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, address, protocol, port, .. } = self;
        write!(f, "{from} -> {to} ({address} {protocol}:{port})")
    }
}

/// An error number of the operating system, as it came back from connect(2), send(2) or recv(2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OsCode(pub i32);

impl fmt::Display for OsCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", nix::Error::from_raw(self.0).desc().to_lowercase())
    }
}

/// What a probe saw.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Our own listener in the right place answered with its token.
    Open,
    /// Our own listener in another place answered.
    Elsewhere(String),
    /// A connection was made, or an answer came, but not one of our listeners': a real program's, or a broken stream.
    Accepted,
    /// The network or the other side said no.
    Refused(OsCode),
    /// Nothing came back in time.
    Silent,
    /// The probe could not be made: this says nothing about the port.
    Failed(OsCode),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Elsewhere(place) => write!(f, "answered by {place}"),
            Self::Accepted => f.write_str("accepted"),
            Self::Refused(code) => write!(f, "refused: {code}"),
            Self::Silent => f.write_str("silent"),
            Self::Failed(code) => write!(f, "not probed: {code}"),
        }
    }
}

/// A probe that saw something else than it should.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mismatch {
    /// The probe.
    pub probe: Probe,
    /// What it saw.
    pub seen: Outcome,
    /// What else is known of it.
    pub note: Option<String>,
}

/// A probe that settled nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unproven {
    /// The probe.
    pub probe: Probe,
    /// What it saw.
    pub seen: Outcome,
    /// Why that proves nothing.
    pub reason: String,
}

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many probes were made.
    pub probes: usize,
    /// What each of them saw, in their order.
    pub outcomes: Vec<Outcome>,
    /// Those that saw something else than they should.
    pub mismatches: Vec<Mismatch>,
    /// Those that settled nothing.
    pub unproven: Vec<Unproven>,
    /// How long it took.
    pub elapsed: Duration,
}

impl Report {
    /// How many probes saw what they should.
    pub fn proven(&self) -> usize {
        self.probes - self.mismatches.len() - self.unproven.len()
    }
}

/// How patient and how busy a run is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long silence lasts where an answer is expected.
    pub open_timeout: Duration,
    /// How long silence lasts where none is expected.
    pub closed_timeout: Duration,
    /// How many probes of one source are under way at once, if the limit of open files allows it.
    pub window: usize,
    /// How many sources probe at once.
    pub parallel: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            open_timeout: Duration::from_secs(2),
            closed_timeout: Duration::from_millis(300),
            window: 1024,
            parallel: 4,
        }
    }
}

/// Why a run could not be made.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The work inside a namespace could not be done.
    #[error("cannot probe in {place}")]
    Inside {
        /// The place.
        place: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The listeners' own machinery could not be set up.
    #[error("cannot set the listeners up")]
    Listeners(#[source] io::Error),
    /// More probes than can be numbered, or places.
    #[error("more than {} probes or places in one run", u32::MAX - 1)]
    TooMany,
    /// Two places have one name.
    #[error("two places are called `{0}`")]
    TwicePlace(String),
    /// A probe names a place that was not given.
    #[error("a probe names `{0}`, which is no place of this run")]
    UnknownPlace(String),
}

/// A port of a place that is listened on.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Port {
    place: usize,
    protocol: Protocol,
    number: u16,
    ipv6: bool,
}

/// How long a datagram may still be on its way when the last probe has ended.
const SETTLE: Duration = Duration::from_millis(50);

/// Makes all `probes` and says what they saw. `progress` is told from time to time how many of how many are done.
///
/// # Errors
///
/// [`VerifyError`] when the run as a whole could not be made, for want of CAP_SYS_ADMIN for example. What goes wrong
/// with a single probe is in the report.
pub fn run(
    places: &[Place],
    probes: &[Probe],
    options: &Options,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Report, VerifyError> {
    let started = Instant::now();
    let index = index_of(places)?;
    let numbered = number(&index, probes)?;
    let limit = limit::Raised::to_hard();
    let budget = limit::Budget::of(&limit, options);
    let nonce = Nonce::new();
    let done = AtomicUsize::new(0);
    let mut judgement = Judgement::new(probes);
    for batch in batches(&numbered, budget.listeners) {
        let listeners = listen_for(places, &batch, nonce)?;
        let holders = Arc::new(listeners.holders);
        let work = by_source(&batch, probes, &holders);
        let tell = |n: usize| progress(done.fetch_add(n, Ordering::Relaxed) + n, probes.len());
        let seen = probe_all(places, work, nonce, budget.window, options, &tell)?;
        thread::sleep(SETTLE);
        let arrivals = listeners.running.finish();
        judgement.add(places, &batch, seen, &holders, &arrivals);
    }
    Ok(Report { elapsed: started.elapsed(), ..judgement.into_report() })
}

/// A probe with its number and the numbers of its ends.
#[derive(Clone, Copy, Debug)]
struct Numbered {
    probe: usize,
    from: usize,
    port: Port,
}

fn index_of(places: &[Place]) -> Result<BTreeMap<&str, usize>, VerifyError> {
    let mut index = BTreeMap::new();
    for (number, place) in places.iter().enumerate() {
        if index.insert(place.name.as_str(), number).is_some() {
            return Err(VerifyError::TwicePlace(place.name.clone()));
        }
    }
    Ok(index)
}

fn number(index: &BTreeMap<&str, usize>, probes: &[Probe]) -> Result<Vec<Numbered>, VerifyError> {
    let most = u32::MAX as usize - 1;
    if probes.len() > most || index.len() > most {
        return Err(VerifyError::TooMany);
    }
    let find = |name: &str| index.get(name).copied().ok_or_else(|| VerifyError::UnknownPlace(name.to_owned()));
    probes
        .iter()
        .enumerate()
        .map(|(number, probe)| {
            let (from, place) = (find(&probe.from)?, find(&probe.to)?);
            let port = Port { place, protocol: probe.protocol, number: probe.port, ipv6: probe.address.is_ipv6() };
            Ok(Numbered { probe: number, from, port })
        })
        .collect()
}

/// The probes in batches, each of which needs listeners on at most `most` ports.
fn batches(numbered: &[Numbered], most: usize) -> Vec<Vec<Numbered>> {
    let mut by_port = BTreeMap::<Port, Vec<Numbered>>::new();
    for one in numbered {
        by_port.entry(one.port).or_default().push(*one);
    }
    let ports: Vec<_> = by_port.into_values().collect();
    ports.chunks(most.max(1)).map(<[_]>::concat).collect()
}

/// Listeners at work, and who holds which port.
struct Listening {
    running: Listeners,
    holders: Holders,
}

fn listen_for(places: &[Place], batch: &[Numbered], nonce: Nonce) -> Result<Listening, VerifyError> {
    let mut wanted = BTreeMap::<usize, Vec<Port>>::new();
    for one in batch {
        let ports = wanted.entry(one.port.place).or_default();
        if ports.last() != Some(&one.port) {
            ports.push(one.port);
        }
    }
    let (mut sockets, mut holders) = (Vec::<Socket>::new(), Holders::new());
    for (place, ports) in wanted {
        let Place { name, netns, addresses, link } = &places[place];
        let (addresses, link) = (addresses.clone(), link.clone());
        let (made, held) = netns
            .run(move || listen::bind_all(&ports, &addresses, &link))
            .map_err(|source| VerifyError::Inside { place: name.clone(), source })?;
        sockets.extend(made);
        holders.extend(held);
    }
    let running = Listeners::start(sockets, nonce).map_err(VerifyError::Listeners)?;
    Ok(Listening { running, holders })
}

/// The work of each source.
fn by_source(batch: &[Numbered], probes: &[Probe], holders: &Holders) -> Vec<(usize, Vec<probe::Task>)> {
    let mut work = BTreeMap::<usize, Vec<probe::Task>>::new();
    for one in batch {
        let Probe { address, protocol, port, expected, .. } = probes[one.probe];
        work.entry(one.from).or_default().push(probe::Task {
            number: one.probe,
            place: one.port.place,
            address,
            protocol,
            port,
            expected,
            ours: holders.get(&one.port).is_some_and(|holder| holder.is_ours(address)),
        });
    }
    work.into_iter().collect()
}

/// Lets every source do its work, `options.parallel` of them at once.
fn probe_all(
    places: &[Place],
    work: Vec<(usize, Vec<probe::Task>)>,
    nonce: Nonce,
    window: usize,
    options: &Options,
    tell: &(dyn Fn(usize) + Sync),
) -> Result<Vec<probe::Seen>, VerifyError> {
    let queue = Mutex::new(work);
    let patience = probe::Patience { open: options.open_timeout, closed: options.closed_timeout };
    let worker = || {
        let mut all = Vec::new();
        // Not `while let`: the guard in its condition would be held while the work is done.
        loop {
            let Some((from, tasks)) = queue.lock().unwrap_or_else(PoisonError::into_inner).pop() else {
                return Ok(all);
            };
            let Place { name, netns, link, .. } = &places[from];
            let (count, link) = (tasks.len(), link.clone());
            let seen = netns
                .run(move || probe::run(&tasks, nonce, window, patience, &link))
                .map_err(|source| VerifyError::Inside { place: name.clone(), source })?;
            all.extend(seen);
            tell(count);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.parallel.max(1)).map(|_| scope.spawn(worker)).collect();
        let mut all = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(seen) => all.extend(seen?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}
