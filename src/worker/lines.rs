//! What a worker prints: lines of bounded length and number, fit for a log.

use std::fs::File;
use std::io::{self, PipeReader, Read as _};
use std::time::{Duration, Instant};

use tokio::net::unix::pipe::Receiver;

use super::message::tame;

/// The longest line; what is longer is cut into several.
const LONGEST: usize = 1024;
/// How many lines a second are passed on. The others are thrown away.
const A_SECOND: u32 = 20;

/// The lines of one worker.
#[derive(Debug)]
pub(crate) struct Lines {
    pipe: Option<Receiver>,
    begun: Vec<u8>,
    last: Option<String>,
    second: (Instant, u32),
}

impl Lines {
    pub(crate) fn of(pipe: PipeReader) -> io::Result<Self> {
        let pipe = Receiver::from_owned_fd(pipe.into())?;
        Ok(Self { pipe: Some(pipe), begun: Vec::new(), last: None, second: (Instant::now(), 0) })
    }

    /// Of nobody.
    pub(crate) fn none() -> Self {
        Self { pipe: None, begun: Vec::new(), last: None, second: (Instant::now(), 0) }
    }

    /// The next line that is passed on. Never ends; a call that is dropped loses nothing.
    pub(crate) async fn next(&mut self) -> String {
        loop {
            while let Some(line) = self.take() {
                if self.is_within_bounds() {
                    return line;
                }
            }
            let Some(pipe) = &self.pipe else { return std::future::pending().await };
            let mut some = [0; LONGEST];
            match pipe.readable().await.and_then(|()| pipe.try_read(&mut some)) {
                Ok(read @ 1..) => self.begun.extend(&some[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => self.pipe = None,
            }
        }
    }

    /// The last line of all, once the worker has ended.
    pub(crate) fn last(mut self) -> Option<String> {
        let mut some = [0; LONGEST];
        // What is left in a pipe is bounded by the pipe.
        // Not by the runtime, which may not have noticed it yet.
        if let Some(Ok(pipe)) = self.pipe.take().map(Receiver::into_nonblocking_fd) {
            let mut pipe = File::from(pipe);
            while let Ok(read @ 1..) = pipe.read(&mut some) {
                self.begun.extend(&some[..read]);
                while self.take().is_some() {}
            }
        }
        self.begun.push(b'\n');
        while self.take().is_some() {}
        self.last
    }

    fn take(&mut self) -> Option<String> {
        loop {
            let end = self.begun.iter().position(|byte| *byte == b'\n');
            let end = end.or((self.begun.len() >= LONGEST).then_some(LONGEST - 1))?;
            let line: Vec<u8> = self.begun.drain(..=end).collect();
            let line = tame(&String::from_utf8_lossy(&line));
            if !line.is_empty() {
                self.last = Some(line.clone());
                return Some(line);
            }
        }
    }

    fn is_within_bounds(&mut self) -> bool {
        if self.second.0.elapsed() >= Duration::from_secs(1) {
            self.second = (Instant::now(), 0);
        }
        self.second.1 += 1;
        self.second.1 <= A_SECOND
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn with(text: &[u8]) -> Lines {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(text).unwrap();
        Lines::of(reader).unwrap()
    }

    #[tokio::test]
    async fn lines_come_one_by_one_and_the_last_one_without_its_end() {
        let mut lines = with(b"one\n\ntwo\x07\nthree");
        assert_eq!(lines.next().await, "one");
        assert_eq!(lines.next().await, "two?");
        assert_eq!(lines.last().as_deref(), Some("three"));
    }

    #[tokio::test]
    async fn a_flood_of_lines_is_thinned_out() {
        let mut lines = with("x\n".repeat(5000).as_bytes());
        for _ in 0..A_SECOND {
            assert_eq!(lines.next().await, "x");
        }
        tokio::time::timeout(Duration::from_millis(100), lines.next()).await.unwrap_err();
        assert!(lines.begun.is_empty());
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_cut() {
        let mut lines = with(&[b'y'; 3 * LONGEST]);
        assert!(lines.next().await.len() <= LONGEST);
        assert!(lines.begun.len() <= 2 * LONGEST);
    }
}
