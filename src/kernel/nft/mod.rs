//! nftables of one namespace, by netlink: read whole, changed in transactions.
//!
//! # Invariants
//!
//! - A [`Dump`] is of one generation: nothing changed between its first and its last byte.
//! - [`NftSocket::commit`] is one transaction: all of the [`Delta`] happens or none of it, and with a generation only
//!   if nobody changed the rules since.
//! - An [`NftSocket`] belongs to the namespace of the thread that opened it, wherever it is used.
//! - What the model cannot say is never passed over: it reads as [`Expr::Unknown`], or as a set with an empty key, and
//!   so differs from everything desired.
//!
//! [`Expr::Unknown`]: netns_policy::ruleset::Expr::Unknown

mod abi;
mod attribute;
mod batch;
mod dump;
mod expression;
mod set;
mod socket;
mod survey;

pub use survey::{ListedChain, ListedHook};

use std::collections::BTreeMap;
use std::io;

use netns_policy::ruleset::delta::Delta;
use netns_policy::ruleset::{Count, Counters, Family, Key, Ruleset};
use nix::libc;

use self::batch::Batch;
use self::socket::{Failure, Link};

/// How often a dump is begun anew because somebody else changes the rules meanwhile.
const DUMP_TRIES: usize = 16;

/// How much of a stranger's rules is read: more than a hundred thousand elements.
const WARY: usize = 8 << 20;

/// A netlink socket to the nftables of one namespace.
#[derive(Debug)]
pub struct NftSocket(Link);

/// The rules of a namespace at one generation.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Dump {
    /// The tables that were asked for.
    pub ruleset: Ruleset,
    /// What the elements of their sets and maps counted.
    pub counters: Counters,
    /// The generation. Each transaction of anybody in the namespace makes a new one.
    pub generation: u32,
    /// Every table in the namespace, ours and others', as nft(8) names family and table.
    pub tables: Vec<(String, String)>,
}

/// A transaction that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel refused an operation, and with it the transaction.
    #[error("the kernel refused `{operation}`")]
    Refused {
        /// The first operation that it refused, as nft(8) would write it.
        operation: String,
        /// Its error number.
        errno: i32,
        /// The operations it refused after that: mostly consequences.
        more: Vec<String>,
        /// What the number means.
        #[source]
        source: io::Error,
    },
    /// Somebody changed the rules since the generation that the transaction was made for.
    #[error("the rules were changed by somebody else meanwhile")]
    GenerationChanged,
    /// The socket failed.
    #[error("cannot speak to nftables")]
    Io(#[from] io::Error),
}

impl NftSocket {
    /// Opens a socket into the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// What socket(2) or bind(2) say.
    pub fn open() -> io::Result<Self> {
        Link::open().map(Self)
    }

    /// Opens a socket like [`NftSocket::open`] for a namespace in which somebody else is root: it reads up to a bound,
    /// and is of no more use after that.
    ///
    /// # Errors
    ///
    /// What socket(2) or bind(2) say.
    pub fn open_wary() -> io::Result<Self> {
        let link = Link::open()?;
        link.limit(WARY);
        Ok(Self(link))
    }

    /// The number of the current generation.
    ///
    /// # Errors
    ///
    /// `EPERM` without CAP_NET_ADMIN in the namespace.
    pub fn generation(&self) -> io::Result<u32> {
        dump::generation(&self.0)
    }

    /// Reads the tables for which `ours` holds.
    ///
    /// # Errors
    ///
    /// `EPERM` without CAP_NET_ADMIN; `EINTR` when somebody changes the rules without pause;
    /// `FileTooLarge` after [`NftSocket::open_wary`] when there is too much of them.
    pub fn dump(&self, ours: impl Fn(Family, &str) -> bool) -> io::Result<Dump> {
        steady(|| dump::consistent(&self.0, &ours))
    }

    /// Reads what packets put into a dynamic set, and what each element counted.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is no such set; else as [`NftSocket::dump`].
    pub fn dynamic_elements(&self, family: Family, table: &str, set: &str) -> io::Result<BTreeMap<Key, Count>> {
        steady(|| dump::dynamic_elements(&self.0, family, table, set))
    }

    /// What each rule of a chain that has a counter counted, in order.
    ///
    /// # Errors
    ///
    /// As [`NftSocket::dump`]; a chain that is not there has none, or is `NotFound`.
    pub fn rule_counters(&self, family: Family, table: &str, chain: &str) -> io::Result<Vec<Count>> {
        steady(|| survey::rule_counters(&self.0, family, table, chain))
    }

    /// Every chain of the namespace with its rules, ours and others'.
    ///
    /// # Errors
    ///
    /// As [`NftSocket::dump`].
    pub fn chains(&self) -> io::Result<Vec<ListedChain>> {
        steady(|| survey::chains(&self.0))
    }

    /// Makes the change in one transaction. With `generation`, only if the rules are still of that one.
    ///
    /// # Errors
    ///
    /// See [`NftError`]; in each case nothing was changed.
    pub fn commit(&self, delta: &Delta, generation: Option<u32>) -> Result<(), NftError> {
        if delta.is_empty() && generation.is_none() {
            return Ok(());
        }
        let batch = Batch::new(delta, self.0.sequence(), generation);
        self.0.advance(batch.next());
        let failures = self.0.transact(batch.bytes())?;
        refusal(delta, &batch, &failures)
    }
}

/// Reads until the answers are of one moment.
fn steady<T>(read: impl Fn() -> io::Result<Option<T>>) -> io::Result<T> {
    for _ in 0..DUMP_TRIES {
        if let Some(found) = read()? {
            return Ok(found);
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// What the kernel's complaints about a transaction come to.
fn refusal(delta: &Delta, batch: &Batch, failures: &[Failure]) -> Result<(), NftError> {
    let Some(first) = failures.first() else { return Ok(()) };
    let named = |failure: &Failure| batch.op_of(failure.sequence).map(|index| delta.ops[index].to_string());
    let operation = match (named(first), first.errno) {
        (Some(operation), _) => operation,
        (None, libc::ERESTART) => return Err(NftError::GenerationChanged),
        (None, libc::EPERM) => return Err(NftError::Io(io::Error::from_raw_os_error(first.errno))),
        // Found when all operations were taken: a loop of chains, say.
        (None, _) => "the transaction as a whole".to_owned(),
    };
    let mut more: Vec<String> = failures[1..].iter().filter_map(named).filter(|other| *other != operation).collect();
    more.dedup();
    let source = io::Error::from_raw_os_error(first.errno);
    Err(NftError::Refused { operation, errno: first.errno, more, source })
}
