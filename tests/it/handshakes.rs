//! Places for handshakes, when there are not enough: silence holds none, whoever is honest gets one.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::backend::Backend;
use crate::support::broker::Broker;
use crate::support::client::error_message;
use crate::support::cluster::remote;
use crate::support::raw::{Raw, UPGRADE, head};
use crate::support::settings::token_of;
use crate::support::wait::{DEADLINE, wait_until_within};
use crate::support::{Gateway, Settings, wait_until};

/// How soon a newcomer is served while others are silent.
const SERVED_WITHIN: Duration = Duration::from_secs(1);

fn settings() -> Settings {
    Settings::new()
        .users(["alice"])
        .set("limits.max_connections_per_user", 5_000)
        .set("limits.max_connections_per_ip", 5_000)
}

/// An address of the loopback: `127.1.x.y`.
fn address(number: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x7f01_0000 + number as u32).into()
}

/// alice's request, as `client` behind a proxy if there is one.
fn request(gateway: &Gateway, client: Option<&str>) -> String {
    let bearer = format!("Bearer {}", token_of("alice"));
    let mut headers = UPGRADE.to_vec();
    headers.push(("Authorization", &bearer));
    headers.extend(client.map(|client| ("X-Forwarded-For", client)));
    head("GET", &gateway.path, &headers)
}

/// So many clients from one address connect at once, and then send their request; all are let in.
fn all_are_let_in(gateway: &Gateway, from: IpAddr, count: usize) -> Vec<Raw> {
    let connect = |_| Raw::connect_from(from, gateway.addr);
    let mut all: Vec<Raw> = (0..count).map(connect).collect();
    for raw in &mut all {
        raw.send(request(gateway, None));
    }
    for (number, raw) in all.iter_mut().enumerate() {
        let answer = raw.response();
        assert_eq!(answer.status, 101, "number {number} of {count}: {answer:?}");
    }
    all
}

/// A newcomer from this address is let in, in time.
fn is_served(gateway: &Gateway, from: IpAddr) -> Duration {
    let start = Instant::now();
    all_are_let_in(gateway, from, 1);
    let took = start.elapsed();
    assert!(took < SERVED_WITHIN, "served after {took:?}");
    took
}

/// Sockets that send no whole head, and come again as soon as they are cut.
struct Crowd {
    quit: Arc<AtomicBool>,
    cuts: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// One socket for each number, from the address that it has there. Those that drip send a byte
    /// of a head now and then.
    fn come(gateway: &Gateway, count: usize, from: fn(usize) -> IpAddr, drips: bool) -> Self {
        let (quit, cuts) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let addr = gateway.addr;
        let comes = move |number| {
            let socket = Raw::connect_from(from(number), addr).into_stream();
            socket.set_nonblocking(true).expect("a socket option");
            socket
        };
        let mut sockets: Vec<TcpStream> = (0..count).map(comes).collect();
        let thread = thread::spawn({
            let (quit, cuts) = (Arc::clone(&quit), Arc::clone(&cuts));
            move || {
                while !quit.load(Ordering::SeqCst) {
                    for (number, socket) in sockets.iter_mut().enumerate() {
                        let mut bytes = [0; 1024];
                        let waits = |error: std::io::Error| error.kind() == ErrorKind::WouldBlock;
                        if drips && !socket.write(b"G").map_or_else(waits, |_| true)
                            || !socket.read(&mut bytes).map_or_else(waits, |read| read > 0)
                        {
                            *socket = comes(number);
                            cuts.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Self {
            quit,
            cuts,
            thread: Some(thread),
        }
    }

    fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.quit.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Newcomers of other addresses, one after the other and some at once, while the crowd is there.
fn newcomers_are_served(gateway: &Gateway, crowd: &Crowd) {
    let mut longest = Duration::ZERO;
    for number in 0..30 {
        longest = longest.max(is_served(gateway, address(1_000 + number)));
    }
    wait_until("some gave way", || crowd.cuts() > 0);
    thread::scope(|scope| {
        for number in 0..10 {
            scope.spawn(move || is_served(gateway, address(2_000 + number)));
        }
    });
    println!("served within {longest:?}, {} gave way", crowd.cuts());
}

#[test]
fn a_thousand_silent_sockets_of_one_address_keep_nobody_waiting() {
    for drips in [false, true] {
        let gateway = Gateway::start(&settings());
        let crowd = Crowd::come(&gateway, 1_000, |_| address(1), drips);
        newcomers_are_served(&gateway, &crowd);
        drop(crowd);
        gateway.settled(0);
        assert_eq!(gateway.stop(), 0);
    }
}

#[test]
fn silent_sockets_of_many_addresses_keep_nobody_waiting() {
    for drips in [false, true] {
        let gateway = Gateway::start(&settings());
        let crowd = Crowd::come(&gateway, 500, address, drips);
        newcomers_are_served(&gateway, &crowd);
    }
}

/// Within the limit for an address, so that the others are refused by the hundred meanwhile.
#[test]
fn silent_sockets_beyond_their_addresss_limit_keep_nobody_waiting() {
    let gateway = Gateway::start(&settings().set("limits.max_connections_per_ip", 300));
    let crowd = Crowd::come(&gateway, 1_000, |_| address(1), false);
    newcomers_are_served(&gateway, &crowd);
}

/// Nobody gives way, since there is room: what ends them is the time, whatever they drip.
#[test]
fn five_hundred_sockets_that_send_no_head_are_gone_at_the_handshake_timeout() {
    const TIMEOUT: Duration = Duration::from_secs(4);
    /// Two cores may be shared with a compiler.
    const SLACK: Duration = Duration::from_secs(2);
    struct Nuisance {
        socket: TcpStream,
        since: Instant,
        drips_at: Option<Instant>,
        ended: Option<Duration>,
    }
    let settings = settings()
        .set("listen.handshake_timeout", "4s")
        .set("limits.max_handshakes", 1_000);
    let gateway = Gateway::start(&settings);
    is_served(&gateway, address(5_000));
    let head = request(&gateway, None);
    let is_over = AtomicBool::new(false);
    let (served, peak) = thread::scope(|scope| {
        let newcomers = scope.spawn(|| {
            let mut served = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                served.push(is_served(&gateway, address(1_000 + served.len())));
                // Their pace, not a wait for anything.
                thread::sleep(Duration::from_millis(10));
            }
            served
        });
        let ((), peak) = gateway.memory_peak(|| {
            scopeguard::defer!(is_over.store(true, Ordering::SeqCst));
            let comes = |number| {
                let socket = Raw::connect_from(address(number), gateway.addr).into_stream();
                socket.set_nonblocking(true).expect("a socket option");
                let since = Instant::now();
                let drips_at = (number % 2 == 0).then_some(since);
                Nuisance {
                    socket,
                    since,
                    drips_at,
                    ended: None,
                }
            };
            let mut all: Vec<Nuisance> = (0..500).map(comes).collect();
            let mut dripped = 0;
            while all.iter().any(|one| one.ended.is_none()) {
                let now = Instant::now();
                for one in all.iter_mut().filter(|one| one.ended.is_none()) {
                    let lasted = now - one.since;
                    assert!(
                        lasted < TIMEOUT + SLACK,
                        "one is still there after {lasted:?}"
                    );
                    if one.drips_at.is_some_and(|at| now >= at) {
                        let at = (lasted.as_millis() / 500) as usize;
                        // A socket that has ended is found so below.
                        dripped += one.socket.write(&head.as_bytes()[at..=at]).unwrap_or(0);
                        one.drips_at = Some(now + Duration::from_millis(500));
                    }
                    let mut answer = [0; 1024];
                    match one.socket.read(&mut answer) {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                        Ok(read) => assert!(
                            answer[..read].starts_with(b"HTTP/1.1 408 "),
                            "{}",
                            String::from_utf8_lossy(&answer[..read])
                        ),
                        Err(error) => panic!("no answer: {error}"),
                    }
                    assert!(
                        lasted + Duration::from_millis(50) > TIMEOUT,
                        "after {lasted:?}"
                    );
                    one.ended = Some(lasted);
                }
                thread::sleep(Duration::from_millis(10));
            }
            assert!(dripped >= 250 * 6, "{dripped} bytes dripped");
        });
        (newcomers.join().expect("newcomers"), peak)
    });
    let mut served = served;
    served.sort_unstable();
    let p99 = served[served.len() * 99 / 100];
    println!("{} newcomers: p99 {p99:?}; {peak} KiB more", served.len());
    assert!(served.len() > 50 && p99 < SERVED_WITHIN, "p99 {p99:?}");
    // A thread each, as long as it lasts.
    assert!(peak < 500 * 64, "{peak} KiB more");
    gateway.settled(0);
}

#[test]
fn two_thousand_clients_at_once_from_one_address_are_all_let_in() {
    let gateway = Gateway::start(&settings());
    let all = all_are_let_in(&gateway, address(7), 2_000);
    drop(all);
    gateway.settled(0);
}

/// And that while silent sockets of another address, and of their own, hold what they can get.
#[test]
fn a_crowd_that_is_honest_comes_through_one_that_is_not() {
    for from in [address(1), address(7)] {
        let gateway = Gateway::start(&settings().set("listen.handshake_timeout", "60s"));
        let _crowd = Crowd::come(&gateway, 400, |_| address(1), false);
        all_are_let_in(&gateway, from, 1_000);
    }
}

/// Behind a proxy all have its address until their head is there.
#[test]
fn silence_behind_a_trusted_proxy_keeps_nobody_waiting_for_long() {
    let settings = settings().set("listen.trusted_proxies", vec!["127.1.0.1".to_owned()]);
    let gateway = Gateway::start(&settings);
    let _crowd = Crowd::come(&gateway, 300, |_| address(1), false);
    for number in 0..5 {
        let start = Instant::now();
        let mut raw = Raw::connect_from(address(1), gateway.addr);
        raw.send(request(&gateway, Some(&format!("203.0.113.{number}"))));
        assert_eq!(raw.response().status, 101);
        assert!(start.elapsed() < 3 * SERVED_WITHIN, "{:?}", start.elapsed());
    }
}

#[test]
fn who_gives_way_is_told_408() {
    let gateway = Gateway::start(&settings().set("limits.max_handshakes", 2));
    let mut first = Raw::connect_from(address(1), gateway.addr);
    let mut half = Raw::connect_from(address(1), gateway.addr);
    half.send("GET /ws HTTP/1.1\r\nHost: gate");
    let mut other = Raw::connect_from(address(2), gateway.addr);
    // The one that was silent longest, of the address that holds most.
    let answer = first.response();
    assert_eq!(answer.status, 408, "{answer:?}");
    error_message(&answer.json(), "DEADLINE_EXCEEDED");
    first.expect_end();
    is_served(&gateway, address(3));
    let answer = half.response();
    assert_eq!(answer.status, 408, "{answer:?}");
    half.expect_end();
    // Of those two addresses nobody is left but this one.
    other.send(request(&gateway, None));
    assert_eq!(other.response().status, 101);
}

/// A place is held by its own address, too, but not for long.
#[test]
fn one_address_gives_way_to_itself() {
    let gateway = Gateway::start(&settings().set("limits.max_handshakes", 1));
    let mut silent: Vec<Raw> = (0..3)
        .map(|_| Raw::connect_from(address(1), gateway.addr))
        .collect();
    all_are_let_in(&gateway, address(1), 1);
    for raw in &mut silent {
        assert_eq!(raw.response().status, 408);
    }
}

/// A handshake whose token is being validated is not silent: it gives way to nobody, and who finds
/// no place is told 503 in time.
#[test]
fn places_that_are_held_by_validations_stay_theirs() {
    let backend = Backend::start();
    let settings = settings()
        .set("limits.max_handshakes", 4)
        .set("services.timeout", "20s");
    let settings = remote(&settings, &backend.url(), &Broker::shared().vhost());
    let gateway = Gateway::start(&settings);
    gateway.wait_ready();
    backend.slow("ValidateToken", Duration::from_secs(4));
    let before = backend.calls("ValidateToken");
    let mut held: Vec<Raw> = (0..4)
        .map(|_| {
            let mut raw = Raw::connect_from(address(1), gateway.addr);
            raw.send(request(&gateway, None));
            raw
        })
        .collect();
    wait_until("all are validated", || {
        backend.calls("ValidateToken") >= before + 4
    });
    for from in [address(1), address(2)] {
        let mut raw = Raw::connect_from(from, gateway.addr);
        let start = Instant::now();
        raw.send(request(&gateway, None));
        let answer = raw.response();
        assert_eq!(answer.status, 503, "{answer:?}");
        error_message(&answer.json(), "SERVICE_UNAVAILABLE");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        assert!(start.elapsed() < Duration::from_secs(3));
        assert_eq!(gateway.get("/healthz").status, 200);
    }
    for raw in &mut held {
        assert_eq!(raw.response().status, 101);
    }
    backend.heal("ValidateToken");
    wait_until_within(DEADLINE, "there is room again", || {
        let mut raw = Raw::connect_from(address(2), gateway.addr);
        raw.send(request(&gateway, None));
        raw.response().status == 101
    });
}
