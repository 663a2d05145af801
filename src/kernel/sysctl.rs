//! The network's knobs under `/proc/sys/net`.
//!
//! They are those of the calling thread's namespace: the kernel looks at the thread that opens the file. Call these inside
//! [`Netns::run`](super::netns::Netns::run).

use std::fs;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A knob that cannot be read or written.
#[derive(Debug, Error)]
#[error("cannot {verb} {key}")]
pub struct SysctlError {
    /// `read` or `write`.
    pub verb: &'static str,
    /// Its name as sysctl(8) writes it, with slashes.
    pub key: String,
    /// `NotFound` when the kernel does not have it, `PermissionDenied` where it is not ours.
    #[source]
    pub source: io::Error,
}

impl From<SysctlError> for io::Error {
    fn from(error: SysctlError) -> Self {
        io::Error::new(error.source.kind(), error)
    }
}

/// The name of a knob, below `net`.
///
/// Parts are joined by slashes as sysctl.d(5) allows, because the name of a link may hold dots (`eth0.100`).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Sysctl(String);

impl Sysctl {
    /// Whether packets of others are passed on, IPv4.
    pub fn ip_forward() -> Self {
        Self("net/ipv4/ip_forward".into())
    }

    /// Whether packets of others are passed on, IPv6. Setting it makes every link forget its routers (`accept_ra` 1).
    pub fn ipv6_forwarding() -> Self {
        Self::ipv6("all", "forwarding")
    }

    /// `net.ipv4.conf.LINK.KNOB`; `LINK` may be `all` or `default`.
    pub fn ipv4(link: &str, knob: &str) -> Self {
        Self(format!("net/ipv4/conf/{link}/{knob}"))
    }

    /// `net.ipv6.conf.LINK.KNOB`; `LINK` may be `all` or `default`.
    pub fn ipv6(link: &str, knob: &str) -> Self {
        Self(format!("net/ipv6/conf/{link}/{knob}"))
    }

    /// Whether conntrack takes a packet in the middle of an unknown TCP connection for the start of one.
    pub fn conntrack_tcp_loose() -> Self {
        Self("net/netfilter/nf_conntrack_tcp_loose".into())
    }

    /// The knob of that name, as [`Sysctl::as_str`] gives it.
    pub fn at(path: &str) -> Self {
        Self(path.to_owned())
    }

    /// Its name as sysctl(8) writes it, with slashes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its value in the calling thread's namespace, without the line end.
    ///
    /// # Errors
    ///
    /// What open(2) and read(2) say.
    pub fn read(&self) -> Result<String, SysctlError> {
        match fs::read_to_string(self.path()) {
            Ok(value) => Ok(value.trim_end().to_owned()),
            Err(source) => Err(self.error("read", source)),
        }
    }

    /// Sets it in the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// What open(2) and write(2) say.
    pub fn write(&self, value: &str) -> Result<(), SysctlError> {
        // Not `fs::write`: that would make a file where there is no knob, if somebody mounted something else here.
        let written = fs::OpenOptions::new()
            .write(true)
            .open(self.path())
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|source| self.error("write", source))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/proc/sys").join(&self.0)
    }

    fn error(&self, verb: &'static str, source: io::Error) -> SysctlError {
        SysctlError { verb, key: self.0.clone(), source }
    }
}
