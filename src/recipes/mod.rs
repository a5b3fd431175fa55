//! Deployment files that `ws-gateway recipe NAME` prints: each works as it is, or says in its comments
//! what to replace.

/// One file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    pub name: &'static str,
    /// In one line.
    pub about: &'static str,
    pub text: &'static str,
}

/// Every one, in the order in which a deployment meets them.
pub const RECIPES: [Recipe; 8] = [
    Recipe {
        name: "systemd",
        about: "a unit with watchdog, limits and hardening",
        text: include_str!("ws-gateway.service"),
    },
    Recipe {
        name: "container",
        about: "a Containerfile, and how to run it with limits",
        text: include_str!("Containerfile"),
    },
    Recipe {
        name: "sysctl",
        about: "kernel settings, with the arithmetic for N connections",
        text: include_str!("sysctl.conf"),
    },
    Recipe {
        name: "nginx",
        about: "nginx in front of several gateways",
        text: include_str!("nginx.conf"),
    },
    Recipe {
        name: "haproxy",
        about: "HAProxy in front of several gateways",
        text: include_str!("haproxy.cfg"),
    },
    Recipe {
        name: "prometheus",
        about: "what Prometheus scrapes; it reads the rules of the next",
        text: include_str!("prometheus.yml"),
    },
    Recipe {
        name: "prometheus-rules",
        about: "when somebody should be told: alert rules",
        text: include_str!("prometheus-rules.yml"),
    },
    Recipe {
        name: "grafana",
        about: "a dashboard to import",
        text: include_str!("grafana.json"),
    },
];

#[cfg(test)]
mod tests;
