//! Lines that are typed at a terminal: `chat-input`, the thread of the line editor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Builder, JoinHandle};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor, ExternalPrinter};

use super::command::{Command, Target};
use super::escape;
use super::mailbox::{Event, MailSender};

/// What prints above the prompt.
pub(super) type Printer = Box<dyn ExternalPrinter + Send>;

/// How often the thread is told to end.
const TELL_EVERY: Duration = Duration::from_millis(20);

pub(super) struct Keyboard {
    thread: JoinHandle<()>,
    /// No further line is read.
    is_ending: Arc<AtomicBool>,
}

impl Keyboard {
    /// Prompts from now on, and says what is typed.
    pub fn start(target: Option<Target>, sender: MailSender) -> Result<(Self, Printer), String> {
        let wrong = |error: ReadlineError| format!("the terminal cannot be used: {error}");
        let config = Config::builder().build();
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history).map_err(wrong)?;
        let printer = editor.create_external_printer().map_err(wrong)?;
        let is_ending = Arc::<AtomicBool>::default();
        let told = Arc::clone(&is_ending);
        let thread = Builder::new().name("chat-input".into());
        let thread = thread.spawn(move || read(editor, target, &told, &sender));
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok((Self { thread, is_ending }, Box::new(printer)))
    }

    /// Ends the line that is being typed, and leaves the terminal as it was.
    pub fn stop(self) {
        self.is_ending.store(true, Ordering::SeqCst);
        while !self.thread.is_finished() {
            // The line editor returns at this signal, which does nothing else here; it may come just
            // before it listens.
            let _ = kill_process(getpid(), Signal::INT);
            thread::sleep(TELL_EVERY);
        }
        // A panic was reported when it happened.
        let _ = self.thread.join();
    }
}

fn read(
    mut editor: Editor<(), MemHistory>,
    mut target: Option<Target>,
    is_ending: &AtomicBool,
    sender: &MailSender,
) {
    // Also if the line editor panics.
    scopeguard::defer! { let _ = sender.send(Event::InputEnds); }
    while !is_ending.load(Ordering::SeqCst) {
        let line = match editor.readline(&prompt(target.as_ref())) {
            Ok(line) => line,
            // Its size changed while it waited for the rest of a key.
            Err(ReadlineError::Signal(rustyline::error::Signal::Resize)) => continue,
            Err(_) => break,
        };
        if !line.trim().is_empty() {
            // Of strings, memory refuses none.
            let _ = editor.add_history_entry(line.as_str());
        }
        let event = match Command::parse(&line) {
            Ok(Command::To(other)) => {
                target = Some(other);
                continue;
            }
            Ok(Command::Quit) => break,
            Ok(command) => Event::Typed(command, target.clone()),
            Err(reason) => Event::Misunderstood(reason),
        };
        if sender.send(event).is_err() {
            return;
        }
    }
}

fn prompt(target: Option<&Target>) -> String {
    match target {
        None => "> ".into(),
        Some(Target::User(user)) => format!("{}> ", escape::line(user)),
        Some(Target::Group(group)) => format!("#{}> ", escape::line(group)),
    }
}
