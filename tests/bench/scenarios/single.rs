//! Single messages to 1,000 users: as many as it can, and 5,000 a second. Each is a delivery of the
//! broker's own, so beside servers that do all they can stands a consumer that does nothing but
//! acknowledge: what the broker gives.

use amiquip::{
    AmqpProperties, Connection, ConsumerMessage, ConsumerOptions, Exchange, Publish,
    QueueDeclareOptions, QueueDeleteOptions,
};

use super::{Bench, SIZE, Scenario, at_least, at_most, up_to};
use crate::clock;
use crate::results::Metric;
use crate::servers::Kind;

const CONNECTIONS: usize = 1_000;
/// Messages a second, where they are paced.
const RATE: f64 = 5_000.0;
/// As the gateway's default.
const PREFETCH: u16 = 512;
const EMPTY: &str = "empty consumer";

pub const SATURATED: Scenario = Scenario {
    name: "single-saturated",
    about: "a burst of single messages to 1,000 users, which waited for the server",
    targets: &[
        at_least(Metric::PerSecond, 1.0, Kind::PeerTry.name()),
        at_most(Metric::CpuSaturated, 0.75, Kind::PeerTry.name()),
        up_to(Metric::Lost, 0.0),
    ],
    run: saturated,
};

pub const PACED: Scenario = Scenario {
    name: "single-paced",
    about: "5,000 single messages a second to 1,000 users",
    targets: &[
        at_most(Metric::CpuPaced, 0.45, Kind::PeerTry.name()),
        at_most(Metric::P50, 0.8, Kind::PeerTry.name()),
        at_most(Metric::P99, 1.0, Kind::PeerTry.name()),
        up_to(Metric::Lost, 0.0),
    ],
    run: paced,
};

fn saturated(bench: &mut Bench) {
    let each = bench.effort.size(40, 20);
    for _ in 0..bench.effort.rounds {
        for kind in Kind::ALL {
            let figures = bench.undisturbed(|bench| {
                bench
                    .session(kind, CONNECTIONS)
                    .saturated_single(each, SIZE)
            });
            bench.add_saturated(SATURATED.name, kind.name(), &figures);
        }
        let rate = empty_consumer(bench.stand.url(Kind::Gateway), each * CONNECTIONS as u64);
        bench.add(SATURATED.name, EMPTY, Metric::PerSecond, rate);
    }
}

fn paced(bench: &mut Bench) {
    let each = bench.effort.size(25, 15);
    for _ in 0..bench.effort.rounds {
        for kind in Kind::ALL {
            let figures = bench.undisturbed(|bench| {
                bench
                    .session(kind, CONNECTIONS)
                    .paced_single(each, RATE, SIZE)
            });
            bench.add_paced(PACED.name, kind.name(), &figures);
        }
    }
}

/// Takes `count` messages that wait in a queue; returns how many a second.
fn empty_consumer(url: &str, count: u64) -> f64 {
    const QUEUE: &str = "bench.empty";
    let mut connection = Connection::insecure_open(url).expect("the broker answers");
    let channel = connection.open_channel(None).expect("a channel");
    let options = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let queue = channel.queue_declare(QUEUE, options).expect("a queue");
    let direct = Exchange::direct(&channel);
    let body = clock::content(0, SIZE + 60);
    for _ in 0..count {
        let properties = AmqpProperties::default().with_delivery_mode(2);
        let publish = Publish::with_properties(body.as_bytes(), QUEUE, properties);
        direct.publish(publish).expect("the broker reads");
    }
    // A question behind them: answered, they are all there.
    channel.queue_declare_passive(QUEUE).expect("an answer");
    channel.qos(0, PREFETCH, false).expect("a channel");
    let consumer = queue
        .consume(ConsumerOptions::default())
        .expect("a consumer");
    let (mut taken, mut first) = (0, 0);
    while taken < count {
        let Ok(ConsumerMessage::Delivery(delivery)) = consumer.receiver().recv() else {
            panic!("the broker delivers no more");
        };
        taken += 1;
        if taken == 1 {
            first = clock::now();
        }
        if taken % u64::from(PREFETCH / 8) == 0 || taken == count {
            delivery.ack_multiple(&channel).expect("the broker reads");
        }
    }
    let seconds = (clock::now() - first) as f64 / 1e9;
    consumer.cancel().expect("an answer");
    channel
        .queue_delete(QUEUE, QueueDeleteOptions::default())
        .expect("an answer");
    count as f64 / seconds
}
