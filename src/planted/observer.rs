//! Connections that come and go, with a defect planted: what stays behind of those that have gone.

use std::fs::File;
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::thread;

use log::warn;

use super::{Defect, Planted};
use crate::client::address::Peer;
use crate::client::connection::Connection;
use crate::client::{ConnectionObserver, OverUserLimit, Route};
use crate::http::Refusal;
use crate::ids::UserId;

/// Tells `observer`.
pub struct PlantedObserver {
    observer: Arc<dyn ConnectionObserver>,
    planted: Arc<Planted>,
}

/// A connection that has ended, of which `observer` is not told.
pub struct Leak {
    observer: Arc<dyn ConnectionObserver>,
    connection: Arc<Connection>,
}

impl Leak {
    pub fn give_back(self) {
        self.observer.disconnected(&self.connection);
    }
}

impl PlantedObserver {
    pub fn new(observer: Arc<dyn ConnectionObserver>, planted: Arc<Planted>) -> Self {
        Self { observer, planted }
    }

    /// Whether the connection leaks, if it is its turn and leaks are wanted still.
    fn leaks(&self, connection: Arc<Connection>) -> bool {
        let mut leaks = self.planted.leaks.lock();
        let Some(leaks) = &mut *leaks else {
            return false;
        };
        let acts = self.planted.acts(Defect::LeaksConnection);
        if acts {
            let observer = Arc::clone(&self.observer);
            leaks.push(Leak {
                observer,
                connection,
            });
        }
        acts
    }
}

impl ConnectionObserver for PlantedObserver {
    fn connected(&self, connection: &Arc<Connection>) -> Result<Route, OverUserLimit> {
        let route = self.observer.connected(connection)?;
        let (key, connection) = (connection.id.short(), Arc::clone(connection));
        self.planted.connections.lock().insert(key, connection);
        Ok(route)
    }

    fn disconnected(&self, connection: &Connection) {
        let known = &self.planted.connections;
        let known = known.lock().remove(&connection.id.short());
        if self.planted.acts(Defect::LeaksThread) {
            leak_thread();
        }
        if self.planted.acts(Defect::LeaksDescriptor) {
            leak_descriptor();
        }
        if !known.is_some_and(|connection| self.leaks(connection)) {
            self.observer.disconnected(connection);
        }
    }

    fn refused(&self, peer: Peer, user: Option<&UserId>, refusal: &Refusal) {
        self.observer.refused(peer, user, refusal);
    }
}

fn leak_thread() {
    let leaked = thread::Builder::new().name("leaked".into()).spawn(|| {
        loop {
            thread::park();
        }
    });
    if let Err(error) = leaked {
        warn!("No thread to leak: error={error}");
    }
}

fn leak_descriptor() {
    match File::open("/proc/version") {
        Ok(file) => drop(file.into_raw_fd()),
        Err(error) => warn!("No descriptor to leak: error={error}"),
    }
}
