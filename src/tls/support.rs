//! For unit tests: the integration tests' own certificates, and a server in memory.
#![allow(dead_code, reason = "the integration tests use the rest")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{DistinguishedName, DnType, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, SupportedProtocolVersion};

use self::certificates::{Authority, Identity};

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

/// As PEM: an issuer's certificate, one for localhost that it issued, and its key.
pub struct Issued {
    pub root: String,
    pub cert: String,
    pub key: String,
}

/// `until`: the year in which it expires.
pub fn issued(until: i32) -> Issued {
    let authority = Authority::new("the root");
    let identity = authority.sign_with(&["localhost"], |params| {
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "the gateway");
        params.not_after = date_time_ymd(until, 1, 1);
    });
    let read = |file: &Path| fs::read_to_string(file).unwrap();
    Issued {
        root: read(&authority.file()),
        cert: read(&identity.cert),
        key: read(&identity.key),
    }
}
