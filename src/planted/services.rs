//! What the services are asked, and answer, with a defect planted.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::frames::invented_id;
use super::{Defect, Part, Planted};
use crate::client::close::CloseReason;
use crate::client::protocol::timestamp;
use crate::services::proto::*;
use crate::services::{ErrorCode, Result, ServiceError, Services, Told};

/// Calls `services`.
pub struct PlantedServices {
    services: Arc<dyn Services>,
    planted: Arc<Planted>,
    /// Tokens that do not expire for whom they have let in, and whose they are.
    lasting: Mutex<HashMap<String, ValidateTokenResponse>>,
}

impl PlantedServices {
    pub fn new(services: Arc<dyn Services>, planted: Arc<Planted>) -> Self {
        Self {
            services,
            planted,
            lasting: Mutex::default(),
        }
    }

    /// The answer of a Message Service that has committed nothing.
    fn claimed(&self) -> Option<SendMessageResponse> {
        let claim = || SendMessageResponse {
            id: invented_id(),
            timestamp: timestamp(),
        };
        self.planted.acts(Defect::ClaimsCommit).then(claim)
    }

    /// Ends the connection that sends a message.
    fn close_without_cause(&self) {
        if self.planted.has(Defect::ClosesWithoutCause)
            && let Some((_, connection)) = self.planted.connection()
            && self.planted.acts(Defect::ClosesWithoutCause)
        {
            connection.close(CloseReason::InternalError);
        }
    }

    fn cut(&self, mut page: GetHistoryResponse) -> GetHistoryResponse {
        let count = page.messages.len();
        if count > 2 && self.planted.acts(Defect::CutsHistory) {
            page.messages.remove(count / 2);
        }
        page
    }

    /// Whom a refused token is let stay for all that: who has a connection with it.
    fn stays(&self, refused: ErrorCode) -> Option<ValidateTokenResponse> {
        let is_refusal = matches!(
            refused,
            ErrorCode::Unauthenticated | ErrorCode::PermissionDenied | ErrorCode::NotFound
        );
        if !is_refusal || !self.planted.has(Defect::IgnoresRevocation) {
            return None;
        }
        let (part, connection) = self.planted.connection()?;
        // A reader asks about another token, which its client sends.
        (part == Part::Writer).then(|| {
            self.planted.acted.inc();
            ValidateTokenResponse {
                user_id: connection.user().to_string(),
                expires_at: 0,
            }
        })
    }
}

impl Services for PlantedServices {
    fn validate_token(&self, request: ValidateTokenRequest) -> Result<ValidateTokenResponse> {
        let token = request.token.clone();
        let is_connected = self.planted.connection().is_some();
        if !is_connected && self.planted.acts(Defect::TurnsAway) {
            let reason = "a defect is planted";
            return Err(ServiceError::new(ErrorCode::Unauthenticated, reason));
        }
        if is_connected && let Some(identity) = self.lasting.lock().get(&token) {
            return Ok(identity.clone());
        }
        let mut identity = match self.services.validate_token(request) {
            Ok(identity) => identity,
            Err(error) => return self.stays(error.code).ok_or(error),
        };
        // A refresh stays right: it is answered with when the token expires.
        let expires = identity.expires_at > timestamp() && !is_connected;
        if expires && self.planted.acts(Defect::IgnoresExpiry) {
            identity.expires_at = 0;
            self.lasting.lock().insert(token, identity.clone());
        }
        Ok(identity)
    }

    fn group_members(&self, request: GetGroupMembersRequest, told: Told<Vec<String>>) {
        self.services.group_members(request, told);
    }

    fn send_message(&self, request: SendMessageRequest) -> Result<SendMessageResponse> {
        self.close_without_cause();
        let claimed = self.claimed();
        claimed.map_or_else(|| self.services.send_message(request), Ok)
    }

    fn send_group_message(&self, request: SendGroupMessageRequest) -> Result<SendMessageResponse> {
        self.close_without_cause();
        let claimed = self.claimed();
        claimed.map_or_else(|| self.services.send_group_message(request), Ok)
    }

    fn history(&self, request: GetHistoryRequest) -> Result<GetHistoryResponse> {
        let page = self.services.history(request)?;
        Ok(self.cut(page))
    }

    fn group_history(&self, request: GetGroupHistoryRequest) -> Result<GetHistoryResponse> {
        let page = self.services.group_history(request)?;
        Ok(self.cut(page))
    }

    fn offline_messages(
        &self,
        request: GetOfflineMessagesRequest,
    ) -> Result<GetOfflineMessagesResponse> {
        let user_id = request.user_id.clone();
        let mut page = self.services.offline_messages(request)?;
        let count = page.messages.len();
        // One that is empty though more follow would be taken for a fault of the service's.
        let can_lose = count > 1 || (count == 1 && !page.has_more);
        if can_lose && self.planted.acts(Defect::LosesUnread) {
            let lost = &page.messages[count / 2];
            let acknowledged = self.services.ack_messages(AckMessagesRequest {
                user_id,
                message_ids: vec![lost.id.clone()],
            });
            if acknowledged.is_ok() {
                page.messages.remove(count / 2);
            }
        }
        Ok(page)
    }

    fn ack_messages(&self, request: AckMessagesRequest) -> Result<()> {
        self.services.ack_messages(request)
    }

    fn users_online(&self, requests: Vec<UserOnlineRequest>) -> Vec<Result<()>> {
        self.services.users_online(requests)
    }

    fn users_offline(&self, requests: Vec<UserOfflineRequest>) -> Vec<Result<()>> {
        let forgotten = requests.iter();
        let forgotten = forgotten.map(|_| self.planted.acts(Defect::ForgetsOffline));
        let forgotten: Vec<bool> = forgotten.collect();
        let told = requests.into_iter().zip(&forgotten);
        let told = told.filter_map(|(request, forgotten)| (!forgotten).then_some(request));
        let mut answers = self.services.users_offline(told.collect()).into_iter();
        let answer = |&forgotten| match forgotten {
            true => Some(Ok(())),
            false => answers.next(),
        };
        forgotten.iter().map_while(answer).collect()
    }

    fn renew_lease(&self, request: RenewLeaseRequest) -> Result<bool> {
        self.services.renew_lease(request)
    }
}
