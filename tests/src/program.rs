//! Programs that tests run: the real `writ` binary and its peers, what they print, and their end.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;

/// The `writ` binary of this build, brought up to date first: `cargo test` alone does not link a binary of another
/// package. `WRIT_BIN` names another.
pub fn writ() -> &'static Path {
    static WRIT: OnceLock<PathBuf> = OnceLock::new();
    WRIT.get_or_init(|| {
        if let Some(given) = std::env::var_os("WRIT_BIN") {
            return given.into();
        }
        let test = std::env::current_exe().unwrap();
        let directory = test.parent().and_then(Path::parent).unwrap();
        let profile = match directory.file_name().and_then(|name| name.to_str()).unwrap() {
            "debug" => "dev",
            other => other,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        // Of the whole workspace, as its tests are built, so that dependencies have the same features and serve both.
        build.args(["build", "--quiet", "--locked", "--workspace", "--bin=writ", "--profile", profile]);
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(built.success(), "building `writ` failed");
        directory.join("writ")
    })
}

/// A file beside the tests.
pub fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// What a program that ended has said.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All of standard output.
    pub stdout: String,
    /// All of standard error.
    pub stderr: String,
}

impl Finished {
    /// Runs a program to its end.
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output();
        let output = output.unwrap_or_else(|error| panic!("can't run {command:?}: {error}"));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Its output, if it ended well.
    #[track_caller]
    pub fn well(self) -> String {
        self.code(0)
    }

    /// Its output, if it ended with this exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> String {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        self.stdout
    }
}

/// A running program. Its output is kept, and shown when a test fails; it ends with the test.
pub struct Program {
    name: String,
    child: Child,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
    readers: Vec<JoinHandle<()>>,
}

impl Program {
    /// Starts it; what it prints can be waited for.
    #[track_caller]
    pub fn start(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("can't run {command:?}: {error}"));
        let (stdout, out) = Lines::of(child.stdout.take().unwrap());
        let (stderr, err) = Lines::of(child.stderr.take().unwrap());
        Self { name: name.to_owned(), child, stdout, stderr, readers: vec![out, err] }
    }

    /// The first line of standard output that `wanted` accepts, or of what comes.
    #[track_caller]
    pub fn line(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.stdout.first(&self.name, wanted)
    }

    /// The same, of standard error.
    #[track_caller]
    pub fn error_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.stderr.first(&self.name, wanted)
    }

    /// Hands each line of standard output, from number `from` on, to `take` until that says so.
    #[track_caller]
    pub fn lines_from(&self, from: usize, take: impl FnMut(&str) -> bool) {
        self.stdout.until(&self.name, from, take);
    }

    /// Asks it to end (SIGTERM, or another signal), and waits for that.
    #[track_caller]
    pub fn stop(self, signal: Signal) -> Finished {
        self.signal(signal);
        self.ended()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(mut self) -> Finished {
        let deadline = Instant::now() + PATIENCE;
        // Both ends of its output close when it ends; only then is waiting short.
        let closed = self.stdout.is_closed(deadline) && self.stderr.is_closed(deadline);
        assert!(closed, "{} does not end", self.name);
        let status = self.child.wait().unwrap();
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Finished { status, stdout: self.stdout.all(), stderr: self.stderr.all() }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            for (stream, lines) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
                eprintln!("--- {} {stream}, its end:\n{}", self.name, lines.tail(5));
            }
        }
    }
}

/// What a program has printed on one stream so far.
struct Lines {
    state: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Lines {
    /// Reads to the end on a thread.
    fn of(stream: impl Read + Send + 'static) -> (Arc<Self>, JoinHandle<()>) {
        let lines = Arc::new(Self { state: Mutex::new((Vec::new(), false)), changed: Condvar::new() });
        let reader = std::thread::spawn({
            let lines = Arc::clone(&lines);
            move || {
                let mut stream = BufReader::new(stream);
                let mut line = Vec::new();
                while matches!(stream.read_until(b'\n', &mut line), Ok(1..)) {
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    lines.state.lock().unwrap().0.push(text);
                    lines.changed.notify_all();
                    line.clear();
                }
                lines.state.lock().unwrap().1 = true;
                lines.changed.notify_all();
            }
        });
        (lines, reader)
    }

    #[track_caller]
    fn first(&self, name: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut found = None;
        self.until(name, 0, |line| {
            found = wanted(line).then(|| line.to_owned());
            found.is_some()
        });
        found.unwrap()
    }

    #[track_caller]
    fn until(&self, name: &str, from: usize, mut take: impl FnMut(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut next = from;
        let mut state = self.state.lock().unwrap();
        loop {
            while let Some(line) = state.0.get(next) {
                next += 1;
                if take(line) {
                    return;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                // Others want to show what is there while this thread panics.
                drop(state);
                panic!("{name} never printed what was awaited ({next} lines)");
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn is_closed(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let state = self.state.lock().unwrap();
        self.changed.wait_timeout_while(state, left, |state| !state.1).unwrap().0.1
    }

    fn all(&self) -> String {
        self.state.lock().unwrap().0.join("\n")
    }

    fn tail(&self, count: usize) -> String {
        let lines = &self.state.lock().unwrap().0;
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}
