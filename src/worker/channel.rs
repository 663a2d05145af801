//! One end of the socket between a worker and who watches it: whole messages, with descriptors towards the worker only.
//!
//! # Invariants
//!
//! - A message is at most [`LONGEST_ORDER`] bytes towards the worker and [`LONGEST_WORD`] towards the watcher; one that
//!   is longer is an error and never cut.
//! - The watcher's end takes no descriptors: it receives without room for them, so the kernel drops what is sent.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// The longest message to a worker. Two of them fit into a socket's buffer (net.core.wmem_default is 208 KiB).
pub(crate) const LONGEST_ORDER: usize = 96 << 10;
/// The longest message from a worker, who may be anybody by now.
pub(crate) const LONGEST_WORD: usize = 4 << 10;
/// The most descriptors in one message (`SCM_MAX_FD`, unix(7)).
pub(crate) const MOST_DESCRIPTORS: usize = 253;

/// One end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// What came.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message and the descriptors with it.
    Message(Vec<u8>, Vec<OwnedFd>),
    /// The other end is closed.
    End,
}

impl Channel {
    /// Both ends; neither waits, and neither is inherited but as somebody's stdin.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(ours), Self(theirs)))
    }

    /// The end that `descriptor` is.
    pub(crate) fn over(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    pub(crate) fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    /// Sends one message. `WouldBlock` when the other side does not read.
    pub(crate) fn send(&self, message: &[u8], descriptors: &[BorrowedFd]) -> io::Result<()> {
        if message.len() > LONGEST_ORDER || descriptors.len() > MOST_DESCRIPTORS {
            return Err(io::Error::other("there are more routes than one worker takes"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        sendmsg(&self.0, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// The next message, of at most [`LONGEST_WORD`] bytes and without descriptors.
    pub(crate) fn word(&self) -> io::Result<Received> {
        self.receive(LONGEST_WORD, &mut RecvAncillaryBuffer::default())
    }

    /// The next message with what is handed over in it.
    pub(crate) fn order(&self) -> io::Result<Received> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        self.receive(LONGEST_ORDER, &mut RecvAncillaryBuffer::new(&mut space))
    }

    fn receive(&self, longest: usize, control: &mut RecvAncillaryBuffer) -> io::Result<Received> {
        // One byte more than is allowed, to tell a message that is too long from one that just fits.
        let mut message = vec![0; longest + 1];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = recvmsg(&self.0, &mut [IoSliceMut::new(&mut message)], control, flags)?;
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        if got.bytes > longest || got.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
        }
        // Nobody sends an empty message: on this kind of socket it could not be told from the end.
        if got.bytes == 0 {
            return Ok(Received::End);
        }
        message.truncate(got.bytes);
        Ok(Received::Message(message, descriptors))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An end that can be awaited.
#[derive(Debug)]
pub(crate) struct Awaited {
    channel: Channel,
    /// The same socket, for the runtime to watch: of the unix sockets that tokio has a type for, the one that reads
    /// nothing by itself.
    watched: UnixDatagram,
}

impl Awaited {
    /// Inside a runtime.
    pub(crate) fn over(channel: Channel) -> io::Result<Self> {
        let copy = std::os::unix::net::UnixDatagram::from(channel.0.try_clone()?);
        Ok(Self { channel, watched: UnixDatagram::from_std(copy)? })
    }

    /// The same, without waiting.
    pub(crate) fn now(&self) -> &Channel {
        &self.channel
    }

    /// Like [`Channel::word`]. A call that is dropped loses nothing.
    pub(crate) async fn word(&self) -> io::Result<Received> {
        self.watched.async_io(Interest::READABLE, || self.channel.word()).await
    }

    /// Like [`Channel::order`]. A call that is dropped loses nothing.
    pub(crate) async fn order(&self) -> io::Result<Received> {
        self.watched.async_io(Interest::READABLE, || self.channel.order()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(received: Received) -> (Vec<u8>, usize) {
        match received {
            Received::Message(message, descriptors) => (message, descriptors.len()),
            Received::End => panic!("the end"),
        }
    }

    #[test]
    fn messages_stay_whole_and_apart() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(b"one", &[]).unwrap();
        ours.send(b"two", &[ours.as_fd(), theirs.as_fd()]).unwrap();
        assert_eq!(message(theirs.order().unwrap()), (b"one".to_vec(), 0));
        assert_eq!(message(theirs.order().unwrap()), (b"two".to_vec(), 2));
        assert_eq!(theirs.order().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(ours);
        assert!(matches!(theirs.order().unwrap(), Received::End));
    }

    #[test]
    fn a_word_that_is_too_long_is_an_error_and_one_that_just_fits_is_not() {
        let (ours, theirs) = Channel::pair().unwrap();
        theirs.send(&[b'x'; LONGEST_WORD], &[]).unwrap();
        theirs.send(&[b'x'; LONGEST_WORD + 1], &[]).unwrap();
        assert_eq!(message(ours.word().unwrap()).0.len(), LONGEST_WORD);
        assert_eq!(ours.word().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn descriptors_that_a_worker_sends_are_thrown_away() {
        let open = || std::fs::read_dir(format!("/proc/self/task/{}/fd", nix::unistd::gettid())).unwrap().count();
        let (ours, theirs) = Channel::pair().unwrap();
        theirs.send(b"take this", &[theirs.as_fd()]).unwrap();
        assert_eq!(message(ours.word().unwrap()), (b"take this".to_vec(), 0));
        // The control: with room for them they would have come.
        theirs.send(b"take this", &[theirs.as_fd()]).unwrap();
        let before = open();
        let kept = ours.order().unwrap();
        assert!(matches!(&kept, Received::Message(_, descriptors) if descriptors.len() == 1), "{before}: {kept:?}");
    }
}
