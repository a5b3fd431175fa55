//! Looks at everything outside of this process that a gateway with this configuration needs.

use std::io::Write;

use super::{Report, broker, services, system};
use crate::config::{Config, Mode};

/// Takes as long as those who do not answer are waited for: 3 s for the broker, `services.timeout` for
/// each address of a service.
pub fn connect(config: &Config, report: &mut Report<impl Write>) {
    match config.backend.mode {
        Mode::Embedded => report.ok("backend.mode: the services and their bus are in the gateway"),
        Mode::Remote => {
            broker::check(config, report);
            services::check(&config.services, report);
        }
    }
    system::check(config, report);
}
