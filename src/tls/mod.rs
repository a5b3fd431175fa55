//! TLS, an edge: the one place that names rustls. With clients it is the second implementation of the
//! transport seam ([`socket`]), with the certificate that [`certificate`] reads and [`reload`] reads
//! again, and handshakes that are computed apart ([`handshakes`]). Towards the broker ([`amqp`]), the
//! services ([`services`]) and another gateway ([`gateway`]) certificates are judged by whom we trust
//! ([`client`]).

mod amqp;
mod certificate;
mod client;
#[cfg(feature = "chat")]
mod gateway;
mod handshakes;
mod reload;
mod services;
mod socket;
#[cfg(test)]
mod support;

pub use self::amqp::to_broker;
pub use self::client::check;
#[cfg(feature = "chat")]
pub use self::gateway::{GatewayTrust, HandshakeFailure, ToGateway};
pub use self::reload::{Tls, read};
pub use self::services::{ServicesTls, speaks_tls};
