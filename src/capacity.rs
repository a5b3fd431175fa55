//! How many connections this process can hold, by what the system grants it.
//!
//! A connection takes one descriptor and two threads; a thread takes two memory mappings, its
//! stack and the guard page below it. (std adds two more for its stack overflow handler, which
//! `main.rs` leaves out.) Past `vm.max_map_count` a thread that starts would abort the process, so
//! the limit is computed beforehand.

use std::fs;

use log::warn;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::client::refuser;
use crate::config::Config;

/// Descriptors of everything that is no connection, each part at its most. The services have more,
/// by the number of their addresses.
const SPARE_DESCRIPTORS: usize =
    REFUSED + ACCEPTING + PROCESS + RUNTIMES + BROKER + EMBEDDED + ROOM;
/// Connections that wait for their refusal.
const REFUSED: usize = refuser::CAPACITY;
/// The listener, its spare one, a connection that is being admitted, and one with a thread that
/// has not been started.
const ACCEPTING: usize = 4;
/// Standard input, output and error, the log, the signals' two, and a file that is being read.
const PROCESS: usize = 7;
/// tokio's, of the calls and of the reference services.
const RUNTIMES: usize = 2 * 4;
/// A connection that is being closed and one that is being opened, each with its socket, its poll
/// and what wakes it; and a look-up of the broker's name.
const BROKER: usize = 2 * 8 + 2;
/// The reference services: their listener, the gateway's connections to them, and the database
/// with its log, its index, a temporary file and its directory.
const EMBEDDED: usize = 1 + 2 * SERVICES + 5;
/// User, Message and Presence Service.
const SERVICES: usize = 3;
/// What libraries open for a moment.
const ROOM: usize = 32;
/// A connection that ends, one that is being opened, and a look-up of its name.
const PER_SERVICE_ADDRESS: usize = 4;
/// Mappings of the program, its libraries and its heap.
const SPARE_MAPPINGS: usize = 2_000;
/// Threads that serve no connection, and other processes'.
const SPARE_THREADS: usize = 500;

const THREADS_PER_CONNECTION: usize = 2;
const MAPPINGS_PER_CONNECTION: usize = 2 * THREADS_PER_CONNECTION;

/// How many connections fit, and what bounds them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Capacity {
    connections: usize,
    /// The setting that allows no more, as the system calls it.
    bound: &'static str,
}

/// Lowers `limits.max_connections` to what the system grants, and says so.
pub fn lower(config: &mut Config) {
    let services = &config.services;
    let addresses = [&services.user, &services.message, &services.presence];
    let addresses = addresses.iter().map(|addresses| addresses.len()).sum();
    let Capacity { connections, bound } = measure(addresses);
    let wanted = config.limits.max_connections;
    if wanted > connections {
        config.limits.max_connections = connections;
        warn!("limits.max_connections lowered: from={wanted}, to={connections}, because={bound}");
    }
}

/// Raises the soft limit on descriptors to the hard one, and computes, for services at so many
/// addresses.
fn measure(service_addresses: usize) -> Capacity {
    let spare_descriptors = SPARE_DESCRIPTORS + service_addresses * PER_SERVICE_ADDRESS;
    let descriptors = descriptors().saturating_sub(spare_descriptors);
    let mappings = |most: usize| most.saturating_sub(SPARE_MAPPINGS) / MAPPINGS_PER_CONNECTION;
    let threads = |most: usize| most.saturating_sub(SPARE_THREADS) / THREADS_PER_CONNECTION;
    let cgroup = setting("/sys/fs/cgroup/pids.max");
    let bounds = [
        ("RLIMIT_NOFILE", descriptors),
        ("vm.max_map_count", mappings(sysctl("vm/max_map_count"))),
        ("kernel.pid_max", threads(sysctl("kernel/pid_max"))),
        ("kernel.threads-max", threads(sysctl("kernel/threads-max"))),
        ("the cgroup's pids.max", threads(cgroup)),
        ("RLIMIT_NPROC", threads(limit(Resource::Nproc))),
    ];
    let least = bounds.into_iter().min_by_key(|bound| bound.1);
    let (bound, connections) = least.expect("there are six");
    let connections = connections.max(1);
    Capacity { connections, bound }
}

fn descriptors() -> usize {
    let mut granted = getrlimit(Resource::Nofile);
    granted.current = granted.maximum;
    // Refused only where the hard limit changed this very moment; the soft one holds then.
    let _ = setrlimit(Resource::Nofile, granted);
    limit(Resource::Nofile)
}

fn limit(resource: Resource) -> usize {
    let limit = getrlimit(resource).current;
    limit.map_or(usize::MAX, |limit| limit.try_into().unwrap_or(usize::MAX))
}

/// A kernel setting; one that is not there, or says "max", is as good as any number.
fn setting(file: &str) -> usize {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.trim().parse().unwrap_or(usize::MAX)
}

fn sysctl(name: &str) -> usize {
    setting(&format!("/proc/sys/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_bound_counts() {
        let capacity = measure(3);
        assert!(capacity.connections >= 1);
        assert!(capacity.connections <= limit(Resource::Nofile));
        assert!(!capacity.bound.is_empty());
    }
}
