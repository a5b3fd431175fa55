//! The decorators through which a rehearsal acts: who is told of connections, and what the services
//! answer.

use std::sync::Arc;

use super::rehearsals::{EXPIRES_IN, Rehearsals};
use crate::client::address::Peer;
use crate::client::connection::Connection;
use crate::client::protocol::{Push, timestamp};
use crate::client::{ConnectionObserver, OverUserLimit, Route};
use crate::http::Refusal;
use crate::ids::UserId;
use crate::services::proto::*;
use crate::services::{ErrorCode, Result, ServiceError, Services, Told};

/// Tells `rehearsals` of connections, and `observer`.
pub struct Followed {
    pub observer: Arc<dyn ConnectionObserver>,
    pub rehearsals: Arc<Rehearsals>,
}

impl ConnectionObserver for Followed {
    fn connected(&self, connection: &Arc<Connection>) -> Result<Route, OverUserLimit> {
        let route = self.observer.connected(connection)?;
        self.rehearsals.connected(connection);
        Ok(route)
    }

    fn disconnected(&self, connection: &Connection) {
        self.rehearsals.disconnected(connection);
        self.observer.disconnected(connection);
    }

    fn refused(&self, peer: Peer, user: Option<&UserId>, refusal: &Refusal) {
        self.observer.refused(peer, user, refusal);
    }
}

/// Calls the services, and does to a connection what is rehearsed on it.
pub struct Rehearsed {
    pub services: Arc<dyn Services>,
    pub rehearsals: Arc<Rehearsals>,
}

impl Rehearsed {
    fn call<T>(&self, call: impl FnOnce(&dyn Services) -> Result<T>) -> Result<T> {
        if self.rehearsals.is_paused() {
            let code = ErrorCode::ServiceUnavailable;
            return Err(ServiceError::new(code, "The services pause: a rehearsal"));
        }
        call(&*self.services)
    }

    /// Pushes the newest message of a history again, if that is wanted.
    fn repeat(&self, history: &GetHistoryResponse) {
        let Some(message) = history.messages.last() else {
            return;
        };
        if let Some(connection) = self.rehearsals.take_duplicate() {
            let is_own = message.from_user_id == connection.user().as_str();
            let push = match message.group_id.as_str() {
                "" => Push::message(message, is_own),
                _ => Push::group_message(message).copy(is_own),
            };
            connection.push(&push);
            connection.outbox.flush();
        }
    }
}

impl Services for Rehearsed {
    fn validate_token(&self, request: ValidateTokenRequest) -> Result<ValidateTokenResponse> {
        let mut identity = self.call(|services| services.validate_token(request))?;
        if self.rehearsals.take_expiry() {
            identity.expires_at = timestamp() + EXPIRES_IN;
        }
        Ok(identity)
    }

    fn group_members(&self, request: GetGroupMembersRequest, told: Told<Vec<String>>) {
        self.services.group_members(request, told);
    }

    fn send_message(&self, request: SendMessageRequest) -> Result<SendMessageResponse> {
        self.call(|services| services.send_message(request))
    }

    fn send_group_message(&self, request: SendGroupMessageRequest) -> Result<SendMessageResponse> {
        self.call(|services| services.send_group_message(request))
    }

    fn history(&self, request: GetHistoryRequest) -> Result<GetHistoryResponse> {
        let history = self.call(|services| services.history(request));
        history.inspect(|history| self.repeat(history))
    }

    fn group_history(&self, request: GetGroupHistoryRequest) -> Result<GetHistoryResponse> {
        let history = self.call(|services| services.group_history(request));
        history.inspect(|history| self.repeat(history))
    }

    fn offline_messages(
        &self,
        request: GetOfflineMessagesRequest,
    ) -> Result<GetOfflineMessagesResponse> {
        self.call(|services| services.offline_messages(request))
    }

    fn ack_messages(&self, request: AckMessagesRequest) -> Result<()> {
        self.call(|services| services.ack_messages(request))
    }

    fn users_online(&self, requests: Vec<UserOnlineRequest>) -> Vec<Result<()>> {
        self.services.users_online(requests)
    }

    fn users_offline(&self, requests: Vec<UserOfflineRequest>) -> Vec<Result<()>> {
        self.services.users_offline(requests)
    }

    fn renew_lease(&self, request: RenewLeaseRequest) -> Result<bool> {
        self.services.renew_lease(request)
    }
}
