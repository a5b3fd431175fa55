//! What must hold of all that comes from outside, however it was put together: one function for each
//! parser of it. The tests below call them with what proptest makes of examples, the targets in
//! `tests/fuzz/` with what a fuzzer finds out; either may begin with a few bytes that say how, such as
//! in what pieces the rest comes.

use std::collections::BTreeMap;

#[cfg(feature = "check")]
use crate::check;
use crate::config::{Endpoint, load};
use crate::http::{self, Head, parse_head};

pub use crate::broker::amqp::fuzzing::amqp_frames;
pub use crate::broker::fuzzing::delivery;
pub use crate::client::fuzzing::{frame, frames, request, valid_frames, x_forwarded_for};

/// Every property, by its name.
pub const PROPERTIES: [(&str, fn(&[u8])); 10] = [
    ("amqp_frames", amqp_frames),
    ("broker_url", broker_url),
    ("configuration", configuration),
    ("delivery", delivery),
    ("frame", frame),
    ("frames", frames),
    ("request", request),
    ("request_head", request_head),
    ("valid_frames", valid_frames),
    ("x_forwarded_for", x_forwarded_for),
];

/// Bytes that say how an input is put together; at their end come zeros.
pub(crate) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    /// So many, or what is left.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `bytes` in pieces of one byte more than these `sizes`, in turns; of one where there are none.
pub(crate) fn pieces<'a>(bytes: &'a [u8], sizes: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    let sizes: Vec<_> = sizes.iter().map(|&size| usize::from(size) + 1).collect();
    let mut rest = Input(bytes);
    let mut turn = 0;
    std::iter::from_fn(move || {
        turn += 1;
        let size = sizes.get(turn % sizes.len().max(1)).unwrap_or(&1);
        (!rest.is_empty()).then(|| rest.take(*size))
    })
}

/// What there is of a head, but for what may follow it.
fn told(head: &http::Result<Option<Head<'_>>>) -> Option<String> {
    match head {
        Ok(None) => None,
        Ok(Some(head)) => {
            let Head {
                method,
                path,
                query,
                is_http_1_0,
                length,
                ..
            } = head;
            let upgrade = head.lists("Upgrade", "websocket").ok();
            let host = head.header("Host").ok();
            let line = format!("{method:?} {path:?} {query:?} {is_http_1_0}");
            Some(format!("{line} {length} {upgrade:?} {host:?}"))
        }
        Err(_) => Some("refused".into()),
    }
}

/// Byte by byte, there is nothing to be told, until there is; what has been told then stays so,
/// whatever comes behind.
pub fn request_head(input: &[u8]) {
    let whole = told(&parse_head(input));
    let step = (input.len() / 500).max(1);
    let mut first = None;
    for length in (0..input.len()).step_by(step) {
        let head = parse_head(&input[..length]);
        if let (None, Ok(Some(head))) = (&first, &head) {
            assert!(
                head.length <= length && head.length + step > length,
                "too late"
            );
            // What it is asked for panics for none either.
            let _ = (head.websocket_key(), head.bearer_token());
        }
        if let Ok(Some(head)) = &head {
            assert_eq!(head.is_followed, head.length < length);
        }
        match (&first, told(&head)) {
            (Some(first), told) => assert_eq!(told.as_ref(), Some(first), "at {length}"),
            (None, told) => first = told,
        }
    }
    if first.is_some() {
        assert_eq!(whole, first);
    }
    assert!(whole.is_some() || input.len() <= http::MAX_HEAD, "for ever");
}

/// A configuration is refused by one line that begins with who is at fault; or what is shown of it is
/// one as well, and means the same. Lines behind the first NUL are variables of the environment.
pub fn configuration(input: &[u8]) {
    let Ok(input) = str::from_utf8(input) else {
        return;
    };
    let (text, variables) = input.split_once('\0').unwrap_or((input, ""));
    let variables: BTreeMap<_, _> = (variables.lines())
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let names: Vec<_> = variables.keys().cloned().collect();
    match load::parse("gateway.toml", text, variables, None) {
        #[cfg(not(feature = "check"))]
        Ok(_) => {}
        #[cfg(feature = "check")]
        Ok(mut config) => {
            let shown = check::display(&config);
            let again = load::parse("shown", &shown, [], None);
            let mut again = again.unwrap_or_else(|error| panic!("{error}\n{shown}"));
            // Hidden, they have other names, and so another order.
            config.embedded.tokens.clear();
            again.embedded.tokens.clear();
            assert_eq!(check::display(&again), check::display(&config));
        }
        Err(error) => {
            let (origin, reason) = error.split_once(": ").expect("who, and why");
            let hidden = |name: &String| name.starts_with("GATEWAY_EMBEDDED__TOKENS__");
            let is_hidden = origin.ends_with("***") && names.iter().any(hidden);
            let is_known = origin == "gateway.toml" || names.iter().any(|name| name == origin);
            assert!(is_known || is_hidden, "{error}");
            assert!(!reason.is_empty());
        }
    }
}

/// A URL is refused without repeating it; or it says where the broker is, and says the same when it is
/// written anew.
pub fn broker_url(input: &[u8]) {
    const PASSWORD: &str = "hush-4711";
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    if let Err(error) = Endpoint::parse(&format!("amqp://u:{PASSWORD}{text}")) {
        assert!(!error.contains(PASSWORD), "{error}");
    }
    let Ok(endpoint) = Endpoint::parse(text) else {
        return;
    };
    let [user, password, vhost] = [&endpoint.user, &endpoint.password, &endpoint.vhost].map(encode);
    let login = format!("{user}:{password}");
    let again = Endpoint::parse(&format!("amqp://{login}@{}/{vhost}", endpoint.address()));
    let again = again.unwrap_or_else(|error| panic!("{error}: {text:?}"));
    let parts = |endpoint: &Endpoint| {
        let Endpoint {
            user,
            password,
            vhost,
            ..
        } = endpoint.clone();
        (endpoint.address(), user, password, vhost)
    };
    assert_eq!(parts(&again), parts(&endpoint));
}

fn encode(text: &String) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::{fs, path};

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// A change of an example.
    #[derive(Debug, Clone)]
    enum Change {
        Set(Index, u8),
        Insert(Index, Vec<u8>),
        Cut(Index, u8),
        Repeat(Index, u8),
        End(Index),
    }

    fn change() -> impl Strategy<Value = Change> {
        let index = any::<Index>;
        // What means something to one parser or the other, and what is no UTF-8.
        let telling =
            proptest::sample::select(b"\0\x01\r\n ,:;/%@[]{}\"\\=#.*\x7F\x80\xC3\xFF".to_vec());
        let byte = || prop_oneof![any::<u8>(), telling.clone()];
        prop_oneof![
            4 => (index(), byte()).prop_map(|(at, byte)| Change::Set(at, byte)),
            2 => (index(), vec(byte(), 1..20)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
            2 => (index(), 1..20_u8).prop_map(|(at, count)| Change::Cut(at, count)),
            1 => (index(), 1..40_u8).prop_map(|(at, count)| Change::Repeat(at, count)),
            1 => index().prop_map(Change::End),
        ]
    }

    fn changed(example: &[u8], changes: &[Change]) -> Vec<u8> {
        let mut bytes = example.to_vec();
        for change in changes {
            let size = bytes.len();
            let range = |at: &Index, count: u8| {
                let start = at.index(size + 1);
                start..size.min(start + usize::from(count))
            };
            match change {
                Change::Set(at, byte) if size > 0 => bytes[at.index(size)] = *byte,
                Change::Set(..) => {}
                Change::Insert(at, more) => {
                    bytes.splice(range(at, 0), more.iter().copied());
                }
                Change::Cut(at, count) => drop(bytes.drain(range(at, *count))),
                Change::Repeat(at, count) => {
                    let part = bytes[range(at, *count)].to_vec();
                    bytes.splice(range(at, 0), part.repeat(3));
                }
                Change::End(at) => bytes.truncate(at.index(size + 1)),
            }
        }
        bytes
    }

    /// What a fuzzer begins with: `tests/fuzz/examples/<property>/`.
    fn examples(property: &str) -> Vec<Vec<u8>> {
        let examples = path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/examples");
        let files = fs::read_dir(examples.join(property)).expect("its examples");
        let files = files.map(|file| fs::read(file.expect("an example").path()));
        files.map(|bytes| bytes.expect("an example")).collect()
    }

    /// Of examples as they are, of changed ones, and of any bytes.
    fn holds(name: &str) {
        let property = PROPERTIES.iter().find(|(other, _)| *other == name);
        let (_, property) = property.expect("a property");
        let examples = examples(name);
        examples.iter().for_each(|example| property(example));
        let example = proptest::sample::select(examples);
        let changed = (example, vec(change(), 1..8))
            .prop_map(|(example, changes)| changed(&example, &changes));
        let inputs = prop_oneof![4 => changed, 1 => vec(any::<u8>(), 0..300)];
        // Nothing is written down: what failed is to become an example.
        let config = ProptestConfig {
            cases: 1_000,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        proptest!(config, |(input in inputs)| {
            let outcome = catch_unwind(|| property(&input));
            let input = String::from_utf8_lossy(&input);
            prop_assert!(outcome.is_ok(), "as an example: {input:?}");
        });
    }

    macro_rules! holds {
        ($($name:ident)+) => {
            $(
                #[test]
                fn $name() {
                    holds(stringify!($name));
                }
            )+
            const TESTED: &[&str] = &[$(stringify!($name)),+];
        };
    }

    holds! {
        amqp_frames broker_url configuration delivery frame frames request request_head valid_frames
        x_forwarded_for
    }

    #[test]
    fn each_property_is_tested_and_has_a_fuzz_target() {
        let names = PROPERTIES.map(|(name, _)| name);
        assert_eq!(TESTED, names);
        let targets = path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/fuzz_targets");
        for name in names {
            let target = fs::read_to_string(targets.join(format!("{name}.rs")));
            assert!(
                target
                    .expect("a target")
                    .contains(&format!("fuzzing::{name}("))
            );
        }
    }
}
