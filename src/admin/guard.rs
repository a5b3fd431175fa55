//! Who may ask: the token, if there is one, and what keeps the pages of other sites from acting
//! through an operator's browser. A page can make a browser send requests to any address, but without
//! a header field of its own making; and it can have its own name resolve to this host (DNS
//! rebinding), but then the request says that name.

use std::net::IpAddr;

use subtle::ConstantTimeEq;

use crate::error::ErrorCode;
use crate::http::{self, Head, HttpResponse};

/// A POST needs it, with any value.
const HEADER: &str = "X-Gateway-Admin";

/// The request has the token that is wanted; an empty one is wanted of nobody.
pub fn check_token(head: &Head<'_>, wanted: &str) -> http::Result<()> {
    let given = head.bearer_token()?.unwrap_or_default();
    if wanted.is_empty() || bool::from(given.as_bytes().ct_eq(wanted.as_bytes())) {
        return Ok(());
    }
    let message = "Send `Authorization: Bearer TOKEN` with admin.token of the configuration";
    Err(HttpResponse::unauthorized(message))
}

/// The request was made for this host: by its address, or as `localhost`, or by its name, which is
/// `own_name`.
pub fn check_host(head: &Head<'_>, own_name: &str) -> http::Result<()> {
    let authority = head.header("Host")?.unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => authority,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_name = |name: &str| host.eq_ignore_ascii_case(name);
    if bare.parse::<IpAddr>().is_ok() || is_name("localhost") || is_name(own_name) {
        return Ok(());
    }
    let message = format!("Ask by this host's address, as localhost, or as {own_name}");
    let code = ErrorCode::PermissionDenied;
    Err(HttpResponse::error(421, code, &message))
}

/// The request was not made by a form or a link.
pub fn check_intent(head: &Head<'_>) -> http::Result<()> {
    if head.header(HEADER)?.is_some() {
        return Ok(());
    }
    let message = format!("A POST needs the header field {HEADER}, with any value");
    Err(HttpResponse::error(
        403,
        ErrorCode::PermissionDenied,
        &message,
    ))
}
