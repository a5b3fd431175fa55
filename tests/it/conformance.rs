//! RFC 6455 to the letter, shown on the echo server, which is the gateway's own code below the
//! requests: the whole Autobahn suite where its Python is (`tests/run autobahn`), and here, always,
//! the cases of each of its classes that decide.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

#[cfg(feature = "tls")]
use ws_gateway::{client::transport, config, metrics::Metrics, tls::Tls};

#[cfg(feature = "tls")]
use crate::support::certificates::Authority;
use crate::support::echo::{Echo, LIMIT};
use crate::support::process::Process;
use crate::support::raw::{self, BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, Raw, TEXT};
use crate::support::watchdog;

/// Names the suite's program: `tests/run autobahn` does so.
const WSTEST: &str = "IT_WSTEST";
/// Compression, which the gateway does not offer.
const EXCLUDED: [&str; 2] = ["12.*", "13.*"];
/// Classes 1 to 7, 9 and 10. There is no 8, and 11 was given up.
const CASES: usize = 301;

/// How the suite judges a case and its close.
type Verdicts = BTreeMap<String, (String, String)>;

/// Has the suite's fuzzing client try all its cases on `url`.
fn verdicts(url: &str) -> Verdicts {
    let wstest = std::env::var(WSTEST).expect("the suite's program: run `tests/run autobahn`");
    let directory = watchdog::directory("autobahn");
    let spec = json!({
        "outdir": directory,
        "servers": [{"agent": "gateway", "url": url}],
        "cases": ["*"],
        "exclude-cases": EXCLUDED,
        "exclude-agent-cases": {},
    });
    let file = directory.join("spec.json");
    fs::write(&file, spec.to_string()).expect("a specification");
    let mut command = Command::new(wstest);
    command
        .args(["--mode", "fuzzingclient", "--spec"])
        .arg(file);
    command.current_dir(&directory);
    let mut suite = Process::start("wstest", &mut command);
    assert_eq!(suite.exit_code_within(Duration::from_secs(30 * 60)), 0);
    let index = fs::read(directory.join("index.json")).expect("the suite's verdicts");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    let cases = index["gateway"].as_object().expect("one agent");
    let text = |value: &Value| value.as_str().expect("a verdict").to_owned();
    let verdict = |case: &Value| (text(&case["behavior"]), text(&case["behaviorClose"]));
    cases
        .iter()
        .map(|(name, case)| (name.clone(), verdict(case)))
        .collect()
}

#[test]
#[ignore = "needs Python 2.7 and a minute: tests/run autobahn"]
fn the_whole_autobahn_suite() {
    let echo = Echo::start();
    passes(&echo.url("ws"));
}

#[cfg(feature = "tls")]
#[test]
#[ignore = "needs Python 2.7 and a minute: tests/run autobahn"]
fn the_whole_autobahn_suite_over_tls() {
    let identity = Authority::new("tests").sign(&["127.0.0.1"]);
    let files = config::Tls {
        cert: identity.cert.display().to_string(),
        key: identity.key.display().to_string(),
    };
    let tls = Tls::new(&files, &Metrics::new(&[])).expect("a pair that can be used");
    let echo = Echo::start_over(tls.expect("a certificate").opener(transport::plain()));
    passes(&echo.url("wss"));
}

/// No case fails on `url`; those that the suite does not call OK are printed.
fn passes(url: &str) {
    let verdicts = verdicts(url);
    let lenient = verdicts
        .iter()
        .filter(|(_, (case, close))| case != "OK" || close != "OK");
    for (name, (case, close)) in lenient.clone() {
        println!("{name}: {case}, close: {close}");
    }
    const PASSED: [&str; 3] = ["OK", "NON-STRICT", "INFORMATIONAL"];
    let fails = |verdict: &String| !PASSED.contains(&verdict.as_str());
    let failed: Vec<_> = lenient
        .filter(|(_, (case, close))| fails(case) || fails(close))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(verdicts.len(), CASES, "cases");
    println!("{url}: {} cases, 0 failed", verdicts.len());
}

/// Sends one message and expects it back, as one frame.
fn echoes(raw: &mut Raw, opcode: u8, payload: &[u8]) {
    raw.frame(FIN | opcode, payload);
    expect_echo(raw, opcode, payload);
}

fn expect_echo(raw: &mut Raw, opcode: u8, payload: &[u8]) {
    let frame = raw.read_frame();
    let (fin, got, length) = (frame.fin, frame.opcode, frame.payload.len());
    assert_eq!((fin, got, length), (true, opcode, payload.len()));
    // Not shown: it may be 16 MiB.
    assert!(
        frame.payload == payload,
        "another payload of {length} bytes"
    );
}

/// The message in pieces of `size` bytes, each a frame.
fn fragments(opcode: u8, payload: &[u8], size: usize) -> Vec<u8> {
    let count = payload.len().div_ceil(size);
    let pieces = payload.chunks(size).enumerate().map(|(number, piece)| {
        let first = if number == 0 { opcode } else { CONTINUATION };
        let fin = if number + 1 == count { FIN } else { 0 };
        raw::frame(fin | first, piece)
    });
    pieces.collect::<Vec<_>>().concat()
}

/// Each byte leaves in a segment of its own.
fn byte_by_byte(raw: &mut Raw, bytes: &[u8]) {
    for byte in bytes {
        raw.send([*byte]);
    }
}

/// After a message that is echoed, `bytes` end the connection with `code`, and with no other answer.
fn fails(echo: &Echo, bytes: &[u8], code: u16) {
    let mut raw = echo.session();
    echoes(&mut raw, TEXT, b"before");
    // What follows is not looked at; the connection may be gone by then.
    let _ = raw.try_send(bytes);
    let start = &bytes[..bytes.len().min(16)];
    let frame = raw.read_frame();
    assert_eq!(frame.opcode, CLOSE, "after {start:02x?}");
    let told = frame
        .payload
        .first_chunk()
        .map(|code| u16::from_be_bytes(*code));
    assert_eq!(told, Some(code), "after {start:02x?}");
    raw.expect_end();
}

/// Class 1.
#[test]
fn messages_of_every_form_of_length_are_echoed() {
    let echo = Echo::start();
    let mut raw = echo.session();
    for length in [0, 1, 125, 126, 127, 128, 65_535, 65_536] {
        echoes(&mut raw, TEXT, &vec![b'*'; length]);
        echoes(&mut raw, BINARY, &vec![0xfe; length]);
    }
    byte_by_byte(&mut raw, &raw::frame(FIN | TEXT, &[b'*'; 300]));
    expect_echo(&mut raw, TEXT, &[b'*'; 300]);
    for piece in raw::frame(FIN | BINARY, &[0xfe; 65_536]).chunks(997) {
        raw.send(piece);
    }
    expect_echo(&mut raw, BINARY, &[0xfe; 65_536]);
}

/// Class 2.
#[test]
fn a_ping_is_answered_with_its_payload_and_a_pong_with_nothing() {
    let echo = Echo::start();
    let mut raw = echo.session();
    for payload in [
        &b""[..],
        b"Hello, world!",
        &[0x00, 0xff, 0xfe, 0xfd],
        &[0xfe; 125],
    ] {
        raw.frame(FIN | PING, payload);
        expect_echo(&mut raw, PONG, payload);
    }
    byte_by_byte(&mut raw, &raw::frame(FIN | PING, &[0xfe; 125]));
    expect_echo(&mut raw, PONG, &[0xfe; 125]);
    raw.frame(FIN | PONG, b"");
    raw.frame(FIN | PONG, b"unsolicited");
    for number in 0..10 {
        raw.frame(FIN | PING, format!("payload-{number}"));
    }
    for number in 0..10 {
        expect_echo(&mut raw, PONG, format!("payload-{number}").as_bytes());
    }
    fails(&echo, &raw::frame(FIN | PING, &[0xfe; 126]), 1002);
}

/// Classes 3 and 4.
#[test]
fn reserved_bits_and_opcodes_fail_the_connection_after_what_was_right() {
    let echo = Echo::start();
    for bits in (0x10..=0x70).step_by(0x10) {
        for opcode in [TEXT, BINARY, PING, PONG, CLOSE] {
            fails(&echo, &raw::frame(FIN | bits | opcode, b""), 1002);
        }
        fails(
            &echo,
            &raw::frame(FIN | bits | TEXT, b"with a payload"),
            1002,
        );
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        fails(&echo, &raw::frame(FIN | opcode, b""), 1002);
        fails(&echo, &raw::frame(FIN | opcode, b"reserved"), 1002);
    }
    // What the right ping before it asks for comes all the same.
    let mut raw = echo.session();
    let ping = raw::frame(FIN | PING, b"right");
    raw.send([ping, raw::frame(FIN | 3, b"wrong")].concat());
    expect_echo(&mut raw, PONG, b"right");
    raw.expect_close(1002);
}

/// Class 5.
#[test]
fn fragments_make_one_message_with_control_frames_between() {
    let echo = Echo::start();
    let mut raw = echo.session();
    let (text, ping) = (
        "fragment1fragment2".as_bytes(),
        raw::frame(FIN | PING, b"ping"),
    );
    for size in [9, 1] {
        raw.send(fragments(TEXT, text, size));
        expect_echo(&mut raw, TEXT, text);
        byte_by_byte(&mut raw, &fragments(BINARY, text, size));
        expect_echo(&mut raw, BINARY, text);
    }
    // Empty ones are fragments as well.
    raw.send(
        [
            raw::frame(TEXT, b""),
            raw::frame(CONTINUATION, b""),
            raw::frame(FIN, b""),
        ]
        .concat(),
    );
    expect_echo(&mut raw, TEXT, b"");
    for _ in 0..2 {
        raw.frame(TEXT, b"fragment1");
        raw.send(&ping);
        expect_echo(&mut raw, PONG, b"ping");
        raw.frame(CONTINUATION, b"fragment2");
        raw.send(&ping);
        expect_echo(&mut raw, PONG, b"ping");
        raw.frame(FIN | CONTINUATION, b"fragment3");
        expect_echo(&mut raw, TEXT, b"fragment1fragment2fragment3");
    }
    for control in [PING, PONG, CLOSE] {
        let second = raw::frame(FIN | CONTINUATION, b"fragment2");
        fails(
            &echo,
            &[raw::frame(control, b"fragment1"), second].concat(),
            1002,
        );
    }
    for fin in [FIN, 0] {
        let nothing_to_continue = raw::frame(fin | CONTINUATION, b"non-continuation");
        fails(&echo, &nothing_to_continue, 1002);
        fails(
            &echo,
            &[nothing_to_continue, raw::frame(FIN | TEXT, b"Hello")].concat(),
            1002,
        );
        let another = [
            raw::frame(TEXT, b"fragment1"),
            raw::frame(fin | TEXT, b"fragment2"),
        ];
        fails(&echo, &another.concat(), 1002);
    }
}

/// Class 6.
#[test]
fn text_is_utf8_wherever_it_is_cut() {
    let echo = Echo::start();
    let mut raw = echo.session();
    for text in [
        "Hello-µ@ßöäüàá-UTF-8!!",
        "κόσμε",
        // The first and the last of each length, and what is next to the surrogates.
        "\0\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}\u{d7ff}\u{e000}\u{fffd}",
        // Noncharacters are characters.
        "\u{fdd0}\u{fdef}\u{fffe}\u{1fffe}\u{1ffff}\u{10fffe}",
    ] {
        let bytes = text.as_bytes();
        echoes(&mut raw, TEXT, bytes);
        raw.send(fragments(TEXT, bytes, 1));
        expect_echo(&mut raw, TEXT, bytes);
        byte_by_byte(&mut raw, &raw::frame(FIN | TEXT, bytes));
        expect_echo(&mut raw, TEXT, bytes);
    }
    for (what, bytes) in NOT_UTF8 {
        fails(&echo, &raw::frame(FIN | TEXT, bytes), 1007);
        fails(&echo, &fragments(TEXT, bytes, 1), 1007);
        let inside = ["κόσμε".as_bytes(), bytes, b"edited"].concat();
        fails(&echo, &fragments(TEXT, &inside, 5), 1007);
        println!("{what} is refused");
        // In a binary message it is as good as any.
        echoes(&mut raw, BINARY, bytes);
    }
}

const NOT_UTF8: [(&str, &[u8]); 14] = [
    ("a surrogate", b"\xed\xa0\x80"),
    ("a pair of surrogates", b"\xed\xa0\x80\xed\xb0\x80"),
    ("beyond U+10FFFF", b"\xf4\x90\x80\x80"),
    ("5 bytes", b"\xf8\x88\x80\x80\x80"),
    ("6 bytes", b"\xfc\x84\x80\x80\x80\x80"),
    ("an overlong slash of 2", b"\xc0\xaf"),
    ("an overlong slash of 3", b"\xe0\x80\xaf"),
    ("an overlong slash of 4", b"\xf0\x80\x80\xaf"),
    ("an overlong zero", b"\xc0\x80"),
    ("a continuation alone", b"\x80"),
    ("a character that ends too early", b"\xce"),
    ("four bytes without the last", b"\xf0\x90\x80"),
    ("0xfe", b"\xfe"),
    ("0xff", b"\xff"),
];

/// Class 6.4: nobody waits for the end of a message that cannot become text any more.
#[test]
fn what_is_no_text_in_a_fragment_fails_before_the_message_is_whole() {
    let echo = Echo::start();
    for bytes in [
        &b"\xce\xba\xe1\xbd\xb9\xcf\x83\xf4\x90"[..],
        b"\xed\xa0",
        b"\xff",
    ] {
        let mut raw = echo.session();
        raw.frame(TEXT, bytes);
        raw.expect_close(1007);
    }
    // It may still become a character.
    let mut raw = echo.session();
    raw.frame(TEXT, b"\xf4\x8f");
    raw.frame(FIN | CONTINUATION, b"\xbf\xbf");
    expect_echo(&mut raw, TEXT, "\u{10ffff}".as_bytes());
}

fn close_with(code: u16, reason: &[u8]) -> Vec<u8> {
    raw::frame(FIN | CLOSE, &[&code.to_be_bytes(), reason].concat())
}

/// Class 7.
#[test]
fn a_close_is_the_last_that_is_answered() {
    let echo = Echo::start();
    for late in [
        raw::frame(FIN | TEXT, b"late"),
        raw::frame(FIN | PING, b"late"),
        raw::frame(FIN | CONTINUATION, b"late"),
        close_with(1000, b"again"),
    ] {
        fails(&echo, &[close_with(1000, b""), late.clone()].concat(), 1000);
        let begun = raw::frame(TEXT, b"fragment1");
        fails(&echo, &[begun, close_with(1000, b""), late].concat(), 1000);
    }
    let mut large = raw::frame(FIN | BINARY, &vec![0; 256 << 10]);
    large.extend(close_with(1000, b""));
    let mut raw = echo.session();
    raw.send(large);
    expect_echo(&mut raw, BINARY, &vec![0; 256 << 10]);
    raw.expect_close(1000);
}

/// Classes 7.3 to 7.13.
#[test]
fn a_close_has_a_code_that_may_be_sent_and_a_reason_that_is_text() {
    let echo = Echo::start();
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999,
    ] {
        fails(&echo, &close_with(code, b"Hello World!"), code);
        fails(&echo, &close_with(code, &[b'*'; 123]), code);
    }
    for code in [
        0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535,
    ] {
        fails(&echo, &close_with(code, b""), 1002);
        fails(&echo, &close_with(code, b"reason"), 1002);
    }
    let mut raw = echo.session();
    raw.frame(FIN | CLOSE, b"");
    assert!(matches!(raw.close_code(), Some(1000 | 1005)));
    raw.expect_end();
    fails(&echo, &raw::frame(FIN | CLOSE, b"a"), 1002);
    fails(&echo, &close_with(1000, &[b'*'; 124]), 1002);
    fails(
        &echo,
        &close_with(1000, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xf4\x90\x80\x80"),
        1007,
    );
    fails(&echo, &close_with(1000, b"\xce"), 1007);
}

/// Classes 9 and 10.
#[test]
fn messages_up_to_the_limit_come_back_whole_however_they_are_cut() {
    let echo = Echo::start();
    let mut raw = echo.session();
    for opcode in [TEXT, BINARY] {
        echoes(&mut raw, opcode, &vec![b'*'; LIMIT]);
        for size in [64, 1_300, 64 << 10] {
            let payload = vec![b'*'; 1 << 20];
            raw.send(fragments(opcode, &payload, size));
            expect_echo(&mut raw, opcode, &payload);
        }
        for length in [0, 64, 4_096, 65_536] {
            for _ in 0..100 {
                echoes(&mut raw, opcode, &vec![b'*'; length]);
            }
        }
    }
    fails(&echo, &raw::frame(FIN | BINARY, &vec![0; LIMIT + 1]), 1009);
}
