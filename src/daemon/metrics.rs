//! OpenMetrics on a unix socket: `curl --unix-socket /run/nsctl/metrics.sock http://nsctl/metrics`.
//!
//! # Invariants
//!
//! - Labels are bounded by the policy: networks, kinds of exposures. No name of an edge or an address is a label.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::control::{bind, is_trusted};
use super::{DaemonError, Shared, Snapshot};

/// How long one connection may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// So many connections at once.
const MOST: usize = 8;

type Labels = Vec<(String, String)>;
type Level = Family<Labels, Gauge<f64, AtomicU64>>;

pub(super) fn listen(path: &Path, shared: Shared) -> Result<JoinHandle<()>, DaemonError> {
    let listener = bind(path)?;
    Ok(tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(MOST));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            };
            let shared = shared.clone();
            tokio::spawn(async move {
                if is_trusted(&stream) {
                    let service = service_fn(|request: hyper::Request<Incoming>| {
                        let answer = answer(&request, &shared);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let mut http = hyper::server::conn::http1::Builder::new();
                    let http = http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
                    let served = http.serve_connection(TokioIo::new(stream), service);
                    tokio::time::timeout(PATIENCE, served).await.ok();
                }
                drop(place);
            });
        }
    }))
}

fn answer(request: &hyper::Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, text(&shared.now())),
        _ => (StatusCode::NOT_FOUND, "there is /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    if status == StatusCode::OK {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        response.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("the constant is a header value"));
    }
    response
}

/// All metrics as text.
fn text(snapshot: &Snapshot) -> String {
    let mut registry = <Registry>::with_prefix("nsctl");
    let version = vec![("version".to_owned(), snapshot.version.clone())];
    registry.register("build", "Version of the daemon", Info::new(version));
    let started = Gauge::<f64, AtomicU64>::default();
    started.set(whole(snapshot.since));
    registry.register("start_time_seconds", "When the daemon was started", started);
    let mut level = |name: &str, help: &str| {
        let family = Level::default();
        registry.register(name, help, family.clone());
        family
    };
    let generation = level("generation", "Number of the generation in force, 0 for none");
    let services = level("services", "Services of the generation in force");
    let edges = level("edges", "Edges of the generation in force");
    let exposures = level("exposures", "Ways in from outside, by kind");
    let drift = level("drift", "Differences from the generation in force that are left");
    let held = level("held", "Places that are held closed");
    let looked = level("last_compare_timestamp_seconds", "When the kernel was last compared");
    let took = level("last_compare_seconds", "How long that took");
    let failed = level("failed", "1 when the last compare or repair failed");
    let confirm = level("confirm_within_seconds", "How long a generation waits still to be confirmed, 0 for none");
    let ready = level("worker_ready", "1 while the worker serves");
    let restarts = level("worker_restarts", "How often the worker was started again after a failure");
    let open = level("worker_connections", "Connections that the worker has open");
    let repairs = Family::<Labels, Counter>::default();
    registry.register("repairs", "Repairs since the daemon was started", repairs.clone());
    for (name, network) in &snapshot.networks {
        let labels = vec![("network".to_owned(), name.clone())];
        let set = |family: &Level, value: f64| {
            family.get_or_create(&labels).set(value);
        };
        set(&generation, network.generation.map_or(0.0, |number| f64::from(number.0)));
        set(&services, whole(network.services as u64));
        set(&edges, whole(network.edges as u64));
        set(&drift, whole(network.drift.len() as u64));
        set(&held, whole(network.held.len() as u64));
        set(&looked, whole(network.looked));
        set(&took, network.look_ms / 1000.0);
        set(&failed, f64::from(u8::from(network.error.is_some())));
        set(&confirm, whole(network.confirm_within.unwrap_or(0)));
        repairs.get_or_create(&labels).inc_by(network.repairs);
        for worker in &network.workers {
            let of = worker["name"].as_str().unwrap_or_default().to_owned();
            let labels = vec![("network".to_owned(), name.clone()), ("worker".to_owned(), of)];
            ready.get_or_create(&labels).set(f64::from(u8::from(worker["phase"] == "ready")));
            restarts.get_or_create(&labels).set(worker["restarts"].as_f64().unwrap_or_default());
            open.get_or_create(&labels).set(worker["connections"]["open"].as_f64().unwrap_or_default());
        }
        for (way, count) in &network.exposures {
            let labels = vec![("network".to_owned(), name.clone()), ("way".to_owned(), way.clone())];
            exposures.get_or_create(&labels).set(whole(*count as u64));
        }
    }
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes all that is written to it");
    text
}

/// Counts and times here are far below the 2^53 up to which this is exact.
#[allow(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn whole(number: u64) -> f64 {
    number as f64
}
