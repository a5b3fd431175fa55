//! `cargo bench -- --installed`: the gateway, with RabbitMQ, beside servers that one would install
//! instead. Clients subscribe to one subject, topic or channel, and get the same 200 bytes of JSON
//! from each server. The others have no broker in the path, keep nothing for who is away, and ask
//! nobody who is let in.
//!
//! Where a server is to do all it can, the gateway finds its messages waiting with the broker, and
//! the others get theirs as fast as they read them.

mod publisher;
mod servers;
mod session;
mod table;

use std::thread;
use std::time::Duration;

use crate::cpu::{kernel_kib, settled_kib};
use crate::publisher::message;
use crate::results::{GATEWAY, Metric};
use crate::scenarios::Bench;
use crate::servers::{Kind as Own, Server};
use crate::session::{SETTLED, Session as OwnSession};
use crate::window::Figures;
use servers::Kind;
use session::Session;

pub use table::print;

/// Length of a message as a client gets it.
const PAYLOAD: usize = 200;

/// What is measured of each server.
pub struct Part {
    pub name: &'static str,
    pub about: &'static str,
    run: fn(&mut Bench, &mut Servers),
}

const FAN_OUT: &str = "fan-out";
const PACED: &str = "paced";
const SMALL_GROUP: &str = "small-group";
const MEMORY: &str = "memory";

pub const ALL: [Part; 4] = [
    Part {
        name: FAN_OUT,
        about: "messages to 1,000 subscribers, as many as it can",
        run: fan_out,
    },
    Part {
        name: PACED,
        about: "50 messages a second to 1,000 subscribers",
        run: paced,
    },
    Part {
        name: SMALL_GROUP,
        about: "100 messages a second to 20 subscribers",
        run: small_group,
    },
    Part {
        name: MEMORY,
        about: "memory per idle connection, at 5,000 (quick: 1,000)",
        run: memory,
    },
];

/// Who takes part.
#[derive(Clone, Copy)]
enum Who {
    Gateway,
    Other(Kind),
}

impl Who {
    const ALL: [Who; 4] = [
        Who::Gateway,
        Who::Other(Kind::Nats),
        Who::Other(Kind::Mosquitto),
        Who::Other(Kind::Nchan),
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Gateway => GATEWAY,
            Self::Other(kind) => kind.name(),
        }
    }

    /// Messages of a burst: a second or two of work.
    fn burst(self, bench: &Bench) -> u64 {
        match self {
            Self::Gateway | Self::Other(Kind::Nats) => 5_000,
            Self::Other(_) => bench.effort.size(500, 200),
        }
    }
}

/// The servers that run, side by side.
#[derive(Default)]
pub struct Servers(Vec<Session>);

impl Servers {
    /// One of this kind with so many connections, which goes on running.
    fn session(&mut self, kind: Kind, connections: usize) -> &mut Session {
        self.0.retain(|session| session.connections == connections);
        let found = self.0.iter().position(|session| session.kind == kind);
        let place = found.unwrap_or_else(|| {
            let session = Session::start(kind, connections);
            self.0.push(session);
            self.0.len() - 1
        });
        &mut self.0[place]
    }
}

/// What is to be done before it can run, if anything.
pub fn missing() -> Option<String> {
    let missing: Vec<&str> = Kind::ALL
        .into_iter()
        .filter(|kind| !kind.is_there())
        .map(Kind::package)
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "not installed: {}. Install what is missing, as root:\n  \
             apt-get install --no-install-recommends {}\n\
             `tests/run bench --installed` does that as well, and has none of the packages' own \
             services start.",
            missing.join(", "),
            missing.join(" ")
        )
    })
}

/// Measures the parts of these names, or all.
pub fn run(bench: &mut Bench, names: &[String]) {
    let mut servers = Servers::default();
    for part in &ALL {
        if names.is_empty() || names.iter().any(|name| name == part.name) {
            eprintln!("{}: {}", part.name, part.about);
            (part.run)(bench, &mut servers);
        }
    }
}

/// A line that names the servers and their versions.
pub fn versions() -> String {
    let one = |kind: Kind| format!("{} {}", kind.name(), kind.version());
    Kind::ALL.map(one).join(", ")
}

/// Of a content that makes a message [`PAYLOAD`] long.
fn content_size() -> usize {
    PAYLOAD - message(0, "").len()
}

fn fan_out(bench: &mut Bench, servers: &mut Servers) {
    const CONNECTIONS: usize = 1_000;
    let size = content_size();
    for _ in 0..bench.effort.rounds {
        for who in Who::ALL {
            let count = who.burst(bench);
            let figures = bench.undisturbed(|bench| match who {
                Who::Gateway => bench
                    .session(Own::Gateway, CONNECTIONS)
                    .saturated(count, size),
                Who::Other(kind) => servers.session(kind, CONNECTIONS).saturated(count, size),
            });
            same_payload(who, &figures);
            bench.add_saturated(FAN_OUT, who.name(), &figures);
        }
    }
}

fn paced(bench: &mut Bench, servers: &mut Servers) {
    let duration = Duration::from_secs(bench.effort.size(5, 3));
    pace(bench, servers, PACED, 1_000, 50.0, duration);
}

fn small_group(bench: &mut Bench, servers: &mut Servers) {
    // 40,000 deliveries, so that hundredths of a second of processor time say something.
    let duration = Duration::from_secs(bench.effort.size(20, 5));
    pace(bench, servers, SMALL_GROUP, 20, 100.0, duration);
}

fn pace(
    bench: &mut Bench,
    servers: &mut Servers,
    name: &str,
    connections: usize,
    rate: f64,
    duration: Duration,
) {
    let size = content_size();
    let deliveries = rate * duration.as_secs_f64() * connections as f64;
    for _ in 0..bench.effort.rounds {
        for who in Who::ALL {
            let figures = bench.undisturbed(|bench| match who {
                Who::Gateway => {
                    bench.session(Own::Gateway, connections);
                    let broker = bench.stand.broker_time();
                    let session = bench.session(Own::Gateway, connections);
                    let figures = session.paced(rate, duration, size);
                    let broker = bench.stand.broker_time() - broker;
                    let micros = broker.as_secs_f64() * 1e6 / deliveries;
                    bench.add(name, GATEWAY, Metric::CpuBroker, micros);
                    figures
                }
                Who::Other(kind) => servers
                    .session(kind, connections)
                    .paced(rate, duration, size),
            });
            same_payload(who, &figures);
            bench.add_paced(name, who.name(), &figures);
        }
    }
}

fn same_payload(who: Who, figures: &Figures) {
    let name = who.name();
    assert_eq!(figures.payload, PAYLOAD as f64, "{name} sends other bytes");
}

/// Thrice at most: only the kernel's part depends on what else the machine does.
fn memory(bench: &mut Bench, servers: &mut Servers) {
    let connections = bench.effort.size(5_000, 1_000);
    for who in (0..bench.effort.rounds.min(3)).flat_map(|_| Who::ALL) {
        bench.end_sessions();
        servers.0.clear();
        let [resident, kernel] = match who {
            Who::Gateway => {
                let server = Server::start(&bench.stand, Own::Gateway, connections);
                let before = [settled_kib(&server.process), kernel_kib()];
                let session = OwnSession::idle(&bench.stand, Own::Gateway, server, connections);
                // What a catch-up remembers is forgotten by then.
                thread::sleep(SETTLED);
                let after = [settled_kib(&session.server.process), kernel_kib()];
                session.end();
                [after[0] - before[0], after[1] - before[1]]
            }
            Who::Other(kind) => {
                let server = kind.start();
                let before = [settled_kib(&server.process), kernel_kib()];
                let session = Session::idle(kind, server, connections);
                let after = [settled_kib(&session.server.process), kernel_kib()];
                [after[0] - before[0], after[1] - before[1]]
            }
        };
        eprintln!(
            "  {MEMORY}: {}: {resident} KiB resident, {kernel} KiB of the kernel's",
            who.name()
        );
        let connections = connections as f64;
        let mut add = |metric, kib: f64| bench.add(MEMORY, who.name(), metric, kib / connections);
        add(Metric::MemoryPerConnection, resident);
        add(Metric::MemoryKernel, kernel);
    }
}
