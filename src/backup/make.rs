//! Making a backup.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use netns_policy::diagnostic::Source;
use netns_policy::name::NetworkName;

use super::archive::{Contents, FORMAT, LARGEST, Packer, is_kept};
use super::sealed::{Sealer, WORK};
use super::{BackedUp, BackupError, Passphrase, is_usable};
use crate::orchestrator::Orchestrator;
use crate::store::Store;
use crate::{clock, fault, file, own};

impl Orchestrator {
    /// Seals the state of all networks, or of one, into a file. Nobody changes a network meanwhile.
    ///
    /// # Errors
    ///
    /// [`BackupError::Exists`] unless `replace`; see [`BackupError`]. Then there is no such file, or the old one is whole.
    pub fn backup(
        &self,
        into: &Path,
        network: Option<&NetworkName>,
        passphrase: &Passphrase,
        replace: bool,
    ) -> Result<BackedUp, BackupError> {
        if passphrase.bytes().len() < Passphrase::LEAST {
            let why = format!("it is shorter than {} bytes", Passphrase::LEAST);
            return Err(BackupError::NoPassphrase { why });
        }
        if !replace && fs::symlink_metadata(into).is_ok() {
            return Err(BackupError::Exists { path: into.into() });
        }
        self.is_outside(into)?;
        let state = &self.options().state;
        let networks = networks(state, network)?;
        let stores: Vec<Store> = networks.iter().map(|network| Store::new(state, network)).collect();
        let _guards: Vec<_> = stores.iter().map(Store::lock).collect::<Result<_, _>>()?;
        // One that could not be restored is none.
        stores.iter().try_for_each(|store| is_usable(store).map(drop))?;
        let (policy, note) = match own::read(self.options()) {
            Ok(read) => (read.sources, None),
            Err(errors) => (Vec::new(), errors.0.first().map(ToString::to_string)),
        };
        let mut files = Vec::new();
        for root in roots(state, network)? {
            walk(&root, &mut files)?;
        }
        let contents = contents(&networks, &stores, &policy)?;
        let temporary = beside(into);
        let written = seal(&temporary, passphrase, &contents, (state, &files), &policy).and_then(|()| {
            fault::point()?;
            fs::rename(&temporary, into)?;
            fault::point()?;
            File::open(directory_of(into))?.sync_all()
        });
        written.map_err(|error| {
            fs::remove_file(&temporary).ok();
            BackupError::io("write", into)(error)
        })?;
        Ok(BackedUp { networks, files: files.len(), policy: policy.len(), note })
    }

    fn is_outside(&self, into: &Path) -> Result<(), BackupError> {
        let directory = directory_of(into);
        let directory = fs::canonicalize(directory).map_err(BackupError::io("write into", directory))?;
        match fs::canonicalize(&self.options().state) {
            Ok(state) if directory.starts_with(&state) => Err(BackupError::Inside { path: into.into() }),
            _ => Ok(()),
        }
    }
}

/// Those that have a state, or the one that was asked for.
fn networks(state: &Path, network: Option<&NetworkName>) -> Result<Vec<NetworkName>, BackupError> {
    let all = match network {
        Some(network) => vec![network.clone()],
        None => Store::networks(state)?,
    };
    let networks: Vec<NetworkName> = all.into_iter().filter(|name| state.join(name.as_str()).is_dir()).collect();
    if networks.is_empty() {
        let path = network.map_or(state.into(), |network| state.join(network.as_str()));
        return Err(BackupError::Nothing { path });
    }
    Ok(networks)
}

fn contents(networks: &[NetworkName], stores: &[Store], policy: &[Source]) -> Result<Contents, BackupError> {
    let current = stores.iter().map(Store::current).collect::<Result<Vec<_>, _>>()?;
    Ok(Contents {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: clock::now(),
        networks: networks.iter().map(ToString::to_string).zip(current).collect(),
        policy: policy.iter().map(|source| source.name.clone()).collect(),
    })
}

/// All of it into one new file.
fn seal(
    path: &Path,
    passphrase: &Passphrase,
    contents: &Contents,
    (state, files): (&Path, &[PathBuf]),
    policy: &[Source],
) -> io::Result<()> {
    let to = BufWriter::new(create(path)?);
    let mut packer = Packer::new(Sealer::new(to, passphrase, WORK)?, contents)?;
    for path in files {
        let time = fs::metadata(path)?.mtime().unsigned_abs();
        let text = file::read(path, LARGEST).map_err(|error| at(path, io::Error::other(error)))?;
        let name = path.strip_prefix(state).map_err(io::Error::other)?;
        packer.state(name, time, &text).map_err(|error| at(path, error))?;
    }
    for (number, source) in policy.iter().enumerate() {
        packer.policy(number, contents.time, &source.text)?;
    }
    fault::point()?;
    packer.finish()?.finish()?.into_inner()?.sync_all()
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name that nobody else has, where the file is to be.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    directory_of(path).join(format!(".{name}.{}.tmp", std::process::id()))
}

fn create(path: &Path) -> io::Result<File> {
    fault::point()?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// What is directly in the state directory, or the one network.
fn roots(state: &Path, network: Option<&NetworkName>) -> Result<Vec<PathBuf>, BackupError> {
    match network {
        Some(network) => Ok(vec![state.join(network.as_str())]),
        None => entries(state),
    }
}

/// What belongs into a backup, ordered by name.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
        let kept = entries.into_iter().filter(|entry| entry.file_name().to_str().is_some_and(is_kept));
        let mut paths: Vec<PathBuf> = kept.map(|entry| entry.path()).collect();
        paths.sort();
        Ok(paths)
    };
    read().map_err(BackupError::io("read", directory))
}

/// Every regular file at or below `path`; links lead elsewhere, and the one of ours is in [`Contents`].
fn walk(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), BackupError> {
    let kind = fs::symlink_metadata(path).map_err(BackupError::io("read", path))?.file_type();
    if kind.is_dir() {
        entries(path)?.iter().try_for_each(|path| walk(path, files))?;
    } else if kind.is_file() {
        files.push(path.to_owned());
    }
    Ok(())
}
