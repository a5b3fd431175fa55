//! What the three services check in every request.

use std::fmt;

use tonic::Status;

use super::store::StoreError;
use crate::ids::{GroupId, UserId};

/// The most messages of one page.
const MAX_PAGE: u32 = 100;

/// INVALID_ARGUMENT, with the field named.
pub(super) fn invalid(field: &str, reason: impl fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {reason}"))
}

/// Checks that `value` can be a user.
pub(super) fn user(field: &str, value: &str) -> Result<(), Status> {
    UserId::new(value)
        .map(drop)
        .map_err(|error| invalid(field, error))
}

/// Checks that `value` can be a group.
pub(super) fn group(field: &str, value: &str) -> Result<(), Status> {
    GroupId::new(value)
        .map(drop)
        .map_err(|error| invalid(field, error))
}

/// Checks the size of a page.
pub(super) fn limit(value: i32) -> Result<u32, Status> {
    match u32::try_from(value) {
        Ok(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
        _ => Err(invalid("limit", format!("must be 1 to {MAX_PAGE}"))),
    }
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        Status::unavailable(error.to_string())
    }
}
