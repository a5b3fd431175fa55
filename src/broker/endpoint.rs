//! Where the broker is and who we are there, read from `broker.url`. Its password is shown nowhere.

use std::fmt;

use percent_encoding::percent_decode_str;
use url::Url;

const DEFAULT_PORT: u16 = 5672;

/// A parsed `amqp://user:password@host:port/vhost`.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address, an IPv6 address in brackets.
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: String,
    pub vhost: String,
}

/// `broker.url` is no AMQP URL. The text never repeats the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidUrl(pub String);

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: must be of the form amqp://user:password@host:port/vhost",
            self.0
        )
    }
}

impl std::error::Error for InvalidUrl {}

impl Endpoint {
    /// User and password default to `guest`, the port to 5672, the vhost to `/`; all but host and
    /// port may be percent-encoded (a vhost `/` is written `%2f`).
    pub fn parse(text: &str) -> Result<Self, InvalidUrl> {
        let invalid = |reason: &str| InvalidUrl(reason.into());
        let url = Url::parse(text).map_err(|error| InvalidUrl(error.to_string()))?;
        if url.scheme() != "amqp" {
            return Err(invalid("unsupported scheme"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("unsupported parameter"));
        }
        let host = url.host_str().filter(|host| !host.is_empty());
        let vhost = match url.path().strip_prefix('/').unwrap_or_default() {
            "" => "/".into(),
            path if path.contains('/') => return Err(invalid("a / in the vhost is written %2f")),
            path => decode(path)?,
        };
        Ok(Self {
            host: host.ok_or_else(|| invalid("no host"))?.into(),
            port: url.port().unwrap_or(DEFAULT_PORT),
            user: if url.username().is_empty() {
                "guest".into()
            } else {
                decode(url.username())?
            },
            password: url.password().map_or(Ok("guest".into()), decode)?,
            vhost,
        })
    }

    /// `host:port`, for the resolver and for logs.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

fn decode(text: &str) -> Result<String, InvalidUrl> {
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(InvalidUrl("a percent-encoded part is not UTF-8".into())),
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({})", self.address())
    }
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
    }

    #[test]
    fn a_bad_url_is_refused_without_repeating_it() {
        let bad = [
            "",
            "amqp://",
            "http://u:hush@h",
            "amqp://u:hush@h/a/b",
            "amqp://u:hush@h:x/",
        ];
        for text in bad
            .into_iter()
            .chain(["amqps://u:hush@h", "amqp://u:hush@h/?heartbeat=0"])
        {
            let error = Endpoint::parse(text).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
        let endpoint = Endpoint::parse("amqp://u:hush@h").unwrap();
        assert!(!format!("{endpoint:?}").contains("hush"));
    }
}
