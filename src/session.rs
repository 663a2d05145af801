//! Over which connection the caller came in, where it is SSH.
//!
//! sudo(8) takes SSH_CONNECTION out of the environment, so the processes that the caller stems from are asked too, as
//! far as they can be read. Where it is set for this process it is believed, and empty it says that there is none.

use std::fmt;
use std::fs;
use std::net::IpAddr;

use nix::unistd::getppid;
use serde::{Deserialize, Serialize};

/// One SSH connection, as sshd(8) tells it in SSH_CONNECTION.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Where the caller sits.
    pub client: IpAddr,
    /// The port there: it tells two connections of one client apart.
    pub client_port: u16,
    /// The address of this machine that was dialled.
    pub server: IpAddr,
    /// The port there.
    pub server_port: u16,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SSH from {} port {}", self.client, self.client_port)
    }
}

/// How far up the processes are asked.
const DEPTH: usize = 64;

impl Session {
    /// The connection that the caller came in by; `None` at a console, and in what runs by itself.
    pub fn of_caller() -> Option<Self> {
        // The caller's own word, be it that there is none: who can say so can say --no-confirm too.
        if let Some(text) = std::env::var_os("SSH_CONNECTION") {
            return text.to_str().and_then(Self::parse);
        }
        let mut pid = getppid().as_raw();
        for _ in 0..DEPTH {
            if pid <= 1 {
                return None;
            }
            if let Some(session) = of_process(pid) {
                return Some(session);
            }
            pid = parent(pid)?;
        }
        None
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let mut address = || Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?));
        let ((client, client_port), (server, server_port)) = (address()?, address()?);
        Some(Self { client, client_port, server, server_port })
    }
}

fn of_process(pid: i32) -> Option<Session> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environ.split(|byte| *byte == 0);
    let value = variables.find_map(|variable| variable.strip_prefix(b"SSH_CONNECTION="))?;
    Session::parse(std::str::from_utf8(value).ok()?)
}

/// The fourth field of proc_pid_stat(5); the second may hold spaces and parentheses of its own.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_read_as_sshd_writes_it() {
        let session = Session::parse("192.0.2.7 50022 198.51.100.1 22").expect("it is one");
        assert_eq!(session.to_string(), "SSH from 192.0.2.7 port 50022");
        assert_eq!((session.server, session.server_port), ("198.51.100.1".parse().unwrap(), 22));
        for text in ["", "192.0.2.7", "192.0.2.7 50022 198.51.100.1", "a 1 b 2", "192.0.2.7 -1 198.51.100.1 22"] {
            assert_eq!(Session::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_parent_of_this_process_is_its_parent() {
        assert_eq!(parent(std::process::id().cast_signed()), Some(getppid().as_raw()));
    }
}
