//! Hears of changes in the kernel: links, addresses, routes and rules of the namespaces of a network and of the host, pins,
//! and which generation is in force.
//!
//! # Invariants
//!
//! - A message only says that something may have changed: what has, is read from the kernel. So none is decoded, and a
//!   lost one (`ENOBUFS`) is as good as a read one.
//! - Whoever makes noise for nothing is listened to less and less, up to [`QUIET`]; the compare of every minute does not
//!   depend on any of them.
//! - A namespace that was replaced under its name is listened to anew: the pin's inode tells, and the sockets of the old
//!   one are closed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use crate::kernel::netns::Netns;

/// Multicast groups of rtnetlink(7), as `RTNLGRP_*` of linux/rtnetlink.h: links, addresses, routes, rules.
const ROUTE_GROUPS: [u32; 7] = [1, 5, 9, 7, 11, 8, 19];

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const NFTABLES_GROUPS: [u32; 1] = [7];

/// So many times in a row somebody may be heard for nothing.
const PATIENCE: u32 = 5;

/// The longest time for which nobody listens to a noisy one.
const QUIET: Duration = Duration::from_secs(30);

/// What is listened to.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Voice {
    /// The host's own namespace.
    Host,
    /// A namespace, by the name of its pin.
    Netns(String),
    /// Directories: pins, and records.
    Files,
}

/// A pin as it was when it was opened.
type Identity = (u64, u64);

#[derive(Debug)]
struct Ear {
    voice: Voice,
    descriptor: Descriptor,
    /// How often it was heard for nothing.
    idle: u32,
    /// When it is listened to again.
    again: Option<Instant>,
}

#[derive(Debug)]
enum Descriptor {
    Netlink(Socket),
    Inotify(Inotify),
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Netlink(socket) => socket.as_fd(),
            Self::Inotify(inotify) => inotify.as_fd(),
        }
    }
}

impl Descriptor {
    /// Reads all that is there, and forgets it.
    fn drain(&self) {
        match self {
            Self::Netlink(socket) => {
                let mut buffer = Vec::with_capacity(64 << 10);
                loop {
                    buffer.clear();
                    match socket.recv(&mut buffer, 0) {
                        Err(e) if e.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
                        Ok(n) if n > 0 => {}
                        _ => return,
                    }
                }
            }
            Self::Inotify(inotify) => while inotify.read_events().is_ok_and(|events| !events.is_empty()) {},
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: Epoll,
    readiness: AsyncFd<OwnedFd>,
    ears: BTreeMap<u64, Ear>,
    next: u64,
    pins: BTreeMap<String, Identity>,
    heard: BTreeSet<u64>,
}

impl Watch {
    /// Listens to the host, and to these directories as far as they are there.
    ///
    /// # Errors
    ///
    /// When the kernel gives no sockets.
    pub(super) fn new(directories: &[&Path]) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let readiness = asynchronous(epoll.0.try_clone()?)?;
        let mut watch =
            Self { epoll, readiness, ears: BTreeMap::new(), next: 0, pins: BTreeMap::new(), heard: BTreeSet::new() };
        watch.files(directories)?;
        for socket in sockets()? {
            watch.listen(Voice::Host, Descriptor::Netlink(socket))?;
        }
        Ok(watch)
    }

    /// Looks into these directories, and into no others.
    ///
    /// # Errors
    ///
    /// When the kernel gives no inotify(7).
    pub(super) fn files(&mut self, directories: &[&Path]) -> io::Result<()> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let what = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        for directory in directories {
            // What is not there yet is made by us, and looked into after the next compare.
            inotify.add_watch(*directory, what).ok();
        }
        let old: Vec<u64> = self.of(|voice| *voice == Voice::Files);
        self.listen(Voice::Files, Descriptor::Inotify(inotify))?;
        old.into_iter().for_each(|token| self.deaf(token));
        Ok(())
    }

    /// Listens to exactly these namespaces, each as it is pinned now.
    pub(super) fn namespaces(&mut self, directory: &Path, names: &BTreeSet<String>) {
        let now: BTreeMap<String, Identity> = names
            .iter()
            .filter_map(|name| {
                let is = std::fs::metadata(directory.join(name)).ok()?;
                Some((name.clone(), (is.dev(), is.ino())))
            })
            .collect();
        if now == self.pins {
            return;
        }
        let stale = |voice: &Voice| match voice {
            Voice::Netns(name) => now.get(name).is_none_or(|is| self.pins.get(name) != Some(is)),
            _ => false,
        };
        self.of(stale).into_iter().for_each(|token| self.deaf(token));
        for (name, identity) in &now {
            if self.pins.get(name) == Some(identity) {
                continue;
            }
            let opened = Netns::open(&directory.join(name)).and_then(|netns| netns.run(sockets));
            // What cannot be listened to is compared every minute all the same.
            for socket in opened.into_iter().flatten() {
                self.listen(Voice::Netns(name.clone()), Descriptor::Netlink(socket)).ok();
            }
        }
        self.pins = now;
    }

    fn of(&self, wanted: impl Fn(&Voice) -> bool) -> Vec<u64> {
        self.ears.iter().filter(|(_, ear)| wanted(&ear.voice)).map(|(token, _)| *token).collect()
    }

    fn listen(&mut self, voice: Voice, descriptor: Descriptor) -> io::Result<()> {
        self.next += 1;
        self.epoll.add(descriptor.as_fd(), EpollEvent::new(once(), self.next))?;
        self.ears.insert(self.next, Ear { voice, descriptor, idle: 0, again: None });
        Ok(())
    }

    fn deaf(&mut self, token: u64) {
        if let Some(ear) = self.ears.remove(&token) {
            self.epoll.delete(ear.descriptor.as_fd()).ok();
        }
        self.heard.remove(&token);
    }

    /// Waits until somebody is heard, and says who. Who was heard is not listened to until [`Watch::settle`].
    ///
    /// # Errors
    ///
    /// When the descriptor is broken.
    pub(super) async fn hear(&mut self) -> io::Result<BTreeSet<Voice>> {
        loop {
            let mut events = [EpollEvent::empty(); 64];
            let mut guard = self.readiness.readable().await?;
            let n = self.epoll.wait(&mut events, EpollTimeout::ZERO)?;
            if n == 0 {
                guard.clear_ready();
                continue;
            }
            drop(guard);
            let mut voices = BTreeSet::new();
            for event in &events[..n] {
                if let Some(ear) = self.ears.get(&event.data()) {
                    voices.insert(ear.voice.clone());
                    self.heard.insert(event.data());
                }
            }
            return Ok(voices);
        }
    }

    /// Forgets what was said until now, so that what comes while one looks is heard afterwards.
    pub(super) fn forget(&self) {
        self.heard.iter().filter_map(|token| self.ears.get(token)).for_each(|ear| ear.descriptor.drain());
    }

    /// Listens again to those who were heard: at once if there was a reason, else later and later.
    pub(super) fn settle(&mut self, for_a_reason: bool, now: Instant) {
        for token in std::mem::take(&mut self.heard) {
            let Some(ear) = self.ears.get_mut(&token) else { continue };
            ear.idle = if for_a_reason { 0 } else { ear.idle + 1 };
            let surplus = ear.idle.saturating_sub(PATIENCE);
            if surplus == 0 {
                arm(&self.epoll, token, ear);
            } else {
                let pause = Duration::from_millis(250) * 2u32.saturating_pow(surplus.min(7));
                ear.again = Some(now + pause.min(QUIET));
            }
        }
    }

    /// Listens again to those whose time has come.
    pub(super) fn wake(&mut self, now: Instant) {
        for (token, ear) in &mut self.ears {
            if ear.again.is_some_and(|again| again <= now) {
                ear.again = None;
                arm(&self.epoll, *token, ear);
            }
        }
    }

    /// When the next of them is listened to again.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.ears.values().filter_map(|ear| ear.again).min()
    }

    /// A minute has passed: who was noisy gets another chance.
    pub(super) fn forgive(&mut self) {
        self.ears.values_mut().for_each(|ear| ear.idle = ear.idle.saturating_sub(PATIENCE));
    }
}

// What is deprecated is that a type may lie about its descriptor; an `OwnedFd` does not, and what replaces it is unsafe to
// call.
#[allow(deprecated, reason = "sound for an OwnedFd")]
fn asynchronous(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

fn once() -> EpollFlags {
    EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT
}

fn arm(epoll: &Epoll, token: u64, ear: &mut Ear) {
    epoll.modify(ear.descriptor.as_fd(), &mut EpollEvent::new(once(), token)).ok();
}

/// The two sockets of the namespace of the calling thread.
fn sockets() -> io::Result<Vec<Socket>> {
    let listening = |protocol: isize, groups: &[u32]| {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok::<Socket, io::Error>(socket)
    };
    Ok(vec![listening(NETLINK_ROUTE, &ROUTE_GROUPS)?, listening(NETLINK_NETFILTER, &NFTABLES_GROUPS)?])
}
