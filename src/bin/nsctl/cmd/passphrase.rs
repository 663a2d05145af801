//! A passphrase from a terminal that does not show it, or from an open file: never from an argument or the environment.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nsctl::backup::{BackupError, Passphrase};

/// For a new backup: asked twice at a terminal, since nobody sees what is typed.
pub fn new(fd: Option<u16>) -> Result<Passphrase, BackupError> {
    if let Some(fd) = fd {
        return of_fd(fd);
    }
    let first = typed("passphrase for the backup: ")?;
    let second = typed("the same again: ")?;
    if first != second {
        return Err(BackupError::NoPassphrase { why: "the two are not the same".into() });
    }
    Ok(first)
}

/// For a backup that is there.
pub fn known(fd: Option<u16>) -> Result<Passphrase, BackupError> {
    fd.map_or_else(|| typed("passphrase of the backup: "), of_fd)
}

fn of_fd(fd: u16) -> Result<Passphrase, BackupError> {
    let path = format!("/proc/self/fd/{fd}");
    let why = |error: io::Error| BackupError::NoPassphrase { why: format!("file descriptor {fd}: {error}") };
    first_line(File::open(path).map_err(why)?).map_err(why).and_then(Passphrase::new)
}

fn first_line(from: impl io::Read) -> io::Result<Vec<u8>> {
    let most = Passphrase::MOST as u64 + 2;
    let mut line = Vec::with_capacity(Passphrase::MOST + 2);
    BufReader::new(from).take(most).read_until(b'\n', &mut line)?;
    while matches!(line.last(), Some(b'\n' | b'\r')) {
        line.pop();
    }
    Ok(line)
}

fn typed(prompt: &str) -> Result<Passphrase, BackupError> {
    let why = |_| BackupError::NoPassphrase { why: "there is no terminal to ask at".into() };
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(why)?;
    let line = ask(&terminal, prompt).map_err(|error| BackupError::NoPassphrase { why: error.to_string() })?;
    Passphrase::new(line)
}

fn ask(mut terminal: &File, prompt: &str) -> io::Result<Vec<u8>> {
    // Before the prompt: whoever types as soon as it is there shows nothing.
    let _silence = Silence::of(terminal)?;
    write!(terminal, "{prompt}")?;
    first_line(terminal)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Silence<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silence<'a> {
    fn of(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        // The end of the line is shown, so that the cursor moves on.
        silent.local_flags.insert(LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::ISIG);
        tcsetattr(terminal, SetArg::TCSAFLUSH, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before).ok();
    }
}
