//! TLS, an edge: the one place that names rustls. Towards the broker ([`amqp`]) and the services
//! ([`services`]), whose certificates are judged by whom the gateway trusts ([`client`]).

mod amqp;
mod client;
mod services;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tests;

pub use self::amqp::to_broker;
pub use self::client::check;
pub use self::services::{ServicesTls, speaks_tls};
