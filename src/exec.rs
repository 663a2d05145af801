//! Running a command inside a service: in its network namespace, with its names, without any right.
//!
//! # Invariants
//!
//! - The command has no capability in any of its five sets and can get none (`no_new_privs`).
//! - What it sees of /etc/hosts, /etc/resolv.conf and /etc/nsswitch.conf is the service's own, or it is not started.
//! - Mounts are made in a mount namespace of its own; the host's files are neither made nor changed.
//! - Caches that answer for the host (nscd, systemd-resolved, avahi) are out of its sight: a path socket reaches across
//!   network namespaces and would get round the graph.
//!
//! # What it does not do
//!
//! The command keeps the caller's terminal, as with su(1): before Linux 6.2, or with `dev.tty.legacy_tiocsti=1`, a
//! hostile command can type into it. Other path sockets of the host (D-Bus, Docker) stay reachable where their file
//! permissions let its user.
//!
//! The environment is not inherited but for what a terminal and a language need ([`KEPT`]); `env NAME=VALUE` in front
//! of the command sets more.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use caps::CapSet;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist, setgroups, setresgid, setresuid};
use thiserror::Error;

use crate::kernel::netns::Netns;

/// What to run, where and as whom.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The network namespace.
    pub netns: &'a Netns,
    /// The directory with `hosts`, `resolv.conf` and `nsswitch.conf`; without one the host's stay.
    pub files: Option<&'a Path>,
    /// As whom.
    pub user: RunAs<'a>,
    /// The program, looked up in `PATH`, and its arguments.
    pub command: &'a [OsString],
}

/// The user that a command runs as.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RunAs<'a> {
    /// The one that was asked for by name.
    pub asked: Option<&'a str>,
    /// Who called sudo(8): its `SUDO_UID` and `SUDO_GID`. Root behind sudo is nobody in particular.
    pub sudo: Option<(u32, u32)>,
    /// The `User=` of the service's unit.
    pub unit: Option<&'a str>,
}

impl<'a> RunAs<'a> {
    /// With the caller behind sudo(8) as the environment names it. Only root can act on it, and root may say what it
    /// likes.
    pub fn new(asked: Option<&'a str>, unit: Option<&'a str>) -> Self {
        let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
        Self { asked, sudo: number("SUDO_UID").zip(number("SUDO_GID")), unit }
    }

    fn choose(self) -> Choice<'a> {
        match (self.asked, self.sudo, self.unit) {
            (Some(name), ..) => Choice::Named(name),
            (None, Some((uid, gid)), _) if uid != 0 => Choice::Numbered(uid, gid),
            (None, _, Some(name)) => Choice::Named(name),
            (None, _, None) => Choice::Named("nobody"),
        }
    }
}

#[derive(Debug, Eq, PartialEq)]
enum Choice<'a> {
    Named(&'a str),
    Numbered(u32, u32),
}

/// Why a command was not run.
#[derive(Debug, Error)]
pub enum ExecError {
    /// A capability could not be given up: then nothing is run.
    #[error("cannot give up the capabilities")]
    Capabilities(#[source] caps::errors::CapsError),
    /// The program could not be started.
    #[error("cannot run `{program}`")]
    Command {
        /// Its name.
        program: String,
        /// What execve(2) said.
        #[source]
        source: io::Error,
    },
    /// There is nothing to run.
    #[error("there is no command to run")]
    Empty,
    /// A file of the service could not take the place of the host's.
    #[error("cannot put {} in the place of {}", file.display(), target.display())]
    File {
        /// The service's.
        file: PathBuf,
        /// The host's.
        target: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another user was asked for where there is only one.
    #[error("cannot become `{0}`: this user namespace has one user only")]
    OneUser(String),
    /// A step on the way into the service was refused.
    #[error("cannot {step}{}", capability(source))]
    Step {
        /// Which.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The user is not known here.
    #[error("there is no user `{0}`; name another one with --user")]
    UnknownUser(String),
}

impl ExecError {
    /// The exit status that says so, as env(1) and chroot(1) give it: 127 for a command that is not there, 126 for one
    /// that cannot be run, 125 for anything before.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Command { .. } => 126,
            _ => 125,
        }
    }
}

/// Names the capability whose lack is the likely cause.
fn capability(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied { " (it takes CAP_SYS_ADMIN: run it as root)" } else { "" }
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ExecError {
    move |source| ExecError::Step { step, source: source.into() }
}

/// The variables that a command inherits, and those that start with `LC_`.
pub const KEPT: [&str; 7] = ["COLORTERM", "LANG", "LANGUAGE", "NO_COLOR", "PATH", "TERM", "TZ"];

/// Becomes `exec.command`, inside the service. To be called from a process with one thread: namespaces, capabilities
/// and groups belong to the calling thread, and the command inherits that one's.
///
/// # Errors
///
/// Whatever stood in the way. Then this process is half inside and good for nothing but to say so and exit.
pub fn exec(exec: &Exec) -> Result<Infallible, ExecError> {
    let (program, arguments) = exec.command.split_first().ok_or(ExecError::Empty)?;
    // Before anything changes: who a user is may be known by a directory server only, which the host reaches.
    let identity = Identity::of(exec.user)?;
    enter(exec.netns)?;
    hide_caches()?;
    if let Some(files) = exec.files {
        FILES.iter().try_for_each(|name| replace(&files.join(name), name))?;
    }
    // A tool that lists links by /sys would show the host's. It is no way out, so it may fail.
    show_own_links().ok();
    identity.assume()?;
    become_command(program, arguments, &identity)
}

#[allow(clippy::disallowed_methods, reason = "this process itself is to be inside, and its mounts are to be its own")]
fn enter(netns: &Netns) -> Result<(), ExecError> {
    setns(netns.file().as_fd(), CloneFlags::CLONE_NEWNET).map_err(step("enter the network namespace"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(step("make a mount namespace"))?;
    // Slave, not private: what the host mounts later (a USB stick) is seen, what is mounted here is not seen there.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(step("keep mounts from the host"))
}

/// What a service has of its own in /etc.
const FILES: [&str; 3] = ["hosts", "resolv.conf", "nsswitch.conf"];

/// Directories of the sockets that answer names in the host's stead.
const CACHES: [&str; 3] = ["/run/nscd", "/run/systemd/resolve", "/run/avahi-daemon"];

fn hide_caches() -> Result<(), ExecError> {
    // Where /var/run is a directory of its own and not the usual link, nscd has its socket there.
    let old = Path::new("/var/run/nscd");
    let old = fs::canonicalize(old).is_ok_and(|real| real == old).then_some("/var/run/nscd");
    for directory in CACHES.into_iter().chain(old).filter(|directory| Path::new(directory).is_dir()) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("nsctl"), directory, Some("tmpfs"), flags, Some("mode=0755,size=64k"))
            .map_err(step("hide the name caches of the host"))?;
    }
    Ok(())
}

/// Binds `file` over `/etc/NAME`, or over what this links to.
fn replace(file: &Path, name: &str) -> Result<(), ExecError> {
    let etc = Path::new("/etc").join(name);
    let failed = |target: &Path| {
        let (file, target) = (file.to_owned(), target.to_owned());
        move |source| ExecError::File { file, target, source }
    };
    let target = match real_target(&etc) {
        Ok(target) => target,
        // A libc without name service switch: there is nothing to replace.
        Err(e) if e.kind() == io::ErrorKind::NotFound && name == "nsswitch.conf" => return Ok(()),
        Err(e) => return Err(failed(&etc)(e)),
    };
    mount(Some(file), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| failed(&target)(errno.into()))
}

/// The file behind `path`. One that went out of sight with [`hide_caches`] (/etc/resolv.conf commonly links to
/// /run/systemd/resolve) is made anew in the empty directory, which only this process sees.
fn real_target(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let link = fs::read_link(path)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let target = parent.join(link);
    let (Some(directory), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let directory = fs::canonicalize(directory)?;
    if !CACHES.iter().any(|cache| directory == Path::new(cache)) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let target = directory.join(name);
    OpenOptions::new().write(true).create_new(true).open(&target)?;
    Ok(target)
}

/// Mounts a /sys that shows the links of this network namespace, with the control groups back in their place.
fn show_own_links() -> io::Result<()> {
    let groups = File::open("/sys/fs/cgroup").ok();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, None::<&str>)?;
    if let Some(groups) = groups {
        let groups = PathBuf::from(format!("/proc/self/fd/{}", groups.as_raw_fd()));
        mount(Some(&groups), "/sys/fs/cgroup", None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    }
    Ok(())
}

/// A user with all that setting it takes.
#[derive(Debug)]
struct Identity {
    /// Nothing where this process cannot be anybody else.
    ids: Option<(Uid, Gid, Vec<Gid>)>,
    name: Option<String>,
    home: PathBuf,
    shell: PathBuf,
}

impl Identity {
    fn of(user: RunAs) -> Result<Self, ExecError> {
        if is_only_user(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default()) {
            return Self::unchanged(user.asked);
        }
        let (found, uid, gid) = match user.choose() {
            Choice::Named(name) => {
                let found = named(name)?;
                let (uid, gid) = (found.uid, found.gid);
                (Some(found), uid, gid)
            }
            Choice::Numbered(uid, gid) => (numbered(uid.into())?, uid.into(), gid.into()),
        };
        let groups = match found.as_ref().and_then(|user| CString::new(user.name.as_str()).ok()) {
            Some(name) => getgrouplist(&name, gid).map_err(step("look the user's groups up"))?,
            None => vec![gid],
        };
        Ok(Self { ids: Some((uid, gid, groups)), ..Self::described(found) })
    }

    /// Who we are, where nobody else can be: a user that was asked for has to be this one.
    fn unchanged(asked: Option<&str>) -> Result<Self, ExecError> {
        match asked {
            Some(name) if named(name)?.uid != geteuid() => Err(ExecError::OneUser(name.into())),
            _ => Ok(Self::described(numbered(geteuid())?)),
        }
    }

    fn described(user: Option<User>) -> Self {
        match user {
            Some(user) => Self { ids: None, name: Some(user.name), home: user.dir, shell: user.shell },
            None => Self { ids: None, name: None, home: "/".into(), shell: "/bin/sh".into() },
        }
    }

    /// Becomes this user and gives up every right. The bounding set goes first, for that takes a capability itself.
    fn assume(&self) -> Result<(), ExecError> {
        caps::clear(None, CapSet::Bounding).map_err(ExecError::Capabilities)?;
        if let Some((uid, gid, groups)) = &self.ids {
            setgroups(groups).map_err(step("set the groups"))?;
            setresgid(*gid, *gid, *gid).map_err(step("set the group"))?;
            setresuid(*uid, *uid, *uid).map_err(step("set the user"))?;
        }
        for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
            caps::clear(None, set).map_err(ExecError::Capabilities)?;
        }
        set_no_new_privs().map_err(step("renounce new privileges"))
    }
}

fn named(name: &str) -> Result<User, ExecError> {
    User::from_name(name).map_err(step("look the user up"))?.ok_or_else(|| ExecError::UnknownUser(name.into()))
}

fn numbered(uid: Uid) -> Result<Option<User>, ExecError> {
    User::from_uid(uid).map_err(step("look the user up"))
}

/// Whether a user namespace with this uid_map has one user only, as one made without root has.
pub(crate) fn is_only_user(uid_map: &str) -> bool {
    let mut lines = uid_map.lines().map(|line| line.split_whitespace().last());
    matches!((lines.next(), lines.next()), (Some(Some("1")), None))
}

/// Replaces this process; std resets the signal mask and SIGPIPE on the way.
#[allow(
    clippy::disallowed_methods,
    reason = "the command is what the operator asked for, in the place of this process"
)]
fn become_command(program: &OsStr, arguments: &[OsString], identity: &Identity) -> Result<Infallible, ExecError> {
    let kept = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with("LC_") || KEPT.contains(&name.as_ref())
    };
    let mut command = std::process::Command::new(program);
    command.args(arguments).env_clear().envs(std::env::vars_os().filter(|(name, _)| kept(name)));
    command.env("HOME", &identity.home).env("SHELL", &identity.shell);
    if let Some(name) = &identity.name {
        command.env("USER", name).env("LOGNAME", name);
    }
    let source = command.exec();
    Err(ExecError::Command { program: program.to_string_lossy().into_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_who_was_asked_for_else_the_caller_else_the_units_else_nobody() {
        let all = RunAs { asked: Some("alice"), sudo: Some((1000, 100)), unit: Some("bitcoin") };
        assert_eq!(all.choose(), Choice::Named("alice"));
        let caller = RunAs { asked: None, ..all };
        assert_eq!(caller.choose(), Choice::Numbered(1000, 100));
        assert_eq!(RunAs { sudo: Some((0, 0)), ..caller }.choose(), Choice::Named("bitcoin"));
        assert_eq!(RunAs { sudo: None, ..caller }.choose(), Choice::Named("bitcoin"));
        assert_eq!(RunAs::default().choose(), Choice::Named("nobody"));
    }

    #[test]
    fn a_namespace_of_one_user_is_recognised() {
        assert!(is_only_user("         0       1000          1\n"));
        assert!(!is_only_user("         0          0 4294967295\n"));
        assert!(!is_only_user("0 1000 1\n1 100000 1\n"));
        assert!(!is_only_user(""));
    }

    #[test]
    fn exit_statuses_are_those_of_env() {
        let command = |kind: io::ErrorKind| ExecError::Command { program: "x".into(), source: kind.into() };
        assert_eq!(command(io::ErrorKind::NotFound).exit_status(), 127);
        assert_eq!(command(io::ErrorKind::PermissionDenied).exit_status(), 126);
        assert_eq!(ExecError::Empty.exit_status(), 125);
    }
}
