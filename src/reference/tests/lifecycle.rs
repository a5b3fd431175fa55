//! Starting, refusing to start, and stopping.

use std::net::TcpStream;

use super::*;

#[test]
fn an_address_in_use_is_named() {
    let rig = Rig::new();
    let addr = rig.reference.addr();
    let error = start(&sample(Path::new(":memory:")), &Published::default(), addr)
        .err()
        .unwrap();
    assert!(matches!(error, ReferenceError::Listen { .. }));
    let text = error.to_string();
    assert!(
        text.contains(&addr.to_string()) && text.contains("in use"),
        "{text}"
    );
}

#[test]
fn a_database_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing").join("gateway.db");
    let error = start(&sample(&path), &Published::default(), any_port())
        .err()
        .unwrap();
    assert!(matches!(error, ReferenceError::Database { .. }));
    assert!(
        error.to_string().contains(&path.display().to_string()),
        "{error}"
    );
}

#[test]
fn a_second_process_on_the_same_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = sample(&folder.path().join("gateway.db"));
    let rig = Rig::with(&embedded);
    let error = start(&embedded, &Published::default(), any_port())
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("another process uses it"),
        "{error}"
    );
    drop(rig);
    start(&embedded, &Published::default(), any_port()).unwrap();
}

#[test]
fn a_stop_closes_the_port_frees_the_database_and_may_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = sample(&folder.path().join("gateway.db"));
    let mut reference = start(&embedded, &Published::default(), any_port()).unwrap();
    let addr = reference.addr();
    TcpStream::connect(addr).unwrap();
    for _ in 0..2 {
        reference.stop(Instant::now() + PATIENCE);
        assert!(TcpStream::connect(addr).is_err());
    }
    assert!(matches!(
        reference.reload(&embedded),
        Err(ReferenceError::Reload)
    ));
    let mut again = start(&embedded, &Published::default(), addr).unwrap();
    assert_eq!(again.addr(), addr);
    again.stop(Instant::now() + PATIENCE);
}

#[test]
fn a_stop_is_bounded_even_with_a_stuck_publisher_and_a_silent_client() {
    let mut rig = Rig::new();
    rig.published.stick(true);
    rig.send("alice", "bob", "stuck");
    rig.published
        .wait_for("attempt", |state| state.attempts == 1);
    let begun = Instant::now();
    // Nobody drives the client's runtime, so that its connection stays open.
    rig.reference.stop(begun + Duration::from_millis(300));
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    rig.published.stick(false);
}

#[test]
fn a_signal_thread_may_reload_while_another_one_waits() {
    fn shared<T: Send + Sync>() {}
    shared::<Reference>();
}
