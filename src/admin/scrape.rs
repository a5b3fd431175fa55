//! `GET /metrics`: what the gateway has counted, and what is looked up for each scrape.

use std::collections::HashMap;

use parking_lot::Mutex;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Gauge, IntGauge, IntGaugeVec, Opts, TextEncoder};

use super::sources::Sources;
use crate::metrics::register;

/// The gauges that are set for each scrape.
pub struct Scrape {
    connections: IntGauge,
    users: IntGauge,
    limit: IntGaugeVec,
    limit_used: IntGaugeVec,
    queue_depth_max: IntGauge,
    broker_up: IntGauge,
    drain: Gauge,
    /// One at a time, so that no byte counts twice.
    one: Mutex<()>,
}

impl Scrape {
    /// Registers the gauges beside what `sources` count.
    pub fn new(sources: &Sources) -> Self {
        let registry = sources.context.metrics.registry();
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help));
        let gauges = |name: &str, help: &str, label: &str| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), &[label]))
        };
        let info = gauges(
            "gateway_build_info",
            "1, with the version of the binary as its label.",
            "version",
        );
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let process = registry.register(Box::new(ProcessCollector::for_self()));
        process.expect("one collector of a name");
        let help =
            "Seconds that are left until the connections that remain are cut; 0 while none are.";
        Self {
            connections: gauge("gateway_connections", "Connections that are open."),
            users: gauge("gateway_users", "Users with a connection."),
            limit: gauges("gateway_limit", "Each limit, by its name.", "name"),
            limit_used: gauges(
                "gateway_limit_used",
                "How much of each limit is used; of limits for each user, address or connection, by the \
                 one that uses most.",
                "name",
            ),
            queue_depth_max: gauge(
                "gateway_send_queue_depth_max",
                "The most frames that have been in the queue of a connection that is open.",
            ),
            broker_up: gauge(
                "gateway_broker_up",
                "1 while deliveries can come, 0 while not.",
            ),
            drain: register(registry, Gauge::new("gateway_drain_seconds", help)),
            one: Mutex::new(()),
        }
    }

    /// Prometheus text (format 0.0.4).
    pub fn text(&self, sources: &Sources) -> String {
        let _one = self.one.lock();
        self.look(sources);
        let families = sources.context.metrics.registry().gather();
        // Fails for families without a name or a sample alone, which are not gathered.
        TextEncoder::new()
            .encode_to_string(&families)
            .unwrap_or_default()
    }

    fn look(&self, sources: &Sources) {
        // First those who have ended: a connection that ends meanwhile is in neither sum, and comes
        // to be counted with the next scrape.
        let mut bytes = sources.history.bytes();
        let connections = sources.registry.connections();
        let (mut depth, mut deepest, mut queued) = (0, 0, 0);
        let mut users: HashMap<_, i64> = HashMap::new();
        for connection in &connections {
            let received = connection.activity.lock().received;
            let sent = connection.outbox.sent();
            bytes = (bytes.0 + received, bytes.1 + sent);
            let (queued_frames, queued_bytes) = connection.outbox.queued();
            depth = depth.max(queued_frames);
            queued = queued.max(queued_bytes);
            deepest = deepest.max(connection.outbox.high_water());
            *users.entry(connection.user()).or_default() += 1;
        }
        let metrics = &sources.context.metrics;
        for (counter, total) in [
            (&metrics.bytes_received, bytes.0),
            (&metrics.bytes_sent, bytes.1),
        ] {
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        self.connections.set(number(connections.len()));
        self.users.set(number(users.len()));
        self.queue_depth_max.set(number(deepest));
        let context = &sources.context;
        let broker_up = sources.readiness.passes("broker");
        self.broker_up.set(i64::from(broker_up));
        self.drain.set(context.drain.left().as_secs_f64());
        let (limits, session) = (&context.config.limits, &context.config.session);
        let [admitted, of_one_address, handshakes] = sources.limits.usage();
        let of_one_user = users.values().max().copied().unwrap_or(0);
        for (name, limit, used) in [
            ("max_connections", limits.max_connections, number(admitted)),
            (
                "max_connections_per_user",
                limits.max_connections_per_user,
                of_one_user,
            ),
            (
                "max_connections_per_ip",
                limits.max_connections_per_ip,
                number(of_one_address),
            ),
            ("max_handshakes", limits.max_handshakes, number(handshakes)),
            ("send_queue", session.send_queue, number(depth)),
            ("send_queue_bytes", session.send_queue_bytes, number(queued)),
        ] {
            self.limit.with_label_values(&[name]).set(number(limit));
            self.limit_used.with_label_values(&[name]).set(used);
        }
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
