//! What is committed and what is pushed: lost, invented, somebody else's, out of order, not first.

use std::collections::{BTreeMap, HashMap, HashSet};

use ws_gateway::services::proto::Message;

use super::session::Session;
use super::{CALM_CATCH_UP, Checker, Finding, SLACK, Sentence};
use crate::chaos::deployment::CACHE_TTL;
use crate::chaos::history::{Answer, Event, History, Moment, Pushed, Request, Span, To, digest};

impl<'a> Checker<'a> {
    pub(super) fn committed(&self, findings: &mut Vec<Finding>) {
        let mut find = |seen| findings.push(Finding::new(Sentence::Committed, seen));
        let mut of_clients = HashMap::new();
        for message in &self.records.stored.messages {
            let key = (&message.from_user_id, &message.client_message_id);
            if let Some(other) = of_clients.insert(key, &message.id) {
                find(format!(
                    "{key:?} is stored twice, as {other} and {}",
                    message.id
                ));
            }
            if self.commit_of(message).is_none() {
                find(format!(
                    "nobody sent {}, which is stored from {key:?}",
                    message.id
                ));
            }
        }
        for history in &self.records.histories {
            let mut asked = HashMap::new();
            for (at, event) in &history.events {
                match event {
                    Event::Asked {
                        request,
                        what: Request::Send(draft),
                    } => {
                        asked.insert(request, draft);
                    }
                    Event::Answered {
                        request,
                        answer: Answer::Sent(id),
                    } => {
                        let draft = asked.get(request);
                        let stored = self.stored.get(id.as_str());
                        let agrees = stored.zip(draft).is_some_and(|((_, message), draft)| {
                            let to = match &draft.to {
                                To::User(user) => (user.as_str(), ""),
                                To::Group(group) => ("", group.as_str()),
                            };
                            message.from_user_id == history.user
                                && (message.to_user_id.as_str(), message.group_id.as_str()) == to
                                && message.content == draft.content
                                && message.client_message_id == draft.client_message_id
                        });
                        if !agrees {
                            let device = &history.device;
                            find(format!(
                                "{device} was told at {at:?} that {id} is sent, and it is not"
                            ));
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    pub(super) fn nothing_lost(&self, findings: &mut Vec<Finding>) {
        let mut devices: BTreeMap<&str, Vec<(&History, HashSet<&str>)>> = BTreeMap::new();
        for history in &self.records.histories {
            let ids = history.events.iter().filter_map(|(_, event)| match event {
                Event::Pushed(pushed) => Some(pushed.id.as_str()),
                _ => None,
            });
            let of_user = devices.entry(&history.user).or_default();
            of_user.push((history, ids.collect()));
        }
        for message in &self.records.stored.messages {
            let id = message.id.as_str();
            for user in self.recipients(message) {
                let Some(of_user) = devices.get(user) else {
                    continue;
                };
                let is_unread = || {
                    self.records
                        .stored
                        .unread
                        .contains(&(user.to_owned(), id.to_owned()))
                };
                let acked = self.acks.contains_key(&(user, id));
                let may_wait = self.has_left_since(user, message) && is_unread();
                let came = of_user.iter().any(|(_, ids)| ids.contains(id));
                if !came && !may_wait {
                    let seen = format!("{id} came to no device of {user}, unread: {}", is_unread());
                    findings.push(Finding::new(Sentence::NothingLost, seen));
                } else if !acked && !is_unread() {
                    let seen = format!("{id} is unread no more, and {user} never acknowledged it");
                    findings.push(Finding::new(Sentence::NothingLost, seen));
                }
                for (history, ids) in of_user {
                    if history.waits_for_others && !may_wait && !ids.contains(id) {
                        let seen = format!("{id} did not come to {}", history.device);
                        findings.push(Finding::new(Sentence::EveryDevice, seen));
                    }
                }
            }
        }
    }

    /// A gateway that has not known the group yet does not know that there was somebody else: it comes with
    /// their next connect.
    fn has_left_since(&self, user: &str, message: &'a Message) -> bool {
        let membership = self.memberships.of(user, &message.group_id);
        let commit = self.commit_of(message);
        membership.zip(commit).is_some_and(|(membership, commit)| {
            !membership.throughout(Span::new(commit.from, Moment::MAX))
        })
    }

    pub(super) fn nobody_elses_and_nothing_invented(&self, findings: &mut Vec<Finding>) {
        let digests: HashMap<&str, u64> = self
            .stored
            .iter()
            .map(|(id, (_, message))| (*id, digest(message)))
            .collect();
        for history in &self.records.histories {
            let (device, user) = (&history.device, history.user.as_str());
            for (at, event) in &history.events {
                let Event::Pushed(pushed) = event else {
                    continue;
                };
                let id = pushed.id.as_str();
                if digests.get(id) != Some(&pushed.digest) {
                    let seen = format!("{device} got {id} at {at:?}, which is not stored so");
                    findings.push(Finding::new(Sentence::NothingInvented, seen));
                    continue;
                }
                let (_, message) = self.stored[id];
                let is_theirs = message.from_user_id == user
                    || match message.group_id.as_str() {
                        "" => message.to_user_id == user,
                        group => self.may_be_for(user, group, message, *at),
                    };
                if !is_theirs {
                    let seen = format!("{device} got {id} at {at:?}, which is for others");
                    findings.push(Finding::new(Sentence::NobodyElses, seen));
                }
            }
        }
    }

    /// Somebody who left is a member to a gateway for as long as it keeps the list, and has not heard.
    fn may_be_for(&self, user: &str, group: &str, message: &Message, at: Moment) -> bool {
        let Some(membership) = self.memberships.of(user, group) else {
            return false;
        };
        let Some(commit) = self.commit_of(message) else {
            return false;
        };
        membership.at_all(Span::new(commit.from, at), CACHE_TTL + SLACK)
    }

    /// Own copies are nobody's unread: those from before the connection may come late.
    pub(super) fn in_order(&self, history: &History, findings: &mut Vec<Finding>) {
        if self.records.went_past.contains(&history.user) {
            return;
        }
        let mut seen = HashSet::new();
        let mut last: HashMap<(&str, &str, &str), (usize, &str)> = HashMap::new();
        let mut connected = Moment::ZERO;
        for (at, event) in &history.events {
            let Event::Pushed(Pushed { id, .. }) = event else {
                if matches!(event, Event::Connected) {
                    connected = *at;
                }
                continue;
            };
            let Some((place, message)) = self.stored.get(id.as_str()) else {
                continue;
            };
            // What was written to a group before somebody joined comes to them if it is published late.
            let is_new = |commit: Span| commit.from > connected;
            let is_theirs = if message.from_user_id == history.user {
                self.commit_of(message).is_some_and(is_new)
            } else {
                self.is_recipient(&history.user, message)
            };
            if !seen.insert(id) || !is_theirs {
                continue;
            }
            let pair = (
                &*message.from_user_id,
                &*message.to_user_id,
                &*message.group_id,
            );
            let (newest, newest_id) = last.entry(pair).or_insert((*place, id));
            // What another device has acknowledged is not among what is unread: it may come late here, or
            // not at all.
            let acked = self.acks.get(&(history.user.as_str(), id));
            if place < newest && acked.is_none_or(|acked| acked > at) {
                let seen = format!("{} got {id} at {at:?}, behind {newest_id}", history.device);
                findings.push(Finding::new(Sentence::InOrder, seen));
            } else if place > newest {
                (*newest, *newest_id) = (*place, id);
            }
        }
    }

    pub(super) fn unread_first(
        &self,
        history: &History,
        session: &Session<'_>,
        findings: &mut Vec<Finding>,
    ) {
        let device = &history.device;
        let mut find = |seen| findings.push(Finding::new(Sentence::UnreadFirst, seen));
        let complete = session
            .events
            .iter()
            .position(|(_, event)| matches!(event, Event::OfflineComplete { .. }));
        let Some(complete) = complete else {
            return;
        };
        let (at, Event::OfflineComplete { count }) = &session.events[complete] else {
            return;
        };
        if at.saturating_sub(session.asked) > CALM_CATCH_UP {
            return;
        }
        let mut came = HashSet::new();
        let mut last = None;
        for (_, event) in &session.events[..complete] {
            let Event::Pushed(Pushed { id, .. }) = event else {
                continue;
            };
            if !came.insert(id.as_str()) {
                find(format!(
                    "{device} got {id} twice before offline_complete at {at:?}"
                ));
            }
            let Some((place, _)) = self.stored.get(id.as_str()) else {
                continue;
            };
            if last.is_some_and(|last| *place < last) {
                find(format!(
                    "{device} got {id} late before offline_complete at {at:?}"
                ));
            }
            last = Some(*place);
        }
        if *count != came.len() {
            find(format!(
                "{device} got {} and was told of {count} at {at:?}",
                came.len()
            ));
        }
        let inbox = self.inboxes.get(&history.user).into_iter().flatten();
        let unread = inbox.filter(|it| it.committed.until < session.asked && it.acked > *at);
        for message in unread.filter(|it| !came.contains(it.id)) {
            find(format!(
                "{device} connected at {:?} and did not get {} first",
                session.asked, message.id
            ));
        }
    }
}
