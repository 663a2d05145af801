//! Who is trusted with files that root acts on, and who else could change them.
//!
//! Trusted are root and, for what was named on the command line, the one who calls, be it through sudo(8). A group is
//! trusted when it is root's, or has the name of the file's owner and nobody else in it, as distributions make one for
//! each user.

use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;

use nix::unistd::{Gid, Group, Uid, User, geteuid};

/// Those who are trusted.
#[derive(Debug)]
pub(crate) struct Trusted {
    pub(crate) users: Vec<u32>,
    /// What an owner of outside is shown as in here (user_namespaces(7)), where that is not everybody's world: such
    /// files are the machine's, as those of root are.
    pub(crate) outside: Option<u32>,
}

impl Trusted {
    /// For the places of the system: root.
    pub(crate) fn of_system() -> Self {
        Self { users: vec![0], outside: outside() }
    }

    /// For a path that was named: root, and who named it.
    pub(crate) fn of_caller() -> Self {
        let caller = geteuid();
        // sudo(8) has asked already whether that one may be root.
        let sudo = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok()).filter(|_| caller.is_root());
        Self { users: [0, caller.as_raw()].into_iter().chain(sudo).collect(), outside: outside() }
    }

    /// Whether it is one of them.
    pub(crate) fn trusts(&self, uid: u32) -> bool {
        self.users.contains(&uid) || self.outside == Some(uid)
    }

    /// Who else can write to it by its mode.
    pub(crate) fn writer(&self, is: &Metadata) -> Option<Who> {
        if is.mode() & 0o002 != 0 {
            return Some(Who::Anybody);
        }
        let group = is.gid();
        let fine = is.mode() & 0o020 == 0 || group == 0 || self.outside == Some(group) || is_private(is.uid(), group);
        (!fine).then_some(Who::Group(group))
    }
}

/// Somebody who is not trusted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Who {
    /// Everybody.
    Anybody,
    /// The members of a group.
    Group(u32),
    /// One user.
    User(u32),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anybody => f.write_str("anybody"),
            Self::Group(gid) => write!(f, "gid {gid}"),
            Self::User(uid) => write!(f, "uid {uid}"),
        }
    }
}

/// Whether the group is its owner's alone, by the rule of USERGROUPS_ENAB in login.defs(5).
fn is_private(uid: u32, gid: u32) -> bool {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    user.zip(group).is_some_and(|(user, group)| {
        user.name == group.name && user.gid == group.gid && group.mem.iter().all(|member| *member == user.name)
    })
}

/// The uid of owners that have no name in this user namespace; none in the first one.
fn outside() -> Option<u32> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if map.split_whitespace().eq(["0", "0", "4294967295"]) {
        return None;
    }
    fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?.trim().parse().ok()
}
