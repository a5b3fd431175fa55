//! From a request to its answer: one service call for each.

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::Message;
use ws_gateway::services::{ErrorCode, proto};

use super::protocol::{Ack, Outgoing, Request, SendGroupMessage, SendMessage, timestamp};
use super::services::{Refused, Services, answer};

/// Answers the requests of one connection's user.
pub struct Dispatch<'a> {
    pub user: &'a str,
    pub services: &'a Services,
}

impl Dispatch<'_> {
    /// An error answers a request, too.
    pub async fn answer(&self, text: &str) -> Message {
        let request: Request<'_> = match serde_json::from_str(text) {
            Ok(request) => request,
            Err(error) => {
                let message = error.to_string();
                return Outgoing::error(None, ErrorCode::InvalidMessage, &message).frame();
            }
        };
        let id = request.request_id.as_deref();
        self.serve(id, &request)
            .await
            .unwrap_or_else(|Refused { code, message }| Outgoing::error(id, code, &message).frame())
    }

    async fn serve(&self, id: Option<&str>, request: &Request<'_>) -> Result<Message, Refused> {
        match request.kind.as_str() {
            "send_message" => self.send_message(id, data(request.data)?).await,
            "send_group_message" => self.send_group_message(id, data(request.data)?).await,
            "ack" => self.ack(id, data(request.data)?).await,
            "ping" => Ok(Outgoing::Pong {
                request_id: id,
                timestamp: timestamp(),
            }
            .frame()),
            unknown => Err(Refused {
                code: ErrorCode::UnknownMessageType,
                message: format!("Unknown message type: {unknown}"),
            }),
        }
    }

    async fn send_message(&self, id: Option<&str>, to: SendMessage) -> Result<Message, Refused> {
        let client_message_id = to.draft.client_message_id.clone();
        let request = proto::SendMessageRequest {
            from_user_id: self.user.into(),
            to_user_id: to.to_user_id,
            content: to.draft.content,
            message_type: to.draft.message_type,
            client_message_id: to.draft.client_message_id,
        };
        let sent = self.services.message().send_message(request).await;
        let sent = answer("Message Service", sent)?;
        Ok(message_sent(id, &sent, &client_message_id))
    }

    async fn send_group_message(
        &self,
        id: Option<&str>,
        to: SendGroupMessage,
    ) -> Result<Message, Refused> {
        let client_message_id = to.draft.client_message_id.clone();
        let request = proto::SendGroupMessageRequest {
            from_user_id: self.user.into(),
            group_id: to.group_id,
            content: to.draft.content,
            message_type: to.draft.message_type,
            client_message_id: to.draft.client_message_id,
        };
        let sent = self.services.message().send_group_message(request).await;
        let sent = answer("Message Service", sent)?;
        Ok(message_sent(id, &sent, &client_message_id))
    }

    async fn ack(&self, id: Option<&str>, ack: Ack) -> Result<Message, Refused> {
        let request = proto::AckMessagesRequest {
            user_id: self.user.into(),
            message_ids: ack.message_ids,
        };
        let acked = self.services.message().ack_messages(request).await;
        answer("Message Service", acked)?;
        Ok(Outgoing::Acked {
            request_id: id,
            timestamp: timestamp(),
        }
        .frame())
    }
}

fn data<T: DeserializeOwned>(data: Option<&RawValue>) -> Result<T, Refused> {
    let invalid = |message: String| Refused {
        code: ErrorCode::InvalidMessage,
        message,
    };
    let data = data.ok_or_else(|| invalid("data: missing".into()))?;
    serde_json::from_str(data.get()).map_err(|error| invalid(format!("data: {error}")))
}

fn message_sent(
    id: Option<&str>,
    sent: &proto::SendMessageResponse,
    client_message_id: &str,
) -> Message {
    Outgoing::MessageSent {
        request_id: id,
        id: &sent.id,
        client_message_id,
        timestamp: sent.timestamp,
    }
    .frame()
}
