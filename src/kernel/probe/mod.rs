//! What this kernel can do, found by trying it.
//!
//! # Invariants
//!
//! - Nothing is concluded from a version or a configuration file: each piece is used the way a network of ours uses it.
//! - Everything happens in namespaces that nobody else can find and that are gone afterwards. The host's links, rules
//!   and pins are not touched.
//! - Every piece that is missing is reported, not the first one.

mod nflog;
mod panel;
mod rules;

use std::error::Error;
use std::fmt;
use std::io;

use netns_policy::ruleset::compile::Capabilities;

use super::netns::Netns;

/// Pieces without which no network can be made (`E0901`).
#[derive(Debug)]
pub struct ProbeError {
    /// Each of them.
    pub missing: Vec<Missing>,
}

impl ProbeError {
    /// The code under which the documentation explains it.
    pub const CODE: &'static str = "E0901";
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} this machine lacks what a network is made of", Self::CODE)?;
        self.missing.iter().try_for_each(|missing| write!(f, "\n  {missing}"))
    }
}

impl Error for ProbeError {}

/// One piece that is missing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Missing {
    /// What cannot be done, in the operator's words.
    pub what: &'static str,
    /// What the kernel must have for it, as its configuration names it.
    pub needs: String,
    /// What the kernel said to the attempt.
    pub cause: String,
    /// What to do about it.
    pub next: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, needs, cause, next } = self;
        write!(f, "no {what}: needs {needs} ({cause})\n    help: {next}")
    }
}

/// An attempt to use one piece.
struct Trial<B> {
    what: &'static str,
    config: &'static str,
    module: Option<&'static str>,
    run: fn(&mut B) -> io::Result<()>,
}

impl<B> Trial<B> {
    fn missing(&self, bench: &mut B) -> Option<Missing> {
        let error = (self.run)(bench).err()?;
        let (needs, next) = match self.module {
            Some(module) => (
                format!("{} (module {module})", self.config),
                format!(
                    "on the host: modprobe {module}; if there is no such module, use a kernel with {}",
                    self.config
                ),
            ),
            None => (self.config.to_owned(), format!("use a kernel with {}", self.config)),
        };
        Some(Missing { what: self.what, needs, cause: root(&error), next })
    }
}

/// All trials of a stage are made; those of the next one only when nothing is missing so far, because they build on it.
fn missing<B>(stages: &[&[Trial<B>]], bench: &mut B) -> Vec<Missing> {
    for stage in stages {
        let found: Vec<Missing> = stage.iter().filter_map(|trial| trial.missing(bench)).collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

/// The end of a chain of errors: what the kernel itself said.
fn root(error: &io::Error) -> String {
    let mut last: &dyn Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Tries everything that a network is made of.
///
/// # Errors
///
/// [`ProbeError`] names each piece that does not work.
pub fn capabilities() -> Result<Capabilities, ProbeError> {
    let refused = |error: io::Error| ProbeError { missing: vec![no_namespace(&error)] };
    let scratch = Netns::unpinned().map_err(refused)?;
    let mut panel = panel::Panel::new().map_err(refused)?;
    let (nftables, mut all) = scratch.run(|| Ok(rules::missing())).map_err(refused)?;
    let stages = if nftables { &panel::STAGES[..] } else { &panel::STAGES[..1] };
    all.extend(missing(stages, &mut panel));
    match all.is_empty() {
        true => Ok(Capabilities { netdev_reject: panel.refuses() }),
        false => Err(ProbeError { missing: all }),
    }
}

/// Whether the kernel has IPv6 at all: it may be built without, or started with `ipv6.disable=1`.
pub fn has_ipv6() -> bool {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let asked = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    // Another refusal, such as too many open files, says nothing of IPv6.
    !matches!(asked, Err(nix::errno::Errno::EAFNOSUPPORT))
}

/// Why no namespace can be made, which has other reasons than the kernel's configuration.
fn no_namespace(error: &io::Error) -> Missing {
    use nix::libc::{EMFILE, ENOSPC, EPERM};
    let (needs, next) = match error.raw_os_error() {
        Some(EPERM) => (
            "CAP_SYS_ADMIN",
            "run it as root, or where user namespaces are allowed under `unshare -Urmn`; in a container, give it CAP_SYS_ADMIN",
        ),
        Some(ENOSPC) => ("a higher limit", "raise the sysctl user.max_net_namespaces"),
        Some(EMFILE) => ("more file descriptors", "raise `ulimit -n`"),
        _ => ("CONFIG_NET_NS", "use a kernel with CONFIG_NET_NS"),
    };
    Missing { what: "network namespaces", needs: needs.into(), cause: root(error), next: next.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn works(tried: &mut Vec<&'static str>) -> io::Result<()> {
        tried.push("works");
        Ok(())
    }

    fn lacks(tried: &mut Vec<&'static str>) -> io::Result<()> {
        tried.push("lacks");
        Err(io::Error::other(io::Error::from_raw_os_error(2)))
    }

    const WORKS: Trial<Vec<&'static str>> = Trial { what: "wires", config: "CONFIG_VETH", module: None, run: works };
    const LACKS: Trial<Vec<&'static str>> =
        Trial { what: "`fwd`", config: "CONFIG_NFT_FWD_NETDEV", module: Some("nft_fwd_netdev"), run: lacks };

    #[test]
    fn every_missing_piece_of_a_stage_is_named_and_no_later_stage_is_tried() {
        let mut tried = Vec::new();
        let found = missing(&[&[WORKS], &[LACKS, WORKS, LACKS], &[WORKS]], &mut tried);
        assert_eq!(tried, ["works", "lacks", "works", "lacks"]);
        assert_eq!(found.len(), 2);
        assert!(missing(&[&[WORKS], &[WORKS]], &mut tried).is_empty());
    }

    #[test]
    fn a_missing_piece_says_what_it_needs_what_the_kernel_said_and_what_to_do() {
        let error = ProbeError { missing: missing(&[&[LACKS]], &mut Vec::new()) };
        assert_eq!(
            error.to_string(),
            "E0901 this machine lacks what a network is made of\n  \
             no `fwd`: needs CONFIG_NFT_FWD_NETDEV (module nft_fwd_netdev) (No such file or directory (os error 2))\n    \
             help: on the host: modprobe nft_fwd_netdev; if there is no such module, use a kernel with CONFIG_NFT_FWD_NETDEV"
        );
    }

    #[test]
    fn a_piece_without_a_module_names_none() {
        let found = Trial { module: None, ..LACKS }.missing(&mut Vec::new()).unwrap();
        assert_eq!((found.needs.as_str(), found.next.contains("modprobe")), ("CONFIG_NFT_FWD_NETDEV", false));
    }

    #[test]
    fn who_may_not_make_namespaces_is_told_which_privilege_it_takes() {
        let of = |errno| no_namespace(&io::Error::from_raw_os_error(errno));
        assert_eq!(of(nix::libc::EPERM).needs, "CAP_SYS_ADMIN");
        assert!(of(nix::libc::ENOSPC).next.contains("user.max_net_namespaces"));
        assert_eq!(of(nix::libc::EINVAL).needs, "CONFIG_NET_NS");
    }
}
