//! A relay before the broker: what passes to a server says from then on that it was published as it
//! passed. So clients see how long the server has had it, without what the broker did before.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use crate::clock;

/// It ends with this process.
pub struct Relay {
    /// As the broker's, but for host and port.
    pub url: String,
}

impl Relay {
    /// Before the broker at `url`: `amqp://USER:PASSWORD@HOST:PORT/VHOST`.
    pub fn before(url: &str) -> Self {
        let (user, rest) = url.split_once('@').expect("a user");
        let (broker, vhost) = rest.split_once('/').expect("a virtual host");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let broker = broker.to_owned();
        thread::spawn(move || {
            for server in listener.incoming().flatten() {
                let broker = TcpStream::connect(&broker).expect("the broker answers");
                pass_on(server, broker).expect("sockets");
            }
        });
        Self {
            url: format!("{user}@{addr}/{vhost}"),
        }
    }
}

/// Passes on what either says, until it ends.
fn pass_on(server: TcpStream, broker: TcpStream) -> io::Result<()> {
    server.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let (mut said, mut heard) = (server.try_clone()?, broker.try_clone()?);
    thread::spawn(move || {
        // An error ends it as the end does.
        let _ = io::copy(&mut said, &mut heard);
        let _ = heard.shutdown(Shutdown::Write);
    });
    let (mut said, mut heard) = (broker, server);
    thread::spawn(move || {
        let mut chunk = vec![0; 64 << 10];
        while let Ok(length @ 1..) = said.read(&mut chunk) {
            let bytes = &mut chunk[..length];
            clock::restamp(bytes, clock::now());
            if heard.write_all(bytes).is_err() {
                break;
            }
        }
        let _ = heard.shutdown(Shutdown::Write);
    });
    Ok(())
}
