//! Which places are held closed: a record in the run directory, so that a daemon that is started anew knows, and that
//! `apply` lifts.

use std::collections::BTreeSet;
use std::fs;
#[cfg(feature = "daemon")]
use std::io;
use std::path::{Path, PathBuf};

use netns_policy::name::NetworkName;
use netns_policy::plan::Site;
use netns_policy::topology::Place;

use crate::file::{self, FileError};
#[cfg(feature = "daemon")]
use crate::store::write_whole;

fn path(run: &Path, network: &NetworkName) -> PathBuf {
    run.join(network.as_str()).join("held.json")
}

/// The word for a place, which [`from_word`] reads.
pub(crate) fn word(site: &Site) -> String {
    match site {
        Site::Fabric => "+fabric".into(),
        Site::Place(place) => place.long_name(),
    }
}

fn from_word(word: &str) -> Option<Site> {
    match word {
        "+fabric" => Some(Site::Fabric),
        _ => Place::from_long_name(word).map(Site::Place),
    }
}

/// Those that are held closed. A record that cannot be read says nothing: what is open then is as the policy says.
pub(crate) fn read(run: &Path, network: &NetworkName) -> BTreeSet<Site> {
    let text = match file::read(&path(run, network), 1 << 20) {
        Ok(text) => text,
        Err(FileError::Io(_)) | Err(_) => return BTreeSet::new(),
    };
    let words: Vec<String> = serde_json::from_slice(&text).unwrap_or_default();
    words.iter().filter_map(|word| from_word(word)).collect()
}

/// Records that these are held closed.
///
/// # Errors
///
/// When it cannot be written.
#[cfg(feature = "daemon")]
pub(crate) fn record(run: &Path, network: &NetworkName, held: &BTreeSet<Site>) -> io::Result<()> {
    let words: Vec<String> = held.iter().map(word).collect();
    let path = path(run, network);
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    write_whole(&path, &serde_json::to_vec(&words)?, 0o600)
}

/// Nothing is held closed any more: the operator has seen to it.
pub(crate) fn lift(run: &Path, network: &NetworkName) {
    fs::remove_file(path(run, network)).ok();
}
