//! Live traffic: one side speaks all the time, the other listens, and both notice what becomes of it.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::network::{Network, SOON};

/// How long a stream that was revoked is watched.
const WATCH: Duration = Duration::from_millis(300);

/// Who speaks on a connection that the client opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Speaker {
    /// Requests without answers.
    Client,
    /// A subscription: after the handshake only the server has something to say.
    Server,
}

#[derive(Debug, Default)]
struct Shared {
    heard: AtomicU64,
    broken: AtomicBool,
    stop: AtomicBool,
    death: Mutex<Option<io::ErrorKind>>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn dies(&self, error: &io::Error) {
        *self.death.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.kind());
    }
}

/// One flow of numbers between two places, a new one every two milliseconds.
#[derive(Debug)]
pub struct Talk {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The client's port, by which conntrack(8) tells it apart.
    pub client_port: u16,
}

impl Talk {
    /// A TCP connection from a place to another, over the address family of `address`.
    pub fn tcp(network: &Network, from: &str, (to, address, port): (&str, IpAddr, u16), speaker: Speaker) -> Self {
        let listener = network.listen(to, address, port);
        let client = network.connect(from, SocketAddr::new(address, port), SOON);
        let client = client.unwrap_or_else(|error| panic!("{from} -> {to}:{port} ({address}): {error}"));
        let (server, _) = listener.accept().unwrap();
        Self::over(client, server, speaker)
    }

    /// Over a connection that exists.
    pub fn over(client: TcpStream, server: TcpStream, speaker: Speaker) -> Self {
        let shared = Arc::<Shared>::default();
        let client_port = client.local_addr().unwrap().port();
        let (speaks, listens) = if speaker == Speaker::Client { (client, server) } else { (server, client) };
        speaks.set_nodelay(true).unwrap();
        speaks.set_nonblocking(true).unwrap();
        listens.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let threads = vec![speak(speaks, shared.clone()), listen(listens, shared.clone())];
        Self { shared, threads, client_port }
    }

    /// Datagrams from a place to another; each is answered, and the answer is what counts as heard.
    pub fn udp(network: &Network, from: &str, (to, address, port): (&str, IpAddr, u16)) -> Self {
        let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let server = network.bind(to, address, port);
        let client = network.bind(from, any, 0);
        client.connect((address, port)).unwrap_or_else(|error| panic!("{from} -> {to}:{port} ({address}): {error}"));
        let shared = Arc::<Shared>::default();
        let client_port = client.local_addr().unwrap().port();
        let threads = vec![ask(client, shared.clone()), answer(server, shared.clone())];
        Self { shared, threads, client_port }
    }

    /// How many numbers were heard.
    pub fn heard(&self) -> u64 {
        self.shared.heard.load(Ordering::Relaxed)
    }

    /// Whether more is heard, and nothing of it was lost or mixed up: TCP takes its time to try again.
    pub fn goes_on(&self) -> bool {
        let before = self.heard();
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline && self.heard() < before + 20 {
            thread::sleep(Duration::from_millis(5));
        }
        self.heard() >= before + 20 && !self.shared.broken.load(Ordering::Relaxed)
    }

    /// How much is heard in the next moments. What was under way at the call may still arrive within 20 ms.
    pub fn heard_from_now(&self) -> u64 {
        thread::sleep(Duration::from_millis(20));
        let before = self.heard();
        thread::sleep(WATCH);
        self.heard() - before
    }

    /// What ended it at either side.
    pub fn death(&self) -> Option<io::ErrorKind> {
        *self.shared.death.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it.
    pub fn end(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

fn speak(mut stream: TcpStream, shared: Arc<Shared>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut next = 0u64;
        while !shared.stopped() {
            match stream.write(&next.to_be_bytes()) {
                Ok(8) => next += 1,
                Ok(_) => return shared.broken.store(true, Ordering::Relaxed),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return shared.dies(&e),
            }
            thread::sleep(Duration::from_millis(2));
        }
    })
}

fn listen(mut stream: TcpStream, shared: Arc<Shared>) -> JoinHandle<()> {
    thread::spawn(move || {
        let (mut number, mut filled, mut next) = ([0; 8], 0, 0u64);
        while !shared.stopped() {
            match stream.read(&mut number[filled..]) {
                Ok(0) => return shared.dies(&io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => filled += more,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(e) => return shared.dies(&e),
            }
            if filled == 8 {
                if u64::from_be_bytes(number) != next {
                    shared.broken.store(true, Ordering::Relaxed);
                }
                (filled, next) = (0, next + 1);
                shared.heard.store(next, Ordering::Relaxed);
            }
        }
    })
}

fn ask(socket: UdpSocket, shared: Arc<Shared>) -> JoinHandle<()> {
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    thread::spawn(move || {
        let mut number = 0u64;
        while !shared.stopped() {
            number += 1;
            // A refusal is no end: datagrams have none.
            if let Err(e) = socket.send(&number.to_be_bytes()) {
                shared.dies(&e);
            }
            let mut answer = [0; 8];
            // The answer to this question or, on a busy machine, a late one to a question before.
            if matches!(socket.recv(&mut answer), Ok(8)) && u64::from_be_bytes(answer) <= number {
                shared.heard.fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(2));
        }
    })
}

fn answer(socket: UdpSocket, shared: Arc<Shared>) -> JoinHandle<()> {
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    thread::spawn(move || {
        let mut asked = [0; 8];
        while !shared.stopped() {
            if let Ok((8, who)) = socket.recv_from(&mut asked) {
                socket.send_to(&asked, who).ok();
            }
        }
    })
}
