//! [`Services`], measured: how long each call took, and what it came to; and who waits for one.

use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::Instant;

use crate::metrics::{Metrics, observe};
use crate::services::proto::*;
use crate::services::{Result, Services, Told};

/// Calls the services, and counts.
pub struct Measured {
    services: Arc<dyn Services>,
    metrics: Arc<Metrics>,
}

impl Measured {
    pub fn new(services: Arc<dyn Services>, metrics: Arc<Metrics>) -> Self {
        Self { services, metrics }
    }

    fn measure<T>(
        &self,
        method: &'static str,
        call: impl FnOnce(&dyn Services) -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        let under_way = UnderWay::begin(&self.metrics, method, start);
        let result = call(&*self.services);
        drop(under_way);
        note(&self.metrics, method, start, &result);
        result
    }

    /// As [`Self::measure`] for calls that are under way at once: each took as long as all of them.
    fn measure_all<T>(
        &self,
        method: &str,
        call: impl FnOnce(&dyn Services) -> Vec<Result<T>>,
    ) -> Vec<Result<T>> {
        let start = Instant::now();
        let results = call(&*self.services);
        for result in &results {
            note(&self.metrics, method, start, result);
        }
        results
    }
}

/// A call that this thread waits for, until this is dropped.
struct UnderWay<'m> {
    metrics: &'m Metrics,
    thread: Thread,
}

impl<'m> UnderWay<'m> {
    fn begin(metrics: &'m Metrics, method: &'static str, start: Instant) -> Self {
        let thread = thread::current();
        let name = thread.name().unwrap_or_default().to_owned();
        metrics.calls.lock().insert(name, (method, start));
        Self { metrics, thread }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let name = self.thread.name().unwrap_or_default();
        self.metrics.calls.lock().remove(name);
    }
}

fn note<T>(metrics: &Metrics, method: &str, start: Instant, result: &Result<T>) {
    let code = result
        .as_ref()
        .map_or_else(|error| error.code.as_str(), |_| "OK");
    let histogram = metrics.rpc.with_label_values(&[method, code]);
    observe(&histogram, start.elapsed());
}

impl Services for Measured {
    fn validate_token(&self, request: ValidateTokenRequest) -> Result<ValidateTokenResponse> {
        self.measure("ValidateToken", |services| services.validate_token(request))
    }

    fn group_members(&self, request: GetGroupMembersRequest, told: Told<Vec<String>>) {
        let (metrics, start) = (Arc::clone(&self.metrics), Instant::now());
        let told: Told<Vec<String>> = Box::new(move |result| {
            note(&metrics, "GetGroupMembers", start, &result);
            told(result);
        });
        self.services.group_members(request, told);
    }

    fn send_message(&self, request: SendMessageRequest) -> Result<SendMessageResponse> {
        self.measure("SendMessage", |services| services.send_message(request))
    }

    fn send_group_message(&self, request: SendGroupMessageRequest) -> Result<SendMessageResponse> {
        self.measure("SendGroupMessage", |services| {
            services.send_group_message(request)
        })
    }

    fn history(&self, request: GetHistoryRequest) -> Result<GetHistoryResponse> {
        self.measure("GetHistory", |services| services.history(request))
    }

    fn group_history(&self, request: GetGroupHistoryRequest) -> Result<GetHistoryResponse> {
        self.measure("GetGroupHistory", |services| {
            services.group_history(request)
        })
    }

    fn offline_messages(
        &self,
        request: GetOfflineMessagesRequest,
    ) -> Result<GetOfflineMessagesResponse> {
        self.measure("GetOfflineMessages", |services| {
            services.offline_messages(request)
        })
    }

    fn ack_messages(&self, request: AckMessagesRequest) -> Result<()> {
        self.measure("AckMessages", |services| services.ack_messages(request))
    }

    fn users_online(&self, requests: Vec<UserOnlineRequest>) -> Vec<Result<()>> {
        self.measure_all("UserOnline", |services| services.users_online(requests))
    }

    fn users_offline(&self, requests: Vec<UserOfflineRequest>) -> Vec<Result<()>> {
        self.measure_all("UserOffline", |services| services.users_offline(requests))
    }

    fn renew_lease(&self, request: RenewLeaseRequest) -> Result<bool> {
        self.measure("RenewLease", |services| services.renew_lease(request))
    }
}
