//! A configuration file for a test: defaults that make waits short, then what the test sets.

use std::env;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{certificates, sketch, stream};

/// The tables of a `gateway.toml`.
#[derive(Clone)]
pub struct Settings {
    table: Table,
    /// Whether they are for the sketch.
    sketch: bool,
}

impl Settings {
    /// Embedded, port 0, no sample user: what is common to all tests.
    pub fn new() -> Self {
        let empty = Self {
            table: Table::new(),
            sketch: sketch::is_drilled(),
        };
        // The suite once more, with TLS on the client listener.
        let with_tls = env::var_os("IT_TLS").is_some();
        let settings = if with_tls { empty.tls() } else { empty };
        settings
            .set("listen.addr", "127.0.0.1:0")
            .set("admin.addr", "127.0.0.1:0")
            .set("shutdown.drain", "5s")
            .set("presence.offline_grace", "300ms")
            .set("embedded.database", ":memory:")
            .set("log.level", "debug")
            .set("embedded.tokens", Table::new())
            .set("embedded.groups", Table::new())
    }

    /// What a file says, and nothing more.
    pub fn from_text(text: &str) -> Self {
        Self {
            table: text.parse().expect("a TOML file"),
            sketch: false,
        }
    }

    /// For the sketch, which has no TLS.
    pub fn for_sketch(mut self) -> Self {
        self.table.remove("tls");
        self.sketch = true;
        self
    }

    pub fn are_for_sketch(&self) -> bool {
        self.sketch
    }

    /// Whether a gateway with these has no services inside it.
    pub fn are_remote(&self) -> bool {
        let backend = self.table.get("backend");
        let mode = backend.and_then(|backend| backend.get("mode")?.as_str());
        mode == Some("remote")
    }

    /// Sets the key written `table.key`, or a whole table.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.put(key, value);
        self
    }

    /// As [`set`](Self::set), in place.
    pub fn put(&mut self, key: &str, value: impl Into<Value>) {
        match key.split_once('.') {
            None => _ = self.table.insert(key.into(), value.into()),
            Some((name, key)) => _ = self.inner(name).insert(key.into(), value.into()),
        }
    }

    /// TLS, with the certificate that the suite's clients trust.
    pub fn tls(self) -> Self {
        let identity = stream::identity();
        self.set("tls.cert", certificates::path(&identity.cert))
            .set("tls.key", certificates::path(&identity.key))
    }

    /// Users who may connect, each with the token `<user>-token`.
    pub fn users<'a>(mut self, users: impl IntoIterator<Item = &'a str>) -> Self {
        for user in users {
            self.put_token(&token_of(user), user);
        }
        self
    }

    /// A token: `"user"`, or a table with `user` and `expires_in`.
    pub fn put_token(&mut self, token: &str, user: impl Into<Value>) {
        let tokens = self
            .inner("embedded")
            .get_mut("tokens")
            .and_then(Value::as_table_mut);
        tokens.expect("a table").insert(token.into(), user.into());
    }

    pub fn remove_token(&mut self, token: &str) {
        let tokens = self
            .inner("embedded")
            .get_mut("tokens")
            .and_then(Value::as_table_mut);
        tokens
            .expect("a table")
            .remove(token)
            .expect("a token that is there");
    }

    pub fn group<'a>(mut self, group: &str, members: impl IntoIterator<Item = &'a str>) -> Self {
        self.put_group(group, members);
        self
    }

    pub fn put_group<'a>(&mut self, group: &str, members: impl IntoIterator<Item = &'a str>) {
        let members = members.into_iter().map(Value::from).collect::<Vec<_>>();
        let groups = self
            .inner("embedded")
            .get_mut("groups")
            .and_then(Value::as_table_mut);
        groups
            .expect("a table")
            .insert(group.into(), members.into());
    }

    /// Writes the file into `directory`.
    pub fn write(&self, directory: &Path) -> PathBuf {
        let file = directory.join("gateway.toml");
        std::fs::write(&file, self.table.to_string()).expect("a configuration file");
        file
    }

    fn inner(&mut self, name: &str) -> &mut Table {
        let inner = self
            .table
            .entry(name)
            .or_insert_with(|| Value::Table(Table::new()));
        inner.as_table_mut().expect("a table")
    }
}

/// The token of a user whom [`Settings::users`] let in.
pub fn token_of(user: &str) -> String {
    format!("{user}-token")
}
