//! A synchronous WebSocket gateway for instant messaging.

pub mod broker;
pub mod config;
pub mod ids;
pub mod services;
