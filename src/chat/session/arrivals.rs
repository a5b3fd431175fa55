//! What each frame means to the session.

use std::time::Instant;

use super::{Link, Session, share};
use crate::chat::drafts::Verdict;
use crate::chat::escape;
use crate::chat::frames::Frame;
use crate::chat::liveness::Liveness;
use crate::chat::screen::{Closed, Words};

impl Session {
    /// A frame that came, as `text`.
    pub(super) fn frame(&mut self, text: &str) -> Result<(), Closed> {
        let Some(frame) = Frame::parse(text) else {
            return self.screen.notice("a frame came that is not understood");
        };
        match frame.kind.as_str() {
            "connected" => self.greeted(frame),
            "message" | "group_message" => self.message(text, &frame),
            "presence" => {
                self.screen.show(text, &Words::Presence(&frame))?;
                self.presence.insert(frame.user_id, frame.status);
                Ok(())
            }
            "message_sent" | "error" => self.answer(text, &frame),
            "history" | "group_history" => self.history(&frame),
            "offline_complete" => self.caught_up(frame.count),
            // Others carry nothing of interest, or are newer than this client.
            _ => Ok(()),
        }
    }

    fn greeted(&mut self, frame: Frame) -> Result<(), Closed> {
        let Link::Up(up) = &mut self.link else {
            return Ok(());
        };
        up.is_greeted = true;
        up.liveness = Liveness::new(frame.ping_interval, share(), Instant::now());
        self.max_message_size = frame.max_message_size.unwrap_or(usize::MAX);
        self.me = frame.user_id;
        let again = if self.was_connected { " again" } else { "" };
        let is_told = self.was_connected || self.screen.is_terminal();
        self.was_connected = true;
        self.lost_since = None;
        self.told.clear();
        if !is_told {
            return Ok(());
        }
        let (me, server) = (escape::line(&self.me), self.dialer.server());
        let told = format!("connected{again} to {server} as {me}");
        self.screen.notice(&told)
    }

    fn message(&mut self, text: &str, frame: &Frame) -> Result<(), Closed> {
        let is_mine = frame.from_user_id == self.me;
        let is_from_here = is_mine && self.own.contains_key(&frame.client_message_id);
        let is_new = self.inbox.is_new(&frame.id);
        if is_new && !is_from_here {
            let me = &self.me;
            self.screen.show(text, &Words::Message { frame, me })?;
        }
        // Own copies are never unread.
        if !is_mine || frame.to_user_id == self.me {
            self.inbox.was_shown(&frame.id, Instant::now());
        }
        Ok(())
    }

    fn answer(&mut self, text: &str, frame: &Frame) -> Result<(), Closed> {
        let (code, why) = (escape::line(&frame.code), escape::line(&frame.message));
        match self.drafts.answered(frame, Instant::now()) {
            Some(Verdict::Sent(draft)) => {
                let to = &draft.target;
                self.screen.show(text, &Words::Sent { frame, to })
            }
            Some(Verdict::Refused(draft)) => {
                self.screen.show(text, &Words::Nothing)?;
                self.give_up(&draft, &format!("{code}: {why}"))
            }
            // It is a matter of pace.
            Some(Verdict::Later) if frame.code == "RATE_LIMITED" => Ok(()),
            Some(Verdict::Later) => self.screen.notice(&format!("{code}: {why}; tries again")),
            None if frame.kind == "error" => {
                self.screen.show(text, &Words::Nothing)?;
                self.screen.notice(&format!("{code}: {why}"))
            }
            None => Ok(()),
        }
    }

    fn history(&mut self, frame: &Frame) -> Result<(), Closed> {
        if frame.messages.is_empty() {
            return self.screen.notice("no messages yet");
        }
        for message in &frame.messages {
            let (frame, me) = (message, self.me.as_str());
            self.screen.show("", &Words::Message { frame, me })?;
        }
        let more = if frame.has_more {
            "; there are older ones"
        } else {
            ""
        };
        self.screen.notice(&format!("so far{more}"))
    }

    fn caught_up(&mut self, count: u64) -> Result<(), Closed> {
        if let Link::Up(up) = &mut self.link {
            up.is_caught_up = true;
        }
        match count {
            0 => Ok(()),
            _ if !self.screen.is_terminal() => Ok(()),
            1 => self.screen.notice("1 message was unread"),
            count => self.screen.notice(&format!("{count} messages were unread")),
        }
    }
}
