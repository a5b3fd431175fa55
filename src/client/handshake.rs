//! From a request head to an authenticated user: every check that comes before the upgrade, in the
//! order in which a client is told of them.

use std::net::TcpStream;

use log::warn;

use super::Context;
use super::answer::Answer;
use super::head::Head;
use super::kernel::has_bytes;
use super::socket::accept_key;
use super::token::{self, Identity, TokenError};
use crate::ids::UserId;
use crate::services::ErrorCode;

/// Who a client is, and what to say to its upgrade request.
pub(super) struct Accepted {
    pub user: UserId,
    /// When the token expires, in Unix seconds; 0 means never.
    pub expires_at: i64,
    pub token: String,
    /// The answer 101, to be sent before the first frame.
    pub switching: String,
}

/// Judges an upgrade request: header fields, Origin, token. The limits come after it.
pub(super) fn judge(
    head: &Head<'_>,
    socket: &TcpStream,
    context: &Context,
) -> Result<Accepted, Answer> {
    let key = upgrade_key(head)?;
    check_origin(head, &context.config.listen.allowed_origins)?;
    let (identity, token) = authenticate(head, context)?;
    if has_bytes(socket) {
        return Err(too_early());
    }
    let accept = accept_key(key);
    Ok(Accepted {
        user: identity.user,
        expires_at: identity.expires_at,
        token,
        switching: format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        ),
    })
}

/// The answer to what is no request for the WebSocket: a page, or an error.
pub(super) fn page(head: &Head<'_>, context: &Context) -> Option<Answer> {
    let is_websocket = head.path == context.config.listen.path;
    let methods = if is_websocket {
        "GET"
    } else {
        "GET, HEAD, OPTIONS"
    };
    let answer = if methods.split(", ").all(|method| method != head.method) {
        Answer::wrong_method(methods)
    } else if is_websocket {
        return None;
    } else {
        page_at(head, context)
    };
    Some(match head.method {
        "HEAD" => answer.without_body(),
        "OPTIONS" if !answer.is_refusal() => Answer::options(answer.status(), methods),
        _ => answer,
    })
}

fn page_at(head: &Head<'_>, context: &Context) -> Answer {
    match head.path {
        "/healthz" => Answer::page(200, "text/plain", "ok\n"),
        "/readyz" => {
            let readiness = context.readiness.check();
            let status = if readiness.is_ready() { 200 } else { 503 };
            Answer::page(status, "application/json", readiness.to_json())
        }
        "/" if let Some(page) = &context.page => {
            Answer::page(200, "text/html; charset=utf-8", page.as_str())
        }
        // The server as a whole: HAProxy's check, unless it is told of another one.
        "/" | "*" if head.method == "OPTIONS" => Answer::page(200, "text/plain", ""),
        _ => {
            let message = format!(
                "Nothing here; the WebSocket is at {}",
                context.config.listen.path
            );
            Answer::error(404, ErrorCode::NotFound, &message)
        }
    }
}

/// The client's key, if it asks for WebSocket version 13 (RFC 6455, section 4.2.1).
fn upgrade_key<'b>(head: &Head<'b>) -> Result<&'b str, Answer> {
    if head.is_followed {
        return Err(too_early());
    }
    let upgrade = head.lists("Upgrade", "websocket")? && head.lists("Connection", "Upgrade")?;
    let version = head.header("Sec-WebSocket-Version")?;
    if head.is_http_1_0 || !upgrade || version != Some("13") {
        let message =
            "This is a WebSocket, version 13: send HTTP/1.1 and the upgrade header fields";
        return Err(Answer::error(426, ErrorCode::InvalidMessage, message));
    }
    let key = head.header("Sec-WebSocket-Key")?.unwrap_or_default();
    // 16 bytes in base64.
    let valid = key.len() == 24
        && key.ends_with("==")
        && key[..22]
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    if valid {
        Ok(key)
    } else {
        Err(Answer::bad_request(
            "Sec-WebSocket-Key: not 16 bytes in base64",
        ))
    }
}

/// A client has to wait for the answer (RFC 6455, section 4.1): what comes before it may have been
/// taken for another request by a proxy.
fn too_early() -> Answer {
    Answer::bad_request("Nothing may follow the request head before the upgrade is answered")
}

/// Exact scheme, host and port, when origins are configured. Programs, which send no Origin, pass:
/// the check is there to keep other sites' pages from using a visitor's address.
fn check_origin(head: &Head<'_>, allowed: &[String]) -> Result<(), Answer> {
    let Some(origin) = head.header("Origin")? else {
        return Ok(());
    };
    if allowed.is_empty()
        || allowed
            .iter()
            .any(|other| other.eq_ignore_ascii_case(origin))
    {
        return Ok(());
    }
    Err(Answer::error(
        403,
        ErrorCode::PermissionDenied,
        "Origin is not allowed",
    ))
}

fn authenticate(head: &Head<'_>, context: &Context) -> Result<(Identity, String), Answer> {
    let unauthorized = |message: &str| Answer::error(401, ErrorCode::Unauthenticated, message);
    let token = token(head)?.ok_or_else(|| {
        unauthorized("Missing token: send `Authorization: Bearer TOKEN` or `?token=TOKEN`")
    })?;
    match token::validate(&*context.services, &token) {
        Ok(identity) => Ok((identity, token)),
        Err(TokenError::Refused(_)) => Err(unauthorized("Invalid token")),
        Err(TokenError::Expired) => Err(unauthorized("The token has expired")),
        Err(TokenError::Unavailable(error)) => {
            warn!("Token not validated: error={error}");
            Err(Answer::unavailable("The User Service is not available"))
        }
    }
}

/// `Authorization: Bearer T` (RFC 6750, section 2.1), else the query parameter `token`.
fn token(head: &Head<'_>) -> Result<Option<String>, Answer> {
    if let Some(authorization) = head.header("Authorization")?
        && let Some((scheme, token)) = authorization.split_once(' ')
        && scheme.eq_ignore_ascii_case("Bearer")
    {
        return Ok(Some(token.trim().to_owned()).filter(|token| !token.is_empty()));
    }
    let mut parameters = form_urlencoded::parse(head.query.as_bytes());
    let token = parameters
        .find(|(name, _)| name == "token")
        .map(|(_, token)| token.into_owned());
    Ok(token.filter(|token| !token.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::super::head::parse_head;
    use super::*;

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
