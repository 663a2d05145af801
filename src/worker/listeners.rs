//! The listeners that are lent to a worker.
//!
//! They are bound here, where port 443 may be bound, and stay open here: while the worker is away the kernel goes on
//! taking connections into their queues.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use super::running::Failure;
use crate::kernel::netns::Netns;

/// How many connections wait in a queue; net.core.somaxconn may set it lower.
const QUEUE: i32 = 4096;

/// Listeners in one namespace.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    /// The namespace, by device and inode: a path can lead to another one later.
    place: Option<(u64, u64)>,
    bound: BTreeMap<SocketAddr, OwnedFd>,
}

impl Listeners {
    /// Binds what is missing. In a namespace other than before everything is made anew.
    pub(crate) fn bind(&mut self, path: &Path, wanted: &BTreeSet<SocketAddr>) -> Result<(), Failure> {
        let place = |source| Failure::Place { path: path.to_owned(), source };
        let found = Netns::open(path).and_then(|netns| Ok((netns.file().metadata()?, netns)));
        let (metadata, netns) = found.map_err(|error| {
            // They would keep a namespace alive that nobody comes to any more.
            *self = Self::default();
            place(error)
        })?;
        let now = Some((metadata.dev(), metadata.ino()));
        if self.place != now {
            *self = Self { place: now, bound: BTreeMap::new() };
        }
        let missing: Vec<_> = wanted.iter().copied().filter(|address| !self.bound.contains_key(address)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let made =
            netns.run(move || Ok(missing.iter().map(|address| (*address, listener(*address))).collect::<Vec<_>>()));
        for (address, made) in made.map_err(place)? {
            let listener = made.map_err(|source| Failure::Listen { address, path: PathBuf::from(path), source })?;
            self.bound.insert(address, listener);
        }
        Ok(())
    }

    /// Nothing, if these are in the namespace to which `path` leads now.
    pub(crate) fn are_in(&self, path: &Path) -> Result<(), Failure> {
        let now = std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        if now.is_some() && now == self.place { Ok(()) } else { Err(Failure::Moved(path.to_owned())) }
    }

    /// The listener at `address`.
    pub(crate) fn at(&self, address: &SocketAddr) -> Option<&OwnedFd> {
        self.bound.get(address)
    }

    /// Closes all others.
    pub(crate) fn keep(&mut self, wanted: &BTreeSet<SocketAddr>) {
        self.bound.retain(|address, _| wanted.contains(address));
    }
}

fn listener(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    listen(&socket, QUEUE)?;
    Ok(socket)
}
