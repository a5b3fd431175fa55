//! `ws-gateway conform`: the clients that the chapter shows keep every rule; with a mistake planted, a
//! client breaks the rule that the mistake is about, and no other.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::example::Example;
use crate::support::example::Language::{self, JavaScript, Python};
use crate::support::gateway::{binary, run};
use crate::support::process::Process;
use crate::support::{chapter, watchdog};

/// The whole script takes less than a minute; a client that does not come back takes longer.
const DEADLINE: Duration = Duration::from_secs(180);
/// Clients that are tried at a time.
const AT_A_TIME: usize = 20;

/// What the kit printed of a rule.
#[derive(Debug, Default)]
struct Verdicts {
    kept: BTreeSet<String>,
    broken: BTreeSet<String>,
    not_seen: BTreeSet<String>,
    code: i32,
    text: String,
}

/// Tries a client, which is started again whenever the kit asks for it.
fn tried(language: Language, code: &str) -> Verdicts {
    let mut command = binary();
    command.args(["conform", "--listen", "127.0.0.1:0"]);
    command.current_dir(watchdog::directory("conform"));
    let mut kit = Process::start("the kit", &mut command);
    let url = kit.stdout_line("listening ");
    let start = || {
        Example::run(
            language,
            code,
            &["--echo", &url, "one-token", "another-token"],
        )
    };
    let began = Instant::now();
    let (mut client, mut starts) = (start(), 0);
    while kit.is_running() {
        if began.elapsed() > DEADLINE {
            kit.kill();
            break;
        }
        let lines = kit.stdout_lines(0);
        let asked = lines
            .iter()
            .filter(|line| *line == "start the client again");
        let asked = asked.count();
        if asked > starts {
            starts = asked;
            client.process.kill();
            client = start();
        }
        thread::sleep(Duration::from_millis(20));
    }
    let mut verdicts = Verdicts {
        code: if began.elapsed() > DEADLINE {
            -1
        } else {
            kit.exit_code()
        },
        text: kit.stdout(),
        ..Verdicts::default()
    };
    for line in verdicts.text.lines() {
        for (start, names) in [
            ("kept      ", &mut verdicts.kept),
            ("broken    ", &mut verdicts.broken),
            ("not seen  ", &mut verdicts.not_seen),
        ] {
            let rule = line
                .strip_prefix(start)
                .and_then(|rest| rest.split_once(": "));
            names.extend(rule.map(|(name, _)| name.to_owned()));
        }
    }
    verdicts
}

fn rules() -> BTreeSet<String> {
    let list = run(&["conform", "--list"], &[]);
    assert_eq!(list.code, 0, "{list:?}");
    let names = list
        .stdout
        .lines()
        .filter_map(|line| line.split(' ').next());
    names.map(str::to_owned).collect()
}

#[test]
fn the_chapter_lists_the_rules_as_the_kit_does() {
    let table = chapter::table("Is my client right?", "rule");
    let rows = table.iter().map(|row| (chapter::quoted(row[0])[0], row[1]));
    let list = run(&["conform", "--list"], &[]).stdout;
    let rules = list.lines().filter_map(|line| line.split_once(' '));
    let rules: Vec<_> = rules
        .map(|(name, must)| (name, must.trim_start()))
        .collect();
    assert_eq!(rows.collect::<Vec<_>>(), rules);
}

#[test]
fn what_cannot_be_used_is_wrong_usage() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    for (arguments, cause) in [
        (["--listen", "nowhere"], "nowhere"),
        (["--listen", &taken], &*taken),
        (["--rules", "all"], "--rules"),
    ] {
        let outcome = run(&["conform", arguments[0], arguments[1]], &[]);
        assert_eq!((outcome.code, &*outcome.stdout), (2, ""), "{outcome:?}");
        assert!(outcome.stderr.contains(cause), "{outcome:?}");
    }
    let help = run(&["conform", "--help"], &[]).stdout;
    for said in ["test mode", "start the client again", "Exit code 0"] {
        assert!(help.contains(said), "{help}");
    }
}

#[test]
fn the_clients_of_the_chapter_keep_every_rule() {
    let rules = rules();
    thread::scope(|scope| {
        for language in [JavaScript, Python] {
            let rules = &rules;
            scope.spawn(move || {
                let verdicts = tried(language, &language.code());
                assert_eq!(verdicts.code, 0, "{language:?}: {}", verdicts.text);
                assert_eq!(verdicts.kept, *rules, "{language:?}");
            });
        }
    });
}

/// A rule, and how the chapter's client is made to break it: what stands there, and what instead.
struct Mistake {
    rule: &'static str,
    language: Language,
    changes: &'static [(&'static str, &'static str)],
}

const fn mistake(
    rule: &'static str,
    language: Language,
    changes: &'static [(&'static str, &'static str)],
) -> Mistake {
    Mistake {
        rule,
        language,
        changes,
    }
}

/// Where something is put before the first line of a Python client.
const FIRST: &str = "import collections, json";

const MISTAKES: &[Mistake] = &[
    mistake(
        "token",
        JavaScript,
        &[("['im.v1', `base64url.bearer.${text}`]", "['im.v1']")],
    ),
    // JavaScript hangs up where it offers protocols and none is chosen.
    mistake(
        "subprotocol",
        Python,
        &[(
            "ping_interval=None",
            "subprotocols=['chat'], ping_interval=None",
        )],
    ),
    mistake(
        "not-early",
        Python,
        &[(
            FIRST,
            "from websockets.client import ClientProtocol\n\
             ask = ClientProtocol.send_request\n\
             def eager(self, request):\n    ask(self, request)\n    \
             self.writes.append(b'\\x8a\\x80abcd')\n\
             ClientProtocol.send_request = eager\n\
             import collections, json",
        )],
    ),
    mistake(
        "unread-first",
        JavaScript,
        &[
            (
                "    if (frame.type === 'connected') {",
                "    if (!this.complete && frame.type === 'message') (this.held ??= []).push(frame);\n    \
                 else if (frame.type === 'connected') {",
            ),
            (
                "      this.failures = 0;\n    }",
                "      this.failures = 0;\n      this.complete = true;\n      \
                 (this.held ?? []).splice(0).forEach((held) => this.received(held));\n    }",
            ),
        ],
    ),
    mistake(
        "ack",
        JavaScript,
        &[("this.acking ??= setTimeout(() => this.ack(), 200);", "")],
    ),
    mistake(
        "unknown-field",
        JavaScript,
        &[(
            "  received(frame) {\n",
            "  received(frame) {\n    if (Object.keys(frame).length > 8) return;\n",
        )],
    ),
    mistake(
        "unknown-type",
        JavaScript,
        &[(
            "  received(frame) {\n",
            "  received(frame) {\n    if (frame.type.startsWith('poll')) return this.lost({});\n",
        )],
    ),
    mistake(
        "pong",
        Python,
        &[(
            FIRST,
            "from websockets.protocol import Protocol\n\
             send_frame = Protocol.send_frame\n\
             Protocol.send_frame = lambda self, frame: \
             None if frame.opcode == 10 else send_frame(self, frame)\n\
             import collections, json",
        )],
    ),
    mistake(
        "fragments",
        Python,
        &[(
            FIRST,
            "from websockets.protocol import Protocol\n\
             take = Protocol.recv_frame\n\
             def careless(self, frame):\n    \
             if frame.opcode in (0, 1) and not frame.fin or frame.opcode == 0:\n        return\n    \
             take(self, frame)\n\
             Protocol.recv_frame = careless\n\
             import collections, json",
        )],
    ),
    mistake(
        "order",
        JavaScript,
        &[(
            "if (this.queue.push({ type: 'send_message', request_id: id, data }) === 1) this.sendFirst();",
            "this.queue.splice(1, 0, { type: 'send_message', request_id: id, data });\n    \
             if (this.queue.length === 1) this.sendFirst();",
        )],
    ),
    mistake(
        "ping",
        JavaScript,
        &[(
            "this.pinging = setTimeout(() => this.ping(), this.interval * Math.random());",
            "",
        )],
    ),
    mistake(
        "repeat",
        JavaScript,
        &[(
            "if (this.queue.length) this.write(this.queue[0]);",
            "if (!this.queue.length) return;\n    \
             this.queue[0].data.client_message_id = crypto.randomUUID();\n    \
             this.write(this.queue[0]);",
        )],
    ),
    mistake(
        "repeat",
        JavaScript,
        &[("acks: [] });", "acks: [], queue: [] });")],
    ),
    mistake(
        "duplicate",
        JavaScript,
        &[(
            "if (!this.seen.has(frame.id)) this.handOver",
            "this.handOver",
        )],
    ),
    mistake(
        "duplicate",
        JavaScript,
        &[("acks: [] });", "acks: [], seen: new Set() });")],
    ),
    mistake(
        "ack-again",
        JavaScript,
        &[(
            "if (!this.seen.has(frame.id)) this.handOver(frame);",
            "if (this.seen.has(frame.id)) return this.heard();\n      this.handOver(frame);",
        )],
    ),
    mistake(
        "slow-consumer",
        JavaScript,
        &[("4004, 4005];", "4001, 4004, 4005];")],
    ),
    mistake(
        "restart",
        JavaScript,
        &[(
            "told.after_ms ?? backoff()",
            "code === 1012 ? told.after_ms / 2 : told.after_ms ?? backoff()",
        )],
    ),
    mistake(
        "restart",
        JavaScript,
        &[(
            "told.after_ms ?? backoff()",
            "code === 1012 ? 10 * told.after_ms : told.after_ms ?? backoff()",
        )],
    ),
    mistake(
        "idle",
        JavaScript,
        &[("4004, 4005];", "4002, 4004, 4005];")],
    ),
    mistake("expired", JavaScript, &[("code === 4003 || ", "")]),
    mistake("backoff", JavaScript, &[("2 ** this.failures++", "2 ** 0")]),
    mistake(
        "unauthorized",
        Python,
        &[(
            "            answer = refused.response\n",
            "            answer = refused.response\n            \
             if answer.status_code == 401:\n                \
             return 1006, '{\"after_ms\": 50}', 0\n",
        )],
    ),
    mistake(
        "unavailable",
        Python,
        &[(
            "            answer = refused.response\n",
            "            answer = refused.response\n            \
             if answer.status_code == 503:\n                \
             return 1006, '{\"after_ms\": 50}', 0\n",
        )],
    ),
    mistake(
        "rate-exceeded",
        JavaScript,
        &[(
            "told.after_ms ?? backoff()",
            "code === 4006 ? 100 : told.after_ms ?? backoff()",
        )],
    ),
    mistake(
        "half-open",
        JavaScript,
        &[("2.5 * this.interval", "1_000 * this.interval")],
    ),
    mistake(
        "replaced",
        JavaScript,
        &[
            ("told.reconnect === false || ", ""),
            ("4004, 4005];", "4005];"),
        ],
    ),
    mistake("revoked", JavaScript, &[("4004, 4005];", "4004];")]),
    mistake(
        "jitter",
        JavaScript,
        &[("(0.5 + Math.random() / 2)", "0.75")],
    ),
    mistake(
        "first-ping",
        JavaScript,
        &[("this.interval * Math.random()", "this.interval")],
    ),
    mistake(
        "message-ids",
        JavaScript,
        &[("client_message_id: id }", "client_message_id: 'mine' }")],
    ),
    mistake(
        "message-ids",
        JavaScript,
        &[("content, client_message_id: id }", "content }")],
    ),
    mistake(
        "once",
        JavaScript,
        &[
            (
                "this.sendFirst();\n    } else if (frame.type === 'offline",
                "(this.all ??= []).forEach((it) => this.write(it));\n    } else if (frame.type === 'offline",
            ),
            (
                "    if (this.queue.push({ type",
                "    (this.all ??= []).push({ type: 'send_message', request_id: id, data });\n    \
                 if (this.queue.push({ type",
            ),
        ],
    ),
    mistake(
        "requests",
        JavaScript,
        &[(
            "this.sendFirst();\n    } else if (frame.type === 'offline",
            "this.sendFirst();\n      this.write({ type: 'hello' });\n    } else if (frame.type === 'offline",
        )],
    ),
];

impl Mistake {
    fn code(&self) -> String {
        let code = self.language.code();
        self.changes.iter().fold(code, |code, (from, to)| {
            assert_eq!(code.matches(from).count(), 1, "{}: {from}", self.rule);
            code.replace(from, to)
        })
    }

    /// What the kit did not find, or found too much.
    fn complaint(&self) -> Option<String> {
        let verdicts = tried(self.language, &self.code());
        let only = BTreeSet::from([self.rule.to_owned()]);
        let is_found = verdicts.broken == only && verdicts.code == 1;
        let others = || format!("{}: {:?}\n{}", self.rule, verdicts.broken, verdicts.text);
        (!is_found).then(others)
    }
}

#[test]
fn a_client_with_a_mistake_breaks_the_rule_that_it_is_about_and_no_other() {
    let planted: BTreeSet<String> = MISTAKES.iter().map(|it| it.rule.to_owned()).collect();
    assert_eq!(planted, rules(), "each rule is broken by a client");
    let left = Mutex::new(MISTAKES.iter());
    let complaints = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap().next();
                    let Some(mistake) = next else { return };
                    let complaint = mistake.complaint();
                    complaints.lock().unwrap().extend(complaint);
                }
            });
        }
    });
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
