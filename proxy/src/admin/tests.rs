//! What the listeners answer, over real sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::telemetry::{ConfigStatus, Options, ProxyFacts, Sink};

fn state() -> AdminState {
    let ready = Arc::new(Readiness::new(&["config"]));
    ready.ready("config");
    AdminState {
        ready,
        telemetry: Telemetry::start(Options::new(ProxyFacts::default(), Sink::Off)).unwrap(),
        attestation: || json!({"module": "m"}),
        explain: Some(Arc::new(|query| match query {
            "" => Err("say what to explain".into()),
            query => Ok(json!({ "query": query })),
        })),
        candidate: None,
    }
}

fn listen(kind: Kind, state: &AdminState) -> (SocketAddr, Handle) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (address, start(vec![(listener.into(), kind)], state.clone()).unwrap())
}

/// Status, and everything after the status line.
fn exchange(mut stream: impl Read + Write, request: &str) -> (u16, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (line, rest) = answer.split_once("\r\n").unwrap();
    (line.split(' ').nth(1).unwrap().parse().unwrap(), rest.to_owned())
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    exchange(TcpStream::connect(address).unwrap(), &request)
}

fn body(answer: &(u16, String)) -> &str {
    answer.1.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn admin_answers_everything() {
    let state = state();
    state.telemetry.set_config(ConfigStatus { version: 9, ..ConfigStatus::default() });
    let (address, _handle) = listen(Kind::Admin, &state);
    for (path, status, part) in [
        ("/", 200, "/explain?"),
        ("/ready", 200, "ready"),
        ("/healthz/ready", 200, "ready"),
        ("/live", 200, "live"),
        ("/metrics", 200, "writ_config_version 9\n"),
        ("/stats/prometheus", 200, "# EOF\n"),
        ("/config", 200, "\"version\": 9"),
        ("/attestation", 200, "\"module\": \"m\""),
        ("/jwks", 200, "[]"),
        ("/explain?from=a", 200, "\"query\": \"from=a\""),
        ("/explain", 400, "say what to explain\n"),
        ("/nothing", 404, "no such path"),
    ] {
        let answer = get(address, path);
        assert_eq!(answer.0, status, "{path}");
        assert!(body(&answer).contains(part), "{path}: {answer:?}");
    }
    let config: Value = serde_json::from_str(body(&get(address, "/config"))).unwrap();
    assert_eq!(config["verdicts"], json!([]));
    assert!(get(address, "/metrics").1.contains("content-type: application/openmetrics-text; version=1.0.0"));
}

#[test]
fn what_is_not_ready_says_why() {
    let state = state();
    state.ready.not_ready("config", "no snapshot yet from dir:/etc/writ");
    let (address, _handle) = listen(Kind::Health, &state);
    let answer = get(address, "/healthz/ready");
    assert_eq!((answer.0, body(&answer)), (503, "config: no snapshot yet from dir:/etc/writ\n"));
    assert_eq!(get(address, "/live").0, 200);
}

#[test]
fn open_ports_say_nothing_of_the_configuration() {
    let state = state();
    for kind in [Kind::Health, Kind::Metrics] {
        let (address, _handle) = listen(kind, &state);
        for path in ["/config", "/attestation", "/jwks", "/explain?a"] {
            assert_eq!(get(address, path).0, 404, "{kind:?} {path}");
        }
        assert_eq!(get(address, "/metrics").0, if kind == Kind::Metrics { 200 } else { 404 });
    }
}

#[test]
fn this_interface_only_reads() {
    let (address, _handle) = listen(Kind::Admin, &state());
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let request = format!("{method} /ready HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = exchange(TcpStream::connect(address).unwrap(), &request);
        assert_eq!(answer.0, 405, "{method}");
        assert!(answer.1.contains("allow: GET, HEAD"), "{answer:?}");
    }
    let head =
        exchange(TcpStream::connect(address).unwrap(), "HEAD /ready HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((head.0, body(&head)), (200, ""));
}

#[test]
fn a_name_that_was_pointed_at_loopback_is_refused() {
    let (address, _handle) = listen(Kind::Admin, &state());
    for (host, status) in [
        ("localhost:15000", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:15000", 200),
        ("evil.example:15000", 421),
        ("localhost.evil.example", 421),
        ("a b", 421),
        ("", 421),
    ] {
        let request = format!("GET /config HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(exchange(TcpStream::connect(address).unwrap(), &request).0, status, "{host:?}");
    }
    let old = exchange(TcpStream::connect(address).unwrap(), "GET /config HTTP/1.0\r\n\r\n");
    assert_eq!(old.0, 200, "without a host there is no page behind it");
}

#[test]
fn a_unix_socket_answers_too() {
    let path = std::env::temp_dir().join(format!("writ-admin-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let handle = start(vec![(listener.into(), Kind::Admin)], state()).unwrap();
    let answer =
        exchange(UnixStream::connect(&path).unwrap(), "GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(answer.0, 200);
    handle.stop();
}

#[test]
fn slow_clients_of_one_listener_keep_nobody_from_another() {
    let state = state();
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (admin, health) = (bind(), bind());
    let (busy, free) = (admin.local_addr().unwrap(), health.local_addr().unwrap());
    let _handle = start(vec![(admin.into(), Kind::Admin), (health.into(), Kind::Health)], state).unwrap();
    let _held: Vec<_> = (0..serve::CONNECTION_LIMIT + 8).map(|_| TcpStream::connect(busy).unwrap()).collect();
    assert_eq!(get(free, "/ready").0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_nothing_is_cut() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let worker = async {
        for sent in ["", "GET /live HTTP/1.1\r\nHost:"] {
            let (mut client, server) = tokio::io::duplex(1024);
            let places = Arc::new(tokio::sync::Semaphore::new(1));
            let permit = Arc::clone(&places).acquire_owned().await.unwrap();
            serve::spawn(server, permit, Kind::Health, &std::rc::Rc::new(state()));
            client.write_all(sent.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
            let _place = places.acquire().await.unwrap();
        }
    };
    tokio::task::LocalSet::new().run_until(worker).await;
}
