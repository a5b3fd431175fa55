//! x
use crate::support::sketch as process;

#[test]
#[ignore = "a process of its own for other tests"]
fn sketch() {
    assert!(process::play(), "nobody asked");
}
