//! The names of users, groups and connections: three strings that must never be swapped.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use uuid::Uuid;

/// The longest user or group id, in bytes. An AMQP routing key holds 255, its prefix included.
pub const MAX_ID_BYTES: usize = 200;

/// A user or group id that is empty, too long, or holds a control character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an id is 1 to {MAX_ID_BYTES} bytes without control characters")]
pub struct InvalidId;

/// Whether `text` is 1 to [`MAX_ID_BYTES`] bytes without control characters.
pub fn is_id(text: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes what [`is_id`] allows.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                if is_id(text) { Ok(Self(text.into())) } else { Err(InvalidId) }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// A user, as the User Service names them.
    UserId
}
id! {
    /// A group, as the User Service names it.
    GroupId
}

/// One WebSocket connection: a random UUID, written as 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(Uuid);

impl ConnectionId {
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// A number from 0 up to 1 that is another one for each connection: for jitter.
    pub fn fraction(&self) -> f64 {
        let (high, _) = self.0.as_u64_pair();
        (high >> 32) as f64 / 2f64.powi(32)
    }

    /// The first 12 hex digits, for thread names: Linux cuts those at 15 bytes.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_1_to_200_bytes_without_control_characters() {
        assert!(UserId::new("李雷").is_ok());
        assert!(UserId::new(&"u".repeat(200)).is_ok());
        for bad in ["", "a\nb", "a\u{7f}", "a\u{85}b", &"u".repeat(201)] {
            assert_eq!(UserId::new(bad), Err(InvalidId), "{bad:?}");
        }
    }

    #[test]
    fn a_short_connection_id_fits_a_thread_name() {
        let id = ConnectionId::random();
        assert_eq!(id.short().len(), 12);
        assert!(id.to_string().starts_with(&id.short()));
    }

    #[test]
    fn fractions_are_spread_from_0_to_1() {
        let fractions: Vec<_> = (0..1_000)
            .map(|_| ConnectionId::random().fraction())
            .collect();
        for tenth in 0..10 {
            let within = f64::from(tenth) / 10.0..f64::from(tenth + 1) / 10.0;
            assert!(
                fractions.iter().any(|fraction| within.contains(fraction)),
                "{within:?}"
            );
        }
    }
}
