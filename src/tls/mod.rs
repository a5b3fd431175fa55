//! TLS on the client listener: the second implementation of the transport seam, [`socket`], with the
//! certificate that [`certificate`] reads and [`reload`] reads again.

pub mod certificate;
mod reload;
mod socket;
#[cfg(test)]
mod tests;

pub use reload::{Tls, read};
