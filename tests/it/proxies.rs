//! What comes back from a service's address and is no answer of the service's: proxies' pages, half
//! answers, statuses of a megabyte, refusals. Over sockets, with HTTP/2 frame by frame.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use parking_lot::RwLockReadGuard;
use prost::Message as _;
use serde_json::Value;
use tonic::{Code, Status};
use ws_gateway::config;
use ws_gateway::probe;
use ws_gateway::readiness::Readiness;
use ws_gateway::services::grpc::Grpc;
use ws_gateway::services::proto::*;
use ws_gateway::services::{ErrorCode, Services};

use crate::support::backend::Backend;
use crate::support::http2::*;
use crate::support::{DEADLINE, GATEWAY_THREADS, wait_until};

/// The services, called by a thread of this process.
struct Here {
    grpc: Arc<Grpc>,
    /// Goes last: by then the thread has ended.
    _here: RwLockReadGuard<'static, ()>,
}

impl Deref for Here {
    type Target = Grpc;

    fn deref(&self) -> &Grpc {
        &self.grpc
    }
}

/// All three services at these addresses. The first call goes to the first.
fn at(urls: &[String]) -> Here {
    let _here = GATEWAY_THREADS.read_recursive();
    let addresses = urls.to_vec();
    let config = config::Services {
        user: addresses.clone(),
        message: addresses.clone(),
        presence: addresses,
        timeout: DEADLINE,
        ..config::Services::default()
    };
    let grpc = Arc::new(Grpc::start(&config, None).expect("it starts"));
    Here { grpc, _here }
}

fn token(services: &Grpc) -> ws_gateway::services::Result<ValidateTokenResponse> {
    let token = "alice-token".to_owned();
    services.validate_token(ValidateTokenRequest { token })
}

/// A message that nobody may send twice.
fn message(content: &str) -> SendMessageRequest {
    SendMessageRequest {
        from_user_id: "alice".into(),
        to_user_id: "bob".into(),
        content: content.into(),
        ..SendMessageRequest::default()
    }
}

/// Answers whatever is asked: `ValidateTokenResponse` and `SendMessageResponse` look alike.
fn well(call: &Call) -> Reply {
    let answer = ValidateTokenResponse {
        user_id: "alice".into(),
        expires_at: 0,
    };
    call.answer(&answer.encode_to_vec())
}

type Script = fn(&Call) -> Reply;

/// What is no answer, with the error code that its only address leads to.
const NO_ANSWERS: [(&str, ErrorCode, Script); 27] = {
    use ErrorCode::{Internal, ServiceUnavailable as Unavailable};
    fn grpc(call: &Call) -> Reply {
        Reply::default().head(call.stream, "200", &[("content-type", b"application/grpc")])
    }
    [
        ("502", Unavailable, |call| call.page("502", "text/html")),
        ("503", Unavailable, |call| call.page("503", "text/html")),
        ("504", Unavailable, |call| call.page("504", "text/html")),
        ("429", Unavailable, |call| call.page("429", "text/html")),
        ("200", Unavailable, |call| call.page("200", "text/html")),
        ("401", Unavailable, |call| call.page("401", "text/html")),
        ("403", Unavailable, |call| call.page("403", "text/html")),
        ("400", Internal, |call| call.page("400", "text/html")),
        ("404", Internal, |call| call.page("404", "text/plain")),
        ("500", Internal, |call| call.page("500", "application/json")),
        ("302", Internal, |call| call.page("302", "text/html")),
        ("a page as gRPC", Unavailable, |call| {
            call.page("200", "application/grpc")
        }),
        ("503 as gRPC", Unavailable, |call| {
            call.page("503", "application/grpc")
        }),
        ("gRPC-Web", Unavailable, |call| {
            call.page("200", "application/grpc-web+proto")
        }),
        ("no content type", Unavailable, |call| {
            Reply::default()
                .head(call.stream, "200", &[])
                .data(call.stream, &framed(b""))
                .trailers(call.stream, &[("grpc-status", b"0")])
        }),
        ("nothing but a head", Unavailable, |call| {
            grpc(call).end(call.stream)
        }),
        ("no status", Unavailable, |call| {
            let message = framed(&SendMessageResponse::default().encode_to_vec());
            grpc(call).data(call.stream, &message).end(call.stream)
        }),
        ("trailers without a status", Unavailable, |call| {
            let begun = grpc(call).data(call.stream, &framed(b""));
            begun.trailers(call.stream, &[("x-served-by", b"proxy")])
        }),
        ("half a message", Unavailable, |call| {
            let begun = grpc(call).data(call.stream, &framed(b"hello")[..7]);
            begun.trailers(call.stream, &[("grpc-status", b"0")])
        }),
        ("reset in the body", Unavailable, |call| {
            let begun = grpc(call).data(call.stream, &framed(b"hello")[..7]);
            begun.reset(call.stream, INTERNAL_ERROR)
        }),
        ("cancelled in the body", Unavailable, |call| {
            let begun = grpc(call).data(call.stream, &framed(b"hello")[..7]);
            begun.reset(call.stream, CANCEL)
        }),
        ("ended in the body", Unavailable, |call| {
            let begun = grpc(call).data(call.stream, &framed(b"hello")[..7]);
            begun.reset(call.stream, NO_ERROR)
        }),
        ("refused in the body", Unavailable, |call| {
            let begun = grpc(call).data(call.stream, &framed(b"hello")[..7]);
            begun.reset(call.stream, REFUSED_STREAM)
        }),
        ("closed in the body", Unavailable, |call| {
            let begun = grpc(call).data(call.stream, &framed(b"hello")[..7]);
            begun.and_close()
        }),
        ("closed", Unavailable, |_| Reply::default().and_close()),
        ("reset", Unavailable, |call| {
            Reply::default().reset(call.stream, INTERNAL_ERROR)
        }),
        ("nonsense", Unavailable, |_| {
            Reply::default().raw(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        }),
    ]
};

#[test]
fn an_address_that_gives_no_answer_rests_until_it_does() {
    thread::scope(|scope| {
        for (what, _, broken) in NO_ANSWERS {
            scope.spawn(move || {
                let (proxy, service) = (Http2::start(broken), Http2::start(well));
                let services = at(&[proxy.url(), service.url()]);
                for _ in 0..20 {
                    token(&services).unwrap_or_else(|error| panic!("{what}: {error}"));
                }
                assert_eq!((proxy.calls(), service.calls()), (1, 20), "{what}");
                proxy.becomes(well);
                wait_until(format!("{what}: it is asked again"), || {
                    token(&services).expect("both are well");
                    proxy.calls() > 1
                });
            });
        }
    });
}

#[test]
fn without_an_answer_a_call_fails_as_http_says_and_the_service_is_out_of_reach() {
    for (what, code, broken) in NO_ANSWERS {
        let proxy = Http2::start(broken);
        let services = at(&[proxy.url()]);
        let error = token(&services).expect_err(what);
        assert_eq!(error.code, code, "{what}: {error}");
        assert!(error.is_out_of_reach() && !error.is_too_large(), "{what}");
        assert!(!error.message.contains("HTTP"), "{what}: {}", error.message);
        assert!(!error.cause.is_empty(), "{what}: the log says why");
    }
}

#[test]
fn what_may_have_been_processed_is_repeated_only_where_that_is_safe() {
    for (what, _, broken) in NO_ANSWERS {
        let (proxy, service) = (Http2::start(broken), Http2::start(well));
        let services = at(&[proxy.url(), service.url()]);
        let error = services.send_message(message("once")).expect_err(what);
        assert!(error.is_out_of_reach(), "{what}: {error}");
        assert_eq!((proxy.calls(), service.calls()), (1, 0), "{what}");

        let services = at(&[proxy.url(), service.url()]);
        let request = SendMessageRequest {
            client_message_id: "c1".into(),
            ..message("twice at most")
        };
        services.send_message(request).expect(what);
        assert_eq!((proxy.calls(), service.calls()), (2, 1), "{what}");
    }
}

#[test]
fn an_address_that_does_not_speak_http2_rests() {
    for answer in [
        &b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"[..],
        b"HTTP/1.1 505 HTTP Version Not Supported\r\nConnection: close\r\n\r\n<html></html>",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"",
    ] {
        let what = String::from_utf8_lossy(answer);
        let (proxy, service) = (NotHttp2::start(answer), Http2::start(well));
        let services = at(&[proxy.url(), service.url()]);
        for _ in 0..20 {
            token(&services).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        assert_eq!(service.calls(), 20, "{what}");
        // The call, and pings. Where nothing is said at all, tonic connects more often for one.
        let connections = proxy.connections();
        assert!(
            answer.is_empty() || connections < 10,
            "{what}: {connections}"
        );
        let alone = at(&[proxy.url()]);
        let error = token(&alone).expect_err("no answer");
        assert_eq!(error.code, ErrorCode::ServiceUnavailable, "{what}: {error}");
    }
}

#[test]
fn a_service_is_not_ready_as_long_as_a_page_comes_for_an_answer() {
    for status in ["200", "401", "404", "500", "503"] {
        let proxy = Http2::start(move |call| call.page(status, "text/html"));
        let readiness = Readiness::default();
        let services = at(&[proxy.url()]);
        let (fatal, _died) = crossbeam::channel::unbounded();
        let probe = probe::start(services.grpc.clone(), &readiness, &fatal).expect("a thread");
        let report = || serde_json::to_value(readiness.check()).expect("a report");
        wait_until("the proxy's page is seen", || {
            let reason = report()["checks"]["message_service"]["reason"].clone();
            reason
                .as_str()
                .is_some_and(|reason| reason.contains(status))
        });
        assert_eq!(report()["ready"], Value::Bool(false), "{}", report());
        proxy.becomes(well);
        wait_until("the service answers", || report()["ready"] == true);
        proxy.becomes(|call| call.status(16, &[]));
        probe.stop(std::time::Instant::now() + DEADLINE);
    }
}

/// While one call is under way on a connection, another fails with NOT_FOUND and these fields. The
/// other is answered.
fn beside_another(fields: Vec<(&'static str, Vec<u8>)>) -> ws_gateway::services::ServiceError {
    let waiting: Mutex<Option<u32>> = Mutex::default();
    let server = Http2::start(move |call| {
        let mut waiting = waiting.lock().unwrap();
        let Some(first) = waiting.take() else {
            *waiting = Some(call.stream);
            return Reply::default();
        };
        let borrowed: Vec<_> = fields.iter().map(|(n, v)| (*n, v.as_slice())).collect();
        let other = Call {
            stream: first,
            message: Vec::new(),
            ..*call
        };
        // In the trailers, and behind them the other's answer.
        let mut trailers = vec![("grpc-status", &b"5"[..])];
        trailers.extend_from_slice(&borrowed);
        Reply::default()
            .head(call.stream, "200", &[("content-type", b"application/grpc")])
            .trailers(call.stream, &trailers)
            .and(&well(&other))
    });
    let services = at(&[server.url()]);
    let error = thread::scope(|scope| {
        let other = scope.spawn(|| token(&services));
        wait_until("the other's call is there", || server.calls() == 1);
        let error = token(&services).expect_err("not found");
        other.join().unwrap().expect("the other's answer");
        error
    });
    assert_eq!(server.connections(), 1);
    error
}

#[test]
fn of_a_status_the_code_counts_whatever_its_text() {
    let a = |count: usize| b"a".repeat(count);
    let umlauts = "%C3%BC".repeat(1 << 19).into_bytes();
    for (fields, told) in [
        (vec![], String::new()),
        (vec![("grpc-message", a(17 << 10))], "a".repeat(256)),
        (vec![("grpc-message", a(100 << 10))], "a".repeat(256)),
        (vec![("grpc-message", a(1 << 20))], "a".repeat(256)),
        (vec![("grpc-message", umlauts.clone())], "ü".repeat(256)),
        (
            vec![("grpc-message", b"J\xfcrgen".to_vec())],
            "J\u{fffd}rgen".into(),
        ),
        (
            vec![("grpc-message", b"J%FCrgen".to_vec())],
            "J\u{fffd}rgen".into(),
        ),
        (
            vec![("grpc-message", b"%E2%82".to_vec())],
            "\u{fffd}".into(),
        ),
        (
            vec![("grpc-message", b"%zz %2 %".to_vec())],
            "%zz %2 %".into(),
        ),
        (
            vec![("grpc-message", b"a%0D%0Ab%00%1B[1m".to_vec())],
            "ab[1m".into(),
        ),
        (
            vec![("grpc-status-details-bin", b"not base64!".to_vec())],
            String::new(),
        ),
        (vec![("grpc-status-details-bin", a(1 << 20))], String::new()),
        (vec![("x-stack-trace", a(1 << 20))], String::new()),
        (
            vec![
                ("grpc-message", umlauts),
                ("grpc-status-details-bin", a(3 << 19)),
            ],
            "ü".repeat(256),
        ),
    ] {
        let sizes: Vec<_> = fields.iter().map(|(n, v)| (*n, v.len())).collect();
        let error = beside_another(fields);
        assert_eq!(error.code, ErrorCode::NotFound, "{sizes:?}: {error}");
        assert_eq!(error.message, told, "{sizes:?}");
    }
}

/// What is held in memory is bounded, so that its code may be lost.
#[test]
fn a_status_over_the_bound_costs_no_other_call() {
    beside_another(vec![("grpc-message", b"a".repeat(17 << 20))]);
}

#[test]
fn a_service_may_say_as_much_as_it_likes() {
    let backend = Backend::start();
    let services = at(&[backend.url()]);
    for size in [1 << 10, 17 << 10, 100 << 10, 1 << 20] {
        let status = Status::with_details(
            Code::PermissionDenied,
            "é\n".repeat(size / 3),
            b"x".repeat(size).into(),
        );
        backend.fail_with("ValidateToken", status);
        let error = token(&services).expect_err("denied");
        assert_eq!(error.code, ErrorCode::PermissionDenied, "{size}");
        assert_eq!(error.message, "é".repeat(256), "{size}");
    }
}

#[test]
fn a_status_in_an_answers_head_counts_as_well() {
    for fields in [
        [("grpc-message", b"a".repeat(1 << 20))],
        [("grpc-message", b"J\xfcrgen".to_vec())],
        [("grpc-status-details-bin", b"not base64!".to_vec())],
    ] {
        let server = Http2::start(move |call| {
            let fields: Vec<_> = fields.iter().map(|(n, v)| (*n, v.as_slice())).collect();
            call.status(16, &fields)
        });
        let error = token(&at(&[server.url()])).expect_err("unauthenticated");
        assert_eq!(error.code, ErrorCode::Unauthenticated, "{error}");
    }
    // Also of one that went well.
    let server = Http2::start(|call| {
        let answer = ValidateTokenResponse::default().encode_to_vec();
        Reply::default()
            .head(call.stream, "200", &[("content-type", b"application/grpc")])
            .data(call.stream, &framed(&answer))
            .trailers(
                call.stream,
                &[
                    ("grpc-status", b"0"),
                    ("grpc-message", &b"\xff".repeat(1 << 20)),
                    ("grpc-status-details-bin", b"not base64!"),
                ],
            )
    });
    token(&at(&[server.url()])).expect("it went well");
}

#[test]
fn a_call_that_was_refused_is_repeated_whatever_it_is() {
    let refusals: [(&str, Script); 5] = [
        ("refused", |call| {
            Reply::default().reset(call.stream, REFUSED_STREAM)
        }),
        ("going away", |_| Reply::default().go_away(0, NO_ERROR)),
        ("going away at once", |_| {
            Reply::default().go_away(0, NO_ERROR).and_close()
        }),
        ("going away in two steps", |_| {
            let step = Reply::default().go_away((1 << 31) - 1, NO_ERROR);
            step.go_away(0, NO_ERROR).and_close()
        }),
        ("going away in anger", |_| {
            let anger = Reply::default().go_away(0, ENHANCE_YOUR_CALM);
            anger.and_close()
        }),
    ];
    for (what, refusal) in refusals {
        let one = Http2::start(move |call| match call.nth_of_all {
            0 => refusal(call),
            _ => well(call),
        });
        let services = at(&[one.url()]);
        services.send_message(message("x")).expect(what);
        assert_eq!(one.calls(), 2, "{what}");

        let (first, second) = (Http2::start(refusal), Http2::start(well));
        let services = at(&[first.url(), second.url()]);
        services.send_message(message("x")).expect(what);
        assert_eq!((first.calls(), second.calls()), (1, 1), "{what}");

        // Not for ever.
        let all = Http2::start(refusal);
        let error = at(&[all.url()]).send_message(message("x")).expect_err(what);
        assert_eq!(error.code, ErrorCode::ServiceUnavailable, "{what}: {error}");
        assert!((2..=4).contains(&all.calls()), "{what}: {}", all.calls());
    }
}

#[test]
fn a_call_that_may_have_been_processed_is_not_taken_for_a_refused_one() {
    let ends: [(&str, Script); 6] = [
        ("cancelled", |call| {
            Reply::default().reset(call.stream, CANCEL)
        }),
        ("failed", |call| {
            Reply::default().reset(call.stream, INTERNAL_ERROR)
        }),
        ("closed", |_| Reply::default().and_close()),
        ("going away behind it", |call| {
            Reply::default().go_away(call.stream, NO_ERROR).and_close()
        }),
        ("going away far behind it", |_| {
            let away = Reply::default().go_away((1 << 31) - 1, NO_ERROR);
            away.and_close()
        }),
        ("unavailable", |call| call.status(14, &[])),
    ];
    for (what, end) in ends {
        let (first, second) = (Http2::start(end), Http2::start(well));
        let services = at(&[first.url(), second.url()]);
        let error = services.send_message(message("x")).expect_err(what);
        assert!(error.is_out_of_reach(), "{what}: {error}");
        assert_eq!((first.calls(), second.calls()), (1, 0), "{what}");
    }
}

/// Connections that end after so many calls, as a server's do that is restarted or a proxy's that
/// has a limit: with what came behind the last one refused.
#[test]
fn in_traffic_no_call_fails_because_connections_go_away() {
    const CALLERS: u32 = 8;
    const CALLS: u32 = 100;
    for servers in 1..=2 {
        let processed = Arc::new(AtomicU32::new(0));
        let start = || {
            let processed = Arc::clone(&processed);
            Http2::start(move |call| {
                if call.nth > 9 {
                    return Reply::default();
                }
                // All but the pings of an address that turned calls away.
                processed.fetch_add(u32::from(!call.message.is_empty()), SeqCst);
                match call.nth {
                    9 => well(call).go_away(call.stream, NO_ERROR),
                    _ => well(call),
                }
            })
        };
        let servers: Vec<_> = (0..servers).map(|_| start()).collect();
        let services = at(&servers.iter().map(Http2::url).collect::<Vec<_>>());
        thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    for nth in 0..CALLS {
                        let sent = services.send_message(message("x"));
                        sent.unwrap_or_else(|error| panic!("call {nth}: {error}"));
                    }
                });
            }
        });
        assert_eq!(processed.load(SeqCst), CALLERS * CALLS, "each once");
    }
}

/// Two servers that are restarted in turns, gracefully.
#[test]
fn in_traffic_no_call_fails_because_a_server_is_restarted() {
    let mut servers = [Backend::start(), Backend::start()];
    let addresses = [servers[0].addr, servers[1].addr];
    let services = at(&[servers[0].url(), servers[1].url()]);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    let sent = services.send_message(message("x"));
                    sent.unwrap_or_else(|error| panic!("{error}"));
                }
            });
        }
        for round in 0..6 {
            let which = round % 2;
            wait_until("it is called", || servers[which].calls("SendMessage") > 20);
            let old = std::mem::replace(&mut servers[which], Backend::start());
            old.stop_gracefully();
            servers[which] = Backend::start_at(addresses[which]);
        }
        over.store(true, SeqCst);
    });
}

#[test]
fn an_answer_over_the_bound_is_too_large_and_nobody_is_out_of_reach() {
    let backend = Backend::start();
    let services = at(&[backend.url()]);
    let member = "m".repeat(1 << 10);
    backend.answer(|answers| {
        let huge = vec![member.clone(); 17 << 10];
        answers.members.insert("huge".into(), huge);
        answers
            .members
            .insert("large".into(), vec![member; 15 << 10]);
        let message = Message {
            content: "x".repeat(1 << 20),
            ..Message::default()
        };
        answers.offline.messages = vec![message.clone(); 17];
        answers.history.messages = vec![message; 17];
    });
    let group = |group: &str| {
        let request = GetGroupMembersRequest {
            group_id: group.into(),
        };
        let (told, answer) = mpsc::channel();
        services.group_members(request, Box::new(move |answer| drop(told.send(answer))));
        answer.recv_timeout(DEADLINE).expect("an answer")
    };
    assert_eq!(group("large").expect("under the bound").len(), 15 << 10);
    let errors = [
        group("huge").expect_err("17 MiB"),
        services
            .offline_messages(GetOfflineMessagesRequest::default())
            .expect_err("17 MiB"),
        services
            .history(GetHistoryRequest::default())
            .expect_err("17 MiB"),
        services
            .group_history(GetGroupHistoryRequest::default())
            .expect_err("17 MiB"),
    ];
    for error in errors {
        assert!(error.is_too_large() && !error.is_out_of_reach(), "{error}");
        assert_eq!(error.code, ErrorCode::Internal, "{error}");
    }
    // The other groups are served as before.
    group("large").expect("under the bound");
}

#[test]
fn an_answer_that_is_announced_too_large_is_not_waited_for() {
    let server = Http2::start(|call| {
        let head =
            Reply::default().head(call.stream, "200", &[("content-type", b"application/grpc")]);
        head.data(call.stream, &[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3])
    });
    let error = token(&at(&[server.url()])).expect_err("4 GiB");
    assert!(error.is_too_large(), "{error}");
    // A service that may not send as much itself.
    let server = Backend::start();
    server.fail("GetOfflineMessages", Code::OutOfRange);
    let services = at(&[server.url()]);
    let asked = services.offline_messages(GetOfflineMessagesRequest::default());
    assert!(!asked.expect_err("out of range").is_too_large());
    let server = Http2::start(|call| {
        let text = b"Error, encoded message length too large: found 9 bytes, the limit is: 1 bytes";
        call.status(11, &[("grpc-message", text)])
    });
    let error = token(&at(&[server.url()])).expect_err("too large");
    assert!(error.is_too_large(), "{error}");
}
