//! A synchronous WebSocket gateway for instant messaging: the map of the code.
//!
//! # What happens to a message
//!
//! ```text
//!  client ──► client/accept ► handshake ► session ─► dispatch ─► services (blocking trait ► gRPC)
//!               ▲                        (reader)
//!               │                           │ answer
//!               └────── outbox ◄────────────┴──────────── deliver ◄── broker (amqp | local bus)
//!                      (queue + writer)       registry: user ► connections
//! ```
//!
//! A client's `send_message` is read by its connection's reader thread ([`client`]: `session`,
//! `socket`), parsed (`request`) and carried to the Message Service (`dispatch`, [`services`]),
//! which commits it; the answer goes through the connection's own [outbox](client::outbox). The
//! Message Service publishes it; each gateway that holds a device of the sender or the recipient
//! gets it from its queue ([`broker`]: `consume`), and [`broker::deliver`] encodes it once and puts
//! it into the outboxes of the connections that the [`registry`] names.
//!
//! # Reading it, in three sittings
//!
//! 1. **A message's way**, an afternoon. In `client/`: `accept`, `session`, `socket`, `connection`,
//!    `outbox`, `frame`, `request`, `dispatch`, `protocol`; then [`registry`]; in `broker/`: `deliver`,
//!    `consume`; and [`services`]. These hang together without the rest.
//! 2. **Nothing is lost.** In `client/`: `gate`, `catch_up`, `writer`, `liveness`, `token`, `token_check`,
//!    `close`; in `broker/`: `source`, `routes`, `groups`, `waiting`, `supervisor`, `connection`, `topology`;
//!    and [`presence`].
//! 3. **Nothing goes to waste, and nobody gets in the way.** [`http`]; in `client/`: `admission`,
//!    `head`, `handshake`, `refuser`, `address`, `rate`, `stack`, `transport`; `threads/`; in `broker/`:
//!    `amqp/`; in `services/`: `grpc`, `upstream`, `unary`, `failure`; [`config`]; and
//!    last [`gateway`], which puts all of it together, with its `shutdown`.
//!
//! `tests/it/architecture.rs` counts the lines of the core and of the first sitting. The chapter
//! `docs/tour.md` goes through the first one by the hand; the chapters beside it tell what each part is
//! there for, what threads cost, how far it goes, how to operate it, and how to look inside while it runs.
//!
//! # Where to change what
//!
//! | to change | look at |
//! | --- | --- |
//! | a request or a push of the client protocol | `client/request.rs`, `client/protocol.rs`, `client/dispatch.rs`; then its document, `proto/client.asyncapi.yaml`, is made again: `client/schema/` |
//! | who is let in | `client/accept.rs`, `client/admission.rs`, `client/head.rs`, `client/address.rs`, `client/handshake.rs` |
//! | an HTTP answer | `http.rs`; the pages: [`gateway`]; what operators are answered: `admin/` |
//! | the chat page, and what it rehearses | `chat_page/client.js` and what is beside it, `chat_page/rehearsals.rs` (an edge) |
//! | what is counted | `metrics.rs`; what is looked up for a scrape: `admin/scrape.rs` |
//! | the way out, and what clients are told at the end | `gateway/shutdown.rs`, `drain.rs`, `client/close.rs` |
//! | the log | `logging.rs` |
//! | what a token is worth, and when it is asked about again | `client/token.rs`, `client/token_check.rs` |
//! | a close code | `client/close.rs`, and the document made again |
//! | when unread messages are pushed, and who falls back to them | `client/catch_up.rs`, `client/gate.rs` |
//! | who is idle, stuck or slow | `client/liveness.rs` |
//! | how bytes leave | `client/outbox.rs`; to many at once: `threads/fan_out.rs`; in which order threads may take turns there: `sync.rs`, `tests/loom/` |
//! | what must hold of all that comes from outside | `fuzzing.rs`, and the files of that name |
//! | how many connections the system allows | `capacity.rs` |
//! | what `/readyz` asks | `readiness.rs`, `probe.rs` |
//! | how long to wait before a next try | `backoff.rs` |
//! | ids, and errors that name a key | `ids.rs`, `error.rs` |
//! | arguments, exit codes, signals | `main.rs`, `signals.rs` |
//! | what a connection costs in memory | `client/stack.rs`, `client/socket.rs`, `client/outbox.rs` |
//! | where deliveries come from | `broker/source.rs` |
//! | a queue, an exchange, a binding | `broker/topology.rs`, `broker/routes.rs` |
//! | what of a delivery reaches amiquip | `broker/amqp/sanitize.rs` |
//! | TLS to the broker and the services, and whom it trusts | `tls/` (an edge) |
//! | whom a group's message is for | `broker/groups.rs`, `broker/waiting.rs`, `broker/deliver/group.rs` |
//! | what is published again, and when | `reference/lanes.rs`, `reference/rabbit.rs`, `broker/amqp/publish.rs` |
//! | a call to a service | `services/mod.rs`, `services/grpc.rs`; what counts as an answer, and what a failure means: `services/unary.rs`, `services/failure.rs`, `services/upstream.rs` |
//! | a key of the configuration | `config/mod.rs`, `config/validate.rs`, `gateway.toml` |
//! | what starts and stops, in which order | [`gateway`], `gateway/shutdown.rs` |
//! | what the core does without | `gateway/edges.rs` |
//! | what operators see | `admin/` (an edge) |
//! | the reference services | `reference/` (an edge: the gateway builds without it) |
//! | TLS with clients, and the certificate | `tls/` (an edge) |
//! | what is registered in etcd, and how services are found there | `discovery/` (an edge) |
//! | what `ws-gateway check` prints, warns of, and looks at with `--connect` | `check/shown.rs`, `check/warnings.rs`, `check/` (an edge) |
//! | how a proxy's header before the request is understood | `proxy_protocol.rs`, `proxy_protocol/header.rs` (an edge) |
//! | a deployment file that `ws-gateway recipe` prints | `recipes/` (an edge) |
//! | what those who write clients read, and the clients that it shows | `docs/protocol.md` |
//! | what `ws-gateway conform` plays, and asks of a client | `conform/rules.rs`, `conform/script.rs`, `conform/returns.rs` (an edge) |
//! | what the design began with, and what each part is there for | `docs/sketch.md`, `tests/naive/` |
//! | what `ws-gateway chat` sends, shows and waits for | `chat/session.rs` and what is beside it, `chat/screen.rs`; at which end it comes back: `chat/close.rs` (an edge) |
//! | what a newcomer is told at the start, and where it cannot start | `first_run.rs` |
//! | a defect that checkers of gateways are tried with | `planted/` (an edge, and a feature for tests) |
//! | a fault of a drill; a fault or a sentence of chaos | `tests/it/scenarios/`; `tests/it/chaos/` |
//! | what is measured, and beside what | `tests/bench/scenarios/`, `tests/bench/peer/`, `tests/bench/installed/` |
//!
//! # The threads
//!
//! | thread | does |
//! | --- | --- |
//! | `r-<connection>` | a connection's life from its first byte: head, token, frames, requests |
//! | `w-<connection>` | writes when the socket is full; pings, timeouts, catch-up, goodbye |
//! | `accept`, `refuser` | takes connections; answers those for which there is no room |
//! | `consume-single`, `-group`, `-presence` | one for each queue: deliver, acknowledge |
//! | `fan-out-<n>` | write to a large group's members beside the consumer; one for each further core, at most 3 |
//! | `broker`, `routes` | keeps the broker connection; binds and unbinds users |
//! | `amqp-open`, `amqp-close` | one at a time, for what may hang: look the broker up and connect, take leave |
//! | `presence` | tells the Presence Service who is here, renews the lease |
//! | `probe` | asks the services whether they are in reach, for `/readyz` |
//! | `grpc` | the tokio runtime that carries the calls; nobody else knows async |
//! | `etcd` | keeps this gateway registered in etcd, and follows the services' addresses there |
//! | `admin`, `admin-request` | takes operators' connections; one for each of these |
//! | `tls-reload`, `tls-handshake-<n>` | reads the certificate again; compute handshakes, one for each core |
//! | `ref-store`, `ref-publisher`, `reference` | the reference services, where they run |
//! | `signals` | signals as messages to the main thread |
//! | `chat-input`, `chat-connect` | of `ws-gateway chat`, whose main thread owns the connection: edits lines; looks up and connects |
//!
//! # Invariants
//!
//! - Only the holder of a connection's write side writes to its socket.
//! - No lock is held across I/O or a service call, the write side's own apart.
//! - Delivering never blocks on a client, and wakes no connection's thread unless its socket is full.
//! - What comes to one connection comes in its queue's order: a consumer goes on once all the threads
//!   that write a group's message have written it.
//! - Every queue is bounded. A chat message that finds no room makes the connection fall back to its
//!   inbox, from which it comes at the client's pace; it is never dropped silently.
//! - A delivery is acknowledged after it is in the queues of all local recipients, by the thread
//!   that received it; or when it waits for its group's members, where what is lost is left to
//!   catch-up.
//! - Nothing that a publisher writes, and nothing that a service or a proxy answers, ends more than
//!   itself.
//! - Every thread has a name and is joined; apart from one closer of a stalled broker connection, and
//!   from one look-up of its name to which the system still owes the answer when the process ends; and
//!   from a `chat-connect` that still tries.
//! - A panic ends one connection, and no more; in a thread that serves everybody it has the thread
//!   run again, or the process end with an error (`threads/mod.rs`).
//! - No log line is written under a lock (`tests/it/locks.rs`).
//! - No arrow runs upwards: from the bottom, what everyone may use, `services`, `client`, `capacity`, `probe` and `registry`,
//!   `broker` and `presence`, `reference`, `admin`, `discovery`, `planted`, `proxy_protocol` and
//!   `tls`, `chat`, `chat_page` and `conform`, `check`, `gateway` and `recipes`, `main`. No circle among files. A client's socket is a `client/transport.rs`, and
//!   what connects and disconnects is told to one `ConnectionObserver`.
//! - `client` and `broker` meet in the registry and in a connection's `push`; neither knows how the
//!   other works. tungstenite is named in `client/socket.rs` alone, and by `chat`, which is a client, and
//!   `conform`, which plays a gateway for somebody else's; amiquip in `broker/amqp`, rustls in `tls`,
//!   tonic and tokio in `services`, `discovery`, `reference` and `tls/services.rs`.
//!   `tests/it/architecture.rs` holds the code to this.

#[cfg(feature = "admin")]
mod admin;
mod backoff;
pub mod broker;
pub mod capacity;
#[cfg(feature = "chat")]
pub mod chat;
#[cfg(feature = "chat-page")]
mod chat_page;
#[cfg(feature = "check")]
pub mod check;
pub mod client;
pub mod config;
#[cfg(feature = "conform")]
pub mod conform;
#[cfg(feature = "discovery")]
pub mod discovery;
#[cfg(doc)]
pub mod docs;
pub mod drain;
pub mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod gateway;
pub mod http;
pub mod ids;
pub mod logging;
pub mod metrics;
#[cfg(feature = "planted")]
mod planted;
pub mod presence;
pub mod probe;
#[cfg(feature = "proxy-protocol")]
pub mod proxy_protocol;
pub mod readiness;
#[cfg(feature = "recipes")]
pub mod recipes;
#[cfg(feature = "reference")]
pub mod reference;
pub mod registry;
pub mod services;
mod sync;
pub mod threads;
#[cfg(feature = "tls")]
pub mod tls;
