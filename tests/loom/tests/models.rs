//! Every model, and each fence left out in turn.

#![cfg(loom)]

use ws_gateway_loom::client::{gate_models, outbox_models};
use ws_gateway_loom::sync::stand_ins::{fences, without_fence};

/// One test for each model.
macro_rules! models {
    ($($models:ident: $($name:ident)+;)+) => {
        $($(
            #[test]
            fn $name() {
                $models::$name();
            }
        )+)+
    };
}

models! {
    gate_models:
        what_comes_while_catch_up_runs_comes_once_and_in_order
        what_is_let_go_while_catch_up_runs_is_brought_by_it
        two_push_while_catch_up_runs
        a_batch_that_comes_while_catch_up_runs_comes_once_and_in_order
        a_batch_that_comes_while_ids_are_forgotten_comes_once
        a_batch_that_goes_past_a_catch_up_that_begins_is_not_lost
        a_batch_that_finds_no_room_comes_from_the_inbox
        what_comes_while_ids_are_forgotten_comes_once
        what_goes_past_a_catch_up_that_begins_is_not_out_of_order
        nothing_new_comes_before_what_was_missed_without_a_route
        what_goes_past_a_catch_up_that_is_not_through_comes_once
        what_finds_no_room_comes_from_the_inbox
        own_copies_come_once_or_the_client_is_told;
    outbox_models:
        two_push_and_flush
        two_go_past_the_queue
        one_pushes_and_one_goes_past
        one_pushes_and_one_answers
        two_push_two_each
        three_push_and_flush
        one_pushes_and_one_looks_at_the_progress
        one_pushes_and_one_catches_up
        one_pushes_and_one_pings
        a_full_socket_is_handed_over
        two_push_to_a_full_socket
        two_go_past_the_queue_to_a_full_socket
        two_push_to_a_full_queue
        one_pushes_to_a_full_queue_and_the_writer_writes
        one_answers_behind_a_full_queue
        one_pushes_and_one_closes
        one_goes_past_the_queue_and_one_closes
        one_is_half_way_through_a_frame_and_one_closes;
}

/// One test for each fence, in the order in which they stand in the file: without it the model fails.
macro_rules! fences {
    ($($index:literal $name:ident: $model:ident, $fails:literal;)+) => {
        $(
            #[test]
            #[should_panic(expected = $fails)]
            fn $name() {
                without_fence($index, outbox_models::$model);
            }
        )+

        #[test]
        fn each_fence_is_left_out_once() {
            assert_eq!(fences().len(), [$($index),+].len());
        }
    };
}

fences! {
    0 a_writer_that_says_who_it_is_needs_its_fence:
        a_full_socket_is_handed_over, "deadlock";
    1 whoever_queues_a_frame_needs_its_fence:
        two_push_and_flush, "a frame is stranded";
    2 whoever_frees_the_write_side_needs_its_fence:
        two_push_and_flush, "a frame is stranded";
    3 whoever_wakes_the_writer_needs_its_fence:
        a_full_socket_is_handed_over, "deadlock";
}
