//! Whether the system grants what `limits.max_connections` needs.

use std::io::Write;

use super::Report;
use crate::capacity::{Resource, bounds, service_addresses};
use crate::config::Config;

pub fn check(config: &Config, report: &mut Report<impl Write>) {
    let wanted = config.limits.max_connections;
    for bound in bounds(config) {
        let setting = bound.setting;
        let resource = match bound.resource {
            Resource::Descriptors => "descriptors",
            Resource::Threads => "threads",
            Resource::Mappings => "memory mappings",
        };
        let needed = bound.resource.needed(wanted, service_addresses(config));
        let found = match bound.granted {
            usize::MAX => format!("{resource}: {setting} sets no limit"),
            granted => format!(
                "{resource}: {setting} is {granted}, limits.max_connections = {wanted} needs {needed}"
            ),
        };
        if bound.connections >= wanted {
            report.ok(found);
        } else {
            let most = bound.connections.max(1);
            report.lacking(
                found,
                format_args!("raise it, or {most} connections are the most that are let in"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(max_connections: usize) -> (Vec<String>, bool) {
        let mut config = Config::default();
        config.limits.max_connections = max_connections;
        let mut out = Vec::new();
        let mut report = Report::new(&mut out);
        check(&config, &mut report);
        let is_ready = report.is_ready();
        let text = String::from_utf8(out).unwrap();
        (text.lines().map(String::from).collect(), is_ready)
    }

    #[test]
    fn what_is_short_is_told_and_keeps_nobody_from_being_ready() {
        let (lines_of_one, is_ready) = lines(1);
        assert!(lines_of_one.iter().all(|line| line.starts_with("ok: ")));
        assert!(is_ready);

        // More than there are numbers for threads, in any Linux.
        let (lines, is_ready) = lines(100_000_000);
        let pids = lines.iter().find(|line| line.contains("kernel.pid_max"));
        let pids = pids.expect("a line for each setting");
        assert!(pids.starts_with("failed: threads: "), "{pids}");
        assert!(pids.contains("needs 200000500"), "{pids}");
        assert!(pids.contains("raise it"), "{pids}");
        assert!(is_ready, "max_connections is lowered");
    }
}
