//! What is in a backup: an archive of tar(5), of regular files alone.
//!
//! # Invariants
//!
//! - The first file says what the backup is. All others are files of the state directory, or policy files as they were
//!   found, which are there for people.
//! - What is read from an archive names no place outside the state directory: no link, no absolute path, no `..`, no name
//!   twice. Nothing in it is as large as the memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use tar::{Archive, Builder, EntryType, Header};
use thiserror::Error;

use crate::store::Number;

/// The newest form that is known.
pub(super) const FORMAT: u32 = 1;

/// No file of ours is larger.
pub(super) const LARGEST: u64 = 64 << 20;
const MOST_FILES: usize = 200_000;
const MOST_BYTES: u64 = 16 << 30;
const DEEPEST: usize = 10;

const CONTENTS: &str = "nsctl-backup.json";
const STATE: &str = "state";
const POLICY: &str = "policy";

/// What the first file says.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Contents {
    /// The form of the archive.
    pub format: u32,
    /// The version of nsctl that made it.
    pub version: String,
    /// When, in seconds since 1970.
    pub time: u64,
    /// The networks, each with the generation in force.
    pub networks: BTreeMap<String, Option<Number>>,
    /// Where the policy files lay, in their order here.
    pub policy: Vec<String>,
}

/// Why an archive is not read.
#[derive(Debug, Error)]
pub enum Unread {
    /// It does not begin as ours do.
    #[error("it does not say what it is")]
    Other,
    /// It is of a form that is not known here.
    #[error("it is of format {0}, and this nsctl knows formats up to {FORMAT}")]
    Newer(u32),
    /// Something in it that none of ours has.
    #[error("it holds {what}: `{}`", name.escape_debug())]
    Hostile {
        /// What.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// It is not to be read to its end.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
}

/// Puts files into an archive.
pub(super) struct Packer<W: Write>(Builder<W>);

impl<W: Write> Packer<W> {
    /// With what it will hold.
    ///
    /// # Errors
    ///
    /// What writing says.
    pub fn new(to: W, contents: &Contents) -> io::Result<Self> {
        let mut packer = Self(Builder::new(to));
        let text = serde_json::to_vec_pretty(contents).map_err(io::Error::other)?;
        packer.add(Path::new(CONTENTS), contents.time, &text)?;
        Ok(packer)
    }

    /// A file of the state directory, by its path there.
    ///
    /// # Errors
    ///
    /// What writing says; a path of more than 255 bytes.
    pub fn state(&mut self, path: &Path, time: u64, text: &[u8]) -> io::Result<()> {
        self.add(&Path::new(STATE).join(path), time, text)
    }

    /// A policy file, the one of that number in [`Contents::policy`].
    ///
    /// # Errors
    ///
    /// What writing says.
    pub fn policy(&mut self, number: usize, time: u64, text: &[u8]) -> io::Result<()> {
        self.add(&Path::new(POLICY).join(number.to_string()), time, text)
    }

    fn add(&mut self, path: &Path, time: u64, text: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_path(path)?;
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_mtime(time);
        header.set_size(text.len() as u64);
        header.set_cksum();
        self.0.append(&header, text)
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// What writing says.
    pub fn finish(self) -> io::Result<W> {
        self.0.into_inner()
    }
}

/// Reads an archive to its end, and hands out each file of the state directory by its path there.
///
/// # Errors
///
/// See [`Unread`]; what `each` says.
pub(super) fn unpack<E: From<Unread>>(
    from: impl Read,
    mut each: impl FnMut(&Path, &mut dyn Read) -> Result<(), E>,
) -> Result<Contents, E> {
    let io = |error| E::from(Unread::Io(error));
    let mut archive = Archive::new(from);
    let mut contents: Option<Contents> = None;
    let (mut names, mut bytes) = (BTreeSet::new(), 0);
    // Raw: what would only serve to name or describe another entry is none of ours either.
    for entry in archive.entries().map_err(io)?.raw(true) {
        let mut entry = entry.map_err(io)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let hostile = |what| E::from(Unread::Hostile { what, name: name.clone() });
        let Some(known) = &contents else {
            contents = Some(begins(&name, &mut entry)?);
            continue;
        };
        bytes += entry.size();
        if entry.header().entry_type() != EntryType::Regular {
            return Err(hostile("what is not a regular file"));
        }
        if entry.size() > LARGEST || bytes > MOST_BYTES || names.len() >= MOST_FILES {
            return Err(hostile("more than any of ours does"));
        }
        let path = place(&name, known).ok_or_else(|| hostile("a path that none of ours has"))?;
        if !names.insert(name.clone()) {
            return Err(hostile("a file twice"));
        }
        match path {
            Some(path) => each(&path, &mut entry)?,
            // Nothing is written of it, and it is read all the same: it has to be whole.
            None => drop(io::copy(&mut entry, &mut io::sink()).map_err(io)?),
        }
    }
    ends(archive.into_inner()).map_err(io)?;
    contents.ok_or_else(|| Unread::Other.into())
}

fn begins(name: &str, entry: &mut impl Read) -> Result<Contents, Unread> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let mut text = Vec::new();
    if name != CONTENTS || entry.take(1 << 20).read_to_end(&mut text).is_err() {
        return Err(Unread::Other);
    }
    let Format { format } = serde_json::from_slice(&text).map_err(|_| Unread::Other)?;
    if format > FORMAT {
        return Err(Unread::Newer(format));
    }
    serde_json::from_slice(&text).map_err(|_| Unread::Other)
}

/// Nothing but zeros comes after the last file, and the stream has its end.
fn ends(mut rest: impl Read) -> io::Result<()> {
    let mut block = [0; 8 << 10];
    loop {
        match rest.read(&mut block)? {
            0 => return Ok(()),
            n if block[..n].iter().all(|byte| *byte == 0) => {}
            _ => return Err(io::Error::other("something comes after its end")),
        }
    }
}

/// Where a file belongs in the state directory; `Some(None)` for one that belongs nowhere there.
fn place(name: &str, contents: &Contents) -> Option<Option<PathBuf>> {
    let path = Path::new(name);
    let word = |word| match word {
        Component::Normal(word) => word.to_str(),
        _ => None,
    };
    let words: Vec<&str> = path.components().map(word).collect::<Option<_>>()?;
    // Written as ours are, and in no other way that means the same.
    if words.join("/") != name || words.len() > DEEPEST || name.contains(char::is_control) {
        return None;
    }
    match words.as_slice() {
        [POLICY, number] => (number.parse::<usize>().ok()? < contents.policy.len()).then_some(None),
        [STATE, rest @ ..] if rest.iter().all(|word| is_kept(word)) && !rest.is_empty() => {
            Some(Some(rest.iter().collect()))
        }
        _ => None,
    }
}

/// Whether a file or directory of the state directory belongs into a backup by its name: no lock, nothing half written, and
/// nothing that an earlier restore has set aside.
pub(super) fn is_kept(name: &str) -> bool {
    name != "lock" && !name.ends_with(".tmp") && !name.contains(super::ASIDE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        let networks = BTreeMap::from([("node".to_owned(), None)]);
        let policy = vec!["/etc/nsctl/policy.toml".into()];
        Contents { format: FORMAT, version: "0".into(), time: 7, networks, policy }
    }

    fn begun() -> Builder<Vec<u8>> {
        Packer::new(Vec::new(), &contents()).unwrap().0
    }

    /// An entry as nobody's library would write it.
    fn entry(archive: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, size: u64, text: &[u8]) {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o4777);
        header.set_size(size);
        header.set_link_name("/etc/shadow").unwrap();
        header.set_cksum();
        archive.append(&header, text).unwrap();
    }

    fn unpacked(archive: &[u8]) -> Result<Vec<String>, Unread> {
        let mut names = Vec::new();
        unpack(archive, |path, text| {
            let mut bytes = Vec::new();
            text.read_to_end(&mut bytes)?;
            names.push(format!("{} {}", path.display(), bytes.len()));
            Ok::<_, Unread>(())
        })?;
        Ok(names)
    }

    #[test]
    fn what_was_packed_is_unpacked() {
        let mut packer = Packer::new(Vec::new(), &contents()).unwrap();
        packer.state(Path::new("node/generations/1/meta.json"), 7, b"{}").unwrap();
        packer.state(Path::new("policy.d/90-nsctl.toml"), 7, b"").unwrap();
        packer.policy(0, 7, b"schema = 1").unwrap();
        let names = unpacked(&packer.finish().unwrap()).unwrap();
        assert_eq!(names, ["node/generations/1/meta.json 2", "policy.d/90-nsctl.toml 0"], "a policy file goes nowhere");
    }

    #[test]
    fn whatever_leads_elsewhere_is_refused() {
        let long = format!("state/{}x", "a/".repeat(DEEPEST));
        let names = [
            "/state/node/x",
            "state/../x",
            "state/node/../../x",
            "../state/node/x",
            "./state/node/x",
            "state//node/x",
            "state/node/./x",
            "state",
            "state/",
            "policy/1",
            "policy/x",
            "etc/shadow",
            "state/node/lock",
            "state/node/x.tmp",
            "state/node.before-1/x",
            "state/restore.tmp/x",
            "state/node/a\nb",
            "",
            &long,
        ];
        for name in names {
            let mut archive = begun();
            entry(&mut archive, name, EntryType::Regular, 1, b"x");
            let said = unpacked(&archive.into_inner().unwrap());
            assert!(matches!(said, Err(Unread::Hostile { .. })), "{name:?}: {said:?}");
        }
        let mut archive = begun();
        entry(&mut archive, "state/node/x", EntryType::Regular, 1, b"x");
        assert_eq!(unpacked(&archive.into_inner().unwrap()).unwrap(), ["node/x 1"], "the control");
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused() {
        let kinds = [
            EntryType::Symlink,
            EntryType::Link,
            EntryType::Directory,
            EntryType::Fifo,
            EntryType::Char,
            EntryType::Block,
            EntryType::GNULongName,
            EntryType::GNULongLink,
            EntryType::GNUSparse,
            EntryType::XHeader,
            EntryType::XGlobalHeader,
            EntryType::Continuous,
        ];
        for kind in kinds {
            let mut archive = begun();
            entry(&mut archive, "state/node/x", kind, 0, b"");
            let said = unpacked(&archive.into_inner().unwrap());
            assert!(
                matches!(said, Err(Unread::Hostile { what: "what is not a regular file", .. })),
                "{kind:?}: {said:?}"
            );
        }
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_read() {
        let mut archive = begun();
        entry(&mut archive, "state/node/x", EntryType::Regular, LARGEST + 1, b"");
        let said = unpacked(&archive.into_inner().unwrap());
        assert!(matches!(said, Err(Unread::Hostile { what: "more than any of ours does", .. })), "{said:?}");
    }

    #[test]
    fn a_file_twice_is_refused() {
        let mut archive = begun();
        for _ in 0..2 {
            entry(&mut archive, "state/node/x", EntryType::Regular, 0, b"");
        }
        let said = unpacked(&archive.into_inner().unwrap());
        assert!(matches!(said, Err(Unread::Hostile { what: "a file twice", .. })), "{said:?}");
    }

    #[test]
    fn what_says_not_what_it_is_or_is_newer_is_refused() {
        let with = |text: &[u8]| {
            let mut archive = Builder::new(Vec::new());
            entry(&mut archive, CONTENTS, EntryType::Regular, text.len() as u64, text);
            unpacked(&archive.into_inner().unwrap())
        };
        // Whatever else a newer one says.
        assert!(matches!(with(br#"{"format": 2, "networks": []}"#), Err(Unread::Newer(2))));
        for text in [&b"{}"[..], b"", b"[]", br#"{"format": 1}"#, br#"{"format": "1"}"#] {
            assert!(matches!(with(text), Err(Unread::Other)), "{}", String::from_utf8_lossy(text));
        }
        let mut other = Builder::new(Vec::new());
        entry(&mut other, "state/node/x", EntryType::Regular, 0, b"");
        assert!(matches!(unpacked(&other.into_inner().unwrap()), Err(Unread::Other)));
        assert!(matches!(unpacked(b""), Err(Unread::Other)));
        assert!(with(&serde_json::to_vec(&contents()).unwrap()).is_ok(), "the control");
    }

    #[test]
    fn nothing_comes_after_the_end() {
        let whole = begun().into_inner().unwrap();
        assert!(unpacked(&whole).is_ok());
        assert!(unpacked(&[&whole[..], b"and more"].concat()).is_err());
    }
}
