//! The gRPC server: the three services on one address.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_stream::StreamExt;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::message::Messages;
use super::presence::Presence;
use super::store::messages::MAX_ANSWER_BYTES;
use super::user::Users;
use crate::services::proto::message_service_server::MessageServiceServer;
use crate::services::proto::presence_service_server::PresenceServiceServer;
use crate::services::proto::user_service_server::UserServiceServer;

/// Calls of one connection at a time. A gateway has one connection for all of its users.
const MAX_STREAMS: u32 = 1024;
/// After this time without a sign of life, a client is asked for one.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// After an accept that failed, which it goes on doing while descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Services {
    pub users: Users,
    pub messages: Messages,
    pub presence: Arc<Presence>,
}

impl Services {
    /// Serves until `stop` comes or its sender is gone, and then until all connections are closed.
    pub async fn serve(self, listener: TcpListener, stop: oneshot::Receiver<()>) {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let incoming = incoming.then(|accepted| async {
            if let Err(error) = &accepted {
                log::warn!("Services do not accept, will be retried: error={error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            accepted
        });
        let served = Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .add_service(UserServiceServer::new(self.users))
            .add_service(
                MessageServiceServer::new(self.messages)
                    .max_decoding_message_size(MAX_ANSWER_BYTES)
                    .max_encoding_message_size(MAX_ANSWER_BYTES),
            )
            .add_service(PresenceServiceServer::from_arc(self.presence))
            .serve_with_incoming_shutdown(incoming, async { drop(stop.await) })
            .await;
        if let Err(error) = served {
            log::error!("Services have ended: error={error}");
        }
    }
}
