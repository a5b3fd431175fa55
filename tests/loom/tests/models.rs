//! Every model, and each fence left out in turn.

#![cfg(loom)]

use ws_gateway_loom::client::outbox_models as outbox;
use ws_gateway_loom::stand_ins::{fences, without_fence};

#[test]
fn two_push_and_flush() {
    outbox::two_push_and_flush();
}

#[test]
fn two_go_past_the_queue() {
    outbox::two_go_past_the_queue();
}

#[test]
fn one_pushes_and_one_goes_past() {
    outbox::one_pushes_and_one_goes_past();
}

#[test]
#[should_panic]
fn fence_0() {
    without_fence(0, outbox::two_push_and_flush);
}

#[test]
#[should_panic]
fn fence_1() {
    without_fence(1, outbox::two_push_and_flush);
}
