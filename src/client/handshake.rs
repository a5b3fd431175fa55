//! From a request head to an authenticated user: every check that comes before the upgrade, in the
//! order in which a client is told of them.

use std::borrow::Cow;
use std::net::IpAddr;

use log::{info, warn};

use super::Context;
use super::head::{Answer, Head};
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

/// Judges `head`: path, method, upgrade header fields, Origin, token. The limits come after it.
pub(super) fn judge(head: &Head<'_>, context: &Context) -> Result<Accepted, Answer> {
    if let Some(page) = page(head, context)? {
        return Err(page);
    }
    let key = upgrade_key(head)?;
    check_origin(head, &context.config.listen.allowed_origins)?;
    let (identity, token) = authenticate(head, context)?;
    let accept = accept_key(&key);
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

/// Method and path. Answers a page for the paths that are no WebSocket.
pub(super) fn page(head: &Head<'_>, context: &Context) -> Result<Option<Answer>, Answer> {
    if head.method != "GET" {
        let message = "Only GET is allowed here";
        return Err(Answer::error(405, ErrorCode::InvalidMessage, message));
    }
    match head.path {
        path if path == context.config.listen.path => Ok(None),
        "/healthz" => Ok(Some(Answer::page(200, "text/plain", "ok\n"))),
        "/readyz" => {
            let readiness = context.readiness.check();
            let status = if readiness.is_ready() { 200 } else { 503 };
            Ok(Some(Answer::page(
                status,
                "application/json",
                readiness.to_json(),
            )))
        }
        "/" if let Some(page) = &context.page => Ok(Some(Answer::page(
            200,
            "text/html; charset=utf-8",
            page.as_str(),
        ))),
        _ => {
            let message = format!(
                "Nothing here; the WebSocket is at {}",
                context.config.listen.path
            );
            Err(Answer::error(404, ErrorCode::NotFound, &message))
        }
    }
}

/// The client's key, if it asks for WebSocket version 13 (RFC 6455, section 4.2.1).
fn upgrade_key<'b>(head: &Head<'b>) -> Result<Cow<'b, str>, Answer> {
    let upgrade = head.lists("Upgrade", "websocket") && head.lists("Connection", "Upgrade");
    if !upgrade || head.header("Sec-WebSocket-Version").as_deref() != Some("13") {
        let message = "This is a WebSocket, version 13: send the upgrade header fields";
        return Err(Answer::error(426, ErrorCode::InvalidMessage, message));
    }
    if head.header("Host").is_none() {
        return Err(Answer::bad_request("Host: missing"));
    }
    let key = head.header("Sec-WebSocket-Key").unwrap_or_default();
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

/// Exact scheme, host and port, when origins are configured. Programs, which send no Origin, pass:
/// the check is there to keep other sites' pages from using a visitor's address.
fn check_origin(head: &Head<'_>, allowed: &[String]) -> Result<(), Answer> {
    let Some(origin) = head.header("Origin") else {
        return Ok(());
    };
    if allowed.is_empty()
        || allowed
            .iter()
            .any(|other| other.eq_ignore_ascii_case(&origin))
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
    let token = token(head).ok_or_else(|| {
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
fn token(head: &Head<'_>) -> Option<String> {
    if let Some(authorization) = head.header("Authorization")
        && let Some((scheme, token)) = authorization.split_once(' ')
        && scheme.eq_ignore_ascii_case("Bearer")
    {
        return Some(token.trim().to_owned()).filter(|token| !token.is_empty());
    }
    let mut parameters = form_urlencoded::parse(head.query.as_bytes());
    let token = parameters
        .find(|(name, _)| name == "token")
        .map(|(_, token)| token.into_owned());
    token.filter(|token| !token.is_empty())
}

/// The client's address: the peer's own, or, behind a trusted proxy, the last address in
/// `X-Forwarded-For` that is no trusted proxy itself.
pub(super) fn client_address(head: &Head<'_>, peer: IpAddr, trusted: &[IpAddr]) -> IpAddr {
    if !trusted.contains(&peer) {
        return peer;
    }
    let forwarded = head.header("X-Forwarded-For").unwrap_or_default();
    let mut hops = forwarded
        .rsplit(',')
        .map(|hop| hop.trim().parse::<IpAddr>());
    match hops.find(|hop| hop.as_ref().map_or(true, |hop| !trusted.contains(hop))) {
        Some(Ok(client)) => client,
        Some(Err(_)) => {
            info!("X-Forwarded-For not understood: peer={peer}");
            peer
        }
        None => peer,
    }
}

#[cfg(test)]
mod tests {
    use super::super::head::parse_head;
    use super::*;

    fn head(fields: &str) -> Head<'static> {
        let text = format!("GET /ws?x=1&token=q%20t HTTP/1.1\r\n{fields}\r\n");
        parse_head(text.leak().as_bytes())
            .expect("no error")
            .expect("complete")
    }

    #[test]
    fn a_bearer_token_comes_before_the_query() {
        assert_eq!(
            token(&head("Authorization: bearer  abc\r\n")).as_deref(),
            Some("abc")
        );
        assert_eq!(
            token(&head("Authorization: Basic abc\r\n")).as_deref(),
            Some("q t")
        );
        assert_eq!(
            token(&head("Authorization: Bearer \r\n")).as_deref(),
            Some("q t")
        );
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let forwarded = head("X-Forwarded-For: 1.1.1.1, 2.2.2.2, 10.0.0.2\r\n");
        let trusted = [address("10.0.0.1"), address("10.0.0.2")];
        let of = |peer: &str| client_address(&forwarded, address(peer), &trusted);
        assert_eq!(of("9.9.9.9"), address("9.9.9.9"));
        assert_eq!(of("10.0.0.1"), address("2.2.2.2"));
        assert_eq!(
            client_address(&head(""), address("10.0.0.1"), &trusted),
            address("10.0.0.1")
        );
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
