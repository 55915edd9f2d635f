//! A Go program, by crypto/tls, calls a sidecar and is called by one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use fips::ca::KeyType;

use serde_json::Value;
use tests::App;
use tests::program::{Finished, Program};

use super::house::{Application, House, Identity, KEYS, agreed, curl, id, installed, of_path, status};
use super::suites::Choice;
use crate::records::text;

const PEER: &str = "go/peer";

/// `choice`: what may be agreed; `None`: TLS 1.3.
fn peer(program: &Path, mode: &str, identity: &Identity, expect: &str, choice: Option<&Choice>) -> Command {
    let mut peer = Command::new(program);
    peer.arg(mode).arg("-dir").arg(&identity.dir).args(["-expect", expect]);
    if let Some(choice) = choice {
        peer.args(["-version", choice.version, "-groups", &choice.groups().join(",")]);
        if let Some((_, named)) = choice.suite {
            peer.args(["-suite", named]);
        }
    }
    peer
}

#[test]
fn go_calls_a_sidecar_by_every_suite_and_group_over_http1_and_http2() {
    let Some(go) = installed("go_calls_a_sidecar_by_every_suite_and_group_over_http1_and_http2", PEER) else {
        return;
    };
    let app = Application::start(App::echo);
    let house = House::new();
    let servers = KEYS.map(|key| house.serving(&house.identity("server", key), app.address()));
    let callers = KEYS.map(|key| house.identity("caller", key));
    let records = servers.each_ref().map(|server| server.records());
    for choice in Choice::all() {
        let kind = choice.key as usize;
        for (protocol, more) in [("HTTP/1.1", None), ("HTTP/2.0", Some("-http2"))] {
            let path = format!("/{choice}/{protocol}");
            let mut call = peer(&go, "call", &callers[kind], &id("server"), Some(&choice));
            call.args(["-url", &format!("https://{}{path}", servers[kind].address)]).args(more);
            let said: Value = serde_json::from_str(&Finished::of(&mut call).well()).unwrap();
            assert_eq!((&said["status"], text(&said, "/protocol")), (&200.into(), protocol), "{choice}");
            assert_eq!(said["resumed"], false, "{choice}");
            let record = records[kind].one(of_path(&path));
            assert!(choice.is(agreed(&record)), "{choice}: {:?}", agreed(&record));
            assert_eq!(text(&said, "/suite"), agreed(&record)[1], "{choice}");
            assert_eq!(text(&record, "/source/identity"), id("caller"), "{choice}");
        }
    }
}

#[test]
fn a_sidecar_calls_go_by_every_suite_and_group_over_http1_and_http2() {
    let test = "a_sidecar_calls_go_by_every_suite_and_group_over_http1_and_http2";
    let Some(go) = installed(test, PEER) else { return };
    let house = House::new();
    let identities = KEYS.map(|key| house.identity("server", key));
    let mut peers = Vec::new();
    let mut servers = BTreeMap::new();
    let choices = Choice::all();
    for (choice, http2, name) in cases(&choices) {
        let identity = &identities[choice.key as usize];
        let mut serve = peer(&go, "serve", identity, &id("caller"), Some(choice));
        let (server, address) = serving(serve.args(http2.then_some("-http2")));
        peers.push(server);
        servers.insert(name, address);
    }
    let sidecars = KEYS.map(|key| house.calling(&house.identity("caller", key), &servers));
    let records = sidecars.each_ref().map(|sidecar| sidecar.records());
    for (choice, http2, name) in cases(&choices) {
        let kind = choice.key as usize;
        let (path, host) = (format!("/{name}"), format!("Host: {name}.shop"));
        let spoken = if http2 { "--http2-prior-knowledge" } else { "--http1.1" };
        let said = curl(&[spoken, "--header", &host, &format!("http://{}{path}", sidecars[kind].address)]);
        let said: Value = serde_json::from_str(&said.well()).unwrap();
        assert_eq!(text(&said, "/protocol"), if http2 { "HTTP/2.0" } else { "HTTP/1.1" }, "{name}");
        assert_eq!(text(&said, "/peer"), id("caller"), "{name}");
        let record = records[kind].one(of_path(&path));
        assert!(choice.is(agreed(&record)), "{name}: {:?}", agreed(&record));
    }
}

/// Each over HTTP/1 and HTTP/2, by name. Go serves no HTTP/2 without the one suite that its RFC demands.
fn cases(choices: &[Choice]) -> impl Iterator<Item = (&Choice, bool, String)> {
    let all = choices.iter().flat_map(|choice| [(choice, false), (choice, true)]);
    let possible = all.filter(|(choice, http2)| {
        !http2 || choice.suite.is_none_or(|(_, named)| named.ends_with("AES_128_GCM_SHA256"))
    });
    possible.map(|(choice, http2)| (choice, http2, format!("{choice}-{}", if http2 { "h2" } else { "h1" })))
}

#[test]
fn identities_that_are_not_the_right_ones_are_refused_between_go_and_a_sidecar() {
    let test = "identities_that_are_not_the_right_ones_are_refused_between_go_and_a_sidecar";
    let Some(go) = installed(test, PEER) else { return };
    let app = Application::start(App::echo);
    let house = House::new();
    let (right, server) = (house.identity("caller", KeyType::P256), house.identity("server", KeyType::P256));
    let sidecar = house.serving(&server, app.address());
    let records = sidecar.records();
    let url = format!("https://{}/1", sidecar.address);
    for (identity, expect, reason) in
        [(&right, id("other"), "handshake-failed"), (&house.forged("caller"), id("server"), "untrusted-root")]
    {
        let said = Finished::of(peer(&go, "call", identity, &expect, None).args(["-url", &url]));
        assert_eq!(said.status.code(), Some(1), "{reason}: {said:?}");
        records.one(|record| text(record, "/ended/reason") == reason);
    }
    assert!(app.seen().is_empty());

    let cases = [
        ("is-another", house.identity("another", KeyType::P256), id("caller"), "identity-mismatch"),
        ("is-forged", house.forged("server"), id("caller"), "untrusted-root"),
        ("expects-another", server, id("other"), "tls-failed"),
    ];
    let peers: Vec<_> =
        cases.iter().map(|(_, own, expect, _)| serving(&mut peer(&go, "serve", own, expect, None))).collect();
    let servers = cases.iter().zip(&peers).map(|((name, ..), (_, at))| ((*name).to_owned(), *at)).collect();
    let sidecar = house.calling(&right, &servers);
    let records = sidecar.records();
    for (name, _, _, reason) in &cases {
        let path = format!("/{name}");
        let url = format!("http://{}{path}", sidecar.address);
        assert_eq!(status(false, &format!("{name}.shop"), &url), "503", "{name}");
        let record = records.one(of_path(&path));
        assert_eq!(text(&record, "/ended/reason"), *reason, "{name}: {record:#}");
    }
}

/// Starts a Go server, and gives where it is.
fn serving(peer: &mut Command) -> (Program, SocketAddr) {
    let server = Program::start("go", peer);
    let line = server.line(|line| line.starts_with("ready "));
    let address = line["ready ".len()..].parse().unwrap();
    (server, address)
}
