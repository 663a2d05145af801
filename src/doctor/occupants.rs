//! The processes that live in our namespaces: what they could undo, and whom they could ask around their lock.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use nix::unistd::Pid;

use super::view::{Household, View};
use super::{Check, or_ok};
use crate::kernel::process::name_of;

/// Sockets of the host behind which somebody answers names, or does what he is asked, in the host's own namespace.
const SOCKETS: [(&str, &str); 5] = [
    ("/run/nscd/socket", "nscd, which answers names for the host"),
    ("/var/run/nscd/socket", "nscd, which answers names for the host"),
    ("/run/systemd/resolve/io.systemd.Resolve", "systemd-resolved, which answers names for the host"),
    ("/run/dbus/system_bus_socket", "the system bus, by which systemd-resolved answers names too"),
    ("/run/avahi-daemon/socket", "avahi, which answers names for the host"),
];

/// How many processes of one namespace are looked at for what they see of the files of the host.
const MOST: usize = 64;

/// How many links of a path are followed.
const LINKS: usize = 16;

pub(super) fn checks(view: &View) -> Vec<Check> {
    let (mut names, mut powers, mut strange) = (Vec::new(), Vec::new(), Vec::new());
    let mut living = 0;
    for home in &view.households {
        if home.is_service() {
            living += usize::from(!home.processes.is_empty());
            names.extend(leaks(home));
            powers.extend(power(home));
        } else if let Some((pid, name)) = first(&home.processes) {
            let seen = format!("process {pid} ({name}) runs in {}, where nobody ought to", home.netns);
            strange
                .push(Check::warn("occupants", seen, format!("find who put it there: `ps -fp {pid}`")).at(&home.place));
        }
    }
    let living = format!("{} have somebody in them", super::count(living, "service namespace"));
    let living = living.replace("1 service namespace have", "1 service namespace has");
    let mut checks = or_ok(strange, "occupants", format!("nobody runs in the fabric or a gateway; {living}"));
    checks.extend(or_ok(names, "names", "no process of a service sees a socket that answers names around its lock"));
    checks.extend(or_ok(powers, "privileges", "no process of a service is root or could change its own lock"));
    checks
}

fn first(processes: &[Pid]) -> Option<(Pid, String)> {
    processes.iter().find_map(|pid| Some((*pid, name_of(*pid)?)))
}

/// Each socket once a namespace, with a process that sees it.
fn leaks(home: &Household) -> Vec<Check> {
    let mut found = Vec::new();
    let mut told = BTreeSet::new();
    let root = |pid: &Pid| PathBuf::from(format!("/proc/{pid}/root"));
    let looked: Vec<&Pid> = home.processes.iter().take(MOST).collect();
    let refused = |pid: &&&Pid| {
        fs::symlink_metadata(root(pid).join(".")).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    if let Some(pid) = looked.iter().find(refused) {
        let seen = format!("what process {pid} of {} sees of the host's files cannot be looked at", home.place);
        found.push(Check::warn("names", seen, "run it as root of the machine, with CAP_SYS_PTRACE").at(&home.place));
    }
    for (socket, who) in SOCKETS {
        let Some(pid) = looked.iter().find(|pid| is_reachable(&root(pid), Path::new(socket))) else { continue };
        // Who has ended meanwhile sees nothing.
        let Some(name) = name_of(**pid) else { continue };
        // One may be there by two names.
        if !told.insert(who) {
            continue;
        }
        let seen = format!("process {pid} ({name}) of {} can reach {socket}: {who}", home.place);
        let next = format!("`InaccessiblePaths=-{socket}` in its unit, then restart it");
        found.push(Check::warn("names", seen, next).at(&home.place));
    }
    found
}

/// Whether there is a socket at `path` for whoever has `root` as its root directory. Links are followed as they lead from
/// there: the kernel would take an absolute one from the root of whoever asks.
fn is_reachable(root: &Path, path: &Path) -> bool {
    resolved(root, path).is_ok_and(|is| {
        // systemd.exec(5) puts a socket without any permission over what is to be inaccessible.
        is.file_type().is_socket() && is.permissions().mode() & 0o777 != 0
    })
}

fn resolved(root: &Path, path: &Path) -> io::Result<fs::Metadata> {
    let mut left: Vec<PathBuf> = parts(path);
    let mut at = PathBuf::new();
    let mut links = 0;
    loop {
        let Some(next) = left.pop() else { return fs::symlink_metadata(root.join(&at)) };
        if next.as_os_str() == ".." {
            at.pop();
            continue;
        }
        at.push(next);
        if fs::symlink_metadata(root.join(&at))?.is_symlink() {
            links += 1;
            if links > LINKS {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let target = fs::read_link(root.join(&at))?;
            at.pop();
            if target.is_absolute() {
                at = PathBuf::new();
            }
            left.extend(parts(&target));
        }
    }
}

/// The parts of a path, the first one last.
fn parts(path: &Path) -> Vec<PathBuf> {
    let named = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    });
    let mut parts: Vec<PathBuf> = named.collect();
    parts.reverse();
    parts
}

/// What of proc_pid_status(5) says how much a process may do.
struct Power {
    root: bool,
    capabilities: u64,
}

/// Each capability that undoes a lock, by its number in capabilities(7).
const UNDOING: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

fn power_of(status: &str) -> Power {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    let set = |name: &str| u64::from_str_radix(field(name), 16).unwrap_or_default();
    // Real, effective, saved, filesystem.
    let root = field("Uid:").split_whitespace().any(|uid| uid == "0");
    Power { root, capabilities: set("CapPrm:") | set("CapEff:") }
}

/// The most powerful process of a service, if it could undo its lock or is root.
fn power(home: &Household) -> Option<Check> {
    let read = |pid: &Pid| Some((*pid, power_of(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)));
    let undoing = |power: &Power| -> Vec<&str> {
        UNDOING.iter().filter(|(bit, _)| power.capabilities >> bit & 1 == 1).map(|(_, name)| *name).collect()
    };
    let all = home.processes.iter().filter_map(read).filter(|(_, power)| power.root || !undoing(power).is_empty());
    let (pid, power) = all.max_by_key(|(pid, power)| (undoing(power).len(), std::cmp::Reverse(*pid)))?;
    let (name, place) = (name_of(pid)?, &home.place);
    let (seen, next) = match undoing(&power).as_slice() {
        [] => (
            format!("process {pid} ({name}) of {place} is root, without a capability that could change its lock"),
            "let it run as a user of its own: `User=` or `DynamicUser=yes` in its unit".to_owned(),
        ),
        some => (
            format!(
                "process {pid} ({name}) of {place} has {}: it can undo its own lock, and the panel alone stands",
                some.join(" and ")
            ),
            "`CapabilityBoundingSet=~CAP_NET_ADMIN CAP_SYS_ADMIN` and a `User=` in its unit, then restart it"
                .to_owned(),
        ),
    };
    Some(Check::warn("privileges", seen, next).at(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_followed_as_it_leads_from_the_root_of_the_process() {
        let root = std::env::temp_dir().join(format!("nsctl-root-{}", std::process::id()));
        fs::create_dir_all(root.join("run/nscd")).unwrap();
        fs::create_dir_all(root.join("var")).unwrap();
        std::os::unix::fs::symlink("/run", root.join("var/run")).unwrap();
        std::os::unix::fs::symlink("../../../run/loop", root.join("run/loop")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(root.join("run/nscd/socket")).unwrap();
        let reaches = |path: &str| is_reachable(&root, Path::new(path));
        assert!(reaches("/run/nscd/socket") && reaches("/var/run/nscd/socket"));
        assert!(!reaches("/run/nscd/other") && !reaches("/run/nscd") && !reaches("/run/loop/socket"));
        let mode = |mode| fs::set_permissions(root.join("run/nscd/socket"), fs::Permissions::from_mode(mode)).unwrap();
        mode(0o000);
        assert!(!reaches("/run/nscd/socket"), "what systemd hides is a socket without permissions");
        mode(0o666);
        assert!(reaches("/run/nscd/socket"));
        drop(socket);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn power_is_read_from_every_identity_and_what_may_be_raised() {
        let of = |text: &str| power_of(text);
        let plain =
            of("Name:\tx\nUid:\t1000\t1000\t1000\t1000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n");
        assert!(!plain.root && plain.capabilities == 0);
        let sleeping = of("Uid:\t1000\t1000\t0\t1000\nCapPrm:\t0000000000001000\nCapEff:\t0000000000000000\n");
        assert!(sleeping.root && sleeping.capabilities == 1 << 12);
    }
}
