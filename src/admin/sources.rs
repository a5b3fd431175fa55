//! What the admin listener looks at.

use std::sync::Arc;

use super::history::History;
use crate::client::Context;
use crate::client::admission::Limits;
use crate::readiness::Readiness;
use crate::registry::Registry;

/// Where answers come from.
pub struct Sources {
    pub context: Arc<Context>,
    pub registry: Arc<Registry>,
    pub readiness: Arc<Readiness>,
    pub history: Arc<History>,
    /// How much of the limits is used.
    pub limits: Arc<Limits>,
    /// Told whether the gateway drains by hand from now on.
    pub on_drain: Box<dyn Fn(bool) + Send + Sync>,
}
