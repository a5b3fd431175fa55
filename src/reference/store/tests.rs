//! The store thread: group commits, failures, ids.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::outbox::OutboxRow;
use super::thread::BATCH;
use super::*;
use crate::reference::publisher::Publication;

struct Rig {
    store: Store,
    worker: Worker,
    commits: Arc<AtomicUsize>,
}

fn serve(path: impl AsRef<Path>) -> Rig {
    let commits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&commits);
    let committed = move || {
        counted.fetch_add(1, Ordering::SeqCst);
    };
    let (store, worker) = Opened::open(path.as_ref())
        .unwrap()
        .serve(&crossbeam::channel::unbounded().0, committed)
        .unwrap();
    Rig {
        store,
        worker,
        commits,
    }
}

impl Rig {
    /// Keeps the thread busy until the returned sender is dropped.
    fn hold(&self) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel::<()>();
        let (job, _nobody) = query_job(move |_| {
            let _ = held.recv();
            Ok(())
        });
        assert!(self.store.jobs.blocking_send(job).is_ok());
        release
    }

    fn publish(&self, key: &str) -> oneshot::Receiver<()> {
        let row = publication(key);
        let (job, answer) = change_job(move |connection| outbox::insert(connection, &row));
        assert!(self.store.jobs.blocking_send(job).is_ok());
        answer
    }

    /// The rows after `known`, 1,000 at most.
    fn rows(&self, known: i64) -> Vec<OutboxRow> {
        let query = OutboxQuery {
            known,
            limit: 1_000,
            ..OutboxQuery::default()
        };
        self.store.outbox(query).unwrap().new
    }

    fn keys(&self) -> Vec<String> {
        let rows = self.rows(0).into_iter();
        rows.map(|(_, row)| row.routing_key).collect()
    }

    fn stop(self) {
        let Rig { store, worker, .. } = self;
        drop(store);
        worker.stop(Instant::now() + Duration::from_secs(10));
    }
}

fn publication(key: &str) -> Publication {
    let kind = "kind".into();
    Publication {
        exchange: "exchange".into(),
        routing_key: key.into(),
        kind,
        body: vec![0xff, 0],
    }
}

#[test]
fn changes_that_wait_share_a_commit_in_their_order() {
    let rig = serve(":memory:");
    let release = rig.hold();
    let answers: Vec<_> = (0..5).map(|n| rig.publish(&n.to_string())).collect();
    drop(release);
    for answer in answers {
        answer.blocking_recv().unwrap();
    }
    assert_eq!(rig.keys(), ["0", "1", "2", "3", "4"]);
    assert_eq!(rig.commits.load(Ordering::SeqCst), 1);
}

#[test]
fn more_jobs_than_a_batch_are_all_done() {
    let rig = serve(":memory:");
    let release = rig.hold();
    let answers: Vec<_> = (0..2 * BATCH)
        .map(|n| rig.publish(&n.to_string()))
        .collect();
    drop(release);
    for answer in answers {
        answer.blocking_recv().unwrap();
    }
    assert_eq!(rig.rows(0).len(), 2 * BATCH);
}

#[test]
fn a_change_that_sqlite_refuses_takes_its_whole_batch_back_and_the_thread_lives() {
    let rig = serve(":memory:");
    let release = rig.hold();
    let before = rig.publish("before");
    let (job, bad) = change_job(|connection| connection.execute("NONSENSE", ()));
    assert!(rig.store.jobs.blocking_send(job).is_ok());
    drop(release);
    assert!(bad.blocking_recv().is_err());
    assert!(before.blocking_recv().is_err());
    assert_eq!(rig.keys(), [""; 0]);
    assert_eq!(rig.commits.load(Ordering::SeqCst), 0);

    rig.publish("after").blocking_recv().unwrap();
    assert_eq!(rig.keys(), ["after"]);
    let failed = rig
        .store
        .blocking_query(|connection| connection.execute("NONSENSE", ()));
    assert_eq!(failed, Err(StoreError));
    assert_eq!(rig.keys(), ["after"]);
}

#[test]
fn a_query_sees_what_is_committed_and_nothing_else() {
    let rig = serve(":memory:");
    let release = rig.hold();
    let change = rig.publish("uncommitted");
    let all = OutboxQuery {
        limit: 10,
        ..OutboxQuery::default()
    };
    let (job, count) = query_job(move |connection| outbox::page(connection, &all));
    assert!(rig.store.jobs.blocking_send(job).is_ok());
    drop(release);
    assert_eq!(count.blocking_recv().unwrap(), OutboxPage::default());
    change.blocking_recv().unwrap();
    assert_eq!(rig.keys(), ["uncommitted"]);
}

#[test]
fn outbox_rows_that_are_published_are_forgotten_and_numbers_never_return() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.db");
    let rig = serve(&path);
    for key in ["a", "b", "c", "d"] {
        rig.publish(key).blocking_recv().unwrap();
    }
    let rows = rig.rows(0);
    assert_eq!(rows[1].1, publication("b"));
    // The first one stays, and holds up nothing.
    rig.store.published(vec![rows[1].0, rows[2].0]);
    rig.stop();

    let rig = serve(&path);
    assert_eq!(rig.keys(), ["a", "d"]);
    let last = rig.rows(0)[1].0;
    rig.store.published(vec![rows[0].0, last]);
    rig.publish("e").blocking_recv().unwrap();
    let after: Vec<_> = rig.rows(last).into_iter().map(|(_, row)| row).collect();
    assert_eq!(after, [publication("e")]);
    rig.stop();
}

#[test]
fn rows_of_a_key_are_read_in_order_up_to_the_known_one() {
    let rig = serve(":memory:");
    for number in 0..20 {
        let key = if number % 2 == 0 { "even" } else { "odd" };
        rig.publish(key).blocking_recv().unwrap();
    }
    let read = |keys: &[(&str, i64)], known| {
        let named = |&(key, after): &(&str, i64)| ("exchange".to_owned(), key.to_owned(), after);
        let query = OutboxQuery {
            known,
            limit: 0,
            keys: keys.iter().map(named).collect(),
            limit_per_key: 3,
        };
        let page = rig.store.outbox(query).unwrap();
        assert_eq!((page.new, page.more), (Vec::new(), false));
        let numbers = |rows: Vec<OutboxRow>| rows.iter().map(|row| row.0).collect::<Vec<_>>();
        let of_keys = page.of_keys.into_iter();
        of_keys
            .map(|(rows, more)| (numbers(rows), more))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        read(&[("odd", 4), ("even", 13), ("none", 0)], 17),
        [
            (vec![6, 8, 10], true),
            (vec![15, 17], false),
            (vec![], false)
        ]
    );
    assert_eq!(read(&[("odd", 2)], 8), [(vec![4, 6, 8], false)]);
}

#[test]
fn an_answer_of_the_outbox_is_bounded_and_never_empty() {
    let rig = serve(":memory:");
    for key in ["a", "a", "b", "c"] {
        let mut row = publication(key);
        row.body = vec![0; 3 << 20];
        let insert = move |connection: &Connection| outbox::insert(connection, &row);
        rig.store.blocking_change(insert).unwrap();
    }
    let of = |key: &str| ("exchange".to_owned(), key.to_owned(), 0);
    let query = OutboxQuery {
        known: 3,
        limit: 10,
        keys: vec![of("a"), of("b")],
        limit_per_key: 10,
    };
    let page = rig.store.outbox(query.clone()).unwrap();
    assert_eq!(page.of_keys.len(), 1, "the other one is asked for again");
    assert_eq!((page.of_keys[0].0.len(), page.of_keys[0].1), (2, false));
    assert_eq!((page.new.len(), page.more), (0, true));
    let keys = Vec::new();
    let page = rig.store.outbox(OutboxQuery { keys, ..query }).unwrap();
    assert_eq!((page.new.len(), page.more), (1, false));
    let all = OutboxQuery {
        limit: 10,
        ..OutboxQuery::default()
    };
    let page = rig.store.outbox(all).unwrap();
    assert_eq!((page.new.len(), page.more), (2, true));
}

/// Or they would be published again after a restart.
#[test]
fn deletions_that_fail_are_done_with_the_next_commit() {
    let rig = serve(":memory:");
    for key in ["a", "b"] {
        rig.publish(key).blocking_recv().unwrap();
    }
    let refuse = |refuse: bool| {
        let set =
            move |connection: &Connection| connection.pragma_update(None, "query_only", refuse);
        rig.store.blocking_query(set).unwrap();
    };
    refuse(true);
    rig.store.published(vec![1]);
    assert_eq!(rig.keys(), ["a", "b"]);
    refuse(false);
    rig.publish("c").blocking_recv().unwrap();
    assert_eq!(rig.keys(), ["b", "c"]);
}

#[test]
fn a_stopped_store_refuses() {
    let rig = serve(":memory:");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(rig.store.stop());
    rig.worker.stop(Instant::now() + Duration::from_secs(10));
    assert_eq!(rig.store.outbox(OutboxQuery::default()), Err(StoreError));
    runtime.block_on(rig.store.stop());
}

#[test]
fn ids_sort_by_number_and_only_ones_own_are_understood() {
    let ids = MessageIds { epoch: 0xabc };
    assert_eq!(ids.text(255), "00000abc-0000000000ff");
    assert!(ids.text(9) < ids.text(10) && ids.text(255) < ids.text(4096));
    assert_eq!(ids.seq(&ids.text(77)), Some(77));
    let foreign = MessageIds { epoch: 0xabd }.text(77);
    for bad in [
        "",
        "-",
        "m1",
        "00000abc-0000000000FF",
        "00000abc-+000000000ff",
        "00000abc-ff",
        "abc-0000000000ff",
        "00000abc-0000000000ff ",
        "00000abc-ffffffffffffffffff",
        &foreign,
    ] {
        assert_eq!(ids.seq(bad), None, "{bad:?}");
    }
}
