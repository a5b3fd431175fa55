//! Who is let in, who has to go, and why a connection ends.

use std::time::Duration;

use super::session::Session;
use super::{AFTERMATH, Checker, Finding, SLACK, Sentence};
use crate::chaos::history::{Answer, Decided, Event, History, Moment, Request, Span};
use crate::chaos::series::{ClientFault, GatewayFault, What};

impl<'a> Checker<'a> {
    pub(super) fn let_in(&self, history: &History, findings: &mut Vec<Finding>) {
        for pair in history.events.windows(2) {
            let [
                (asked, Event::Connecting { gateway, token }),
                (at, Event::Refused(status)),
            ] = pair
            else {
                continue;
            };
            let within = Span::new(*asked, *at);
            let has_cause = match status {
                None => self.gateway_suffers(*gateway, within),
                Some(401) => !self.holds_for_sure(token, within),
                Some(503) => self.suffers(within, |what| match what {
                    What::Services(_) => true,
                    What::Gateway(number, _) => number == *gateway,
                    _ => false,
                }),
                Some(_) => false,
            };
            if !has_cause {
                let seen = format!(
                    "{} is refused at g{gateway} at {at:?} with {status:?}",
                    history.device
                );
                findings.push(Finding::new(Sentence::LetIn, seen));
            }
        }
    }

    fn holds_for_sure(&self, token: &str, within: Span) -> bool {
        let mut holds = false;
        for decree in &self.records.decrees {
            match &decree.what {
                Decided::Issued {
                    token: one,
                    expires_in,
                } if one == token => {
                    let until = expires_in.map_or(Moment::MAX, |it| decree.within.from + it);
                    holds = within.until < until;
                }
                Decided::Revoked { token: one, .. } if one == token => {
                    holds &= within.until < decree.within.from;
                }
                _ => {}
            }
        }
        holds
    }

    /// Revocations and expiry.
    pub(super) fn out_in_time(
        &self,
        history: &History,
        session: &Session<'_>,
        findings: &mut Vec<Finding>,
    ) {
        let device = &history.device;
        let until = session.end().map_or(self.end, |(at, _)| *at);
        let mut token = session.token;
        let mut since = session.connected;
        let mut refreshing = "";
        for (at, event) in session.events {
            match event {
                Event::Asked {
                    what: Request::Refresh(next),
                    ..
                } => refreshing = next,
                Event::Answered {
                    answer: Answer::Refreshed,
                    ..
                } => {
                    self.holds(history, session, token, Span::new(since, *at), findings);
                    (token, since) = (refreshing, *at);
                }
                _ => {}
            }
        }
        self.holds(history, session, token, Span::new(since, until), findings);
        for decree in &self.records.decrees {
            let Decided::Revoked { token: revoked, .. } = &decree.what else {
                continue;
            };
            if revoked != token {
                continue;
            }
            if session.asked > decree.within.until {
                let seen = format!(
                    "{device} is let in at {:?} with {token}, revoked at {:?}",
                    session.asked, decree.within.until
                );
                findings.push(Finding::new(Sentence::RevokedIsOut, seen));
            }
            let since = decree.within.until.max(session.connected);
            let limit = self.out_by(session.gateway, since);
            if limit.is_some_and(|limit| {
                until > limit + self.frozen(history, session, Span::new(limit, until))
            }) {
                let seen = format!(
                    "{device} stays until {until:?} with {token}, revoked at {:?}",
                    decree.within.until
                );
                findings.push(Finding::new(Sentence::RevokedIsOut, seen));
            }
        }
    }

    /// Whether `token` did for so long.
    fn holds(
        &self,
        history: &History,
        session: &Session<'_>,
        token: &str,
        within: Span,
        findings: &mut Vec<Finding>,
    ) {
        let issued = self
            .records
            .decrees
            .iter()
            .find_map(|decree| match &decree.what {
                Decided::Issued {
                    token: issued,
                    expires_in,
                } if issued == token => Some(*expires_in),
                _ => None,
            });
        // Rounded up to a second.
        let Some(expires_in) = issued
            .flatten()
            .map(|it| it + Duration::from_secs(1) + SLACK)
        else {
            return;
        };
        let limit = within.from + expires_in + self.frozen(history, session, within);
        if within.until > limit {
            let seen = format!(
                "{} stays with {token} from {:?} to {:?}",
                history.device, within.from, within.until
            );
            findings.push(Finding::new(Sentence::ExpiredIsOut, seen));
        }
    }

    /// When nobody can be connected to a gateway any more with a token that was revoked at `since`; nothing
    /// where that is after the end.
    fn out_by(&self, gateway: usize, since: Moment) -> Option<Moment> {
        /// Where nothing ails.
        const AT_ONCE: Duration = Duration::from_secs(6);
        /// Until the routes of all are bound again, and each token is asked about.
        const ROUTES: Duration = Duration::from_secs(12);
        let concerns = |what: What| match what {
            What::Broker(_) | What::Services(_) => true,
            What::Gateway(number, _) => number == gateway,
            What::Clients(..) => false,
        };
        let mut limit = since + AT_ONCE;
        for suffered in &self.records.faults {
            let Span { from: begun, until } = suffered.within;
            if concerns(suffered.fault.what) && begun < limit {
                let over = (until + AFTERMATH).min(self.records.ready_at);
                limit = limit.max(over + ROUTES);
            }
        }
        (limit < self.end).then_some(limit)
    }

    pub(super) fn closed_with_cause(
        &self,
        history: &History,
        session: &Session<'_>,
        findings: &mut Vec<Finding>,
    ) {
        let Some((at, event)) = session.end() else {
            return;
        };
        let device = &history.device;
        let ago = |time: Duration| Span::new(at.saturating_sub(time), *at);
        let gateway = |within, is_it: fn(GatewayFault) -> bool| {
            self.suffers(within, |what| {
                matches!(what, What::Gateway(number, fault) if number == session.gateway && is_it(fault))
            })
        };
        let ails = |within: Span, is_it: fn(ClientFault) -> bool| {
            self.ailments[&**device]
                .iter()
                .any(|(fault, span)| is_it(*fault) && span.meets(within))
        };
        let was_revoked = || {
            self.records.decrees.iter().any(|decree| {
                matches!(&decree.what, Decided::Revoked { user, .. } if *user == history.user)
                    && decree.within.from <= *at
            })
        };
        let expires = || {
            self.records.decrees.iter().any(|decree| {
            matches!(&decree.what, Decided::Issued { token, expires_in: Some(_) } if token == session.token)
        })
        };
        let slow = |fault| matches!(fault, ClientFault::Frozen | ClientFault::Slow);
        let has_cause = match event {
            Event::Closed { code: 1012 } => gateway(ago(SLACK), |it| it == GatewayFault::Stopped),
            Event::Closed { code: 4001 } => ails(ago(Duration::from_secs(65)), slow),
            Event::Closed { code: 4002 } => ails(ago(2 * AFTERMATH), slow),
            Event::Closed { code: 4003 } => expires(),
            Event::Closed { code: 4005 } => was_revoked() || expires(),
            Event::Closed { .. } => false,
            Event::Cut => {
                gateway(ago(AFTERMATH), |it| {
                    matches!(it, GatewayFault::Killed | GatewayFault::Stopped)
                }) || ails(ago(AFTERMATH), slow)
            }
            _ => true,
        };
        if !has_cause {
            let seen = format!("{device} at g{}: {event:?} at {at:?}", session.gateway);
            findings.push(Finding::new(Sentence::ClosedWithCause, seen));
        }
    }
}
