//! The addresses of a service, as `<prefix>/<name>/` holds them: one for each key below it, read once
//! and watched from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::str;
use std::sync::Arc;

use log::{info, warn};
use serde::Deserialize;

use super::client::proto::event::EventType;
use super::client::proto::{Event, KeyValue};
use super::client::{Client, Failure};
use crate::config::{is_host_and_port, is_service};
use crate::services::Upstream;

/// Follows one service.
pub(super) struct Resolver {
    /// With a slash at its end: `/services/im` is not `/services/im-archive`.
    prefix: String,
    upstream: Arc<Upstream>,
    /// Key to address.
    known: BTreeMap<Vec<u8>, String>,
    in_use: BTreeSet<String>,
}

impl Resolver {
    pub fn new(prefix: String, upstream: Arc<Upstream>) -> Self {
        Self {
            prefix,
            upstream,
            known: BTreeMap::new(),
            in_use: BTreeSet::new(),
        }
    }

    /// Reads what is there, and watches from the revision that was read. Each session does so anew,
    /// instead of going on at the last revision seen: an etcd that lost its data counts from the
    /// beginning, and would keep silent until it gets there.
    pub async fn follow(&mut self, client: &Client) -> Result<Infallible, Failure> {
        let (entries, revision) = client.read(&self.prefix).await?;
        self.replace(&entries);
        let mut watch = client.watch(&self.prefix, revision + 1).await?;
        loop {
            let told = watch.message().await?.ok_or(Failure::WatchClosed)?;
            if told.canceled {
                return Err(Failure::WatchEnded(told.cancel_reason));
            }
            self.change(told.events);
        }
    }

    fn replace(&mut self, entries: &[KeyValue]) {
        let keys: BTreeSet<&[u8]> = entries.iter().map(|entry| entry.key.as_slice()).collect();
        self.known.retain(|key, _| keys.contains(key.as_slice()));
        entries.iter().for_each(|entry| self.put(entry));
        self.apply();
    }

    fn change(&mut self, events: Vec<Event>) {
        // The first answer, which says that the watch is there, has none.
        if events.is_empty() {
            return;
        }
        for event in events {
            let (kind, entry) = (event.r#type(), event.kv.unwrap_or_default());
            match kind {
                EventType::Put => self.put(&entry),
                EventType::Delete => _ = self.known.remove(&entry.key),
            }
        }
        self.apply();
    }

    /// A value that is no address leaves the key the one that it had.
    fn put(&mut self, entry: &KeyValue) {
        match address(&entry.value) {
            Ok(address) => _ = self.known.insert(entry.key.clone(), address),
            Err(reason) => {
                let key = String::from_utf8_lossy(&entry.key);
                warn!("Service address not taken from etcd: key={key:?}, error={reason}");
            }
        }
    }

    /// Services that are all gone from etcd at once rather have etcd's memory lost than themselves:
    /// the addresses in use stay.
    fn apply(&mut self) {
        let addresses: BTreeSet<String> = self.known.values().cloned().collect();
        if addresses.is_empty() {
            let (prefix, in_use) = (&self.prefix, &self.in_use);
            return warn!("No service address in etcd: prefix={prefix}, in_use={in_use:?}");
        }
        if addresses == self.in_use {
            return;
        }
        let uris: Vec<String> = addresses.iter().cloned().collect();
        let prefix = &self.prefix;
        match self.upstream.set_addresses(&uris) {
            Ok(()) => {
                info!("Service addresses from etcd: prefix={prefix}, addresses={uris:?}");
                self.in_use = addresses;
            }
            Err(error) => warn!("Service addresses not taken: prefix={prefix}, error={error}"),
        }
    }
}

/// What a service wrote: the address alone, `http[s]://host:port` or `host:port`, or a JSON object that
/// has it as `address`; or as `Addr`, which is how etcd's own library for Go writes endpoints. The
/// error does not repeat it: it may hold a password.
pub(super) fn address(value: &[u8]) -> Result<String, &'static str> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(alias = "Addr")]
        address: String,
    }
    let text = str::from_utf8(value).map_err(|_| "not UTF-8")?.trim();
    let address = match text.starts_with('{') {
        true => serde_json::from_str::<Entry>(text).map(|entry| entry.address),
        false => Ok(text.to_owned()),
    };
    let address = address.map_err(|_| "not JSON with an address")?;
    if is_service(&address) {
        return Ok(address);
    }
    let reason = "not of the form http://host:port, https://host:port or host:port";
    is_host_and_port(&address)
        .then(|| format!("http://{address}"))
        .ok_or(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_plain_or_in_json() {
        for value in [
            "http://10.0.0.1:50051",
            "10.0.0.1:50051",
            " 10.0.0.1:50051\n",
            r#"{"address": "10.0.0.1:50051"}"#,
            r#"{"address": "http://10.0.0.1:50051", "weight": 7}"#,
            r#"{"Op": 0, "Addr": "10.0.0.1:50051", "Metadata": null}"#,
        ] {
            assert_eq!(
                address(value.as_bytes()),
                Ok("http://10.0.0.1:50051".into()),
                "{value}"
            );
        }
        assert_eq!(address(b"[::1]:1"), Ok("http://[::1]:1".into()));
    }

    #[test]
    fn whatever_else_is_refused_and_not_repeated() {
        for value in [
            "",
            "{",
            "{}",
            "[]",
            "null",
            r#"{"address": 7}"#,
            r#"{"address": ""}"#,
            r#"{"address": "ftp://h:1"}"#,
            r#"{"address": "http://u:hush@h:1"}"#,
            "u:hush@h:1",
            "ftp://h:1",
            "https://u:hush@h:1",
            "etcd:///im",
            "http://h:1/path",
            "h:1 h:2",
            "h:70000",
        ] {
            let reason = address(value.as_bytes()).expect_err(value);
            assert!(!reason.contains("hush"));
        }
        assert!(address(&[0xff]).is_err());
    }
}
