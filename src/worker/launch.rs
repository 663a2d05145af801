//! Starting a worker: in its namespace, as its user, without any right, with one socket.
//!
//! # Invariants
//!
//! - No code of ours runs between fork and exec. What a worker is to inherit (the namespace, an empty bounding set, no new
//!   privileges) is set on a fresh thread, because each of these belongs to a thread; the thread starts it and ends.
//! - It has no arguments and no environment, `/` as its directory, a process group of its own; its stdin is the socket, its
//!   stdout goes nowhere, its stderr into a pipe.

use std::io::{self, PipeReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use caps::CapSet;
use nix::sys::prctl::set_no_new_privs;
use thiserror::Error;

use super::channel::Channel;
use super::{Fence, Spec};
use crate::exec::is_only_user;
use crate::kernel::netns::Netns;

/// Where the programs of workers are, and how they are started.
#[derive(Clone, Debug)]
pub struct Launcher {
    programs: PathBuf,
}

/// A worker could not be started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// Nobody knows where the programs are.
    #[error("cannot find out where this program lies")]
    Here(#[source] io::Error),
    /// It is not there.
    #[error("there is no program `{}`: it belongs beside nsctl", .0.display())]
    NoProgram(PathBuf),
    /// Its user may not run it.
    #[error("user {user} cannot run `{}`: it and the directories above it have to be open to everybody", path.display())]
    Forbidden {
        /// The program.
        path: PathBuf,
        /// The user of this kind of worker.
        user: u32,
    },
    /// The namespace is not there.
    #[error("cannot enter the namespace {}", path.display())]
    Netns {
        /// Where it is pinned.
        path: PathBuf,
        /// What open(2) or setns(2) says.
        #[source]
        source: io::Error,
    },
    /// What fork(2), setuid(2) or execve(2) say.
    #[error("cannot start `{}`", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No socket, no pipe.
    #[error("cannot make a socket for the worker")]
    Socket(#[source] io::Error),
}

/// A worker that was just started and has not been told anything yet.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) child: Child,
    pub(crate) channel: Channel,
    pub(crate) log: PipeReader,
    /// Fences without which it must not go on. The others depend on the kernel.
    pub(crate) due: Vec<Fence>,
}

impl Launcher {
    /// With the programs beside the running executable.
    ///
    /// # Errors
    ///
    /// When `/proc` is not mounted.
    pub fn beside_this_program() -> Result<Self, LaunchError> {
        let here = std::env::current_exe().map_err(LaunchError::Here)?;
        Ok(Self::with_programs(here.parent().unwrap_or(Path::new("/"))))
    }

    /// With the programs in `directory`.
    pub fn with_programs(directory: &Path) -> Self {
        Self { programs: directory.to_owned() }
    }

    /// The program of `spec`.
    pub(crate) fn program(&self, spec: &Spec) -> PathBuf {
        spec.program.clone().unwrap_or_else(|| self.programs.join(spec.work.kind().program()))
    }

    /// Starts the worker.
    pub(crate) fn launch(&self, spec: &Spec) -> Result<Launched, LaunchError> {
        let path = self.program(spec);
        if !path.is_file() {
            return Err(LaunchError::NoProgram(path));
        }
        let netns = Netns::open(&spec.netns);
        let netns = netns.map_err(|source| LaunchError::Netns { path: spec.netns.clone(), source })?;
        let (channel, theirs) = Channel::pair().map_err(LaunchError::Socket)?;
        let (log, stderr) = io::pipe().map_err(LaunchError::Socket)?;
        let kind = spec.work.kind();
        // In a user namespace of one user nobody else can be had; the worker tells that this fence is missing.
        let is_alone = is_only_user(&std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default());
        let mut due = vec![Fence::Capabilities, Fence::NoNewPrivileges];
        let mut command = bare(&path);
        if !is_alone {
            // Where we are root this drops the other groups too (std's documentation of `uid`).
            command.uid(kind.user()).gid(kind.user());
            due.push(Fence::User);
        }
        command.stdin(theirs.into_descriptor()).stderr(stderr);
        let child = netns.run(move || {
            // Without CAP_SETPCAP they stay, and the worker says so: no new privileges makes nothing of them.
            caps::clear(None, CapSet::Bounding).ok();
            caps::clear(None, CapSet::Ambient).ok();
            caps::clear(None, CapSet::Inheritable).ok();
            set_no_new_privs()?;
            command.spawn()
        });
        match child {
            Ok(child) => Ok(Launched { child, channel, log, due }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !can_run(&path) => {
                Err(LaunchError::Forbidden { path, user: kind.user() })
            }
            Err(source) => Err(LaunchError::Start { path, source }),
        }
    }
}

/// The program with nothing of ours.
#[allow(clippy::disallowed_methods, reason = "a worker is a program of this package, started without arguments")]
fn bare(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env_clear().current_dir("/").process_group(0).stdout(Stdio::null());
    command
}

/// Whether everybody may run what lies there.
fn can_run(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.ancestors()
        .filter_map(|above| std::fs::metadata(above).ok())
        .all(|metadata| metadata.permissions().mode() & 0o001 != 0)
}
