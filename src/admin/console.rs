//! What an operator is answered, by path.

use std::net::IpAddr;
use std::slice;
use std::time::Instant;

use log::info;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::guard;
use super::scrape::Scrape;
use super::sources::Sources;
use crate::client::close::CloseReason;
use crate::client::connection::Connection;
use crate::error::ErrorCode;
use crate::http::{self, Head, HttpResponse};
use crate::ids::UserId;

/// Answers requests to the admin listener.
pub struct Console {
    sources: Sources,
    scrape: Scrape,
    host_name: String,
}

/// What there is.
enum Resource<'p> {
    LivePage,
    Health,
    Ready,
    Metrics,
    Connections,
    Disconnects,
    Drain(bool),
    /// A user's id, as it stands in the path.
    Disconnect(&'p str),
}

impl<'p> Resource<'p> {
    fn at(path: &'p str) -> Option<Self> {
        Some(match path {
            "/" => Self::LivePage,
            "/healthz" => Self::Health,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/connections" => Self::Connections,
            "/disconnects" => Self::Disconnects,
            "/drain" => Self::Drain(true),
            "/undrain" => Self::Drain(false),
            _ => {
                let user = path.strip_prefix("/users/")?.strip_suffix("/disconnect")?;
                Self::Disconnect(user)
            }
        })
    }

    fn acts(&self) -> bool {
        matches!(self, Self::Drain(_) | Self::Disconnect(_))
    }

    /// Nothing there is about anybody.
    fn is_public(&self) -> bool {
        matches!(self, Self::LivePage | Self::Health | Self::Ready)
    }

    fn methods(&self) -> &'static str {
        if self.acts() {
            "POST, OPTIONS"
        } else {
            "GET, HEAD, OPTIONS"
        }
    }
}

impl Console {
    pub fn new(sources: Sources) -> Self {
        let host = rustix::system::uname();
        Self {
            scrape: Scrape::new(&sources),
            sources,
            host_name: host.nodename().to_string_lossy().into_owned(),
        }
    }

    /// The response to a request.
    pub fn respond(&self, head: &Head<'_>) -> HttpResponse {
        let response = self.try_respond(head).unwrap_or_else(|refusal| refusal);
        match head.method {
            "HEAD" => response.without_body(),
            _ => response,
        }
    }

    fn try_respond(&self, head: &Head<'_>) -> http::Result<HttpResponse> {
        let resource = Resource::at(head.path).ok_or_else(|| {
            let message =
                "Nothing here; see /, /healthz, /readyz, /metrics, /connections, /disconnects";
            HttpResponse::error(404, ErrorCode::NotFound, message)
        })?;
        let methods = resource.methods();
        if methods.split(", ").all(|method| method != head.method) {
            return Err(HttpResponse::wrong_method(methods));
        }
        if head.method == "OPTIONS" {
            return Ok(HttpResponse::options(200, methods));
        }
        // A scraper asks by whatever name it knows; what it gets names nobody.
        if !resource.is_public() {
            if !matches!(resource, Resource::Metrics) {
                head.check_host(&self.host_name)?;
            }
            guard::check_token(head, &self.sources.context.config.admin.token)?;
        }
        if resource.acts() {
            guard::check_intent(head)?;
        }
        self.answer(&resource, head.query)
    }

    fn answer(&self, resource: &Resource<'_>, query: &str) -> http::Result<HttpResponse> {
        let sources = &self.sources;
        Ok(match resource {
            Resource::LivePage => HttpResponse::html(include_str!("page.html")),
            Resource::Health => HttpResponse::healthy(),
            Resource::Ready => HttpResponse::readiness(&sources.readiness.check()),
            Resource::Metrics => {
                let text = self.scrape.text(sources);
                HttpResponse::page(200, prometheus::TEXT_FORMAT, text)
            }
            Resource::Connections => {
                let filter = Filter::parse(query)?;
                let mut connections = sources.registry.connections();
                connections
                    .retain(|one| filter.fits(Some(one.user().as_str()), one.peer.address()));
                connections.sort_by_key(|connection| connection.since);
                let connections: Vec<_> =
                    connections.iter().map(|one| self.describe(one)).collect();
                json_page(&json!({ "connections": connections }))
            }
            Resource::Disconnects => {
                let filter = Filter::parse(query)?;
                let mut ended = sources.history.ended();
                ended.retain(|one| filter.fits(Some(&one.user), one.peer.address()));
                let mut refused = sources.history.refused();
                refused.retain(|one| filter.fits(one.user.as_deref(), one.peer.address()));
                json_page(&json!({ "ended": ended, "refused": refused }))
            }
            Resource::Drain(drains) => {
                sources.context.drain.set_by_hand(*drains);
                info!("Told to drain: draining={drains}");
                (sources.on_drain)(*drains);
                json_page(&json!({ "draining": drains }))
            }
            Resource::Disconnect(user) => json_page(&json!({ "closed": self.disconnect(user)? })),
        })
    }

    /// Closes the user's connections here. Answers how many.
    fn disconnect(&self, user: &str) -> http::Result<usize> {
        let text = percent_decode_str(user).decode_utf8();
        let user = text.ok().and_then(|text| UserId::new(&text).ok());
        let user = user.ok_or_else(|| HttpResponse::bad_request("Not a user id"))?;
        let mut connections = self.sources.registry.connections_of(slice::from_ref(&user));
        connections.retain(|connection| !connection.is_closing());
        let count = connections.len();
        info!("Disconnected by an operator: user={user}, connections={count}");
        for connection in connections {
            connection.close(CloseReason::Disconnected);
        }
        Ok(count)
    }

    /// A connection as it stands. Times are seconds.
    fn describe(&self, connection: &Connection) -> Value {
        let now = Instant::now();
        let since = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        let activity = *connection.activity.lock();
        let (queued_frames, queued_bytes) = connection.outbox.queued();
        let peer = json!(connection.peer);
        // By the name of its thread (`client/accept.rs`).
        let reader = format!("r-{}", connection.id.short());
        let call = self
            .sources
            .context
            .metrics
            .calls
            .lock()
            .get(&reader)
            .copied();
        let reader = match call {
            Some((method, began)) => format!("{method} since {:.1} s", since(began)),
            None => "reading".into(),
        };
        json!({
            "id": connection.id.to_string(),
            "user": connection.user().as_str(),
            "address": peer["address"],
            "address_source": peer["address_source"],
            "reader": reader,
            "connected_seconds": since(connection.since),
            "last_frame_seconds": since(activity.last_frame.unwrap_or(connection.since)),
            "round_trip_seconds": activity.round_trip.map(|trip| trip.as_secs_f64()),
            "queue_frames": queued_frames,
            "queue_bytes": queued_bytes,
            "queue_high_water": connection.outbox.high_water(),
            "bytes_received": activity.received,
            "bytes_sent": connection.outbox.sent(),
            "closing": connection.outbox.closing().map(ToString::to_string),
        })
    }
}

/// Of which user and address is asked: all, where they are not given.
struct Filter {
    user: Option<String>,
    address: Option<IpAddr>,
}

impl Filter {
    fn parse(query: &str) -> http::Result<Self> {
        let (mut user, mut address) = (None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "user" => user = Some(value.into_owned()),
                "address" => {
                    let parsed: Option<IpAddr> = value.parse().ok();
                    let parsed = parsed
                        .ok_or_else(|| HttpResponse::bad_request("address: not an IP address"))?;
                    address = Some(parsed.to_canonical());
                }
                _ => {
                    let message = "Only ?user= and ?address= are understood here";
                    return Err(HttpResponse::bad_request(message));
                }
            }
        }
        Ok(Self { user, address })
    }

    fn fits(&self, user: Option<&str>, address: IpAddr) -> bool {
        let is_user = self.user.is_none() || self.user.as_deref() == user;
        is_user && (self.address.is_none() || self.address == Some(address))
    }
}

fn json_page(value: &Value) -> HttpResponse {
    HttpResponse::page(200, "application/json", format!("{value}\n"))
}
