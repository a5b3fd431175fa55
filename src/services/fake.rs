//! For unit tests: a User Service that knows some groups, a Message Service that knows what is
//! unread, a Presence Service that remembers what it was told, and nothing else.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::proto::*;
use super::{ErrorCode, Result, ServiceError, Services, Told};

/// Answers for one call, in place of what the fake would.
pub type Answers<Q, A> = Mutex<Option<Box<dyn FnMut(Q) -> Result<A> + Send>>>;

#[derive(Default)]
pub struct FakeServices {
    groups: Mutex<HashMap<String, Vec<String>>>,
    failing: Mutex<Option<ErrorCode>>,
    failing_groups: Mutex<HashMap<String, ErrorCode>>,
    slow: Mutex<HashSet<String>>,
    unanswered: Mutex<Vec<(String, Told<Vec<String>>)>>,
    calls: AtomicUsize,
    /// When a token is to be validated.
    pub panics: AtomicBool,
    /// Whoever asks.
    pub unread: Mutex<Vec<Message>>,
    /// What the Message Service answers to `GetOfflineMessages`, if not `unread`.
    pub pages: Answers<GetOfflineMessagesRequest, GetOfflineMessagesResponse>,
    /// What the User Service answers to `ValidateToken`, if it is in reach.
    pub tokens: Answers<ValidateTokenRequest, ValidateTokenResponse>,
    /// What the Message Service answers to `SendMessage`, `GetHistory` and `AckMessages`, if it is in
    /// reach.
    pub sends: Answers<SendMessageRequest, SendMessageResponse>,
    pub histories: Answers<GetHistoryRequest, GetHistoryResponse>,
    pub acks: Answers<AckMessagesRequest, ()>,
    /// What the Presence Service was told: `+alice`, `-bob`.
    pub presence: Mutex<Vec<String>>,
    /// What happens while it is told next.
    pub meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl FakeServices {
    pub fn set(&self, group: &str, members: &[&str]) {
        let members = members.iter().map(|&member| member.into()).collect();
        self.groups.lock().insert(group.into(), members);
    }

    pub fn fail(&self, code: impl Into<Option<ErrorCode>>) {
        *self.failing.lock() = code.into();
    }

    /// How often it was asked for a group, or to renew a lease.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// From now on this group alone fails.
    pub fn fail_group(&self, group: &str, code: impl Into<Option<ErrorCode>>) {
        match code.into() {
            Some(code) => self.failing_groups.lock().insert(group.into(), code),
            None => self.failing_groups.lock().remove(group),
        };
    }

    /// From now on this group's members are told by [`FakeServices::answer`] alone.
    pub fn slow_group(&self, group: &str) {
        self.slow.lock().insert(group.into());
    }

    /// Answers the oldest question that waits, with what is so now, and names its group.
    pub fn answer(&self) -> String {
        let (group, told) = self.unanswered.lock().remove(0);
        told(self.members(&group));
        group
    }

    /// Of how many questions the answer is awaited.
    pub fn unanswered(&self) -> usize {
        self.unanswered.lock().len()
    }

    /// Drops the oldest question that waits.
    pub fn drop_question(&self) {
        drop(self.unanswered.lock().remove(0));
    }

    fn members(&self, group: &str) -> Result<Vec<String>> {
        self.check()?;
        if let Some(code) = self.failing_groups.lock().get(group) {
            return Err(ServiceError::new(*code, "as told of this group"));
        }
        let members = self.groups.lock().get(group).cloned();
        members.ok_or_else(|| ServiceError::new(ErrorCode::NotFound, "no such group"))
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

/// As told, if it was.
fn answer<Q, A>(answers: &Answers<Q, A>, request: Q) -> Result<A> {
    match &mut *answers.lock() {
        Some(answer) => answer(request),
        None => unreachable(),
    }
}

fn unreachable<T>() -> Result<T> {
    Err(ServiceError::new(
        ErrorCode::ServiceUnavailable,
        "not in this test",
    ))
}

impl Services for FakeServices {
    fn group_members(&self, request: GetGroupMembersRequest, told: Told<Vec<String>>) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let group = request.group_id;
        if self.slow.lock().contains(&group) {
            return self.unanswered.lock().push((group, told));
        }
        told(self.members(&group));
    }
    fn validate_token(&self, request: ValidateTokenRequest) -> Result<ValidateTokenResponse> {
        assert!(!self.panics.load(Ordering::SeqCst), "as told");
        answer(&self.tokens, request)
    }
    fn send_message(&self, request: SendMessageRequest) -> Result<SendMessageResponse> {
        answer(&self.sends, request)
    }
    fn send_group_message(&self, _: SendGroupMessageRequest) -> Result<SendMessageResponse> {
        unreachable()
    }
    fn history(&self, request: GetHistoryRequest) -> Result<GetHistoryResponse> {
        answer(&self.histories, request)
    }
    fn group_history(&self, _: GetGroupHistoryRequest) -> Result<GetHistoryResponse> {
        unreachable()
    }
    fn offline_messages(
        &self,
        request: GetOfflineMessagesRequest,
    ) -> Result<GetOfflineMessagesResponse> {
        if let Some(answer) = &mut *self.pages.lock() {
            return answer(request);
        }
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
    fn ack_messages(&self, request: AckMessagesRequest) -> Result<()> {
        answer(&self.acks, request)
    }
    fn users_online(&self, requests: Vec<UserOnlineRequest>) -> Vec<Result<()>> {
        self.told('+', requests.into_iter().map(|request| request.user_id))
    }
    fn users_offline(&self, requests: Vec<UserOfflineRequest>) -> Vec<Result<()>> {
        self.told('-', requests.into_iter().map(|request| request.user_id))
    }
    fn renew_lease(&self, _: RenewLeaseRequest) -> Result<bool> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.check().map(|()| true)
    }
}
