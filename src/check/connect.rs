//! Looks at everything outside of this process that a gateway with this configuration needs.

use std::io::Write;

#[cfg(feature = "tls")]
use super::certificate;
#[cfg(feature = "discovery")]
use super::etcd;
use super::{Report, broker, services, system};
use crate::config::{Config, Mode};

/// Takes as long as those who do not answer are waited for: 3 s for the broker, `services.timeout` for
/// each address of a service, and 2 s more where it may be that TLS is spoken.
pub fn connect(config: &Config, report: &mut Report<impl Write>) {
    #[cfg(feature = "tls")]
    certificate::check(config, report);
    #[cfg(feature = "discovery")]
    let found = etcd::check(config, report);
    #[cfg(not(feature = "discovery"))]
    let found = config.services.clone();
    match config.backend.mode {
        Mode::Embedded => report.ok("backend.mode: the services and their bus are in the gateway"),
        Mode::Remote => {
            broker::check(config, report);
            services::check(&found, report);
        }
    }
    system::check(config, report);
}
