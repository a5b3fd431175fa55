//! From a request to its answer: one blocking service call for each.

use log::{debug, warn};

use super::Context;
use super::connection::Connection;
use super::frame::Frame;
use super::protocol::{ChatMessage, Outgoing, timestamp};
use super::request::{Body, Draft, Page, Request};
use super::token::{self, TokenError};
use crate::ids::{GroupId, UserId};
use crate::services::{ErrorCode, ServiceError, proto};

/// Answers one request of a connection's user.
pub(super) struct Dispatch<'a> {
    pub context: &'a Context,
    pub connection: &'a Connection,
}

impl Dispatch<'_> {
    /// The answer to `request`; an error answers it, too.
    pub fn answer(&self, request: Request) -> Frame {
        let id = request.id.as_deref();
        let body = match request.body {
            Ok(body) => body,
            Err(invalid) => return error(id, invalid.code, &invalid.message),
        };
        let (kind, user, conn_id) = (body.kind(), self.connection.user(), self.connection.id());
        debug!("Message received: type={kind}, user={user}, conn_id={conn_id}");
        self.serve(id, body).unwrap_or_else(|failed| {
            if matches!(failed.code, ErrorCode::Internal) {
                warn!(
                    "Request failed: type={kind}, user={user}, conn_id={conn_id}, error={failed}"
                );
            } else {
                debug!(
                    "Request failed: type={kind}, user={user}, conn_id={conn_id}, error={failed}"
                );
            }
            error(id, failed.code, &failed.message)
        })
    }

    fn serve(&self, id: Option<&str>, body: Body) -> Result<Frame, ServiceError> {
        match body {
            Body::SendMessage { to, message } => self.send_message(id, &to, message),
            Body::SendGroupMessage { to, message } => self.send_group_message(id, &to, message),
            Body::GetHistory { with, page } => self.history(id, &with, page),
            Body::GetGroupHistory { of, page } => self.group_history(id, &of, page),
            Body::Ack { message_ids } => self.ack(id, message_ids),
            Body::RefreshToken { token } => self.refresh_token(id, token),
            Body::Ping => Ok(Outgoing::Pong {
                request_id: id,
                timestamp: timestamp(),
            }
            .frame()),
        }
    }

    fn send_message(
        &self,
        id: Option<&str>,
        to: &UserId,
        draft: Draft,
    ) -> Result<Frame, ServiceError> {
        let client_message_id = draft.client_message_id.clone();
        let sent = self
            .context
            .services
            .send_message(proto::SendMessageRequest {
                from_user_id: self.user(),
                to_user_id: to.as_str().into(),
                content: draft.content,
                message_type: draft.message_type,
                client_message_id: draft.client_message_id,
            })?;
        Ok(message_sent(id, &sent, &client_message_id))
    }

    fn send_group_message(
        &self,
        id: Option<&str>,
        to: &GroupId,
        draft: Draft,
    ) -> Result<Frame, ServiceError> {
        let client_message_id = draft.client_message_id.clone();
        let sent = self
            .context
            .services
            .send_group_message(proto::SendGroupMessageRequest {
                from_user_id: self.user(),
                group_id: to.as_str().into(),
                content: draft.content,
                message_type: draft.message_type,
                client_message_id: draft.client_message_id,
            })?;
        Ok(message_sent(id, &sent, &client_message_id))
    }

    fn history(&self, id: Option<&str>, with: &UserId, page: Page) -> Result<Frame, ServiceError> {
        let history = self.context.services.history(proto::GetHistoryRequest {
            user_id: self.user(),
            peer_id: with.as_str().into(),
            before_id: page.before_id,
            limit: page.limit,
        })?;
        Ok(
            self.cut_to_fit(&history, |messages, has_more| Outgoing::History {
                request_id: id,
                user_id: with.as_str(),
                messages,
                has_more,
            }),
        )
    }

    fn group_history(
        &self,
        id: Option<&str>,
        of: &GroupId,
        page: Page,
    ) -> Result<Frame, ServiceError> {
        let history = self
            .context
            .services
            .group_history(proto::GetGroupHistoryRequest {
                user_id: self.user(),
                group_id: of.as_str().into(),
                before_id: page.before_id,
                limit: page.limit,
            })?;
        Ok(
            self.cut_to_fit(&history, |messages, has_more| Outgoing::GroupHistory {
                request_id: id,
                group_id: of.as_str(),
                messages,
                has_more,
            }),
        )
    }

    /// A history of at most `send_queue_bytes`: what does not fit is older, and stays to be asked
    /// for. One message is always sent.
    fn cut_to_fit<'m>(
        &self,
        history: &'m proto::GetHistoryResponse,
        outgoing: impl Fn(Vec<ChatMessage<'m>>, bool) -> Outgoing<'m>,
    ) -> Frame {
        let bound = self.context.config.session.send_queue_bytes;
        let messages: Vec<_> = history
            .messages
            .iter()
            .filter_map(ChatMessage::of)
            .collect();
        let mut page = &messages[..];
        let mut frame = outgoing(page.to_vec(), history.has_more).frame();
        while frame.len() > bound && page.len() > 1 {
            // What is over is over by the oldest messages' lengths, or nearly so.
            let mut over = frame.len() - bound;
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

    fn ack(&self, id: Option<&str>, message_ids: Vec<String>) -> Result<Frame, ServiceError> {
        let request = proto::AckMessagesRequest {
            user_id: self.user(),
            message_ids,
        };
        self.context.services.ack_messages(request)?;
        Ok(Outgoing::Acked {
            request_id: id,
            timestamp: timestamp(),
        }
        .frame())
    }

    fn refresh_token(&self, id: Option<&str>, token: String) -> Result<Frame, ServiceError> {
        let failed = |code, message: &str| Err(ServiceError::new(code, message));
        let identity = match token::validate(&*self.context.services, &token) {
            Ok(identity) => identity,
            Err(TokenError::Refused(error) | TokenError::Unavailable(error)) => return Err(error),
            Err(TokenError::Expired) => {
                return failed(ErrorCode::Unauthenticated, "The token has expired");
            }
        };
        if identity.user != *self.connection.user() {
            return failed(ErrorCode::PermissionDenied, "The token is another user's");
        }
        let expires_at = identity.expires_at;
        self.connection.refresh(&token, expires_at);
        Ok(Outgoing::TokenRefreshed {
            request_id: id,
            expires_at,
            timestamp: timestamp(),
        }
        .frame())
    }

    fn user(&self) -> String {
        self.connection.user().as_str().into()
    }
}

fn message_sent(
    id: Option<&str>,
    sent: &proto::SendMessageResponse,
    client_message_id: &str,
) -> Frame {
    Outgoing::MessageSent {
        request_id: id,
        id: &sent.id,
        client_message_id,
        timestamp: sent.timestamp,
    }
    .frame()
}

/// An error frame.
pub(super) fn error(request_id: Option<&str>, code: ErrorCode, message: &str) -> Frame {
    Outgoing::Error {
        request_id,
        code: code.as_str(),
        message,
        timestamp: timestamp(),
    }
    .frame()
}
