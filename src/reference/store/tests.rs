//! The store thread: group commits, failures, ids.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::thread::BATCH;
use super::*;
use crate::broker::Publication;

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

    fn keys(&self) -> Vec<String> {
        let page = self.store.outbox(0, 100).unwrap();
        page.publications
            .into_iter()
            .map(|row| row.routing_key)
            .collect()
    }

    fn stop(self) {
        let Rig { store, worker, .. } = self;
        drop(store);
        worker.join_by(Instant::now() + Duration::from_secs(10));
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
    let page = rig.store.outbox(0, 10_000).unwrap();
    assert_eq!(page.publications.len(), 2 * BATCH);
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
    let (job, count) = query_job(|connection| outbox::page(connection, 0, 10));
    assert!(rig.store.jobs.blocking_send(job).is_ok());
    drop(release);
    assert_eq!(count.blocking_recv().unwrap(), OutboxPage::default());
    change.blocking_recv().unwrap();
    assert_eq!(rig.keys(), ["uncommitted"]);
}

#[test]
fn outbox_rows_are_forgotten_up_to_the_published_one_and_numbers_never_return() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.db");
    let rig = serve(&path);
    for key in ["a", "b", "c"] {
        rig.publish(key).blocking_recv().unwrap();
    }
    let first = rig.store.outbox(0, 2).unwrap();
    assert_eq!(first.publications, [publication("a"), publication("b")]);
    rig.store.published(first.last.unwrap());
    rig.stop();

    let rig = serve(&path);
    assert_eq!(rig.keys(), ["c"]);
    let last = rig.store.outbox(0, 10).unwrap().last.unwrap();
    rig.store.published(last);
    rig.publish("d").blocking_recv().unwrap();
    assert_eq!(
        rig.store.outbox(last, 10).unwrap().publications,
        [publication("d")]
    );
    rig.stop();
}

#[test]
fn a_stopped_store_refuses() {
    let rig = serve(":memory:");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(rig.store.stop());
    rig.worker.join_by(Instant::now() + Duration::from_secs(10));
    assert_eq!(rig.store.outbox(0, 1), Err(StoreError));
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
