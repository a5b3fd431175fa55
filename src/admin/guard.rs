//! Who may ask: the token, if there is one, and what keeps the pages of other sites from acting
//! through an operator's browser. A page can make a browser send requests to any address, but without
//! a header field of its own making; and by the name that its own host has ([`Head::check_host`]).

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
