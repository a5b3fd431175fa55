//! What a device writes and asks, and what it makes of what it is told.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Device, PACE};
use crate::chaos::history::{Answer, Chat, Draft, Event, Moment, Pushed, Request, Span, To};
use crate::chaos::people::{Commit, Phase, lock};
use crate::support;
use crate::support::client::is_push;

/// What cannot be served now is asked for again after this.
const AGAIN: Duration = Duration::from_millis(300);
/// For so long it collects what to acknowledge.
const COLLECT: Duration = Duration::from_millis(200);
/// Of so many messages one is the first of a burst of so many large ones, at once, to a group.
const BURSTS: usize = 60;
const BURST: usize = 20;
const LARGE: usize = 6_000;

impl Device {
    /// Sends what is to be sent, and thinks of something new.
    pub(super) fn write(&mut self, now: Moment) {
        if let Some(draft) = self.draft.clone() {
            if self.draft_at.is_some_and(|at| now >= at) {
                self.draft_at = None;
                self.send(&draft);
            }
            return;
        }
        let is_time = now >= self.next_at || self.burst > 0;
        if !self.seat.writes || !is_time || self.people.phase() != Phase::Talk {
            return;
        }
        self.next_at = now + PACE * (self.random.below(200) as u32) / 100;
        if self.burst > 0 {
            self.burst -= 1;
        } else if self.random.below(BURSTS) == 0 {
            self.burst = BURST;
        } else if self.random.below(20) == 0 {
            return self.look_back();
        }
        let to = match self.random.below(4) {
            0 => self.group(),
            _ if self.burst > 0 => self.group(),
            _ => To::User(
                self.random
                    .pick(&self.people.contacts(&self.seat.user))
                    .clone(),
            ),
        };
        self.written += 1;
        let client_message_id = format!("{}-{}", self.seat.user, self.written);
        let length = if self.burst > 0 {
            LARGE
        } else {
            20 + self.random.below(200)
        };
        let content = format!("{client_message_id} {}", "x".repeat(length));
        let draft = Draft {
            to,
            client_message_id,
            content,
        };
        self.draft = Some(draft.clone());
        self.draft_since = now;
        self.send(&draft);
    }

    fn group(&mut self) -> To {
        To::Group(self.people.office.group_of(&self.seat.user))
    }

    fn send(&mut self, draft: &Draft) {
        let Draft {
            to,
            client_message_id,
            content,
        } = draft;
        let (kind, field, to) = match to {
            To::User(user) => ("send_message", "to_user_id", user),
            To::Group(group) => ("send_group_message", "group_id", group),
        };
        let data = json!({field: to, "content": content, "client_message_id": client_message_id});
        self.ask(kind, data, Request::Send(draft.clone()));
    }

    /// Asks for a history.
    fn look_back(&mut self) {
        let chat: Chat = match self.random.below(2) {
            0 => self.group(),
            _ => To::User(
                self.random
                    .pick(&self.people.contacts(&self.seat.user))
                    .clone(),
            ),
        };
        let (kind, field, of) = match &chat {
            To::User(user) => ("get_history", "user_id", user),
            To::Group(group) => ("get_group_history", "group_id", group),
        };
        let data = json!({field: of, "limit": crate::chaos::checker::HISTORY_LIMIT});
        self.ask(kind, data, Request::History(chat));
    }

    pub(super) fn ask(&mut self, kind: &str, data: Value, what: Request) {
        let Some(client) = &mut self.client else {
            return;
        };
        // Where it cannot be sent, what the gateway said before it went is still to be read.
        if let Some(request) = client.try_send_request(kind, data) {
            self.pending.push_back((request.clone(), what.clone()));
            self.note(Event::Asked { request, what });
        }
    }

    pub(super) fn read(&mut self, wait: Duration) {
        let Some(client) = &mut self.client else {
            return;
        };
        match client.next_event(wait) {
            support::Event::Nothing => {}
            support::Event::End(ended) => self.ended(ended),
            support::Event::Frame(frame) => {
                self.heard_at = self.now();
                self.took(&frame);
            }
        }
    }

    fn took(&mut self, frame: &Value) {
        if is_push(frame) {
            let pushed = Pushed::of(frame);
            let id = pushed.id.clone();
            self.note(Event::Pushed(pushed));
            lock(&self.seat.seen).insert(id.clone());
            if self.people.may_acknowledge(&self.seat, &id) {
                self.to_ack.push(id);
                let at = self.now() + COLLECT;
                self.ack_at.get_or_insert(at);
            }
            return;
        }
        match frame["type"].as_str().unwrap_or_default() {
            "offline_complete" => {
                let count = frame["count"].as_u64().unwrap_or_default() as usize;
                self.failures = 0;
                self.note(Event::OfflineComplete { count });
                self.seat.settled.store(true, Ordering::SeqCst);
            }
            "presence" => {
                let user = frame["user_id"].as_str().unwrap_or_default().to_owned();
                let online = frame["status"] == "online";
                lock(&self.seat.presence).insert(user.clone(), online);
                self.note(Event::Presence { user, online });
            }
            _ => self.answered(frame),
        }
    }

    fn answered(&mut self, frame: &Value) {
        let request = frame["request_id"].as_str().unwrap_or_default().to_owned();
        let text = |field: &str| frame[field].as_str().unwrap_or_default().to_owned();
        let answer = match frame["type"].as_str().unwrap_or_default() {
            "message_sent" => Answer::Sent(text("id")),
            "acked" => Answer::Acked,
            "history" | "group_history" => {
                let messages = frame["messages"].as_array().cloned().unwrap_or_default();
                let messages = messages.iter().map(Pushed::of).collect();
                Answer::History {
                    messages,
                    has_more: frame["has_more"] == true,
                }
            }
            "token_refreshed" => Answer::Refreshed,
            "pong" => Answer::Pong,
            "error" => Answer::Error(text("code")),
            other => Answer::Error(format!("no answer is a {other}")),
        };
        self.note(Event::Answered {
            request: request.clone(),
            answer: answer.clone(),
        });
        let Some(place) = self.pending.iter().position(|(id, _)| *id == request) else {
            return;
        };
        let (_, what) = self.pending.remove(place).expect("it is there");
        let code = match &answer {
            Answer::Error(code) => code.clone(),
            _ => String::new(),
        };
        let again = [
            "RATE_LIMITED",
            "SERVICE_UNAVAILABLE",
            "DEADLINE_EXCEEDED",
            "INTERNAL",
        ];
        let at = self.now() + AGAIN;
        match (what, answer) {
            (Request::Send(_), _) if again.contains(&&*code) => self.draft_at = Some(at),
            (Request::Send(draft), answer) => {
                self.draft = None;
                if let Answer::Sent(id) = answer {
                    let within = Span::new(self.draft_since, self.now());
                    let from = self.seat.user.clone();
                    self.people.committed(Commit {
                        id,
                        from,
                        draft,
                        within,
                    });
                }
            }
            (Request::Ack(ids), _) if again.contains(&&*code) => {
                self.to_ack.extend(ids);
                self.ack_at = Some(at);
            }
            (Request::Refresh(_), Answer::Error(_)) => self.refresh_at = Some(at),
            _ => {}
        }
    }
}
