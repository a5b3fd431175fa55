//! What a newcomer is told: where to go once the gateway listens, and what to do where it cannot.

use std::env;
use std::fmt::Write;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use ws_gateway::config::{Config, Embedded, Endpoint, Mode, Token};
use ws_gateway::gateway::{Gateway, StartError};

/// What is known before the gateway takes the configuration over.
pub struct Banner {
    mode: Mode,
    has_page: bool,
    is_behind_proxy: bool,
    asks_operators: bool,
    /// Tokens that everybody knows, each with its user, as long as they are in force.
    samples: Vec<(String, String)>,
    /// Where broker and services are to be.
    needs: String,
}

impl Banner {
    pub fn new(config: &Config) -> Self {
        let is_embedded = config.backend.mode == Mode::Embedded;
        Self {
            mode: config.backend.mode,
            has_page: is_embedded && config.embedded.page,
            is_behind_proxy: config.listen.proxy_protocol,
            asks_operators: !config.admin.token.is_empty(),
            samples: if is_embedded {
                samples(config)
            } else {
                Vec::new()
            },
            needs: needs(config),
        }
    }

    /// A few lines, an empty one before them.
    pub fn text(&self, gateway: &Gateway) -> String {
        let admin = gateway.admin_url();
        self.lines(&gateway.url(), admin.as_deref(), &program())
    }

    /// `url`: as it is announced.
    fn lines(&self, url: &str, admin: Option<&str>, program: &str) -> String {
        let url = reachable(url);
        let page = url.replacen("ws", "http", 1);
        let root = page.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
        let mut text = String::from("\n");
        let mut line = |name: &str, what: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:12}{what}");
        };
        if self.has_page && !self.is_behind_proxy {
            line("chat page", &format!("{root}/"));
        }
        if self.mode == Mode::Embedded {
            line("tokens", &self.tokens());
            if cfg!(feature = "chat") && !self.is_behind_proxy {
                line("terminal", &self.command(&url, program));
            }
        }
        if let Some(admin) = admin {
            let asks = if self.asks_operators {
                " (asks for admin.token)"
            } else {
                ""
            };
            line("admin page", &format!("{admin}/{asks}"));
        }
        if self.mode == Mode::Remote {
            line("needs", &self.needs);
            line(
                "ready?",
                &format!("{}/readyz says what is missing", admin.unwrap_or(&root)),
            );
            let embedded = "backend.mode = \"embedded\"";
            line(
                "",
                &format!("{embedded} needs none of these, to try it out"),
            );
        }
        text
    }

    fn tokens(&self) -> String {
        let tokens: Vec<_> = self
            .samples
            .iter()
            .map(|(token, _)| token.as_str())
            .collect();
        match tokens.as_slice() {
            [] => "those of embedded.tokens".into(),
            tokens => format!("{}, for this machine alone", tokens.join(", ")),
        }
    }

    /// Ready to be copied: as one of them, to the next.
    fn command(&self, url: &str, program: &str) -> String {
        let ca = if url.starts_with("wss") {
            " --ca FILE"
        } else {
            ""
        };
        let chat = format!("{program} chat --url {url}{ca}");
        match self.samples.as_slice() {
            [(token, _), (_, to), ..] => format!("{chat} --token {token} --to {to}"),
            [(token, _)] => format!("{chat} --token {token} --to USER"),
            [] => format!("GATEWAY_CHAT_TOKEN=TOKEN {chat} --to USER"),
        }
    }
}

fn samples(config: &Config) -> Vec<(String, String)> {
    let known = Embedded::default().tokens.into_iter();
    let in_force =
        known.filter_map(
            |(token, sample)| match (&sample, config.embedded.tokens.get(&token)) {
                (Token::Unlimited(user), Some(Token::Unlimited(now))) if user == now => {
                    Some((token, user.clone()))
                }
                _ => None,
            },
        );
    in_force.collect()
}

fn needs(config: &Config) -> String {
    let broker = Endpoint::parse(&config.broker.url).map(|endpoint| endpoint.address());
    let services = &config.services;
    let addresses = [&services.user, &services.message, &services.presence];
    let mut addresses: Vec<&str> = addresses
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    let (broker, services) = (broker.unwrap_or_default(), addresses.join(", "));
    format!("RabbitMQ at {broker}, services at {services}")
}

/// Whoever listens everywhere is found here.
fn reachable(url: &str) -> String {
    url.replacen("//0.0.0.0:", "//127.0.0.1:", 1)
        .replacen("//[::]:", "//[::1]:", 1)
}

/// As it was called.
fn program() -> String {
    let called = env::args_os()
        .next()
        .and_then(|name| name.into_string().ok());
    let is_plain = |name: &String| {
        let plain = |c: char| c.is_alphanumeric() || "/._-+".contains(c);
        !name.is_empty() && name.chars().all(plain)
    };
    called
        .filter(is_plain)
        .unwrap_or_else(|| "ws-gateway".into())
}

/// Why the gateway does not start, and what to do about it.
pub fn explain(error: &StartError) -> String {
    let cure = match error {
        StartError::Listen { key, addr, error } => listen_cure(key, *addr, error),
        _ => None,
    };
    match cure {
        Some(cure) => format!("{error}\n{cure}"),
        None => error.to_string(),
    }
}

fn listen_cure(key: &str, addr: SocketAddr, error: &io::Error) -> Option<String> {
    let variable = format!("GATEWAY_{}", key.to_uppercase().replace('.', "__"));
    let (ip, port) = (addr.ip(), addr.port());
    Some(match error.kind() {
        ErrorKind::AddrInUse => {
            let other = SocketAddr::new(ip, port.checked_add(1).unwrap_or(1_024));
            format!(
                "  `ss -ltnp 'sport = :{port}'` shows who listens there, perhaps another gateway; end \
                 it, or choose another {key}: {variable}={other}"
            )
        }
        ErrorKind::AddrNotAvailable => format!(
            "  {ip} is none of this machine's addresses, which `ip addr` shows; choose another {key}"
        ),
        ErrorKind::PermissionDenied => format!(
            "  ports below 1024 are for root and for who has CAP_NET_BIND_SERVICE; choose another \
             {key}: {variable}={ip}:8080"
        ),
        _ => return None,
    })
}
