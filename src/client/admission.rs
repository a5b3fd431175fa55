//! Who is admitted, before anyone knows whose connection it is: so many in all, and from an address;
//! and of these so many at a time to their handshakes, the others wait. What a connection occupies
//! is given back when it ends, also by a panic.
//!
//! Its handshake lasts while its head is awaited and its token validated. Silence holds no place that
//! somebody waits for: when none is free, the head that has been awaited longest, of the address that
//! holds most, gives way. Whoever comes from an address that holds few goes before whoever comes from
//! one that holds many, so that a crowd waits for itself alone.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Shutdown};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::address::Peer;
use super::transport::Socket;
use crate::config::Config;
use crate::http::{self, HttpResponse};
use crate::ids::{ConnectionId, UserId};

/// How long a head is awaited at most once somebody waits for its place; and how long newcomers wait
/// while nobody at all gets a place.
const PLACE_TIMEOUT: Duration = Duration::from_secs(1);
/// The same while silence holds more than half of the places, for newcomers of an address that holds
/// fewer. A client sends its head, or what TLS wants first, right behind the packet that opens the
/// connection, and goes on as soon as it is answered.
const GRACE: Duration = Duration::from_millis(200);

/// The gateway's limits, and what is occupied of them. One thread gives it away; connection threads
/// give it back.
pub struct Limits {
    config: Config,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    connections: usize,
    /// By [`Peer::counted`]; none that has nothing.
    addresses: HashMap<IpAddr, Address>,
    /// Where somebody waits: who is next comes first.
    lines: BTreeSet<Line>,
    /// Those under way, each with the address that it counts for.
    handshakes: HashMap<ConnectionId, IpAddr>,
    /// Those of them whose head is awaited.
    silent: HashMap<ConnectionId, Silent>,
    /// When the last one began.
    begun: Option<Instant>,
}

#[derive(Default)]
struct Address {
    connections: usize,
    handshakes: usize,
    /// For their handshake, without a thread: the one who has waited longest comes first.
    waiting: VecDeque<Admission>,
}

/// How many handshakes an address has under way, since when its first one waits, and the address.
type Line = (usize, Instant, IpAddr);

struct Silent {
    since: Instant,
    address: IpAddr,
    socket: Socket,
}

/// A connection that is admitted, and what it occupies.
pub(super) struct Admission {
    limits: Arc<Limits>,
    pub id: ConnectionId,
    pub socket: Socket,
    /// The client's address, as far as it is known.
    pub peer: Peer,
    /// Whose token it brought, once that is validated.
    pub user: Option<UserId>,
    /// When the connection was accepted.
    pub since: Instant,
    /// Where it is counted. `None` behind a trusted proxy, until the head says who the client is.
    counted: Option<IpAddr>,
}

/// The answer when the gateway is full.
pub(super) fn no_room() -> HttpResponse {
    HttpResponse::unavailable("no_room", "The gateway has no room for another connection")
}

impl Limits {
    pub fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            config: config.clone(),
            table: Mutex::default(),
        })
    }

    /// Whether another connection would be within `limits.max_connections`.
    pub fn have_room(&self) -> bool {
        self.table.lock().connections < self.config.limits.max_connections
    }

    /// How many connections are admitted, how many the address has that has most, and how many
    /// handshakes are under way.
    pub fn usage(&self) -> [usize; 3] {
        let table = self.table.lock();
        let most = table.addresses.values().map(|at| at.connections).max();
        [table.connections, most.unwrap_or(0), table.handshakes.len()]
    }

    /// Has a connection wait for its turn, or says how it is to be refused.
    pub(super) fn admit(self: &Arc<Self>, socket: &Socket, peer: Peer) -> http::Result<()> {
        self.have_room().then_some(()).ok_or_else(no_room)?;
        self.table.lock().connections += 1;
        let mut admission = Admission {
            limits: Arc::clone(self),
            id: ConnectionId::random(),
            socket: Arc::clone(socket),
            peer,
            user: None,
            since: Instant::now(),
            counted: None,
        };
        if !peer.is_among(&self.config.listen.trusted_proxies) {
            admission.count_for(peer)?;
        }
        // Behind a trusted proxy, all wait in the proxy's line.
        let line = peer.counted();
        let mut table = self.table.lock();
        table.change(line, |at| at.waiting.push_back(admission));
        Ok(())
    }

    /// Whether [`Self::next`] is to be asked again, although nobody has come.
    pub fn has_waiting(&self) -> bool {
        !self.table.lock().lines.is_empty()
    }

    /// Whose handshake begins now; nobody's, if all who wait are to wait on. One thread asks.
    pub(super) fn next(&self, now: Instant) -> Option<Admission> {
        loop {
            let (id, socket) = {
                let mut table = self.table.lock();
                let (own, _, address) = *table.lines.first()?;
                if table.handshakes.len() < self.config.limits.max_handshakes {
                    return table.begin(address, now);
                }
                table.most_silent(own, now)?
            };
            // What waits in the socket only waits for its thread: that is no silence.
            let is_heard = socket.has_bytes();
            let mut table = self.table.lock();
            match table.silent.get_mut(&id) {
                Some(silent) if is_heard => silent.since = now,
                Some(_) => {
                    table.end_handshake(id);
                    drop(table);
                    // Its thread wakes up and answers.
                    socket.shutdown(Shutdown::Read);
                }
                // Its head has come meanwhile.
                None => {}
            }
        }
    }

    /// Whoever has waited longest, if that was for too long and no place is free.
    pub(super) fn next_overdue(&self, now: Instant) -> Option<Admission> {
        let mut table = self.table.lock();
        if table.handshakes.len() < self.config.limits.max_handshakes {
            return None;
        }
        let lines = table.lines.iter().map(|line| (line.1, line.2));
        let (since, address) = lines.min()?;
        let nobody_begins = now >= table.begun? + PLACE_TIMEOUT;
        let is_overdue = nobody_begins || now >= since + self.config.listen.handshake_timeout;
        is_overdue.then(|| table.take_first(address))?
    }

    /// One of those who wait: their turn will not come any more.
    pub(super) fn next_waiting(&self) -> Option<Admission> {
        let mut table = self.table.lock();
        let (_, _, address) = *table.lines.first()?;
        table.take_first(address)
    }

    /// Ends the handshakes whose head is awaited.
    pub fn cut_silent(&self) {
        let table = self.table.lock();
        let silent = table.silent.values().map(|it| Arc::clone(&it.socket));
        let silent: Vec<_> = silent.collect();
        drop(table);
        silent.iter().for_each(|it| it.shutdown(Shutdown::Both));
    }
}

impl Table {
    /// Changes what an address has, and so its line; forgets it once it has nothing.
    fn change<T>(&mut self, address: IpAddr, change: impl FnOnce(&mut Address) -> T) -> T {
        let at = self.addresses.entry(address).or_default();
        let line = |at: &Address| Some((at.handshakes, at.waiting.front()?.since, address));
        let (before, changed, after) = (line(at), change(at), line(at));
        if before != after {
            before.inspect(|line| _ = self.lines.remove(line));
            self.lines.extend(after);
        }
        if at.connections + at.handshakes + at.waiting.len() == 0 {
            self.addresses.remove(&address);
        }
        changed
    }

    /// The first one in the line of `address`.
    fn take_first(&mut self, address: IpAddr) -> Option<Admission> {
        self.change(address, |at| at.waiting.pop_front())
    }

    /// Begins the handshake of the first one in the line of `address`.
    fn begin(&mut self, address: IpAddr, now: Instant) -> Option<Admission> {
        let admission = self.take_first(address)?;
        self.change(address, |at| at.handshakes += 1);
        let silent = Silent {
            since: now,
            address,
            socket: Arc::clone(&admission.socket),
        };
        self.silent.insert(admission.id, silent);
        self.handshakes.insert(admission.id, address);
        self.begun = Some(now);
        Some(admission)
    }

    /// Nothing, if it had to give way.
    fn end_handshake(&mut self, id: ConnectionId) {
        self.silent.remove(&id);
        if let Some(address) = self.handshakes.remove(&id) {
            self.change(address, |at| at.handshakes -= 1);
        }
    }

    /// Who gives way, while no place is free, to one whose address has `own` of them: of those that have
    /// been silent for long enough, the one that has been so longest, of the address that has most.
    fn most_silent(&self, own: usize, now: Instant) -> Option<(ConnectionId, Socket)> {
        let mut held: HashMap<IpAddr, usize> = HashMap::new();
        for silent in self.silent.values() {
            *held.entry(silent.address).or_default() += 1;
        }
        let for_long = self.silent.values().filter(|it| now >= it.since + GRACE);
        let crowd = for_long.count() * 2 > self.handshakes.len();
        let long_enough = self.silent.iter().filter(|(_, it)| {
            let hurry = crowd && held[&it.address] > own;
            now >= it.since + if hurry { GRACE } else { PLACE_TIMEOUT }
        });
        let most = long_enough.max_by_key(|(_, it)| (held[&it.address], Reverse(it.since)));
        most.map(|(id, silent)| (*id, Arc::clone(&silent.socket)))
    }
}

impl Admission {
    /// The head has said who the client behind a trusted proxy is.
    pub fn count_for(&mut self, client: Peer) -> http::Result<()> {
        self.peer = client;
        if self.counted.is_some() {
            return Ok(());
        }
        let (address, limits) = (client.counted(), &self.limits.config.limits);
        self.limits.table.lock().change(address, |at| {
            if at.connections >= limits.max_connections_per_ip {
                let message = "Too many connections from this address";
                return Err(HttpResponse::too_many("max_connections_per_ip", message));
            }
            at.connections += 1;
            Ok(())
        })?;
        self.counted = Some(address);
        Ok(())
    }

    /// What comes before the head goes on: TLS has answered the client, which it does a few times.
    pub fn note_progress(&self, now: Instant) {
        let mut table = self.limits.table.lock();
        if let Some(silent) = table.silent.get_mut(&self.id) {
            silent.since = now;
        }
    }

    /// The head has come, or will not. An error is for a client that had to give way meanwhile.
    pub fn head_is_over(&self) -> http::Result<()> {
        let silent = self.limits.table.lock().silent.remove(&self.id);
        let message = "Others wait, and the request head did not come at once";
        let gave_way = || HttpResponse::timed_out(message);
        silent.map(drop).ok_or_else(gave_way)
    }

    /// The head is read and the token validated: the next one may begin.
    pub fn handshake_is_over(&self) {
        self.limits.table.lock().end_handshake(self.id);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut table = self.limits.table.lock();
        table.end_handshake(self.id);
        table.connections -= 1;
        if let Some(address) = self.counted {
            table.change(address, |at| at.connections -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::iter;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;
    use crate::config::load;

    struct Scene {
        limits: Arc<Limits>,
        start: Instant,
        clients: Vec<TcpStream>,
    }

    impl Scene {
        fn new(places: usize) -> Self {
            let text = format!("[limits]\nmax_handshakes = {places}");
            Self {
                limits: Limits::new(&load::parse("test", &text, [], None).unwrap()),
                start: Instant::now(),
                clients: Vec::new(),
            }
        }

        fn at(&self, milliseconds: u64) -> Instant {
            self.start + Duration::from_millis(milliseconds)
        }

        /// A newcomer from this address; answers its id.
        fn comes(&mut self, from: u8) -> ConnectionId {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            self.clients.push(client);
            let socket: Socket = Arc::new(listener.accept().unwrap().0);
            let address: IpAddr = [10, 0, 0, from].into();
            self.limits.admit(&socket, Peer::Socket(address)).unwrap();
            let table = self.limits.table.lock();
            table.addresses[&address].waiting.back().unwrap().id
        }

        /// All whose turn it is then, and who of them has a place.
        fn turns(&self, milliseconds: u64) -> Vec<(Admission, bool)> {
            let (limits, now) = (&self.limits, self.at(milliseconds));
            let begins = || limits.next(now).map(|newcomer| (newcomer, true));
            let refused = || limits.next_overdue(now).map(|newcomer| (newcomer, false));
            iter::from_fn(|| begins().or_else(refused)).collect()
        }

        /// The one who gets a place then.
        fn begins(&self, milliseconds: u64) -> Admission {
            let mut turns = self.turns(milliseconds);
            assert_eq!(turns.len(), 1);
            let (newcomer, begins) = turns.remove(0);
            assert!(begins);
            newcomer
        }

        fn nobody(&self, milliseconds: u64) {
            assert!(self.turns(milliseconds).is_empty());
        }
    }

    #[test]
    fn whoever_holds_less_goes_first_and_takes_what_silence_holds() {
        let mut scene = Scene::new(2);
        scene.comes(1);
        let first = scene.begins(0);
        scene.comes(1);
        let second = scene.begins(1);
        let crowd_again = scene.comes(1);
        let other = scene.comes(2);
        scene.nobody(200);
        let begun = scene.begins(201);
        assert_eq!(begun.id, other);
        // The first of the crowd has given way, and the second has not.
        assert!(first.head_is_over().is_err());
        assert!(second.head_is_over().is_ok());
        assert!(begun.head_is_over().is_ok());
        // Nobody is silent any more; the crowd waits for a place that is given back.
        drop(first);
        scene.nobody(300);
        drop(begun);
        assert_eq!(scene.begins(301).id, crowd_again);
        assert!(!scene.limits.has_waiting());
    }

    #[test]
    fn an_address_gives_way_to_itself_after_a_second() {
        let mut scene = Scene::new(1);
        scene.comes(1);
        let first = scene.begins(0);
        let second = scene.comes(1);
        scene.nobody(999);
        let begun = scene.begins(1_000);
        assert_eq!(begun.id, second);
        drop(first);
        assert_eq!(
            scene.limits.table.lock().handshakes.len(),
            1,
            "it was given away"
        );
    }

    #[test]
    fn of_many_addresses_the_one_that_has_been_silent_longest_gives_way() {
        let mut scene = Scene::new(3);
        let held: Vec<_> = (1..=3)
            .map(|from| {
                scene.comes(from);
                scene.begins(u64::from(from))
            })
            .collect();
        let mut others = Vec::new();
        for (first, from) in held.into_iter().zip(4..) {
            let other = scene.comes(from);
            others.push(scene.begins(1_000 + u64::from(from)));
            assert_eq!(others.last().map(|begun| begun.id), Some(other));
            assert!(first.head_is_over().is_err());
        }
    }

    #[test]
    fn a_few_silent_ones_are_not_hurried() {
        let mut scene = Scene::new(4);
        let held: Vec<_> = (1..=4)
            .map(|from| {
                scene.comes(from);
                scene.begins(0)
            })
            .collect();
        for busy in &held[2..] {
            busy.head_is_over().unwrap();
        }
        let other = scene.comes(5);
        scene.nobody(999);
        assert_eq!(scene.begins(1_000).id, other);
    }

    #[test]
    fn who_goes_on_with_tls_is_not_silent() {
        let mut scene = Scene::new(3);
        let held = [1, 2, 3].map(|from| {
            scene.comes(from);
            scene.begins(u64::from(from))
        });
        held[0].note_progress(scene.at(150));
        let other = scene.comes(4);
        let begun = scene.begins(210);
        assert_eq!(begun.id, other);
        assert!(held[0].head_is_over().is_ok());
        assert!(
            held[1].head_is_over().is_err(),
            "it has been silent longest"
        );
    }

    #[test]
    fn who_has_sent_something_that_nobody_has_read_is_not_silent() {
        let mut scene = Scene::new(1);
        scene.comes(1);
        let _first = scene.begins(0);
        scene.clients[0].write_all(b"GET").unwrap();
        let second = scene.comes(2);
        scene.nobody(700);
        // That is over once it has been read, and nothing more comes.
        let mut bytes = [0; 8];
        _first.socket.read(&mut bytes, true).unwrap();
        assert_eq!(scene.begins(900).id, second);
    }

    #[test]
    fn nobody_waits_once_nobody_has_got_a_place_for_a_second() {
        let mut scene = Scene::new(1);
        scene.comes(1);
        let first = scene.begins(0);
        first.head_is_over().unwrap();
        let second = scene.comes(2);
        scene.nobody(999);
        let refused = scene.turns(1_000);
        assert!(refused.len() == 1 && refused[0].0.id == second && !refused[0].1);
        scene.comes(3);
        assert_eq!(scene.turns(1_001).len(), 1, "refused at once");
        drop(first);
        let fourth = scene.comes(4);
        assert_eq!(scene.begins(1_002).id, fourth);
    }

    #[test]
    fn nobody_waits_for_longer_than_a_handshake_may_take() {
        let mut scene = Scene::new(1);
        let waits = scene.comes(9);
        let mut held = scene.begins(0);
        assert_eq!(held.id, waits);
        held.head_is_over().unwrap();
        scene.comes(9);
        for number in 0_u8..12 {
            // Somebody always gets a place before the one whose address holds one.
            scene.comes(number);
            drop(held);
            let mut turns = scene.turns(u64::from(number) * 900 + 900);
            if turns.len() > 1 {
                assert!(u64::from(number) * 900 + 900 >= 10_000, "not before");
                assert!(turns.iter().any(|turn| !turn.1));
                return;
            }
            held = turns.remove(0).0;
            held.head_is_over().unwrap();
        }
    }

    #[test]
    fn what_ends_leaves_nothing() {
        let mut scene = Scene::new(8);
        for from in 0..30 {
            scene.comes(from % 3);
        }
        let mut begun = scene.turns(0);
        begun.extend(scene.turns(150));
        begun.extend(scene.turns(1_200));
        for (number, (newcomer, _)) in begun.iter().enumerate() {
            if number % 2 == 0 {
                let _ = newcomer.head_is_over();
            }
        }
        drop(begun);
        iter::from_fn(|| scene.limits.next_waiting()).for_each(drop);
        let table = scene.limits.table.lock();
        assert_eq!(table.connections, 0);
        assert!(
            table.handshakes.is_empty() && table.addresses.is_empty() && table.lines.is_empty()
        );
    }
}
