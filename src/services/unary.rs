//! One unary call over HTTP/2: how it is written, and what comes back, looked at before it is taken
//! for gRPC. An answer to a call is whole, or it is none: a proxy's page, or half a message, is no
//! word of the service's.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use prost::Message;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::transport::{Channel, Error};
use tonic::{Code, Status};

use super::failure::{Failure, Why, root};

/// The largest answer taken, in bytes: a page of 100 long messages. tonic's default is 4 MiB.
pub(super) const MAX_ANSWER: usize = 16 << 20;
/// What comes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
const GRPC: &str = "application/grpc";

/// What a call came to: a message of at most [`MAX_ANSWER`], without its prefix; all else is a
/// [`Failure`].
pub(super) type Answer = Result<Bytes, Failure>;

/// What is asked of a service.
pub(super) struct Request {
    path: &'static str,
    /// Behind its prefix.
    message: Bytes,
    /// Whether it may be processed twice.
    pub idempotent: bool,
}

impl Request {
    /// An idempotent one, for the method at `path`.
    pub fn new(path: &'static str, message: &impl Message) -> Self {
        let message = message.encode_to_vec();
        // A client's frame bounds what a call carries, far below 4 GiB.
        let length = message.len() as u32;
        let message = [&[0], &length.to_be_bytes()[..], &message].concat();
        Self {
            path,
            message: message.into(),
            idempotent: true,
        }
    }

    /// Sends it, with how long the caller waits.
    pub async fn send(
        &self,
        mut channel: Channel,
        explain: impl Fn(&Error) -> Option<String>,
        timeout: Option<Duration>,
    ) -> Answer {
        let mut head = tonic::Request::new(());
        timeout.inspect(|&timeout| head.set_timeout(timeout));
        let mut headers = head.into_parts().0.into_headers();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
        // As any client of tonic's sends it: no length is announced, and the end is a frame of its
        // own.
        let frame = Ok::<_, Infallible>(Frame::data(self.message.clone()));
        let body = StreamBody::new(stream::once(ready(frame)));
        let request = http::Request::post(self.path).version(Version::HTTP_2);
        let mut request = request.body(Body::new(body)).expect("each path is a URI");
        *request.headers_mut() = headers;
        let on_the_way = |error| Failure::on_the_way(&error, explain(&error));
        let ready = poll_fn(|context| channel.poll_ready(context)).await;
        ready.map_err(on_the_way)?;
        read(channel.call(request).await.map_err(on_the_way)?).await
    }
}

/// Reads an answer to its end, and gives back its message.
async fn read(response: Response<Body>) -> Answer {
    let (head, mut body) = response.into_parts();
    let no = |what: &str| Err(Failure::not_grpc(head.status, what));
    // A status that is there counts, whatever HTTP says.
    let mut over = told(&head.headers)?;
    if !is_grpc(&head.headers) {
        let content_type = head.headers.get(CONTENT_TYPE);
        return no(&format!("content type {content_type:?}"));
    }
    let mut answer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // The server looked at the call, whatever the error says.
        let frame = frame.map_err(|error| Failure::new(Why::Lost, &root(&error)))?;
        match frame.into_data() {
            Ok(data) => answer.extend_from_slice(&data),
            Err(frame) => over |= frame.trailers_ref().map_or(Ok(false), told)?,
        }
        match announced(&answer) {
            Some((0, end)) if end > PREFIX + MAX_ANSWER => {
                let length = end - PREFIX;
                let text = format!("{length} bytes, and at most {MAX_ANSWER} are taken");
                return Err(Failure::new(Why::TooLarge, &text));
            }
            Some((0, end)) if answer.len() > end => return no("more than a message in its body"),
            None | Some((0, _)) => {}
            Some(_) => return no("no message in its body"),
        }
    }
    match announced(&answer) {
        _ if !over => no("without a gRPC status"),
        Some((_, end)) if answer.len() == end => Ok(answer.split_off(PREFIX).freeze()),
        None if answer.is_empty() => Err(Failure::unusable("Missing response message.")),
        _ => no("cut short"),
    }
}

/// Whether the service says that all went well; an error is what else it says. Neither where it has
/// not said yet.
fn told(headers: &HeaderMap) -> Result<bool, Failure> {
    let Some(status) = headers.get(Status::GRPC_STATUS) else {
        return Ok(false);
    };
    match Code::from_bytes(status.as_bytes()) {
        Code::Ok => Ok(true),
        code => Err(Failure::told(code, value(headers, &Status::GRPC_MESSAGE))),
    }
}

/// `application/grpc`, perhaps with `+proto` or a parameter; `application/grpc-web` is another.
fn is_grpc(headers: &HeaderMap) -> bool {
    let written = value(headers, &CONTENT_TYPE);
    let (begin, rest) = written.split_at_checked(GRPC.len()).unwrap_or_default();
    begin.eq_ignore_ascii_case(GRPC.as_bytes())
        && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// Of a header; empty where it is not there.
fn value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a [u8] {
    headers.get(name).map_or(&[], HeaderValue::as_bytes)
}

/// Whether the message is compressed, which was not asked for, and where it is to end.
fn announced(answer: &[u8]) -> Option<(u8, usize)> {
    let &[compressed, length @ ..] = answer.first_chunk::<PREFIX>()?;
    Some((compressed, PREFIX + u32::from_be_bytes(length) as usize))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use http_body_util::Full;

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
            assert_eq!(failure.why, Why::Told(Code::Unauthenticated));
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

    #[test]
    fn an_answer_without_a_message_is_the_services_own_fault() {
        let failure = taken(200, HEAD, b"", OK).unwrap_err();
        assert_eq!(failure.why, Why::Told(Code::Internal));
    }

    fn lost(taken: Result<(), Failure>, what: &str) {
        assert_eq!(taken.expect_err(what).why, Why::Lost, "{what}");
    }

    #[test]
    fn a_message_over_the_bound_is_too_large_before_it_is_there() {
        let failure = taken(200, HEAD, &[0, 1, 0, 0, 1], None).unwrap_err();
        assert_eq!(failure.why, Why::TooLarge);
        let failure = taken(200, HEAD, &[0, 1, 0, 0, 0], OK).unwrap_err();
        assert_eq!(failure.why, Why::Lost, "exactly the bound, and cut short");
    }
}
