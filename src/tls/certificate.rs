//! The certificate of the client listener: its files, what may be wrong with them, when it expires.

use std::fmt::Display;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::InconsistentKeys::KeyMismatch;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_cert::Certificate as X509;
use x509_cert::der::Decode;

use crate::config;

/// How long before its end a certificate is to be replaced at the latest, or for a quarter of its time
/// if that is less: certbot and cert-manager do so when a third is left.
const SOON: Duration = Duration::from_hours(7 * 24);

/// What the files of `tls.cert` and `tls.key` hold.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
}

/// A certificate with its chain and its key, which belong together.
#[derive(Debug)]
pub struct Certificate {
    pub(super) key: Arc<CertifiedKey>,
    pub expires_at: SystemTime,
    /// From when on that is soon.
    soon_at: SystemTime,
    /// Whom it is for.
    pub subject: String,
}

impl Certificate {
    /// Whoever renews automatically has done so by then.
    pub fn expires_soon(&self) -> bool {
        self.soon_at <= SystemTime::now()
    }
}

impl Files {
    /// An error names the key of the configuration.
    pub fn read(config: &config::Tls) -> Result<Self, String> {
        let read = |key: &str, path: &str| {
            fs::read(path).map_err(|error| format!("{key}: cannot read {path}: {error}"))
        };
        Ok(Self {
            cert: read("tls.cert", &config.cert)?,
            key: read("tls.key", &config.key)?,
        })
    }

    /// An error names the key of the configuration, what is wrong, and what would be right.
    pub fn certificate(&self, provider: &CryptoProvider) -> Result<Certificate, String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.cert).collect();
        let chain = chain.map_err(|error| format!("tls.cert: not PEM: {error}"))?;
        if chain.is_empty() {
            return Err(
                "tls.cert: holds no certificate: it is to begin with the gateway's own, in PEM \
                        (BEGIN CERTIFICATE)"
                    .into(),
            );
        }
        let parsed: Result<Vec<_>, _> = chain.iter().map(|der| X509::from_der(der)).collect();
        let parsed =
            parsed.map_err(|error| format!("tls.cert: not an X.509 certificate: {error}"))?;
        let key = provider.key_provider.load_private_key(self.key()?);
        let key = key.map_err(|error| format!("tls.key: not a key that TLS can use: {error}"))?;

        let belongs_to = |number: usize| {
            let pair = CertifiedKey::new(vec![chain[number].clone()], Arc::clone(&key));
            let matched = pair.keys_match();
            !matches!(matched, Err(rustls::Error::InconsistentKeys(KeyMismatch)))
        };
        if !belongs_to(0) {
            let other = (1..chain.len()).find(|number| belongs_to(*number));
            return Err(match other {
                Some(number) => out_of_order(format_args!(
                    "tls.key belongs to certificate {} of {}, which has to be the first",
                    number + 1,
                    chain.len()
                )),
                None => format!(
                    "tls.key: does not belong to the certificate in tls.cert, which is for {}: the two \
                     files are of different pairs",
                    parsed[0].tbs_certificate().subject()
                ),
            });
        }
        let names: Vec<_> = parsed.iter().map(|it| it.tbs_certificate()).collect();
        for (number, [issued, next]) in names.array_windows().enumerate() {
            let issuer = issued.issuer();
            // Behind the first there may be others' issuers as well, such as another way to a root.
            let is_elsewhere = names.iter().any(|other| other.subject() == issuer);
            if next.subject() != issuer
                && issued.subject() != issuer
                && (number == 0 || is_elsewhere)
            {
                return Err(out_of_order(format_args!(
                    "certificate {} was issued by {issuer}, and behind it comes {}",
                    number + 1,
                    next.subject()
                )));
            }
        }
        let validity = names[0].validity();
        let expires_at = validity.not_after.to_system_time();
        let lasts = expires_at.duration_since(validity.not_before.to_system_time());
        let soon = SOON.min(lasts.unwrap_or_default() / 4);
        let subject = names[0].subject().to_string();
        Ok(Certificate {
            key: Arc::new(CertifiedKey::new(chain, key)),
            expires_at,
            soon_at: expires_at - soon,
            subject,
        })
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, String> {
        let is_encrypted = ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"]
            .iter()
            .any(|mark| self.key.windows(mark.len()).any(|at| at == mark.as_bytes()));
        if is_encrypted {
            return Err("tls.key: the key is encrypted, and nobody is there to be asked for its \
                        passphrase: store it without one (`openssl pkey -in KEY -out PLAIN`), readable \
                        for the gateway alone"
                .into());
        }
        PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => {
                "tls.key: holds no private key: it is to be in PEM (BEGIN PRIVATE KEY)".into()
            }
            error => format!("tls.key: not PEM: {error}"),
        })
    }
}

fn out_of_order(what: impl Display) -> String {
    format!(
        "tls.cert: the chain is in the wrong order: {what}: first the gateway's own certificate, then \
         each issuer's behind the one that it issued"
    )
}

#[cfg(test)]
mod tests {
    use rustls::crypto::ring;

    use super::*;
    use crate::tls::support::issued;

    fn judged(cert: &str, key: &str) -> Result<Certificate, String> {
        let (cert, key) = (cert.into(), key.into());
        Files { cert, key }.certificate(&ring::default_provider())
    }

    #[test]
    fn a_certificate_is_taken_with_its_chain_and_whatever_else_its_issuers_have() {
        let of = issued(2040);
        let certificate = judged(&format!("{}{}", of.cert, of.root), &of.key).unwrap();
        assert_eq!(certificate.key.cert.len(), 2);
        assert_eq!(certificate.subject, "CN=the gateway");
        let expires_at = humantime::format_rfc3339_seconds(certificate.expires_at);
        assert_eq!(expires_at.to_string(), "2040-01-01T00:00:00Z");
        judged(&of.cert, &of.key).expect("a chain of one");
        let further = format!("{}{}{}", of.cert, of.root, issued(2090).root);
        judged(&further, &of.key).expect("another way to another root");
        let both = format!("{}{}", of.key, of.cert);
        judged(&both, &both).expect("both in one file");
    }

    #[test]
    fn every_fault_is_named_with_its_cure() {
        let (of, other) = (issued(2090), issued(2090));
        let swapped = format!("{}{}", of.root, of.cert);
        let foreign = format!("{}{}", of.cert, other.cert);
        let encrypted = of.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let traditional = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n\
                           -----END RSA PRIVATE KEY-----";
        let broken = of.cert.replace("MII", "M!!");
        let no_x509 = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (cert, key, fault) in [
            ("", &*of.key, "tls.cert: holds no certificate"),
            (&of.key, &of.key, "tls.cert: holds no certificate"),
            (&broken, &of.key, "tls.cert: not PEM"),
            (no_x509, &of.key, "tls.cert: not an X.509 certificate"),
            (&of.cert, "", "tls.key: holds no private key"),
            (&of.cert, &of.cert, "tls.key: holds no private key"),
            (&of.cert, no_key, "tls.key: not a key that TLS can use"),
            (&of.cert, &encrypted, "tls.key: the key is encrypted"),
            (&of.cert, traditional, "tls.key: the key is encrypted"),
            (
                &of.cert,
                &other.key,
                "tls.key: does not belong to the certificate",
            ),
            (
                &swapped,
                &of.key,
                "wrong order: tls.key belongs to certificate 2 of 2",
            ),
            (
                &foreign,
                &of.key,
                "wrong order: certificate 1 was issued by CN=the root, and behind",
            ),
        ] {
            let error = judged(cert, key).unwrap_err();
            assert!(error.contains(fault), "{fault}: {error}");
        }
        let missing = config::Tls {
            cert: "/nowhere/cert.pem".into(),
            key: String::new(),
        };
        let error = Files::read(&missing).err().unwrap();
        assert!(
            error.starts_with("tls.cert: cannot read /nowhere/cert.pem: No such"),
            "{error}"
        );
    }
}
