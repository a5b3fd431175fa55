//! The stage of the script: who is connected, who is on the way back, and what has been seen so far.

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::door::{Arrival, Door};
use super::peer::{PING_INTERVAL, Peer, Sent};
use super::report::{Report, Trouble, Verdict, broken};

/// How long the first client may take to come.
const FIRST: Duration = Duration::from_secs(300);
/// How long one may take that somebody starts again.
const RESTART: Duration = Duration::from_secs(60);
/// How long a client may take to come back by itself, where no rule says anything narrower.
pub const RETURN: Duration = Duration::from_secs(10);
/// For whatever takes no wait.
pub const SOON: Duration = Duration::from_secs(5);
/// A first ping comes within an interval; and this machine may be busy.
const FIRST_PING: Duration = Duration::from_millis(1_300 * PING_INTERVAL);
/// A Close frame that has the client back at once, in no rule's way.
const COME_AGAIN: &str = r#"{"reconnect":true,"after_ms":100,"reason":"next"}"#;

pub struct Kit {
    door: Door,
    pub report: Report<Box<dyn Write>>,
    /// Who has asked to come in.
    arrival: Option<Arrival>,
    peer: Option<Peer>,
    /// Whether the peer has been told that all that was unread is through.
    is_complete: bool,
    /// Told to go, and not cut off before it has read that.
    leaving: Option<Peer>,
    has_come: bool,
    /// It is right not to come back.
    pub stays_away: bool,
    /// It was asked for, and did not come.
    is_gone: bool,
    messages: usize,
    /// How long the client took to come back where nobody had said when, in seconds, each divided by
    /// what the doubling makes of it.
    pub waits: Vec<f64>,
    pub first_pings: Vec<Duration>,
    /// What it sent on the connections that are over.
    pub sent: Vec<Sent>,
    /// The first thing that was no request.
    pub wrong: Option<String>,
}

impl Kit {
    pub fn new(listener: TcpListener, report: Report<Box<dyn Write>>) -> Self {
        Self {
            door: Door::new(listener),
            report,
            arrival: None,
            peer: None,
            is_complete: false,
            leaving: None,
            has_come: false,
            stays_away: false,
            is_gone: false,
            messages: 0,
            waits: Vec::new(),
            first_pings: Vec::new(),
            sent: Vec::new(),
            wrong: None,
        }
    }

    /// A new message's id, which is its content as well.
    pub fn name(&mut self) -> String {
        self.messages += 1;
        format!("say {}", self.messages)
    }

    /// Who asks to come in, whoever has to be asked to.
    pub fn arrival(&mut self) -> Verdict<&Arrival> {
        self.wait_for_client()?;
        self.arrival.as_ref().ok_or(Trouble::NotSeen)
    }

    /// Who is let in, and has heard `connected`, and perhaps no more.
    pub fn newcomer(&mut self) -> Verdict<&mut Peer> {
        // What has come meanwhile may be its end.
        let is_over = self.peer.as_mut().is_some_and(|peer| {
            peer.listen(Duration::from_millis(1), |_| false);
            !peer.heard.is_open
        });
        if is_over {
            self.retire();
        }
        if self.peer.is_none() {
            self.wait_for_client()?;
            let peer = Peer::admit(self.take_arrival()?);
            self.peer = Some(peer.map_err(|_| Trouble::NotSeen)?);
            self.is_complete = false;
            self.leaving = None;
        }
        self.peer.as_mut().ok_or(Trouble::NotSeen)
    }

    /// Who is connected, with nothing unread.
    pub fn peer(&mut self) -> Verdict<&mut Peer> {
        self.newcomer()?;
        let is_complete = std::mem::replace(&mut self.is_complete, true);
        let peer = self.peer.as_mut().ok_or(Trouble::NotSeen)?;
        if !is_complete {
            peer.complete(0);
        }
        Ok(peer)
    }

    /// Says that the `count` messages that were unread are through.
    pub fn complete(&mut self, count: usize) {
        self.is_complete = true;
        if let Some(peer) = &mut self.peer {
            peer.complete(count);
        }
    }

    /// Ends the connection with a Close frame, not before its first ping. Answers when.
    pub fn close(&mut self, code: u16, reason: &str) -> Verdict<Instant> {
        let peer = self.peer()?;
        peer.listen(FIRST_PING, |heard| heard.first_ping.is_some());
        peer.close(code, reason);
        let now = Instant::now();
        self.retire();
        Ok(now)
    }

    /// Ends the connection without a word. Answers when.
    pub fn cut(&mut self) -> Instant {
        self.retire();
        self.leaving.take().into_iter().for_each(Peer::cut);
        Instant::now()
    }

    /// Has the client come back: it waits at the door, to be let in or not.
    pub fn knock(&mut self) -> Verdict {
        self.close(1012, COME_AGAIN)?;
        self.wait_for_client()
    }

    /// Who waits at the door, to be refused.
    pub fn take_arrival(&mut self) -> Verdict<Arrival> {
        self.arrival.take().ok_or(Trouble::NotSeen)
    }

    /// Waits until the client comes back. Answers how long after `since`.
    pub fn returns(&mut self, since: Instant, within: Duration) -> Verdict<Duration> {
        match self.comes(within) {
            Some(arrival) => Ok(arrival.at - since),
            None => broken(format!(
                "it did not come back within {} s",
                within.as_secs()
            )),
        }
    }

    /// Ends the connection without a word, and waits until the client is back. Whether it comes at all is
    /// another rule's.
    pub fn is_back_after_cut(&mut self) -> Verdict {
        let since = self.cut();
        let after = self.returns(since, RETURN).map_err(|_| Trouble::NotSeen)?;
        self.waits.push(after.as_secs_f64());
        Ok(())
    }

    /// Who comes within this time.
    pub fn comes(&mut self, within: Duration) -> Option<&Arrival> {
        self.arrival = self.door.arrival(Instant::now() + within);
        self.arrival.as_ref()
    }

    /// Whoever was waiting at the door is sent away, without an answer.
    pub fn turn_away(&mut self) -> Instant {
        self.arrival.take().into_iter().for_each(Arrival::cut);
        Instant::now()
    }

    /// What the connection has shown is kept.
    pub fn retire(&mut self) {
        if let Some(peer) = self.peer.take() {
            self.first_pings.extend(peer.heard.first_ping);
            self.sent.extend(peer.heard.sent.iter().cloned());
            self.wrong = self.wrong.take().or_else(|| peer.heard.wrong.clone());
            self.leaving = Some(peer);
        }
    }

    fn wait_for_client(&mut self) -> Verdict {
        if self.arrival.is_some() {
            return Ok(());
        }
        let patience = match (self.has_come, self.is_gone || self.stays_away) {
            (false, _) => FIRST,
            (true, true) => Duration::ZERO,
            (true, false) => RETURN,
        };
        let mut is_here = self.comes(patience).is_some();
        if !is_here && self.has_come && !self.is_gone {
            self.leaving = None;
            self.report.line("start the client again");
            is_here = self.comes(RESTART).is_some();
        }
        (self.has_come, self.stays_away, self.is_gone) = (true, false, !is_here);
        is_here.then_some(()).ok_or(Trouble::NotSeen)
    }
}
