//! What somebody sees who looks around when the faults are over.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Scene, records};
use crate::chaos::checker::{Finding, PRESENCE, Sentence};
use crate::chaos::deployment::is_ready;
use crate::chaos::device::Seat;
use crate::chaos::people::lock;
use crate::support::Client;
use crate::support::process::Held;
use crate::support::wait::holds_within;

/// From the end of the last fault until all gateways are ready: a broker connection is tried again
/// after 20 s at the latest.
const READY: Duration = Duration::from_secs(30);
/// Until what the last connection needed is given back.
const GIVE_BACK: Duration = Duration::from_secs(20);
/// So many return in the end, and are seen to.
const RETURN: usize = 20;

impl Scene {
    pub(super) fn gateways_are_ready(&mut self) -> bool {
        let entrances = &self.people.entrances;
        let all = || entrances.iter().all(|(addr, _)| is_ready(*addr));
        if holds_within(READY, all) {
            return true;
        }
        for (number, (addr, _)) in entrances.iter().enumerate() {
            if !is_ready(*addr) {
                let gateway = self.deployment.gateway(number);
                let said = gateway.get("/readyz").body;
                drop(gateway);
                let seen = format!("g{number} is not ready {READY:?} after the last fault: {said}");
                self.records
                    .findings
                    .push(Finding::new(Sentence::Recovers, seen));
            }
        }
        false
    }

    pub(super) fn everybody_is_in(&self) -> bool {
        self.people
            .seats
            .iter()
            .all(|seat| seat.settled.load(Ordering::SeqCst))
    }

    /// Who watches sees that the others have gone, and that some return.
    pub(super) fn presence_is_right(&mut self) {
        let people = Arc::clone(&self.people);
        let watchers: Vec<_> = people.seats.iter().filter(|seat| seat.watches).collect();
        let away = |user: &String| !watchers.iter().any(|watcher| watcher.user == *user);
        let mates = |watcher: &Seat| {
            let members = people
                .office
                .members(&people.office.group_of(&watcher.user));
            members.into_iter().filter(away).collect::<Vec<_>>()
        };
        let wrong = |online: &dyn Fn(&str) -> bool| {
            watchers
                .iter()
                .flat_map(|watcher| {
                    let seen = lock(&watcher.presence).clone();
                    mates(watcher)
                        .into_iter()
                        .filter_map(move |mate| {
                            let (is, seen) = (online(&mate), seen.get(&mate).copied());
                            // Of whom nothing was said, nobody takes to be online.
                            (seen.unwrap_or_default() != is).then(|| {
                                format!("{}: {mate} is online: {is}, seen: {seen:?}", watcher.name)
                            })
                        })
                        .collect::<Vec<_>>()
                })
                .collect::<Vec<_>>()
        };
        let mut look = |what: &str, online: &dyn Fn(&str) -> bool| {
            if !holds_within(PRESENCE, || wrong(online).is_empty()) {
                for seen in wrong(online) {
                    let seen = format!("{what}: {seen}");
                    self.records
                        .findings
                        .push(Finding::new(Sentence::PresenceRight, seen));
                }
            }
        };
        look("all have left", &|_| false);
        let users = people
            .office
            .users()
            .iter()
            .filter(|user| away(user))
            .take(RETURN);
        let back: Vec<(String, Option<Client>)> = users
            .enumerate()
            .map(|(number, user)| {
                let (addr, path) = &people.entrances[number % people.entrances.len()];
                let client = Client::attempt(*addr, path, &people.office.token(user), PRESENCE);
                (user.clone(), client.ok())
            })
            .collect();
        let is_back = |user: &str| {
            back.iter()
                .any(|(one, client)| one == user && client.is_some())
        };
        look("some are back", &is_back);
        back.into_iter()
            .filter_map(|(_, client)| client)
            .for_each(Client::close);
    }

    /// What the gateways hold once nobody is connected.
    pub(super) fn nothing_is_left(&mut self, baseline: &[Held]) {
        let deployment = Arc::clone(&self.deployment);
        for (number, before) in baseline.iter().enumerate() {
            let mut gateway = deployment.gateway(number);
            if !gateway.is_running() {
                self.finds(Sentence::Recovers, format!("g{number} has ended by itself"));
                continue;
            }
            let connected =
                || ["gateway_connections", "gateway_users"].map(|name| gateway.admin.metric(name));
            let nobody = holds_within(GIVE_BACK, || connected() == [0.0, 0.0]);
            if !nobody {
                let seen = format!("g{number} counts {:?} connections and users", connected());
                self.finds(Sentence::NothingLeft, seen);
            }
            let held = || gateway.held();
            let same =
                |now: Held| (now.threads, now.descriptors) == (before.threads, before.descriptors);
            if !holds_within(GIVE_BACK, || same(held())) {
                let seen = format!("g{number} holds {:?}, and {before:?} before", held());
                self.finds(Sentence::NothingLeft, seen);
            }
        }
        if !holds_within(GIVE_BACK, || deployment.routes().is_empty()) {
            let seen = format!("routes are bound: {:?}", deployment.routes());
            self.finds(Sentence::NothingLeft, seen);
        }
    }

    pub(super) fn everything_ends(&mut self) {
        let (database, complaints) = self.deployment.stop();
        for complaint in complaints {
            self.finds(Sentence::Recovers, complaint);
        }
        self.records.stored = records::read(&database);
        self.records.said = self.deployment.said();
        for text in self.records.said.clone() {
            for line in text.lines() {
                // amiquip's loop does where something is asked of it while the broker closes the connection, which
                // ends as any other then: the tests in `broker/amqp/connection.rs`. No other panic is passed over.
                let is_asked_too_late = line.contains("/amiquip-0.4.2/src/io_loop/mod.rs:4");
                if line.contains("panicked") && !is_asked_too_late {
                    self.finds(Sentence::Recovers, line);
                }
                if line.contains("Live pushes go past what is unread")
                    && let Some((_, user)) = line.split_once("user=")
                {
                    let user = user.split(',').next().unwrap_or_default();
                    self.records.went_past.insert(user.to_owned());
                }
            }
        }
    }
}
