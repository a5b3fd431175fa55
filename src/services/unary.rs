//! What comes back over HTTP/2, looked at before it is taken for gRPC. An answer to a call is whole,
//! or it is none: a proxy's page, or half a message, is no word of the service's.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::failure::{Failure, Why};

/// The largest answer taken, in bytes: a page of 100 long messages. tonic's default is 4 MiB.
pub(super) const MAX_ANSWER: usize = 16 << 20;
/// What comes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
const GRPC: &[u8] = b"application/grpc";

/// A channel whose answers are gRPC, with a message of at most [`MAX_ANSWER`]; all else is a
/// [`Failure`].
#[derive(Clone)]
pub(super) struct Checked(pub Channel);

type Checking = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

impl GrpcService<Body> for Checked {
    type ResponseBody = Body;
    type Error = Failure;
    type Future = Checking;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Checking {
        let mut channel = self.0.clone();
        Box::pin(async move {
            let ready = poll_fn(|context| GrpcService::poll_ready(&mut channel, context)).await;
            ready.map_err(|error| Failure::on_the_way(&error))?;
            let response = GrpcService::call(&mut channel, request).await;
            read(response.map_err(|error| Failure::on_the_way(&error))?).await
        })
    }
}

/// Reads an answer to its end, and gives it back with what a client of tonic's looks at.
async fn read(response: Response<Body>) -> Result<Response<Body>, Failure> {
    let (head, mut body) = response.into_parts();
    let no = |what: &str| Failure::not_grpc(head.status, what);
    // A status that is there counts, whatever HTTP says.
    let mut over = told(&head.headers)?;
    if !is_grpc(&head.headers) {
        let content_type = head.headers.get(CONTENT_TYPE);
        return Err(no(&format!("content type {content_type:?}")));
    }
    let mut answer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::broken_off(&error))?;
        match frame.into_data() {
            Ok(data) => answer.extend_from_slice(&data),
            Err(frame) => {
                over |= frame.trailers_ref().map_or(Ok(false), told)?;
            }
        }
        match announced(&answer) {
            None | Some((0, ..=MAX_ANSWER)) => {}
            Some((0, length)) => {
                let text = format!("{length} bytes, and at most {MAX_ANSWER} are taken");
                return Err(Failure::new(Why::TooLarge, &text));
            }
            Some(_) => return Err(no("no message in its body")),
        }
        if answer.len() > PREFIX + announced(&answer).map_or(0, |(_, length)| length) {
            return Err(no("more than a message in its body"));
        }
    }
    if !over {
        return Err(no("without a gRPC status"));
    }
    let whole = announced(&answer).is_some_and(|(_, length)| answer.len() == PREFIX + length);
    if !whole && !answer.is_empty() {
        return Err(no("cut short"));
    }
    Ok(Response::new(ok(answer.freeze())))
}

/// Whether the service says that all went well; an error is what else it says. Neither where it has
/// not said yet.
fn told(headers: &HeaderMap) -> Result<bool, Failure> {
    let Some(status) = headers.get(Status::GRPC_STATUS) else {
        return Ok(false);
    };
    match Code::from_bytes(status.as_bytes()) {
        Code::Ok => Ok(true),
        code => {
            let message = headers.get(Status::GRPC_MESSAGE);
            let message = message.map_or(&b""[..], HeaderValue::as_bytes);
            Err(Failure::told(code, message))
        }
    }
}

/// `application/grpc`, perhaps with `+proto` or a parameter; `application/grpc-web` is another.
fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type.is_some_and(|content_type| {
        let (begin, rest) = content_type
            .split_at_checked(GRPC.len())
            .unwrap_or_default();
        begin.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
    })
}

/// Whether the message is compressed, which was not asked for, and how long it is to be.
fn announced(answer: &[u8]) -> Option<(u8, usize)> {
    let &[compressed, length @ ..] = answer.first_chunk::<PREFIX>()?;
    Some((compressed, u32::from_be_bytes(length) as usize))
}

/// Nothing else of what the service sent is looked at. tonic in particular panics at details that
/// are not base64.
fn ok(answer: Bytes) -> Body {
    let status = HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))]);
    Body::new(Full::new(answer).with_trailers(std::future::ready(Some(Ok(status)))))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, StatusCode};

    use super::*;

    /// A message of two bytes.
    const MESSAGE: &[u8] = &[0, 0, 0, 0, 2, 7, 7];

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |&(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        fields.iter().map(field).collect()
    }

    /// What becomes of an answer: its head, its body, and its trailers, if it has any.
    fn taken(
        status: u16,
        head: &[(&'static str, &'static str)],
        body: &'static [u8],
        trailers: Option<&[(&'static str, &'static str)]>,
    ) -> Result<(), Failure> {
        let trailers = trailers.map(|fields| Ok(headers(fields)));
        let body = Full::new(Bytes::from_static(body));
        let body = body.with_trailers(std::future::ready(trailers));
        let mut response = Response::new(Body::new(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        *response.headers_mut() = headers(head);
        let read = futures_util::FutureExt::now_or_never(read(response));
        read.expect("all is there").map(drop)
    }

    const HEAD: &[(&str, &str)] = &[("content-type", "application/grpc")];
    const OK: Option<&[(&str, &str)]> = Some(&[("grpc-status", "0")]);

    #[test]
    fn a_message_and_a_status_are_an_answer() {
        for content_type in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc; charset=utf-8",
            "Application/GRPC",
        ] {
            let head = [("content-type", content_type)];
            assert_eq!(taken(200, &head, MESSAGE, OK), Ok(()), "{content_type}");
        }
        let details = [("grpc-status", "0"), ("grpc-status-details-bin", "!")];
        assert_eq!(taken(200, HEAD, MESSAGE, Some(&details)), Ok(()));
    }

    #[test]
    fn a_status_counts_whatever_comes_with_it() {
        let html: &[_] = &[("content-type", "text/html"), ("grpc-status", "16")];
        let bare: &[_] = &[("grpc-status", "16")];
        let details: &[_] = &[("grpc-status", "16"), ("grpc-status-details-bin", "!")];
        for (status, head, trailers) in [
            (200, html, None),
            (503, html, None),
            (200, bare, None),
            (200, details, None),
            (200, HEAD, Some(bare)),
            (200, HEAD, Some(details)),
            (502, HEAD, Some(bare)),
        ] {
            let failure = taken(status, head, b"", trailers).unwrap_err();
            assert_eq!(
                (failure.why, failure.code),
                (Why::Told, Code::Unauthenticated)
            );
        }
    }

    #[test]
    fn all_else_is_no_answer() {
        for content_type in [
            "text/html",
            "text/html; charset=utf-8",
            "application/json",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc-web-text",
            "application/grpcx",
            "application/grp",
            "",
        ] {
            let head = [("content-type", content_type)];
            lost(taken(200, &head, MESSAGE, OK), content_type);
        }
        lost(taken(200, &[], MESSAGE, OK), "no content type");
        lost(taken(200, HEAD, MESSAGE, None), "no trailers");
        lost(taken(200, HEAD, MESSAGE, Some(&[])), "empty trailers");
        lost(taken(200, HEAD, b"", None), "nothing");
        lost(taken(200, HEAD, b"<html>hello</html>", OK), "a page");
        lost(taken(200, HEAD, &[1, 0, 0, 0, 1, 7], OK), "compressed");
        lost(taken(200, HEAD, &MESSAGE[..6], OK), "half a message");
        lost(taken(200, HEAD, &MESSAGE[..3], OK), "half a prefix");
        lost(taken(200, HEAD, &[0, 0, 0, 0, 0, 7], OK), "too much");
        lost(taken(503, HEAD, b"", None), "a status of HTTP's");
    }

    fn lost(taken: Result<(), Failure>, what: &str) {
        let failure = taken.expect_err(what);
        assert_eq!(
            (failure.why, failure.code),
            (Why::Lost, Code::Unavailable),
            "{what}"
        );
    }

    #[test]
    fn a_message_over_the_bound_is_too_large_before_it_is_there() {
        let failure = taken(200, HEAD, &[0, 1, 0, 0, 1], None).unwrap_err();
        assert_eq!(failure.why, Why::TooLarge);
        let failure = taken(200, HEAD, &[0, 1, 0, 0, 0], OK).unwrap_err();
        assert_eq!(failure.why, Why::Lost, "exactly the bound, and cut short");
    }
}
