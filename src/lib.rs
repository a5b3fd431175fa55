//! A synchronous WebSocket gateway for instant messaging.

pub mod broker;
pub mod client;
pub mod config;
pub mod ids;
pub mod presence;
pub mod readiness;
pub mod registry;
pub mod services;
pub mod threads;
