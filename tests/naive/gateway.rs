//! The gateway as it was first drawn, as plainly as it can be written down. Nothing is wrong here
//! on purpose, and in calm weather it works; what the document that it follows leaves out is left
//! out. `src/docs/sketch.md` says what that costs, and `tests/run drill NAME --naive` counts it. To
//! run it, beside RabbitMQ and `ws-gateway services`: `tests/run naive FILE`, a gateway.toml.

use std::collections::HashMap;
use std::error::Error;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};
use std::{io, thread};

use amiquip::{AmqpValue, ConsumerMessage, ConsumerOptions, Delivery, ExchangeType, FieldTable};
use crossbeam::channel::{Receiver, Select, Sender, bounded, select, tick};
use log::{LevelFilter, error, info, warn};
use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use tungstenite::handshake::server::{ErrorResponse, Request};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket, accept_hdr_with_config};
use uuid::Uuid;
use ws_gateway::config::{self, Config};
use ws_gateway::services::proto::message_service_client::MessageServiceClient;
use ws_gateway::services::proto::presence_service_client::PresenceServiceClient;
use ws_gateway::services::proto::user_service_client::UserServiceClient;
use ws_gateway::services::proto::{self, *};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

struct Gateway {
    config: Config,
    /// Of each user, by the connection's id: several devices.
    connections: RwLock<HashMap<String, HashMap<String, Sender<Message>>>>,
    runtime: Runtime,
    user: UserServiceClient<Channel>,
    message: MessageServiceClient<Channel>,
    presence: PresenceServiceClient<Channel>,
    channel: Mutex<amiquip::Channel>,
}

/// Runs it with the configuration in `file`, for ever.
pub fn run(file: &Path) -> Outcome<()> {
    let config = config::load(Some(file), None)?;
    simplelog::WriteLogger::init(LevelFilter::Info, Default::default(), io::stderr())?;
    let mut broker = amiquip::Connection::insecure_open(&config.broker.url)?;
    let consumer = broker.open_channel(None)?;
    let runtime = Runtime::new()?;
    let service = |addresses: &[String]| -> Outcome<Channel> {
        let _inside = runtime.enter();
        let endpoint = Endpoint::from_shared(addresses[0].clone())?;
        Ok(endpoint.timeout(config.services.timeout).connect_lazy())
    };
    let gateway = Arc::new(Gateway {
        connections: RwLock::default(),
        user: UserServiceClient::new(service(&config.services.user)?),
        message: MessageServiceClient::new(service(&config.services.message)?),
        presence: PresenceServiceClient::new(service(&config.services.presence)?),
        channel: Mutex::new(broker.open_channel(None)?),
        runtime,
        config,
    });
    gateway.declare(&consumer)?;
    // The document knows no lease, and the contract's Presence Service does: for ever, then.
    let mut lease = RenewLeaseRequest::default();
    (lease.gateway_id, lease.ttl_seconds) = (gateway.config.gateway.id.clone(), i32::MAX);
    gateway.call(gateway.presence.clone().renew_lease(lease))?;
    let consuming = Arc::clone(&gateway);
    thread::spawn(move || {
        let ended = consuming.consume(&consumer);
        error!("Consumer ended: {ended:?}");
    });
    let listener = TcpListener::bind(gateway.config.listen.addr)?;
    let addr = listener.local_addr()?;
    println!("listening ws://{addr}{}", gateway.config.listen.path);
    for stream in listener.incoming().flatten() {
        let (gateway, id) = (Arc::clone(&gateway), Uuid::new_v4().simple().to_string());
        let reader = thread::Builder::new().name(format!("r-{}", &id[..12]));
        reader.spawn(move || match gateway.serve(stream, &id) {
            Ok(user) => info!("Connection closed: user={user}, conn_id={id}"),
            Err(error) => info!("Connection failed: conn_id={id}, error={error}"),
        })?;
    }
    Ok(())
}

/// The client's side: one thread reads and calls the services, one writes.
impl Gateway {
    /// A connection's life. Answers whose it was.
    fn serve(self: Arc<Self>, stream: TcpStream, id: &str) -> Outcome<String> {
        let session = &self.config.session;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(session.idle_timeout))?;
        stream.set_write_timeout(Some(session.write_timeout))?;
        let limit = self.config.limits.max_message_size;
        let limits = Some(WebSocketConfig::default().max_message_size(Some(limit)));
        let mut user = String::new();
        let authenticate = |request: &Request, response| {
            user = self.authenticate(request)?;
            Ok(response)
        };
        let reader = accept_hdr_with_config(stream.try_clone()?, authenticate, limits);
        let mut reader = reader.map_err(|error| error.to_string())?;
        // The reader blocks, and the writer cannot wait for it: each has the socket for itself.
        let writer = WebSocket::from_raw_socket(stream, Role::Server, limits);
        let (send, queue) = bounded(session.send_queue);
        send.send(frame(json!({
            "type": "connected", "connection_id": id, "user_id": user,
            "gateway_id": self.config.gateway.id, "ping_interval": session.ping_interval.as_secs(),
            "max_message_size": limit, "timestamp": timestamp(),
        })))?;
        self.bind(&user);
        let mut connections = self.connections.write();
        let of_user = connections.entry(user.clone()).or_default();
        if of_user.len() >= self.config.limits.max_connections_per_user {
            return Err(format!("max connections reached for user: {user}").into());
        }
        of_user.insert(id.into(), send.clone());
        drop(connections);
        info!("Connection established: user={user}, conn_id={id}");
        let (pings, thread) = (tick(session.ping_interval), thread::Builder::new());
        let writing = move || write(writer, &queue, &pings);
        thread.name(format!("w-{}", &id[..12])).spawn(writing)?;
        self.tell_presence(&user, true);
        let (gateway, to, inbox) = (Arc::clone(&self), user.clone(), send.clone());
        thread::spawn(move || {
            let pushed = gateway.push_offline_messages(&to, &inbox);
            pushed.unwrap_or_else(|error| error!("No offline messages: user={to}, error={error}"));
        });
        loop {
            match reader.read() {
                Ok(Message::Text(text)) => _ = send.send(frame(self.answer(&user, &text))),
                Err(tungstenite::Error::Io(error))
                    if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
                Ok(_) => {}
            }
        }
        let mut connections = self.connections.write();
        connections.entry(user.clone()).or_default().remove(id);
        drop(connections);
        self.tell_presence(&user, false);
        Ok(user)
    }

    /// The user whose token it is, from the header or the query.
    fn authenticate(&self, request: &Request) -> Result<String, ErrorResponse> {
        let refuse = |status| http::Response::builder().status(status).body(None);
        let refuse = |status: u16| refuse(status).expect("a status");
        let header = request.headers().get("Authorization");
        let bearer = header.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let mut query = request.uri().query().unwrap_or_default().split('&');
        let token = bearer.or_else(|| query.find_map(|pair| pair.strip_prefix("token=")));
        let token = token.ok_or_else(|| refuse(401))?.to_owned();
        let mut service = self.user.clone();
        match self.call(service.validate_token(ValidateTokenRequest { token })) {
            Ok(identity) => Ok(identity.user_id),
            Err(status) if status.code() == Code::Unauthenticated => Err(refuse(401)),
            Err(_) => Err(refuse(503)),
        }
    }

    fn answer(&self, user: &str, text: &str) -> Value {
        let request: Value = serde_json::from_str(text).unwrap_or_default();
        let answer = self.handle(user, &request["type"], &request["data"]);
        let mut answer = answer.unwrap_or_else(|status| {
            let code = match status.code() {
                Code::PermissionDenied => "PERMISSION_DENIED",
                Code::NotFound => "NOT_FOUND",
                Code::InvalidArgument | Code::OutOfRange => "INVALID_MESSAGE",
                Code::Unimplemented => "UNKNOWN_MESSAGE_TYPE",
                Code::Unavailable | Code::Cancelled => "SERVICE_UNAVAILABLE",
                _ => "INTERNAL",
            };
            let (message, timestamp) = (status.message(), timestamp());
            json!({"type": "error", "code": code, "message": message, "timestamp": timestamp})
        });
        answer["request_id"] = request["request_id"].clone();
        without_nulls(answer)
    }

    #[rustfmt::skip]
    fn handle(&self, user: &str, kind: &Value, data: &Value) -> Result<Value, Status> {
        let missing = |name: &str| Status::invalid_argument(format!("data.{name} is missing"));
        let required = |name: &str| data[name].as_str().map(str::to_owned).ok_or(missing(name));
        let given = |name: &str, default: &str| data[name].as_str().unwrap_or(default).to_owned();
        let (user_id, limit) = (user.to_owned(), data["limit"].as_i64().unwrap_or(50) as i32);
        let (message_type, before_id) = (given("message_type", "text"), given("before_id", ""));
        let client_message_id = given("client_message_id", "");
        let sent = |SendMessageResponse { id, timestamp }| json!({
            "type": "message_sent", "id": id, "timestamp": timestamp,
            "client_message_id": data["client_message_id"],
        });
        let page = |of: &str, page: GetHistoryResponse| json!({
            "type": kind.as_str().map(|kind| &kind[4..]), of: data[of], "has_more": page.has_more,
            "messages": page.messages.iter().map(push).collect::<Vec<_>>(),
        });
        let mut service = self.message.clone();
        Ok(match kind.as_str() {
            Some("send_message") => sent(self.call(service.send_message(SendMessageRequest {
                from_user_id: user_id, to_user_id: required("to_user_id")?,
                content: required("content")?, message_type, client_message_id,
            }))?),
            Some("send_group_message") => sent(self.call(service.send_group_message(
                SendGroupMessageRequest {
                    from_user_id: user_id, group_id: required("group_id")?,
                    content: required("content")?, message_type, client_message_id,
                }))?),
            Some("get_history") => page("user_id", self.call(service.get_history(
                GetHistoryRequest { user_id, peer_id: required("user_id")?, before_id, limit }))?),
            Some("get_group_history") => page("group_id", self.call(service.get_group_history(
                GetGroupHistoryRequest {
                    user_id, group_id: required("group_id")?, before_id, limit,
                }))?),
            Some("ack") => {
                let message_ids = serde_json::from_value(data["message_ids"].clone());
                let message_ids = message_ids.unwrap_or_default();
                self.call(service.ack_messages(AckMessagesRequest { user_id, message_ids }))?;
                json!({"type": "acked", "timestamp": timestamp()})
            }
            Some("ping") => json!({"type": "pong", "timestamp": timestamp()}),
            Some(_) => return Err(Status::unimplemented("Unknown message type")),
            None => return Err(Status::invalid_argument("Invalid message format")),
        })
    }

    /// What is unread, beside what comes live. Nobody waits for this thread: it may wait for room.
    fn push_offline_messages(&self, user: &str, inbox: &Sender<Message>) -> Outcome<()> {
        let (mut request, mut count) = (GetOfflineMessagesRequest::default(), 0);
        (request.user_id, request.limit) = (user.into(), 50);
        loop {
            let mut service = self.message.clone();
            let page = self.call(service.get_offline_messages(request.clone()))?;
            for message in &page.messages {
                request.after_id.clone_from(&message.id);
                inbox.send(frame(push(message)))?;
            }
            count += page.messages.len();
            if !page.has_more {
                break;
            }
        }
        let done = json!({"type": "offline_complete", "count": count, "timestamp": timestamp()});
        Ok(inbox.send(frame(done))?)
    }

    /// On each connect and disconnect, whatever other devices there are.
    #[rustfmt::skip]
    fn tell_presence(&self, user: &str, online: bool) {
        let (user_id, gateway_id) = (user.to_owned(), self.config.gateway.id.clone());
        let mut service = self.presence.clone();
        let told = if online {
            self.call(service.user_online(UserOnlineRequest { user_id, gateway_id })).map(drop)
        } else {
            self.call(service.user_offline(UserOfflineRequest { user_id, gateway_id })).map(drop)
        };
        told.unwrap_or_else(|status| error!("Presence not told: user={user}, error={status}"));
    }

    fn call<T>(&self, f: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        self.runtime.block_on(f).map(Response::into_inner)
    }
}

/// Writes what is queued. The document joins what waits by newlines into one frame, and a client
/// takes a frame for one JSON document: so each is a frame of its own here.
fn write(mut socket: WebSocket<TcpStream>, queue: &Receiver<Message>, pings: &Receiver<Instant>) {
    loop {
        let next = select! {
            recv(queue) -> message => message.ok(),
            recv(pings) -> _ => Some(Message::Ping(Vec::new().into())),
        };
        if next.is_none_or(|message| socket.send(message).is_err()) {
            break;
        }
    }
    let _ = socket.close(None).and_then(|()| socket.flush());
    let _ = socket.get_ref().shutdown(Shutdown::Both);
}

/// The broker's side: one thread takes what comes from the queues, and pushes it.
impl Gateway {
    /// What the document declares. It only draws the status queue: its keys are the contract's.
    fn declare(&self, channel: &amiquip::Channel) -> amiquip::Result<()> {
        let mut options = amiquip::ExchangeDeclareOptions::default();
        (options.durable, options.auto_delete) = (true, false);
        channel.exchange_declare(ExchangeType::Direct, "im.direct", options.clone())?;
        let topic = channel.exchange_declare(ExchangeType::Topic, "im.topic", options)?;
        let mut options = amiquip::QueueDeclareOptions::default();
        (options.durable, options.auto_delete) = (true, false);
        for (name, keys) in [("group", "group.*"), ("presence", "presence.*")] {
            let queue = channel.queue_declare(self.queue(name), options.clone())?;
            queue.bind(&topic, keys, FieldTable::new())?;
        }
        let day = AmqpValue::LongInt(86_400_000);
        options.arguments.insert("x-message-ttl".into(), day);
        channel.queue_declare(self.queue("single"), options)?;
        Ok(())
    }

    fn queue(&self, name: &str) -> String {
        format!("queue.gateway.{}.{name}", self.config.gateway.id)
    }

    /// The document binds `user.*`, which to a direct exchange is a key like any: so each user who
    /// connects is bound. What comes for whoever has left is acknowledged, as in the document.
    fn bind(&self, user: &str) {
        let (channel, key) = (self.channel.lock(), format!("user.{user}"));
        let bound = channel.queue_bind(self.queue("single"), "im.direct", key, FieldTable::new());
        bound.unwrap_or_else(|error| error!("Not bound: user={user}, error={error}"));
    }

    fn consume(&self, channel: &amiquip::Channel) -> Outcome<()> {
        let open = |name| channel.basic_consume(self.queue(name), ConsumerOptions::default());
        let consumers = [open("single")?, open("group")?, open("presence")?];
        let mut select = Select::new();
        for consumer in &consumers {
            select.recv(consumer.receiver());
        }
        loop {
            let ready = select.select();
            let consumer = &consumers[ready.index()];
            let message = ready.recv(consumer.receiver())?;
            let ConsumerMessage::Delivery(delivery) = message else {
                return Err(format!("{message:?}").into());
            };
            let delivered = self.deliver(&delivery);
            delivered.unwrap_or_else(|error| error!("Not delivered: {error}"));
            consumer.ack(delivery)?;
        }
    }

    fn deliver(&self, delivery: &Delivery) -> Outcome<()> {
        let kind = delivery.properties.type_().as_ref();
        let is_message = kind.is_none_or(|kind| kind == "message");
        let (key, body) = (&delivery.routing_key, delivery.body.as_slice());
        let message = || proto::Message::decode(body).map(|message| push(&message));
        match key.split_once('.') {
            // Not to whom it says: the sender's devices get a copy by a key of their own.
            Some(("user", user)) if is_message => self.push(&[user.into()], message()?),
            Some(("group", group)) if is_message => {
                let (mut service, group_id) = (self.user.clone(), group.to_owned());
                let members = service.get_group_members(GetGroupMembersRequest { group_id });
                self.push(&self.call(members)?.user_ids, message()?);
            }
            Some(("presence", user)) => {
                let event = PresenceEvent::decode(body)?;
                let status = event.status().as_str_name().to_lowercase();
                let status = status.trim_start_matches("presence_status_");
                let told = json!({"type": "presence", "user_id": user, "status": status,
                    "timestamp": event.timestamp});
                self.push(&event.watcher_ids, told);
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&self, users: &[String], json: Value) {
        let (message, connections) = (frame(json), self.connections.read());
        for user in users {
            for send in connections.get(user).into_iter().flat_map(HashMap::values) {
                if send.try_send(message.clone()).is_err() {
                    warn!("Connection send channel full for user: {user}");
                }
            }
        }
    }
}

/// A chat message, pushed or in a history.
fn push(message: &proto::Message) -> Value {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let is_group = !message.group_id.is_empty();
    without_nulls(json!({
        "type": if is_group { "group_message" } else { "message" }, "id": message.id,
        "from_user_id": message.from_user_id, "to_user_id": given(&message.to_user_id),
        "group_id": given(&message.group_id), "content": message.content,
        "message_type": message.message_type, "timestamp": message.timestamp,
        "client_message_id": given(&message.client_message_id),
    }))
}

fn without_nulls(mut json: Value) -> Value {
    let fields = json.as_object_mut().into_iter();
    fields.for_each(|fields| fields.retain(|_, value| !value.is_null()));
    json
}

fn frame(json: Value) -> Message {
    Message::text(json.to_string())
}

fn timestamp() -> i64 {
    UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs() as i64)
}
