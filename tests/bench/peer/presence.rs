//! Who is online, as the Presence Service is told: by one task, so that it is in order.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::interval;
use ws_gateway::services::proto::{RenewLeaseRequest, UserOfflineRequest, UserOnlineRequest};

use super::registry::Registry;
use super::services::Services;

const LEASE_SECONDS: i32 = 60;
const RENEW_EVERY: Duration = Duration::from_secs(15);

/// Where connections tell that a user came or went.
pub struct Attendance(mpsc::UnboundedSender<Arc<str>>);

impl Attendance {
    /// Has the user looked up in the registry, in a while.
    pub fn look(&self, user: &Arc<str>) {
        let _ = self.0.send(Arc::clone(user));
    }
}

#[derive(Clone)]
pub struct Presence {
    gateway_id: String,
    services: Services,
    registry: Arc<Registry>,
}

impl Presence {
    pub fn new(gateway_id: &str, services: Services, registry: Arc<Registry>) -> Self {
        Self {
            gateway_id: gateway_id.into(),
            services,
            registry,
        }
    }

    pub fn start(&self) -> Attendance {
        let (sender, looks) = mpsc::unbounded_channel();
        tokio::spawn(self.clone().run(looks));
        Attendance(sender)
    }

    /// All of this gateway's users are offline.
    pub async fn end_lease(&self) {
        self.renew(0).await;
    }

    async fn run(self, mut looks: mpsc::UnboundedReceiver<Arc<str>>) {
        let mut online = HashSet::new();
        let mut renewals = interval(RENEW_EVERY);
        loop {
            tokio::select! {
                look = looks.recv() => match look {
                    Some(user) => self.tell(user, &mut online).await,
                    None => return,
                },
                _ = renewals.tick() => {
                    if !self.renew(LEASE_SECONDS).await {
                        online.clear();
                        for user in self.registry.users() {
                            self.tell(user, &mut online).await;
                        }
                    }
                }
            }
        }
    }

    /// A call that fails is made good by the next renewal that the service does not know.
    async fn tell(&self, user: Arc<str>, online: &mut HashSet<Arc<str>>) {
        let (user_id, gateway_id) = (user.to_string(), self.gateway_id.clone());
        let mut service = self.services.presence();
        if self.registry.holds(&user) {
            if online.contains(&user) {
                return;
            }
            let request = UserOnlineRequest {
                user_id,
                gateway_id,
            };
            match service.user_online(request).await {
                Ok(_) => drop(online.insert(user)),
                Err(status) => eprintln!("UserOnline failed: {status}"),
            }
        } else if online.remove(&user) {
            let request = UserOfflineRequest {
                user_id,
                gateway_id,
            };
            if let Err(status) = service.user_offline(request).await {
                eprintln!("UserOffline failed: {status}");
            }
        }
    }

    /// Whether the service knew this gateway.
    async fn renew(&self, ttl_seconds: i32) -> bool {
        let request = RenewLeaseRequest {
            gateway_id: self.gateway_id.clone(),
            ttl_seconds,
        };
        match self.services.presence().renew_lease(request).await {
            Ok(answer) => answer.into_inner().known,
            Err(status) => {
                eprintln!("RenewLease failed: {status}");
                true
            }
        }
    }
}
