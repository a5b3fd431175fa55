//! The integration tests: the built binary as processes, a real RabbitMQ, real sockets.

/// What the tests stand on.
mod support;

/// The support itself: a broker that starts, dies and returns; a backend that errs on demand.
mod stand;
