//! Ten thousand clients that begin a handshake and go no further: memory stays bounded, and others are served.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use proxy::worker::Deadlines;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::{App, Caller, Server, World};

/// Memory and descriptors are a whole process's, so the proxies run in one of their own.
const IN_CHILD: &str = "WRIT_SUITE_HALF_OPEN";
const CLIENTS: usize = 10_000;
/// What one may take: rustls' state and buffers, and the proxy's own.
const MOST_BYTES: usize = 40 * 1024;
const PATIENCE: Duration = Duration::from_secs(120);
const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";

#[test]
fn half_open_handshakes_take_bounded_memory_and_others_are_served() {
    if std::env::var_os(IN_CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(in_child());
    }
    let clients = CLIENTS.min(descriptors().saturating_sub(1000));
    if clients < CLIENTS {
        println!("only {clients} clients: the limit of descriptors allows no more");
    }
    let mut proxies = Proxies::start();
    assert_eq!(proxies.serve(), "SERVED 20");
    let before = proxies.memory();

    let hello = Caller::anonymous().client_hello();
    let mut open = Vec::new();
    for number in 0..clients {
        let mut client = TcpStream::connect(proxies.at).unwrap();
        // Half of them in the middle of their hello, half when the server has answered it.
        let sent = if number.is_multiple_of(2) { &hello[..hello.len() / 2] } else { &hello[..] };
        client.write_all(sent).unwrap();
        open.push(client);
    }
    proxies.wait("all are accepted", |proxies| proxies.open() > clients);
    let began = Instant::now();
    assert_eq!(proxies.serve(), "SERVED 20");
    let (took, each) = (began.elapsed(), proxies.memory().saturating_sub(before) / clients);
    println!("{clients} half-open handshakes: {each} bytes each; 20 requests beside them took {took:.0?}");
    assert!(each < MOST_BYTES, "{each} bytes for a half-open handshake");

    drop(open);
    proxies.wait("all are gone", |proxies| proxies.open() < 200);
    assert_eq!(proxies.serve(), "SERVED 20");
    proxies.say = None;
    assert!(proxies.child.wait().unwrap().success());
}

/// As many as there may be.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    limit.maximum.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX))
}

/// The mesh in its own process.
struct Proxies {
    child: Child,
    /// `None`: it was told to end.
    say: Option<ChildStdin>,
    hear: BufReader<ChildStdout>,
    at: SocketAddr,
}

impl Proxies {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "half_open::half_open_handshakes_take_bounded_memory_and_others_are_served",
                "--nocapture",
            ])
            .env(IN_CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (say, hear) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut proxies = Self { child, say: Some(say), hear, at: SocketAddr::from(([0; 4], 0)) };
        let at = proxies.line("AT ");
        proxies.at = at["AT ".len()..].parse().unwrap();
        proxies
    }

    /// The next line that begins so.
    fn line(&mut self, begins: &str) -> String {
        let mut line = String::new();
        while self.hear.read_line(&mut line).unwrap() > 0 {
            // The first may come behind what the test runner says.
            if let Some(at) = line.find(begins) {
                return line[at..].trim().to_owned();
            }
            line.clear();
        }
        panic!("it ended before it said {begins}");
    }

    /// Has some requests served.
    fn serve(&mut self) -> String {
        self.say.as_mut().unwrap().write_all(b"serve\n").unwrap();
        self.line("SERVED ")
    }

    /// Its resident memory, in bytes.
    fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    /// Its open descriptors.
    fn open(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !condition(self) {
            assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

async fn in_child() {
    descriptors();
    let app = App::echo().await;
    let deadlines = Deadlines { handshake: PATIENCE * 2, ..Deadlines::default() };
    let mesh = World::new()
        .server(Server::new("ratings", &app))
        .policy(STRICT)
        .deadlines(deadlines)
        .tap(|_| {})
        .start()
        .await;
    println!("AT {}", mesh.inbound("ratings"));
    loop {
        let line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(|_| line).unwrap()
        });
        if line.await.unwrap().is_empty() {
            break;
        }
        let mut served = 0;
        for _ in 0..20 {
            let mut client = mesh.pki.caller("productpage").connect(mesh.inbound("ratings")).await;
            served += usize::from(client.get("/", "").await.status == 200);
        }
        println!("SERVED {served}");
    }
    mesh.stop().await;
}
