//! Where the broker is and who we are there, read from `broker.url`. Its password is shown nowhere.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use url::Url;

use super::forms::{WITHOUT_TLS, is_host};
use crate::error::ensure;

/// An AMQP short string.
const MAX_VHOST: usize = 255;

/// A parsed `amqp://user:password@host:port/vhost`, or `amqps` for TLS. It has no `Debug`, so that
/// nothing shows it.
#[derive(Clone)]
pub struct Endpoint {
    pub is_tls: bool,
    /// A name or an address, an IPv6 address in brackets.
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: String,
    pub vhost: String,
}

impl Endpoint {
    /// User and password default to `guest`, the port to 5672, with TLS to 5671, the vhost to `/`; all
    /// but host and port may be percent-encoded (a vhost `/` is written `%2f`). An error is the reason,
    /// which never repeats the URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = "must be of the form amqp[s]://user:password@host:port/vhost";
        Self::read(text).map_err(|reason| format!("{reason}: {form}"))
    }

    fn read(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        let host = url.host_str().unwrap_or_default();
        let has_parameters = url.query().or(url.fragment()).is_some();
        let is_tls = url.scheme() == "amqps";
        ensure(is_tls || url.scheme() == "amqp", "unsupported scheme")?;
        ensure(cfg!(feature = "tls") || !is_tls, WITHOUT_TLS)?;
        ensure(!has_parameters, "unsupported parameter")?;
        ensure(!host.is_empty(), "no host")?;
        ensure(is_host(host), "the host is neither a name nor an address")?;
        let path = url.path().strip_prefix('/').unwrap_or_default();
        ensure(!path.contains('/'), "a / in the vhost is written %2f")?;
        let vhost = decode(path, "/")?;
        let fits = vhost.len() <= MAX_VHOST;
        ensure(fits, "the vhost is longer than 255 bytes")?;
        let user = decode(url.username(), "guest")?;
        let password = decode(url.password().unwrap_or("guest"), "")?;
        let has_nul = user.contains('\0') || password.contains('\0');
        ensure(!has_nul, "user and password hold no NUL")?;
        Ok(Self {
            is_tls,
            host: host.into(),
            port: url.port().unwrap_or(if is_tls { 5671 } else { 5672 }),
            user,
            password,
            vhost,
        })
    }

    /// `host:port`, for the resolver and for logs.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// What is percent-encoded in `text`; or `default`, if that is empty.
fn decode(text: &str, default: &str) -> Result<String, String> {
    let text = if text.is_empty() { default } else { text };
    let decoded = percent_decode_str(text).decode_utf8().map(Cow::into_owned);
    decoded.map_err(|_| "a percent-encoded part is not UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_are_read_and_decoded() {
        let endpoint = Endpoint::parse("amqp://al%40ice:p%2fw+1@mq.example:5673/im%2fa").unwrap();
        assert_eq!(endpoint.address(), "mq.example:5673");
        assert_eq!(
            (endpoint.user.as_str(), endpoint.password.as_str()),
            ("al@ice", "p/w+1")
        );
        assert_eq!(endpoint.vhost, "im/a");
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        for text in [
            "amqp://localhost",
            "amqp://localhost/",
            "amqp://localhost/%2f",
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(endpoint.address(), "localhost:5672");
            assert_eq!(
                (endpoint.user.as_str(), endpoint.password.as_str()),
                ("guest", "guest")
            );
            assert_eq!(endpoint.vhost, "/", "{text}");
        }
        assert_eq!(
            Endpoint::parse("amqp://[::1]:1/").unwrap().address(),
            "[::1]:1"
        );
        let secure = Endpoint::parse("amqps://localhost");
        if cfg!(feature = "tls") {
            assert_eq!(secure.unwrap().address(), "localhost:5671");
        } else {
            let error = secure.err().unwrap();
            assert!(error.contains("feature tls"), "{error}");
        }
    }

    #[test]
    fn a_bad_url_is_refused_without_repeating_it() {
        let long = format!("amqp://u:hush@h/{}", "v".repeat(256));
        for text in [
            "",
            "hush",
            "amqp:",
            "amqp:hush",
            "amqp:/",
            "amqp://",
            "amqp:///v",
            "amqp://u:hush@",
            "amqp://u:hush@/",
            "amqp://u:hush@:5672/",
            "amqp://u:hush@h:x/",
            "amqp://u:hush@h:70000/",
            "amqp://u:hush@h:-1/",
            "amqp://u:hush@h:1:2/",
            "amqp://u:hush@[::1",
            "amqp://u:hush@[::g]/",
            "amqp://u:hush@a b/",
            "amqp://u:hush@a%20b/",
            "amqp://u:hush@a,b/",
            "amqp://u:hush@h/a/b",
            "amqp://u:hush@h/%ff",
            "amqp://u:%ff@h/",
            "amqp://u:hush%00@h/",
            "amqp://u:hush@h/?heartbeat=5",
            "amqp://u:hush@h?heartbeat=5",
            "amqp://u:hush@h/#hush",
            "amqpss://u:hush@h",
            "http://u:hush@h",
            "http://[::1",
            &long,
        ] {
            let error = Endpoint::parse(text).err().expect(text);
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
