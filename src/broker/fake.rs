//! For unit tests: a User Service that knows some groups, a Message Service that knows what is
//! unread, a Presence Service that remembers what it was told, and nothing else.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::services::proto::*;
use crate::services::{ErrorCode, Result, ServiceError, Services};

#[derive(Default)]
pub struct FakeUsers {
    groups: Mutex<HashMap<String, Vec<String>>>,
    failing: Mutex<Option<ErrorCode>>,
    calls: AtomicUsize,
    /// When a token is to be validated.
    pub panics: AtomicBool,
    /// Whoever asks.
    pub unread: Mutex<Vec<Message>>,
    /// What the Presence Service was told: `+alice`, `-bob`.
    pub presence: Mutex<Vec<String>>,
    /// What happens while it is told next.
    pub meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl FakeUsers {
    pub fn set(&self, group: &str, members: &[&str]) {
        let members = members.iter().map(|&member| member.into()).collect();
        self.groups.lock().insert(group.into(), members);
    }

    pub fn fail(&self, code: impl Into<Option<ErrorCode>>) {
        *self.failing.lock() = code.into();
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn check(&self) -> Result<()> {
        match *self.failing.lock() {
            Some(code) => Err(ServiceError::new(code, "as told")),
            None => Ok(()),
        }
    }

    fn told(&self, sign: char, users: impl Iterator<Item = String>) -> Vec<Result<()>> {
        if let Some(happens) = self.meanwhile.lock().take() {
            happens();
        }
        let tell = |user| {
            self.check()?;
            self.presence.lock().push(format!("{sign}{user}"));
            Ok(())
        };
        users.map(tell).collect()
    }
}

fn unreachable<T>() -> Result<T> {
    Err(ServiceError::new(
        ErrorCode::ServiceUnavailable,
        "not in this test",
    ))
}

impl Services for FakeUsers {
    fn group_members(&self, request: GetGroupMembersRequest) -> Result<Vec<String>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.check()?;
        let members = self.groups.lock().get(&request.group_id).cloned();
        members.ok_or_else(|| ServiceError::new(ErrorCode::NotFound, "no such group"))
    }
    fn validate_token(&self, _: ValidateTokenRequest) -> Result<ValidateTokenResponse> {
        assert!(!self.panics.load(Ordering::SeqCst), "as told");
        unreachable()
    }
    fn send_message(&self, _: SendMessageRequest) -> Result<SendMessageResponse> {
        unreachable()
    }
    fn send_group_message(&self, _: SendGroupMessageRequest) -> Result<SendMessageResponse> {
        unreachable()
    }
    fn history(&self, _: GetHistoryRequest) -> Result<GetHistoryResponse> {
        unreachable()
    }
    fn group_history(&self, _: GetGroupHistoryRequest) -> Result<GetHistoryResponse> {
        unreachable()
    }
    fn offline_messages(
        &self,
        request: GetOfflineMessagesRequest,
    ) -> Result<GetOfflineMessagesResponse> {
        let unread = self.unread.lock();
        let position = unread
            .iter()
            .position(|message| message.id == request.after_id);
        let start = match position {
            Some(position) => position + 1,
            None if request.after_id.is_empty() => 0,
            None => {
                return Err(ServiceError::new(
                    ErrorCode::InvalidMessage,
                    "no such message",
                ));
            }
        };
        Ok(GetOfflineMessagesResponse {
            messages: unread[start..].to_vec(),
            has_more: false,
        })
    }
    fn ack_messages(&self, _: AckMessagesRequest) -> Result<()> {
        unreachable()
    }
    fn users_online(&self, requests: Vec<UserOnlineRequest>) -> Vec<Result<()>> {
        self.told('+', requests.into_iter().map(|request| request.user_id))
    }
    fn users_offline(&self, requests: Vec<UserOfflineRequest>) -> Vec<Result<()>> {
        self.told('-', requests.into_iter().map(|request| request.user_id))
    }
    fn renew_lease(&self, _: RenewLeaseRequest) -> Result<bool> {
        self.check().map(|()| true)
    }
}
