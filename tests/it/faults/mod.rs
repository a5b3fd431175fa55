//! The faults, and what each must show: committed means pushed, at the latest on the next connect.

/// The broker dies, stalls, is in alarm, or forgets.
mod broker;
