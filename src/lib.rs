//! A synchronous WebSocket gateway for instant messaging.

pub mod broker;
mod capacity;
pub mod client;
pub mod config;
pub mod gateway;
pub mod ids;
pub mod logging;
pub mod presence;
pub mod readiness;
#[cfg(feature = "reference")]
pub mod reference;
pub mod registry;
pub mod services;
pub mod threads;
