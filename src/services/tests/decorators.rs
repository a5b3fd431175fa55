//! A decorator does something with every call, whatever services it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::services::fake::FakeServices;
use crate::services::*;

/// Counts the calls, and those that failed.
#[derive(Default)]
struct Counted<S> {
    services: S,
    calls: AtomicUsize,
    failed: Arc<AtomicUsize>,
}

impl<S> Counted<S> {
    fn count<A>(&self, answer: Result<A>) -> Result<A> {
        self.calls.fetch_add(1, SeqCst);
        self.failed.fetch_add(usize::from(answer.is_err()), SeqCst);
        answer
    }
}

impl<S: Services> Services for Counted<S> {
    fn validate_token(&self, request: ValidateTokenRequest) -> Result<ValidateTokenResponse> {
        self.count(self.services.validate_token(request))
    }
    fn group_members(&self, request: GetGroupMembersRequest, told: Told<Vec<String>>) {
        self.calls.fetch_add(1, SeqCst);
        let failed = Arc::clone(&self.failed);
        let told = move |answer: Result<_>| {
            failed.fetch_add(usize::from(answer.is_err()), SeqCst);
            told(answer);
        };
        self.services.group_members(request, Box::new(told));
    }
    fn send_message(&self, request: SendMessageRequest) -> Result<SendMessageResponse> {
        self.count(self.services.send_message(request))
    }
    fn send_group_message(&self, request: SendGroupMessageRequest) -> Result<SendMessageResponse> {
        self.count(self.services.send_group_message(request))
    }
    fn history(&self, request: GetHistoryRequest) -> Result<GetHistoryResponse> {
        self.count(self.services.history(request))
    }
    fn group_history(&self, request: GetGroupHistoryRequest) -> Result<GetHistoryResponse> {
        self.count(self.services.group_history(request))
    }
    fn offline_messages(
        &self,
        request: GetOfflineMessagesRequest,
    ) -> Result<GetOfflineMessagesResponse> {
        self.count(self.services.offline_messages(request))
    }
    fn ack_messages(&self, request: AckMessagesRequest) -> Result<()> {
        self.count(self.services.ack_messages(request))
    }
    fn users_online(&self, requests: Vec<UserOnlineRequest>) -> Vec<Result<()>> {
        let answers = self.services.users_online(requests).into_iter();
        answers.map(|answer| self.count(answer)).collect()
    }
    fn users_offline(&self, requests: Vec<UserOfflineRequest>) -> Vec<Result<()>> {
        let answers = self.services.users_offline(requests).into_iter();
        answers.map(|answer| self.count(answer)).collect()
    }
    fn renew_lease(&self, request: RenewLeaseRequest) -> Result<bool> {
        self.count(self.services.renew_lease(request))
    }
}

#[test]
fn services_can_be_decorated() {
    let counted = Arc::new(Counted::<Counted<FakeServices>>::default());
    counted.services.services.set("g", &["alice"]);
    let services: Arc<dyn Services> = Arc::<Counted<_>>::clone(&counted);
    for group_id in ["g", "nowhere"] {
        let group_id = group_id.into();
        let told = Box::new(|_: Result<Vec<String>>| ());
        services.group_members(GetGroupMembersRequest { group_id }, told);
    }
    services.renew_lease(RenewLeaseRequest::default()).unwrap();
    services.users_online(vec![UserOnlineRequest::default(); 3]);
    let lost = services.send_message(SendMessageRequest::default());
    assert!(lost.unwrap_err().is_out_of_reach());
    let inner = &counted.services;
    for (calls, failed) in [
        (&counted.calls, &counted.failed),
        (&inner.calls, &inner.failed),
    ] {
        assert_eq!((calls.load(SeqCst), failed.load(SeqCst)), (7, 2));
    }
}
