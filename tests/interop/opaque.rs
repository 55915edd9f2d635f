//! Bytes that are not HTTP: TCP services through the mesh, and what the rules leave alone.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::PATIENCE;
use tests::program::Finished;

use crate::mesh::{Mesh, Pod, PodOptions, serve};
use crate::namespace::available;
use crate::records::{Records, text};

const CLIENT: &str = "spiffe://cluster.local/ns/bookinfo/sa/client";

#[test]
fn half_closed_tcp_gets_its_answer() {
    if !available("half_closed_tcp_gets_its_answer") {
        return;
    }
    let mesh = Mesh::new();
    let client = mesh.client(PodOptions::default());
    let v1 = mesh.v1(PodOptions::default()).serving("echo", 7000, "echo");
    for service in ["10.96.0.20:7000", "[fd96::20]:7000"] {
        // Enough to fill every buffer on the way several times.
        let sent: Vec<u8> = (0..4_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 4]).collect();
        let received = client.machine.run(|| {
            let mut stream = connect(service);
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        assert_eq!(received.len(), sent.len() + 4);
        assert!(received.strip_suffix(b"|end") == Some(&sent[..]), "other bytes than were sent");
        let record = client.records().one(to(service));
        assert_eq!(text(&record, "/request/protocol"), "tcp", "{record:#}");
        assert_eq!(text(&record, "/destination/service"), "echo.bookinfo.svc.cluster.local:7000");
        assert_eq!(text(&record, "/ended/reason"), "complete");
    }
    for record in v1.records().wait(2, |_| true) {
        assert_eq!(text(&record, "/source/identity"), CLIENT);
        assert_eq!(text(&record, "/decision/policy/name"), "ratings-callers", "{record:#}");
        assert_eq!(record["request"]["bytes"], 4_000_000, "{record:#}");
        assert_eq!(record["response"]["bytes"], 4_000_004);
    }
}

#[test]
fn a_server_that_speaks_first_is_not_kept_waiting() {
    if !available("a_server_that_speaks_first_is_not_kept_waiting") {
        return;
    }
    let mesh = Mesh::new();
    let client = mesh.client(PodOptions::default());
    let v1 = mesh.v1(PodOptions::default()).serving("banner", 7100, "mail");
    let mut sessions = Vec::new();
    for _ in 0..2 {
        sessions.push(client.machine.run(|| {
            let begun = Instant::now();
            let mut stream = BufReader::new(connect("10.96.0.30:7100"));
            let mut greeting = String::new();
            stream.read_line(&mut greeting).unwrap();
            let waited = begun.elapsed();
            stream.get_mut().write_all(b"HELO\r\n").unwrap();
            let mut answer = String::new();
            stream.read_line(&mut answer).unwrap();
            (greeting + &answer, waited)
        }));
    }
    for (said, waited) in &sessions {
        assert_eq!(said, "220 mail\r\n250 HELO\r\n");
        assert!(*waited < Duration::from_secs(1), "{sessions:?}");
    }
    let records = v1.records().wait(2, |_| true);
    assert!(records.iter().all(|record| text(record, "/source/identity") == CLIENT), "{records:#?}");
}

/// Its port is declared to be HTTP nowhere, and the client takes its time: longer than detection waits.
#[test]
fn a_slow_client_is_not_taken_for_opaque() {
    if !available("a_slow_client_is_not_taken_for_opaque") {
        return;
    }
    let mesh = Mesh::new();
    let client = mesh.client(PodOptions::default());
    let outsider = mesh.outsider();
    let _plain = serve(&outsider, "http", 8000, "elsewhere");
    let answer = client.machine.run(|| {
        let mut stream = connect("10.77.0.66:8000");
        std::thread::park_timeout(Duration::from_millis(300));
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let record = client.records().one(to("10.77.0.66:8000"));
    assert_eq!(text(&record, "/request/path"), "/slow", "{record:#}");
}

#[test]
fn exclusions_are_left_alone() {
    if !available("exclusions_are_left_alone") {
        return;
    }
    for backend in ["nft", "iptables"] {
        let mesh = Mesh::new();
        let rules = &[
            "--exclude-outbound-ports=3306",
            "--exclude-outbound-cidrs=10.77.0.77/32,fd77::77/128",
            "--exclude-inbound-ports=2222,15090,15021,15000",
        ];
        let client = mesh.client(PodOptions { backend, rules, ..PodOptions::default() });
        let outsider = mesh.outsider();
        let other = mesh.wire.machine("other", 77);
        let _excluded_port = serve(&outsider, "banner", 3306, "database");
        let _excluded_cidr = serve(&other, "banner", 7100, "legacy");
        let _captured = serve(&outsider, "banner", 7100, "captured");
        for to in ["10.77.0.66:3306", "[fd77::66]:3306"] {
            assert_eq!(client.machine.run(|| greeting(to)), "220 database\r\n");
        }
        for to in ["10.77.0.77:7100", "[fd77::77]:7100"] {
            assert_eq!(client.machine.run(|| greeting(to)), "220 legacy\r\n");
        }
        // Inbound, plaintext under STRICT: only an excluded port is reached.
        let client = client.serving("banner", 2222, "shell").serving("banner", 2223, "guarded");
        assert_eq!(outsider.run(|| greeting("10.77.0.10:2222")), "220 shell\r\n");
        assert_eq!(outsider.run(|| greeting("[fd77::10]:2222")), "220 shell\r\n");
        let refused = outsider.run(|| {
            let mut stream = connect("10.77.0.10:2223");
            stream.write_all(b"anything\r\n").unwrap();
            let mut said = Vec::new();
            // A refusal may reset the connection.
            let _ = stream.read_to_end(&mut said);
            said
        });
        assert_eq!(refused, b"");
        // This one is captured, and its record the first of the outbound side.
        assert_eq!(client.machine.run(|| greeting("10.77.0.66:7100")), "220 captured\r\n");
        assert_only_captured(&client);
    }
}

fn assert_only_captured(client: &Pod) {
    let records: Records<'_> = client.records();
    let outbound = records.one(|record| text(record, "/proxy/side") == "outbound");
    assert_eq!(text(&outbound, "/destination/address"), "10.77.0.66:7100");
    assert_eq!(text(&outbound, "/decision/reason"), "no-policy", "{outbound:#}");
    let inbound = records.one(|record| text(record, "/proxy/side") == "inbound");
    assert_eq!(text(&inbound, "/destination/address"), "10.77.0.10:2223");
    assert_eq!(text(&inbound, "/decision/reason"), "plaintext-under-strict", "{inbound:#}");
}

/// Redirection is for TCP. That is a limit to know, so `verify` says it, and this shows that it is so.
#[test]
fn udp_is_not_captured_and_verify_says_so() {
    if !available("udp_is_not_captured_and_verify_says_so") {
        return;
    }
    let mesh = Mesh::new();
    let client = mesh.client(PodOptions::default());
    let outsider = mesh.outsider();
    let server = outsider.run(|| UdpSocket::bind("10.77.0.66:5353").unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    client.machine.run(|| {
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"query", "10.77.0.66:5353").unwrap();
    });
    let mut datagram = [0; 16];
    let (length, from) = server.recv_from(&mut datagram).unwrap();
    assert_eq!((&datagram[..length], from.ip().to_string().as_str()), (&b"query"[..], "10.77.0.10"));
    let report = Finished::of(client.machine.command(mesh.writ()).args(["intercept", "verify"])).well();
    let never = report.split_once("never captured:").unwrap().1;
    assert!(never.contains("UDP"), "{report}");
}

fn connect(to: &str) -> TcpStream {
    let to: SocketAddr = to.parse().unwrap();
    let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What a server that speaks first says, and then the end of the connection.
fn greeting(to: &str) -> String {
    let mut said = String::new();
    BufReader::new(connect(to)).read_line(&mut said).unwrap();
    said
}

fn to(address: &str) -> impl Fn(&Value) -> bool {
    move |record| text(record, "/destination/address") == address
}
