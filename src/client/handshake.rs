//! From a request head to an authenticated user: every check that comes before the upgrade, in the
//! order in which a client is told of them.

use super::Context;
use super::socket::accept_key;
use super::token::{self, Identity, TokenError};
use super::transport::Socket;
use crate::error::ErrorCode;
use crate::http::{self, Head, HttpResponse, Page};
use crate::logging::log_limited;

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
    let missing = "Missing token: send `Authorization: Bearer TOKEN` or `?token=TOKEN`";
    let token = token(head)?.ok_or_else(|| HttpResponse::unauthorized(missing))?;
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
    let accept = accept_key(key);
    Ok(Accepted {
        identity,
        token,
        switching: format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
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

/// `Authorization: Bearer T` (RFC 6750, section 2.1), else the query parameter `token`.
fn token(head: &Head<'_>) -> http::Result<Option<String>> {
    let bearer = head.bearer_token()?.map(str::to_owned);
    let token = bearer.or_else(|| {
        let mut parameters = form_urlencoded::parse(head.query.as_bytes());
        let token = parameters.find(|(name, _)| name == "token");
        token.map(|(_, token)| token.into_owned())
    });
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
    fn an_origin_is_matched_whole() {
        let allowed = ["https://chat.example.com".to_owned()];
        let check = |fields: &str| check_origin(&head(fields), &allowed).is_ok();
        assert!(check("Origin: https://chat.example.com\r\n"));
        assert!(check(""));
        assert!(!check("Origin: https://chat.example.com.evil.org\r\n"));
        assert!(!check("Origin: http://chat.example.com\r\n"));
        assert!(!check("Origin: null\r\n"));
    }
}
