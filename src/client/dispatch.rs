//! From a request to its answer: one blocking service call for each.

use log::{debug, warn};

use super::Context;
use super::connection::Connection;
use super::frame::Frame;
use super::protocol::{ChatMessage, History, Outgoing, frame, timestamp};
use super::request::{Body, Request};
use super::token::{self, TokenError};
use crate::services::proto::{GetHistoryResponse, SendMessageResponse};
use crate::services::{self, ErrorCode, ServiceError};

/// The answer to `request` of this connection's user; an error answers it, too.
pub(super) fn answer(context: &Context, connection: &Connection, request: Request) -> Frame {
    let request_id = request.id.as_deref();
    let served = request.body.and_then(|body| {
        let kind = <&str>::from(&body);
        debug!("Message received: type={kind}, {connection}");
        serve(context, connection, request_id, body).inspect_err(|failed| match failed.code {
            ErrorCode::Internal => {
                warn!("Request failed: type={kind}, {connection}, error={failed}")
            }
            _ => debug!("Request failed: type={kind}, {connection}, error={failed}"),
        })
    });
    served.unwrap_or_else(|ServiceError { code, message, .. }| {
        context.metrics.error(code);
        let message = message.as_str();
        Outgoing::Error { code, message }.frame(request_id, timestamp())
    })
}

fn serve(
    context: &Context,
    connection: &Connection,
    request_id: Option<&str>,
    body: Body,
) -> services::Result<Frame> {
    let services = &context.services;
    let message_sent = |client_message_id: &str, sent: &SendMessageResponse| {
        let id = &sent.id;
        let answer = Outgoing::MessageSent {
            id,
            client_message_id,
        };
        answer.frame(request_id, sent.timestamp)
    };
    let history = |kind, user_id: &str, group_id: &str, page: &GetHistoryResponse| {
        let messages = page.messages.iter().filter_map(ChatMessage::of);
        let messages: Vec<_> = messages.collect();
        let history = History {
            kind,
            request_id,
            user_id,
            group_id,
            messages: &messages,
            has_more: page.has_more,
        };
        cut_to_fit(context.config.session.send_queue_bytes, history)
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
            history("history", &user_id, "", &services.history(request)?)
        }
        Body::GetGroupHistory(request) => {
            let group_id = request.group_id.clone();
            let page = services.group_history(request)?;
            history("group_history", "", &group_id, &page)
        }
        Body::Ack(request) => {
            services.ack_messages(request)?;
            Outgoing::Acked.frame(request_id, timestamp())
        }
        Body::RefreshToken(token) => {
            let expires_at = refresh_token(context, connection, &token)?;
            Outgoing::TokenRefreshed { expires_at }.frame(request_id, timestamp())
        }
        Body::Ping => Outgoing::Pong.frame(request_id, timestamp()),
    })
}

/// Answers when the new token expires.
fn refresh_token(context: &Context, connection: &Connection, token: &str) -> services::Result<i64> {
    let validated = token::validate(&*context.services, token);
    let identity = validated.map_err(|error| match error {
        TokenError::Refused(error) | TokenError::Unavailable(error) => error,
        TokenError::Expired => {
            ServiceError::new(ErrorCode::Unauthenticated, "The token has expired")
        }
    })?;
    if identity.user != *connection.user() {
        let message = "The token is another user's";
        return Err(ServiceError::new(ErrorCode::PermissionDenied, message));
    }
    connection.refresh(token, identity.expires_at);
    Ok(identity.expires_at)
}

/// A history of at most `max_bytes`: what does not fit is older, and stays to be asked for. One
/// message is always sent.
fn cut_to_fit(max_bytes: usize, mut history: History<'_>) -> Frame {
    let mut answer = frame(&history);
    while answer.len() > max_bytes && history.messages.len() > 1 {
        // What is over is over by the oldest messages' lengths, or nearly so.
        let mut over = answer.len() - max_bytes;
        while over > 0 && history.messages.len() > 1 {
            over = over.saturating_sub(frame(&history.messages[0]).len());
            history.messages = &history.messages[1..];
        }
        history.has_more = true;
        answer = frame(&history);
    }
    answer
}
