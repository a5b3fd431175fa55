//! The checker is tried itself: with each defect that can be planted in a gateway, it finds the sentence
//! that this breaks; with none it finds nothing.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use super::checker::Sentence;
use super::people::lock;
use super::run::Run;
use super::series::{BrokerFault, ClientFault, Fault, Share, What};

/// So many runs at a time: each waits most of the time.
const AT_A_TIME: usize = 3;

/// Each defect, and what it breaks.
const DEFECTS: &[(&str, &[Sentence])] = {
    use Sentence::*;
    &[
        ("claims-commit", &[Committed]),
        ("loses-unread", &[NothingLost]),
        ("loses-live", &[NothingLost, EveryDevice]),
        ("invents", &[NothingInvented]),
        ("alters", &[NothingInvented]),
        ("misdelivers", &[NobodyElses]),
        ("disorders", &[InOrder]),
        ("unread-later", &[UnreadFirst]),
        ("answers-twice", &[Answered]),
        ("answers-nothing", &[Answered]),
        ("cuts-history", &[Histories]),
        ("turns-away", &[LetIn]),
        ("ignores-revocation", &[RevokedIsOut]),
        ("ignores-expiry", &[ExpiredIsOut]),
        ("closes-without-cause", &[ClosedWithCause]),
        ("forgets-offline", &[PresenceRight]),
        ("stays-unready", &[Recovers]),
        ("leaks-thread", &[NothingLeft]),
        ("leaks-descriptor", &[NothingLeft]),
        ("leaks-connection", &[NothingLeft]),
        ("keeps-route", &[NothingLeft]),
    ]
};

/// Enough that something is unread, and that the broker is lost once; then long enough without any that a
/// token expires.
fn faults() -> Vec<Fault> {
    let fault = |at, lasts, what| {
        let [at, lasts] = [at, lasts].map(Duration::from_millis);
        Fault { at, lasts, what }
    };
    vec![
        fault(1_000, 500, What::Broker(BrokerFault::ConnectionsClosed)),
        fault(2_000, 500, What::Clients(ClientFault::Gone, Share::of(60))),
        fault(
            3_200,
            500,
            What::Clients(ClientFault::HalfOpen, Share::of(40)),
        ),
        fault(
            4_200,
            2_000,
            What::Clients(ClientFault::Frozen, Share::of(30)),
        ),
    ]
}

/// What is broken with this defect, and how that was seen.
fn broken(seed: u64, defect: Option<&str>) -> Vec<(Sentence, String)> {
    let run = Run {
        seed,
        length: Duration::from_secs(10),
        gateways: 2,
        clients: 80,
        defect: defect.map(str::to_owned),
        write: None,
    };
    let findings = run.happens(&faults()).findings.into_iter();
    findings
        .map(|finding| (finding.sentence, finding.seen))
        .collect()
}

#[test]
fn the_checker_finds_what_each_planted_defect_breaks_and_nothing_where_there_is_none() {
    let mut all: Vec<(Option<&str>, &[Sentence])> = vec![(None, &[])];
    all.extend(
        DEFECTS
            .iter()
            .map(|(defect, breaks)| (Some(*defect), *breaks)),
    );
    let (left, missed) = (
        Mutex::new(all.into_iter().enumerate()),
        Mutex::new(Vec::new()),
    );
    let work = || {
        loop {
            let next = lock(&left).next();
            let Some((number, (defect, breaks))) = next else {
                return;
            };
            let broken = broken(number as u64 + 1, defect);
            let found = |sentence: &Sentence| broken.iter().any(|(it, _)| it == sentence);
            let name = defect.unwrap_or("none");
            println!("{name}: {:?}", broken.first());
            if breaks.is_empty() != broken.is_empty() || !breaks.iter().all(found) {
                lock(&missed).push(format!("{name}: {breaks:?} expected, found: {broken:#?}"));
            }
        }
    };
    thread::scope(|scope| {
        (0..AT_A_TIME).for_each(|_| _ = scope.spawn(work));
    });
    let missed = lock(&missed);
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn every_sentence_has_a_defect_that_breaks_it() {
    use strum::VariantArray;
    for sentence in Sentence::VARIANTS {
        let breaks = |(_, broken): &(&str, &[Sentence])| broken.contains(sentence);
        assert!(DEFECTS.iter().any(breaks), "{sentence:?}");
    }
}
