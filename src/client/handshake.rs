//! From a request head to an authenticated user: every check that comes before the upgrade, in the
//! order in which a client is told of them.

use super::Context;
use super::socket::accept_key;
use super::token::{self, Identity, TokenError};
use super::transport::Socket;
use crate::error::ErrorCode;
use crate::http::{self, Head, HttpResponse, Page};
use crate::logging::log_limited;

/// The subprotocol (RFC 6455, section 1.9) that is spoken here, and the only one that is ever chosen.
const PROTOCOL: &str = "im.v1";

/// Who a client is, and what to say to its upgrade request.
pub(super) struct Accepted {
    pub identity: Identity,
    pub token: String,
    /// The answer 101, to be sent before the first frame.
    pub switching: String,
}

/// Validates an upgrade request: header fields, Origin, token. The limits come after it.
pub(super) fn validate_upgrade(
    head: &Head<'_>,
    socket: &Socket,
    context: &Context,
) -> http::Result<Accepted> {
    let key = head.websocket_key()?;
    check_origin(head, &context.config.listen.allowed_origins)?;
    let missing = "Missing token: send `Authorization: Bearer TOKEN`, or offer the protocols `im.v1` and \
         `base64url.bearer.` with TOKEN in base64url, or send `?token=TOKEN`";
    let token = token(head)?.ok_or_else(|| HttpResponse::unauthorized(missing))?;
    let offered = head.items("Sec-WebSocket-Protocol")?;
    let chosen = offered.iter().find(|protocol| **protocol == PROTOCOL);
    let chosen = chosen.map(|protocol| format!("Sec-WebSocket-Protocol: {protocol}\r\n"));
    let identity = token::validate(&*context.services, &token).map_err(|error| match error {
        TokenError::Refused(_) => HttpResponse::unauthorized("Invalid token"),
        TokenError::Expired => HttpResponse::unauthorized("The token has expired"),
        TokenError::Unavailable(error) => {
            log_limited!(warn, "Token not validated: error={error}");
            HttpResponse::unavailable("user_service_away", "The User Service is not available")
        }
    })?;
    if socket.has_bytes() {
        return Err(HttpResponse::too_early());
    }
    let (accept, protocol) = (accept_key(key), chosen.unwrap_or_default());
    Ok(Accepted {
        identity,
        token,
        switching: format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n"
        ),
    })
}

/// Answers what is no request for the WebSocket with a page, or an error.
pub(super) fn expect_upgrade(head: &Head<'_>, context: &Context) -> http::Result<()> {
    let path = &context.config.listen.path;
    if head.path != path {
        let missing = format!("Nothing here; the WebSocket is at {path}");
        return Err(Page::respond(&context.pages, head, &missing));
    }
    match head.method {
        "GET" => Ok(()),
        "HEAD" => Err(HttpResponse::wrong_method("GET").without_body()),
        _ => Err(HttpResponse::wrong_method("GET")),
    }
}

/// Exact scheme, host and port, when origins are configured. Programs, which send no Origin, pass:
/// the check is there to keep other sites' pages from using a visitor's address.
fn check_origin(head: &Head<'_>, allowed: &[String]) -> http::Result<()> {
    let origin = head.header("Origin")?;
    let is_origin = |other: &String| origin.is_some_and(|own| other.eq_ignore_ascii_case(own));
    if origin.is_none() || allowed.is_empty() || allowed.iter().any(is_origin) {
        return Ok(());
    }
    let code = ErrorCode::PermissionDenied;
    Err(HttpResponse::error(403, code, "Origin is not allowed").because("forbidden_origin"))
}

/// `Authorization: Bearer T` (RFC 6750, section 2.1), else the subprotocol, else the query parameter
/// `token`.
fn token(head: &Head<'_>) -> http::Result<Option<String>> {
    let token = match head.bearer_token()? {
        Some(token) => Some(token.to_owned()),
        None => head.bearer_protocol()?.or_else(|| head.parameter("token")),
    };
    Ok(token.filter(|token| !token.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::parse_head;

    fn head(fields: &str) -> Head<'static> {
        let text = format!("GET /ws?x=1&token=q%20t HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        parse_head(text.leak().as_bytes())
            .expect("no error")
            .expect("complete")
    }

    #[test]
    fn a_bearer_token_comes_before_the_query() {
        let token = |fields: &str| token(&head(fields)).expect("one at most");
        assert_eq!(
            token("Authorization: bearer  abc\r\n").as_deref(),
            Some("abc")
        );
        assert_eq!(
            token("Authorization: Basic abc\r\n").as_deref(),
            Some("q t")
        );
        assert_eq!(token("Authorization: Bearer \r\n").as_deref(), Some("q t"));
    }

    #[test]
    fn a_token_that_is_offered_comes_between_them() {
        let offered = "Sec-WebSocket-Protocol: im.v1, base64url.bearer.b2ZmZXJlZA\r\n";
        let token = |fields: &str| token(&head(fields));
        let found = |fields: &str| token(fields).expect("no error");
        assert_eq!(found(offered).as_deref(), Some("offered"));
        let both = format!("Authorization: Bearer abc\r\n{offered}");
        assert_eq!(found(&both).as_deref(), Some("abc"));
        let other = "Sec-WebSocket-Protocol: im.v1, chat\r\n";
        assert_eq!(found(other).as_deref(), Some("q t"));
        // Not the query's instead: whoever offers one means it.
        let empty = "Sec-WebSocket-Protocol: base64url.bearer.\r\n";
        assert_eq!(found(empty), None);
        let broken = "Sec-WebSocket-Protocol: base64url.bearer.b2ZmZXJlZA==\r\n";
        assert_eq!(token(broken).expect_err("padded").status(), 400);
    }

    #[test]
    fn an_origin_is_matched_whole() {
        let allowed = [
            "https://good.example",
            "http://localhost:3000",
            "app://chat",
            "http://[::1]:80",
        ];
        let allowed = allowed.map(str::to_owned);
        let check = |fields: &str| check_origin(&head(fields), &allowed).map_err(|it| it.status());
        let passes = |origin: &str| check(&format!("Origin: {origin}\r\n")) == Ok(());
        assert_eq!(check(""), Ok(()), "a program");
        for origin in [
            "https://good.example",
            "HTTPS://Good.Example",
            "http://localhost:3000",
            "app://chat",
        ] {
            assert!(passes(origin), "{origin}");
        }
        for origin in [
            "",
            "null",
            "*",
            "file://",
            "good.example",
            "//good.example",
            "http://good.example",
            "wss://good.example",
            "https://good.example:443",
            "https://good.example:8443",
            "https://good.example:",
            "https://good.example/",
            "https://good.example.",
            "https://good.example.evil.example",
            "https://evil.example/https://good.example",
            "https://good.example@evil.example",
            "https://evil-good.example",
            "https://evil.good.example",
            "https://good.example https://evil.example",
            "https://evil.example, https://good.example",
            "https://good.exampIe",
            "https://g00d.example",
            "https://xn--god-jua.example",
            "http://localhost",
            "http://localhost:30000",
            "http://localhost:3000:3000",
            "http://127.0.0.1:3000",
            "http://[0:0::1]:80",
            "app://chat.",
        ] {
            assert!(!passes(origin), "{origin}");
        }
        // Greek omicron, Cyrillic o, a width of its own, and bytes that are no text.
        for host in [
            "g\u{3bf}od.example",
            "g\u{43e}od.example",
            "good\u{ff0e}example",
            "good.example\u{200b}",
        ] {
            assert!(!passes(&format!("https://{host}")), "{host}");
        }
        let twice = "Origin: https://good.example\r\nOrigin: https://evil.example\r\n";
        assert_eq!(check(twice), Err(400));
    }
}
