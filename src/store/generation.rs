//! Generations: every policy that was applied, whole, with what it was applied with.
//!
//! # Invariants
//!
//! - A generation is written once and never changed: into a directory of another name, synced, and renamed to its number.
//!   What is there under a number is whole.
//! - Which one is in force is one link, `current`, replaced by one rename. A crash, or a full disk, leaves the old one.
//! - Numbers rise. One that was given is never given again while a higher one is there.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use netns_policy::address::AddressBook;
use netns_policy::diagnostic::{Format, Source, Trust};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Store, StoreError, write_file};
use crate::fault;
use crate::file;

/// The number of a generation, from 1.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Number(pub u32);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Number {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// What a generation is, in short.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Meta {
    /// Its number.
    pub number: Number,
    /// The one that was in force when it was made.
    pub parent: Option<Number>,
    /// When it was made, in seconds since 1970 by the clock of the machine.
    pub time: u64,
    /// The version of nsctl that made it.
    pub version: String,
    /// The run of the machine.
    pub boot: Option<String>,
    /// Who made it: the user behind sudo(8), else the uid.
    pub by: String,
    /// The digest of what the policy means: see [`netns_policy::graph::AllowGraph::hash`].
    pub hash: String,
    /// The digest of its texts, whatever the files are called.
    pub digest: String,
    /// How many services it has.
    pub services: usize,
    /// How many edges.
    pub edges: usize,
    /// How many ways in from outside.
    pub exposures: usize,
    /// In how many classes of packets the rules were proved to do what the policy says.
    pub proved: usize,
}

impl Meta {
    /// Of a generation whose own cannot be read.
    pub(crate) fn unknown(number: Number) -> Self {
        let (version, by, hash, digest) = Default::default();
        let (parent, time, boot, services, edges, exposures, proved) = Default::default();
        Self { number, parent, time, version, boot, by, hash, digest, services, edges, exposures, proved }
    }
}

/// A generation to be written.
#[derive(Debug)]
pub struct Record<'a, R> {
    /// The texts of the policy.
    pub sources: &'a [Source],
    /// Who has which address.
    pub addresses: &'a AddressBook,
    /// The rules, as nft(8) prints them: for the eyes of whoever looks back.
    pub rules: R,
    /// All else.
    pub meta: &'a Meta,
}

const DIRECTORY: &str = "generations";
pub(crate) const CURRENT: &str = "current";
const POLICY: &str = "policy.json";
const META: &str = "meta.json";

/// The largest policy of 8 MiB, every byte of which may be escaped.
const LIMIT: u64 = 64 << 20;

/// A source as it is kept.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    name: String,
    format: KeptFormat,
    trust: KeptTrust,
    text: String,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum KeptFormat {
    Json,
    Toml,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum KeptTrust {
    Operator,
    Vendor,
}

impl From<&Source> for Kept {
    fn from(source: &Source) -> Self {
        Self {
            name: source.name.clone(),
            format: match source.format {
                Format::Json => KeptFormat::Json,
                Format::Toml => KeptFormat::Toml,
            },
            trust: match source.trust {
                Trust::Operator => KeptTrust::Operator,
                Trust::Vendor => KeptTrust::Vendor,
            },
            // What is no UTF-8 is no policy, and only a policy is kept.
            text: String::from_utf8_lossy(&source.text).into_owned(),
        }
    }
}

impl From<Kept> for Source {
    fn from(kept: Kept) -> Self {
        Self {
            name: kept.name,
            text: kept.text.into_bytes(),
            format: match kept.format {
                KeptFormat::Json => Format::Json,
                KeptFormat::Toml => Format::Toml,
            },
            trust: match kept.trust {
                KeptTrust::Operator => Trust::Operator,
                KeptTrust::Vendor => Trust::Vendor,
            },
        }
    }
}

/// What the link to the one in force says.
pub(crate) fn target_of(number: Number) -> PathBuf {
    Path::new(DIRECTORY).join(number.to_string())
}

/// Whether a file with this path is part of one.
pub(super) fn is_of_one(path: &Path) -> bool {
    path.parent().and_then(Path::parent).is_some_and(|all| all.ends_with(DIRECTORY))
}

/// The digest of these texts: equal for equal sets of files, whatever they are called.
pub fn digest(sources: &[Source]) -> String {
    let of_one = |source: &Source| {
        let kind = [source.format as u8, source.trust as u8];
        <[u8; 32]>::from(Sha256::new().chain_update(kind).chain_update(&source.text).finalize())
    };
    let mut all: Vec<[u8; 32]> = sources.iter().map(of_one).collect();
    all.sort_unstable();
    let digest = all.iter().fold(Sha256::new(), |all, one| all.chain_update(one)).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Store {
    /// The generation in force; `None` before the first one and after `down`.
    ///
    /// # Errors
    ///
    /// When the link cannot be read, or names what is not there.
    pub fn current(&self) -> Result<Option<Number>, StoreError> {
        self.is_ours()?;
        let path = self.directory.join(CURRENT);
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { action: "read", path, source }),
        };
        let number = target.strip_prefix(DIRECTORY).ok().and_then(|name| name.to_str()?.parse().ok());
        match number {
            Some(number) if self.path_of(number).is_dir() => Ok(Some(number)),
            _ => Err(StoreError::Lost { path, target, known: self.generations().unwrap_or_default() }),
        }
    }

    /// The same where a link to what is not there is to be replaced: it names none.
    ///
    /// # Errors
    ///
    /// When the link cannot be read.
    pub fn current_unless_lost(&self) -> Result<Option<Number>, StoreError> {
        match self.current() {
            Err(StoreError::Lost { .. }) => Ok(None),
            other => other,
        }
    }

    /// Says which generation is in force; `None` after `down`.
    ///
    /// # Errors
    ///
    /// When the link cannot be replaced; then the old one is there.
    pub fn set_current(&self, number: Option<Number>) -> Result<(), StoreError> {
        self.prepare()?;
        let path = self.directory.join(CURRENT);
        let failed = |source| StoreError::Io { action: "write", path: path.clone(), source };
        let replaced = || match number {
            Some(number) => {
                let temporary = self.directory.join("current.tmp");
                remove_if_there(&temporary)?;
                fault::point()?;
                symlink(target_of(number), &temporary)?;
                fault::point()?;
                fs::rename(&temporary, &path)
            }
            None => {
                fault::point()?;
                remove_if_there(&path)
            }
        };
        replaced().map_err(failed)?;
        self.sync().map_err(failed)
    }

    /// The numbers of all generations that are kept, the lowest first.
    ///
    /// # Errors
    ///
    /// When the directory is there and cannot be read.
    pub fn generations(&self) -> Result<Vec<Number>, StoreError> {
        self.is_ours()?;
        let path = self.directory.join(DIRECTORY);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StoreError::Io { action: "read", path, source }),
        };
        let mut numbers: Vec<Number> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// What a generation is.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoGeneration`]; when it cannot be read or understood.
    pub fn meta(&self, number: Number) -> Result<Meta, StoreError> {
        self.read_of(number, META)
    }

    /// The texts of its policy.
    ///
    /// # Errors
    ///
    /// As [`Store::meta`].
    pub fn sources(&self, number: Number) -> Result<Vec<Source>, StoreError> {
        let kept: Vec<Kept> = self.read_of(number, POLICY)?;
        Ok(kept.into_iter().map(Source::from).collect())
    }

    /// Who had which address when it was made.
    ///
    /// # Errors
    ///
    /// As [`Store::meta`].
    pub fn addresses_of(&self, number: Number) -> Result<AddressBook, StoreError> {
        self.read_of(number, super::ADDRESSES)
    }

    fn read_of<T: serde::de::DeserializeOwned>(&self, number: Number, name: &str) -> Result<T, StoreError> {
        self.is_ours()?;
        let path = self.path_of(number).join(name);
        let text = file::read(&path, LIMIT).map_err(|error| match error {
            file::FileError::Io(e) if e.kind() == io::ErrorKind::NotFound && !self.path_of(number).exists() => {
                StoreError::NoGeneration { number, known: self.generations().unwrap_or_default() }
            }
            file::FileError::Io(source) => StoreError::Io { action: "read", path: path.clone(), source },
            error => StoreError::Io { action: "read", path: path.clone(), source: io::Error::other(error) },
        })?;
        serde_json::from_slice(&text).map_err(|source| StoreError::Corrupt { path, source })
    }

    /// Writes a generation under the number in its meta. It is not in force by that.
    ///
    /// # Errors
    ///
    /// When something cannot be written; then there is no such generation.
    pub fn write_generation<R: Iterator<Item = String>>(&self, record: Record<R>) -> Result<(), StoreError> {
        self.prepare()?;
        let all = self.directory.join(DIRECTORY);
        let temporary = all.join("new.tmp");
        let path = self.path_of(record.meta.number);
        let kept: Vec<Kept> = record.sources.iter().map(Kept::from).collect();
        let written = (|| {
            if temporary.exists() {
                // Of one that was never finished.
                fs::remove_dir_all(&temporary)?;
            }
            fault::point()?;
            DirBuilder::new().recursive(true).mode(0o700).create(&temporary)?;
            write_file(&temporary.join(POLICY), [json(&kept)])?;
            write_file(&temporary.join(super::ADDRESSES), [json(record.addresses)])?;
            write_file(&temporary.join("rules.nft"), record.rules.map(String::into_bytes))?;
            write_file(&temporary.join(META), [json(record.meta)])?;
            File::open(&temporary)?.sync_all()?;
            fault::point()?;
            fs::rename(&temporary, &path)?;
            File::open(&all)?.sync_all()?;
            self.sync()
        })();
        written.map_err(|source| {
            fs::remove_dir_all(&temporary).ok();
            StoreError::Io { action: "write", path, source }
        })
    }

    /// Forgets old generations, so that `most` are left; never one of `kept`.
    ///
    /// # Errors
    ///
    /// When one cannot be removed.
    pub fn prune(&self, most: usize, kept: &[Number]) -> Result<(), StoreError> {
        let all = self.generations()?;
        let surplus = all.len().saturating_sub(most);
        for number in all.iter().take(surplus).filter(|number| !kept.contains(number)) {
            let path = self.path_of(*number);
            // Renamed first: what has a number is whole.
            let away = self.directory.join(DIRECTORY).join("old.tmp");
            let removed = (|| {
                if away.exists() {
                    fs::remove_dir_all(&away)?;
                }
                fs::rename(&path, &away)?;
                fs::remove_dir_all(&away)
            })();
            removed.map_err(|source| StoreError::Io { action: "remove", path, source })?;
        }
        Ok(())
    }

    fn path_of(&self, number: Number) -> PathBuf {
        self.directory.join(DIRECTORY).join(number.to_string())
    }

    fn sync(&self) -> io::Result<()> {
        fault::point()?;
        File::open(&self.directory)?.sync_all()
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("the records have string keys and plain values");
    text.push(b'\n');
    text
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
