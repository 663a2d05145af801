//! Finds and reads the files of a policy.
//!
//! # Invariants
//!
//! - Nothing that lies at the path can hang us or fill the memory: a file is opened without blocking, looked at, and
//!   read only if it is a regular file of at most [`LIMIT`] bytes.
//! - A file name in a later directory masks the same name in an earlier one, as systemd.unit(5) has it; an empty file
//!   switches it off.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use netns_policy::diagnostic::{Format, Source, Trust};
use nix::libc::{O_CLOEXEC, O_NOCTTY, O_NONBLOCK};
use thiserror::Error;

/// The largest policy file.
pub const LIMIT: u64 = 1 << 20;

/// The most files of one policy.
pub const MOST_FILES: usize = 1024;

/// Where a policy is looked for when none is named, the first with the least weight.
pub const DEFAULT_PATHS: [&str; 4] =
    ["/usr/lib/nsctl/policy.d", "/etc/nsctl/policy.toml", "/etc/nsctl/policy.d", "/run/nsctl/policy.d"];

/// Why a policy file cannot be read. Each has a stable code.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Nothing is there.
    #[error("no policy at {}", paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    Missing {
        /// Where it was looked for.
        paths: Vec<PathBuf>,
    },
    /// A directory where a file is expected, a FIFO, a device, a socket.
    #[error("{} is not a regular file ({kind})", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// More than [`LIMIT`] bytes.
    #[error("{} has {size} bytes, the limit is {LIMIT}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// More than [`MOST_FILES`] files.
    #[error("{} files, the limit is {MOST_FILES}", count)]
    TooMany {
        /// How many.
        count: usize,
    },
    /// Neither `.toml` nor `.json`.
    #[error("{} is neither .toml nor .json", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl ReadError {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "E0001",
            Self::NotRegular { .. } => "E0002",
            Self::TooLarge { .. } => "E0008",
            Self::TooMany { .. } => "E0009",
            Self::Io { .. } => "E0010",
            Self::Unknown { .. } => "E0113",
        }
    }

    /// The file it is about, where it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Missing { paths } => paths.first().filter(|_| paths.len() == 1).map(PathBuf::as_path),
            Self::TooMany { .. } => None,
            Self::Io { path, .. }
            | Self::NotRegular { path, .. }
            | Self::TooLarge { path, .. }
            | Self::Unknown { path } => Some(path),
        }
    }

    /// The next move.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "name one with --policy, or begin with one from examples/policies/",
            Self::NotRegular { .. } => "name a .toml or .json file, or a directory of such files",
            Self::TooLarge { .. } | Self::TooMany { .. } => "a policy of 1,000 services fits well into the limit",
            Self::Io { .. } => "see that the file can be read by the one who runs nsctl",
            Self::Unknown { .. } => "write TOML in a .toml file, or its twin in a .json file",
        }
    }
}

/// Reads the files at `paths`, or at [`DEFAULT_PATHS`] when there are none. A directory stands for the `.toml` and
/// `.json` files in it.
///
/// # Errors
///
/// See [`ReadError`].
pub fn read(paths: &[PathBuf]) -> Result<Vec<Source>, ReadError> {
    let named = !paths.is_empty();
    let paths = if named { paths.to_vec() } else { DEFAULT_PATHS.iter().map(PathBuf::from).collect() };
    let mut files: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    let mut alone = Vec::new();
    for path in &paths {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                for file in directory(path)? {
                    files.insert(file.file_name().unwrap_or_default().to_owned(), file);
                }
            }
            Ok(_) => alone.push(path.clone()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && !named => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ReadError::Missing { paths: vec![path.clone()] });
            }
            Err(source) => return Err(ReadError::Io { path: path.clone(), source }),
        }
    }
    let all: Vec<PathBuf> = alone.iter().cloned().chain(files.into_values()).collect();
    if all.len() > MOST_FILES {
        return Err(ReadError::TooMany { count: all.len() });
    }
    let sources = all.iter().map(|path| source(path)).collect::<Result<Vec<_>, _>>()?;
    // In a directory an empty file switches one of the same name off; named alone it is a mistake to be told.
    let off = |source: &Source| source.text.is_empty() && !alone.iter().any(|p| p.display().to_string() == source.name);
    let sources: Vec<Source> = sources.into_iter().filter(|source| !off(source)).collect();
    if sources.is_empty() { Err(ReadError::Missing { paths }) } else { Ok(sources) }
}

fn directory(path: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let error = |source| ReadError::Io { path: path.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(error)? {
        let file = entry.map_err(error)?.path();
        if format(&file).is_some() {
            files.push(file);
        }
        if files.len() > MOST_FILES {
            return Err(ReadError::TooMany { count: files.len() });
        }
    }
    files.sort();
    Ok(files)
}

fn format(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "json" => Some(Format::Json),
        "toml" => Some(Format::Toml),
        _ => None,
    }
}

fn source(path: &Path) -> Result<Source, ReadError> {
    let error = |source| ReadError::Io { path: path.to_owned(), source };
    let file =
        OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOCTTY | O_CLOEXEC).open(path).map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let kind = match () {
            () if kind.is_fifo() => "fifo",
            () if kind.is_dir() => "directory",
            () if kind.is_socket() => "socket",
            () => "device",
        };
        return Err(ReadError::NotRegular { path: path.to_owned(), kind });
    }
    let format = format(path).ok_or_else(|| ReadError::Unknown { path: path.to_owned() })?;
    let text = bounded(&file, metadata.len(), path)?;
    Ok(Source { name: path.display().to_string(), text, format, trust: Trust::Operator })
}

fn bounded(file: &File, size: u64, path: &Path) -> Result<Vec<u8>, ReadError> {
    let mut text = Vec::new();
    // A file may grow between the look and the reading.
    let read = file.take(LIMIT + 1).read_to_end(&mut text);
    read.map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    if text.len() as u64 > LIMIT {
        return Err(ReadError::TooLarge { path: path.to_owned(), size: size.max(text.len() as u64) });
    }
    Ok(text)
}
