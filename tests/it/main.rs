//! The integration tests: the built binary as processes, a real RabbitMQ, real sockets.

/// What the tests stand on.
mod support;

/// What users do with one another: called by the two below.
mod chat;
/// On one gateway with the services inside it.
mod embedded;
/// Across two gateways, with RabbitMQ and the services as processes.
mod remote;

/// Bodies that do not parse, and other strange publications.
mod dead_letters;

/// Every close code.
mod close_codes;
/// Every error code of the protocol.
mod error_codes;
/// Who gets a place for a handshake when there are not enough.
mod handshakes;
/// Every HTTP status before the upgrade.
mod http_errors;

/// Starting, stopping, and being told nonsense.
mod start;
/// What is left of a gateway that has stopped.
mod stopping;

/// Who may know whom in src/.
mod architecture;
/// Ten thousand connects leave nothing behind.
mod churn;
/// Configuration keys that no other test shows to act.
mod keys;
/// No log line in src/ is written under a lock.
mod locks;

/// 5,000 messages among 50 users: none lost, none out of order.
mod ledger;

/// What goes wrong, as functions of a size; the drills call the same.
mod scenarios;

/// Nothing is lost, whatever fails.
mod faults;

/// The support itself: a broker that starts, dies and returns; a backend that errs on demand.
mod stand;
