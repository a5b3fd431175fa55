//! A headless Chromium, driven over WebDriver (Debian packages `chromium` and `chromium-driver`).

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::process::Process;
use super::raw::Raw;
use super::{wait_until, watchdog};

/// A tab of a browser.
pub struct Tab(String);

pub struct Browser {
    _driver: Process,
    addr: SocketAddr,
    /// The path of the session.
    session: String,
}

impl Browser {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// One for which these names stand for these addresses, whatever a name server says.
    pub fn start_with(hosts: &[(&str, IpAddr)]) -> Self {
        let directory = watchdog::directory("browser");
        let mut command = Command::new("chromedriver");
        // What it leaves behind goes with the test's directory.
        command.arg("--port=0").env("TMPDIR", &directory);
        let mut driver = Process::start("chromedriver", &mut command);
        let port = driver.stdout_line("ChromeDriver was started successfully on port ");
        let port: u16 = port.trim_end_matches('.').parse().expect("a port");
        let mut browser = Self {
            _driver: driver,
            addr: SocketAddr::from(([127, 0, 0, 1], port)),
            session: "/session".into(),
        };
        let map = |(name, address): &(&str, _)| format!("MAP {name} {address}");
        let rules: Vec<String> = hosts.iter().map(map).collect();
        let options = json!({ "args": [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--disable-background-networking", "--disable-dev-shm-usage",
            format!("--user-data-dir={}", directory.join("profile").display()),
            format!("--host-resolver-rules={}", rules.join(",")),
        ] });
        // The suite's gateways have certificates of its own, where they have any.
        let capabilities = json!({ "alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:chromeOptions": options,
        } });
        let created = browser.command("POST", "", &json!({ "capabilities": capabilities }));
        let id = created["sessionId"].as_str().expect("a session");
        browser.session = format!("/session/{id}");
        browser
    }

    pub fn open(&self, url: &str) {
        self.command("POST", "/url", &json!({ "url": url }));
    }

    pub fn resize(&self, width: u32, height: u32) {
        self.command(
            "POST",
            "/window/rect",
            &json!({ "width": width, "height": height }),
        );
    }

    /// The tab that everything else is about.
    pub fn tab(&self) -> Tab {
        Tab(self.text("GET", "/window", &json!({})))
    }

    /// Another tab, which everything else is about from now on.
    pub fn new_tab(&self) -> Tab {
        let created = self.command("POST", "/window/new", &json!({ "type": "tab" }));
        let tab = Tab(created["handle"].as_str().expect("a handle").into());
        self.switch_to(&tab);
        tab
    }

    pub fn switch_to(&self, tab: &Tab) {
        self.command("POST", "/window", &json!({ "handle": tab.0 }));
    }

    /// Has the page of this tab so many pixels, whatever windows can be.
    pub fn set_viewport(&self, width: u32, height: u32) {
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            &json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false }),
        );
    }

    /// What the page prefers: "light" or "dark".
    pub fn set_scheme(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools(
            "Emulation.setEmulatedMedia",
            &json!({ "features": features }),
        );
    }

    /// What the page looks like: a PNG.
    pub fn picture(&self) -> Vec<u8> {
        let text = self.text("GET", "/screenshot", &json!({}));
        BASE64.decode(text).expect("base64")
    }

    /// The names by which a screen reader knows the elements of a selector that are shown, with what
    /// they are in HTML.
    pub fn accessible_names(&self, selector: &str) -> Vec<(String, String)> {
        let query = json!({ "using": "css selector", "value": selector });
        let found = self.command("POST", "/elements", &query);
        let elements = found.as_array().expect("a list").iter();
        let elements = elements.map(|element| {
            let (_, id) = element
                .as_object()
                .expect("an element")
                .iter()
                .next()
                .expect("its id");
            let id = id.as_str().expect("a text").to_owned();
            let argument = json!([element]);
            (id, argument)
        });
        let shown = elements.filter_map(|(id, argument)| {
            let script = "return arguments[0].checkVisibility() ? arguments[0].outerHTML : null;";
            let body = json!({ "script": script, "args": argument });
            let html = self.command("POST", "/execute/sync", &body);
            let name = || self.text("GET", &format!("/element/{id}/computedlabel"), &json!({}));
            html.as_str().map(|html| (html.to_owned(), name()))
        });
        shown.collect()
    }

    /// What a script returns, or what a promise that it returns comes to.
    pub fn run(&self, script: &str) -> Value {
        let body = json!({ "script": script, "args": [] });
        self.command("POST", "/execute/sync", &body)
    }

    /// As [`Browser::run`], in this of the page's frames.
    pub fn run_in_frame(&self, index: usize, script: &str) -> Value {
        self.command("POST", "/frame", &json!({ "id": index }));
        let returned = self.run(script);
        self.command("POST", "/frame", &json!({ "id": null }));
        returned
    }

    /// Waits until the expression is true.
    pub fn wait_for(&self, expression: &str) {
        let script = format!("return Boolean({expression});");
        wait_until(format!("on the page: {expression}"), || {
            self.run(&script) == true
        });
    }

    /// Types into what has the focus.
    pub fn type_keys(&self, keys: &str) {
        let actions = keys.chars().flat_map(|key| {
            let action = |kind: &str| json!({ "type": kind, "value": key.to_string() });
            [action("keyDown"), action("keyUp")]
        });
        let actions: Vec<Value> = actions.collect();
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": actions });
        self.command("POST", "/actions", &json!({ "actions": [keyboard] }));
    }

    /// A command of the DevTools protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) {
        let body = json!({ "cmd": command, "params": parameters });
        self.command("POST", "/goog/cdp/execute", &body);
    }

    fn text(&self, method: &str, path: &str, body: &Value) -> String {
        let value = self.command(method, path, body);
        value.as_str().expect("a text").into()
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let (session, body) = (&self.session, body.to_string());
        let length = body.len();
        let mut raw = Raw::connect(self.addr);
        raw.send(format!(
            "{method} {session}{path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}",
            self.addr
        ));
        let response = raw.response();
        assert_eq!(response.status, 200, "{method} {path}: {response:?}");
        response.json()["value"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium goes with its session; without it, it would outlive the driver.
        if self.session != "/session" && !std::thread::panicking() {
            self.command("DELETE", "", &json!({}));
        }
    }
}

/// The Tab key, for [`Browser::type_keys`].
pub const TAB: &str = "\u{E004}";
/// The Enter key.
pub const ENTER: &str = "\u{E007}";
/// The Escape key.
pub const ESCAPE: &str = "\u{E00C}";
