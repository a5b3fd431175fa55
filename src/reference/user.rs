//! The User Service: tokens and groups, out of the directory.

use std::time::SystemTime;

use tonic::{Request, Response, Status};

use super::arguments;
use super::directory::Directories;
use crate::services::proto::user_service_server::UserService;
use crate::services::proto::{
    GetGroupMembersRequest, GetGroupMembersResponse, ValidateTokenRequest, ValidateTokenResponse,
};

/// Answers from memory alone, so that an empty `ValidateToken` is a cheap probe.
pub(super) struct Users {
    pub directories: Directories,
}

#[tonic::async_trait]
impl UserService for Users {
    async fn validate_token(
        &self,
        request: Request<ValidateTokenRequest>,
    ) -> Result<Response<ValidateTokenResponse>, Status> {
        let directory = self.directories.current();
        directory
            .identify(&request.get_ref().token, SystemTime::now())
            .map(|identity| ValidateTokenResponse {
                user_id: identity.user.into(),
                expires_at: identity.expires_at,
            })
            .map(Response::new)
            .ok_or_else(|| Status::unauthenticated("the token is unknown or expired"))
    }

    async fn get_group_members(
        &self,
        request: Request<GetGroupMembersRequest>,
    ) -> Result<Response<GetGroupMembersResponse>, Status> {
        let group = &request.get_ref().group_id;
        arguments::group("group_id", group)?;
        let directory = self.directories.current();
        let members = directory
            .members(group)
            .ok_or_else(|| no_such_group(group))?;
        let user_ids = members.iter().cloned().collect();
        Ok(Response::new(GetGroupMembersResponse { user_ids }))
    }
}

/// NOT_FOUND, with the group named.
pub(super) fn no_such_group(group: &str) -> Status {
    Status::not_found(format!("there is no group {group:?}"))
}
