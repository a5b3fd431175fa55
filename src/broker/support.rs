//! For the tests against a real RabbitMQ: the integration tests' own support.
#![cfg(feature = "reference")]
#![allow(dead_code, reason = "the integration tests use the rest")]

pub use wait::DEADLINE;

#[path = "../../tests/it/support/amqp.rs"]
pub mod amqp;
#[path = "../../tests/it/support/broker.rs"]
pub mod broker;
#[path = "../../tests/it/support/process.rs"]
pub mod process;
#[path = "../../tests/it/support/wait.rs"]
pub mod wait;
#[path = "../../tests/it/support/watchdog.rs"]
pub mod watchdog;
#[path = "../../tests/it/support/wire.rs"]
pub mod wire;
