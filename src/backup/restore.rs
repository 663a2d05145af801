//! Restoring a backup.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use netns_policy::name::NetworkName;

use super::archive::{Contents, LARGEST, unpack};
use super::sealed::{self, Opened, Unopened};
use super::{ASIDE, BackupError, Passphrase, Restored, Unread, is_usable};
use crate::orchestrator::{Orchestrator, is_up};
use crate::store::{self, Guard, Store, StoreError};
use crate::{fault, file};

/// Where what is restored is written before it has its name.
const STAGE: &str = "restore.tmp";

impl Orchestrator {
    /// Puts the state that a backup holds into the state directory. `nsctl apply --boot` makes it so.
    ///
    /// # Errors
    ///
    /// [`BackupError::InTheWay`] when there is such state already or such a network is up, unless `replace`: then that
    /// state is set aside. See [`BackupError`]; whatever fails, the state is as it was.
    pub fn restore_backup(&self, from: &Path, passphrase: &Passphrase, replace: bool) -> Result<Restored, BackupError> {
        let sealed = Sealed::open(from, passphrase)?;
        // First to its end, and nothing is written.
        let (mut roots, mut files) = (BTreeSet::new(), 0);
        let contents = sealed.read(|path, _| {
            roots.extend(path.iter().next().and_then(|root| root.to_str()).map(str::to_owned));
            files += 1;
            Ok(())
        })?;
        let state = self.options().state.clone();
        let networks: Vec<NetworkName> = roots.iter().filter_map(|root| root.parse().ok()).collect();
        networks.iter().try_for_each(|network| Store::new(&state, network).is_trusted())?;
        if !replace {
            self.is_free(&state, &roots, &networks)?;
        }
        let _guards = locked(&state, &networks)?;
        let stage = state.join(STAGE);
        let staged = prepare(&state, &stage).map_err(BackupError::io("write", &stage)).and_then(|()| {
            sealed.read(|path, text| {
                let at = stage.join(path);
                write(&stage, &at, text).map_err(BackupError::io("write", &at))
            })?;
            link(&stage, &contents, &networks)?;
            networks.iter().try_for_each(|network| is_whole(&stage, network, from))
        });
        let placed = staged.and_then(|()| {
            let mut placed = Vec::new();
            let all = roots.iter().try_for_each(|root| place(&state, &stage, root).map(|one| placed.push(one)));
            all.and_then(|()| sync(&state)).map_err(|error| {
                placed.drain(..).rev().for_each(|one| one.undo(&stage));
                BackupError::io("write", &state)(error)
            })?;
            Ok(placed)
        });
        fs::remove_dir_all(&stage).ok();
        let aside = placed?.into_iter().filter_map(|one| Some((one.path, one.aside?))).collect();
        Ok(Restored { networks, files, time: contents.time, aside })
    }

    /// Whether nothing is there that it would take the place of.
    fn is_free(&self, state: &Path, roots: &BTreeSet<String>, networks: &[NetworkName]) -> Result<(), BackupError> {
        if let Some(network) = networks.iter().find(|network| is_up(&self.options().netns, network)) {
            return Err(BackupError::InTheWay { what: format!("network {network} is up") });
        }
        match roots.iter().map(|root| state.join(root)).find(|path| fs::symlink_metadata(path).is_ok()) {
            Some(path) => Err(BackupError::InTheWay { what: format!("{} is there already", path.display()) }),
            None => Ok(()),
        }
    }
}

/// Nobody changes a network whose state is replaced.
fn locked(state: &Path, networks: &[NetworkName]) -> Result<Vec<Guard>, StoreError> {
    let there = networks.iter().filter(|network| state.join(network.as_str()).is_dir());
    // Whatever form it has: it is set aside as it is.
    there.map(|network| Store::new(state, network).lock_as_it_is()).collect()
}

/// A backup whose passphrase is right.
struct Sealed {
    path: PathBuf,
    opened: Opened,
}

impl Sealed {
    fn open(path: &Path, passphrase: &Passphrase) -> Result<Self, BackupError> {
        let unopened = |source| BackupError::Unopened { path: path.into(), source };
        let mut from = Self::stream(path)?;
        Ok(Self { path: path.into(), opened: sealed::open(&mut from, passphrase).map_err(unopened)? })
    }

    fn stream(path: &Path) -> Result<BufReader<File>, BackupError> {
        let regular = file::Regular::open(path).map_err(|error| match error {
            file::FileError::Io(source) => BackupError::Io { action: "read", path: path.into(), source },
            error => BackupError::Io { action: "read", path: path.into(), source: io::Error::other(error) },
        })?;
        Ok(BufReader::with_capacity(64 << 10, regular.into_file()))
    }

    /// All of it; each file of the state directory is handed out.
    fn read(
        &self,
        mut each: impl FnMut(&Path, &mut dyn Read) -> Result<(), BackupError>,
    ) -> Result<Contents, BackupError> {
        let mut from = Self::stream(&self.path)?;
        sealed::skip(&mut from).map_err(|source| BackupError::Unopened { path: self.path.clone(), source })?;
        let result = unpack(self.opened.reader(from), |path, text| each(path, text).map_err(Failed::Each));
        result.map_err(|error| match error {
            Failed::Each(error) => error,
            // What is not authentic is told as that, and not as a flaw of the archive.
            Failed::Unread(Unread::Io(error)) if is_damage(&error) => {
                BackupError::Unopened { path: self.path.clone(), source: Unopened::Damaged }
            }
            Failed::Unread(source) => BackupError::Unread { path: self.path.clone(), source },
        })
    }
}

enum Failed {
    Each(BackupError),
    Unread(Unread),
}

impl From<Unread> for Failed {
    fn from(error: Unread) -> Self {
        Self::Unread(error)
    }
}

fn is_damage(error: &io::Error) -> bool {
    let mut cause = error.get_ref().map(|error| error as &(dyn std::error::Error + 'static));
    while let Some(error) = cause {
        if error.is::<Unopened>() {
            return true;
        }
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// An empty stage. What one that was cut off has left is nobody's.
fn prepare(state: &Path, stage: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(state)?;
    match fs::remove_dir_all(stage) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fault::point()?;
    DirBuilder::new().mode(0o700).create(stage)
}

/// Writes one file of the stage, for root's eyes alone.
fn write(stage: &Path, at: &Path, text: &mut dyn Read) -> io::Result<()> {
    let directory = at.parent().unwrap_or(stage);
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut bytes = Vec::new();
    text.take(LARGEST).read_to_end(&mut bytes)?;
    store::write_file(at, [bytes])?;
    File::open(directory)?.sync_all()
}

/// Says which generation is in force, as the backup does.
fn link(stage: &Path, contents: &Contents, networks: &[NetworkName]) -> Result<(), BackupError> {
    for network in networks {
        let Some(Some(number)) = contents.networks.get(network.as_str()) else { continue };
        let path = stage.join(network.as_str()).join(store::CURRENT);
        let linked = fault::point().and_then(|()| symlink(store::target_of(*number), &path));
        linked.map_err(BackupError::io("write", &path))?;
    }
    Ok(())
}

/// Whether the other verbs could use it.
fn is_whole(stage: &Path, network: &NetworkName, from: &Path) -> Result<(), BackupError> {
    match is_usable(&Store::new(stage, network)) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let what = "a generation in force that is no policy to this version";
            let source = Unread::Hostile { what, name: network.to_string() };
            Err(BackupError::Unread { path: from.into(), source })
        }
        Err(source) => Err(BackupError::Unusable { path: from.into(), source }),
    }
}

/// What has its name, and where what had it before is now.
struct Placed {
    path: PathBuf,
    aside: Option<PathBuf>,
}

impl Placed {
    /// As it was before, as far as that can be done.
    fn undo(self, stage: &Path) {
        let name = self.path.file_name().unwrap_or_default();
        fs::rename(&self.path, stage.join(name)).ok();
        self.aside.map(|aside| fs::rename(aside, self.path).ok());
    }
}

/// Gives what is staged its name; what had it is set aside.
fn place(state: &Path, stage: &Path, root: &str) -> io::Result<Placed> {
    let (path, staged) = (state.join(root), stage.join(root));
    let aside = fs::symlink_metadata(&path).is_ok().then(|| free_name(&path));
    if let Some(aside) = &aside {
        fault::point()?;
        fs::rename(&path, aside)?;
    }
    // A crash here leaves the old state under the other name, and the same restore finishes.
    let placed = fault::point().and_then(|()| fs::rename(staged, &path));
    match (placed, &aside) {
        (Ok(()), _) => Ok(Placed { path, aside }),
        (Err(error), None) => Err(error),
        (Err(error), Some(aside)) => {
            fs::rename(aside, &path)?;
            Err(error)
        }
    }
}

fn free_name(path: &Path) -> PathBuf {
    let named = |number: u32| {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!("{ASIDE}{number}"));
        path.with_file_name(name)
    };
    let mut names = (1..).map(named);
    names.find(|path| fs::symlink_metadata(path).is_err()).expect("not every name is taken")
}

fn sync(directory: &Path) -> io::Result<()> {
    fault::point()?;
    File::open(directory)?.sync_all()
}
