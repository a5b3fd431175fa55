//! The chat page at `/`, in embedded mode: one HTML page with nothing from elsewhere in it, and an
//! example of a client that keeps the protocol (`client.js`, `messages.js`). It *rehearses*: it has the
//! gateway do to its own connection what production will one day, with `POST /rehearse?what=…`.
//!
//! An edge: [`rehearsals`] knows the page's connections, and what is to be done to which;
//! [`rehearsed`] has decorators, of the [`ConnectionObserver`] and of [`Services`], through which it is
//! done.

mod rehearsals;
mod rehearsed;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use rehearsals::Rehearsals;
use rehearsed::{Followed, Rehearsed};

use crate::client::ConnectionObserver;
use crate::config::{Config, Embedded, Mode};
use crate::http::{HttpResponse, Page};
use crate::services::Services;

/// The chat page of one gateway.
pub struct ChatPage {
    html: Arc<str>,
    rehearsals: Arc<Rehearsals>,
}

impl ChatPage {
    /// `None`: the configuration wants none.
    pub fn new(config: &Config) -> Option<Self> {
        let is_wanted = config.backend.mode == Mode::Embedded && config.embedded.page;
        is_wanted.then(|| Self {
            html: html(config).into(),
            rehearsals: Arc::default(),
        })
    }

    /// What the client listener is to show and do.
    pub fn pages(&self) -> Vec<Page> {
        let (html, rehearsals) = (Arc::clone(&self.html), Arc::clone(&self.rehearsals));
        vec![
            Page::new("/", move || HttpResponse::html(&*html)),
            Page::action("/rehearse", move |head| rehearsals.respond(head)),
        ]
    }

    /// `services`, which do to a connection what is rehearsed.
    pub fn rehearsed(&self, services: Arc<dyn Services>) -> Arc<dyn Services> {
        let rehearsals = Arc::clone(&self.rehearsals);
        Arc::new(Rehearsed {
            services,
            rehearsals,
        })
    }

    /// `observer`, with the connections that come and go known here.
    pub fn followed(&self, observer: Arc<dyn ConnectionObserver>) -> Arc<dyn ConnectionObserver> {
        let rehearsals = Arc::clone(&self.rehearsals);
        Arc::new(Followed {
            observer,
            rehearsals,
        })
    }
}

/// The page, with where the WebSocket is, and with the sample users: everybody knows their tokens, and
/// they are for a loopback address only. Of other tokens and of their groups it says nothing.
fn html(config: &Config) -> String {
    let samples = Embedded::default().tokens;
    let tokens = &config.embedded.tokens;
    let users = tokens
        .iter()
        .filter(|(token, _)| samples.contains_key(*token));
    let users: BTreeMap<&str, &str> = users.map(|(token, it)| (it.user(), &**token)).collect();
    let mut groups = config.embedded.groups.clone();
    groups.retain(|_, members| members.iter().any(|member| users.contains_key(&**member)));
    for members in groups.values_mut() {
        members.retain(|member| users.contains_key(&**member));
    }
    let setup = json!({ "path": config.listen.path, "users": users, "groups": groups });
    // So that no name ends the element that it stands in.
    let setup = setup.to_string().replace('<', "\\u003c");
    let script = concat!(
        include_str!("client.js"),
        include_str!("messages.js"),
        include_str!("view.js"),
        include_str!("rehearse.js"),
    );
    include_str!("page.html")
        .replace("__STYLE__", include_str!("page.css"))
        .replace("__SCRIPT__", script)
        .replace("__SETUP__", &setup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::parse;

    #[test]
    fn the_page_names_sample_users_and_their_groups_alone() {
        let text = "[embedded.tokens]\nalice-token = \"alice\"\nsecret = \"dave\"\n\
                    [embedded.groups]\nteam = [\"alice\", \"dave\"]\nhidden = [\"dave\"]\n\
                    \"</script>\" = [\"alice\"]\n";
        let html = html(&parse("test", text, [], None).expect("a configuration"));
        let setup = r#"{"groups":{"\u003c/script>":["alice"],"team":["alice"]},"path":"/ws","users":{"alice":"alice-token"}}"#;
        assert!(html.contains(setup));
        for hidden in ["secret", "dave", "hidden\":"] {
            assert!(!setup.contains(hidden));
        }
    }

    #[test]
    fn each_rehearsal_is_in_the_menu_of_the_page() {
        let page = include_str!("rehearse.js");
        for what in rehearsals::names() {
            assert!(page.contains(&format!("what: '{what}'")), "{what}");
        }
    }
}
