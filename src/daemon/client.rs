//! Asks the daemon.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::{CONTROL, Request};

/// The longest answer: that of a thousand services is far below.
const LONGEST: u64 = 64 << 20;

/// Why the daemon did not answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// None listens.
    #[error("no daemon listens on {}", path.display())]
    Absent {
        /// Its socket.
        path: PathBuf,
    },
    /// It listens and did not answer.
    #[error("the daemon on {} does not answer", path.display())]
    Io {
        /// Its socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Its answer, as JSON; `patience` is how long it may take.
///
/// # Errors
///
/// [`ClientError`].
pub fn ask(run: &Path, request: &Request, patience: Duration) -> Result<serde_json::Value, ClientError> {
    let path = run.join(CONTROL);
    let stream = UnixStream::connect(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Absent { path: path.clone() },
        _ => ClientError::Io { path: path.clone(), source },
    })?;
    let asked = (|| {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut question = serde_json::to_vec(request)?;
        question.push(b'\n');
        (&stream).write_all(&question)?;
        let mut line = String::new();
        BufReader::new((&stream).take(LONGEST)).read_line(&mut line)?;
        if line.is_empty() {
            // So it answers one whom it does not trust.
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(serde_json::from_str(&line)?)
    })();
    asked.map_err(|source| ClientError::Io { path, source })
}
