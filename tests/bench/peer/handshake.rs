//! From a request head to an upgraded connection of an authenticated user.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use ws_gateway::services::ErrorCode;
use ws_gateway::services::proto::ValidateTokenRequest;

use super::connection::Socket;
use super::protocol::Outgoing;
use super::services::{Services, answer};

/// Of a message from a client, in bytes.
pub const MAX_MESSAGE_SIZE: usize = 64 << 10;
const MAX_HEAD: usize = 8 << 10;
const MAX_HEADERS: usize = 64;
/// The head, and with TLS its handshake.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// tungstenite allocates it at once, 128 KiB by default.
const READ_BUFFER: usize = 4 << 10;

/// What the upgrade needs of a request head.
struct Head {
    key: String,
    token: Option<String>,
    /// What came behind the head.
    early: Vec<u8>,
}

/// An answer instead of the upgrade.
struct Refusal {
    status: &'static str,
    code: ErrorCode,
    message: &'static str,
}

/// Reads the head, validates the token, and upgrades; `None`: there is no connection.
pub async fn upgrade<S: Socket>(
    mut socket: S,
    services: &Services,
) -> Option<(WebSocketStream<S>, Arc<str>)> {
    let head = timeout(HANDSHAKE_WITHIN, read_head(&mut socket))
        .await
        .ok()?;
    let admitted = match head {
        Ok(head) => authenticate(head, services).await,
        Err(refusal) => Err(refusal),
    };
    let (head, user) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            refuse(socket, &refusal).await;
            return None;
        }
    };
    let switching = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(head.key.as_bytes())
    );
    socket.write_all(switching.as_bytes()).await.ok()?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(MAX_MESSAGE_SIZE))
        .max_frame_size(Some(MAX_MESSAGE_SIZE));
    let stream =
        WebSocketStream::from_partially_read(socket, head.early, Role::Server, Some(config));
    Some((stream.await, user))
}

async fn read_head(socket: &mut impl Socket) -> Result<Head, Refusal> {
    let bad = Refusal {
        status: "400 Bad Request",
        code: ErrorCode::InvalidMessage,
        message: "Not a WebSocket upgrade",
    };
    let mut bytes = Vec::with_capacity(1 << 10);
    while bytes.len() < MAX_HEAD {
        match socket.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => break,
            Ok(_) => match parse(&bytes) {
                Ok(Some(head)) => return Ok(head),
                Ok(None) => {}
                Err(()) => break,
            },
        }
    }
    Err(bad)
}

/// `None`: there is more to come.
fn parse(bytes: &[u8]) -> Result<Option<Head>, ()> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(bytes).map_err(drop)? else {
        return Ok(None);
    };
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let header = |name: &str| {
        let found = request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let upgrades =
        header("Upgrade").is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"));
    if request.method != Some("GET") || path != "/ws" || !upgrades {
        return Err(());
    }
    let bearer = header("Authorization").and_then(|value| value.strip_prefix("Bearer "));
    let parameter = || {
        let mut parameters = form_urlencoded::parse(query.as_bytes());
        let token = parameters.find(|(name, _)| name == "token");
        token.map(|(_, token)| token.into_owned())
    };
    Ok(Some(Head {
        key: header("Sec-WebSocket-Key").ok_or(())?.to_owned(),
        token: bearer.map(str::to_owned).or_else(parameter),
        early: bytes[length..].to_vec(),
    }))
}

async fn authenticate(mut head: Head, services: &Services) -> Result<(Head, Arc<str>), Refusal> {
    let refusal = |message| Refusal {
        status: "401 Unauthorized",
        code: ErrorCode::Unauthenticated,
        message,
    };
    let token = head.token.take().filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| {
        refusal("Missing token: send `Authorization: Bearer TOKEN` or `?token=TOKEN`")
    })?;
    let validated = services
        .user()
        .validate_token(ValidateTokenRequest { token })
        .await;
    match answer("User Service", validated) {
        Ok(identity) => Ok((head, identity.user_id.into())),
        Err(refused) if refused.code == ErrorCode::Unauthenticated => Err(refusal("Invalid token")),
        Err(_) => Err(Refusal {
            status: "503 Service Unavailable",
            code: ErrorCode::ServiceUnavailable,
            message: "The User Service is not available",
        }),
    }
}

async fn refuse(mut socket: impl Socket, refusal: &Refusal) {
    let body = Outgoing::error(None, refusal.code, refusal.message).json();
    let answer = format!(
        "HTTP/1.1 {}\r\nWWW-Authenticate: Bearer\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        refusal.status,
        body.len()
    );
    // A client that is gone needs no answer.
    let _ = socket.write_all(answer.as_bytes()).await;
    let _ = socket.shutdown().await;
}
