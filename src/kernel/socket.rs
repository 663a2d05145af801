//! The socket under [`Rtnl`](super::netlink::Rtnl) and [`Conntrack`](super::conntrack::Conntrack): framing and bookkeeping, no
//! meaning.

use std::io;

use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NlasIterator, parse_string,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
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
            Ok(Self { socket, sequence: 0, inbox: Vec::with_capacity(DATAGRAM) })
        };
        open().map_err(|source| io_error("open a netlink socket", source))
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
        let (mut list, mut torn, mut undecoded) = (Vec::new(), false, None);
        loop {
            self.receive(MsgFlags::empty()).map_err(|source| io_error(operation, source))?;
            for frame in frames(&self.inbox).filter(|frame| frame.sequence == sequence) {
                torn |= frame.flags & NLM_F_DUMP_INTR != 0;
                match frame.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match (frame.refusal(), undecoded) {
                            (Some(refusal), _) => Err(NetlinkError::Refused { operation: operation.into(), refusal }),
                            (None, Some(source)) => Err(undecodable(operation, source)),
                            (None, None) => Ok((!torn).then_some(list)),
                        };
                    }
                    kind => match decode(kind, frame.payload) {
                        Ok(item) => list.extend(item),
                        // Read on to the end: a dump left half read would make the next one on this socket fail with EBUSY.
                        Err(error) => undecoded = Some(error),
                    },
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
