//! From a delivery to the channels of the connections that it is for.

use std::collections::HashMap;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::message::Delivery;
use prost::Message as _;
use tokio::time::sleep;
use ws_gateway::broker::{KIND_GROUP_MEMBERS_CHANGED, KIND_SESSION_REVOKED, Queue};
use ws_gateway::services::ErrorCode;
use ws_gateway::services::proto::{GetGroupMembersRequest, Message, PresenceEvent, PresenceStatus};

use super::protocol::Outgoing;
use super::registry::Registry;
use super::services::{Services, answer};

/// How long a group's members are known without asking again.
const CACHE_TTL: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);

/// It can never be delivered.
pub struct Garbage;

/// The hand of one queue's consumer.
pub struct Deliver {
    queue: Queue,
    registry: Arc<Registry>,
    services: Services,
    groups: HashMap<String, (Arc<[String]>, Instant)>,
}

impl Deliver {
    pub fn new(queue: Queue, registry: Arc<Registry>, services: Services) -> Self {
        Self {
            queue,
            registry,
            services,
            groups: HashMap::new(),
        }
    }

    /// Returns once the delivery is in the channels of all local recipients.
    pub async fn take(&mut self, delivery: &Delivery) -> Result<(), Garbage> {
        let key = delivery.routing_key.as_str();
        let id = key.split_once('.').ok_or(Garbage)?.1;
        let kind = delivery.properties.kind().as_ref();
        match (self.queue, kind.map_or("", |kind| kind.as_str())) {
            (_, KIND_SESSION_REVOKED) => {}
            (_, KIND_GROUP_MEMBERS_CHANGED) => drop(self.groups.remove(id)),
            (Queue::Single, _) => {
                let message = Message::decode(&*delivery.data).map_err(|_| Garbage)?;
                let frame = Outgoing::chat(&message).frame();
                self.registry.push(slice::from_ref(&id), frame).await;
            }
            (Queue::Group, _) => {
                let message = Message::decode(&*delivery.data).map_err(|_| Garbage)?;
                let members = self.members(id).await;
                let frame = Outgoing::chat(&message).frame();
                self.registry.push(&members, frame).await;
            }
            (Queue::Presence, _) => {
                let event = PresenceEvent::decode(&*delivery.data).map_err(|_| Garbage)?;
                let status = match event.status() {
                    PresenceStatus::Online => "online",
                    PresenceStatus::Offline => "offline",
                    PresenceStatus::Unspecified => return Err(Garbage),
                };
                let presence = Outgoing::Presence {
                    user_id: id,
                    status,
                    timestamp: event.timestamp,
                };
                self.registry
                    .push(&event.watcher_ids, presence.frame())
                    .await;
            }
        }
        Ok(())
    }

    /// Waits for the User Service while it is out of reach.
    async fn members(&mut self, group: &str) -> Arc<[String]> {
        if let Some((members, since)) = self.groups.get(group)
            && since.elapsed() < CACHE_TTL
        {
            return Arc::clone(members);
        }
        let members: Arc<[String]> = loop {
            let request = GetGroupMembersRequest {
                group_id: group.into(),
            };
            let members = self.services.user().get_group_members(request).await;
            match answer("User Service", members) {
                Ok(members) => break members.user_ids.into(),
                Err(refused) if refused.code == ErrorCode::NotFound => break [].into(),
                Err(_) => sleep(RETRY).await,
            }
        };
        let entry = (Arc::clone(&members), Instant::now());
        self.groups.insert(group.into(), entry);
        members
    }
}
