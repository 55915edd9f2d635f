//! `openssl s_client` and `s_server` on the other end of a sidecar. Unlike others, OpenSSL lets one choose a suite of TLS 1.3.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use fips::ca::KeyType;
use tests::App;
use tests::program::{Finished, Program};

use super::house::{Application, House, Identity, KEYS, agreed, id, of_path, status};
use super::suites::Choice;
use crate::installed;
use crate::records::text;

/// Every choice that this OpenSSL has, and for TLS 1.3 each suite.
fn choices() -> Vec<(Choice, Option<&'static str>)> {
    // Hybrid groups came with OpenSSL 3.5.
    let hybrid = Finished::of(Command::new("openssl").args(["list", "-kem-algorithms"]))
        .well()
        .contains("X25519MLKEM768");
    let all = Choice::all().into_iter().filter(|choice| hybrid || choice.group.0 != "X25519MLKEM768");
    let suites = ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"];
    all.flat_map(|choice| match choice.version {
        "1.3" => suites.map(|suite| (choice, Some(suite))).to_vec(),
        _ => vec![(choice, None)],
    })
    .collect()
}

fn openssl(mode: &str, identity: &Identity, choice: &Choice, suite: Option<&str>) -> Command {
    let mut openssl = Command::new("openssl");
    openssl.args([mode, if choice.version == "1.2" { "-tls1_2" } else { "-tls1_3" }, "-verify_return_error"]);
    openssl.arg("-cert").arg(identity.certificate()).arg("-key").arg(identity.key());
    openssl.arg("-CAfile").arg(identity.roots()).args(["-groups", &choice.groups().join(":")]);
    if let Some((name, _)) = choice.suite {
        openssl.args(["-cipher", name]);
    }
    if let Some(suite) = suite {
        openssl.args(["-ciphersuites", suite]);
    }
    openssl
}

#[test]
fn s_client_calls_a_sidecar_by_every_suite_and_group() {
    if !installed("s_client_calls_a_sidecar_by_every_suite_and_group", &["curl", "openssl"]) {
        return;
    }
    let app = Application::start(App::echo);
    let house = House::new();
    let servers = KEYS.map(|key| house.serving(&house.identity("server", key), app.address()));
    let callers = KEYS.map(|key| house.identity("caller", key));
    let records = servers.each_ref().map(|server| server.records());
    for (choice, suite) in choices() {
        let (name, kind) = (format!("{choice}-{}", suite.unwrap_or_default()), choice.key as usize);
        let path = format!("/{name}");
        let mut client = openssl("s_client", &callers[kind], &choice, suite);
        client.args(["-quiet", "-no_ign_eof", "-connect", &servers[kind].address.to_string()]);
        let said = ask(client, &path);
        assert!(said.contains("200 OK") && said.contains("hello"), "{name}: {said}");
        let record = records[kind].one(of_path(&path));
        assert!(choice.is(agreed(&record)), "{name}: {:?}", agreed(&record));
        assert_eq!(suite.unwrap_or(agreed(&record)[1]), agreed(&record)[1], "{name}");
        assert_eq!(text(&record, "/source/identity"), id("caller"), "{name}");
    }
}

#[test]
fn a_sidecar_calls_s_server_by_every_suite_and_group() {
    if !installed("a_sidecar_calls_s_server_by_every_suite_and_group", &["curl", "openssl"]) {
        return;
    }
    let house = House::new();
    let identities = KEYS.map(|key| house.identity("server", key));
    let choices = choices();
    let mut peers = Vec::new();
    let mut servers = BTreeMap::new();
    for (number, (choice, suite)) in choices.iter().enumerate() {
        let identity = &identities[choice.key as usize];
        let mut server = openssl("s_server", identity, choice, *suite);
        server.args(["-accept", "127.0.0.1:0", "-www", "-Verify", "2"]);
        let server = Program::start("s_server", &mut server);
        let line = server.line(|line| line.starts_with("ACCEPT "));
        servers.insert(format!("server-{number}"), line["ACCEPT ".len()..].parse().unwrap());
        peers.push(server);
    }
    let sidecars = KEYS.map(|key| house.calling(&house.identity("caller", key), &servers));
    let records = sidecars.each_ref().map(|sidecar| sidecar.records());
    for (number, (choice, suite)) in choices.iter().enumerate() {
        let (path, kind) = (format!("/{number}"), choice.key as usize);
        let url = format!("http://{}{path}", sidecars[kind].address);
        assert_eq!(status(false, &format!("server-{number}.shop"), &url), "200", "{choice}");
        let record = records[kind].one(of_path(&path));
        assert!(choice.is(agreed(&record)), "{choice}: {:?}", agreed(&record));
        assert_eq!(suite.unwrap_or(agreed(&record)[1]), agreed(&record)[1], "{choice}");
    }
}

/// By tickets, in either version of TLS, and each ticket of TLS 1.3 once it came with an answer.
#[test]
fn s_client_resumes_its_sessions_at_the_edge() {
    if !installed("s_client_resumes_its_sessions_at_the_edge", &["openssl"]) {
        return;
    }
    let house = House::new();
    let edge = house.edge(&house.identity("server", KeyType::P256));
    let session = house.file("session.pem");
    for version in ["-tls1_2", "-tls1_3"] {
        let ask = |how: &str| {
            let mut client = Command::new("openssl");
            client
                .args(["s_client", version, "-ign_eof", "-connect", &edge.address.to_string(), how])
                .arg(&session);
            ask(client, "/nowhere")
        };
        let first = ask("-sess_out");
        assert!(first.contains("404 Not Found") && first.contains("New, "), "{version}: {first}");
        let second = ask("-sess_in");
        assert!(second.contains("404 Not Found") && second.contains("Reused, "), "{version}: {second}");
    }
}

#[test]
fn s_client_without_a_certificate_is_refused() {
    if !installed("s_client_without_a_certificate_is_refused", &["curl", "openssl"]) {
        return;
    }
    let app = Application::start(App::echo);
    let house = House::new();
    let sidecar = house.serving(&house.identity("server", KeyType::P256), app.address());
    for version in ["-tls1_2", "-tls1_3"] {
        let mut client = Command::new("openssl");
        client.args(["s_client", version, "-quiet", "-no_ign_eof", "-connect", &sidecar.address.to_string()]);
        assert!(!ask(client, "/").contains("200"), "{version}");
    }
    sidecar.records().wait(2, |record| text(record, "/ended/reason") == "no-identity");
    assert!(app.seen().is_empty());
}

/// Sends a request into a client, and gives what came back by the time the server closed.
fn ask(mut client: Command, path: &str) -> String {
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = client.spawn().unwrap();
    let mut stdin = client.stdin.take().unwrap();
    // It may have ended already, refused.
    let _ = write!(stdin, "GET {path} HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n");
    let output = client.wait_with_output().unwrap();
    drop(stdin);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
