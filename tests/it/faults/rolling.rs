//! A rolling restart behind a balancer.

use crate::scenarios::flow::Load;
use crate::scenarios::rolling::rolling;
use crate::support::balancer::{haproxy, nginx};

const LOAD: Load = Load {
    users: 60,
    messages: 800,
    rate: 80,
};

#[test]
fn behind_nginx_a_rolling_restart_goes_unnoticed() {
    rolling(nginx, LOAD).assert_sound();
}

#[test]
fn behind_haproxy_a_rolling_restart_goes_unnoticed() {
    rolling(haproxy, LOAD).assert_sound();
}
