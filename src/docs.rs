//! The chapters: what is longer than a comment and belongs beside the code. Each is a file of
//! `src/docs/`, read there or in `cargo doc --document-private-items`.

/// The design that this project began with, what it loses, and which file mends it.
#[doc = include_str!("docs/sketch.md")]
pub mod sketch {}
