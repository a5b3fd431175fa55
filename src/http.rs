//! HTTP/1 as far as the gateway speaks it: the head of a request, as it stands in bytes; the response,
//! which ends its connection; and the pages of a listener. No socket is here, so that every listener
//! may use it. What two servers could understand in two ways is refused: request smuggling begins
//! there (RFC 9112, section 11.2).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str;
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::error::ErrorCode;
use crate::readiness::Report;

/// The longest head, in bytes.
pub const MAX_HEAD: usize = 8 << 10;
/// The most header fields.
const MAX_HEADERS: usize = 64;

/// What a token begins with where it is offered as a subprotocol.
const BEARER_PROTOCOL: &str = "base64url.bearer.";

/// A request is refused with the response in the error.
pub type Result<T> = std::result::Result<T, HttpResponse>;

/// A request head (RFC 9112, section 3), as it stands in the bytes that it was read from.
#[derive(Debug)]
pub struct Head<'b> {
    pub method: &'b str,
    /// Of the target, without scheme and host where it has them; `*` for the whole server.
    pub path: &'b str,
    /// What follows the `?`, empty when nothing does.
    pub query: &'b str,
    /// HTTP/1.0, which knows no upgrade.
    pub is_http_1_0: bool,
    /// The client has already sent more than the head.
    pub is_followed: bool,
    /// The head's own, in bytes.
    pub length: usize,
    headers: Vec<(&'b str, &'b [u8])>,
}

impl<'b> Head<'b> {
    /// The values of all header fields of this name, in order. They may hold any bytes (RFC 9110,
    /// section 5.5).
    pub fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &'b [u8]> {
        self.headers
            .iter()
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }

    /// The value of a header field that there is one of at most.
    pub fn header(&self, name: &str) -> Result<Option<&'b str>> {
        let mut values = self.values(name);
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(HttpResponse::bad_request(&format!("{name}: more than one")));
        }
        text(name, value).map(Some)
    }

    /// The items of a header field that is a list separated by commas, and may be there several times
    /// (RFC 9110, section 5.3).
    pub fn items(&self, name: &str) -> Result<Vec<&'b str>> {
        let mut items = Vec::new();
        for value in self.values(name) {
            items.extend(text(name, value)?.split(',').map(str::trim));
        }
        Ok(items)
    }

    /// Whether such a field names `token`, in any case.
    pub fn lists(&self, name: &str, token: &str) -> Result<bool> {
        let items = self.items(name)?;
        Ok(items.iter().any(|item| item.eq_ignore_ascii_case(token)))
    }

    /// `Authorization: Bearer T` (RFC 6750, section 2.1).
    pub fn bearer_token(&self) -> Result<Option<&'b str>> {
        let authorization = self.header("Authorization")?;
        let parts = authorization.and_then(|value| value.split_once(' '));
        let bearer = parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"));
        Ok(bearer.map(|(_, token)| token.trim()))
    }

    /// The token that is offered as a subprotocol, `base64url.bearer.` and the token in base64url
    /// (RFC 4648, section 5) without padding: a browser's page can set no other header field, and what
    /// is in a URL ends up in logs. Kubernetes has it from
    /// [there](https://github.com/kubernetes/kubernetes/pull/47740).
    pub fn bearer_protocol(&self) -> Result<Option<String>> {
        let offered = self.items("Sec-WebSocket-Protocol")?;
        let mut tokens = offered
            .iter()
            .filter_map(|item| item.strip_prefix(BEARER_PROTOCOL));
        let Some(token) = tokens.next() else {
            return Ok(None);
        };
        let token = URL_SAFE_NO_PAD.decode(token).ok();
        match token.and_then(|token| String::from_utf8(token).ok()) {
            Some(token) if tokens.next().is_none() => Ok(Some(token)),
            _ => Err(HttpResponse::bad_request(
                "Sec-WebSocket-Protocol: of `base64url.bearer.` there is one at most, and behind it the \
                 token in base64url without padding",
            )),
        }
    }

    /// The value of the first parameter of this name in the query.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let mut parameters = form_urlencoded::parse(self.query.as_bytes());
        let parameter = parameters.find(|(other, _)| other == name);
        parameter.map(|(_, value)| value.into_owned())
    }

    /// The request was made for this host: by its address, or as `localhost`, or by its name, which is
    /// `own_name`. A page of another site can have its own name resolve to this host (DNS rebinding),
    /// but then the request says that name.
    pub fn check_host(&self, own_name: &str) -> Result<()> {
        let authority = self.header("Host")?.unwrap_or_default();
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

    /// The client's key, if it asks for WebSocket version 13 (RFC 6455, section 4.2.1).
    pub fn websocket_key(&self) -> Result<&'b str> {
        if self.is_followed {
            return Err(HttpResponse::too_early());
        }
        let upgrade = self.lists("Upgrade", "websocket")? && self.lists("Connection", "Upgrade")?;
        let version = self.header("Sec-WebSocket-Version")?;
        if self.is_http_1_0 || !upgrade || version != Some("13") {
            let message =
                "This is a WebSocket, version 13: send HTTP/1.1 and the upgrade header fields";
            return Err(HttpResponse::error(426, ErrorCode::InvalidMessage, message));
        }
        let key = self.header("Sec-WebSocket-Key")?.unwrap_or_default();
        // 16 bytes in base64.
        let of_base64 = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
        match key.strip_suffix("==") {
            Some(text) if text.len() == 22 && text.bytes().all(of_base64) => Ok(key),
            _ => Err(HttpResponse::bad_request(
                "Sec-WebSocket-Key: not 16 bytes in base64",
            )),
        }
    }

    /// Host: one, and a host; HTTP/1.0 may do without (RFC 9112, section 3.2). No body: nothing
    /// here takes one.
    fn check(&self) -> Result<()> {
        let host = self.header("Host")?;
        if !host.map_or(self.is_http_1_0, is_authority) {
            return Err(HttpResponse::bad_request("Host: missing, or not a host"));
        }
        let length = self.header("Content-Length")?.unwrap_or("0");
        let is_empty = !length.is_empty() && length.bytes().all(|digit| digit == b'0');
        if !is_empty || self.values("Transfer-Encoding").next().is_some() {
            return Err(HttpResponse::bad_request("A request has no body here"));
        }
        Ok(())
    }
}

fn text<'b>(name: &str, value: &'b [u8]) -> Result<&'b str> {
    str::from_utf8(value).map_err(|_| HttpResponse::bad_request(&format!("{name}: not UTF-8")))
}

/// The head in `bytes`, or `None` while it is not complete.
pub fn parse_head(bytes: &[u8]) -> Result<Option<Head<'_>>> {
    parse(bytes).map_err(|response| response.fit(bytes))
}

fn parse(bytes: &[u8]) -> Result<Option<Head<'_>>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() <= MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HttpResponse::too_large()),
        Err(error) => return Err(not_http(&error.to_string())),
    };
    // httparse takes a bare LF for a line's end; a proxy may have taken it for a part of a value.
    let mut lines = bytes[..length].split_inclusive(|&byte| byte == b'\n');
    if !lines.all(|line| line.ends_with(b"\r\n")) {
        return Err(not_http("a line without CR"));
    }
    let method = request.method.unwrap_or_default();
    let (authority, path, query) = parse_target(method, request.path.unwrap_or_default())
        .ok_or_else(|| not_http("the target is none"))?;
    let fields = request.headers.iter();
    let headers = fields.map(|field| (field.name, field.value.trim_ascii()));
    let mut head = Head {
        method,
        path,
        query,
        is_http_1_0: request.version == Some(0),
        is_followed: bytes.len() > length,
        length,
        headers: headers.collect(),
    };
    head.check()?;
    if let Some(authority) = authority {
        let host = |(name, _): &(&str, &[u8])| name.eq_ignore_ascii_case("Host");
        head.headers.retain(|field| !host(field));
        head.headers.push(("Host", authority.as_bytes()));
    }
    Ok(Some(head))
}

fn not_http(why: &str) -> HttpResponse {
    HttpResponse::bad_request(&format!("Not an HTTP request: {why}"))
}

/// The parts of a request target in one of its forms (RFC 9112, section 3.2): the host that it has in
/// absolute form, in place of the header field; path; query.
fn parse_target<'b>(method: &str, target: &'b str) -> Option<(Option<&'b str>, &'b str, &'b str)> {
    let is_for_server = method == "OPTIONS" && target == "*";
    // CONNECT's target is a host; the method is refused by itself.
    let (authority, rest) = if target.starts_with('/') || is_for_server || method == "CONNECT" {
        (None, target)
    } else {
        let (scheme, rest) = target.split_once("://")?;
        let mut schemes = ["http", "https", "ws", "wss"].iter();
        let is_known = schemes.any(|known| scheme.eq_ignore_ascii_case(known));
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if !is_known || !is_authority(authority) {
            return None;
        }
        (Some(authority), rest)
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    Some((authority, if path.is_empty() { "/" } else { path }, query))
}

/// Whether `text` is a host, and a port if it likes (RFC 9110, section 7.2): neither empty nor with
/// a user.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, ""),
    };
    let bracketed = host.strip_prefix('[').and_then(|v6| v6.strip_suffix(']'));
    let is_host = match bracketed {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
            !host.is_empty() && host.bytes().all(named)
        }
    };
    is_host && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// The response to a request: an error, or a page.
#[derive(Debug, Clone)]
pub struct HttpResponse {
    status: u16,
    /// `None`: a page.
    refusal: Option<Refusal>,
    /// Further header fields, each with its line end.
    headers: String,
    /// What `Content-Length` says. A HEAD is told the length of a body that it does not get.
    length: usize,
    body: Vec<u8>,
}

/// Why a client is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    /// In one word.
    pub reason: &'static str,
    /// What the client is told.
    pub message: String,
}

/// As log lines name it.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status={}, reason={}", self.status, self.reason)
    }
}

impl HttpResponse {
    fn new(status: u16, refusal: Option<Refusal>, headers: String, body: Vec<u8>) -> Self {
        Self {
            status,
            refusal,
            headers,
            length: body.len(),
            body,
        }
    }

    /// An error, with the same JSON object as an error frame. Its reason is the status's, unless there is
    /// a [narrower one](Self::because).
    pub fn error(status: u16, code: ErrorCode, message: &str) -> Self {
        let further = match status {
            401 => "WWW-Authenticate: Bearer\r\n",
            426 => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            429 | 503 => "Retry-After: 1\r\n",
            _ => "",
        };
        let headers = format!("Content-Type: application/json\r\n{further}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let body = format!(
            r#"{{"type":"error","code":"{code}","message":{},"timestamp":{}}}"#,
            Value::from(message),
            now.unwrap_or_default().as_secs()
        );
        let reason = match status {
            401 => "unauthenticated",
            403 => "forbidden",
            404 => "not_found",
            405 => "wrong_method",
            408 => "timed_out",
            426 => "no_upgrade",
            431 => "head_too_large",
            _ => "bad_request",
        };
        let message = message.to_owned();
        Self::new(
            status,
            Some(Refusal {
                status,
                reason,
                message,
            }),
            headers,
            body.into(),
        )
    }

    /// Names the reason of an error.
    pub fn because(mut self, reason: &'static str) -> Self {
        self.refusal
            .iter_mut()
            .for_each(|refusal| refusal.reason = reason);
        self
    }

    pub fn bad_request(message: &str) -> Self {
        Self::error(400, ErrorCode::InvalidMessage, message)
    }

    /// A client has to wait for the answer to its upgrade (RFC 6455, section 4.1): what comes before it
    /// may have been taken for another request by a proxy.
    pub fn too_early() -> Self {
        let message = "Nothing may follow the request head before the upgrade is answered";
        Self::bad_request(message)
    }

    pub fn unauthorized(message: &str) -> Self {
        Self::error(401, ErrorCode::Unauthenticated, message)
    }

    pub fn unavailable(reason: &'static str, message: &str) -> Self {
        Self::error(503, ErrorCode::ServiceUnavailable, message).because(reason)
    }

    pub fn timed_out(message: &str) -> Self {
        Self::error(408, ErrorCode::DeadlineExceeded, message)
    }

    pub fn too_many(reason: &'static str, message: &str) -> Self {
        Self::error(429, ErrorCode::RateLimited, message).because(reason)
    }

    fn too_large() -> Self {
        let message = format!("The head is over {MAX_HEAD} bytes or {MAX_HEADERS} header fields");
        Self::error(431, ErrorCode::InvalidMessage, &message)
    }

    /// `methods`, separated by commas, are the ones that this path knows.
    pub fn wrong_method(methods: &str) -> Self {
        let message = format!("Only {methods} is allowed here");
        Self::error(405, ErrorCode::InvalidMessage, &message).allow(methods)
    }

    /// A body that is no error, and that no one may keep.
    pub fn page(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = format!("Content-Type: {content_type}\r\nCache-Control: no-store\r\n");
        Self::new(status, None, headers, body.into())
    }

    /// A page for people, which loads nothing from elsewhere and is shown in no other page.
    pub fn html(body: impl Into<Vec<u8>>) -> Self {
        let mut page = Self::page(200, "text/html; charset=utf-8", body);
        page.headers += "Content-Security-Policy: default-src 'none'; connect-src 'self' ws: wss:; \
             img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
             base-uri 'none'; form-action 'self'; frame-ancestors 'none'\r\n\
             X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n";
        page
    }

    /// What the process answers while it works.
    pub fn healthy() -> Self {
        Self::page(200, "text/plain", "ok\n")
    }

    /// What `report` says: 200 when ready, else 503.
    pub fn readiness(report: &Report) -> Self {
        let status = if report.is_ready() { 200 } else { 503 };
        Self::page(status, "application/json", report.to_json())
    }

    /// The answer to OPTIONS, where there is a page.
    pub fn options(status: u16, methods: &str) -> Self {
        Self::new(status, None, String::new(), Vec::new()).allow(methods)
    }

    fn allow(mut self, methods: &str) -> Self {
        self.headers += &format!("Allow: {methods}\r\n");
        self
    }

    /// The same for HEAD: all but the body (RFC 9110, section 9.3.2).
    pub fn without_body(mut self) -> Self {
        self.body.clear();
        self
    }

    /// Without its body, if what there is of a request in `bytes` begins with HEAD.
    pub fn fit(self, bytes: &[u8]) -> Self {
        if bytes.trim_ascii_start().starts_with(b"HEAD ") {
            self.without_body()
        } else {
            self
        }
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// Why it turns a client away; a page does not, whatever its status.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// The whole response as it goes out, on a connection that ends behind it.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_keeping(false)
    }

    /// As [`Self::bytes`], on a connection that goes on if it `is_kept`.
    pub fn bytes_keeping(&self, is_kept: bool) -> Vec<u8> {
        let connection = if is_kept { "keep-alive" } else { "close" };
        let status = StatusCode::from_u16(self.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: {connection}\r\n{}\r\n",
            self.length, self.headers
        )
        .into_bytes();
        bytes.extend(&self.body);
        bytes
    }
}

/// The methods of what is shown, and of what is done.
const SHOWS: &str = "GET, HEAD, OPTIONS";
const ACTS: &str = "POST, OPTIONS";

/// What a listener shows or does at a path, to or for whoever asks.
pub struct Page {
    path: &'static str,
    methods: &'static str,
    content: Box<dyn Fn(&Head<'_>) -> HttpResponse + Send + Sync>,
}

impl Page {
    pub fn new(
        path: &'static str,
        content: impl Fn() -> HttpResponse + Send + Sync + 'static,
    ) -> Self {
        Self {
            path,
            methods: SHOWS,
            content: Box::new(move |_| content()),
        }
    }

    /// What a POST does. It must not wait for anything: a thread that answers many may call it.
    pub fn action(
        path: &'static str,
        act: impl Fn(&Head<'_>) -> HttpResponse + Send + Sync + 'static,
    ) -> Self {
        Self {
            path,
            methods: ACTS,
            content: Box::new(act),
        }
    }

    /// The response to a request for one of `pages`; `missing` says that there is none at its path.
    pub fn respond(pages: &[Self], head: &Head<'_>, missing: &str) -> HttpResponse {
        let page = pages.iter().find(|page| page.path == head.path);
        let methods = page.map_or(SHOWS, |page| page.methods);
        let is_allowed = methods.split(", ").any(|method| method == head.method);
        let response = match page {
            _ if !is_allowed => HttpResponse::wrong_method(methods),
            // Asking does nothing. And no other site's page is told that it may act (CORS).
            Some(page) if page.methods == ACTS && head.method == "OPTIONS" => {
                HttpResponse::page(200, "text/plain", "")
            }
            Some(page) => (page.content)(head),
            // The server as a whole: HAProxy's check, unless it is told of another one.
            None if head.method == "OPTIONS" && ["/", "*"].contains(&head.path) => {
                HttpResponse::page(200, "text/plain", "")
            }
            None => HttpResponse::error(404, ErrorCode::NotFound, missing),
        };
        match head.method {
            "HEAD" => response.without_body(),
            "OPTIONS" if response.refusal.is_none() => {
                HttpResponse::options(response.status, methods)
            }
            _ => response,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    fn status(head: impl AsRef<[u8]>) -> u16 {
        parse_head(head.as_ref()).expect_err("refused").status()
    }

    fn parsed(head: &str) -> Head<'_> {
        let head = parse_head(head.as_bytes());
        head.expect("no error").expect("complete")
    }

    #[test]
    fn a_head_is_parsed_once_it_is_complete() {
        let text = "GET /ws?token=a HTTP/1.1\r\nHost: x\r\nconnection: keep-alive\r\nConnection: Upgrade\r\n\r\nmore";
        for end in 0..text.len() - 4 {
            assert!(
                parse_head(&text.as_bytes()[..end])
                    .expect("no error")
                    .is_none(),
                "{end}"
            );
        }
        let head = parsed(text);
        assert_eq!((head.path, head.query), ("/ws", "token=a"));
        assert!(head.lists("Connection", "upgrade").expect("text"));
        assert!(head.is_followed);
        assert!(!parsed(&text[..text.len() - 4]).is_followed);
    }

    #[test]
    fn limits_are_8_kib_and_64_header_fields() {
        let with = |count: usize| {
            let fields = "a: b\r\n".repeat(count - 1);
            format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n")
        };
        assert_eq!(status(with(65)), 431);
        assert!(parse_head(with(64).as_bytes()).is_ok());
        assert_eq!(
            status(format!("GET / HTTP/1.1\r\na: {}", "x".repeat(MAX_HEAD))),
            431
        );
    }

    #[test]
    fn a_list_may_be_in_several_fields() {
        let head = parsed("GET / HTTP/1.1\r\nHost: x\r\nA: b, c\r\na:d ,\te\r\nB: f\r\n\r\n");
        assert_eq!(head.items("A").expect("text"), ["b", "c", "d", "e"]);
        assert!(head.items("C").expect("text").is_empty());
        assert!(head.lists("A", "E").expect("text") && !head.lists("A", "f").expect("text"));
    }

    #[test]
    fn a_token_is_offered_as_a_protocol_in_base64url_without_padding() {
        let offered = |fields: &[&str]| {
            let mut text = "GET / HTTP/1.1\r\nHost: x\r\n".to_owned();
            for value in fields {
                text += &format!("Sec-WebSocket-Protocol: {value}\r\n");
            }
            parsed(&(text + "\r\n"))
                .bearer_protocol()
                .map_err(|response| {
                    let refusal = response.refusal().expect("a refusal").clone();
                    assert!(refusal.message.contains("base64url.bearer."), "{refusal:?}");
                    refusal.status
                })
        };
        let token = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(offered(&[]), Ok(None));
        assert_eq!(
            offered(&["im.v1", "chat, bearer.YQ, base64url.bearer"]),
            Ok(None)
        );
        // Names of protocols are told apart by case.
        assert_eq!(offered(&["Base64URL.Bearer.YQ"]), Ok(None));
        assert_eq!(
            offered(&["base64url.bearer.YWxpY2UtdG9rZW4"]),
            token("alice-token")
        );
        assert_eq!(offered(&["im.v1,base64url.bearer.YQ"]), token("a"));
        assert_eq!(offered(&["base64url.bearer.YWI , im.v1"]), token("ab"));
        assert_eq!(
            offered(&["im.v1", "base64url.bearer.w7zDv8O-4oKs_w-_"]).err(),
            Some(400)
        );
        assert_eq!(
            offered(&["im.v1", "base64url.bearer.w7zDv8O-4oKs"]),
            token("üÿþ€")
        );
        assert_eq!(offered(&["base64url.bearer."]), token(""));
        for broken in [
            "YQ==",
            "YQ=",
            "Y",
            "YR",
            "Y Q",
            "YW+z",
            "Pz8/",
            "_w",
            "YQ\"",
            "\"YQ\"",
            "alice-token!",
        ] {
            assert_eq!(
                offered(&[&format!("im.v1, base64url.bearer.{broken}")]),
                Err(400),
                "{broken}"
            );
        }
        let twice = "base64url.bearer.YQ";
        assert_eq!(offered(&[twice, twice]), Err(400));
        assert_eq!(
            offered(&["base64url.bearer.YQ, base64url.bearer.Yg"]),
            Err(400)
        );
    }

    #[test]
    fn what_is_no_http_1_is_a_bad_request() {
        for head in [
            "GET / HTTP/0.9\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: x\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET /\r\n\r\n",
            "\u{16}\u{3}\u{1}",
            "GET  /\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
            "G\u{0}T / HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost\t: x\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\tc\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\0\r\n\r\n",
            "GET / HTTP/1.1\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
            "\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        ] {
            assert_eq!(status(head), 400, "{head:?}");
        }
        // An empty line may come before (RFC 9112, section 2.2).
        assert_eq!(parsed("\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n").path, "/a");
    }

    #[test]
    fn there_is_one_host() {
        let with = |version: &str, fields: &str| format!("GET / HTTP/{version}\r\n{fields}\r\n");
        for host in [
            "x",
            "gateway_1.example.com:8080",
            "x:",
            "10.0.0.1:80",
            "[::1]",
            "[2001:db8::1]:8080",
            "xn--caf-dma.example",
            "a%20b",
        ] {
            let with = with("1.1", &format!("hOsT:\t{host}  \r\n"));
            assert_eq!(parsed(&with).header("host").unwrap(), Some(host));
        }
        for fields in [
            "",
            "Host:\r\n",
            "Host: \r\n",
            "Host: a b\r\n",
            "Host: a, b\r\n",
            "Host: a@b\r\n",
            "Host: http://a\r\n",
            "Host: a/ws\r\n",
            "Host: a?b\r\n",
            "Host: a#b\r\n",
            "Host: a:b\r\n",
            "Host: a:1:2\r\n",
            "Host: ::1\r\n",
            "Host: [::1\r\n",
            "Host: [::1]x\r\n",
            "Host: [a]\r\n",
            "Host: :80\r\n",
            "Host: caf\u{e9}\r\n",
            "Host: a\r\nHost: a\r\n",
            "Host: a\r\nA: b\r\nhost: b\r\n",
            "Host: a\r\nHost:\r\n",
        ] {
            assert_eq!(status(with("1.1", fields)), 400, "{fields:?}");
            let may_lack = fields.is_empty();
            assert_eq!(
                parse_head(with("1.0", fields).as_bytes()).is_ok(),
                may_lack,
                "{fields:?}"
            );
        }
        assert_eq!(status(b"GET / HTTP/1.1\r\nHost: caf\xe9\r\n\r\n"), 400);
    }

    #[test]
    fn there_is_no_body() {
        let with = |fields: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        for fields in [
            "Content-Length: 1\r\n",
            "content-length: 01\r\n",
            "Content-Length: 99999999999999999999999\r\n",
            "Content-Length: +0\r\n",
            "Content-Length: -0\r\n",
            "Content-Length: 0x0\r\n",
            "Content-Length: 0.0\r\n",
            "Content-Length: 0, 0\r\n",
            "Content-Length: 0 0\r\n",
            "Content-Length: \r\n",
            "Content-Length: none\r\n",
            "Content-Length: \u{661}\r\n",
            "Content-Length: 0\r\nContent-Length: 0\r\n",
            "Content-Length: 0\r\ncontent-length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "transfer-encoding: identity\r\n",
            "Transfer-Encoding:\r\n",
            "Transfer-Encoding: \u{b}chunked\r\n",
            "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        ] {
            assert_eq!(status(with(fields)), 400, "{fields:?}");
            assert_eq!(
                status(with(fields).replace("1.1", "1.0")),
                400,
                "{fields:?}"
            );
        }
        for fields in ["", "Content-Length: 0\r\n", "Content-Length: 00\r\n"] {
            assert_eq!(parsed(&with(fields)).method, "POST");
        }
    }

    #[test]
    fn every_form_of_a_target_is_understood() {
        for (method, target, path, query, host) in [
            ("GET", "/ws?a?b", "/ws", "a?b", "x"),
            ("GET", "//ws", "//ws", "", "x"),
            ("GET", "/http://h/ws", "/http://h/ws", "", "x"),
            ("GET", "http://h/ws?token=a", "/ws", "token=a", "h"),
            ("GET", "HTTPS://h:443/ws", "/ws", "", "h:443"),
            ("GET", "ws://[::1]:80/ws", "/ws", "", "[::1]:80"),
            ("GET", "wSs://h/ws?a=/b", "/ws", "a=/b", "h"),
            ("GET", "http://h", "/", "", "h"),
            ("GET", "http://h?a=b", "/", "a=b", "h"),
            ("GET", "http://h/", "/", "", "h"),
            ("OPTIONS", "*", "*", "", "x"),
            ("OPTIONS", "http://h", "/", "", "h"),
            ("CONNECT", "h:443", "h:443", "", "x"),
        ] {
            let text = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            let head = parsed(&text);
            assert_eq!((head.path, head.query), (path, query), "{target}");
            assert_eq!(head.header("Host").unwrap(), Some(host), "{target}");
        }
        for target in [
            "*",
            "ws",
            "h:80",
            "?token=a",
            "ftp://h/ws",
            "://h/ws",
            "http:/ws",
            "http:h/ws",
            "http://",
            "http:///ws",
            "http://?a",
            "http://user@h/ws",
            "http://user:pass@h/ws",
            "http://h:port/ws",
            "http://h#a",
            "http://a,b/ws",
            "http://[h]/ws",
        ] {
            let text = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(status(&text), 400, "{target}");
        }
        // The field has to be there and be one all the same.
        assert_eq!(status("GET http://h/ws HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(
            status("GET http://h/ws HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n"),
            400
        );
    }

    #[test]
    fn only_in_a_field_that_is_read_does_its_text_matter() {
        let mut text = b"GET / HTTP/1.1\r\nHost: x\r\nCookie: name=Jos\xe9\r\n".to_vec();
        text.extend(
            b"Origin: \xff\xfe\r\nUpgrade: caf\xe9\r\nUpgrade: websocket\r\nB: 1\r\nB: 1\r\n\r\n",
        );
        let head = parse_head(&text).expect("no error").expect("complete");
        assert_eq!(head.header("Origin").expect_err("refused").status(), 400);
        assert_eq!(head.header("B").expect_err("two").status(), 400);
        let listed = head.lists("Upgrade", "websocket");
        assert_eq!(listed.expect_err("refused").status(), 400);
        assert_eq!(head.values("cookie").next(), Some(&b"name=Jos\xe9"[..]));
    }

    #[test]
    fn an_error_has_no_body_where_head_is_asked() {
        for text in [
            "HEAD / HTTP/1.1\r\n\r\n",
            "\r\nHEAD x HTTP/1.1\r\nHost: x\r\n\r\n",
        ] {
            let answer = parse_head(text.as_bytes()).expect_err("refused").bytes();
            assert!(answer.ends_with(b"\r\n\r\n"), "{text:?}");
        }
    }

    /// Heads that are broken in one place or two, by a small generator: answered or not, in time
    /// and without a panic.
    #[test]
    fn no_head_is_too_strange() {
        let head = b"GET http://h:1/ws?token=a HTTP/1.1\r\nHost: x:1\r\nContent-Length: 0\r\nCookie: \xe9\r\n\r\nx";
        let mut seed = 1u64;
        let mut random = move |below: usize| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        for _ in 0..10_000 {
            let mut bytes = head.to_vec();
            for _ in 0..=random(2) {
                let place = random(bytes.len());
                match random(3) {
                    0 => bytes[place] = random(256) as u8,
                    1 => _ = bytes.remove(place),
                    _ => bytes.insert(place, b" \t\r\n:/?*@[]\0\xff"[random(13)]),
                }
            }
            if let Ok(Some(head)) = parse_head(&bytes) {
                let host = head.header("Host").expect("one");
                assert!(host.is_none_or(is_authority), "{bytes:?}");
                assert!(
                    head.path.starts_with('/') || head.method != "GET",
                    "{bytes:?}"
                );
            }
        }
    }

    #[test]
    fn a_post_acts_and_nothing_else_does() {
        let acted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&acted);
        let action = Page::action("/act", move |head| {
            counter.fetch_add(1, SeqCst);
            HttpResponse::page(200, "text/plain", head.query)
        });
        let pages = [
            Page::new("/", || HttpResponse::html("")),
            Page::new("/act/", || HttpResponse::html("")),
            action,
        ];
        let respond = |method: &str, target: &str| {
            let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            let response = Page::respond(&pages, &parsed(&head), "missing");
            (response.status, String::from_utf8(response.body).unwrap())
        };
        for method in ["GET", "HEAD", "PUT", "OPTIONS", "post"] {
            let (status, body) = respond(method, "/act?a=b");
            assert_eq!(
                status,
                if method == "OPTIONS" { 200 } else { 405 },
                "{method}"
            );
            assert!(
                !["HEAD", "OPTIONS"].contains(&method) || body.is_empty(),
                "{method}"
            );
        }
        for (target, status) in [("/", 405), ("/act/", 405), ("/ACT", 405)] {
            assert_eq!(respond("POST", target).0, status, "{target}");
        }
        assert_eq!(acted.load(SeqCst), 0);
        assert_eq!(respond("POST", "/act?a=b"), (200, "a=b".into()));
        assert_eq!(acted.load(SeqCst), 1);
    }

    #[test]
    fn head_and_options_bring_no_body() {
        let text = |answer: HttpResponse| String::from_utf8(answer.bytes()).unwrap();
        let page = HttpResponse::page(200, "text/plain", "hello");
        assert!(text(page.clone()).ends_with("\r\n\r\nhello"));
        let head = text(page.without_body());
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        assert!(head.contains("Content-Length: 5\r\n"), "{head}");
        let options = text(HttpResponse::options(503, "GET, HEAD"));
        assert!(options.contains("Content-Length: 0\r\n"), "{options}");
        assert!(options.contains("Allow: GET, HEAD\r\n"), "{options}");
        let error = HttpResponse::wrong_method("GET");
        let length = error.body.len();
        assert!(length > 0);
        let head = text(error.without_body());
        assert!(
            head.contains(&format!("Content-Length: {length}\r\n")),
            "{head}"
        );
        assert!(head.contains("Allow: GET\r\n"), "{head}");
    }
}
