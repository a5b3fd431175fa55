//! The chapters: what is longer than a comment and belongs beside the code. Each is a file of
//! `src/docs/`, read there or in `cargo doc --document-private-items`, for which `build.rs` has links to
//! files lead to their source pages.

macro_rules! chapters {
    ($($name:ident)*) => {
        $(
            #[doc = include_str!(concat!(env!("OUT_DIR"), "/docs/", stringify!($name), ".md"))]
            pub mod $name {}
        )*
    };
}

chapters! { tour sketch protocol threads looking_inside figures scale operating }
