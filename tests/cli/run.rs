//! A running proxy: what it answers about itself, what it makes of changes, and how it stops.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tests::program::{self, Finished, Program};
use tests::{Directory, PATIENCE};

use crate::writ;

#[test]
fn a_running_proxy_answers_about_itself() {
    let proxy = Proxy::start(MESH, &[]);
    let ask = |path: &str| writ(&["admin", path, "--admin", &proxy.admin.to_string()]);
    assert_eq!(ask("/ready").well(), "ready\n");
    let config: Value = serde_json::from_str(&ask("/config").well()).unwrap();
    assert_eq!(config["version"], 1);
    let verdicts = config["verdicts"].as_array().unwrap();
    assert!(verdicts.iter().all(|verdict| verdict["state"] == "accepted"), "{config:#}");
    let attested: Value = serde_json::from_str(&ask("/attestation").well()).unwrap();
    assert_eq!(attested["self_test"], "passed");
    assert!(ask("/metrics").well().ends_with("# EOF\n"));
    let explained = ask("/explain?side=inbound&method=GET&url=http://ratings:9080/ratings/1");
    let explained: Value = serde_json::from_str(&explained.well()).unwrap();
    assert_eq!(explained["decision"]["reason"], "plaintext-under-strict", "{explained:#}");
    let missing = ask("/nothing/here");
    assert_eq!(missing.status.code(), Some(1));
    assert!(missing.stderr.contains("404"), "{missing:?}");
}

#[test]
fn nobody_there_is_a_failure_that_says_what_to_look_at() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let finished = writ(&["admin", "/ready", "--admin", &free.to_string()]);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("is the proxy running"), "{finished:?}");
}

#[test]
fn a_mistake_later_on_keeps_what_was_good() {
    let proxy = Proxy::start(MESH, &[]);
    let policy = proxy.directory.path().join("config/mesh.yaml");
    fs::write(&policy, MESH.replace("mode: STRICT", "mode: STRICKT")).unwrap();
    let said: Value =
        serde_json::from_str(&proxy.program.error_line(|line| line.contains("STRICKT"))).unwrap();
    assert_eq!((&said["level"], &said["state"]), (&"ERROR".into(), &"kept-last-good".into()), "{said:#}");
    assert!(said["object"].as_str().unwrap().starts_with("PeerAuthentication "), "{said:#}");
    assert!(said["file"].as_str().unwrap().contains("mesh.yaml:"), "{said:#}");
    // The source says what is wrong before the proxy has taken the snapshot over.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let config = writ(&["admin", "/config", "--admin", &proxy.admin.to_string()]).well();
        let config: Value = serde_json::from_str(&config).unwrap();
        let verdicts = config["verdicts"].as_array().unwrap();
        let kept: Vec<_> = verdicts.iter().filter(|verdict| verdict["state"] == "kept-last-good").collect();
        if !kept.is_empty() || Instant::now() > deadline {
            assert_eq!(kept.len(), 1, "{config:#}");
            assert!(kept[0].to_string().contains("PeerAuthentication"), "{config:#}");
            return;
        }
    }
}

#[test]
fn a_file_that_is_not_understood_is_told_by_readiness() {
    let proxy = Proxy::start("policies: [\n", &[]);
    let refused = proxy.ready();
    assert_eq!(refused.status.code(), Some(1), "{refused:#?}");
    let why = "config: not understood since the start, so what it holds has never been in force: ";
    assert!(refused.stdout.starts_with(why) && refused.stdout.contains("mesh.yaml:"), "{refused:#?}");
    let config = writ(&["admin", "/config", "--admin", &proxy.admin.to_string()]).well();
    assert!(config.contains(r#""not_ready": "not understood since the start"#), "{config}");
    let mesh = proxy.directory.path().join("config/mesh.yaml");
    fs::write(&mesh, MESH).unwrap();
    proxy.is_ready("once it is mended", |said| said == "ready\n");
    fs::write(&mesh, "policies: [\n").unwrap();
    proxy.is_ready("with what was good before", |said| {
        said.starts_with("ready\ndegraded: config: not understood, so what was in force of it stays: ")
    });
}

#[test]
fn what_may_select_a_workload_whose_labels_nobody_said_refuses_until_somebody_does() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = format!("--forward=127.0.0.1:0={}", application.local_addr().unwrap());
    std::thread::spawn(move || application.incoming().for_each(|caller| answer(caller.unwrap())));
    let proxy = Proxy::start(ALLOW_GET, &[&forward, "--workload=bookinfo/ratings-v1"]);
    let ask = |method: &str| status(*proxy.listening.last().unwrap(), method);
    let refused = proxy.ready();
    assert_eq!(refused.status.code(), Some(1), "{refused:#?}");
    let why = "config: there is no Pod or WorkloadEntry bookinfo/ratings-v1, and no --labels: ";
    assert!(refused.stdout.starts_with(why), "{refused:#?}");
    assert!(refused.stdout.contains("AuthorizationPolicy bookinfo/viewer"), "{refused:#?}");
    assert_eq!(ask("GET"), "403");
    let record: Value = serde_json::from_str(&proxy.program.line(|_| true)).unwrap();
    assert_eq!(record["decision"]["reason"], "quarantined-policy", "{record:#}");
    assert_eq!(record["decision"]["policy"]["name"], "viewer", "{record:#}");
    let detail = record["ended"]["detail"].as_str().unwrap();
    assert!(detail.ends_with("no Pod or WorkloadEntry of that name, and no --labels"), "{detail}");

    let pod = proxy.directory.path().join("config/pod.yaml");
    fs::write(&pod, POD).unwrap();
    proxy.is_ready("when its Pod is there", |said| said == "ready\n");
    assert_eq!((ask("GET"), ask("POST")), ("200".into(), "403".into()));

    fs::remove_file(&pod).unwrap();
    proxy.is_ready("with the labels that its Pod had", |said| {
        said.starts_with(
            "ready\ndegraded: config: there is no Pod or WorkloadEntry bookinfo/ratings-v1 any more",
        )
    });
    assert_eq!((ask("GET"), ask("POST")), ("200".into(), "403".into()));
}

#[test]
fn where_nothing_comes_in_no_labels_are_needed() {
    let proxy = Proxy::start(ALLOW_GET, &["--workload=bookinfo/ratings-v1"]);
    assert_eq!(proxy.ready().well(), "ready\n");
}

const ALLOW_GET: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: viewer, namespace: bookinfo}
spec: {selector: {matchLabels: {app: ratings}}, rules: [{to: [{operation: {methods: [GET]}}]}]}
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: ratings-v1, namespace: bookinfo, labels: {app: ratings}}
";

/// Takes a request without a body, and answers it.
fn answer(mut caller: TcpStream) {
    let mut asked = BufReader::new(caller.try_clone().unwrap());
    let mut line = String::new();
    while asked.read_line(&mut line).is_ok_and(|length| length > 2) {
        line.clear();
    }
    // A caller that has gone away is no failure of this.
    let _ = caller.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
}

/// The status that a request gets on a connection of its own.
fn status(entrance: SocketAddr, method: &str) -> String {
    let mut caller = TcpStream::connect(entrance).unwrap();
    caller.set_read_timeout(Some(PATIENCE)).unwrap();
    let request =
        format!("{method} / HTTP/1.1\r\nhost: ratings\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    caller.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    caller.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn a_configuration_with_mistakes_is_refused_if_strictly_so() {
    let directory = Directory::new();
    let bad = MESH.replace("mode: STRICT", "mode: STRICKT");
    let finished = Finished::of(&mut command(&directory, &bad, &["--config-strict"]));
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("--config-strict"), "{finished:#?}");
    assert!(finished.stderr.contains("unknown value `STRICKT`"), "the first mistake: {finished:#?}");
    let directory = Directory::new();
    let by_variable = Finished::of(command(&directory, &bad, &[]).env("WRIT_CONFIG_STRICT", "1"));
    assert_eq!(by_variable.status.code(), Some(1), "{by_variable:#?}");
}

#[test]
fn approved_crypto_can_be_required_where_the_binary_has_it() {
    let directory = Directory::new();
    if cfg!(feature = "certified") {
        let proxy = Proxy::start(MESH, &["--fips=required"]);
        let attested = writ(&["admin", "/attestation", "--admin", &proxy.admin.to_string()]).well();
        let attested: Value = serde_json::from_str(&attested).unwrap();
        assert_eq!((&attested["required"], &attested["fips"]), (&true.into(), &true.into()), "{attested:#}");
        let live = attested["live"].as_array().unwrap();
        assert!(live.iter().all(|config| config["fips"] == true), "{attested:#}");
        return;
    }
    let refused = Finished::of(&mut command(&directory, MESH, &["--fips=required"]));
    assert_eq!(refused.status.code(), Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("which has no approved mode"), "{refused:#?}");
    assert!(refused.stderr.contains("fips/certified"), "what to run instead: {refused:#?}");
    assert_eq!(refused.stdout, "");
    let mesh = directory.path().join("config");
    let checked = writ(&["check", mesh.to_str().unwrap(), "--fips=required"]);
    assert_eq!(checked.status.code(), Some(1), "{checked:#?}");
    assert!(checked.stderr.contains("no approved mode"), "{checked:#?}");
}

#[test]
fn what_is_in_flight_is_finished_before_it_stops() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = format!("--forward=127.0.0.1:0={}", application.local_addr().unwrap());
    let proxy = Proxy::start("", &[&forward]);
    let entrance = proxy.listening.last().unwrap();
    let mut client = TcpStream::connect(entrance).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"GET /ratings/1 HTTP/1.1\r\nhost: ratings\r\n\r\n").unwrap();

    let (mut server, _) = application.accept().unwrap();
    let mut asked = BufReader::new(server.try_clone().unwrap());
    while asked.by_ref().lines().next().unwrap().unwrap() != "" {}
    // Now it is with the application: told to stop, the proxy waits for this one, and closes then.
    proxy.program.signal(Signal::TERM);
    proxy.program.error_line(|line| line.contains("\"stopping\""));
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nthere").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("there"), "{answer}");

    let finished = proxy.program.ended();
    assert_eq!(finished.status.code(), Some(0), "{finished:#?}");
    assert!(finished.stderr.contains("\"cut\":0"), "{finished:#?}");
    let record: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(record["ended"]["reason"], "complete", "{record:#}");
}

#[test]
fn what_does_not_finish_is_cut_and_recorded() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = format!("--forward=127.0.0.1:0={}", application.local_addr().unwrap());
    let proxy = Proxy::start("", &[&forward, "--drain=100ms"]);
    let entrance = proxy.listening.last().unwrap();
    let mut client = TcpStream::connect(entrance).unwrap();
    client.write_all(b"GET /ratings/1 HTTP/1.1\r\nhost: ratings\r\n\r\n").unwrap();
    let (_server, _) = application.accept().unwrap();
    let finished = proxy.program.stop(Signal::TERM);
    assert_eq!(finished.status.code(), Some(0), "{finished:#?}");
    assert!(finished.stderr.contains("\"cut\":1"), "{finished:#?}");
    let record: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(record["ended"]["reason"], "drain-deadline", "{record:#}");
}

/// A small mesh: every caller must speak mutual TLS.
const MESH: &str = include_str!("../interop/mesh.yaml");

/// `writ run` with a configuration of its own.
struct Proxy {
    program: Program,
    listening: Vec<SocketAddr>,
    admin: SocketAddr,
    directory: Directory,
}

impl Proxy {
    fn start(config: &str, more: &[&str]) -> Self {
        let directory = Directory::new();
        let program = Program::start("writ", &mut command(&directory, config, more));
        let serving = program.error_line(|line| line.contains("\"serving\""));
        let serving: Value = serde_json::from_str(&serving).unwrap();
        let addresses = |field: &str| -> Vec<SocketAddr> {
            let list = serving[field].as_str().unwrap().trim_start_matches('[');
            let list = list.strip_suffix(']').unwrap();
            list.split(", ").map(|address| address.parse().unwrap()).collect()
        };
        Self { listening: addresses("listening"), admin: addresses("admin")[0], program, directory }
    }

    fn ready(&self) -> Finished {
        writ(&["admin", "/ready", "--admin", &self.admin.to_string()])
    }

    /// Waits until it is ready, and says so as asked.
    #[track_caller]
    fn is_ready(&self, when: &str, asked: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.ready();
            if said.status.success() && asked(&said.stdout) {
                return;
            }
            assert!(Instant::now() < deadline, "not ready {when}: {said:#?}");
        }
    }
}

fn command(directory: &Directory, config: &str, more: &[&str]) -> Command {
    fs::create_dir(directory.path().join("config")).unwrap();
    fs::write(directory.path().join("config/mesh.yaml"), config).unwrap();
    let mut run = Command::new(program::writ());
    run.args(["run", "--outbound=127.0.0.1:0", "--inbound=off", "--health=off", "--metrics=off"]);
    run.args(["--admin=127.0.0.1:0", "--lame-duck=0s", "--workers=1"]);
    run.arg("--config").arg(directory.path().join("config")).args(more);
    run
}
