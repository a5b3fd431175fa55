//! One connection: a task that reads and answers, and one that writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use uuid::Uuid;

use super::catch_up::catch_up;
use super::dispatch::Dispatch;
use super::handshake::{MAX_MESSAGE_SIZE, upgrade};
use super::presence::Attendance;
use super::protocol::{Outgoing, timestamp};
use super::registry::Registry;
use super::routes::Routes;
use super::services::Services;

const PING_INTERVAL: Duration = Duration::from_secs(30);
/// A client that says nothing for so many pings is gone.
const IDLE_PINGS: u32 = 2;
/// How long the first catch-up waits for the user's route. One that comes later starts another.
const ROUTE_PATIENCE: Duration = Duration::from_secs(2);
/// How long after the last connection a user goes offline, and their route is given up.
const OFFLINE_GRACE: Duration = Duration::from_secs(5);

pub type Sink<S> = SplitSink<WebSocketStream<S>, Message>;

/// A client's socket, with or without TLS.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Socket for S {}

/// What every connection uses.
pub struct Gateway {
    pub id: String,
    pub services: Services,
    pub registry: Arc<Registry>,
    pub routes: Routes,
    pub attendance: Attendance,
}

/// A connection's whole life, and the task of its reading half.
pub async fn serve(socket: impl Socket, gateway: Arc<Gateway>) {
    let Some((stream, user)) = upgrade(socket, &gateway.services).await else {
        return;
    };
    let (sink, stream) = stream.split();
    let (outbox, queue) = gateway.registry.add(&user);
    gateway.attendance.look(&user);
    let heard = Arc::new(AtomicBool::new(true));
    let writer = Writer {
        sink,
        queue,
        heard: Arc::clone(&heard),
    };
    let mut writer = tokio::spawn(writer.run(Arc::clone(&user), Arc::clone(&gateway)));
    let dispatch = Dispatch {
        user: &user,
        services: &gateway.services,
    };
    tokio::select! {
        () = read(stream, dispatch, &outbox, &heard) => writer.abort(),
        _ = &mut writer => {}
    }
    if gateway.registry.remove(&user, &outbox) {
        drop(outbox);
        tokio::time::sleep(OFFLINE_GRACE).await;
        gateway.attendance.look(&user);
        gateway.routes.release(user);
    }
}

struct Writer<S> {
    sink: Sink<S>,
    queue: Receiver<Message>,
    /// Something was read since the last ping.
    heard: Arc<AtomicBool>,
}

impl<S: Socket> Writer<S> {
    /// Ends with the socket, or with a client that leaves pings unanswered.
    async fn run(mut self, user: Arc<str>, gateway: Arc<Gateway>) -> Result<(), Error> {
        let id = Uuid::new_v4();
        let connected = Outgoing::Connected {
            connection_id: id.simple().to_string(),
            user_id: &user,
            gateway_id: &gateway.id,
            ping_interval: PING_INTERVAL.as_secs(),
            max_message_size: MAX_MESSAGE_SIZE,
            timestamp: timestamp(),
        };
        self.sink.send(connected.frame()).await?;
        let mut route = gateway.routes.want(&user);
        let mut is_routed = timeout(ROUTE_PATIENCE, &mut route).await.is_ok();
        let mut position = String::new();
        catch_up(&mut self.sink, &user, &gateway.services, &mut position).await?;

        // The first one jittered, so that those who came together are not pinged together.
        let fraction = f64::from(id.as_fields().0) / f64::from(u32::MAX);
        let first = Instant::now() + PING_INTERVAL.mul_f64(fraction);
        let mut pings = interval_at(first, PING_INTERVAL);
        let mut silent = 0;
        loop {
            tokio::select! {
                biased;
                frame = self.queue.recv() => match frame {
                    Some(frame) => self.write(frame).await?,
                    None => return Ok(()),
                },
                _ = &mut route, if !is_routed => {
                    is_routed = true;
                    catch_up(&mut self.sink, &user, &gateway.services, &mut position).await?;
                }
                _ = pings.tick() => {
                    silent = if self.heard.swap(false, Ordering::Relaxed) { 0 } else { silent + 1 };
                    if silent == IDLE_PINGS {
                        return Ok(());
                    }
                    self.sink.send(Message::Ping(Bytes::new())).await?;
                }
            }
        }
    }

    /// Feeds all that waits, and flushes once.
    async fn write(&mut self, first: Message) -> Result<(), Error> {
        self.sink.feed(first).await?;
        while let Ok(next) = self.queue.try_recv() {
            self.sink.feed(next).await?;
        }
        self.sink.flush().await
    }
}

/// One request at a time. tungstenite answers pings and closes by itself.
async fn read(
    mut stream: SplitStream<WebSocketStream<impl Socket>>,
    dispatch: Dispatch<'_>,
    outbox: &Sender<Message>,
    heard: &AtomicBool,
) {
    while let Some(Ok(message)) = stream.next().await {
        heard.store(true, Ordering::Relaxed);
        if let Message::Text(text) = message {
            let answer = dispatch.answer(&text).await;
            if outbox.send(answer).await.is_err() {
                return;
            }
        }
    }
}
