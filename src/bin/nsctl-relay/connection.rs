//! One connection: who may, where it goes, how it ends.

use std::net::SocketAddr;
use std::time::Duration;

use nsctl::worker::relay::{Limits, Route};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::proxy;
use crate::pump::{Moved, Shared, break_off, end_well, keep_alive, pump, write};

/// A client that is let in, and where it goes.
pub struct Connection {
    pub client: TcpStream,
    pub peer: SocketAddr,
    pub target: SocketAddr,
    pub proxy: bool,
    pub moved: Moved,
}

/// The service behind did not answer.
pub struct Unanswered;

impl Connection {
    pub fn new(client: TcpStream, peer: SocketAddr, route: &Route, moved: Moved) -> Self {
        // Broken off is what it is until it has ended well: also when this is dropped on the way.
        break_off(&client);
        Self { client, peer, target: route.target, proxy: route.proxy, moved }
    }

    /// Carries it until its end.
    pub async fn run(self, limits: Limits, shared: &Shared) -> Result<(), Unanswered> {
        let patience = Duration::from_secs(limits.connect.into());
        let Ok(Ok(service)) = timeout(patience, TcpStream::connect(self.target)).await else {
            return Err(Unanswered);
        };
        break_off(&service);
        keep_alive(&self.client);
        keep_alive(&service);
        if self.proxy {
            let here = self.client.local_addr().unwrap_or(self.target);
            if write(&service, &proxy::header(self.peer, here)).await.is_err() {
                return Err(Unanswered);
            }
        }
        let idle = Duration::from_secs(limits.idle.into());
        if pump(&self.client, &service, shared, (&self.moved, idle)).await.is_ok() {
            end_well(&self.client);
            end_well(&service);
        }
        Ok(())
    }
}
