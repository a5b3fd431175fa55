//! One binding of `user.<id>` for each user who is connected here, made in bursts by one task.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::try_join_all;
use lapin::options::QueueBindOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Result};
use tokio::sync::{mpsc, oneshot};
use ws_gateway::broker::{DIRECT_EXCHANGE, Queue};

use super::Failure;
use super::broker::Broker;
use super::registry::Registry;

/// How many requests are taken at once.
const BURST: usize = 256;

enum Work {
    Bind(Arc<str>, oneshot::Sender<()>),
    Release(Arc<str>),
}

/// Unbounded, but no longer than there are connections.
pub struct Routes(mpsc::UnboundedSender<Work>);

impl Routes {
    pub async fn start(
        broker: &Broker,
        registry: Arc<Registry>,
        failed: mpsc::Sender<Failure>,
    ) -> Result<Self> {
        let (sender, work) = mpsc::unbounded_channel();
        let binder = Binder {
            channel: broker.channel().await?,
            queue: broker.queue(Queue::Single),
            registry,
            bound: HashSet::new(),
        };
        tokio::spawn(async move {
            if let Err(error) = binder.run(work).await {
                let _ = failed.send(error.into()).await;
            }
        });
        Ok(Self(sender))
    }

    /// Asks for the user's messages, and answers what is told once they come here. The connection
    /// has registered before.
    pub fn want(&self, user: &Arc<str>) -> oneshot::Receiver<()> {
        let (confirm, confirmed) = oneshot::channel();
        // Without a binder the whole peer is about to end.
        let _ = self.0.send(Work::Bind(Arc::clone(user), confirm));
        confirmed
    }

    /// Gives the route up, unless the user is connected here again.
    pub fn release(&self, user: Arc<str>) {
        let _ = self.0.send(Work::Release(user));
    }
}

struct Binder {
    channel: Channel,
    queue: ShortString,
    registry: Arc<Registry>,
    bound: HashSet<Arc<str>>,
}

impl Binder {
    async fn run(mut self, mut work: mpsc::UnboundedReceiver<Work>) -> Result<()> {
        let mut burst = Vec::new();
        while work.recv_many(&mut burst, BURST).await > 0 {
            let (mut new, mut waiting, mut released) = (Vec::new(), Vec::new(), Vec::new());
            for work in burst.drain(..) {
                match work {
                    Work::Bind(user, confirm) => {
                        if self.bound.insert(Arc::clone(&user)) {
                            new.push(user);
                        }
                        waiting.push(confirm);
                    }
                    Work::Release(user) => released.push(user),
                }
            }
            self.bind(&new).await?;
            for confirm in waiting {
                let _ = confirm.send(());
            }
            self.unbind(released).await?;
        }
        Ok(())
    }

    /// All but the last bind go without waiting; the last one's answer confirms the others.
    async fn bind(&self, users: &[Arc<str>]) -> Result<()> {
        for (number, user) in users.iter().enumerate() {
            let options = QueueBindOptions {
                nowait: number + 1 < users.len(),
            };
            let (queue, key) = (self.queue.clone(), key(user));
            self.channel
                .queue_bind(
                    queue,
                    DIRECT_EXCHANGE.into(),
                    key,
                    options,
                    FieldTable::default(),
                )
                .await?;
        }
        Ok(())
    }

    async fn unbind(&mut self, users: Vec<Arc<str>>) -> Result<()> {
        let gone = users
            .into_iter()
            .filter(|user| !self.registry.holds(user) && self.bound.remove(user));
        let unbinds = gone.map(|user| {
            let (queue, key) = (self.queue.clone(), key(&user));
            self.channel
                .queue_unbind(queue, DIRECT_EXCHANGE.into(), key, FieldTable::default())
        });
        try_join_all(unbinds).await.map(drop)
    }
}

fn key(user: &str) -> ShortString {
    format!("user.{user}").into()
}
