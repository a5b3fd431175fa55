//! The Presence Service: changes of the leases, and the timer that ends them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout_at;
use tonic::{Request, Response, Status};

use super::arguments::{self, invalid};
use super::directory::unix_seconds;
use super::leases::{Change, Leases, PresenceChange};
use super::outgoing::Outgoing;
use crate::services::proto::presence_service_server::PresenceService;
use crate::services::proto::{
    RenewLeaseRequest, RenewLeaseResponse, UserOfflineRequest, UserOfflineResponse,
    UserOnlineRequest, UserOnlineResponse,
};

pub(super) struct Presence {
    leases: Arc<Mutex<Leases>>,
    outgoing: Arc<Outgoing>,
    /// A lease may end sooner than the timer knows.
    sooner: Notify,
}

impl Presence {
    pub fn new(leases: Arc<Mutex<Leases>>, outgoing: Arc<Outgoing>) -> Self {
        Self {
            leases,
            outgoing,
            sooner: Notify::new(),
        }
    }

    /// Ends leases when they run out, for ever.
    pub async fn keep_time(self: Arc<Self>) {
        loop {
            self.update(|_, _| ((), Vec::new()));
            let next = self.leases.lock().next_end();
            let sooner = self.sooner.notified();
            match next {
                // Both that the time is over and that there is news lead to another look.
                Some(end) => drop(timeout_at(end.into(), sooner).await),
                None => sooner.await,
            }
        }
    }

    /// Ends what has run out, makes a change, and has both announced. All of it under the lock,
    /// so that the order of announcements is the order of changes.
    fn update<T>(
        &self,
        change: impl FnOnce(&mut Leases, Instant) -> (T, Vec<(String, Change)>),
    ) -> T {
        let now = Instant::now();
        let timestamp = unix_seconds(SystemTime::now());
        let mut leases = self.leases.lock();
        let end_before = leases.next_end();
        let mut changes = offline(leases.expire(now));
        let (value, more) = change(&mut leases, now);
        changes.extend(more);
        let moment = leases.moment();
        let changes = changes.into_iter();
        self.outgoing
            .announce(changes.map(|(user, what)| PresenceChange {
                user,
                what,
                timestamp,
                moment,
            }));
        let end = leases.next_end();
        drop(leases);
        if end.is_some_and(|end| end_before.is_none_or(|before| end < before)) {
            self.sooner.notify_one();
        }
        value
    }
}

fn offline(users: Vec<String>) -> Vec<(String, Change)> {
    users
        .into_iter()
        .map(|user| (user, Change::Offline))
        .collect()
}

#[tonic::async_trait]
impl PresenceService for Presence {
    async fn user_online(
        &self,
        request: Request<UserOnlineRequest>,
    ) -> Result<Response<UserOnlineResponse>, Status> {
        let UserOnlineRequest {
            user_id,
            gateway_id,
        } = request.into_inner();
        arguments::user("user_id", &user_id)?;
        arguments::user("gateway_id", &gateway_id)?;
        self.update(|leases, now| {
            let came = leases.user_online(&user_id, &gateway_id, now);
            let what = if came {
                Change::Online
            } else {
                Change::Announced
            };
            ((), vec![(user_id, what)])
        });
        Ok(Response::new(UserOnlineResponse {}))
    }

    async fn user_offline(
        &self,
        request: Request<UserOfflineRequest>,
    ) -> Result<Response<UserOfflineResponse>, Status> {
        let UserOfflineRequest {
            user_id,
            gateway_id,
        } = request.into_inner();
        arguments::user("user_id", &user_id)?;
        arguments::user("gateway_id", &gateway_id)?;
        self.update(|leases, _| {
            let went = leases.user_offline(&user_id, &gateway_id);
            (
                (),
                if went {
                    offline(vec![user_id])
                } else {
                    Vec::new()
                },
            )
        });
        Ok(Response::new(UserOfflineResponse {}))
    }

    /// A lease that this call ends is not known: nothing of it holds afterwards.
    async fn renew_lease(
        &self,
        request: Request<RenewLeaseRequest>,
    ) -> Result<Response<RenewLeaseResponse>, Status> {
        let RenewLeaseRequest {
            gateway_id,
            ttl_seconds,
        } = request.into_inner();
        arguments::user("gateway_id", &gateway_id)?;
        let ttl = u64::try_from(ttl_seconds)
            .map(Duration::from_secs)
            .map_err(|_| invalid("ttl_seconds", "must not be negative"))?;
        let known = self.update(|leases, now| {
            if ttl.is_zero() {
                (false, offline(leases.end(&gateway_id)))
            } else {
                (leases.renew(&gateway_id, ttl, now), Vec::new())
            }
        });
        Ok(Response::new(RenewLeaseResponse { known }))
    }
}
