//! The admin listener: what an operator asks a running gateway (DESIGN.md, section 7). An edge: it
//! looks at the gateway through what `gateway.rs` hands it, and nothing in the core knows it.
//!
//! A request comes in at the [`listener`], which has threads and limits of its own; [`guard`] says who
//! may ask; [`console`] answers. [`history`] and [`measured`] are decorators, of the
//! [`ConnectionObserver`](crate::client::ConnectionObserver) and of
//! [`Services`](crate::services::Services): they note what [`scrape`] and the console show.

pub mod console;
mod guard;
pub mod history;
pub mod listener;
pub mod measured;
mod scrape;
