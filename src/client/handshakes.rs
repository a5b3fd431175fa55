//! The handshakes under way, `limits.max_handshakes` at most, and the newcomers who wait for a place.
//!
//! A place is held while a head is awaited and its token validated. Silence holds none that somebody
//! waits for: when no place is free, the head that has been awaited longest, of the address that
//! holds most, gives way. Whoever comes from an address that holds few goes before whoever comes from
//! one that holds many, so that a crowd waits for itself alone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::ioctl_fionread;

use super::admission::Admission;
use crate::ids::ConnectionId;

/// How long a head is awaited at most once somebody waits for its place; and how long newcomers wait
/// while nobody at all gets a place.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same while silence holds more than half of the places, for newcomers of an address that holds
/// fewer. A client sends its head right behind the packet that opens the connection.
const GRACE: Duration = Duration::from_millis(200);

/// The places. One thread gives them away; connection threads give them back.
pub(super) struct Handshakes {
    table: Mutex<Table>,
    /// How long a newcomer waits at most.
    timeout: Duration,
}

/// A connection without a thread: it waits for its handshake.
pub(super) struct Newcomer {
    pub id: ConnectionId,
    pub socket: Arc<TcpStream>,
    pub admission: Admission,
}

/// What is to be done with a newcomer.
pub(super) enum Turn {
    /// It has a place.
    Begin(Newcomer),
    /// It has waited for too long.
    Refuse(Newcomer),
}

struct Table {
    places: usize,
    free: usize,
    /// When somebody last got a place.
    begun: Instant,
    /// Counts handshakes, in the order in which they begin.
    next: u64,
    silent: BTreeMap<u64, Silent>,
    waiting: usize,
    addresses: HashMap<IpAddr, Address>,
}

/// A handshake whose head is awaited.
struct Silent {
    address: IpAddr,
    socket: Arc<TcpStream>,
    since: Instant,
}

/// What one address has of the table.
#[derive(Default)]
struct Address {
    places: usize,
    /// How many of its places are held by silence.
    silent: usize,
    /// The one who has waited longest comes first.
    waiting: VecDeque<Newcomer>,
}

/// A place, given back when it is dropped, also by a panic.
pub(super) struct Place {
    handshakes: Arc<Handshakes>,
    number: u64,
    address: IpAddr,
    /// The head is awaited: the place may have been given to somebody else by now.
    silent: bool,
}

impl Handshakes {
    pub fn new(places: usize, timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(Table {
                places,
                free: places,
                begun: Instant::now(),
                next: 0,
                silent: BTreeMap::new(),
                waiting: 0,
                addresses: HashMap::new(),
            }),
            timeout,
        })
    }

    /// Whether [`Self::next`] is to be asked again, although nobody has come.
    pub fn has_waiting(&self) -> bool {
        self.table.lock().waiting > 0
    }

    pub fn queue(&self, newcomer: Newcomer) {
        let mut table = self.table.lock();
        let address = newcomer.admission.counted_as();
        table.waiting += 1;
        table
            .addresses
            .entry(address)
            .or_default()
            .waiting
            .push_back(newcomer);
    }

    /// Whose turn it is now; nobody's, if all who wait are to wait on. One thread asks.
    pub fn next(self: &Arc<Self>, now: Instant) -> Option<Turn> {
        loop {
            let (number, socket) = {
                let mut table = self.table.lock();
                let address = table.first_in_line()?;
                if table.free > 0 {
                    return self.begin(&mut table, address, now).map(Turn::Begin);
                }
                match table.most_silent(address, now) {
                    Some(found) => found,
                    None => return table.take_overdue(now, self.timeout).map(Turn::Refuse),
                }
            };
            // What waits in the socket only waits for its thread: that is no silence.
            if ioctl_fionread(&socket).is_ok_and(|bytes| bytes > 0) {
                self.table.lock().is_heard(number, now);
            } else if self.table.lock().give_way(number) {
                // Its thread wakes up and answers. This fails when the client is gone already.
                let _ = socket.shutdown(Shutdown::Read);
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        table: &mut Table,
        address: IpAddr,
        now: Instant,
    ) -> Option<Newcomer> {
        let mut newcomer = table.take_waiting(address)?;
        let number = table.begin(address, Arc::clone(&newcomer.socket), now);
        newcomer.admission.begin_handshake(Place {
            handshakes: Arc::clone(self),
            number,
            address,
            silent: true,
        });
        Some(newcomer)
    }

    /// All who wait: they will get no place any more.
    pub fn take_waiting(&self) -> Vec<Newcomer> {
        let mut table = self.table.lock();
        let addresses: Vec<_> = table.addresses.keys().copied().collect();
        let waiting = addresses.into_iter().flat_map(|address| {
            std::iter::from_fn(|| table.take_waiting(address)).collect::<Vec<_>>()
        });
        waiting.collect()
    }

    /// Ends the handshakes whose head is awaited.
    pub fn cut(&self) {
        let sockets: Vec<_> = {
            let table = self.table.lock();
            let silent = table.silent.values();
            silent.map(|silent| Arc::clone(&silent.socket)).collect()
        };
        for socket in sockets {
            // It fails when the client is gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Table {
    /// The address whose newcomer is next: the one that has the fewest places.
    fn first_in_line(&self) -> Option<IpAddr> {
        if self.waiting == 0 {
            return None;
        }
        let lines = self.addresses.iter().filter_map(|(address, at)| {
            let first = at.waiting.front()?;
            Some((at.places, first.admission.since(), *address))
        });
        lines.min().map(|(_, _, address)| address)
    }

    fn take_waiting(&mut self, address: IpAddr) -> Option<Newcomer> {
        let newcomer = self.addresses.get_mut(&address)?.waiting.pop_front()?;
        self.waiting -= 1;
        self.forget_if_idle(address);
        Some(newcomer)
    }

    /// Whoever has waited longest, if that was for too long.
    fn take_overdue(&mut self, now: Instant, timeout: Duration) -> Option<Newcomer> {
        let lines = self.addresses.iter().filter_map(|(address, at)| {
            let first = at.waiting.front()?;
            Some((first.admission.since(), *address))
        });
        let (since, address) = lines.min()?;
        let overdue = now >= self.begun + PATIENCE || now >= since + timeout;
        overdue.then(|| self.take_waiting(address)).flatten()
    }

    fn begin(&mut self, address: IpAddr, socket: Arc<TcpStream>, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        self.free -= 1;
        self.begun = now;
        let silent = Silent {
            address,
            socket,
            since: now,
        };
        self.silent.insert(number, silent);
        let at = self.addresses.entry(address).or_default();
        at.places += 1;
        at.silent += 1;
        number
    }

    /// Who gives way to a newcomer from `address`: of those that have been silent for long enough,
    /// the first of the address that has most of them.
    fn most_silent(&self, address: IpAddr, now: Instant) -> Option<(u64, Arc<TcpStream>)> {
        let own = self.addresses.get(&address).map_or(0, |at| at.places);
        let held = |silent: &Silent| {
            self.addresses
                .get(&silent.address)
                .map_or(0, |at| at.silent)
        };
        let for_long = |silent: &&Silent| now >= silent.since + GRACE;
        let crowd = self.silent.values().filter(for_long).count() * 2 > self.places;
        let long_enough = |silent: &Silent| {
            let hurry = crowd && held(silent) > own;
            now >= silent.since + if hurry { GRACE } else { PATIENCE }
        };
        let found = self.silent.iter().filter(|(_, silent)| long_enough(silent));
        let found = found.max_by_key(|(number, silent)| (held(silent), Reverse(**number)))?;
        Some((*found.0, Arc::clone(&found.1.socket)))
    }

    fn is_heard(&mut self, number: u64, now: Instant) {
        if let Some(silent) = self.silent.get_mut(&number) {
            silent.since = now;
        }
    }

    /// Its head is not awaited any longer. Nothing, if it is not as it is.
    fn end_silence(&mut self, number: u64) -> Option<Silent> {
        let silent = self.silent.remove(&number)?;
        if let Some(at) = self.addresses.get_mut(&silent.address) {
            at.silent -= 1;
        }
        Some(silent)
    }

    fn give_way(&mut self, number: u64) -> bool {
        let silent = self.end_silence(number);
        silent.is_some_and(|silent| {
            self.give_back(silent.address);
            true
        })
    }

    fn give_back(&mut self, address: IpAddr) {
        self.free += 1;
        if let Some(at) = self.addresses.get_mut(&address) {
            at.places -= 1;
        }
        self.forget_if_idle(address);
    }

    fn forget_if_idle(&mut self, address: IpAddr) {
        let at = self.addresses.get(&address);
        if at.is_some_and(|at| at.places == 0 && at.waiting.is_empty()) {
            self.addresses.remove(&address);
        }
    }
}

impl Place {
    /// The head has come, or will not. False when the place is somebody else's already.
    pub fn end_silence(&mut self) -> bool {
        let ended = self.handshakes.table.lock().end_silence(self.number);
        self.silent = ended.is_none();
        ended.is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.handshakes.table.lock();
        if self.silent {
            table.give_way(self.number);
        } else {
            table.give_back(self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};

    use super::super::admission::Limits;
    use super::*;
    use crate::config::load;

    const TIMEOUT: Duration = Duration::from_secs(10);

    struct Scene {
        handshakes: Arc<Handshakes>,
        limits: Limits,
        start: Instant,
        clients: Vec<TcpStream>,
    }

    impl Scene {
        fn new(places: usize) -> Self {
            Self {
                handshakes: Handshakes::new(places, TIMEOUT),
                limits: Limits::new(&load::parse("test", "", [], None).unwrap()),
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
            let id = ConnectionId::random();
            self.handshakes.queue(Newcomer {
                id,
                socket: Arc::new(listener.accept().unwrap().0),
                admission: self.limits.admit([10, 0, 0, from].into()).unwrap(),
            });
            id
        }

        /// All whose turn it is then, and who of them has a place.
        fn turns(&self, milliseconds: u64) -> Vec<(Newcomer, bool)> {
            let next = || self.handshakes.next(self.at(milliseconds));
            let turns = std::iter::from_fn(next).map(|turn| match turn {
                Turn::Begin(newcomer) => (newcomer, true),
                Turn::Refuse(newcomer) => (newcomer, false),
            });
            turns.collect()
        }

        /// The one who gets a place then.
        fn begins(&self, milliseconds: u64) -> Newcomer {
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
        scene.comes(1);
        let crowd = scene.turns(0);
        let crowd_again = scene.comes(1);
        let other = scene.comes(2);
        scene.nobody(199);
        let mut begun = scene.begins(200);
        assert_eq!(begun.id, other);
        // The first of the crowd has given way, and the second has not.
        let [mut first, mut second] = crowd.try_into().ok().unwrap();
        assert!(first.0.admission.head_is_over().is_err());
        assert!(second.0.admission.head_is_over().is_ok());
        assert!(begun.admission.head_is_over().is_ok());
        // Nobody is silent any more; the crowd waits for a place that is given back.
        drop(first);
        scene.nobody(300);
        drop(begun);
        assert_eq!(scene.begins(301).id, crowd_again);
        assert!(!scene.handshakes.has_waiting());
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
        assert_eq!(scene.handshakes.table.lock().free, 0, "it was given away");
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
        for (mut first, from) in held.into_iter().zip(4..) {
            let other = scene.comes(from);
            others.push(scene.begins(1_000 + u64::from(from)));
            assert_eq!(others.last().map(|begun| begun.id), Some(other));
            assert!(first.admission.head_is_over().is_err());
        }
    }

    #[test]
    fn a_few_silent_ones_are_not_hurried() {
        let mut scene = Scene::new(4);
        let mut held: Vec<_> = (1..=4)
            .map(|from| {
                scene.comes(from);
                scene.begins(0)
            })
            .collect();
        for busy in &mut held[2..] {
            busy.admission.head_is_over().unwrap();
        }
        let other = scene.comes(5);
        scene.nobody(999);
        assert_eq!(scene.begins(1_000).id, other);
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
        std::io::Read::read(&mut &*_first.socket, &mut bytes).unwrap();
        assert_eq!(scene.begins(900).id, second);
    }

    #[test]
    fn nobody_waits_once_nobody_has_got_a_place_for_a_second() {
        let mut scene = Scene::new(1);
        scene.comes(1);
        let mut first = scene.begins(0);
        first.admission.head_is_over().unwrap();
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
        held.admission.head_is_over().unwrap();
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
            held.admission.head_is_over().unwrap();
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
        for (number, (newcomer, _)) in begun.iter_mut().enumerate() {
            if number % 2 == 0 {
                let _ = newcomer.admission.head_is_over();
            }
        }
        drop(begun);
        drop(scene.handshakes.take_waiting());
        let table = scene.handshakes.table.lock();
        assert_eq!((table.free, table.waiting), (8, 0));
        assert!(table.silent.is_empty() && table.addresses.is_empty());
    }
}
