//! Certificates of the tests' own: an authority, and what it signs, as PEM files that go with the
//! test process.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use super::watchdog;

/// Whom a client trusts that is given its [`file`](Self::file).
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
}

/// A certificate and its key, as a server is given them.
pub struct Identity {
    /// The certificate; behind it, should it have one, the rest of its chain.
    pub cert: PathBuf,
    /// PKCS #8, not encrypted.
    pub key: PathBuf,
}

impl Authority {
    /// `name` is shown as the issuer of what it signs.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let directory = watchdog::directory("authority");
        fs::write(directory.join("ca.pem"), certificate.pem()).expect("a file");
        let issuer = Issuer::new(params, key);
        Self { issuer, directory }
    }

    /// The authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A certificate for these names and addresses, in force.
    pub fn sign(&self, names: &[&str]) -> Identity {
        self.sign_with(names, |_| {})
    }

    /// One that was in force until the end of 2020.
    pub fn sign_expired(&self, names: &[&str]) -> Identity {
        self.sign_with(names, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 12, 31);
        })
    }

    /// One that will be in force from 2090 on.
    pub fn sign_premature(&self, names: &[&str]) -> Identity {
        self.sign_with(names, |params| {
            params.not_before = date_time_ymd(2090, 1, 1);
            params.not_after = date_time_ymd(2091, 1, 1);
        })
    }

    /// One that is as `change` makes it.
    pub fn sign_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let (mut params, key) = request(names);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer);
        written(&certificate.expect("a certificate"), &key)
    }
}

/// A certificate that nobody vouches for.
pub fn self_signed(names: &[&str]) -> Identity {
    let (params, key) = request(names);
    written(&params.self_signed(&key).expect("a certificate"), &key)
}

fn request(names: &[&str]) -> (CertificateParams, KeyPair) {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let params = CertificateParams::new(names).expect("names and addresses");
    (params, KeyPair::generate().expect("a key"))
}

fn written(certificate: &rcgen::Certificate, key: &KeyPair) -> Identity {
    let directory = watchdog::directory("certificate");
    let file = |name: &str, text: String| {
        let file = directory.join(name);
        fs::write(&file, text).expect("a file");
        file
    };
    Identity {
        cert: file("cert.pem", certificate.pem()),
        key: file("key.pem", key.serialize_pem()),
    }
}

/// As a configuration names it.
pub fn path(file: impl AsRef<Path>) -> String {
    file.as_ref().display().to_string()
}
