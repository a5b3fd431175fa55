//! What is asked and what is answered, histories among it.

use std::collections::HashMap;

use super::session::Session;
use super::{Chat, Checker, Finding, HISTORY_LIMIT, SLACK, Sentence};
use crate::chaos::deployment::ANSWER;
use crate::chaos::device::SILENCE;
use crate::chaos::history::{Answer, Event, History, Moment, Pushed, Request, Span, To, digest};
use crate::chaos::series::{ClientFault, What};

impl<'a> Checker<'a> {
    pub(super) fn answered(
        &self,
        history: &History,
        session: &Session<'_>,
        findings: &mut Vec<Finding>,
    ) {
        let device = &history.device;
        let mut find = |seen| findings.push(Finding::new(Sentence::Answered, seen));
        let mut pending: Vec<(&str, Moment, &Request)> = Vec::new();
        // One is served at a time.
        let mut free_at = Moment::ZERO;
        for (at, event) in session.events {
            match event {
                Event::Asked { request, what } => pending.push((request, *at, what)),
                Event::Answered { request, answer } => {
                    let Some((first, asked, what)) = pending.first().copied() else {
                        find(format!(
                            "{device}: {request} is answered at {at:?}, unasked or twice"
                        ));
                        continue;
                    };
                    if first != request {
                        find(format!(
                            "{device}: {request} is answered at {at:?} before {first}"
                        ));
                        pending.retain(|(pending, ..)| pending != request);
                        continue;
                    }
                    pending.remove(0);
                    let within = Span::new(asked.max(free_at), *at);
                    free_at = *at;
                    // An idempotent call is tried twice.
                    let limit = 2 * ANSWER + SLACK + self.frozen(history, session, within);
                    if within.until - within.from > limit {
                        find(format!(
                            "{device}: {request} took {:?}",
                            within.until - within.from
                        ));
                    }
                    if let Answer::Error(code) = answer
                        && !self.may_fail(what, code, Span::new(asked, *at))
                    {
                        find(format!(
                            "{device}: {what:?} at {at:?} is refused with {code}"
                        ));
                    }
                }
                Event::GaveUp => {
                    let within = Span::new(at.saturating_sub(2 * SILENCE), *at);
                    // A pong waits behind a request that waits for a service, with intervals as short as
                    // these for too long.
                    let waits = pending
                        .iter()
                        .any(|(.., what)| !matches!(what, Request::Ping))
                        && self.suffers(within, |what| matches!(what, What::Services(_)));
                    if self.frozen(history, session, within).is_zero()
                        && !self.gateway_suffers(session.gateway, within)
                        && !waits
                    {
                        find(format!("{device} heard nothing until {at:?}"));
                    }
                }
                Event::Left if !self.was_cut_off(history, *at) && !pending.is_empty() => {
                    find(format!(
                        "{device} left at {at:?} without an answer to {pending:?}"
                    ));
                }
                _ => {}
            }
        }
    }

    /// Whether the client left because something was done to it.
    fn was_cut_off(&self, history: &History, at: Moment) -> bool {
        history.events.iter().any(|(when, event)| {
            *when <= at
                && at - *when < SLACK
                && matches!(
                    event,
                    Event::Suffers(ClientFault::Gone | ClientFault::HalfOpen)
                )
        })
    }

    fn may_fail(&self, what: &Request, code: &str, within: Span) -> bool {
        match (what, code) {
            (_, "SERVICE_UNAVAILABLE" | "DEADLINE_EXCEEDED" | "INTERNAL") => self
                .suffers(within, |what| {
                    matches!(what, What::Services(_) | What::Gateway(..))
                }),
            (Request::Send(draft), "PERMISSION_DENIED") => matches!(draft.to, To::Group(_)),
            (Request::History(chat), "PERMISSION_DENIED") => matches!(chat, To::Group(_)),
            // The services may have begun anew with it, or have it no more.
            (Request::Refresh(_), "UNAUTHENTICATED") => true,
            _ => false,
        }
    }

    pub(super) fn histories(
        &self,
        history: &History,
        session: &Session<'_>,
        findings: &mut Vec<Finding>,
    ) {
        let mut asked: HashMap<&str, (&To, Moment)> = HashMap::new();
        for (at, event) in session.events {
            match event {
                Event::Asked {
                    request,
                    what: Request::History(chat),
                } => {
                    asked.insert(request, (chat, *at));
                }
                Event::Answered {
                    request,
                    answer: Answer::History { messages, has_more },
                } => {
                    let Some((chat, since)) = asked.remove(request.as_str()) else {
                        continue;
                    };
                    if let Err(seen) =
                        self.is_whole(&history.user, chat, since, messages, *has_more)
                    {
                        let seen = format!("{} at {at:?}: {seen}", history.device);
                        findings.push(Finding::new(Sentence::Histories, seen));
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether a page is what was stored last at some moment since it was asked for.
    fn is_whole(
        &self,
        user: &str,
        chat: &To,
        since: Moment,
        page: &[Pushed],
        has_more: bool,
    ) -> Result<(), String> {
        let key = match chat {
            To::Group(group) => Chat::Group(group),
            To::User(other) => Chat::between(user, other),
        };
        let all = self.chats.get(&key).map_or(&[][..], Vec::as_slice);
        let until = match page.last() {
            None => 0,
            Some(last) => {
                let place = all.iter().rposition(|message| message.id == last.id);
                place.ok_or_else(|| format!("{} is not in the history of {chat:?}", last.id))? + 1
            }
        };
        let from = until.saturating_sub(HISTORY_LIMIT);
        let expected: Vec<Pushed> = all[from..until]
            .iter()
            .map(|message| Pushed {
                id: message.id.clone(),
                digest: digest(message),
            })
            .collect();
        if expected != page {
            let ids = |page: &[Pushed]| page.iter().map(|it| it.id.clone()).collect::<Vec<_>>();
            let (ids, expected) = (ids(page), ids(&expected));
            return Err(format!(
                "the history of {chat:?} is {ids:?}, not {expected:?}"
            ));
        }
        if has_more != (from > 0) {
            return Err(format!(
                "the history of {chat:?} says has_more {has_more}, and {from} are older"
            ));
        }
        // What was committed before it was asked for is in it. They are in the order of their commits.
        let commits = all[until..]
            .iter()
            .map(|message| (message, self.commit_of(message)));
        let late = commits
            .take_while(|(_, commit)| commit.is_none_or(|commit| commit.from < since))
            .find(|(_, commit)| commit.is_some_and(|commit| commit.until < since));
        match late {
            None => Ok(()),
            Some((late, _)) => Err(format!(
                "the history of {chat:?} lacks {} at its end",
                late.id
            )),
        }
    }
}
