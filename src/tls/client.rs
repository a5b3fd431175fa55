//! Whom the gateway trusts where it is the client, and what is wrong with a server, in words for
//! people.

use std::fs;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, InvalidMessage, RootCertStore,
};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::config::{Config, Endpoint, Mode, is_address};

/// How many of a certificate's names are told: it may have hundreds.
const TOLD_NAMES: usize = 3;

/// Authorities, whose signature makes a certificate good.
#[derive(Clone)]
pub struct Trust {
    pub roots: Arc<RootCertStore>,
    /// How an operator knows them.
    told: String,
}

impl Trust {
    /// Those of the PEM file `ca`; empty: the system's. `key` is where the file is named. An error
    /// names it, and says why there are none.
    pub fn load(key: &str, ca: &str) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        if ca.is_empty() {
            let found = rustls_native_certs::load_native_certs();
            // What cannot be read among a hundred others is passed over.
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let why = found.errors.first().map(|error| format!(": {error}"));
                return Err(format!(
                    "{key}: is empty, and the system has no authorities to trust{} (install \
                     ca-certificates, or name a PEM file)",
                    why.unwrap_or_default()
                ));
            }
        } else {
            let wrong = |what: &str| format!("{key}: {ca}: {what}");
            let text = fs::read(ca).map_err(|error| wrong(&format!("cannot be read: {error}")))?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let certificate = certificate.map_err(|_| wrong("is no PEM file"))?;
                let added = roots.add(certificate);
                added.map_err(|_| wrong("holds a certificate that is broken"))?;
            }
            if roots.is_empty() {
                return Err(wrong("holds no certificate in PEM form"));
            }
        }
        Ok(Self {
            roots: Arc::new(roots),
            told: match ca {
                "" => format!("the system's ({key} is empty)"),
                file => format!("those of {key}, {file}"),
            },
        })
    }

    /// What went wrong in a handshake, or behind it.
    pub fn explain(&self, error: &Error) -> String {
        match error {
            Error::InvalidCertificate(error) => self.explain_certificate(error),
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                "the server does not speak TLS at this port".into()
            }
            Error::AlertReceived(AlertDescription::CertificateRequired) => {
                "the server asks for a client's certificate, and the gateway has none".into()
            }
            Error::AlertReceived(alert) => format!("the server ended TLS: {alert:?}"),
            other => format!("TLS: {other}"),
        }
    }

    fn explain_certificate(&self, error: &CertificateError) -> String {
        let known = &self.told;
        match error {
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => {
                let (names, wanted) = (names(presented), expected.to_str());
                format!("the server's certificate is for {names}, not for {wanted}")
            }
            CertificateError::ExpiredContext { time, not_after } => {
                let (end, now) = (shown(not_after), shown(time));
                format!("the server's certificate expired on {end}; it is {now}")
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                let (begin, now) = (shown(not_before), shown(time));
                format!("the server's certificate is not valid before {begin}; it is {now}")
            }
            CertificateError::UnknownIssuer => format!(
                "the server's certificate is self-signed, or by an authority that is not among \
                 {known}"
            ),
            CertificateError::BadSignature => format!(
                "the server's certificate is not by the authority that it names, which is among \
                 {known}"
            ),
            // Some of webpki's errors have no other form here.
            CertificateError::Other(error) if error.to_string() == "CaUsedAsEndEntity" => {
                "the server's certificate is an authority's own (CA:TRUE), as openssl makes \
                 self-signed ones; a server needs one of its own"
                    .into()
            }
            other => format!("the server's certificate is not accepted: {other}"),
        }
    }
}

/// TLS 1.2 and 1.3, for a client that has no certificate of its own.
pub fn client_config(roots: impl Into<Arc<RootCertStore>>) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has what both versions need")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// As a certificate names hosts: `DnsName("a.example")`, `IpAddress(10.0.0.1)`.
fn names(presented: &[String]) -> String {
    let inner = |name: &String| {
        let name = name.split_once('(').map_or(name.as_str(), |(_, name)| name);
        name.trim_end_matches(')').trim_matches('"').to_owned()
    };
    let told: Vec<_> = presented.iter().take(TOLD_NAMES).map(inner).collect();
    match presented.len() {
        0 => "no name at all (no subjectAltName)".into(),
        count if count > TOLD_NAMES => {
            format!("{} and {} more", told.join(", "), count - TOLD_NAMES)
        }
        _ => told.join(", "),
    }
}

fn shown(time: &UnixTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let seconds = i64::try_from(time.as_secs()).ok();
    let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let shown = time.and_then(|time| time.format(format).ok());
    shown.unwrap_or_else(|| "a day beyond the calendar".into())
}

/// The name that a server's certificate must be for: that of the address, an IPv6 address perhaps in
/// brackets.
pub fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    let name = ServerName::try_from(without_brackets(host).to_owned());
    name.map_err(|_| format!("{host} is no name that a certificate could be for"))
}

pub fn without_brackets(host: &str) -> &str {
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host)
}

/// Whether the authorities are there that the configuration asks for. An error is the key where they
/// are not, and the reason, which names the key too.
pub fn check(config: &Config) -> Result<(), (&'static str, String)> {
    let (services, broker) = (&config.services, &config.broker);
    let is_remote = config.backend.mode == Mode::Remote;
    let mut addresses = [&services.user, &services.message, &services.presence]
        .into_iter()
        .flatten();
    let is_https = addresses.any(|address| is_address("https", address));
    let is_amqps = Endpoint::parse(&broker.url).is_ok_and(|endpoint| endpoint.is_tls);
    for (key, ca, is_asked_for) in [
        ("services.ca", &services.ca, is_https),
        ("broker.ca", &broker.ca, is_amqps),
    ] {
        if !ca.is_empty() || is_remote && is_asked_for {
            Trust::load(key, ca).map_err(|reason| (key, reason))?;
        }
    }
    Ok(())
}
