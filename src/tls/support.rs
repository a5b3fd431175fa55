//! For the tests of clients: the integration tests' own certificates, and a server in memory.
#![allow(dead_code, reason = "the integration tests use the rest")]

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, SupportedProtocolVersion};

use self::certificates::Identity;

#[path = "../../tests/it/support/certificates.rs"]
pub mod certificates;
// One for each process: it removes what it finds.
#[cfg(feature = "reference")]
pub use crate::broker::support::watchdog;
#[cfg(not(feature = "reference"))]
#[path = "../../tests/it/support/watchdog.rs"]
pub mod watchdog;

/// A server with this certificate.
pub fn server(
    identity: &Identity,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConnection {
    let chain = CertificateDer::pem_file_iter(&identity.cert).unwrap();
    let chain = chain.map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    ServerConnection::new(Arc::new(config)).unwrap()
}
