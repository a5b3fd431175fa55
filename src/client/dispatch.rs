//! From a request to its answer: one blocking service call for each.

use log::{Level, log};

use super::Context;
use super::connection::Connection;
use super::frame::Frame;
use super::protocol::{ChatMessage, Outgoing, frame, timestamp};
use super::request::{Body, RefreshToken, Request};
use super::token::{self, TokenError};
use crate::services::proto::{GetHistoryResponse, SendMessageResponse};
use crate::services::{self, ErrorCode, ServiceError};

/// The answer to `request` of this connection's user; an error answers it, too.
pub(super) fn answer(context: &Context, connection: &Connection, request: Request) -> Frame {
    let id = request.id.as_deref();
    let body = match request.body {
        Ok(body) => body,
        Err(invalid) => return error(context, id, &invalid),
    };
    let (kind, method) = body.names();
    let (user, conn_id) = (connection.user(), connection.id());
    log::debug!("Message received: type={kind}, user={user}, conn_id={conn_id}");
    let serve = || serve(context, connection, id, body);
    connection
        .activity
        .during(method, serve)
        .unwrap_or_else(|failed| {
            let level = match failed.code {
                ErrorCode::Internal => Level::Warn,
                _ => Level::Debug,
            };
            log!(
                level,
                "Request failed: type={kind}, user={user}, conn_id={conn_id}, error={failed}"
            );
            error(context, id, &failed)
        })
}

fn serve(
    context: &Context,
    connection: &Connection,
    request_id: Option<&str>,
    body: Body,
) -> services::Result<Frame> {
    let services = &context.services;
    let max_bytes = context.config.session.send_queue_bytes;
    let message_sent = |client_message_id: &str, sent: &SendMessageResponse| {
        frame(&Outgoing::MessageSent {
            request_id,
            id: &sent.id,
            client_message_id,
            timestamp: sent.timestamp,
        })
    };
    Ok(match body {
        Body::SendMessage(request) => {
            let client_message_id = request.client_message_id.clone();
            message_sent(&client_message_id, &services.send_message(request)?)
        }
        Body::SendGroupMessage(request) => {
            let client_message_id = request.client_message_id.clone();
            message_sent(&client_message_id, &services.send_group_message(request)?)
        }
        Body::GetHistory(request) => {
            let user_id = request.peer_id.clone();
            let history = services.history(request)?;
            cut_to_fit(max_bytes, &history, |messages, has_more| {
                frame(&Outgoing::History {
                    request_id,
                    user_id: &user_id,
                    messages,
                    has_more,
                })
            })
        }
        Body::GetGroupHistory(request) => {
            let group_id = request.group_id.clone();
            let history = services.group_history(request)?;
            cut_to_fit(max_bytes, &history, |messages, has_more| {
                frame(&Outgoing::GroupHistory {
                    request_id,
                    group_id: &group_id,
                    messages,
                    has_more,
                })
            })
        }
        Body::Ack(request) => {
            services.ack_messages(request)?;
            frame(&Outgoing::Acked {
                request_id,
                timestamp: timestamp(),
            })
        }
        Body::RefreshToken(RefreshToken { token }) => {
            let expires_at = refresh_token(context, connection, &token)?;
            frame(&Outgoing::TokenRefreshed {
                request_id,
                expires_at,
                timestamp: timestamp(),
            })
        }
        Body::Ping => frame(&Outgoing::Pong {
            request_id,
            timestamp: timestamp(),
        }),
    })
}

/// Answers when the new token expires.
fn refresh_token(context: &Context, connection: &Connection, token: &str) -> services::Result<i64> {
    let refused = |code, message: &str| Err(ServiceError::new(code, message));
    let identity = match token::validate(&*context.services, token) {
        Ok(identity) => identity,
        Err(TokenError::Refused(error) | TokenError::Unavailable(error)) => return Err(error),
        Err(TokenError::Expired) => {
            return refused(ErrorCode::Unauthenticated, "The token has expired");
        }
    };
    if identity.user != *connection.user() {
        return refused(ErrorCode::PermissionDenied, "The token is another user's");
    }
    connection.refresh(token, identity.expires_at);
    Ok(identity.expires_at)
}

/// A history of at most `max_bytes`: what does not fit is older, and stays to be asked for. One
/// message is always sent.
fn cut_to_fit(
    max_bytes: usize,
    history: &GetHistoryResponse,
    encode: impl Fn(&[ChatMessage<'_>], bool) -> Frame,
) -> Frame {
    let messages = history.messages.iter().filter_map(ChatMessage::of);
    let messages: Vec<_> = messages.collect();
    let mut page = &messages[..];
    let mut answer = encode(page, history.has_more);
    while answer.len() > max_bytes && page.len() > 1 {
        // What is over is over by the oldest messages' lengths, or nearly so.
        let mut over = answer.len() - max_bytes;
        while over > 0 && page.len() > 1 {
            over = over.saturating_sub(frame(&page[0]).len());
            page = &page[1..];
        }
        answer = encode(page, true);
    }
    answer
}

/// An error frame.
pub(super) fn error(context: &Context, request_id: Option<&str>, error: &ServiceError) -> Frame {
    context.metrics.error(error.code);
    frame(&Outgoing::Error {
        request_id,
        code: error.code.as_str(),
        message: &error.message,
        timestamp: timestamp(),
    })
}
