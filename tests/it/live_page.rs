//! The live page of the admin listener, in a real browser.

use serde_json::json;

use crate::chat;
use crate::support::browser::{Browser, ENTER, TAB};
use crate::support::{Client, Gateway};

/// A user whose id would be markup.
const MARKUP: &str = "<img src=x onerror=document.title='owned'>";

#[test]
fn the_live_page_shows_what_goes_on_and_acts() {
    let settings = chat::settings()
        .users([MARKUP])
        .set("admin.token", "s3cret");
    let gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let browser = Browser::start();
    browser.open(&format!("http://{}/", gateway.admin.addr));
    // It asks for the token, and takes it by keyboard alone.
    browser.wait_for("!document.getElementById('login').hidden");
    browser.wait_for("document.getElementById('all').hidden");
    browser.run("document.body.focus();");
    browser.type_keys(TAB);
    browser.type_keys(&format!("s3cret{ENTER}"));
    browser.wait_for("document.getElementById('ready').textContent === 'ready'");
    browser.wait_for("!document.getElementById('all').hidden");

    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    let _markup = gateway.connect(MARKUP);
    browser.wait_for("document.querySelectorAll('#connections tbody tr').length === 3");
    browser.wait_for("document.querySelector('#plot-connections output').textContent === 'open 3'");
    for _ in 0..20 {
        let id = alice.send_message("bob", "hello");
        bob.expect_message(&id);
    }
    bob.expect_error("sing", json!({}), "UNKNOWN_MESSAGE_TYPE");
    // What has happened since the last look is drawn.
    let peak = |id: &str, at_least: f64| {
        browser.wait_for(&format!(
            "Math.max(...PLOTS.find(plot => plot.id === '{id}').points.flat()) >= {at_least}"
        ));
        browser.wait_for(&format!(
            "document.querySelector('#plot-{id} path').getAttribute('d')"
        ));
    };
    peak("messages", 1.0);
    peak("errors", 0.1);
    peak("latency", 0.000_001);
    peak("queue", 1.0);
    let shown = browser.run("return document.getElementById('connections').textContent;");
    assert!(shown.as_str().expect("a text").contains(MARKUP), "{shown}");
    assert_eq!(browser.run("return document.title;"), "ws-gateway");

    // The filter, and the button by keyboard.
    browser.run("document.getElementById('filter').focus();");
    browser.type_keys("alice");
    browser.wait_for("document.querySelectorAll('#connections tbody tr').length === 1");
    for _ in 0..2 {
        browser.type_keys(TAB);
    }
    browser.wait_for("document.activeElement.textContent === 'Disconnect'");
    browser.type_keys(ENTER);
    alice.expect_close(4005);
    browser.wait_for("document.getElementById('ended').textContent.includes('disconnected')");
    assert!(Client::try_connect(gateway.addr, &gateway.path, "wrong").is_err());
    browser.wait_for("document.getElementById('refused').textContent.includes('unauthenticated')");
    gateway.admin.with_token("s3cret").post("/drain");
    browser.wait_for("document.getElementById('ready').textContent === 'not ready'");
    browser.wait_for("document.getElementById('checks').textContent.includes('told to drain')");

    // On a phone nothing but the tables is wider than the screen.
    browser.resize(360, 640);
    browser.wait_for("document.documentElement.scrollWidth <= innerWidth");
    // By day and by night.
    for scheme in ["light", "dark"] {
        browser.set_scheme(scheme);
        assert_legible(&browser, scheme, 20);
    }
    // Nothing came from elsewhere, and nothing but a heading is without a name.
    let elsewhere = "performance.getEntriesByType('resource').filter(entry => \
                     !entry.name.startsWith(location.origin) && !entry.name.startsWith('data:'))";
    assert_eq!(browser.run(&format!("return {elsewhere}.length;")), 0);
    let nameless = "[...document.querySelectorAll('button, input, svg')].filter(it => \
                    !(it.labels?.length || it.ariaLabel || it.textContent.trim()))";
    assert_eq!(browser.run(&format!("return {nameless}.length;")), 0);
}

/// Each text can be told from what is behind it (WCAG 2.2, 1.4.3), of which there are more than
/// `at_least`.
pub fn assert_legible(browser: &Browser, what: &str, at_least: usize) {
    let contrasts = browser.run(CONTRASTS);
    let contrasts = contrasts.as_array().expect("a list");
    assert!(contrasts.len() > at_least, "{contrasts:?}");
    for contrast in contrasts {
        let ratio = contrast["ratio"].as_f64().expect("a number");
        assert!(ratio >= 4.5, "{what}: {contrast}");
    }
}

/// The contrast between each text and what is behind it.
const CONTRASTS: &str = "
    const luminance = colour => {
      const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(c => c / 255)
        .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
      return .2126 * r + .7152 * g + .0722 * b;
    };
    const behind = element => {
      for (let it = element; it; it = it.parentElement) {
        const colour = getComputedStyle(it).backgroundColor;
        if (!/, 0\\)$/.test(colour)) return colour;
      }
      return 'rgb(255, 255, 255)';
    };
    return [...document.querySelectorAll('body *')]
      .filter(it => it.checkVisibility() && [...it.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
      .map(it => {
        const [a, b] = [getComputedStyle(it).color, behind(it)].map(luminance);
        return { text: it.textContent.slice(0, 40), ratio: (Math.max(a, b) + .05) / (Math.min(a, b) + .05) };
      });
";
