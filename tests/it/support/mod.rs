//! What the tests stand on: processes, a broker, clients, a raw socket, a scriptable backend, and
//! the ledger of what was sent and received.
//!
//! Every wait has a deadline and fails with what it waited for; every server has a free port; no
//! process and no directory outlives the test process, however that ends ([`watchdog`]).

#![allow(dead_code, reason = "the tests of faults and limits use all of it")]

pub mod admin;
pub mod amqp;
pub mod asyncapi;
pub mod backend;
pub mod balancer;
pub mod broker;
pub mod browser;
pub mod certificates;
pub mod chapter;
pub mod client;
pub mod cluster;
pub mod echo;
pub mod etcd;
pub mod example;
pub mod gateway;
pub mod hog;
pub mod http2;
pub mod ledger;
pub mod link;
#[expect(clippy::result_large_err, reason = "tungstenite's own")]
#[path = "../../naive/gateway.rs"]
pub mod naive;
pub mod named;
pub mod paths;
pub mod pictures;
pub mod process;
pub mod prometheus;
pub mod puppet;
pub mod random;
pub mod raw;
pub mod raw_amqp;
pub mod recipe;
pub mod settings;
pub mod sketch;
pub mod stream;
pub mod terminal;
pub mod terminator;
pub mod wait;
pub mod watchdog;
pub mod wire;

use parking_lot::RwLock;

pub use client::{Client, Event};
pub use cluster::Cluster;
pub use gateway::{Gateway, Services};
pub use settings::Settings;
pub use wait::{DEADLINE, wait_until};

/// Held for reading by whoever has threads in this process that are named like a gateway's, and for
/// writing by whoever looks for such threads.
pub static GATEWAY_THREADS: RwLock<()> = RwLock::new(());
