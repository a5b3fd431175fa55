//! The integration tests: the built binary as processes, a real RabbitMQ, real sockets.

/// What the tests stand on.
mod support;

/// What users do with one another: called by the two below.
mod chat;
/// On one gateway with the services inside it.
mod embedded;
/// On the sketch that the gateway started from, and what that loses.
mod naive;
/// Across two gateways, with RabbitMQ and the services as processes.
mod remote;

/// What comes back from a service's address and is no answer of the service's.
mod proxies;

/// Bodies that do not parse, and other strange publications.
mod dead_letters;
/// Keys, properties and headers that no string of Rust can hold.
mod hostile_publishers;

/// Unread messages and the fall back to them; revocations that nobody hears.
mod inbox;

/// Who is idle, and who only seems to be.
mod liveness;

/// Every close code.
mod close_codes;
/// RFC 6455 to the letter: the Autobahn suite, and what decides in it byte by byte.
mod conformance;
/// Every error code of the protocol.
mod error_codes;
/// Who gets a place for a handshake when there are not enough.
mod handshakes;
/// Every HTTP status before the upgrade.
mod http_errors;
/// Tokens and origins that let nobody in; and what is another's stays theirs.
mod who_gets_in;

/// What tries clients, and what it finds.
#[cfg(feature = "conform")]
mod conform;
/// The two clients that the chapter on the protocol shows, under faults.
mod example_clients;
/// What that chapter says, compared with what a gateway does.
mod protocol_chapter;

/// Registered in etcd, and services found there, whatever becomes of it.
#[cfg(feature = "discovery")]
mod discovery;

/// TLS towards the broker and the services.
#[cfg(feature = "tls")]
mod outward_tls;

/// `top`, `gdb`, `/proc` and `strace`, as the chapter shows them.
mod looking_inside;

/// What an operator asks of a running gateway.
mod admin;
/// Pages of other sites, in the browser of an operator.
mod foreign_pages;
/// Its page, in a browser.
mod live_page;

/// The chat page, and what it rehearses, in a browser.
#[cfg(feature = "chat-page")]
mod chat_page;
/// What it counts.
mod metrics;

/// Whose connection it is, behind proxies and with IPv6.
mod addresses;
/// Request heads as balancers and proxies send them, and as attackers do.
mod heads;
/// Clients that would have the gateway work, or hold memory, without end.
mod hostile_clients;
/// What a proxy says of its client before the request.
#[cfg(feature = "proxy-protocol")]
mod proxy_protocol;
/// Requests that are almost JSON objects.
mod request_shapes;

/// The configuration is read the same way by `check`, by the start and on SIGHUP.
mod configuration;
/// What a newcomer is told at the start.
mod first_run;
/// What is logged, how much of it, and what never is.
mod logs;
/// What the services do when the broker refuses what they publish.
mod publishing;
/// The way out of a gateway, and who is told of it.
mod shutdown;
/// Starting, stopping, and being told nonsense.
mod start;
/// TLS on the client listener.
#[cfg(feature = "tls")]
mod tls;

/// `ws-gateway chat`, at a terminal and in pipes.
#[cfg(feature = "chat")]
mod terminal;

/// Defects that are there on purpose.
#[cfg(feature = "planted")]
mod planted;

/// What is left of a gateway that has stopped.
mod stopping;

/// What `check` warns of, and what it finds with `--connect`.
mod check;
/// Deployment files, tried with the tools that they are for.
mod recipes;

/// Who may know whom in src/.
mod architecture;
/// What others reach, and where secrets could be found.
mod exposure;
/// What the dependencies must not be, and what holds them back.
mod supply_chain;

/// Ten thousand connects leave nothing behind.
mod churn;
/// Every configuration key has a test that shows that it acts.
mod keys;
/// No log line in src/ is written under a lock.
mod locks;

/// More gateways, and what that costs.
mod scale;

/// 5,000 messages among 50 users: none lost, none out of order.
mod ledger;

/// What goes wrong, as functions of a size; the drills call the same.
mod scenarios;

/// All faults at random: the series, what makes it shorter, and who reads what was seen.
mod chaos;
/// Nothing is lost, whatever fails.
mod faults;

/// The support itself: a broker that starts, dies and returns; a backend that errs on demand.
mod stand;
