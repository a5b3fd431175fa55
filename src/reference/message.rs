//! The Message Service: sending, history, what is unread, acknowledging.
//!
//! Each call checks its arguments here and does the rest in one job on the store thread. So the
//! membership that a group message is checked against, and its list of recipients, are those at
//! its place in the order of commits.

use std::collections::BTreeSet;
use std::time::SystemTime;

use rusqlite::Connection;
use tonic::{Request, Response, Status};

use super::arguments::{self, invalid};
use super::directory::{Directories, Directory, unix_seconds};
use super::store::messages::{self, Conversation, Page};
use super::store::{MessageIds, Store};
use super::user::no_such_group;
use crate::services::proto::message_service_server::MessageService;
use crate::services::proto::{
    AckMessagesRequest, AckMessagesResponse, GetGroupHistoryRequest, GetHistoryRequest,
    GetHistoryResponse, GetOfflineMessagesRequest, GetOfflineMessagesResponse, Message,
    SendGroupMessageRequest, SendMessageRequest, SendMessageResponse,
};

/// The most acknowledgements of one job, so that a long list keeps nobody else waiting.
const ACKS_AT_ONCE: usize = 500;

pub(super) struct Messages {
    pub directories: Directories,
    pub store: Store,
}

impl Messages {
    /// Commits `message`, which has neither id nor timestamp yet.
    async fn send(&self, message: Message) -> Result<Response<SendMessageResponse>, Status> {
        if !messages::fits(&message) {
            return Err(invalid("content", "the message is too large"));
        }
        let (ids, directories) = (self.store.ids, self.directories.clone());
        let sent = self
            .store
            .change(move |connection| send(connection, ids, &directories.current(), message))
            .await??;
        Ok(Response::new(SendMessageResponse {
            id: sent.id,
            timestamp: sent.timestamp,
        }))
    }

    async fn history(
        &self,
        conversation: Conversation,
        before_id: String,
        limit: i32,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        let limit = arguments::limit(limit)?;
        let ids = self.store.ids;
        let page = self
            .store
            .query(move |connection| {
                let position = position(connection, ids, "before_id", &before_id, i64::MAX)?;
                at(position, |before| {
                    messages::history(connection, &conversation, before, limit)
                })
            })
            .await??;
        Ok(Response::new(GetHistoryResponse {
            messages: page.messages,
            has_more: page.has_more,
        }))
    }
}

#[tonic::async_trait]
impl MessageService for Messages {
    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        let request = request.into_inner();
        arguments::user("from_user_id", &request.from_user_id)?;
        arguments::user("to_user_id", &request.to_user_id)?;
        self.send(Message {
            from_user_id: request.from_user_id,
            to_user_id: request.to_user_id,
            content: request.content,
            message_type: request.message_type,
            client_message_id: request.client_message_id,
            ..Message::default()
        })
        .await
    }

    async fn send_group_message(
        &self,
        request: Request<SendGroupMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        let request = request.into_inner();
        arguments::user("from_user_id", &request.from_user_id)?;
        arguments::group("group_id", &request.group_id)?;
        self.send(Message {
            from_user_id: request.from_user_id,
            group_id: request.group_id,
            content: request.content,
            message_type: request.message_type,
            client_message_id: request.client_message_id,
            ..Message::default()
        })
        .await
    }

    async fn get_history(
        &self,
        request: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        let request = request.into_inner();
        arguments::user("user_id", &request.user_id)?;
        arguments::user("peer_id", &request.peer_id)?;
        let conversation = Conversation::Single(request.user_id, request.peer_id);
        self.history(conversation, request.before_id, request.limit)
            .await
    }

    /// A group that does not exist has no members, so it is PERMISSION_DENIED too.
    async fn get_group_history(
        &self,
        request: Request<GetGroupHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        let request = request.into_inner();
        arguments::user("user_id", &request.user_id)?;
        arguments::group("group_id", &request.group_id)?;
        let directory = self.directories.current();
        let members = directory.members(&request.group_id);
        if !members.is_some_and(|members| members.contains(&request.user_id)) {
            return Err(no_member(&request.user_id, &request.group_id));
        }
        let conversation = Conversation::Group(request.group_id);
        self.history(conversation, request.before_id, request.limit)
            .await
    }

    async fn get_offline_messages(
        &self,
        request: Request<GetOfflineMessagesRequest>,
    ) -> Result<Response<GetOfflineMessagesResponse>, Status> {
        let GetOfflineMessagesRequest {
            user_id,
            after_id,
            limit,
        } = request.into_inner();
        arguments::user("user_id", &user_id)?;
        let limit = arguments::limit(limit)?;
        let ids = self.store.ids;
        let Page { messages, has_more } = self
            .store
            .query(move |connection| {
                let position = position(connection, ids, "after_id", &after_id, 0)?;
                at(position, |after| {
                    messages::unread(connection, &user_id, after, limit)
                })
            })
            .await??;
        Ok(Response::new(GetOfflineMessagesResponse {
            messages,
            has_more,
        }))
    }

    /// Without ids the store is not asked, so that an empty call is a cheap probe.
    async fn ack_messages(
        &self,
        request: Request<AckMessagesRequest>,
    ) -> Result<Response<AckMessagesResponse>, Status> {
        let AckMessagesRequest {
            user_id,
            message_ids,
        } = request.into_inner();
        arguments::user("user_id", &user_id)?;
        let seqs: Vec<i64> = message_ids
            .iter()
            .filter_map(|id| self.store.ids.seq(id))
            .collect();
        for some in seqs.chunks(ACKS_AT_ONCE) {
            let (user, some) = (user_id.clone(), some.to_vec());
            self.store
                .change(move |connection| messages::acknowledge(connection, &user, &some))
                .await?;
        }
        Ok(Response::new(AckMessagesResponse {}))
    }
}

/// What a job on the store thread comes to: SQLite's errors outside, the caller's inside.
type Outcome<T> = rusqlite::Result<Result<T, Status>>;

/// The first answer, if this was sent before; else the message is stored.
fn send(
    connection: &Connection,
    ids: MessageIds,
    directory: &Directory,
    mut message: Message,
) -> Outcome<Message> {
    let before = messages::sent_before(
        connection,
        &message.from_user_id,
        &message.client_message_id,
    )?;
    if let Some(before) = before {
        return Ok(same_contents(before, message));
    }
    let recipients = match recipients(directory, &message) {
        Ok(recipients) => recipients,
        Err(status) => return Ok(Err(status)),
    };
    message.timestamp = unix_seconds(SystemTime::now());
    let recipients = recipients.iter().map(String::as_str);
    messages::insert(connection, ids, message, recipients).map(Ok)
}

/// `before`, if `again` is the same message but for id and timestamp.
fn same_contents(before: Message, mut again: Message) -> Result<Message, Status> {
    again.id.clone_from(&before.id);
    again.timestamp = before.timestamp;
    if again == before {
        Ok(before)
    } else {
        Err(invalid(
            "client_message_id",
            "was used for a message with other contents",
        ))
    }
}

/// For whom the message will be unread: not for its sender.
fn recipients(directory: &Directory, message: &Message) -> Result<BTreeSet<String>, Status> {
    let (from, group) = (&message.from_user_id, &message.group_id);
    let mut recipients = if group.is_empty() {
        BTreeSet::from([message.to_user_id.clone()])
    } else {
        let members = directory
            .members(group)
            .ok_or_else(|| no_such_group(group))?;
        if !members.contains(from) {
            return Err(no_member(from, group));
        }
        members.clone()
    };
    recipients.remove(from);
    Ok(recipients)
}

/// The number of the message that a page starts at; for an empty id it is `default`.
fn position(
    connection: &Connection,
    ids: MessageIds,
    field: &str,
    id: &str,
    default: i64,
) -> Outcome<i64> {
    if id.is_empty() {
        return Ok(Ok(default));
    }
    Ok(match ids.seq(id) {
        Some(seq) if messages::exists(connection, seq)? => Ok(seq),
        _ => Err(invalid(field, "no message has this id")),
    })
}

/// The page at `position`, if that is one.
fn at(
    position: Result<i64, Status>,
    page: impl FnOnce(i64) -> rusqlite::Result<Page>,
) -> Outcome<Page> {
    match position {
        Ok(position) => page(position).map(Ok),
        Err(status) => Ok(Err(status)),
    }
}

/// PERMISSION_DENIED, with both named.
fn no_member(user: &str, group: &str) -> Status {
    Status::permission_denied(format!("{user:?} is no member of group {group:?}"))
}
