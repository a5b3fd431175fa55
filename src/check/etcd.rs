//! Whether etcd answers, and what it knows of the services that are to be found there.

use std::io::Write;

use super::Report;
use crate::config::{self, Config, in_etcd};
use crate::discovery::look_up;

/// Answers the services' addresses, those that etcd knows in place of its name for them.
pub fn check(config: &Config, report: &mut Report<impl Write>) -> config::Services {
    let mut services = config.services.clone();
    let is_needed = [&services.user, &services.message]
        .map(|it| in_etcd(it))
        .iter()
        .any(Option::is_some);
    let endpoints = &config.discovery.endpoints;
    let looks = endpoints
        .iter()
        .map(|endpoint| (endpoint, look_up(endpoint, &config.discovery.prefix)));
    let looks: Vec<_> = looks.collect();
    let answering = looks
        .iter()
        .find(|(_, look)| look.is_ok())
        .map(|(endpoint, _)| *endpoint);
    for (endpoint, look) in &looks {
        let found = format!("etcd at {endpoint}");
        let Err(reason) = look else {
            report.ok(format_args!("{found} answers"));
            continue;
        };
        let (found, cure) = (
            format!("{found}: {reason}"),
            "start it there, or mend discovery.endpoints",
        );
        if is_needed && answering.is_none() {
            report.failed(found, cure);
        } else {
            report.lacking(found, cure);
        }
    }
    for (key, is_decisive, addresses) in [
        ("services.user", true, &mut services.user),
        ("services.message", true, &mut services.message),
        ("services.presence", false, &mut services.presence),
    ] {
        let Some(name) = in_etcd(addresses) else {
            continue;
        };
        let prefix = format!("{}/{name}/", config.discovery.prefix);
        // One that answers did so a moment ago.
        let found = answering.map(|endpoint| look_up(endpoint, &prefix).unwrap_or_default());
        *addresses = found.unwrap_or_default();
        if answering.is_some() && addresses.is_empty() {
            let (found, cure) = (
                format!("{key}: etcd knows no address under {prefix}"),
                format!("register the service there, or mend {key}"),
            );
            if is_decisive {
                report.failed(found, cure);
            } else {
                report.lacking(found, cure);
            }
        }
    }
    services
}
