//! A synchronous WebSocket gateway for instant messaging.

pub mod broker;
pub mod config;
pub mod ids;
#[cfg(feature = "reference")]
pub mod reference;
pub mod services;
