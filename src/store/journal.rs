//! What became of generations, in the order in which it happened: for people. Nothing is decided by it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::libc::{O_CLOEXEC, O_NOFOLLOW};
use serde::{Deserialize, Serialize};

use super::{Number, Store, StoreError};
use crate::{clock, fault};

const JOURNAL: &str = "journal.jsonl";

/// Beyond so many bytes the older half is let go.
const MOST: u64 = 256 << 10;

/// What happened.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// It was put into force.
    Applied,
    /// It was put into force, and waits to be confirmed.
    Pending,
    /// It was confirmed.
    Confirmed,
    /// Nobody confirmed it in time, or the machine was started anew, and the one before it came back.
    Expired,
    /// It was put into force again by `rollback`.
    RolledBack,
    /// Everything was taken down.
    Down,
}

/// One line.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Entry {
    /// When, in seconds since 1970.
    pub time: u64,
    /// What.
    pub event: Event,
    /// To which generation.
    pub generation: Option<Number>,
    /// By whom.
    pub by: String,
}

impl Store {
    /// Adds a line, and the file when there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be written. What was done is done nevertheless.
    pub fn note(&self, event: Event, generation: Option<Number>) -> Result<(), StoreError> {
        let path = self.directory.join(JOURNAL);
        let entry = Entry { time: clock::now(), event, generation, by: super::caller() };
        let written = (|| {
            if fs::metadata(&path).is_ok_and(|is| is.len() > MOST) {
                let text = fs::read(&path)?;
                let half = text.len() / 2;
                let at = text[half..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| half + at + 1);
                super::write_whole(&path, &text[at..], 0o600)?;
            }
            fault::point()?;
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600).custom_flags(O_NOFOLLOW | O_CLOEXEC);
            let mut file = options.open(&path)?;
            let mut line = serde_json::to_vec(&entry).map_err(io::Error::other)?;
            line.push(b'\n');
            file.write_all(&line)?;
            file.sync_data()
        })();
        written.map_err(|source| StoreError::Io { action: "write", path, source })
    }

    /// All lines that can be read, the oldest first. One that a crash has torn is left out.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read.
    pub fn journal(&self) -> Result<Vec<Entry>, StoreError> {
        self.read(JOURNAL, |text| {
            let lines = text.split(|byte| *byte == b'\n');
            Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
        })
    }
}
