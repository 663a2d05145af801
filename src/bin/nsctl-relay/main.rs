//! `nsctl-relay`: carries TCP connections from outside to services. Started by nsctl, and of no use without it.
//!
//! # Invariants
//!
//! - It connects to declared targets only, and a connection that is not allowed any more is cut at once.
//! - What strangers can make it hold is bounded: connections in all and of one source, and for each at most two buffers of
//!   [`pump::CHUNK`] bytes, which exist only while the other side does not take them.
//! - Before the first connection is taken all fences stand.

mod connection;
mod proxy;
mod pump;
mod relay;
mod source;

use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nsctl::worker::Kind;
use nsctl::worker::fence::{FenceError, Rights, enclose};
use nsctl::worker::inside::{Ordered, Orders, Post, PostError, work};
use nsctl::worker::relay::{Config, Limits};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use relay::Relay;

#[derive(Debug, Error)]
enum RelayError {
    #[error("cannot read what to relay")]
    Config(#[from] serde_json::Error),
    #[error("there is no listener for the route `{0}`")]
    NoListener(String),
    #[error("cannot use a listener")]
    Listener(#[source] std::io::Error),
    #[error("cannot set a limit")]
    Limit(#[from] nix::Error),
    #[error("cannot wait for signals")]
    Signal(#[source] std::io::Error),
    #[error(transparent)]
    Fence(#[from] FenceError),
    #[error(transparent)]
    Post(#[from] PostError),
}

fn main() -> ExitCode {
    work(async |post, orders| match serve(post, orders).await {
        // Nobody watches any more: that is an end like another.
        Err(RelayError::Post(PostError::Over)) => Ok(()),
        done => done,
    })
}

async fn serve(post: &Post, orders: Orders) -> Result<(), RelayError> {
    let beat = orders.beat;
    let config: Config = serde_json::from_value(orders.config)?;
    limit(&config.limits)?;
    let rights = Rights { connect: config.target_ports().into_iter().collect() };
    let relay = Relay::new(config.limits);
    let mut end = signal(SignalKind::terminate()).map_err(RelayError::Signal)?;
    let fences = enclose(Kind::Relay.user(), &rights)?;
    post.hello(fences)?;
    relay.configure(config, orders.sockets)?;
    post.ready()?;
    let mut beats = interval(beat);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !relay.is_done() {
        tokio::select! {
            _ = beats.tick() => post.alive(relay.count())?,
            _ = end.recv() => break,
            () = relay.drained() => {}
            ordered = post.order() => match ordered {
                Ok(Ordered::Work(orders)) => {
                    relay.configure(serde_json::from_value(orders.config)?, orders.sockets)?;
                    post.ready()?;
                }
                Ok(Ordered::Drain) => relay.drain(),
                Err(error) => return Err(error.into()),
            },
        }
    }
    Ok(())
}

/// As many open files as the connections take and no more, and no core file.
fn limit(limits: &Limits) -> Result<(), RelayError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = relay::files(limits).min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}
