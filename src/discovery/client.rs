//! etcd's API, as far as it is needed, on one connection to one member. Every call has a deadline.
//!
//! `etcd.proto` is compiled by build.rs: the crate that does this for the whole of the API needs a
//! `protoc` wherever it is built.

use std::error::Error;
use std::future::Future;
use std::iter;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, interval, timeout, timeout_at};
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use self::proto::kv_client::KvClient;
use self::proto::lease_client::LeaseClient;
use self::proto::watch_client::WatchClient;
use self::proto::*;

/// The types of `etcd.proto`.
#[expect(clippy::pedantic)]
pub(super) mod proto {
    tonic::include_proto!("etcdserverpb");
}

/// How often a connection that says nothing is asked whether it lives. An etcd takes more than one in
/// 5 s for an attack (`--grpc-keepalive-min-time`).
const PING_INTERVAL: Duration = Duration::from_secs(10);

type Member = InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>;

/// Its calls share the connection.
pub(super) struct Client {
    member: Member,
    /// Of each call.
    limit: Duration,
}

/// Why a session is over: the next one may do better.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{}", root(.0))]
    Unreached(#[from] tonic::transport::Error),
    #[error("{}", told(.0))]
    Told(#[from] Status),
    #[error("no answer in time")]
    Late,
    #[error("the lease has ended")]
    LeaseEnded,
    #[error("the watch was closed")]
    WatchClosed,
    #[error("the watch was ended: {0}")]
    WatchEnded(String),
}

impl Client {
    /// Each of its calls is answered within `limit`, or fails.
    pub async fn connect(endpoint: &str, limit: Duration) -> Result<Self, Failure> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(limit)
            .keep_alive_while_idle(true);
        let connected = timeout(limit, endpoint.connect()).await;
        let channel = connected.map_err(|_| Failure::Late)??;
        let member = InterceptedService::new(channel, with_leader as fn(_) -> _);
        Ok(Self { member, limit })
    }

    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let answered = timeout(self.limit, call).await;
        Ok(answered.map_err(|_| Failure::Late)??.into_inner())
    }

    /// All entries whose keys begin with `prefix`, and the revision as of which they are.
    pub async fn read(&self, prefix: &str) -> Result<(Vec<KeyValue>, i64), Failure> {
        let request = RangeRequest {
            key: prefix.into(),
            range_end: after(prefix),
        };
        let mut kv = KvClient::new(self.member.clone());
        let answer = self.answer(kv.range(request)).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok((answer.kvs, revision))
    }

    /// Changes of them, from that of `start_revision` on.
    pub async fn watch(
        &self,
        prefix: &str,
        start_revision: i64,
    ) -> Result<Streaming<WatchResponse>, Failure> {
        let create = WatchCreateRequest {
            key: prefix.into(),
            range_end: after(prefix),
            start_revision,
        };
        let request = WatchRequest {
            create_request: Some(create),
        };
        // A stream that ended would end the watch.
        let requests = stream::iter([request]).chain(stream::pending());
        let mut watch = WatchClient::new(self.member.clone());
        self.answer(watch.watch(requests)).await
    }

    /// The entry is gone when the lease is; without the lease, it fails.
    pub async fn put(&self, key: &str, value: String, lease: i64) -> Result<(), Failure> {
        let request = PutRequest {
            key: key.into(),
            value: value.into(),
            lease,
        };
        let mut kv = KvClient::new(self.member.clone());
        self.answer(kv.put(request)).await.map(drop)
    }

    /// Whoever has this lease already keeps it as it is.
    pub async fn grant(&self, id: i64, ttl: Duration) -> Result<(), Failure> {
        let ttl = ttl.as_secs() as i64;
        let mut lease = LeaseClient::new(self.member.clone());
        let granted = self.answer(lease.lease_grant(LeaseGrantRequest { ttl, id }));
        unless(Code::FailedPrecondition, granted.await)
    }

    /// Also deletes what was put under this lease. One that has ended already does no harm.
    pub async fn revoke(&self, id: i64) -> Result<(), Failure> {
        let mut lease = LeaseClient::new(self.member.clone());
        let revoked = self.answer(lease.lease_revoke(LeaseRevokeRequest { id }));
        unless(Code::NotFound, revoked.await)
    }

    /// Renews the lease thrice in its time, as long as the answers are read.
    pub async fn keep_alive(&self, id: i64, ttl: Duration) -> Result<Renewals, Failure> {
        let requests = stream::unfold(interval(ttl / 3), move |mut due| async move {
            due.tick().await;
            Some((LeaseKeepAliveRequest { id }, due))
        });
        let mut lease = LeaseClient::new(self.member.clone());
        let answers = self.answer(lease.lease_keep_alive(requests)).await?;
        let limit = ttl / 3 + self.limit;
        Ok(Renewals {
            answers,
            limit,
            due: Instant::now() + limit,
        })
    }
}

/// The answers of etcd to a lease's renewals.
pub(super) struct Renewals {
    answers: Streaming<LeaseKeepAliveResponse>,
    /// Between two of them.
    limit: Duration,
    due: Instant,
}

impl Renewals {
    /// Waits for the next one. It may be dropped and begun again.
    pub async fn next(&mut self) -> Result<(), Failure> {
        let answer = timeout_at(self.due, self.answers.message()).await;
        let answer = answer.map_err(|_| Failure::Late)??;
        if answer.is_none_or(|answer| answer.ttl <= 0) {
            return Err(Failure::LeaseEnded);
        }
        self.due = Instant::now() + self.limit;
        Ok(())
    }
}

/// Has a member that lost the other ones say so, instead of keeping silent.
fn with_leader(mut request: Request<()>) -> Result<Request<()>, Status> {
    let metadata = request.metadata_mut();
    metadata.insert("hasleader", MetadataValue::from_static("true"));
    Ok(request)
}

/// What comes after every key that begins with `prefix`, which ends with a slash.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// An answer with this code is as good as none.
fn unless<T>(code: Code, answer: Result<T, Failure>) -> Result<(), Failure> {
    match answer {
        Err(Failure::Told(status)) if status.code() == code => Ok(()),
        other => other.map(drop),
    }
}

/// What etcd said; or what kept it from that.
fn told(status: &Status) -> String {
    let cause = status.source();
    cause.map_or_else(|| status.message().into(), root)
}

/// The last error of the chain: "connection refused", not "transport error".
fn root(error: &(dyn Error + 'static)) -> String {
    let chain = iter::successors(Some(error), |&error| error.source());
    chain.last().unwrap_or(error).to_string()
}
