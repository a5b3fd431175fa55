//! What is unread, pushed to a connection before anything live.

use std::time::Duration;

use futures_util::SinkExt;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Error;
use ws_gateway::services::proto::GetOfflineMessagesRequest;

use super::connection::{Sink, Socket};
use super::protocol::{Outgoing, timestamp};
use super::services::{Services, answer};

/// Messages asked for at once.
const PAGE: i32 = 50;
const RETRY: Duration = Duration::from_secs(1);

/// Writes what is unread after `position` page by page, past the connection's channel, in which live
/// pushes wait meanwhile. `position` moves to the last message written.
pub async fn catch_up<S: Socket>(
    sink: &mut Sink<S>,
    user: &str,
    services: &Services,
    position: &mut String,
) -> Result<(), Error> {
    let mut count = 0;
    loop {
        let request = GetOfflineMessagesRequest {
            user_id: user.into(),
            after_id: position.clone(),
            limit: PAGE,
        };
        let page = services.message().get_offline_messages(request).await;
        let Ok(page) = answer("Message Service", page) else {
            sleep(RETRY).await;
            continue;
        };
        for message in &page.messages {
            sink.feed(Outgoing::chat(message).frame()).await?;
        }
        count += page.messages.len();
        if let Some(last) = page.messages.last() {
            position.clone_from(&last.id);
        }
        if !page.has_more {
            break;
        }
        sink.flush().await?;
    }
    let complete = Outgoing::OfflineComplete {
        count,
        timestamp: timestamp(),
    };
    sink.send(complete.frame()).await
}
