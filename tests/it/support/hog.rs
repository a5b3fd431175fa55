//! Memory mappings, used up inside a process: a library in C that it is started with takes all but
//! a few of those that the kernel grants it (`vm.max_map_count`), and gives them back.

use std::path::PathBuf;
use std::process::Command;

use super::process::{Process, Signal};
use super::watchdog;

/// SIGUSR1: every second page of a region becomes another mapping, until there are no more; then
/// `LEFT` are given back. SIGUSR2: all are. Only system calls, so that a handler may do it.
const SOURCE: &str = r#"
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 1 << 22 };
static const char SAID[] = "mappings are taken\n";
static char *region;
static long taken;

static void take(int signal) {
    region = mmap(0, (size_t)PAGE * PAGES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) _exit(99);
    for (taken = 0; 2 * taken + 1 < PAGES; taken++)
        if (mprotect(region + (2 * taken + 1) * PAGE, PAGE, PROT_READ)) break;
    for (int left = 0; left < LEFT; left += 2, taken--)
        mprotect(region + (2 * taken - 1) * PAGE, PAGE, PROT_NONE);
    if (write(2, SAID, sizeof SAID - 1) < 0) _exit(99);
}

static void give_back(int signal) {
    munmap(region, (size_t)PAGE * PAGES);
}

__attribute__((constructor)) static void listen(void) {
    struct sigaction action = { .sa_handler = take, .sa_flags = SA_RESTART };
    sigaction(SIGUSR1, &action, 0);
    action.sa_handler = give_back;
    sigaction(SIGUSR2, &action, 0);
}
"#;

/// Builds the library, which leaves so many mappings; with the C compiler that SQLite needs, too.
/// A process is to be started with it as `LD_PRELOAD`.
pub fn library(left: usize) -> PathBuf {
    let directory = watchdog::directory("hog");
    let (source, library) = (directory.join("hog.c"), directory.join("hog.so"));
    std::fs::write(&source, SOURCE).expect("a file");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library);
    compiler.arg(format!("-DLEFT={left}")).arg(&source);
    let output = compiler.output().expect("a C compiler");
    assert!(output.status.success(), "{output:?}");
    library
}

/// Has `process` take the mappings.
pub fn take(process: &Process) {
    process.signal(Signal::USR1);
    process.stderr_line("mappings are taken");
}

/// Has it give them back.
pub fn give_back(process: &Process) {
    process.signal(Signal::USR2);
}
