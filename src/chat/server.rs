//! Where the gateway is: the URL that was given, in parts.

use std::fmt;

use url::Url;

use crate::error::ensure;

/// A `ws://` or `wss://` URL without anything secret in it.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub url: Url,
    /// A name or an address, an IPv6 address in brackets.
    pub host: String,
    pub port: u16,
    pub is_tls: bool,
}

impl Server {
    /// An error is the reason, which never repeats the URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = "must be of the form ws[s]://host:port/path";
        Self::read(text).map_err(|reason| format!("{reason}: {form}"))
    }

    fn read(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        let is_tls = url.scheme() == "wss";
        ensure(is_tls || url.scheme() == "ws", "unsupported scheme")?;
        let tls_or_not = cfg!(feature = "tls") || !is_tls;
        ensure(tls_or_not, "this binary was built without TLS")?;
        let is_anonymous = url.username().is_empty() && url.password().is_none();
        let has_token = url.query_pairs().any(|(name, _)| name == "token");
        let elsewhere = "a token belongs into --token or the environment, where no log shows it";
        ensure(is_anonymous && !has_token, elsewhere)?;
        ensure(url.fragment().is_none(), "unsupported fragment")?;
        let host = url.host_str().unwrap_or_default().to_owned();
        ensure(!host.is_empty(), "no host")?;
        let port = url.port_or_known_default().ok_or("no port")?;
        Ok(Self {
            url,
            host,
            port,
            is_tls,
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let server = Server::parse("ws://[::1]:8080/ws").expect("a URL");
        assert_eq!((server.host.as_str(), server.port), ("[::1]", 8080));
        assert!(!server.is_tls);
        let server = Server::parse("ws://chat.example.com/ws").expect("a URL");
        assert_eq!(server.port, 80);
        #[cfg(feature = "tls")]
        {
            let server = Server::parse("wss://chat.example.com/ws").expect("a URL");
            assert_eq!((server.port, server.is_tls), (443, true));
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_and_not_repeated() {
        for text in [
            "",
            "127.0.0.1:8080",
            "http://127.0.0.1:8080/ws",
            "ws://",
            "ws://s3cret@host/ws",
            "ws://a:s3cret@host/ws",
            "ws://host/ws?token=s3cret",
            "ws://host/ws#s3cret",
        ] {
            let error = Server::parse(text).expect_err(text);
            assert!(error.contains("ws[s]://host:port/path"), "{text}: {error}");
            assert!(!error.contains("s3cret"), "{text}: {error}");
        }
    }
}
