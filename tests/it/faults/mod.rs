//! The faults, and what each must show: committed means pushed, at the latest on the next connect.

/// The broker dies, stalls, is in alarm, or forgets.
mod broker;
/// Its connection is cut again and again.
mod reconnects;

/// Messages while something is on its way: a member, a route, a page, a batch.
mod connecting;
/// The same delivery, or the same acknowledgement, twice.
mod twice;
