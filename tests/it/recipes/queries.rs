//! The alert rules and the dashboard: Prometheus takes them, and they ask for nothing that there is
//! not.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::LazyLock;

use promql_parser::parser::{self, Expr};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;

use crate::chat;
use crate::support::Gateway;
use crate::support::broker::free_port;
use crate::support::process::Process;
use crate::support::recipe::{approves, recipe, replaced, written};
use crate::support::wait::wait_for;
use crate::support::{DEADLINE, watchdog};

/// What `/metrics` shows of a gateway that has done this and that, without the parts of histograms.
fn metric_names() -> &'static BTreeSet<String> {
    static NAMES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let gateway = Gateway::start(&chat::settings().tls());
        gateway.wait_ready();
        gateway.connect("alice").close();
        assert_eq!(gateway.get("/nowhere").status, 404);
        let scraped = gateway.admin.get("/metrics").body;
        let types = scraped
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "));
        let names = types.filter_map(|line| line.split(' ').next());
        names.map(str::to_owned).collect()
    });
    &NAMES
}

/// Which time series a query asks for.
struct Selected(BTreeSet<String>);

impl ExprVisitor for Selected {
    type Error = Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Infallible> {
        let selector = match expr {
            Expr::VectorSelector(selector) => Some(selector),
            Expr::MatrixSelector(matrix) => Some(&matrix.vs),
            _ => None,
        };
        let name = selector.map(|selector| selector.name.clone().expect("a metric's name"));
        self.0.extend(name);
        Ok(true)
    }
}

/// The time series of a query; Grafana's own variables may stand where a duration does.
fn selected(query: &str) -> BTreeSet<String> {
    let query = query.replace("$__rate_interval", "5m");
    let parsed = parser::parse(&query).unwrap_or_else(|error| panic!("{query}: {error}"));
    let mut selected = Selected(BTreeSet::new());
    let Ok(_) = walk_expr(&mut selected, &parsed);
    selected.0
}

/// Those of them that nobody shows.
fn unknown(query: &str) -> Vec<String> {
    let names = metric_names();
    let is_shown = |name: &String| {
        // Prometheus's own.
        let is_up = name == "up";
        let parts = ["_bucket", "_sum", "_count"];
        let histogram = parts.iter().find_map(|part| name.strip_suffix(part));
        let is_part = histogram.is_some_and(|name| names.contains(name));
        is_up || is_part || names.contains(name)
    };
    selected(query)
        .into_iter()
        .filter(|name| !is_shown(name))
        .collect()
}

#[test]
fn a_metric_that_is_not_there_is_found_wherever_a_query_names_it() {
    for query in [
        "gateway_missing",
        "sum by (job) (rate(gateway_missing{code=\"a\"}[$__rate_interval]))",
        "1 - gateway_users / ignoring (name) gateway_missing",
        "max_over_time(sum(gateway_missing)[5m:1m])",
        "histogram_quantile(0.9, rate(gateway_missing_bucket[5m]))",
    ] {
        let unknown = unknown(query);
        assert!(
            unknown[0].starts_with("gateway_missing"),
            "{query}: {unknown:?}"
        );
    }
    let known = "sum by (gateway_x) (rate(gateway_rpc_seconds_count{a=\"gateway_y\"}[5m])) > up";
    assert!(unknown(known).is_empty());
}

/// The two files, side by side as the first expects it.
fn prometheus_files(replacements: &[(&str, &str)]) -> std::path::PathBuf {
    let config = written("prometheus.yml", &replaced("prometheus", replacements));
    let rules = config.with_file_name("ws-gateway-rules.yml");
    fs::write(rules, recipe("prometheus-rules")).expect("a file");
    config
}

#[test]
fn promtool_takes_scrape_config_and_rules() {
    let config = prometheus_files(&[]);
    let said = approves(
        Command::new("promtool")
            .args(["check", "config"])
            .arg(&config),
    );
    assert!(said.contains("1 rule files found"), "{said}");
    let rules = config.with_file_name("ws-gateway-rules.yml");
    approves(
        Command::new("promtool")
            .args(["check", "rules", "--lint-fatal"])
            .arg(rules),
    );
}

/// With time series made up, which name every metric that the rules do.
#[test]
fn every_alert_fires_where_all_is_wrong_and_none_where_all_is_well() {
    let config = prometheus_files(&[]);
    let tests = config.with_file_name("alerts.yml");
    fs::write(&tests, include_str!("alerts.yml")).expect("a file");
    approves(Command::new("promtool").args(["test", "rules"]).arg(tests));
}

/// The answer of an HTTP server that ends the connection behind it.
fn get(addr: SocketAddr, path: &str) -> Option<Value> {
    let mut stream = TcpStream::connect_timeout(&addr, DEADLINE).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
}

/// The rules as Prometheus reads them, once it has evaluated each without an error.
fn evaluated_rules() -> Vec<Value> {
    let nobody = format!("127.0.0.1:{}", free_port());
    let often = "evaluation_interval: 1s";
    let replacements = [
        ("127.0.0.1:9090", nobody.as_str()),
        ("evaluation_interval: 15s", often),
    ];
    let config = prometheus_files(&replacements);
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            watchdog::directory("tsdb").display()
        ))
        .arg(format!("--web.listen-address={addr}"));
    let _prometheus = Process::start("Prometheus", &mut command);
    let look = || {
        let answer = get(addr, "/api/v1/rules")?;
        let rules = answer["data"]["groups"][0]["rules"].as_array()?.clone();
        for rule in &rules {
            assert_ne!(rule["health"], "err", "{rule}");
        }
        rules
            .iter()
            .all(|rule| rule["health"] == "ok")
            .then_some(rules)
    };
    wait_for(DEADLINE * 2, "Prometheus evaluates every rule", look).0
}

#[test]
fn every_alert_asks_for_metrics_that_are_there_and_says_what_to_do() {
    let rules = evaluated_rules();
    let told = format!("{} alerts", rules.len());
    assert!(include_str!("../../../README.md").contains(&told), "{told}");
    let mut names = BTreeSet::new();
    for rule in &rules {
        let name = rule["name"].as_str().expect("an alert's name");
        assert!(names.insert(name), "{name} is there twice");
        let tried = include_str!("alerts.yml").contains(&format!("alertname=\"{name}\""));
        assert!(tried, "{name} is not tried in alerts.yml");
        assert_eq!(
            unknown(rule["query"].as_str().expect("a query")),
            [""; 0],
            "{name}"
        );
        let severity = rule["labels"]["severity"].as_str();
        assert!(
            matches!(severity, Some("critical" | "warning")),
            "{name}: {severity:?}"
        );
        for text in ["summary", "description"] {
            let said = rule["annotations"][text].as_str().unwrap_or_default();
            assert!(!said.is_empty(), "{name}: {text}");
        }
    }
}

/// Panels, and those within rows.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let outer = dashboard["panels"].as_array().expect("panels");
    let inner = outer.iter().filter_map(|panel| panel["panels"].as_array());
    outer.iter().chain(inner.flatten()).collect()
}

#[test]
fn the_dashboard_asks_for_metrics_that_are_there() {
    let dashboard: Value = serde_json::from_str(&recipe("grafana")).expect("JSON");
    let variables = dashboard["templating"]["list"]
        .as_array()
        .expect("variables");
    let variable = |name: &str| {
        let found = variables.iter().find(|variable| variable["name"] == name);
        found.unwrap_or_else(|| panic!("no variable {name}"))
    };
    let source = variable("datasource");
    assert_eq!(
        (&source["type"], &source["query"]),
        (&"datasource".into(), &"prometheus".into())
    );
    let instances = variable("instance")["definition"]
        .as_str()
        .expect("a query");
    let inner = instances.strip_prefix("label_values(");
    let inner = inner.and_then(|inner| inner.strip_suffix(", instance)"));
    assert_eq!(
        unknown(inner.expect("label_values(metric, instance)")),
        [""; 0]
    );

    let (mut ids, mut titles, mut asked) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().expect("a title");
        assert!(
            ids.insert(panel["id"].as_u64().expect("an id")),
            "{title}: its id is there twice"
        );
        assert!(
            panel["type"] == "row" || titles.insert(title),
            "{title} is there twice"
        );
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        assert_eq!(targets.is_empty(), panel["type"] == "row", "{title}");
        for target in targets {
            let query = target["expr"].as_str().expect("a query");
            assert_eq!(unknown(query), [""; 0], "{title}");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            asked.extend(selected(query));
        }
    }
    // Whoever adds a metric is to show it.
    let is_asked = |name: &String| asked.iter().any(|asked| asked.starts_with(name.as_str()));
    let not_shown = [
        "gateway_build_info",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
    ];
    let rest: Vec<_> = metric_names()
        .iter()
        .filter(|name| !is_asked(name))
        .collect();
    assert_eq!(rest, not_shown);
}
