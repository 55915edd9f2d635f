//! Interception against a real kernel: each test in a network namespace of its own, with a peer behind a cable.
//!
//! They need root, `unshare`, `ip`, `nft` and `iptables`; without them they say that they were skipped, and fail if `CI` is true.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser as _;
use proxy::cli::intercept;
use proxy::net::intercept::{Backend, Identity, Outcome, Plan, Selection, Spec, verify};
use proxy::net::socket::{self, to_own_application};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const OWN: [&str; 2] = ["10.11.0.2", "fd11::2"];
const PEER: [&str; 2] = ["10.11.0.1", "fd11::1"];
const PROXY_UID: u32 = 1337;
const APPLICATION_UID: u32 = 1000;
/// An accepted connection is there at once; this only bounds a failure.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn installing_twice_verifying_and_removing() {
    in_namespace("installing_twice_verifying_and_removing", |_| {
        let untouched = ruleset();
        for backend in [Backend::Nft, Backend::Iptables, Backend::Auto] {
            assert!(!verify(&spec()).unwrap().captured(), "{backend:?}: nothing is installed");
            Plan::install(&spec(), backend).unwrap().apply().unwrap();
            let once = ruleset();
            Plan::install(&spec(), backend).unwrap().apply().unwrap();
            assert_eq!(ruleset(), once, "{backend:?}");
            let report = verify(&spec()).unwrap();
            assert!(report.captured(), "{backend:?}: {report:#?}");
            for family in &report.families {
                let seen = [&family.outbound, &family.to_self];
                assert!(seen.iter().all(|o| matches!(o, Outcome::Captured(_))), "{backend:?}: {family:#?}");
            }
            Plan::remove().unwrap().apply().unwrap();
            assert_eq!(ruleset(), untouched, "{backend:?}");
            assert!(Plan::remove().unwrap().is_empty());
        }
    });
}

#[test]
fn one_back_end_replaces_the_other() {
    in_namespace("one_back_end_replaces_the_other", |_| {
        let installed = |backend| {
            Plan::install(&spec(), backend).unwrap().apply().unwrap();
            let report = verify(&spec()).unwrap();
            assert!(report.captured(), "{report:#?}");
            report.families[0].rules.installed_by.clone()
        };
        assert_eq!(installed(Backend::Nft), ["nft"]);
        assert_eq!(installed(Backend::Iptables), ["iptables"]);
        assert_eq!(installed(Backend::Nft), ["nft"]);
    });
}

#[test]
fn the_printed_script_does_the_same() {
    in_namespace("the_printed_script_does_the_same", |_| {
        for backend in [Backend::Nft, Backend::Iptables] {
            let plan = Plan::install(&spec(), backend).unwrap();
            assert_eq!(plan, Plan::install_afresh(&spec(), backend).unwrap());
            run("sh", &["-e", "-c", &plan.to_string()]);
            let by_script = ruleset();
            assert!(verify(&spec()).unwrap().captured());
            run("sh", &["-e", "-c", &Plan::remove().unwrap().to_string()]);
            Plan::install(&spec(), backend).unwrap().apply().unwrap();
            assert_eq!(ruleset(), by_script);
            Plan::remove().unwrap().apply().unwrap();
        }
    });
}

/// Where the system's own choice isn't the legacy variant, this is how that one gets its share.
#[test]
fn legacy_iptables() {
    in_namespace("legacy_iptables", |_| {
        if run("sh", &["-c", "command -v iptables-legacy || true"]).is_empty() {
            skipped("legacy_iptables", "iptables-legacy");
            return;
        }
        let plan = Plan::install_afresh(&spec(), Backend::Iptables).unwrap().to_string();
        run("sh", &["-e", "-c", &plan.replace("tables-restore", "tables-legacy-restore")]);
        let report = verify(&spec()).unwrap();
        assert!(report.captured(), "{report:#?}");
        assert!(report.families[0].rules.installed_by[0].starts_with("iptables"));
        Plan::install(&spec(), Backend::Nft).unwrap().apply().unwrap();
        let report = verify(&spec()).unwrap();
        assert!(report.captured() && report.families[1].rules.installed_by == ["nft"], "{report:#?}");
    });
}

#[test]
fn verification_notices_what_is_missing() {
    in_namespace("verification_notices_what_is_missing", |_| {
        let damage: [(Backend, &[&str]); 5] = [
            (Backend::Nft, &["nft", "flush", "chain", "inet", "writ", "output"]),
            (Backend::Nft, &["nft", "delete", "chain", "inet", "writ", "prerouting"]),
            (Backend::Iptables, &["iptables", "-t", "nat", "-F", "OUTPUT"]),
            (Backend::Iptables, &["ip6tables", "-t", "nat", "-F", "PREROUTING"]),
            (Backend::Iptables, &["ip6tables", "-t", "nat", "-F", "WRIT_INBOUND"]),
        ];
        for (backend, command) in damage {
            Plan::install(&spec(), backend).unwrap().apply().unwrap();
            assert!(verify(&spec()).unwrap().captured());
            run(command[0], &command[1..]);
            assert!(!verify(&spec()).unwrap().captured(), "{command:?}");
        }
        // Rules that are all there, and somebody else's that let everything pass before them.
        Plan::install(&spec(), Backend::Nft).unwrap().apply().unwrap();
        let steal = "table ip thief { chain output { type nat hook output priority -150; \
            ip daddr 192.0.2.0/24 tcp dport 81 dnat to 10.11.0.1:9; }; }";
        run("nft", &[steal]);
        let report = verify(&spec()).unwrap();
        assert!(report.families[0].rules.problems.is_empty());
        assert!(matches!(report.families[0].outbound, Outcome::NotCaptured(_)), "{report:#?}");
    });
}

#[test]
fn other_options_than_installed_are_noticed() {
    in_namespace("other_options_than_installed_are_noticed", |_| {
        for backend in [Backend::Nft, Backend::Iptables] {
            let weaker = Spec { exclude_outbound_ports: vec![3306], ..spec() };
            Plan::install(&weaker, backend).unwrap().apply().unwrap();
            assert!(verify(&weaker).unwrap().captured());
            let report = verify(&spec()).unwrap();
            assert!(!report.captured());
            assert_eq!(
                report.families[0].rules.problems,
                ["rule not asked for: excluded outbound ports 3306"]
            );
        }
    });
}

#[test]
fn a_running_proxy_is_left_alone_by_verification() {
    in_namespace("a_running_proxy_is_left_alone_by_verification", |_| {
        Plan::install(&spec(), Backend::Nft).unwrap().apply().unwrap();
        let _outbound = socket::listen_loopback(spec().outbound_port, Default::default()).unwrap();
        let _inbound = Capture::at(spec().inbound_port);
        assert!(verify(&spec()).unwrap().captured());
    });
}

#[test]
fn outbound_connections() {
    in_namespace("outbound_connections", |peer| {
        let spec = Spec {
            exclude_outbound_cidrs: vec!["10.11.0.8/32".parse().unwrap()],
            exclude_outbound_ports: vec![7777],
            proxy: vec![Identity::Uid(PROXY_UID), Identity::Mark(0x539)],
            ..spec()
        };
        for backend in [Backend::Nft, Backend::Iptables] {
            Plan::install(&spec, backend).unwrap().apply().unwrap();
            let proxy = Capture::at(spec.outbound_port);
            for peer_address in PEER {
                let server = peer.listen(&format!("{}:0", bracket(peer_address)));
                let target = server.local_addr().unwrap();

                let client = connect(APPLICATION_UID, None, None, target).unwrap();
                assert_eq!(proxy.accepted(&client), Some(target), "{backend:?}: the application is captured");

                for (uid, mark) in [(PROXY_UID, None), (0, Some(0x539))] {
                    let client = connect(uid, mark, None, target).unwrap();
                    assert_eq!(
                        peer_of(&server),
                        client.local_addr().unwrap(),
                        "{backend:?}: the proxy passes"
                    );
                }
                let excluded = peer.listen(&format!("{}:7777", bracket(peer_address)));
                let client = connect(APPLICATION_UID, None, None, excluded.local_addr().unwrap()).unwrap();
                assert_eq!(peer_of(&excluded), client.local_addr().unwrap());
            }
            let excluded = peer.listen("10.11.0.8:0");
            let client = connect(APPLICATION_UID, None, None, excluded.local_addr().unwrap()).unwrap();
            assert_eq!(peer_of(&excluded), client.local_addr().unwrap());
        }
    });
}

#[test]
fn connections_of_the_host_to_itself() {
    in_namespace("connections_of_the_host_to_itself", |_| {
        for backend in [Backend::Nft, Backend::Iptables] {
            Plan::install(&spec(), backend).unwrap().apply().unwrap();
            let inbound = Capture::at(spec().inbound_port);
            for own in OWN.into_iter().chain(["127.0.0.1", "::1"]) {
                let application = TcpListener::bind((own, 0)).unwrap();
                let target = application.local_addr().unwrap();
                let client = connect(APPLICATION_UID, None, None, target).unwrap();
                assert_eq!(peer_of(&application), client.local_addr().unwrap(), "application to {own}");

                let client = connect(PROXY_UID, None, None, target).unwrap();
                if target.ip().is_loopback() {
                    assert_eq!(peer_of(&application), client.local_addr().unwrap(), "proxy to {own}");
                } else {
                    assert_eq!(inbound.accepted(&client), Some(target), "{backend:?}: a call to oneself");
                    let source = to_own_application(target.ip());
                    let client = connect(PROXY_UID, None, Some(source), target).unwrap();
                    assert_eq!(client.local_addr().unwrap().ip(), source);
                    assert_eq!(peer_of(&application), client.local_addr().unwrap(), "inbound side to {own}");
                }
            }
        }
    });
}

#[test]
fn inbound_connections() {
    in_namespace("inbound_connections", |peer| {
        for backend in [Backend::Nft, Backend::Iptables] {
            Plan::install(&spec(), backend).unwrap().apply().unwrap();
            let inbound = Capture::at(spec().inbound_port);
            for own in OWN {
                let target = SocketAddr::new(own.parse().unwrap(), 8080);
                let client = peer.run(move || TcpStream::connect_timeout(&target, PATIENCE)).unwrap();
                assert_eq!(inbound.accepted(&client), Some(target), "{backend:?}");

                // To the proxy's own port: there is no original destination.
                let direct = SocketAddr::new(own.parse().unwrap(), spec().inbound_port);
                let client = peer.run(move || TcpStream::connect_timeout(&direct, PATIENCE)).unwrap();
                assert_eq!(inbound.accepted(&client), None, "{backend:?}");

                let excluded = TcpListener::bind((own, 15021)).unwrap();
                let address = excluded.local_addr().unwrap();
                let client = peer.run(move || TcpStream::connect_timeout(&address, PATIENCE)).unwrap();
                assert_eq!(peer_of(&excluded), client.local_addr().unwrap(), "{backend:?}");
            }
        }
    });
}

#[test]
fn the_command_line() {
    in_namespace("the_command_line", |_| {
        let writ = |line: &str| {
            let arguments = std::iter::once("intercept").chain(line.split_whitespace());
            format!("{:?}", intercept::run(intercept::Args::parse_from(arguments)))
        };
        let [well, failed, usage] = [0, 1, 2].map(|code| format!("{:?}", std::process::ExitCode::from(code)));
        assert_eq!(writ("install --inbound-port 15001"), usage);
        assert_eq!(writ("install --dry-run"), well);
        assert_eq!(writ("verify"), failed);
        assert_eq!(writ("install --exclude-outbound-ports 3306 --uid 7 --gid 8"), well);
        assert_eq!(writ("verify --exclude-outbound-ports 3306 --uid 7 --gid 8"), well);
        assert_eq!(writ("verify --json"), failed);
        assert_eq!(writ("remove --dry-run"), well);
        assert_eq!(writ("verify --exclude-outbound-ports 3306 --uid 7 --gid 8"), well);
        assert_eq!(writ("remove"), well);
        assert_eq!(writ("remove"), well);
    });
}

fn spec() -> Spec {
    Spec {
        outbound_port: 15001,
        inbound_port: 15006,
        proxy: vec![Identity::Uid(PROXY_UID)],
        include_inbound_ports: Selection::All,
        exclude_inbound_ports: vec![15021],
        include_outbound_cidrs: Selection::All,
        exclude_outbound_cidrs: vec![],
        exclude_outbound_ports: vec![],
    }
}

/// A listener that stands for the proxy, on every address of both families.
struct Capture {
    listener: tokio::net::TcpListener,
    runtime: tokio::runtime::Runtime,
}

impl Capture {
    fn at(port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = SocketAddr::new("::".parse().unwrap(), port);
        let listener = socket::listen(address, Default::default()).unwrap();
        let listener = runtime.block_on(async { tokio::net::TcpListener::from_std(listener).unwrap() });
        Self { listener, runtime }
    }

    /// The original destination of `client`'s connection, which must be the next one that arrives.
    fn accepted(&self, client: &TcpStream) -> Option<SocketAddr> {
        let accepted = self.runtime.block_on(async {
            let (stream, peer) =
                tokio::time::timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap();
            (socket::original_dst(&stream), socket::canonical(peer))
        });
        assert_eq!(accepted.1, client.local_addr().unwrap());
        accepted.0
    }
}

/// Who is accepted next.
fn peer_of(listener: &TcpListener) -> SocketAddr {
    listener.accept().unwrap().1
}

/// Connects as a user, on a thread of its own, for which alone the user is set.
fn connect(uid: u32, mark: Option<u32>, source: Option<IpAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    std::thread::spawn(move || {
        let domain = socket2::Domain::for_address(target);
        if uid != 0 {
            let uid = rustix::fs::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        }
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect_timeout(&target.into(), PATIENCE)?;
        Ok(socket.into())
    })
    .join()
    .unwrap()
}

/// Says aloud that a test could not run here; in CI that is a failure.
fn skipped(name: &str, lacking: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{name} needs {lacking}");
    // Past the capture of the test harness, which shows nothing of tests that end well.
    let _ = io::stderr().write_all(format!("SKIPPED: {name} needs {lacking}\n").as_bytes());
}

/// What these tests need and is not here.
fn lacking() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("root");
    }
    let is_here = |program: &&str| Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let lacks = |program: &&str| !is_here(program).is_ok_and(|output| output.status.success());
    ["unshare", "ip", "nft", "iptables"].into_iter().find(lacks)
}

/// Runs `test` in a new network namespace, by running this very test again in one.
fn in_namespace(name: &str, test: impl FnOnce(&Peer)) {
    const INSIDE: &str = "WRIT_TEST_IN_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return test(&Peer::connected());
    }
    if let Some(lacking) = lacking() {
        return skipped(name, lacking);
    }
    let status = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its network namespace");
}

/// Another network namespace at the end of a cable; it lives as long as a process in it.
struct Peer {
    holder: Child,
}

impl Peer {
    fn connected() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It answers once it runs, and then the namespace is there.
        holder.stdin.as_mut().unwrap().write_all(b"there?\n").unwrap();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        let peer = Self { holder };
        let pid = peer.holder.id().to_string();
        ip("link set lo up");
        ip("link add cable type veth peer name cable-end");
        ip(&format!("link set cable-end netns {pid}"));
        ip("address add 10.11.0.2/24 dev cable");
        ip("address add fd11::2/64 dev cable nodad");
        ip("link set cable up");
        peer.run(|| {
            ip("link set lo up");
            ip("address add 10.11.0.1/24 dev cable-end");
            ip("address add 10.11.0.8/24 dev cable-end");
            ip("address add fd11::1/64 dev cable-end nodad");
            ip("link set cable-end up");
        });
        ip("route add default via 10.11.0.1");
        ip("-6 route add default via fd11::1");
        // An IPv6 address can be used once the kernel has noticed that the cable is plugged in at both ends.
        let deadline = Instant::now() + Duration::from_secs(10);
        for own in OWN {
            while let Err(error) = TcpListener::bind((own, 0)) {
                assert!(Instant::now() < deadline, "{own}: {error}");
            }
        }
        peer
    }

    /// Runs something on a thread that is in the peer's namespace; a socket made there stays there.
    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        std::thread::spawn(move || {
            use std::os::fd::AsFd as _;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
        .join()
        .unwrap()
    }

    fn listen(&self, address: &str) -> TcpListener {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || TcpListener::bind(address)).unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn bracket(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

fn ip(arguments: &str) {
    run("ip", &arguments.split(' ').collect::<Vec<_>>());
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// All rules and the addresses of the loopback interface, without counters, and without the tables and chains that
/// iptables leaves behind empty.
fn ruleset() -> String {
    let by_iptables = ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"]
        .map(|tool| run("sh", &["-c", &format!("command -v {tool} >/dev/null && {tool} || true")]))
        .concat();
    let rules = |line: &&str| line.starts_with("-A ") || line.starts_with(":WRIT");
    let by_iptables: Vec<&str> = by_iptables.lines().filter(rules).collect();
    let tables = run("nft", &["list", "tables"]);
    let ours = match tables.contains("inet writ") {
        true => run("nft", &["--stateless", "list", "table", "inet", "writ"]),
        false => String::new(),
    };
    let addresses = run("ip", &["-6", "-oneline", "address", "show", "dev", "lo"]);
    format!("{}\n{ours}\n{addresses}", by_iptables.join("\n"))
}
