//! Whether each address of each service answers, asked as `/readyz` asks.

use std::io::Write;
#[cfg(feature = "tls")]
use std::sync::Arc;

use super::Report;
use crate::config;
#[cfg(feature = "tls")]
use crate::config::is_address;
use crate::services::grpc::Grpc;
use crate::services::proto::{AckMessagesRequest, UserOfflineRequest, ValidateTokenRequest};
use crate::services::{Result, Services};
#[cfg(feature = "tls")]
use crate::tls::{ServicesTls, speaks_tls};

/// A service, and an empty call to it.
struct Target<'c> {
    name: &'static str,
    key: &'static str,
    addresses: &'c [String],
    is_decisive: bool,
    ask: fn(&Grpc) -> Result<()>,
}

pub fn check(config: &config::Services, report: &mut Report<impl Write>) {
    let targets = [
        Target {
            name: "User Service",
            key: "services.user",
            addresses: &config.user,
            is_decisive: true,
            ask: |services| {
                let asked = services.validate_token(ValidateTokenRequest::default());
                asked.map(drop)
            },
        },
        Target {
            name: "Message Service",
            key: "services.message",
            addresses: &config.message,
            is_decisive: true,
            ask: |services| services.ack_messages(AckMessagesRequest::default()),
        },
        Target {
            name: "Presence Service",
            key: "services.presence",
            addresses: &config.presence,
            is_decisive: false,
            ask: |services| {
                let asked = services.users_offline(vec![UserOfflineRequest::default()]);
                asked.into_iter().collect()
            },
        },
    ];
    for target in targets {
        target.check(config, report);
    }
}

impl Target<'_> {
    fn check(&self, config: &config::Services, report: &mut Report<impl Write>) {
        let outcomes = self
            .addresses
            .iter()
            .map(|address| self.reach(address, config));
        let outcomes: Vec<_> = outcomes.collect();
        let is_needed = self.is_decisive && outcomes.iter().all(|outcome| outcome.is_err());
        for (address, outcome) in self.addresses.iter().zip(outcomes) {
            let found = format!("{} at {address}", self.name);
            let Err(reason) = outcome else {
                report.ok(format_args!("{found} answers"));
                continue;
            };
            #[cfg(feature = "tls")]
            let reason = match !is_address("https", address) && speaks_tls(address) {
                true => "the server speaks TLS: its address is to begin with https://".into(),
                false => reason,
            };
            let found = format!("{found}: {reason}");
            let cure = format!("start it there, or mend {}", self.key);
            if is_needed {
                report.failed(found, cure);
            } else {
                report.lacking(found, cure);
            }
        }
    }

    /// Any answer of the service's shows that it is there; an error is why none came.
    fn reach(&self, address: &str, config: &config::Services) -> std::result::Result<(), String> {
        let there = vec![address.to_owned()];
        let only_there = config::Services {
            user: there.clone(),
            message: there.clone(),
            presence: there,
            ..config.clone()
        };
        #[cfg(feature = "tls")]
        let tls = Some(Arc::new(ServicesTls::new(&config.ca)) as _);
        #[cfg(not(feature = "tls"))]
        let tls = None;
        let services = Grpc::start(&only_there, tls)?;
        match (self.ask)(&services) {
            Err(error) if error.is_out_of_reach() => Err(error.to_string()),
            _ => Ok(()),
        }
    }
}
