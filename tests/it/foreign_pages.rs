//! A page of another site, open in the browser of an operator, cannot disconnect users, drain the
//! gateway or look at anybody through the admin listener: in a real browser, whatever a page may try.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;

use serde_json::{Value, json};

use crate::chat;
use crate::support::browser::Browser;
use crate::support::{Client, Gateway};

/// Whose page it is. The browser is told that the name stands for this machine.
pub const EVIL: &str = "evil.example";

/// What would do harm.
const ACTS: [&str; 2] = ["/users/alice/disconnect", "/drain"];
/// What tells of users.
const TELLS: [&str; 2] = ["/connections", "/disconnects"];

/// A site with an empty page, whatever is asked for. It ends with this process.
pub fn site() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("a bound address");
    thread::spawn(move || {
        const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\
                            Content-Length: 22\r\n\r\n<!doctype html><body/>";
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(PAGE.as_bytes());
        }
    });
    addr
}

struct Scene {
    gateway: Gateway,
    browser: Browser,
    alice: Client,
}

fn scene() -> Scene {
    let gateway = Gateway::start(&chat::settings().set("log.level", "info"));
    gateway.wait_ready();
    let alice = gateway.connect("alice");
    Scene {
        gateway,
        browser: Browser::start_with(&[(EVIL, Ipv4Addr::LOCALHOST.into())]),
        alice,
    }
}

impl Scene {
    /// What comes of a script, which sees the admin listener's origin as `admin`, and the paths.
    fn run(&self, script: &str) -> Value {
        let admin = format!("http://{}", self.gateway.admin.addr);
        let (acts, tells) = (json!(ACTS), json!(TELLS));
        let known = format!("const admin = '{admin}', acts = {acts}, tells = {tells};");
        self.browser.run(&(known + script))
    }

    fn assert_unharmed(&mut self) {
        assert_eq!(self.alice.request("ping", Value::Null)["type"], "pong");
        assert!(self.gateway.is_ready(), "it drains");
        let log = self.gateway.stderr();
        assert!(!log.contains("Told to drain"), "{log}");
        assert!(!log.contains("Disconnected by an operator"), "{log}");
    }

    /// The very request that others must not succeed with, made from the operator's own page, does.
    fn the_operator_may(&mut self) {
        for host in [self.gateway.admin.addr.to_string(), {
            let port = self.gateway.admin.addr.port();
            format!("localhost:{port}")
        }] {
            self.browser.open(&format!("http://{host}/"));
            let told = self.run(&format!("return {LOOK};"));
            assert_eq!(told, json!([200, 200]), "{host}");
            let done = self.run(&format!("return {ACT};"));
            assert_eq!(done, json!([200, 200]), "{host}");
        }
        self.alice.expect_close(4005);
        assert!(!self.gateway.is_ready(), "it drains");
    }
}

/// As the operator's own page acts, and looks: to the page's own origin.
const ACT: &str = "Promise.all(acts.map(path =>
    fetch(path, { method: 'POST', headers: { 'X-Gateway-Admin': '1' } }).then(r => r.status)))";
const LOOK: &str = "Promise.all(tells.map(path => fetch(path).then(r => r.status)))";

/// All that a page can have a browser send to another origin. Each comes to a text, and none of them
/// to what the listener answered: `opaque` is an answer that the page may not read.
const ATTEMPTS: &str = "
    const settled = [];
    const attempt = promise => settled.push(promise.then(
      response => response.type === 'opaque' ? 'opaque' : 'read: ' + response.status,
      error => error.name));
    const post = { method: 'POST', mode: 'no-cors' };
    const named = { 'X-Gateway-Admin': '1' };
    for (const path of acts) {
      const url = admin + path;
      attempt(fetch(url, post));
      attempt(fetch(url, { ...post, body: 'X-Gateway-Admin: 1' }));
      attempt(fetch(url, { ...post, headers: named }));
      attempt(fetch(url, { ...post, body: new URLSearchParams(named) }));
      attempt(fetch(url, { method: 'POST', headers: named }));
      attempt(fetch(url, { method: 'POST', headers: named, credentials: 'include' }));
      attempt(fetch(url, { method: 'PUT' }));
      attempt(fetch(url, { mode: 'no-cors' }));
      navigator.sendBeacon(url);
      navigator.sendBeacon(url, new Blob(['{}'], { type: 'text/plain' }));
      const ended = thing => settled.push(new Promise(done => {
        thing.onload = thing.onopen = () => done('opened');
        thing.onerror = () => done('failed');
      }));
      const image = new Image();
      ended(image);
      image.src = url;
      ended(new WebSocket(url.replace('http', 'ws')));
      ended(new EventSource(url));
      for (const enctype of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data']) {
        for (const method of ['post', 'get']) {
          for (const value of [undefined, '1']) {
            const frame = document.createElement('iframe');
            frame.name = 'frame' + settled.length;
            document.body.append(frame);
            const form = document.createElement('form');
            Object.assign(form, { method, enctype, action: url, target: frame.name });
            if (value) {
              const field = document.createElement('input');
              Object.assign(field, { name: 'X-Gateway-Admin', value });
              form.append(field);
            }
            document.body.append(form);
            settled.push(new Promise(done => frame.onload = () => done('loaded')));
            form.submit();
          }
        }
      }
    }
    for (const path of tells) attempt(fetch(admin + path));
    return Promise.all(settled);
";

#[test]
fn a_page_elsewhere_cannot_act_or_look_through_an_operators_browser() {
    let mut scene = scene();
    scene
        .browser
        .open(&format!("http://{EVIL}:{}/", site().port()));
    assert_eq!(scene.run("return location.hostname;"), EVIL);
    let outcomes = scene.run(ATTEMPTS);
    let outcomes: Vec<&str> = outcomes
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| it.as_str().expect("a text"))
        .collect();
    println!("{outcomes:?}");
    assert_eq!(outcomes.len(), 2 * (8 + 3 + 12) + 2);
    for outcome in &outcomes {
        assert!(
            ["opaque", "TypeError", "failed", "loaded"].contains(outcome),
            "{outcomes:?}"
        );
    }
    assert!(outcomes.contains(&"opaque"), "requests went out");
    // They reached the listener, which refused them.
    for path in ACTS {
        let refused = format!("path={path}, status=403");
        assert!(scene.gateway.stderr().contains(&refused), "{refused}");
    }
    scene.assert_unharmed();
    scene.the_operator_may();
}

/// The name of the page's own origin resolves to the listener by now: the browser lets the page send
/// what it likes, and read the answers.
#[test]
fn a_name_that_was_made_to_point_here_cannot_act_or_look() {
    let mut scene = scene();
    let port = scene.gateway.admin.addr.port();
    scene.browser.open(&format!("http://{EVIL}:{port}/"));
    assert_eq!(scene.run("return location.hostname;"), EVIL);
    assert_eq!(scene.run(&format!("return {ACT};")), json!([421, 421]));
    assert_eq!(scene.run(&format!("return {LOOK};")), json!([421, 421]));
    scene.assert_unharmed();
    scene.the_operator_may();
}

/// So that no click can be stolen.
#[test]
fn the_live_page_is_shown_in_no_frame() {
    let scene = scene();
    let own = format!("http://{EVIL}:{}/", site().port());
    scene.browser.open(&own);
    let frames = "
        return Promise.all([location.href, admin + '/'].map(src => {
          const frame = document.createElement('iframe');
          const loaded = new Promise(done => frame.onload = () => done());
          frame.src = src;
          document.body.append(frame);
          return loaded;
        }));
    ";
    scene.run(frames);
    let shown = [0, 1].map(|index| scene.browser.run_in_frame(index, "return location.href;"));
    assert_eq!(shown, [json!(own), json!("chrome-error://chromewebdata/")]);
}
