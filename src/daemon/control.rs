//! The control socket: one question a connection, one answer, both a line of JSON.
//!
//! # Invariants
//!
//! - The socket is 0600 in the run directory, and the kernel is asked who is at the other end (`SO_PEERCRED` of unix(7)):
//!   nobody but root and the daemon's own user is answered.
//! - A question has at most [`LONGEST`] bytes and [`PATIENCE`] time; at most [`MOST`] are asked at once.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{DaemonError, Shared, refused};
use crate::session::Session;

/// The longest question.
pub(super) const LONGEST: u64 = 64 << 10;

/// How long a question may take to arrive, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// So many connections at once.
const MOST: usize = 32;

/// A question.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What the daemon knows: a [`Snapshot`](super::Snapshot).
    Status,
    /// Applies the policy's files.
    Reload(Reload),
}

/// How the policy's files are applied.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// The policy files of the caller; empty means those of the daemon.
    #[serde(default)]
    pub policy: Vec<std::path::PathBuf>,
    /// Goes back after so many seconds without a confirmation.
    pub confirm: Option<u64>,
    /// Waits for no confirmation.
    #[serde(default)]
    pub no_confirm: bool,
    /// Ends what runs in services that are removed, and waits so many seconds for it.
    #[serde(default)]
    pub stop: Option<u64>,
    /// The connection of the caller.
    pub session: Option<Session>,
}

/// A request that changes something, for the daemon's own thread.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) reload: Reload,
    pub(super) answer: oneshot::Sender<serde_json::Value>,
}

/// Takes the socket of a daemon that is gone; another one that answers keeps it.
pub(super) fn bind(path: &Path) -> Result<UnixListener, DaemonError> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(DaemonError::Running { path: path.to_owned() });
    }
    std::fs::remove_file(path)
        .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
        .map_err(refused("take the socket of a daemon that is gone"))?;
    // Nobody can connect between these two: the run directory is root's, and connecting is asked who it is.
    let listener = UnixListener::bind(path).map_err(refused("listen on a socket in the run directory"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(refused("close the socket to others"))?;
    Ok(listener)
}

pub(super) fn listen(path: &Path, changes: mpsc::Sender<Asked>, shared: Shared) -> Result<JoinHandle<()>, DaemonError> {
    let listener = bind(path)?;
    Ok(tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(MOST));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (changes, shared) = (changes.clone(), shared.clone());
                    tokio::spawn(async move {
                        serve(stream, changes, shared).await.ok();
                        drop(place);
                    });
                }
                // Out of descriptors: it gets better or it does not, and a loop makes it worse.
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }))
}

/// Whether the other end is root or the daemon's own user.
pub(super) fn is_trusted(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn serve(stream: UnixStream, changes: mpsc::Sender<Asked>, shared: Shared) -> io::Result<()> {
    if !is_trusted(&stream) {
        return Ok(());
    }
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(LONGEST));
    let answer = match timeout(PATIENCE, read.read_line(&mut line)).await {
        Err(_) => return Ok(()),
        Ok(Err(_)) => failure("a question is one line of JSON in UTF-8"),
        Ok(Ok(_)) => match serde_json::from_str::<Request>(&line) {
            Err(error) => failure(&format!("not a question: {error}")),
            Ok(Request::Status) => {
                serde_json::to_value(shared.now()).unwrap_or_else(|error| failure(&error.to_string()))
            }
            Ok(Request::Reload(reload)) => {
                let (answer, answered) = oneshot::channel();
                match changes.send(Asked { reload, answer }).await {
                    Ok(()) => answered.await.unwrap_or_else(|_| failure("the daemon is stopping")),
                    Err(_) => failure("the daemon is stopping"),
                }
            }
        },
    };
    let text = format!("{answer}\n");
    timeout(PATIENCE, write.write_all(text.as_bytes())).await.unwrap_or(Ok(()))
}

fn failure(message: &str) -> serde_json::Value {
    json!({ "errors": [{
        "code": "E0928", "file": null, "line": null, "column": null, "message": message, "help": null,
    }] })
}
