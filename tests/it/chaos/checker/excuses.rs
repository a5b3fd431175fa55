//! What excuses what is seen: faults that were under way, and what was not itself meanwhile.

use std::time::Duration;

use super::session::Session;
use super::{Checker, SLACK};
use crate::chaos::history::{History, Span, Suffered};
use crate::chaos::series::{GatewayFault, What};

impl<'a> Checker<'a> {
    /// Whether something like this was under way, or its aftermath was.
    pub(super) fn suffers(&self, within: Span, is_it: impl Fn(What) -> bool) -> bool {
        self.faults(within, SLACK)
            .any(|suffered| is_it(suffered.fault.what))
    }

    pub(super) fn faults(&self, within: Span, after: Duration) -> impl Iterator<Item = &Suffered> {
        self.records.faults.iter().filter(move |suffered| {
            let Span { from, until } = suffered.within;
            Span::new(from, until + after).meets(within)
        })
    }

    pub(super) fn gateway_suffers(&self, gateway: usize, within: Span) -> bool {
        self.suffers(
            within,
            |what| matches!(what, What::Gateway(number, _) if number == gateway),
        )
    }

    /// For how long the gateway or the client was not itself.
    pub(super) fn frozen(
        &self,
        history: &History,
        session: &Session<'_>,
        within: Span,
    ) -> Duration {
        let overlap = |span: Span| {
            span.until
                .min(within.until)
                .saturating_sub(span.from.max(within.from))
        };
        let of_gateway: Duration = self
            .faults(within, Duration::ZERO)
            .map(|suffered| match suffered.fault.what {
                What::Gateway(number, GatewayFault::Frozen) if number == session.gateway => {
                    overlap(suffered.within)
                }
                _ => Duration::ZERO,
            })
            .sum();
        of_gateway
            + self.ailments[&*history.device]
                .iter()
                .map(|(_, span)| overlap(*span))
                .sum::<Duration>()
    }
}
