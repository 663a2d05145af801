//! All routes and connections of this relay, and its bounds.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::resource::rlim_t;
use nsctl::worker::Count;
use nsctl::worker::relay::{Config, Limits, Route};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle, spawn_local};
use tokio::time::sleep;

use crate::RelayError;
use crate::connection::{Connection, Unanswered};
use crate::pump::{CHUNK, Moved, Shared, break_off};
use crate::source::Source;

/// Files beside those of the connections: listeners, the socket to nsctl, the runtime's own.
const RESERVE: rlim_t = 320;
/// How long to wait when the kernel has no memory or no file left for one more connection.
const PAUSE: Duration = Duration::from_millis(100);

/// How many files may have to be open.
pub fn files(limits: &Limits) -> rlim_t {
    2 * rlim_t::from(limits.connections) + RESERVE
}

/// Everything that this relay does. A copy is the same relay.
#[derive(Clone)]
pub struct Relay(Rc<Inner>);

struct Inner {
    limits: Limits,
    ways: RefCell<BTreeMap<String, Way>>,
    open: RefCell<HashMap<u64, Open>>,
    sources: RefCell<HashMap<Source, u32>>,
    next: Cell<u64>,
    count: Cell<Count>,
    shared: Shared,
    draining: Cell<bool>,
    drained: Notify,
}

/// A route with its listener.
struct Way {
    route: Rc<RefCell<Route>>,
    accepts: JoinHandle<()>,
}

/// A connection that is open.
struct Open {
    route: String,
    peer: SocketAddr,
    target: SocketAddr,
    moved: Moved,
    abort: Option<AbortHandle>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

impl Relay {
    pub fn new(limits: Limits) -> Self {
        Self(Rc::new(Inner {
            limits,
            ways: RefCell::default(),
            open: RefCell::default(),
            sources: RefCell::default(),
            next: Cell::default(),
            count: Cell::default(),
            shared: RefCell::new(Box::new([0; CHUNK])),
            draining: Cell::default(),
            drained: Notify::new(),
        }))
    }

    /// Does this from now on. Connections that it does not allow are cut, and no others.
    pub fn configure(&self, config: Config, mut sockets: BTreeMap<String, OwnedFd>) -> Result<(), RelayError> {
        if !self.0.draining.get() {
            let mut before = self.0.ways.take();
            for route in &config.routes {
                let name = route.name.clone();
                let kept = before.remove(&name).filter(|way| way.route.borrow().listen == route.listen);
                let way = match kept {
                    Some(way) => {
                        way.route.replace(route.clone());
                        way
                    }
                    None => {
                        let socket = sockets.remove(&name).ok_or_else(|| RelayError::NoListener(name.clone()))?;
                        self.open_way(route, socket).map_err(RelayError::Listener)?
                    }
                };
                self.0.ways.borrow_mut().insert(name, way);
            }
        }
        self.cut(&config);
        Ok(())
    }

    /// Takes nothing new.
    pub fn drain(&self) {
        self.0.draining.set(true);
        self.0.ways.take();
    }

    /// Whether nothing is taken any more and nothing is left.
    pub fn is_done(&self) -> bool {
        self.0.draining.get() && self.0.open.borrow().is_empty()
    }

    /// Until it may be done.
    pub async fn drained(&self) {
        self.0.drained.notified().await;
    }

    pub fn count(&self) -> Count {
        let open = u64::try_from(self.0.open.borrow().len()).unwrap_or(u64::MAX);
        Count { open, ..self.0.count.get() }
    }

    fn open_way(&self, route: &Route, socket: OwnedFd) -> io::Result<Way> {
        let listener = TcpListener::from_std(socket.into())?;
        let route = Rc::new(RefCell::new(route.clone()));
        let accepts = spawn_local(self.clone().accept(listener, route.clone()));
        Ok(Way { route, accepts })
    }

    async fn accept(self, listener: TcpListener, route: Rc<RefCell<Route>>) {
        loop {
            match listener.accept().await {
                Ok((client, peer)) => self.take(client, peer, &route.borrow()),
                Err(error) if is_of_the_connection(&error) => {}
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Lets a client in, or breaks off.
    fn take(&self, client: TcpStream, peer: SocketAddr, route: &Route) {
        let Some(seat) = Seat::take(&self.0, peer, route) else {
            self.0.counted(|count| count.refused += 1);
            return break_off(&client);
        };
        self.0.counted(|count| count.total += 1);
        let (id, inner) = (seat.id, self.0.clone());
        let connection = Connection::new(client, peer, route, seat.moved.clone());
        let task = spawn_local(async move {
            let _seat = seat;
            if let Err(Unanswered) = connection.run(inner.limits, &inner.shared).await {
                inner.counted(|count| count.unanswered += 1);
            }
        });
        if let Some(open) = self.0.open.borrow_mut().get_mut(&id) {
            open.abort = Some(task.abort_handle());
        }
    }

    /// Cuts what `config` does not allow.
    fn cut(&self, config: &Config) {
        let allows = |open: &Open| {
            let same = |route: &&Route| route.name == open.route && route.target == open.target;
            config.routes.iter().filter(same).any(|route| route.admits(open.peer.ip()))
        };
        // What is dropped by an abort takes itself off the list, at the next turn of the runtime.
        for open in self.0.open.borrow().values().filter(|open| !allows(open)) {
            if let Some(abort) = &open.abort {
                abort.abort();
            }
        }
    }
}

impl Inner {
    /// Whether one more finds a place. When all are taken, the connection goes that has been still for longest, if that is
    /// long: a crowd that holds connections and says nothing keeps nobody out.
    fn makes_room(&self) -> bool {
        let mut open = self.open.borrow_mut();
        if open.len() < usize::try_from(self.limits.connections).unwrap_or(usize::MAX) {
            return true;
        }
        let stillest = open.iter().max_by_key(|(_, open)| open.moved.ago()).map(|(id, open)| (*id, open.moved.ago()));
        let Some((id, still)) = stillest else { return false };
        if still < Duration::from_secs(self.limits.stay.into()) {
            return false;
        }
        if let Some(abort) = open.remove(&id).and_then(|open| open.abort) {
            abort.abort();
        }
        self.counted(|count| count.evicted += 1);
        true
    }

    fn counted(&self, change: impl FnOnce(&mut Count)) {
        let mut count = self.count.get();
        change(&mut count);
        self.count.set(count);
    }
}

/// A place among the connections; free again when this is dropped.
struct Seat {
    inner: Rc<Inner>,
    id: u64,
    source: Source,
    moved: Moved,
}

impl Seat {
    fn take(inner: &Rc<Inner>, peer: SocketAddr, route: &Route) -> Option<Self> {
        let source = Source::from(peer.ip());
        let of_it = inner.sources.borrow().get(&source).copied().unwrap_or(0);
        if of_it >= inner.limits.per_source || !route.admits(peer.ip()) || !inner.makes_room() {
            return None;
        }
        inner.sources.borrow_mut().insert(source, of_it + 1);
        let id = inner.next.get();
        inner.next.set(id + 1);
        let moved = Moved::now();
        let open = Open { route: route.name.clone(), peer, target: route.target, moved: moved.clone(), abort: None };
        inner.open.borrow_mut().insert(id, open);
        Some(Self { inner: inner.clone(), id, source, moved })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.inner.open.borrow_mut().remove(&self.id);
        let mut sources = self.inner.sources.borrow_mut();
        if let Some(of_it) = sources.get_mut(&self.source) {
            *of_it -= 1;
            if *of_it == 0 {
                sources.remove(&self.source);
            }
        }
        self.inner.drained.notify_one();
    }
}

/// Errors that accept(2) passes on from a connection that is already gone. The others are ours.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | HostUnreachable | Interrupted | NetworkDown | NetworkUnreachable
    )
}
