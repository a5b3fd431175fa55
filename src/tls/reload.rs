//! The certificate in force. Its files are read again every few seconds, and at SIGHUP, and go by their
//! contents: so it does not matter whether a symbolic link was moved, as Kubernetes and certbot do, or
//! a file was written in place. A pair that cannot be used changes nothing.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{Sender, after, bounded, select};
use log::{error, info, warn};
use parking_lot::RwLock;
use prometheus::PullingGauge;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::{Certificate, Files};
use super::handshakes::{Handshakes, Pool};
use super::socket::TlsSocket;
use crate::client::transport::Opener;
use crate::config;
use crate::metrics::{Metrics, register};
use crate::readiness::{LastOutcome, Readiness};
use crate::threads::{Fatal, Worker};

/// How often the files are read.
const INTERVAL: Duration = Duration::from_secs(2);

/// TLS on the client listener, once its thread is started.
pub struct Tls {
    config: Arc<ServerConfig>,
    files: config::Tls,
    /// What the files held.
    in_force: Files,
    current: Arc<Current>,
    handshakes: Handshakes,
    pool: Pool,
    thread: Option<(Worker, Sender<()>)>,
}

/// Shown to each newcomer.
#[derive(Debug)]
struct Current(RwLock<Arc<Certificate>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().key))
    }
}

impl Current {
    fn expires_at(&self) -> SystemTime {
        self.0.read().expires_at
    }

    /// An error is what clients would say of it.
    fn check(&self) -> Result<(), String> {
        let expires_at = self.expires_at();
        let is_expired = expires_at <= SystemTime::now();
        let expired = || format!("the certificate expired at {}", written(expires_at));
        (!is_expired).then_some(()).ok_or_else(expired)
    }

    /// Seconds until it expires; negative since it has.
    fn seconds_left(&self) -> f64 {
        let expires_at = self.expires_at();
        let left = expires_at.duration_since(SystemTime::now());
        left.map_or_else(
            |over| -over.duration().as_secs_f64(),
            |left| left.as_secs_f64(),
        )
    }
}

/// Reads the certificate, as a start does.
///
/// # Errors
///
/// The key of the configuration, and what is wrong with its file, which names the key too.
pub fn read(config: &config::Tls) -> Result<Certificate, (&'static str, String)> {
    let read = pair(config).map(|(_, certificate)| certificate);
    read.map_err(|reason| match reason.starts_with("tls.key") {
        true => ("tls.key", reason),
        false => ("tls.cert", reason),
    })
}

fn pair(config: &config::Tls) -> Result<(Files, Certificate), String> {
    let files = Files::read(config)?;
    let certificate = files.certificate(&ring::default_provider())?;
    Ok((files, certificate))
}

impl Tls {
    /// TLS 1.2 and 1.3 with the certificate of `config`; nothing, where it names none.
    pub fn new(config: &config::Tls, metrics: &Metrics) -> Result<Option<Self>, String> {
        if config.cert.is_empty() {
            return Ok(None);
        }
        let (in_force, certificate) = pair(config)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(certificate))));
        let failed = |error: rustls::Error| format!("tls: {error}");
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions();
        let mut server = builder
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Current>::clone(&current));
        // So that those who come back after a restart of their network need no new key exchange.
        server.ticketer = ring::Ticketer::new().map_err(failed)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let shown = Arc::clone(&current);
        let gauge = PullingGauge::new(
            "gateway_tls_certificate_expiry_seconds",
            "Seconds until the certificate of the client listener expires; negative once it has.",
            Box::new(move || shown.seconds_left()),
        );
        register(metrics.registry(), gauge);
        let (handshakes, pool) = Handshakes::new();
        Ok(Some(Self {
            handshakes,
            pool,
            config: Arc::new(server),
            files: config.clone(),
            in_force,
            current,
            thread: None,
        }))
    }

    /// Puts TLS on what `inner` makes of a socket.
    pub fn opener(&self, inner: Opener) -> Opener {
        let (config, handshakes) = (Arc::clone(&self.config), self.handshakes.clone());
        Box::new(move |socket: TcpStream, peer| {
            let (config, handshakes) = (Arc::clone(&config), handshakes.clone());
            Arc::new(TlsSocket::new(inner(socket, peer), config, handshakes))
        })
    }

    /// Computes handshakes, and reads the files again, from now on.
    pub fn start(&mut self, readiness: &Readiness, fatal: &Fatal) -> io::Result<()> {
        self.pool.start(fatal)?;
        let outcome = LastOutcome::new(Ok(()));
        let (last, current) = (outcome.clone(), Arc::clone(&self.current));
        readiness.add("certificate", false, move || {
            last.get().and_then(|()| current.check())
        });
        let mut reload = Reload {
            in_force: self.in_force.clone(),
            files: self.files.clone(),
            current: Arc::clone(&self.current),
            doubt: None,
            outcome,
            warn_at: Instant::now(),
        };
        let (ask, asked) = bounded(1);
        let thread = Worker::start("tls-reload", fatal, move |stop| {
            reload.warn();
            loop {
                select! {
                    recv(stop.receiver()) -> _ => return,
                    recv(asked) -> _ => reload.look(true),
                    recv(after(INTERVAL)) -> _ => reload.look(false),
                }
                reload.warn();
            }
        })?;
        self.thread = Some((thread, ask));
        Ok(())
    }

    /// Has the files read at once.
    pub fn reload(&self) {
        if let Some((_, ask)) = &self.thread {
            // One that waits to be heard is as good, and a thread that has ended hears none.
            let _ = ask.try_send(());
        }
    }

    pub fn stop(self, deadline: Instant) {
        self.thread.map(|(thread, _)| thread.stop(deadline));
        self.pool.stop(deadline);
    }
}

/// What the thread knows.
struct Reload {
    files: config::Tls,
    /// The files' contents that the current certificate is of.
    in_force: Files,
    current: Arc<Current>,
    /// What was wrong at the last look.
    doubt: Option<String>,
    outcome: LastOutcome,
    warn_at: Instant,
}

impl Reload {
    /// Puts a new pair in force. What cannot be used is looked at once more before it is said so, since
    /// two files are not replaced at once; unless an operator has asked.
    fn look(&mut self, asked: bool) {
        let looked = self.judge();
        let doubt = looked.as_ref().err().cloned();
        if doubt.is_some() && doubt != self.doubt && !asked {
            self.doubt = doubt;
            return;
        }
        self.doubt = doubt;
        match &looked {
            _ if !self.outcome.record(&looked) => {}
            Ok(()) => info!("Certificate files are in order again"),
            Err(reason) => error!("Certificate not changed, the old one stays: {reason}"),
        }
    }

    fn judge(&mut self) -> Result<(), String> {
        let files = Files::read(&self.files)?;
        if self.in_force == files {
            return Ok(());
        }
        let certificate = files.certificate(&ring::default_provider())?;
        let (subject, until) = (&certificate.subject, written(certificate.expires_at));
        info!("Certificate in force: subject={subject}, expires={until}");
        *self.current.0.write() = Arc::new(certificate);
        self.in_force = files;
        self.warn_at = Instant::now();
        Ok(())
    }

    /// Once a day while it is due.
    fn warn(&mut self) {
        let is_soon = self.current.0.read().expires_soon();
        if is_soon && Instant::now() >= self.warn_at {
            let until = written(self.current.expires_at());
            warn!(
                "Certificate expires soon, or has: expires={until}; replace tls.cert and tls.key"
            );
            self.warn_at = Instant::now() + Duration::from_hours(24);
        }
    }
}

fn written(time: SystemTime) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(time)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;
    use crate::tls::support::{Issued, issued};

    /// A folder as Kubernetes mounts a secret: `..data` points to the folder in force.
    struct Mounted {
        directory: tempfile::TempDir,
        versions: usize,
    }

    impl Mounted {
        fn new(issued: &Issued) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for file in ["tls.crt", "tls.key"] {
                symlink(format!("..data/{file}"), directory.path().join(file)).unwrap();
            }
            let mut mounted = Self {
                directory,
                versions: 0,
            };
            mounted.replace(issued);
            mounted
        }

        fn path(&self) -> &Path {
            self.directory.path()
        }

        fn replace(&mut self, issued: &Issued) {
            self.versions += 1;
            let version = self.path().join(format!("..{}", self.versions));
            fs::create_dir(&version).unwrap();
            fs::write(version.join("tls.crt"), &issued.cert).unwrap();
            fs::write(version.join("tls.key"), &issued.key).unwrap();
            let link = self.path().join("..new");
            symlink(&version, &link).unwrap();
            fs::rename(link, self.path().join("..data")).unwrap();
        }

        fn config(&self) -> config::Tls {
            let file = |name: &str| self.path().join(name).display().to_string();
            config::Tls {
                cert: file("tls.crt"),
                key: file("tls.key"),
            }
        }
    }

    fn reload(config: &config::Tls) -> Reload {
        Reload {
            in_force: Files::read(config).unwrap(),
            files: config.clone(),
            current: Arc::new(Current(RwLock::new(Arc::new(read(config).unwrap())))),
            doubt: None,
            outcome: LastOutcome::new(Ok(())),
            warn_at: Instant::now(),
        }
    }

    fn years_left(reload: &Reload) -> f64 {
        (reload.current.seconds_left() / 86_400.0 / 365.25).round()
    }

    #[test]
    fn a_link_that_is_moved_is_a_new_certificate() {
        let (old, new) = (issued(2090), issued(2190));
        let mut mounted = Mounted::new(&old);
        let mut reload = reload(&mounted.config());
        let before = years_left(&reload);
        reload.look(false);
        assert_eq!(years_left(&reload), before);
        mounted.replace(&new);
        reload.look(false);
        assert_eq!(years_left(&reload), before + 100.0);
        assert_eq!(reload.outcome.get(), Ok(()));
    }

    #[test]
    fn a_pair_that_is_renewed_while_the_gateway_starts_is_noticed() {
        let mut mounted = Mounted::new(&issued(2090));
        let tls = Tls::new(&mounted.config(), &Metrics::new(&[])).unwrap();
        let mut tls = tls.unwrap();
        let before = tls.current.expires_at();
        mounted.replace(&issued(2190));
        let fatal = crossbeam::channel::unbounded().0;
        tls.start(&Readiness::default(), &fatal).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while tls.current.expires_at() == before {
            assert!(Instant::now() < deadline);
            tls.reload();
            std::thread::yield_now();
        }
        tls.stop(deadline);
    }

    #[test]
    fn two_files_need_not_be_written_at_once() {
        let (old, new) = (issued(2090), issued(2190));
        let mounted = Mounted::new(&old);
        let config = mounted.config();
        let mut reload = reload(&config);
        let before = years_left(&reload);
        fs::write(&config.cert, &new.cert).unwrap();
        reload.look(false);
        assert_eq!(reload.outcome.get(), Ok(()), "not for so short a time");
        fs::write(&config.key, &new.key).unwrap();
        reload.look(false);
        assert_eq!(years_left(&reload), before + 100.0);
    }

    #[test]
    fn a_bad_pair_is_said_to_be_one_and_the_old_one_stays() {
        let (old, new) = (issued(2090), issued(2190));
        let mounted = Mounted::new(&old);
        let config = mounted.config();
        let mut reload = reload(&config);
        let before = years_left(&reload);
        fs::write(&config.cert, &new.cert).unwrap();
        reload.look(false);
        reload.look(false);
        let reason = reload.outcome.get().unwrap_err();
        assert!(reason.starts_with("tls.key: does not belong"), "{reason}");
        assert_eq!(years_left(&reload), before);
        fs::remove_file(&config.key).unwrap();
        reload.look(true);
        let reason = reload.outcome.get().unwrap_err();
        assert!(reason.starts_with("tls.key: cannot read"), "{reason}");
        fs::write(&config.cert, &old.cert).unwrap();
        fs::write(&config.key, &old.key).unwrap();
        reload.look(false);
        assert_eq!(reload.outcome.get(), Ok(()));
        assert_eq!(years_left(&reload), before);
    }

    #[test]
    fn one_that_has_expired_is_told_by_readiness() {
        let mounted = Mounted::new(&issued(2020));
        let reload = reload(&mounted.config());
        assert!(reload.current.seconds_left() < 0.0);
        let reason = reload.current.check().unwrap_err();
        assert_eq!(reason, "the certificate expired at 2020-01-01T00:00:00Z");
    }
}
