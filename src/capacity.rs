//! How many connections this process can hold, by what the system grants it.
//!
//! A connection takes one descriptor and two threads; a thread takes two memory mappings, its
//! stack and the guard page below it. (std adds two more for its stack overflow handler, which
//! `main.rs` leaves out.) Past `vm.max_map_count` a thread that starts would abort the process, so
//! the limit is computed beforehand.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::client::refuser;

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
pub struct Capacity {
    pub connections: usize,
    /// The setting that allows no more, as the system calls it.
    pub bound: &'static str,
}

/// Raises the soft limit on descriptors to the hard one, and computes, for services at so many
/// addresses.
pub fn measure(service_addresses: usize) -> Capacity {
    let spare = SPARE_DESCRIPTORS + service_addresses * PER_SERVICE_ADDRESS;
    let bounds = [
        ("RLIMIT_NOFILE", descriptors().saturating_sub(spare)),
        (
            "vm.max_map_count",
            share(
                "/proc/sys/vm/max_map_count",
                SPARE_MAPPINGS,
                MAPPINGS_PER_CONNECTION,
            ),
        ),
        (
            "kernel.pid_max",
            share(
                "/proc/sys/kernel/pid_max",
                SPARE_THREADS,
                THREADS_PER_CONNECTION,
            ),
        ),
        (
            "kernel.threads-max",
            share(
                "/proc/sys/kernel/threads-max",
                SPARE_THREADS,
                THREADS_PER_CONNECTION,
            ),
        ),
        (
            "the cgroup's pids.max",
            share(
                "/sys/fs/cgroup/pids.max",
                SPARE_THREADS,
                THREADS_PER_CONNECTION,
            ),
        ),
        (
            "RLIMIT_NPROC",
            limit(Resource::Nproc).saturating_sub(SPARE_THREADS) / THREADS_PER_CONNECTION,
        ),
    ];
    let [mut least, others @ ..] = bounds;
    for bound in others {
        if bound.1 < least.1 {
            least = bound;
        }
    }
    Capacity {
        connections: least.1.max(1),
        bound: least.0,
    }
}

fn descriptors() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Refused only where the hard limit changed this very moment; the soft one holds then.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
    limit(Resource::Nofile)
}

fn limit(resource: Resource) -> usize {
    getrlimit(resource).current.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// What a kernel setting leaves for connections that take `each` of it; one that is not there, or
/// says "max", leaves any number.
fn share(setting: &str, spare: usize, each: usize) -> usize {
    let value = fs::read_to_string(setting)
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok());
    value.map_or(usize::MAX, |value| value.saturating_sub(spare) / each)
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
