//! How long the certificate of the client listener holds.

use std::io::Write;

use super::Report;
use crate::config::Config;
use crate::tls;

pub fn check(config: &Config, report: &mut Report<impl Write>) {
    if config.tls.cert.is_empty() {
        return;
    }
    match tls::read(&config.tls) {
        Ok(certificate) => {
            let until = humantime::format_rfc3339_seconds(certificate.expires_at);
            let found = format!("tls.cert: {} until {until}", certificate.subject);
            match certificate.expires_soon() {
                false => report.ok(found),
                true => report.lacking(found, "renew it: clients refuse one that has expired"),
            }
        }
        // It was read before anything was looked at.
        Err((_, reason)) => report.lacking(reason, "put the right files there"),
    }
}
