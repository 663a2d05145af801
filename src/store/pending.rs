//! A generation that waits to be confirmed.
//!
//! # Invariants
//!
//! - The record is there before anything is changed, and is gone only when the generation was confirmed or is no longer
//!   in force: whoever finds it past its deadline, or in another run of the machine, goes back.

use std::fs::{self, File};
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Number, Store, StoreError};
use crate::session::Session;
use crate::{clock, fault};

pub(super) const PENDING: &str = "pending.json";

/// What waits, and what comes back without a word.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// The generation that waits.
    pub generation: Number,
    /// The one that comes back; `None` when there was none: then all is taken down.
    pub back: Option<Number>,
    /// The run of the machine in which it was applied.
    pub boot: Option<String>,
    /// Until when it waits, in milliseconds of `CLOCK_BOOTTIME`.
    pub deadline: u64,
    /// The connection that it was applied over.
    pub session: Option<Session>,
}

/// What is to become of a generation that waits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// There is time left.
    Waits(Duration),
    /// Nobody confirmed it in time.
    Expired,
    /// The machine was started anew meanwhile.
    Rebooted,
}

impl Pending {
    /// That waits from now on.
    pub fn new(generation: Number, back: Option<Number>, within: Duration, session: Option<Session>) -> Self {
        let boot = clock::boot();
        let mut pending = Self { generation, back, boot, deadline: 0, session };
        pending.begin(within);
        pending
    }

    /// Lets the time begin now.
    pub fn begin(&mut self, within: Duration) {
        let deadline = (clock::since_boot() + within).as_millis();
        self.deadline = u64::try_from(deadline).unwrap_or(u64::MAX);
    }

    /// What is to become of it now.
    pub fn fate(&self) -> Fate {
        // A boot id that cannot be read for a moment is no other one.
        if let (Some(then), Some(now)) = (&self.boot, clock::boot())
            && *then != now
        {
            return Fate::Rebooted;
        }
        match Duration::from_millis(self.deadline).checked_sub(clock::since_boot()) {
            Some(left) if !left.is_zero() => Fate::Waits(left),
            _ => Fate::Expired,
        }
    }
}

impl Store {
    /// What waits to be confirmed.
    ///
    /// # Errors
    ///
    /// When the record is there and cannot be read or understood.
    pub fn pending(&self) -> Result<Option<Pending>, StoreError> {
        self.read(PENDING, |text| serde_json::from_slice(text).map(Some))
    }

    /// Records what waits.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn record_pending(&self, pending: &Pending) -> Result<(), StoreError> {
        self.write(PENDING, pending)
    }

    /// Forgets what waits: it is confirmed, or not in force any more.
    ///
    /// # Errors
    ///
    /// When the record cannot be removed.
    pub fn forget_pending(&self) -> Result<(), StoreError> {
        let path = self.directory.join(PENDING);
        let removed = (|| {
            fault::point()?;
            match fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
            fault::point()?;
            File::open(&self.directory)?.sync_all()
        })();
        removed.map_err(|source| StoreError::Io { action: "remove", path, source })
    }
}
