//! From a request to its answer: one blocking service call for each.

use log::{Level, log};

use super::Context;
use super::connection::Connection;
use super::frame::Frame;
use super::protocol::{ChatMessage, Outgoing, timestamp};
use super::request::{Body, Request};
use super::token::{self, TokenError};
use crate::error::ErrorCode;
use crate::services::ServiceError;
use crate::services::proto::{GetHistoryResponse, SendMessageResponse};

/// The answer to `request` of this connection's user; an error answers it, too.
pub(super) fn answer(context: &Context, connection: &Connection, request: Request) -> Frame {
    let id = request.id.as_deref();
    let body = match request.body {
        Ok(body) => body,
        Err(invalid) => return error(id, invalid.code, &invalid.message),
    };
    let (kind, user, conn_id) = (body.kind(), connection.user(), connection.id());
    log::debug!("Message received: type={kind}, user={user}, conn_id={conn_id}");
    serve(context, connection, id, body).unwrap_or_else(|failed| {
        let level = match failed.code {
            ErrorCode::Internal => Level::Warn,
            _ => Level::Debug,
        };
        log!(
            level,
            "Request failed: type={kind}, user={user}, conn_id={conn_id}, error={failed}"
        );
        error(id, failed.code, &failed.message)
    })
}

fn serve(
    context: &Context,
    connection: &Connection,
    request_id: Option<&str>,
    body: Body,
) -> Result<Frame, ServiceError> {
    let services = &context.services;
    let max_bytes = context.config.session.send_queue_bytes;
    Ok(match body {
        Body::SendMessage(request) => {
            let client_message_id = request.client_message_id.clone();
            let sent = services.send_message(request)?;
            message_sent(request_id, &sent, &client_message_id)
        }
        Body::SendGroupMessage(request) => {
            let client_message_id = request.client_message_id.clone();
            let sent = services.send_group_message(request)?;
            message_sent(request_id, &sent, &client_message_id)
        }
        Body::GetHistory(request) => {
            let user_id = request.peer_id.clone();
            let history = services.history(request)?;
            cut_to_fit(max_bytes, &history, |messages, has_more| {
                Outgoing::History {
                    request_id,
                    user_id: &user_id,
                    messages,
                    has_more,
                }
            })
        }
        Body::GetGroupHistory(request) => {
            let group_id = request.group_id.clone();
            let history = services.group_history(request)?;
            cut_to_fit(max_bytes, &history, |messages, has_more| {
                Outgoing::GroupHistory {
                    request_id,
                    group_id: &group_id,
                    messages,
                    has_more,
                }
            })
        }
        Body::Ack(request) => {
            services.ack_messages(request)?;
            let timestamp = timestamp();
            let acked = Outgoing::Acked {
                request_id,
                timestamp,
            };
            acked.frame()
        }
        Body::RefreshToken { token } => {
            let expires_at = refresh_token(context, connection, &token)?;
            let refreshed = Outgoing::TokenRefreshed {
                request_id,
                expires_at,
                timestamp: timestamp(),
            };
            refreshed.frame()
        }
        Body::Ping => {
            let timestamp = timestamp();
            let pong = Outgoing::Pong {
                request_id,
                timestamp,
            };
            pong.frame()
        }
    })
}

/// Answers when the new token expires.
fn refresh_token(
    context: &Context,
    connection: &Connection,
    token: &str,
) -> Result<i64, ServiceError> {
    let identity = match token::validate(&*context.services, token) {
        Ok(identity) => identity,
        Err(TokenError::Refused(error) | TokenError::Unavailable(error)) => return Err(error),
        Err(TokenError::Expired) => {
            let (code, message) = (ErrorCode::Unauthenticated, "The token has expired");
            return Err(ServiceError::new(code, message));
        }
    };
    if identity.user != *connection.user() {
        let (code, message) = (ErrorCode::PermissionDenied, "The token is another user's");
        return Err(ServiceError::new(code, message));
    }
    connection.refresh(token, identity.expires_at);
    Ok(identity.expires_at)
}

fn message_sent(
    request_id: Option<&str>,
    sent: &SendMessageResponse,
    client_message_id: &str,
) -> Frame {
    let sent = Outgoing::MessageSent {
        request_id,
        id: &sent.id,
        client_message_id,
        timestamp: sent.timestamp,
    };
    sent.frame()
}

/// A history of at most `max_bytes`: what does not fit is older, and stays to be asked for. One
/// message is always sent.
fn cut_to_fit<'m>(
    max_bytes: usize,
    history: &'m GetHistoryResponse,
    outgoing: impl Fn(Vec<ChatMessage<'m>>, bool) -> Outgoing<'m>,
) -> Frame {
    let messages = history.messages.iter().filter_map(ChatMessage::of);
    let messages: Vec<_> = messages.collect();
    let mut page = &messages[..];
    let mut frame = outgoing(page.to_vec(), history.has_more).frame();
    while frame.len() > max_bytes && page.len() > 1 {
        // What is over is over by the oldest messages' lengths, or nearly so.
        let mut over = frame.len() - max_bytes;
        while let [oldest, newer @ ..] = page
            && over > 0
            && !newer.is_empty()
        {
            over = over.saturating_sub(oldest.frame().len());
            page = newer;
        }
        frame = outgoing(page.to_vec(), true).frame();
    }
    frame
}

/// An error frame.
pub(super) fn error(request_id: Option<&str>, code: ErrorCode, message: &str) -> Frame {
    let error = Outgoing::Error {
        request_id,
        code: code.as_str(),
        message,
        timestamp: timestamp(),
    };
    error.frame()
}
