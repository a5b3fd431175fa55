//! A terminal with somebody at it: a pseudo-terminal whose screen is kept as a real one would show it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::process::Signal;
use super::wait::{DEADLINE, wait_for};
use super::{wait_until, watchdog};

const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// A program at a terminal of its own. Dropped, it is killed.
pub struct Terminal {
    child: Child,
    keyboard: File,
    /// Kept open, so that its settings can be looked at when the program has ended.
    tty: File,
    shown: Arc<Mutex<Shown>>,
}

struct Shown {
    parser: vt100::Parser,
    bytes: Vec<u8>,
}

impl Terminal {
    /// Starts `command`, which is the terminal's foreground from then on.
    pub fn start(command: &Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let master = master.expect("a pseudo-terminal");
        grantpt(&master).expect("a pseudo-terminal");
        unlockpt(&master).expect("a pseudo-terminal");
        let path = ptsname(&master, Vec::new()).expect("its name");
        let path = path.into_string().expect("its name");
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let options = options.custom_flags(OFlags::NOCTTY.bits().cast_signed());
        let tty = options.open(path).expect("its other side");
        let keyboard = File::from(master);
        resize(&keyboard, ROWS, COLUMNS);

        let side = || Stdio::from(tty.try_clone().expect("a descriptor"));
        let mut session = Command::new("setsid");
        session
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args());
        // Whatever the tests themselves run at.
        session.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => session.env(key, value),
                None => session.env_remove(key),
            };
        }
        let child = session.stdin(side()).stdout(side()).stderr(side()).spawn();
        let child = child.expect("setsid runs");
        watchdog::kill_at_end(child.id());
        let shown = Arc::new(Mutex::new(Shown {
            parser: vt100::Parser::new(nonzero(ROWS), nonzero(COLUMNS), 0),
            bytes: Vec::new(),
        }));
        let mut output = keyboard.try_clone().expect("a descriptor");
        let drawn = Arc::clone(&shown);
        thread::spawn(move || {
            let mut bytes = [0; 4_096];
            // An error says that nobody has the other side open any more.
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                let mut shown = drawn.lock().expect("no panic");
                shown.parser.process(&bytes[..count]);
                shown.bytes.extend_from_slice(&bytes[..count]);
            }
        });
        Self {
            child,
            keyboard,
            tty,
            shown,
        }
    }

    pub fn press(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("a terminal");
    }

    /// What is on the screen, line by line.
    pub fn screen(&self) -> String {
        self.shown
            .lock()
            .expect("no panic")
            .parser
            .screen()
            .contents()
    }

    /// All that was ever written to it.
    pub fn bytes(&self) -> String {
        let shown = self.shown.lock().expect("no panic");
        String::from_utf8_lossy(&shown.bytes).into_owned()
    }

    /// Waits until a line of the screen is as `is_line` has it, and returns that line.
    pub fn line(&self, what: &str, is_line: impl Fn(&str) -> bool) -> String {
        let found = || {
            self.screen()
                .lines()
                .find(|line| is_line(line))
                .map(str::to_owned)
        };
        let what = format!("the terminal shows {what}");
        wait_for(DEADLINE, what, found).0
    }

    /// Waits until a line of the screen contains `text`, and returns that line.
    pub fn shows(&self, text: &str) -> String {
        self.line(text, |line| line.contains(text))
    }

    /// Waits until the cursor is behind `text`, which begins its line.
    pub fn prompts(&self, text: &str) {
        wait_until(format!("the prompt is {text:?}"), || {
            let shown = self.shown.lock().expect("no panic");
            let screen = shown.parser.screen();
            let (row, column) = screen.cursor_position();
            let line = screen.rows(0, COLUMNS).nth(usize::from(row));
            line.is_some_and(|line| line.trim_end() == text.trim_end())
                && usize::from(column) == text.chars().count()
        });
    }

    /// The user makes the window larger or smaller.
    pub fn resize(&self, rows: u16, columns: u16) {
        let mut shown = self.shown.lock().expect("no panic");
        shown
            .parser
            .screen_mut()
            .set_size(nonzero(rows), nonzero(columns));
        resize(&self.keyboard, rows, columns);
    }

    /// Whether lines are edited by the terminal itself, and shown as they are typed: as a shell wants
    /// it back.
    pub fn is_as_found(&self) -> bool {
        let modes = tcgetattr(&self.tty).expect("a terminal").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok();
        let pid = pid.and_then(rustix::process::Pid::from_raw).expect("an id");
        rustix::process::kill_process(pid, signal).expect("a running program");
    }

    /// The exit code, once it ended.
    pub fn exit_code(&mut self) -> i32 {
        let (status, _) = wait_for(DEADLINE, "the program at the terminal ends", || {
            self.child.try_wait().expect("a child")
        });
        watchdog::spare(self.child.id());
        status.code().unwrap_or_else(|| panic!("it died: {status}"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            watchdog::spare(self.child.id());
        }
        if thread::panicking() {
            println!("--- the terminal shows:\n{}", self.screen());
        }
    }
}

fn resize(terminal: &File, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).expect("a terminal");
}

fn nonzero(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).expect("a size")
}
