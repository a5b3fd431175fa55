//! A new version is deployed: two gateways behind a balancer are restarted one after the other while
//! messages flow, and clients come back when the Close frame tells them to.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::figures::rounded;
use super::flow::{Flow, Load, Return};
use super::{Drill, Figures};
use crate::support::balancer::{Start, haproxy, nginx};
use crate::support::broker::Broker;
use crate::support::etcd::Etcd;
use crate::support::process::Signal;
use crate::support::wait::wait_until_within;
use crate::support::{Cluster, DEADLINE, wait_until};

const LARGE: Load = Load {
    users: 1_000,
    messages: 1_500,
    rate: 40,
};

pub const DRILLS: &[Drill] = &[
    Drill {
        name: "rolling-nginx",
        about: "two gateways behind nginx are restarted in turn under 1,000 clients that do as told",
        run: || rolling(nginx, LARGE),
    },
    Drill {
        name: "rolling-haproxy",
        about: "the same behind HAProxy",
        run: || rolling(haproxy, LARGE),
    },
];

/// What balancers need to notice that a gateway is not ready: HAProxy two checks, a second apart.
const SETTLE: Duration = Duration::from_secs(3);
/// `shutdown.reconnect_spread`.
const SPREAD: Duration = Duration::from_secs(4);
/// How much later than told a client may be let in: there are two cores for all of them.
const LATE: Duration = Duration::from_secs(3);

/// Counters of all gateways that there were, by name.
type Totals = HashMap<String, f64>;

/// Restarts both gateways, one after the other.
pub fn rolling(start: Start, load: Load) -> Figures {
    let etcd = Etcd::start();
    let seconds = |duration: Duration| format!("{}s", duration.as_secs());
    let settings = load
        .settings()
        .set("listen.trusted_proxies", vec!["127.0.0.1"])
        .set("limits.max_connections_per_ip", 100_000)
        .set("discovery.endpoints", vec![etcd.url()])
        // Below the balancer's timeout, as the recipes want it.
        .set("session.ping_interval", "2s")
        .set("shutdown.settle", seconds(SETTLE))
        .set("shutdown.drain", "20s")
        .set("shutdown.reconnect_spread", seconds(SPREAD));
    let mut cluster = Cluster::on(Broker::shared(), &settings, 2);
    let balancer = start([cluster.gateways[0].addr, cluster.gateways[1].addr]);
    let flow = Flow::start_behind(balancer.addr, &cluster.gateways[0].path, load);
    let mut totals = Totals::new();
    let mut moves = Vec::new();
    for number in 0..2 {
        flow.goes_on_for(load.messages / 4);
        let before = flow.returned();
        let moved = restart(&mut cluster, number, &etcd, &mut totals);
        wait_until_within(DEADLINE * 3, "those who were closed are back", || {
            flow.returned() >= before + moved
        });
        moves.push(moved);
    }
    let returns = flow.returns();
    let mut figures = flow.finish(&cluster);
    for gateway in &cluster.gateways {
        add(&mut totals, &gateway.admin.get("/metrics").body);
    }
    figures.demand_whole();
    figures.demand(figures.refused == 0, "nobody is refused");
    figures.demand(
        moves.iter().all(|&moved| moved > 0),
        "each held some of them",
    );
    figures.demand(
        returns.len() == moves.iter().sum::<usize>(),
        "who was closed is back",
    );
    for returns in in_turn(&returns, &moves) {
        demand_spread(&mut figures, returns);
    }
    let total = |name: &str| totals.get(name).copied().unwrap_or(0.0) as usize;
    let connects = total("gateway_connections_total");
    let clause = format!(
        "clients connected {} times, the metrics say {connects}",
        load.users + returns.len()
    );
    figures.demand(connects == load.users + returns.len(), clause);
    let closed = total(r#"gateway_disconnects_total{reason="shutdown"}"#);
    let clause = format!(
        "{} clients were closed, the metrics say {closed}",
        returns.len()
    );
    figures.demand(closed == returns.len(), clause);
    let received: usize = ["send_message", "send_group_message"]
        .map(|kind| {
            total(&format!(
                r#"gateway_messages_received_total{{type="{kind}"}}"#
            ))
        })
        .iter()
        .sum();
    // What was asked the moment that the connection was closed may not have been read.
    let clause = format!(
        "clients asked {} to {} times, the metrics say {received}",
        figures.committed, figures.asked
    );
    let possible = figures.committed..=figures.asked;
    figures.demand(possible.contains(&received), clause);
    let pushed: usize = ["message", "group_message"]
        .map(|kind| {
            total(&format!(
                r#"gateway_messages_pushed_total{{type="{kind}"}}"#
            ))
        })
        .iter()
        .sum();
    let got = figures.delivered + figures.duplicated;
    figures.demand(
        pushed >= got,
        format!("clients got {got} pushes, the metrics say {pushed}"),
    );
    figures.note(format!(
        "moved: {moves:?}; pushes {got}, by the metrics {pushed}"
    ));
    figures
}

/// Stops one gateway, watches the order of what happens, and starts it again. Answers how many
/// connections it had.
fn restart(cluster: &mut Cluster, number: usize, etcd: &Etcd, totals: &mut Totals) -> usize {
    let key = format!("/services/ws-gateway/g{number}");
    etcd.wait_for(&key);
    let gateway = &mut cluster.gateways[number];
    let admin = gateway.admin.clone();
    let held = admin.metric("gateway_connections") as usize;
    let told = Instant::now();
    gateway.signal(Signal::TERM);
    wait_until("it is not ready, and deregistered", || {
        admin.get("/readyz").status == 503 && etcd.get(&key).is_none()
    });
    let noticed = told.elapsed();
    let still = admin.metric("gateway_connections") as usize;
    assert!(noticed < SETTLE, "both at once: {}", rounded(noticed));
    assert!(
        still >= held,
        "nobody is closed before it has settled: {held}, {still}"
    );
    // The last that it says before it is gone.
    let mut last = String::new();
    while gateway.is_running() {
        if let Some(text) = admin.try_get("/metrics") {
            last = text;
        }
        assert!(told.elapsed() < DEADLINE * 3, "it ends");
    }
    assert_eq!(gateway.exit_code(), 0);
    add(totals, &last);
    cluster.start_again(number);
    cluster.gateways[number].wait_ready();
    etcd.wait_for(&key);
    let closed = Totals::from_iter(samples(&last));
    closed[r#"gateway_disconnects_total{reason="shutdown"}"#] as usize
}

fn samples(text: &str) -> impl Iterator<Item = (String, f64)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.filter_map(|line| line.rsplit_once(' '));
    samples.map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
}

fn add(totals: &mut Totals, text: &str) {
    for (name, value) in samples(text) {
        *totals.entry(name).or_default() += value;
    }
}

/// The returns after each restart.
fn in_turn<'r>(returns: &'r [Return], moves: &[usize]) -> Vec<&'r [Return]> {
    let mut rest = returns;
    let split = moves.iter().map(|&moved| {
        let (turn, later) = rest.split_at(moved.min(rest.len()));
        rest = later;
        turn
    });
    split.collect()
}

/// They were told to come back evenly spread, and did.
fn demand_spread(figures: &mut Figures, returns: &[Return]) {
    let mut told: Vec<_> = returns.iter().map(|it| it.after).collect();
    told.sort_unstable();
    let count = u32::try_from(told.len()).expect("not so many");
    // Some come while it settles, and are dealt the last place; so there may be a gap of two.
    let even = SPREAD / count.max(1);
    let gaps = told.windows(2).map(|two| two[1] - two[0]);
    let widest = gaps.max().unwrap_or_default();
    let clause = format!("dealt out evenly: {} apart at most", rounded(widest));
    figures.demand(widest <= even * 3 + Duration::from_millis(2), clause);
    let is_over_all =
        told.first().is_some_and(|it| *it <= even * 2) && told.last() > Some(&(SPREAD * 8 / 10));
    figures.demand(is_over_all, "dealt out over the whole spread");
    let late = returns
        .iter()
        .map(|it| it.back.saturating_duration_since(it.closed + it.after));
    let late = late.max().unwrap_or_default();
    figures.demand(
        late <= LATE,
        format!("back as told, and {} later at most", rounded(late)),
    );
    figures.note(format!(
        "{count} came back, {} later than told at most",
        rounded(late)
    ));
}
