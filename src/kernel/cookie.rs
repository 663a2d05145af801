//! What tells one network namespace from every other that was ever made since the machine started.
//!
//! The inode of a namespace does not: the kernel gives it out again at once. A cookie is never used twice.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{AddressFamily, GetSockOpt, SockFlag, SockType, socket};
use serde::{Deserialize, Serialize};

use super::netns::Netns;

/// The cookie of a network namespace (`SO_NETNS_COOKIE`, Linux 5.14 and newer). Never 0, and the first namespace of the
/// machine has 1.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Cookie(u64);

/// The socket option, which is written out once more by the crate that knows how.
#[derive(Clone, Copy, Debug)]
struct NetnsCookie;

nix::getsockopt_impl!(
    NetnsCookie,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64,
    nix::sys::socket::sockopt::GetStruct<u64>
);

impl Cookie {
    /// Of the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// `ENOPROTOOPT` where the kernel is older than 5.14.
    pub fn here() -> io::Result<Self> {
        // A Unix socket takes no address, so that a namespace without one has it too.
        let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self(NetnsCookie.get(&socket.as_fd())?))
    }

    /// Of that namespace.
    ///
    /// # Errors
    ///
    /// As [`Cookie::here`], and when the namespace cannot be entered.
    pub fn of(netns: &Netns) -> io::Result<Self> {
        netns.run(Self::here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_of_a_namespace_holds_still() {
        assert_eq!(Cookie::here().unwrap(), Cookie::here().unwrap());
        assert_ne!(Cookie::here().unwrap().0, 0);
    }
}
