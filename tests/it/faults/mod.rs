//! The faults, and what each must show: committed means pushed, at the latest on the next connect.

/// The broker dies, stalls, is in alarm, or forgets.
mod broker;
/// Its connection is cut again and again.
mod reconnects;

/// Services that are down, slow, or talk nonsense.
mod services;

/// A group whose members are not to be had.
mod groups;

/// A gateway that is killed or stopped.
mod gateway;
/// A panic inside one connection's handling. Release builds have no failpoint.
#[cfg(debug_assertions)]
mod panics;
/// A panic inside one of many connections that something is for.
#[cfg(debug_assertions)]
mod recipients;
/// Descriptors, threads and memory run out.
mod resources;
/// A new version is deployed behind a balancer.
mod rolling;

/// Clients that vanish, that read too slowly, that all come at once.
mod clients;
/// Messages while something is on its way: a member, a route, a page, a batch.
mod connecting;
/// The same delivery, or the same acknowledgement, twice.
mod twice;
