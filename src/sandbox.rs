//! A sandbox for the demo and for tests: user, mount and network namespaces of its own, without root.
//!
//! # Invariants
//!
//! - It has a network of its own with no way out, and a `/run` of its own, empty. No mount in it is seen outside.
//! - `/etc` and `/var` cannot be written; other files can, as far as the caller's rights on them go.
//! - It dies with the last process in it; there is nothing to clean up.
//!
//! Its `lo` is down, as in every new network namespace.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{getegid, geteuid};
use thiserror::Error;

/// The mark of a process that is inside.
#[derive(Debug)]
pub struct Sandbox {
    user_namespace: bool,
}

/// Why there is no sandbox.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The machine does not let this user make one.
    #[error("this machine does not allow user namespaces: {remedy}")]
    Restricted {
        /// What to do about it.
        remedy: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A step was refused.
    #[error("cannot {step} for the sandbox")]
    Step {
        /// Which.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Other threads would stay outside (user_namespaces(7) forbids it).
    #[error("a sandbox is entered by a process with one thread, this one has {0}")]
    Threads(usize),
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |source| SandboxError::Step { step, source: source.into() }
}

impl Sandbox {
    /// Takes the calling process into a new sandbox, as root there. There is no way back.
    ///
    /// Root enters one too where the machine forbids user namespaces; it then keeps its own.
    ///
    /// # Errors
    ///
    /// [`SandboxError`]; the process may then be half inside, and should end.
    pub fn enter() -> Result<Self, SandboxError> {
        let threads = fs::read_dir("/proc/self/task").map_err(step("count the threads"))?.count();
        if threads != 1 {
            return Err(SandboxError::Threads(threads));
        }
        let user_namespace = leave_the_host()?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(|errno| refused("keep mounts from the host", errno))?;
        mount(Some("sandbox"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))
            .map_err(|errno| refused("put an empty directory in the place of /run", errno))?;
        write_protect("/etc").map_err(step("write-protect /etc"))?;
        write_protect("/var").map_err(step("write-protect /var"))?;
        Ok(Self { user_namespace })
    }

    /// Whether it has a user namespace of its own, with one user: then nothing in it can become anybody else.
    pub fn has_user_namespace(&self) -> bool {
        self.user_namespace
    }
}

/// Makes the namespaces. Whether a user namespace is among them.
#[allow(clippy::disallowed_methods, reason = "the process as a whole goes into the sandbox")]
fn leave_the_host() -> Result<bool, SandboxError> {
    let (user, group) = (geteuid(), getegid());
    let inner = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    match unshare(CloneFlags::CLONE_NEWUSER | inner) {
        Ok(()) => {
            // user_namespaces(7): without root outside, a gid_map may be written only once setgroups(2) is given up.
            write("setgroups", "deny")?;
            write("uid_map", &format!("0 {user} 1"))?;
            write("gid_map", &format!("0 {group} 1"))?;
            Ok(true)
        }
        Err(_) if user.is_root() => {
            unshare(inner).map_err(step("make the namespaces"))?;
            Ok(false)
        }
        Err(errno) => Err(refused("make the namespaces", errno)),
    }
}

fn write(file: &str, line: &str) -> Result<(), SandboxError> {
    fs::write(format!("/proc/self/{file}"), line).map_err(|error| match error.raw_os_error() {
        Some(code) => refused("map the user", Errno::from_raw(code)),
        None => step("map the user")(error),
    })
}

/// Makes `directory` read-only in this mount namespace: root in the sandbox may be root outside, as far as files go.
///
/// # Errors
///
/// What mount(2) says. A directory that is not there is left alone.
pub fn write_protect(directory: &str) -> io::Result<()> {
    let none = None::<&str>;
    match mount(Some(directory), directory, none, MsFlags::MS_BIND | MsFlags::MS_REC, none) {
        // A machine without the directory has nothing in it to protect.
        Err(nix::Error::ENOENT) => return Ok(()),
        done => done?,
    }
    // What the mount forbids already has to stay forbidden (mount_namespaces(7), "locked").
    let now = statvfs(directory)?.flags();
    let kept = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept = kept.iter().filter(|(is, _)| now.contains(*is)).fold(MsFlags::empty(), |all, (_, flag)| all | *flag);
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept;
    mount(none, directory, none, flags, none)?;
    Ok(())
}

fn refused(what: &'static str, errno: Errno) -> SandboxError {
    match Restrictions::of_this_machine().remedy(errno) {
        Some(remedy) => SandboxError::Restricted { remedy, source: errno.into() },
        None => step(what)(errno),
    }
}

/// What a machine may have set against user namespaces.
#[derive(Debug, Default)]
struct Restrictions {
    /// Ubuntu 23.10 and later: a namespace is made, but its root has no rights.
    apparmor: bool,
    /// Debian's switch, off.
    switched_off: bool,
    /// `user.max_user_namespaces` is 0.
    none_allowed: bool,
}

impl Restrictions {
    fn of_this_machine() -> Self {
        let is = |name: &str, value: &str| {
            fs::read_to_string(format!("/proc/sys/{name}")).is_ok_and(|text| text.trim() == value)
        };
        Self {
            apparmor: is("kernel/apparmor_restrict_unprivileged_userns", "1"),
            switched_off: is("kernel/unprivileged_userns_clone", "0"),
            none_allowed: is("user/max_user_namespaces", "0"),
        }
    }

    fn remedy(&self, errno: Errno) -> Option<&'static str> {
        match errno {
            Errno::ENOSPC if self.none_allowed => Some("set sysctl user.max_user_namespaces above 0, or run as root"),
            Errno::ENOSPC => Some("too many are in use or nested; raise sysctl user.max_user_namespaces"),
            Errno::EPERM | Errno::EACCES if self.switched_off => {
                Some("set sysctl kernel.unprivileged_userns_clone=1, or run as root")
            }
            Errno::EPERM | Errno::EACCES if self.apparmor => {
                Some("set sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root")
            }
            Errno::EPERM => Some("a container or a seccomp filter may forbid them; run outside of it, or as root"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let remedy = |restrictions: Restrictions, errno| restrictions.remedy(errno).unwrap_or_default();
        let (none, apparmor) = (Restrictions::default(), Restrictions { apparmor: true, ..Default::default() });
        assert!(remedy(apparmor, Errno::EACCES).contains("kernel.apparmor_restrict_unprivileged_userns=0"));
        let debian = Restrictions { switched_off: true, ..Default::default() };
        assert!(remedy(debian, Errno::EPERM).contains("kernel.unprivileged_userns_clone=1"));
        let none_allowed = Restrictions { none_allowed: true, ..Default::default() };
        assert!(remedy(none_allowed, Errno::ENOSPC).contains("user.max_user_namespaces"));
        assert!(remedy(none, Errno::EPERM).contains("seccomp"));
        assert_eq!(Restrictions::default().remedy(Errno::EINVAL), None);
    }

    #[test]
    fn a_process_with_several_threads_is_not_let_in() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv());
        assert!(matches!(Sandbox::enter(), Err(SandboxError::Threads(n)) if n > 1));
        drop(stop);
        other.join().expect("it only waits").unwrap_err();
    }
}
