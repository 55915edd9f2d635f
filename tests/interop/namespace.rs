//! Network namespaces with cables between them: pods on a wire, nothing of the host's network touched.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tests::program::Finished;

/// What these tests run.
const PROGRAMS: [&str; 7] = ["curl", "ip", "iptables", "nft", "python3", "setpriv", "tcpdump"];

/// Whether these tests can run here. Without root and their programs they are skipped aloud, or fail where nothing may be
/// skipped.
pub fn available(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        crate::skipped(test, "root, for network namespaces");
        return false;
    }
    crate::installed(test, &PROGRAMS)
}

/// A bridge in a namespace of its own, to which machines are connected.
pub struct Wire {
    pub namespace: Namespace,
    prefix: String,
}

impl Wire {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        remove_abandoned();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{number}-", std::process::id());
        let namespace = Namespace::new(format!("{prefix}wire"));
        namespace.ip("link add wire type bridge");
        namespace.ip("address add 10.77.0.1/24 dev wire");
        namespace.ip("address add fd77::1/64 dev wire nodad");
        namespace.ip("link set wire up");
        Self { namespace, prefix }
    }

    /// A machine on the wire, with addresses 10.77.0.`number` and fd77::`number`. Everything else it sends goes to the
    /// wire's own address, where nobody forwards it.
    pub fn machine(&self, name: &str, number: u8) -> Namespace {
        let machine = Namespace::new(format!("{}{name}", self.prefix));
        let end = format!("to-{name}");
        self.namespace.ip(&format!("link add {end} type veth peer name eth0 netns {}", machine.name));
        self.namespace.ip(&format!("link set {end} master wire up"));
        machine.ip(&format!("address add 10.77.0.{number}/24 dev eth0"));
        machine.ip(&format!("address add fd77::{number}/64 dev eth0 nodad"));
        machine.ip("link set eth0 up");
        machine.ip("route add default via 10.77.0.1");
        machine.ip("-6 route add default via fd77::1");
        machine
    }
}

/// A network namespace. It ends with the test, and every process in it.
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn new(name: String) -> Self {
        ip(&["netns", "add", &name]).well();
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// A command that will run in it, as root.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// A command that will run in it as another user.
    pub fn command_as(&self, uid: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.command("setpriv");
        command.args([format!("--reuid={uid}"), format!("--regid={uid}")]).args(["--clear-groups", "--"]);
        command.arg(program);
        command
    }

    /// Runs something on a thread that is in it; a socket made there stays there.
    #[track_caller]
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    #[track_caller]
    fn ip(&self, arguments: &str) {
        let all: Vec<_> = ["-n", &self.name].into_iter().chain(arguments.split(' ')).collect();
        ip(&all).well();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

const PREFIX: &str = "writ-";

/// Ends the processes in a namespace, which can only be ours, and removes it.
fn remove(name: &str) {
    for pid in ip(&["netns", "pids", name]).stdout.lines() {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    ip(&["netns", "delete", name]);
}

/// What a run that was killed has left: its process is named in the name.
fn remove_abandoned() {
    for line in ip(&["netns", "list"]).stdout.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok())
            && !std::path::Path::new(&format!("/proc/{owner}")).exists()
        {
            remove(name);
        }
    }
}

fn ip(arguments: &[&str]) -> Finished {
    Finished::of(Command::new("ip").args(arguments))
}
