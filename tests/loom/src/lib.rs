//! The gateway's outbox, delivery gate and connection, the very files that ship, on loom's types; and
//! the models of them, which `tests/models.rs` runs.
//!
//! What is beside them and is only data is their own too; what would bring along the whole gateway
//! is replaced by a stand-in of the same shape.

#![cfg(loom)]
#![allow(dead_code, reason = "the models use a part of each file")]

#[path = "../../../src/ids.rs"]
mod ids;
#[path = "../../../src/sync.rs"]
pub mod sync;

#[path = "."]
pub mod client {
    #[path = "../../../src/client/close.rs"]
    mod close;
    #[path = "../../../src/client/connection.rs"]
    mod connection;
    #[path = "../../../src/client/frame.rs"]
    mod frame;
    #[path = "../../../src/client/gate.rs"]
    mod gate;
    #[path = "../../../src/client/outbox.rs"]
    mod outbox;
    #[path = "../../../src/client/transport.rs"]
    mod transport;

    mod fake_socket;
    pub mod gate_models;
    pub mod outbox_models;

    /// Runs `model` in every interleaving in which threads are interrupted so often at most, apart from
    /// where they wait.
    fn check(interruptions: usize, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(interruptions);
        builder.max_branches = 2_000;
        builder.check(model);
    }

    mod address {
        pub type Peer = std::net::IpAddr;
    }

    mod handshake {
        use crate::ids::UserId;

        pub struct Accepted {
            pub identity: Identity,
            pub token: String,
        }

        pub struct Identity {
            pub user: UserId,
            pub expires_at: i64,
        }
    }

    mod protocol {
        use std::sync::Arc;

        use super::frame::Frame;

        #[derive(Debug, Clone, PartialEq)]
        pub struct Push {
            pub frame: Frame,
            pub kind: PushKind,
            pub message_id: Option<Arc<str>>,
        }

        impl Push {
            pub fn copy(&self, own_copy: bool) -> Self {
                let own_copy = own_copy.then_some(PushKind::OwnCopy);
                Self {
                    kind: own_copy.unwrap_or(self.kind),
                    ..self.clone()
                }
            }
        }

        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum PushKind {
            Unread,
            OwnCopy,
            Presence,
        }
    }
}
