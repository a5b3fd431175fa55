//! A history, cut into sessions, and what its client suffered.

use crate::chaos::history::{Event, History, Moment, Span};
use crate::chaos::series::ClientFault;

/// From the request to be let in to the end.
pub struct Session<'a> {
    pub asked: Moment,
    pub gateway: usize,
    pub token: &'a str,
    pub connected: Moment,
    /// Behind `Connected`, the end included, if it has one.
    pub events: &'a [(Moment, Event)],
}

impl Session<'_> {
    pub fn end(&self) -> Option<&(Moment, Event)> {
        self.events.last().filter(|(_, event)| is_end(event))
    }
}

fn is_end(event: &Event) -> bool {
    matches!(
        event,
        Event::Closed { .. } | Event::Cut | Event::Left | Event::GaveUp
    )
}

pub fn sessions(history: &History) -> impl Iterator<Item = Session<'_>> {
    let events = &history.events;
    let begins = events.iter().enumerate();
    let begins = begins.filter(|(_, (_, event))| matches!(event, Event::Connected));
    begins.map(move |(place, (connected, _))| {
        let (asked, connecting) = &events[place - 1];
        let Event::Connecting { gateway, token } = connecting else {
            panic!(
                "{}: connected without asking: {connecting:?}",
                history.device
            );
        };
        let rest = &events[place + 1..];
        let length = rest.iter().position(|(_, event)| is_end(event));
        Session {
            asked: *asked,
            gateway: *gateway,
            token,
            connected: *connected,
            events: &rest[..length.map_or(rest.len(), |length| length + 1)],
        }
    })
}

/// What was done to a client, and from when to when.
pub fn ailments(history: &History) -> Vec<(ClientFault, Span)> {
    let mut ailments = Vec::new();
    let mut begun = None;
    for (at, event) in &history.events {
        match event {
            Event::Suffers(fault) => begun = Some((*fault, *at)),
            Event::Recovers => {
                if let Some((fault, from)) = begun.take() {
                    ailments.push((fault, Span::new(from, *at)));
                }
            }
            _ => {}
        }
    }
    if let Some((fault, from)) = begun {
        ailments.push((fault, Span::new(from, Moment::MAX)));
    }
    ailments
}
