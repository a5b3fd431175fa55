//! What `ws-gateway check` has to say of a configuration that is valid: [what is in force](display()),
//! [what is risky](warnings()), and with `--connect` whether [what it names is there](connect()).

mod broker;
#[cfg(feature = "tls")]
mod certificate;
mod connect;
#[cfg(feature = "discovery")]
mod etcd;
mod report;
mod services;
mod shown;
mod system;
mod warnings;

pub use self::connect::connect;
pub use self::report::Report;
pub use self::shown::display;
pub use self::warnings::{Warning, warnings};
