//! The chapters: what is longer than a comment and belongs beside the code. Each is a file of
//! `src/docs/`, read there or in `cargo doc --document-private-items`.

#[doc = include_str!("docs/looking_inside.md")]
pub mod looking_inside {}
