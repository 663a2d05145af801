//! What a worker puts around itself before it speaks to anybody.
//!
//! Each fence is asked for where the kernel has it, and what stands is found out and told, not assumed: a kernel without
//! landlock leaves the other ones. What the launcher has to see to (the user, the namespace) is looked at here as well.

use std::io;

use caps::CapSet;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus, NetPort, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use nix::sys::prctl;
use nix::unistd::{getegid, geteuid, getgroups};
use serde::{Deserialize, Serialize};
use thiserror::Error;

#[cfg(target_pointer_width = "64")]
use super::seccomp;

/// All architectures that seccompiler knows have words of 64 bits; on others the calls have other numbers and arguments.
#[cfg(not(target_pointer_width = "64"))]
mod seccomp {
    pub(super) fn apply() -> Result<Vec<super::Fence>, super::FenceError> {
        Ok(Vec::new())
    }
}

/// Something that holds a worker.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fence {
    /// It is a user of its own kind, in no other group.
    User,
    /// It holds no capability, and none that it could pass on or take up. The launcher takes the bounding set away as well,
    /// where it may (CAP_SETPCAP); without new privileges nothing comes of it in any case.
    Capabilities,
    /// No program that it could start would have more rights.
    NoNewPrivileges,
    /// System calls that it has no need of are refused.
    Seccomp,
    /// No file can be opened, made or removed by its path.
    Files,
    /// TCP connections go to declared ports only, and no port can be bound.
    Ports,
    /// Neither signals nor abstract sockets reach a process outside.
    Scope,
}

/// What a worker needs to be allowed.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    /// TCP ports that it connects to.
    pub connect: Vec<u16>,
}

/// A fence that the kernel has, and that could not be put up.
#[derive(Debug, Error)]
pub enum FenceError {
    /// prctl(2).
    #[error("cannot renounce new privileges")]
    Privileges(#[source] nix::Error),
    /// landlock(7).
    #[error("cannot set up landlock")]
    Landlock(#[source] RulesetError),
    /// seccomp(2).
    #[error("cannot set up seccomp")]
    Seccomp(#[source] seccompiler::Error),
    /// getgroups(2).
    #[error("cannot look up what this process may")]
    Oneself(#[source] io::Error),
}

/// Puts every fence up that the kernel has, on the calling thread, which has to be the only one. What it needs open has
/// to be open by now. Says what stands.
///
/// # Errors
///
/// When the kernel has a fence and refuses it. The worker has to end then.
pub fn enclose(user: u32, rights: &Rights) -> Result<Vec<Fence>, FenceError> {
    let mut stand = Vec::new();
    if is_nobody_else(user).map_err(FenceError::Oneself)? {
        stand.push(Fence::User);
    }
    if has_no_capability() {
        stand.push(Fence::Capabilities);
    }
    prctl::set_no_new_privs().map_err(FenceError::Privileges)?;
    // No core file, and no other process of this user may look inside.
    prctl::set_dumpable(false).map_err(FenceError::Privileges)?;
    stand.push(Fence::NoNewPrivileges);
    stand.extend(landlock(rights).map_err(FenceError::Landlock)?);
    stand.extend(seccomp::apply()?);
    Ok(stand)
}

fn is_nobody_else(user: u32) -> io::Result<bool> {
    let groups = getgroups()?;
    Ok(geteuid().as_raw() == user && getegid().as_raw() == user && groups.iter().all(|group| group.as_raw() == user))
}

fn has_no_capability() -> bool {
    [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient]
        .into_iter()
        .all(|set| caps::read(None, set).is_ok_and(|set| set.is_empty()))
}

/// Landlock without a single file, and with the ports that were asked for.
fn landlock(rights: &Rights) -> Result<Vec<Fence>, RulesetError> {
    let abi = ABI::V6;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(BitFlags::<Scope>::all())?
        .create()?;
    for port in &rights.connect {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    let status = rules.restrict_self()?;
    let mut stand = Vec::new();
    if status.ruleset == RulesetStatus::NotEnforced {
        return Ok(stand);
    }
    if let LandlockStatus::Available { effective_abi, .. } = status.landlock {
        stand.push(Fence::Files);
        if effective_abi >= ABI::V4 {
            stand.push(Fence::Ports);
        }
        if effective_abi >= ABI::V6 {
            stand.push(Fence::Scope);
        }
    }
    Ok(stand)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Both of the fences that refuse are for the calling thread, so each can be tried by itself on one that ends.
    fn on_a_thread<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(test).join().unwrap()
    }

    #[test]
    fn landlock_alone_closes_files_and_other_ports() {
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let shut = TcpListener::bind("127.0.0.1:0").unwrap();
        let (open, shut) = (open.local_addr().unwrap(), shut.local_addr().unwrap());
        let tried = move || {
            let refused = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            [
                File::open("/proc/self/status").map(drop).map_err(refused).is_err(),
                TcpListener::bind("127.0.0.1:0").map(drop).map_err(refused).is_err(),
                TcpStream::connect(shut).map(drop).map_err(refused).is_err(),
                TcpStream::connect(open).map(drop).map_err(refused).is_err(),
            ]
        };
        let (before, fences, after) = on_a_thread(move || {
            let before = tried();
            prctl::set_no_new_privs().unwrap();
            let fences = landlock(&Rights { connect: vec![open.port()] }).unwrap();
            (before, fences, tried())
        });
        let (files, ports) = (fences.contains(&Fence::Files), fences.contains(&Fence::Ports));
        assert_eq!(before, [false; 4], "the control");
        assert_eq!(after, [files, ports, ports, false], "{fences:?}");
    }
}
