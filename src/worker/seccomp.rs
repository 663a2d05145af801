//! The filter of system calls: what a program needs that only carries bytes between sockets, and nothing else.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::fence::{Fence, FenceError};

/// Puts the filter up on the calling thread. Nothing stands where the kernel has no such thing.
pub(super) fn apply() -> Result<Vec<Fence>, FenceError> {
    let Ok(arch) = std::env::consts::ARCH.try_into() else { return Ok(Vec::new()) };
    // Not death: a C library that tries something new and has another way goes on.
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let program: Result<BpfProgram, BackendError> =
        allowed().and_then(|rules| SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?.try_into());
    match seccompiler::apply_filter(&program.map_err(|error| FenceError::Seccomp(error.into()))?) {
        Ok(()) => Ok(vec![Fence::Seccomp]),
        // A kernel without CONFIG_SECCOMP_FILTER.
        Err(seccompiler::Error::Seccomp(error)) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        Err(error) => Err(FenceError::Seccomp(error)),
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The system calls of a program that only carries bytes between sockets.
fn allowed() -> Result<Rules, BackendError> {
    let mut rules: Rules = PLAIN.iter().map(|call| (*call, Vec::new())).collect();
    // Sockets of TCP, and no others: neither netlink nor packet sockets, no datagrams.
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        sockets.push(SeccompRule::new(vec![
            argument(0, SeccompCmpOp::Eq, family.unsigned_abs().into())?,
            argument(1, SeccompCmpOp::MaskedEq(0xf), libc::SOCK_STREAM.unsigned_abs().into())?,
            argument(2, SeccompCmpOp::MaskedEq(!6), 0)?,
        ])?);
    }
    rules.insert(libc::SYS_socket, sockets);
    // Memory, and none of it to be run.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
        rules.insert(call, vec![SeccompRule::new(vec![argument(2, SeccompCmpOp::MaskedEq(executable), 0)?])?]);
    }
    let mut flags = Vec::new();
    for command in [libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_SETFD, libc::F_DUPFD_CLOEXEC] {
        flags.push(SeccompRule::new(vec![argument(1, SeccompCmpOp::Eq, command.unsigned_abs().into())?])?);
    }
    rules.insert(libc::SYS_fcntl, flags);
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![argument(1, SeccompCmpOp::Eq, FIONBIO)?])?]);
    Ok(rules)
}

/// asm-generic/ioctls.h. Its type in the C library depends on which one that is.
const FIONBIO: u64 = 0x5421;

fn argument(index: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value)
}

/// Calls whose arguments need no look. What is not here, among others: open, exec, clone, bind, listen, kill, ptrace,
/// setns, unshare, mount, bpf, prctl, seccomp, io_uring.
const PLAIN: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];
