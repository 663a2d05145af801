//! The socket under [`Rtnl`](super::netlink::Rtnl) and [`Conntrack`](super::conntrack::Conntrack): framing and bookkeeping, no
//! meaning.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NlasIterator, parse_string,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;

use super::netlink::{NetlinkError, Refusal};

/// How often a dump is read again that changed under the reader.
const ATTEMPTS: usize = 16;

/// Room for one datagram: the kernel fills at most 32 KiB of a dump at a time.
const DATAGRAM: usize = 64 * 1024;

/// A message ready to be framed.
pub(crate) struct Packed {
    kind: u16,
    flags: u16,
    payload: Vec<u8>,
}

impl Packed {
    pub(crate) fn new(kind: u16, flags: u16, payload: Vec<u8>) -> Self {
        Self { kind, flags: flags | NLM_F_REQUEST, payload }
    }

    fn frame(&self, sequence: u32, out: &mut Vec<u8>) {
        let mut header = NetlinkHeader::default();
        let start = out.len();
        let end = start + header.buffer_len() + self.payload.len();
        header.length = (end - start) as u32;
        header.message_type = self.kind;
        header.flags = self.flags;
        header.sequence_number = sequence;
        out.resize(start + header.buffer_len(), 0);
        header.emit(&mut out[start..]);
        out.extend_from_slice(&self.payload);
        out.resize(end.next_multiple_of(4), 0);
    }
}

/// A message from the kernel, cut out of its datagram.
struct Frame<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Frame<'_> {
    /// The refusal in this frame, if it is one: an error other than zero, or the end of a dump that failed.
    fn refusal(&self) -> Option<Refusal> {
        let (code, rest) = self.payload.split_first_chunk::<4>()?;
        let errno = i32::from_ne_bytes(*code).checked_neg().filter(|errno| *errno > 0).map(Errno::from_raw)?;
        let explanation = match self.kind {
            NLMSG_DONE => explanation(rest),
            _ if self.flags & NLM_F_ACK_TLVS != 0 => explanation(rest.get(self.echoed(rest)..)?),
            _ => None,
        };
        Some(Refusal { errno, explanation })
    }

    /// How many bytes of the refused request come back before the explanation.
    fn echoed(&self, rest: &[u8]) -> usize {
        match NetlinkBuffer::new_checked(rest) {
            Ok(request) if self.flags & NLM_F_CAPPED == 0 => (request.length() as usize).next_multiple_of(4),
            _ => NetlinkHeader::default().buffer_len(),
        }
    }
}

/// The text among the attributes of an extended acknowledgement (`NLMSGERR_ATTR_MSG`).
fn explanation(attributes: &[u8]) -> Option<String> {
    const MSG: u16 = 1;
    NlasIterator::new(attributes)
        .flatten()
        .find(|attribute| attribute.kind() == MSG)
        .and_then(|attribute| parse_string(attribute.value()).ok())
}

fn frames(datagram: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(rest).ok()?;
        let (kind, flags, sequence) = (buffer.message_type(), buffer.flags(), buffer.sequence_number());
        let payload = buffer.payload();
        rest = rest.get((buffer.length() as usize).next_multiple_of(4)..).unwrap_or_default();
        Some(Frame { kind, flags, sequence, payload })
    })
}

/// A netlink socket of one protocol.
#[derive(Debug)]
pub(crate) struct NetlinkSocket {
    socket: Socket,
    sequence: u32,
    inbox: Vec<u8>,
    /// How many bytes of dumps may still be read.
    budget: usize,
}

impl NetlinkSocket {
    pub(crate) fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            // Each of these only refines an answer; kernels that lack one (before 4.2, 4.12 and 4.20) still answer.
            socket.set_cap_ack(true).ok();
            socket.set_ext_ack(true).ok();
            socket.set_netlink_get_strict_chk(true).ok();
            Ok(Self { socket, sequence: 0, inbox: Vec::with_capacity(DATAGRAM), budget: usize::MAX })
        };
        open().map_err(|source| io_error("open a netlink socket", source))
    }

    /// Reads no more than this many bytes of dumps, all together: whoever wrote what is listed may want to tire the reader.
    pub(crate) fn limit(&mut self, bytes: usize) {
        self.budget = bytes;
    }

    /// Sends the batch in one sendmsg(2) and returns what was refused, by position.
    pub(crate) fn tell(&mut self, batch: &[Packed]) -> io::Result<Vec<(usize, Refusal)>> {
        let first = self.send(batch)?;
        let mut refusals = Vec::new();
        while self.receive(MsgFlags::MSG_DONTWAIT)? {
            for frame in frames(&self.inbox).filter(|frame| frame.kind == NLMSG_ERROR) {
                // An answer to something that was given up earlier lies outside of the batch.
                let at = frame.sequence.wrapping_sub(first) as usize;
                refusals.extend(frame.refusal().filter(|_| at < batch.len()).map(|refusal| (at, refusal)));
            }
        }
        Ok(refusals)
    }

    /// Sends the batch in one sendmsg(2) and waits for one answer to each.
    pub(crate) fn ask<T>(
        &mut self,
        operation: &str,
        batch: &[Packed],
        decode: impl Fn(u16, &[u8]) -> Result<Option<T>, DecodeError>,
    ) -> Result<Vec<Result<T, Refusal>>, NetlinkError> {
        let first = self.send(batch).map_err(|source| io_error(operation, source))?;
        let mut answers: Vec<Option<Result<T, Refusal>>> = batch.iter().map(|_| None).collect();
        while answers.iter().any(Option::is_none) {
            self.receive(MsgFlags::empty()).map_err(|source| io_error(operation, source))?;
            for frame in frames(&self.inbox) {
                let Some(answer) = answers.get_mut(frame.sequence.wrapping_sub(first) as usize) else { continue };
                *answer = match frame.kind {
                    NLMSG_ERROR => frame.refusal().map(Err),
                    kind => match decode(kind, frame.payload) {
                        Ok(Some(answer)) => Some(Ok(answer)),
                        Ok(None) => return Err(undecodable(operation, "it answers another question".into())),
                        Err(source) => return Err(undecodable(operation, source)),
                    },
                };
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// The whole list that `request` asks for.
    pub(crate) fn dump<T>(
        &mut self,
        operation: &str,
        request: &Packed,
        decode: impl Fn(u16, &[u8]) -> Result<Option<T>, DecodeError>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..ATTEMPTS {
            if let Some(list) = self.dump_once(operation, request, &decode)? {
                return Ok(list);
            }
        }
        Err(NetlinkError::Unsteady { operation: operation.into() })
    }

    /// The list, or none when it changed while it was read.
    fn dump_once<T>(
        &mut self,
        operation: &str,
        request: &Packed,
        decode: impl Fn(u16, &[u8]) -> Result<Option<T>, DecodeError>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let sequence = self.send(std::slice::from_ref(request)).map_err(|source| io_error(operation, source))?;
        let mut listing = Listing { sequence, items: Vec::new(), torn: false, undecoded: None };
        loop {
            self.receive(MsgFlags::empty()).map_err(|source| io_error(operation, source))?;
            let left = self.budget.checked_sub(self.inbox.len());
            self.budget = left.ok_or_else(|| NetlinkError::TooMuch { operation: operation.into() })?;
            if let Some(refusal) = listing.take(&self.inbox, &decode) {
                return listing.end(operation, refusal);
            }
        }
    }

    /// Waits for a message of this kind that nobody asked for; false when none came in time.
    pub(crate) fn wait_for(&mut self, kind: u16, patience: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(false),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            while self.receive(MsgFlags::MSG_DONTWAIT)? {
                if frames(&self.inbox).any(|frame| frame.kind == kind) {
                    return Ok(true);
                }
            }
        }
    }

    /// Sends the batch as one datagram, and returns the sequence number of its first message.
    fn send(&mut self, batch: &[Packed]) -> io::Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(batch.iter().map(|packed| packed.payload.len() + 20).sum());
        for packed in batch {
            self.sequence = self.sequence.wrapping_add(1);
            packed.frame(self.sequence, &mut datagram);
        }
        retry(|| self.socket.send_to(&datagram, &SocketAddr::new(0, 0), 0))?;
        Ok(first)
    }

    /// Reads one datagram of the kernel into the inbox; false when there is none and `flags` say not to wait.
    fn receive(&mut self, flags: MsgFlags) -> io::Result<bool> {
        let flags = (flags | MsgFlags::MSG_TRUNC).bits();
        loop {
            self.inbox.clear();
            match retry(|| self.socket.recv_from(&mut self.inbox, flags)) {
                Ok((len, _)) if len > self.inbox.len() => return Err(io::ErrorKind::FileTooLarge.into()),
                Ok((_, sender)) if sender.port_number() == 0 => return Ok(true),
                // Any process of the namespace may write to a netlink socket that it can name; only the kernel is port 0.
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
    }
}

/// A dump, as far as it has come.
struct Listing<T> {
    sequence: u32,
    items: Vec<T>,
    torn: bool,
    undecoded: Option<DecodeError>,
}

impl<T> Listing<T> {
    /// Takes one datagram in. At the end of the dump it returns how the kernel ended it.
    fn take(
        &mut self,
        datagram: &[u8],
        decode: impl Fn(u16, &[u8]) -> Result<Option<T>, DecodeError>,
    ) -> Option<Option<Refusal>> {
        for frame in frames(datagram).filter(|frame| frame.sequence == self.sequence) {
            self.torn |= frame.flags & NLM_F_DUMP_INTR != 0;
            if matches!(frame.kind, NLMSG_DONE | NLMSG_ERROR) {
                return Some(frame.refusal());
            }
            match decode(frame.kind, frame.payload) {
                Ok(item) => self.items.extend(item),
                // Read on to the end: a dump left half read would make the next one on this socket fail with EBUSY.
                Err(error) => self.undecoded = Some(error),
            }
        }
        None
    }

    fn end(self, operation: &str, refusal: Option<Refusal>) -> Result<Option<Vec<T>>, NetlinkError> {
        match (refusal, self.undecoded) {
            (Some(refusal), _) => Err(NetlinkError::Refused { operation: operation.into(), refusal }),
            (None, Some(source)) => Err(undecodable(operation, source)),
            (None, None) => Ok((!self.torn).then_some(self.items)),
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

pub(crate) fn io_error(operation: &str, source: io::Error) -> NetlinkError {
    NetlinkError::Io { operation: operation.into(), source }
}

fn undecodable(operation: &str, source: DecodeError) -> NetlinkError {
    NetlinkError::Undecodable { operation: operation.into(), source }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ITEM: u16 = 16;

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        Packed { kind, flags, payload: payload.into() }.frame(7, &mut datagram);
        datagram
    }

    fn listed(datagrams: &[Vec<u8>]) -> Result<Option<Vec<u8>>, NetlinkError> {
        let mut listing = Listing { sequence: 7, items: Vec::new(), torn: false, undecoded: None };
        let decode = |_, payload: &[u8]| payload.first().map(|byte| Some(*byte)).ok_or_else(|| "empty".into());
        let ends: Vec<_> = datagrams.iter().map(|datagram| listing.take(datagram, decode)).collect();
        let (last, before) = ends.split_last().expect("a datagram");
        assert!(before.iter().all(Option::is_none), "the end comes last");
        listing.end("list", last.clone().expect("an end"))
    }

    #[test]
    fn a_dump_is_whole_or_not_at_all() {
        let items = [message(ITEM, 0, &[1]), message(ITEM, 0, &[2])].concat();
        let done = message(NLMSG_DONE, 0, &[0; 4]);
        assert_eq!(listed(&[items.clone(), done.clone()]).unwrap(), Some(vec![1, 2]));
        let torn = message(ITEM, NLM_F_DUMP_INTR, &[3]);
        assert_eq!(listed(&[torn, items.clone(), done.clone()]).unwrap(), None);
        let torn_end = message(NLMSG_DONE, NLM_F_DUMP_INTR, &[0; 4]);
        assert_eq!(listed(&[items.clone(), torn_end]).unwrap(), None);
        let failed = message(NLMSG_DONE, 0, &(-(Errno::EPERM as i32)).to_ne_bytes());
        assert_eq!(listed(&[items, failed]).unwrap_err().errno(), Some(Errno::EPERM));
        let broken = message(ITEM, 0, &[]);
        assert!(matches!(listed(&[broken, done]), Err(NetlinkError::Undecodable { .. })));
    }

    #[test]
    fn the_kernels_words_are_found_behind_a_whole_and_behind_a_cut_request() {
        let request = message(ITEM, 0, &[9; 5]);
        let words = [&[9, 0, 1, 0][..], b"busy\0", &[0; 3]].concat();
        let code = (-(Errno::EBUSY as i32)).to_ne_bytes();
        for (flags, echoed) in [(NLM_F_ACK_TLVS, &request[..]), (NLM_F_ACK_TLVS | NLM_F_CAPPED, &request[..16])] {
            let datagram = message(NLMSG_ERROR, flags, &[&code[..], echoed, &words].concat());
            let refusal = frames(&datagram).next().and_then(|frame| frame.refusal()).expect("a refusal");
            assert_eq!(refusal.to_string(), format!("the kernel refused: {} (os error 16): busy", Errno::EBUSY.desc()));
        }
    }

    proptest! {
        #[test]
        fn no_datagram_can_hurt(mut datagram in prop::collection::vec(any::<u8>(), 0..200), kind in 0u16..20, len in 0u32..220) {
            for frame in frames(&datagram) {
                frame.refusal();
            }
            if datagram.len() >= 16 {
                datagram[..4].copy_from_slice(&len.to_ne_bytes());
                datagram[4..6].copy_from_slice(&kind.to_ne_bytes());
                for frame in frames(&datagram) {
                    frame.refusal();
                }
            }
        }
    }
}
