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

use netlink_packet_core::{DecodeError, Emitable, NLM_F_DUMP, NetlinkSerializable, ParseableParametrized};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use thiserror::Error;

use super::netns::Netns;
use super::socket::{NetlinkSocket, Packed, io_error};

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
    /// The list is longer than anybody needs. The socket is of no more use: its rest would be read next.
    #[error("cannot {operation}: there is too much of it")]
    TooMuch {
        /// What was asked.
        operation: String,
    },
    /// A link that a moment ago was there.
    #[error("the link {link} is gone")]
    Gone {
        /// Its name.
        link: String,
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

    /// A socket like [`Rtnl::open`] for a namespace in which somebody else is root: its lists are read up to a bound.
    ///
    /// # Errors
    ///
    /// What socket(2) says.
    pub fn open_wary() -> Result<Self, NetlinkError> {
        let mut rtnl = Self::open()?;
        rtnl.socket.limit(PATIENCE_BYTES);
        Ok(rtnl)
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
            if let Some((_, error)) = self.send(chunk)?.into_iter().next() {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Like [`Rtnl::pipeline`], but tries every request; the refusals by position.
    ///
    /// # Errors
    ///
    /// When the socket fails.
    pub fn try_all(&mut self, requests: &[Request]) -> Result<Vec<(usize, NetlinkError)>, NetlinkError> {
        let mut refused = Vec::new();
        for (nth, chunk) in requests.chunks(CHUNK).enumerate() {
            refused.extend(self.send(chunk)?.into_iter().map(|(at, error)| (nth * CHUNK + at, error)));
        }
        Ok(refused)
    }

    /// The refusals that their requests do not pardon.
    fn send(&mut self, chunk: &[Request]) -> Result<Vec<(usize, NetlinkError)>, NetlinkError> {
        let packed: Vec<_> = chunk.iter().map(|request| packed(&request.message, request.flags)).collect();
        let refusals = self.socket.tell(&packed).map_err(|source| io_error(&chunk[0].operation, source))?;
        let unpardoned = refusals.into_iter().filter(|(at, refusal)| chunk[*at].pardoned != Some(refusal.errno));
        let named = |(at, refusal): (usize, Refusal)| {
            (at, NetlinkError::Refused { operation: chunk[at].operation.clone(), refusal })
        };
        Ok(unpardoned.map(named).collect())
    }

    /// Everything of the kind that `message` asks for. Messages that `select` does not want are left out.
    pub(crate) fn dump<T>(
        &mut self,
        operation: &str,
        message: &RouteNetlinkMessage,
        select: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let request = packed(message, NLM_F_DUMP);
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
            let packed: Vec<_> = chunk.iter().map(|question| packed(question, 0)).collect();
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

/// How much of a stranger's lists is read: ten thousand links, or a hundred thousand routes.
const PATIENCE_BYTES: usize = 16 << 20;

/// How many questions are asked at once; an answer about a link takes 2 KiB of the receive buffer.
const QUESTIONS: usize = 32;

fn packed(message: &RouteNetlinkMessage, flags: u16) -> Packed {
    let mut payload = vec![0; Emitable::buffer_len(message)];
    message.serialize(&mut payload);
    Packed::new(message.message_type(), flags, payload)
}
