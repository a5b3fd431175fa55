//! What is counted, by the names that Prometheus knows it by. The parts of the
//! gateway add to it; `admin/` shows it, with what can be looked up there and then.
//!
//! No label has a value that a client can choose. Counting costs the delivery path one addition for
//! each batch and thread: whoever writes for many sums up first.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};
use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};

use crate::error::ErrorCode;

/// Upper bounds of the buckets of every histogram, in seconds: 100 µs to 10 s.
const BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// The type of a request that is not understood.
const INVALID: &str = "invalid";

/// What a connection is sent unasked, by the `type` of its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray, Serialize)]
#[strum(serialize_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum PushType {
    Message,
    GroupMessage,
    Presence,
}

/// The counters and histograms of one gateway.
pub struct Metrics {
    registry: Registry,
    pub connections: IntCounter,
    /// By the reason in one word ([`CloseReason::name`](crate::client::close::CloseReason::name)).
    pub disconnects: IntCounterVec,
    /// By the reason in one word ([`Refusal::reason`](crate::http::Refusal::reason)).
    pub rejected: IntCounterVec,
    /// By the request's type.
    received: IntCounterVec,
    /// In the order of [`PushType`].
    pushed: Vec<IntCounter>,
    errors: IntCounterVec,
    pub bytes_received: IntCounter,
    pub bytes_sent: IntCounter,
    pub fallbacks: IntCounter,
    pub dead_lettered: IntCounter,
    pub broker_reconnects: IntCounter,
    pub delivery: Histogram,
    /// By the service's method, and the error's code or `OK`.
    pub rpc: HistogramVec,
    /// The calls of services that threads wait for, by the thread's name: the method, and since when.
    pub calls: Mutex<HashMap<String, (&'static str, Instant)>>,
    pub ping: Histogram,
    pub handshake: Histogram,
    pub route: Histogram,
    pub catch_up: Histogram,
}

impl Metrics {
    /// All at zero. `request_types` are those that [`Metrics::received`] is told.
    pub fn new(request_types: &[&str]) -> Self {
        let registry = Registry::new();
        let counters = |name: &str, label: &str, help: &str, values: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label]);
            let counters = register(&registry, counters);
            // So that each is there before it counts for the first time.
            for value in values {
                counters.with_label_values(&[value]);
            }
            counters
        };
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help));
        let options =
            |name: &str, help: &str| HistogramOpts::new(name, help).buckets(BUCKETS.into());
        let histogram =
            |name: &str, help: &str| register(&registry, Histogram::with_opts(options(name, help)));
        let pushed = counters(
            "gateway_messages_pushed_total",
            "type",
            "Messages and presence queued for a connection, by type.",
            &[],
        );
        let push_types = PushType::VARIANTS.iter().map(<&str>::from);
        let codes: Vec<&str> = ErrorCode::VARIANTS.iter().map(<&str>::from).collect();
        let rpc = options(
            "gateway_rpc_seconds",
            "Calls to the User, Message and Presence services, by method and code.",
        );
        Self {
            connections: counter(
                "gateway_connections_total",
                "Connections that were upgraded.",
            ),
            disconnects: counters(
                "gateway_disconnects_total",
                "reason",
                "Connections that have ended, by reason.",
                &[],
            ),
            rejected: counters(
                "gateway_rejected_total",
                "reason",
                "Connections that were refused before the upgrade, by reason.",
                &[],
            ),
            received: counters(
                "gateway_messages_received_total",
                "type",
                "Requests of clients, by type.",
                &[request_types, &[INVALID]].concat(),
            ),
            pushed: push_types
                .map(|kind| pushed.with_label_values(&[kind]))
                .collect(),
            errors: counters(
                "gateway_errors_total",
                "code",
                "Errors that clients were answered, by code.",
                &codes,
            ),
            bytes_received: counter(
                "gateway_bytes_received_total",
                "Bytes that clients sent after the upgrade.",
            ),
            bytes_sent: counter(
                "gateway_bytes_sent_total",
                "Bytes that sockets took, from the answer to the upgrade on.",
            ),
            fallbacks: counter(
                "gateway_fallbacks_total",
                "Connections that fell back to their inbox, since their client was behind.",
            ),
            dead_lettered: counter(
                "gateway_dead_lettered_total",
                "Deliveries that were rejected, since nobody could ever be given them.",
            ),
            broker_reconnects: counter(
                "gateway_broker_reconnects_total",
                "Connections to the broker after the first.",
            ),
            delivery: histogram(
                "gateway_delivery_seconds",
                "From a batch in the consumer's hand to the sockets of all its recipients.",
            ),
            rpc: register(&registry, HistogramVec::new(rpc, &["method", "code"])),
            calls: Mutex::default(),
            ping: histogram("gateway_ping_seconds", "From a ping to its pong."),
            handshake: histogram(
                "gateway_handshake_seconds",
                "From the accepted connection to the upgrade.",
            ),
            route: histogram(
                "gateway_route_seconds",
                "From when a user's route is asked for, at the upgrade or when the broker returns, to its confirmed binding.",
            ),
            catch_up: histogram(
                "gateway_catch_up_seconds",
                "From the upgrade to the last unread message.",
            ),
            registry,
        }
    }

    /// A client's request, of one of the types that there are; `None`: it is not understood.
    pub fn received(&self, kind: Option<&str>) {
        let kind = kind.unwrap_or(INVALID);
        self.received.with_label_values(&[kind]).inc();
    }

    /// So many more of this type are queued for connections.
    pub fn pushed(&self, kind: PushType, count: usize) {
        self.pushed[kind as usize].inc_by(count as u64);
    }

    /// A client was answered an error.
    pub fn error(&self, code: ErrorCode) {
        self.errors.with_label_values(&[code.as_str()]).inc();
    }

    /// Where whoever looks up more values registers them, and all of them are gathered.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// What a thread delivers between two flushes, counted at the second.
pub struct Tally {
    metrics: Arc<Metrics>,
    /// How many pushes of each type are queued and not counted yet.
    pushed: [usize; 3],
    /// When the first delivery was taken after the last flush.
    since: Option<Instant>,
}

impl Tally {
    /// Nothing yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            pushed: [0; 3],
            since: None,
        }
    }

    /// A delivery was taken.
    pub fn begin(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// So many more of this type are queued.
    pub fn pushed(&mut self, kind: PushType, count: usize) {
        self.pushed[kind as usize] += count;
    }

    /// All that was taken is written.
    pub fn end(&mut self) {
        for (kind, count) in PushType::VARIANTS.iter().zip(mem::take(&mut self.pushed)) {
            if count > 0 {
                self.metrics.pushed(*kind, count);
            }
        }
        let since = self.since.take();
        since.inspect(|since| observe(&self.metrics.delivery, since.elapsed()));
    }
}

/// Observes `elapsed` in seconds.
pub fn observe(histogram: &Histogram, elapsed: Duration) {
    histogram.observe(elapsed.as_secs_f64());
}

/// Registers what is made with a name and labels that stand in this crate: whatever could be wrong with
/// them, or with two of one name, every start would show.
pub fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> C {
    let collector = collector.expect("a metric's name and labels");
    let registered = registry.register(Box::new(collector.clone()));
    registered.expect("one metric of a name");
    collector
}
