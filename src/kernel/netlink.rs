//! Blocking netlink(7): many requests in one sendmsg(2), and dumps that are whole or fail.
//!
//! # Invariants
//!
//! - A socket keeps the namespace of the thread that opened it. Open it inside [`Netns::run`] or [`Netns::create`] and hand it
//!   out; whoever holds it afterwards may live anywhere.
//! - Every refusal names the operation that was refused, the errno, and the kernel's own explanation where it gave one.
//! - A dump during which the kernel's list changed (`NLM_F_DUMP_INTR`) is read again, a bounded number of times. A torn list is
//!   never returned.
//! - No request asks for an acknowledgement. rtnetlink and nfnetlink work requests off inside sendmsg(2), so that a refusal is
//!   already queued when it returns, and silence is success.

use std::fmt;
use std::io;

use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkSerializable, NlasIterator, ParseableParametrized, parse_string,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use thiserror::Error;

use super::netns::Netns;

/// What went wrong between us and the kernel.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The kernel understood the request and said no.
    #[error("cannot {operation}")]
    Refused {
        /// What was asked, as an infinitive: "create link bitcoind".
        operation: String,
        /// Why not.
        #[source]
        refusal: Refusal,
    },
    /// The socket itself failed.
    #[error("cannot {operation}")]
    Io {
        /// What was asked.
        operation: String,
        /// What socket(2), sendmsg(2) or recvmsg(2) say.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer is not in the form that its headers promise.
    #[error("cannot make sense of the kernel's answer to: {operation}")]
    Undecodable {
        /// What was asked.
        operation: String,
        /// Where the decoder stopped.
        #[source]
        source: DecodeError,
    },
    /// The list changed each time while it was read.
    #[error("cannot {operation}: it kept changing while it was read")]
    Unsteady {
        /// What was asked.
        operation: String,
    },
    /// Links did not come up in time.
    #[error("links {indexes:?} are still not up")]
    NotUp {
        /// The indexes of those that are not.
        indexes: Vec<u32>,
    },
}

impl NetlinkError {
    /// The kernel's error number, when it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal.errno),
            Self::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}

impl From<NetlinkError> for io::Error {
    fn from(error: NetlinkError) -> Self {
        io::Error::other(error)
    }
}

/// The kernel's no.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// What the kernel added in words (`NETLINK_EXT_ACK`).
    pub explanation: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel refused: {} (os error {})", self.errno.desc(), self.errno as i32)?;
        match &self.explanation {
            Some(explanation) => write!(f, ": {explanation}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

/// One rtnetlink request, not yet sent.
#[derive(Debug)]
pub struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    operation: String,
    pardoned: Option<Errno>,
    /// Kept open until the request is sent, because the message names it by descriptor.
    netns: Option<Netns>,
}

impl Request {
    /// A request for `message` with the `NLM_F_*` flags beside `NLM_F_REQUEST`. `operation` finishes the sentence "cannot ...".
    pub(crate) fn new(message: RouteNetlinkMessage, flags: u16, operation: impl Into<String>) -> Self {
        Self { message, flags, operation: operation.into(), pardoned: None, netns: None }
    }

    /// Takes `errno` as success: `ENODEV` when deleting, `EEXIST` when adding.
    pub fn pardon(mut self, errno: Errno) -> Self {
        self.pardoned = Some(errno);
        self
    }

    pub(crate) fn holding(mut self, netns: Netns) -> Self {
        self.netns = Some(netns);
        self
    }

    /// What is asked, as an infinitive.
    pub fn operation(&self) -> &str {
        &self.operation
    }
}

/// An rtnetlink(7) socket.
#[derive(Debug)]
pub struct Rtnl {
    socket: NetlinkSocket,
}

impl Rtnl {
    /// A socket in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// What socket(2) says.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: NetlinkSocket::open(NETLINK_ROUTE)? })
    }

    /// Sends the requests in order, up to 128 in one sendmsg(2).
    ///
    /// The kernel goes on after a request that it refuses, so those behind it in the same 128 have been tried too; later ones
    /// have not.
    ///
    /// # Errors
    ///
    /// The first refusal that its request does not pardon.
    pub fn pipeline(&mut self, requests: Vec<Request>) -> Result<(), NetlinkError> {
        for chunk in requests.chunks(CHUNK) {
            let packed: Vec<_> = chunk.iter().map(|request| Packed::route(&request.message, request.flags)).collect();
            let refusals = self.socket.tell(&packed).map_err(|source| io_error(&chunk[0].operation, source))?;
            let unpardoned = refusals.into_iter().find(|(at, refusal)| chunk[*at].pardoned != Some(refusal.errno));
            if let Some((at, refusal)) = unpardoned {
                return Err(NetlinkError::Refused { operation: chunk[at].operation.clone(), refusal });
            }
        }
        Ok(())
    }

    /// Everything of the kind that `message` asks for. Messages that `select` does not want are left out.
    pub(crate) fn dump<T>(
        &mut self,
        operation: &str,
        message: &RouteNetlinkMessage,
        select: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let request = Packed::route(message, NLM_F_DUMP);
        self.socket.dump(operation, &request, |kind, payload| {
            RouteNetlinkMessage::parse_with_param(payload, kind).map(&select)
        })
    }

    /// Asks each question and waits for its answer. Answers stand in the order of the questions.
    pub(crate) fn ask<T>(
        &mut self,
        operation: &str,
        questions: &[RouteNetlinkMessage],
        select: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<Result<T, Refusal>>, NetlinkError> {
        let mut answers = Vec::with_capacity(questions.len());
        for chunk in questions.chunks(QUESTIONS) {
            let packed: Vec<_> = chunk.iter().map(|question| Packed::route(question, 0)).collect();
            answers.extend(self.socket.ask(operation, &packed, |kind, payload| {
                RouteNetlinkMessage::parse_with_param(payload, kind).map(&select)
            })?);
        }
        Ok(answers)
    }
}

/// How many requests go into one sendmsg(2): as many refusals as a receive buffer of default size surely holds. They stay far
/// below a send buffer.
const CHUNK: usize = 128;

/// How many questions are asked at once; an answer about a link takes 2 KiB of the receive buffer.
const QUESTIONS: usize = 32;

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

    fn route(message: &RouteNetlinkMessage, flags: u16) -> Self {
        let mut payload = vec![0; Emitable::buffer_len(message)];
        message.serialize(&mut payload);
        Self::new(message.message_type(), flags, payload)
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

/// The socket under [`Rtnl`] and [`Conntrack`](super::conntrack::Conntrack): framing and bookkeeping, no meaning.
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

fn io_error(operation: &str, source: io::Error) -> NetlinkError {
    NetlinkError::Io { operation: operation.into(), source }
}

fn undecodable(operation: &str, source: DecodeError) -> NetlinkError {
    NetlinkError::Undecodable { operation: operation.into(), source }
}
