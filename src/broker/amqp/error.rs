//! What went wrong with the broker, told by what the caller does next.

use std::fmt::Display;
use std::io::{self, ErrorKind};

use amiquip::Error;

pub type Result<T> = std::result::Result<T, AmqpError>;

/// None of the texts holds the broker's URL or password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmqpError {
    /// Nobody listens at the address: try again soon, asking costs a broker nothing.
    #[error("{0}: start RabbitMQ there (Debian: rabbitmq-server), or mend broker.url")]
    NotListening(String),
    /// The connection or channel is gone, or no answer came in time: start over after a while.
    #[error("{0}")]
    Lost(String),
    /// Another consumer holds the queue: it may be a predecessor about to go, or another gateway
    /// with the same id, which waiting does not mend.
    #[error("in use: {0}")]
    InUse(String),
    /// The broker refuses the named object or the login: somebody has to change something, there
    /// or in the configuration.
    #[error("refused by the broker: {0}")]
    Refused(String),
}

/// Translates an error of amiquip's that came while `what` was being done. Those of its errors that
/// hold a URL come from functions that are not used here.
pub(super) fn during(what: impl Display) -> impl FnOnce(Error) -> AmqpError {
    move |error| match error {
        Error::ServerClosedChannel { code, message, .. }
        | Error::ServerClosedConnection { code, message } => closed_by_broker(code, &message, what),
        // amiquip says so of every connection that ends while the broker judges the login.
        Error::InvalidCredentials => bad_login(),
        // A connection that nobody accepts fails with its first write.
        Error::IoErrorReadingSocket { source } | Error::IoErrorWritingSocket { source }
            if source.kind() == ErrorKind::ConnectionRefused =>
        {
            AmqpError::NotListening(source.to_string())
        }
        other => lost(format!("{what}: {other}")),
    }
}

pub(super) fn bad_login() -> AmqpError {
    AmqpError::Refused("login: wrong user or password, or no answer".into())
}

/// Something is gone, or did not come: what, says `text`.
pub fn lost(text: impl Into<String>) -> AmqpError {
    AmqpError::Lost(text.into())
}

pub fn no_thread(error: io::Error) -> AmqpError {
    lost(format!("no thread: {error}"))
}

/// Sorts a close by the broker (AMQP 0-9-1, section 1.1.2, reply codes) that came while `what` was
/// being done. RabbitMQ names the object in its text, and says "in use" under several codes.
fn closed_by_broker(code: u16, text: &str, what: impl Display) -> AmqpError {
    const ACCESS_REFUSED: u16 = 403;
    const RESOURCE_LOCKED: u16 = 405;
    const PRECONDITION_FAILED: u16 = 406;
    const NOT_ALLOWED: u16 = 530;
    // RabbitMQ's word for a queue that is not a classic one. It ends the connection.
    const NOT_IMPLEMENTED: u16 = 540;

    let exists_otherwise = code == NOT_IMPLEMENTED || text.contains("inequivalent arg");
    let way_out = if exists_otherwise {
        "; delete it on the broker, and it is declared as it must be"
    } else {
        ""
    };
    let sort = match code {
        RESOURCE_LOCKED => AmqpError::InUse,
        ACCESS_REFUSED if text.ends_with("in exclusive use") => AmqpError::InUse,
        PRECONDITION_FAILED if text.ends_with("in use") => AmqpError::InUse,
        ACCESS_REFUSED | PRECONDITION_FAILED | NOT_ALLOWED | NOT_IMPLEMENTED => AmqpError::Refused,
        _ => AmqpError::Lost,
    };
    sort(format!("{what}: {text}{way_out}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exists_otherwise_is_told_with_the_way_out() {
        let told = |code, text| closed_by_broker(code, text, "queue q").to_string();
        for (code, text) in [
            (406, "PRECONDITION_FAILED - inequivalent arg 'x-queue-type'"),
            (
                540,
                "NOT_IMPLEMENTED - cannot delete queue 'q' in vhost '/'",
            ),
        ] {
            let told = told(code, text);
            assert!(
                told.contains("queue q") && told.contains("delete it"),
                "{told}"
            );
        }
        assert!(!told(403, "ACCESS_REFUSED").contains("delete it"));
    }

    #[test]
    fn closes_are_sorted_by_what_to_do_next() {
        let in_use = |code, text| matches!(closed_by_broker(code, text, ""), AmqpError::InUse(_));
        assert!(in_use(
            403,
            "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use"
        ));
        assert!(in_use(
            405,
            "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue"
        ));
        assert!(in_use(
            406,
            "PRECONDITION_FAILED - queue 'q' in vhost '/' in use"
        ));

        let refused =
            |code, text| matches!(closed_by_broker(code, text, ""), AmqpError::Refused(_));
        assert!(refused(
            403,
            "ACCESS_REFUSED - access to queue 'q' in vhost '/' refused"
        ));
        assert!(refused(
            406,
            "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl'"
        ));
        assert!(refused(530, "NOT_ALLOWED - vhost im not found"));
        assert!(refused(
            540,
            "NOT_IMPLEMENTED - cannot delete queue 'q' in vhost '/'"
        ));

        let lost = closed_by_broker(320, "CONNECTION_FORCED - shutdown", "consume");
        assert_eq!(
            lost,
            AmqpError::Lost("consume: CONNECTION_FORCED - shutdown".into())
        );
    }
}
