//! How long the certificate of the client listener holds.

use std::io::Write;
use std::time::{Duration, SystemTime};

use super::Report;
use crate::config::Config;
use crate::tls;

/// Whoever renews automatically has done so by then.
const SOON: Duration = Duration::from_hours(7 * 24);

pub fn check(config: &Config, report: &mut Report<impl Write>) {
    if config.tls.cert.is_empty() {
        return;
    }
    match tls::read(&config.tls) {
        Ok(certificate) => {
            let until = humantime::format_rfc3339_seconds(certificate.expires_at);
            let found = format!("tls.cert: {} until {until}", certificate.subject);
            if certificate.expires_at > SystemTime::now() + SOON {
                report.ok(found);
            } else {
                report.lacking(found, "renew it: clients refuse one that has expired");
            }
        }
        // It was read before anything was looked at.
        Err((_, reason)) => report.lacking(reason, "put the right files there"),
    }
}
