//! The socket itself: requests out, answers in.

use std::cell::Cell;
use std::io;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::abi::nlm;
use super::attribute::{Attributes, Header, Writer};

/// The kernel's answers are at most 32 KiB each.
const RECEIVE: usize = 64 * 1024;
/// What a socket takes without being asked: half of the default `net.core.wmem_default`.
const SMALL: usize = 100 * 1024;
/// Length of the header of nfnetlink.
const NFGENMSG: usize = 4;

/// A netlink socket that speaks nfnetlink.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    sequence: Cell<u32>,
    /// How many bytes of answers may still be read.
    budget: Cell<usize>,
}

/// The kernel's complaint about one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    /// The message.
    pub(super) sequence: u32,
    /// The error number, positive.
    pub(super) errno: i32,
}

/// A message of the kernel.
pub(super) struct Answer<'a> {
    /// Subsystem and number.
    pub(super) kind: u16,
    /// `NFPROTO_*`.
    pub(super) family: u8,
    /// What it says.
    pub(super) attributes: Attributes<'a>,
}

impl Link {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: Cell::new(1), budget: Cell::new(usize::MAX) })
    }

    /// Reads no more than this many bytes of answers, all together.
    pub(super) fn limit(&self, bytes: usize) {
        self.budget.set(bytes);
    }

    /// The number that the next message takes.
    pub(super) fn sequence(&self) -> u32 {
        self.sequence.get()
    }

    pub(super) fn advance(&self, next: u32) {
        self.sequence.set(next);
    }

    /// Asks one question and hands each answer to `on`. `false` when the answers are not of one moment.
    pub(super) fn ask(
        &self,
        kind: u16,
        flags: u16,
        family: u8,
        body: impl FnOnce(&mut Writer),
        mut on: impl FnMut(&Answer<'_>),
    ) -> io::Result<bool> {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        let mut writer = Writer::default();
        let flags = nlm::F_REQUEST | flags;
        writer.message(&Header { kind, flags, sequence, family, resource: 0 }, body);
        self.socket.send(writer.bytes(), 0)?;

        let many = flags & nlm::F_DUMP == nlm::F_DUMP;
        let mut consistent = true;
        loop {
            let buffer = self.receive(0)?;
            let left = self.budget.get().checked_sub(buffer.len());
            self.budget.set(left.ok_or(io::ErrorKind::FileTooLarge)?);
            let mut done = false;
            for message in messages(&buffer).filter(|m| m.sequence_number() == sequence) {
                consistent &= message.flags() & nlm::F_DUMP_INTR == 0;
                match message.message_type() {
                    nlm::NOOP => {}
                    // Both begin with an error number, 0 for none.
                    nlm::DONE | nlm::ERROR => {
                        done = true;
                        match errno(message.payload()) {
                            // The set or table went while the dump was under way.
                            libc::EINTR => consistent = false,
                            0 => {}
                            errno => return Err(io::Error::from_raw_os_error(errno)),
                        }
                    }
                    kind => {
                        answer(kind, message.payload()).iter().for_each(&mut on);
                        done |= !many;
                    }
                }
            }
            if done {
                return Ok(consistent);
            }
        }
    }

    /// Sends a transaction; what the kernel complains about, in order.
    ///
    /// The kernel has worked it off when send(2) returns, so complaints are there already and their absence is success:
    /// no acknowledgement is needed.
    pub(super) fn transact(&self, bytes: &[u8]) -> io::Result<Vec<Failure>> {
        self.make_room(bytes.len());
        let sent = self.socket.send(bytes, 0);
        let mut failures = Vec::new();
        let mut overflow = None;
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(buffer) => failures.extend(messages(&buffer).filter_map(failure)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => overflow = Some(e),
                Err(e) => return Err(e),
            }
        }
        sent?;
        match overflow {
            // More complaints than there was room for; the first ones are what matters, if they are there.
            Some(e) if failures.is_empty() => Err(e),
            _ => Ok(failures),
        }
    }

    /// A transaction is one message to the socket, so the socket must take one that long. Without CAP_NET_ADMIN on the
    /// host `net.core.wmem_max` bounds it; then send(2) says so.
    fn make_room(&self, len: usize) {
        if len <= SMALL {
            return;
        }
        let len = len * 2;
        if setsockopt(&self.socket, sockopt::SndBufForce, &len).is_err() {
            setsockopt(&self.socket, sockopt::SndBuf, &len).ok();
        }
    }

    fn receive(&self, flags: libc::c_int) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(RECEIVE);
        self.socket.recv(&mut buffer, flags)?;
        Ok(buffer)
    }
}

/// The messages in what was received at once.
fn messages(buffer: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let len = (message.length() as usize).next_multiple_of(4).min(rest.len());
        rest = &rest[len..];
        Some(message)
    })
}

fn failure(message: NetlinkBuffer<&[u8]>) -> Option<Failure> {
    let errno = errno(message.payload());
    (message.message_type() == nlm::ERROR && errno != 0).then(|| Failure { sequence: message.sequence_number(), errno })
}

fn errno(payload: &[u8]) -> i32 {
    payload.first_chunk().map_or(0, |bytes| -i32::from_ne_bytes(*bytes))
}

fn answer(kind: u16, payload: &[u8]) -> Option<Answer<'_>> {
    let (header, attributes) = payload.split_at_checked(NFGENMSG)?;
    Some(Answer { kind, family: header[0], attributes: Attributes::new(attributes) })
}
