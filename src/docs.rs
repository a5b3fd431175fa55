//! The chapters: what is longer than a comment and belongs beside the code. Each is a file of
//! `src/docs/`, read there or in `cargo doc --document-private-items`.

#[doc = include_str!("docs/tour.md")]
pub mod tour {}

#[doc = include_str!("docs/sketch.md")]
pub mod sketch {}

#[doc = include_str!("docs/protocol.md")]
pub mod protocol {}

#[doc = include_str!("docs/threads.md")]
pub mod threads {}

#[doc = include_str!("docs/looking_inside.md")]
pub mod looking_inside {}

#[doc = include_str!("docs/figures.md")]
pub mod figures {}

#[doc = include_str!("docs/operating.md")]
pub mod operating {}
