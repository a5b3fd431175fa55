//! Looking a host's name up within a bounded time, which the system's resolver does not know.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded, select};

use super::{AmqpError, Result, lost};
use crate::threads::StopSignal;

type Addresses = io::Result<Vec<SocketAddr>>;

/// Looks up one address, `host:port`, again and again.
///
/// A look-up cannot be ended. One that takes too long goes on, on the thread `amqp-resolve`, and the
/// next call waits for it instead of starting another: so there is one such thread at most, and it is
/// joined, unless the system still owes the answer when the process ends.
pub struct Resolver {
    address: String,
    look_up: fn(&str) -> Addresses,
    running: Option<(JoinHandle<()>, Receiver<Addresses>)>,
}

impl Resolver {
    pub fn new(address: String) -> Self {
        Self {
            address,
            look_up: |address| Ok(address.to_socket_addrs()?.collect()),
            running: None,
        }
    }

    /// The addresses, there is at least one; waits for them for `wait` at most.
    pub fn resolve(&mut self, wait: Duration, quit: &StopSignal) -> Result<Vec<SocketAddr>> {
        if let Ok(literal) = self.address.parse() {
            return Ok(vec![literal]);
        }
        let (thread, answer) = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        let found = select! {
            recv(answer) -> found => found,
            recv(quit.receiver()) -> _ => {
                self.running = Some((thread, answer));
                return Err(lost("told to stop"));
            }
            default(wait) => {
                self.running = Some((thread, answer));
                return Err(lost("the host's name was not resolved in time"));
            }
        };
        // It has answered or panicked, and so it ends now.
        let _ = thread.join();
        match found {
            Ok(Ok(addresses)) if addresses.is_empty() => {
                Err(lost("the host's name has no address"))
            }
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => Err(AmqpError::Lost(format!("resolving: {error}"))),
            Err(_) => Err(lost("resolving panicked")),
        }
    }

    fn start(&self) -> Result<(JoinHandle<()>, Receiver<Addresses>)> {
        let (result, answer) = bounded(1);
        let (address, look_up) = (self.address.clone(), self.look_up);
        let thread = Builder::new()
            .name("amqp-resolve".into())
            // Not sent to anybody when the process is about to end.
            .spawn(move || drop(result.send(look_up(&address))));
        let thread = thread.map_err(|e| AmqpError::Lost(format!("no thread: {e}")))?;
        Ok((thread, answer))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Condvar, Mutex};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);
    const IMPATIENCE: Duration = Duration::from_millis(20);

    fn resolver(look_up: fn(&str) -> Addresses) -> Resolver {
        Resolver {
            look_up,
            ..Resolver::new("host:1".into())
        }
    }

    #[test]
    fn addresses_are_found_and_what_is_none_is_an_error() {
        let found =
            |address: &str| Resolver::new(address.into()).resolve(PATIENCE, &StopSignal::never());
        assert_eq!(
            found("127.0.0.1:5").unwrap(),
            ["127.0.0.1:5".parse().unwrap()]
        );
        assert_eq!(found("[::1]:5").unwrap(), ["[::1]:5".parse().unwrap()]);
        assert!(
            found("localhost:5")
                .unwrap()
                .iter()
                .all(|at| at.ip().is_loopback())
        );
        assert!(found("no-host.invalid:5").is_err());
        let nothing = resolver(|_| Ok(Vec::new())).resolve(PATIENCE, &StopSignal::never());
        assert!(nothing.unwrap_err().to_string().contains("no address"));
    }

    #[test]
    fn a_look_up_that_takes_long_is_waited_for_again_and_not_repeated() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
        let mut resolver = resolver(|_| {
            CALLS.fetch_add(1, Ordering::SeqCst);
            let shut = GATE.0.lock().unwrap();
            drop(GATE.1.wait_while(shut, |open| !*open).unwrap());
            Ok(vec!["127.0.0.1:5".parse().unwrap()])
        });
        let (quitter, quit) = StopSignal::pair();
        for _ in 0..3 {
            let late = resolver.resolve(IMPATIENCE, &quit).unwrap_err();
            assert!(late.to_string().contains("in time"), "{late}");
        }
        drop(quitter);
        let told = resolver.resolve(PATIENCE, &quit).unwrap_err();
        assert!(told.to_string().contains("stop"), "{told}");
        *GATE.0.lock().unwrap() = true;
        GATE.1.notify_all();
        assert_eq!(
            resolver
                .resolve(PATIENCE, &StopSignal::never())
                .unwrap()
                .len(),
            1
        );
        assert_eq!(CALLS.load(Ordering::SeqCst), 1);
        assert!(resolver.running.is_none(), "it is joined");
    }
}
