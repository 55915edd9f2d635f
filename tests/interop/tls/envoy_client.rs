//! Envoy calls a sidecar over mutual TLS.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use fips::ca::KeyType;

use http::Version;
use tests::App;

use super::envoy::{ENVOY, Envoy, Tls, cluster, entrance, opaque_entrance};
use super::house::{Application, House, Identity, KEYS, agreed, id, installed, of_path, status};
use super::suites::Choice;
use crate::records::{check, text};

/// As a mesh of Envoys would call.
fn mesh_tls(identity: &Identity, alpn: &[&'static str]) -> Tls {
    Tls::mesh(identity, alpn, "server")
}

#[test]
fn envoy_calls_a_sidecar_over_http1_and_http2() {
    let Some(envoy) = installed("envoy_calls_a_sidecar_over_http1_and_http2", ENVOY) else { return };
    let app = Application::start(App::echo);
    let house = House::new();
    let caller = house.identity("caller", KeyType::P256);
    let sidecar = house.serving(&house.identity("server", KeyType::P256), app.address());
    let cases: [(&str, bool, &[&str]); 6] = [
        ("h1", false, &["http/1.1"]),
        ("h2", true, &["h2"]),
        ("istio-h1", false, &["istio-http/1.1", "istio", "http/1.1"]),
        ("istio-h2", true, &["istio-h2", "istio", "h2"]),
        ("exchanging-h1", false, &["istio-peer-exchange", "istio-http/1.1", "istio", "http/1.1"]),
        ("silent-h1", false, &[]),
    ];
    let clusters = cases
        .iter()
        .map(|(name, http2, alpn)| cluster(name, sidecar.address, *http2, &mesh_tls(&caller, alpn)));
    let entrances = vec![entrance(&cases.map(|(name, ..)| name))];
    let envoy = Envoy::start(&envoy, &house, "envoy", entrances, clusters.collect());
    let records = sidecar.records();
    for (name, http2, _) in cases {
        let path = format!("/{name}/1");
        let url = format!("http://{}{path}", envoy.address("entrance"));
        assert_eq!(status(http2, "server", &url), "200", "{name}");
        let record = records.one(of_path(&path));
        assert_eq!(text(&record, "/request/protocol"), if http2 { "HTTP/2" } else { "HTTP/1.1" }, "{name}");
        assert_eq!(text(&record, "/source/identity"), id("caller"), "{name}");
        assert_eq!(text(&record, "/decision/policy/name"), "callers", "{name}");
        let seen = app.seen();
        let seen = seen.iter().find(|seen| seen.head.uri.path() == path).unwrap();
        assert_eq!(seen.head.version == Version::HTTP_2, http2, "{name}");
    }
}

#[test]
fn envoy_calls_a_sidecar_by_every_suite_and_group() {
    let Some(envoy) = installed("envoy_calls_a_sidecar_by_every_suite_and_group", ENVOY) else { return };
    let app = Application::start(App::echo);
    let house = House::new();
    let servers = KEYS.map(|key| house.serving(&house.identity("server", key), app.address()));
    // Who calls has the same kind of key as who is called, so that both sides sign by both kinds.
    let callers = KEYS.map(|key| house.identity("caller", key));
    let choices = Choice::all();
    let names: Vec<String> = choices.iter().map(ToString::to_string).collect();
    let clusters = choices.iter().zip(&names).map(|(choice, name)| {
        let tls = mesh_tls(&callers[choice.key as usize], &["http/1.1"]).held_to(choice);
        cluster(name, servers[choice.key as usize].address, false, &tls)
    });
    let entrances = vec![entrance(&names.iter().map(String::as_str).collect::<Vec<_>>())];
    let envoy = Envoy::start(&envoy, &house, "envoy", entrances, clusters.collect());
    let records = servers.each_ref().map(|server| server.records());
    for (choice, name) in choices.iter().zip(&names) {
        let path = format!("/{name}/1");
        let url = format!("http://{}{path}", envoy.address("entrance"));
        assert_eq!(status(false, "server", &url), "200", "{name}");
        let record = records[choice.key as usize].one(of_path(&path));
        assert!(choice.is(agreed(&record)), "{name}: {:?}", agreed(&record));
        assert_eq!(text(&record, "/source/identity"), id("caller"), "{name}");
    }
}

#[test]
fn identities_that_are_not_the_right_ones_are_refused_between_envoy_and_a_sidecar() {
    let test = "identities_that_are_not_the_right_ones_are_refused_between_envoy_and_a_sidecar";
    let Some(envoy) = installed(test, ENVOY) else { return };
    let app = Application::start(App::echo);
    let house = House::new();
    let caller = house.identity("caller", KeyType::P256);
    let sidecar = house.serving(&house.identity("server", KeyType::P256), app.address());
    let right = mesh_tls(&caller, &["http/1.1"]);
    let cases = [
        ("envoy-expects-another", Tls { expects: id("other"), ..right.clone() }),
        ("envoy-is-forged", Tls { identity: house.forged("caller"), ..right.clone() }),
        ("envoy-is-another", Tls { identity: house.identity("another", KeyType::P256), ..right.clone() }),
        ("right", right),
    ];
    let clusters = cases.iter().map(|(name, tls)| cluster(name, sidecar.address, false, tls)).collect();
    let entrances = vec![entrance(&cases.each_ref().map(|(name, _)| *name))];
    let envoy = Envoy::start(&envoy, &house, "envoy", entrances, clusters);
    let ask = |name: &str| status(false, "server", &format!("http://{}/{name}/1", envoy.address("entrance")));
    let records = sidecar.records();

    assert_eq!(ask("envoy-expects-another"), "503");
    let refused = records.one(|record| text(record, "/ended/reason") == "handshake-failed");
    assert_eq!(text(&refused, "/ended/stage"), "terminate", "{refused:#}");

    assert_eq!(ask("envoy-is-forged"), "503");
    let refused = records.one(|record| text(record, "/decision/reason") == "untrusted-root");
    assert_eq!(check(&refused, "service-authentication")["outcome"], "fail", "{refused:#}");

    // The mesh's own, but nobody that the policy allows.
    assert_eq!(ask("envoy-is-another"), "403");
    let refused = records.one(|record| text(record, "/decision/reason") == "no-allow-matched");
    assert_eq!(text(&refused, "/source/identity"), id("another"), "{refused:#}");

    assert_eq!(ask("right"), "200");
    assert_eq!(app.seen().len(), 1);
}

#[test]
fn envoy_tunnels_bytes_that_are_not_http_by_istios_alpn() {
    let Some(envoy) = installed("envoy_tunnels_bytes_that_are_not_http_by_istios_alpn", ENVOY) else {
        return;
    };
    let app = Application::start(|| {
        App::raw(|mut socket, _| async move {
            let (mut read, mut write) = socket.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        })
    });
    let house = House::new();
    let sidecar = house.serving(&house.identity("server", KeyType::P256), app.address());
    let caller = house.identity("caller", KeyType::P256);
    let offers: [(&str, &[&str]); 2] =
        [("plain", &["istio"]), ("exchanging", &["istio-peer-exchange", "istio"])];
    let clusters = offers
        .iter()
        .map(|(name, alpn)| cluster(name, sidecar.address, false, &mesh_tls(&caller, alpn)))
        .collect();
    let entrances = offers.iter().map(|(name, _)| opaque_entrance(name)).collect();
    let envoy = Envoy::start(&envoy, &house, "envoy", entrances, clusters);
    for (name, _) in offers {
        let entrance: SocketAddr = envoy.address(name);
        let mut stream = TcpStream::connect(entrance).unwrap();
        stream.set_read_timeout(Some(tests::PATIENCE)).unwrap();
        stream.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut echoed = String::new();
        stream.read_to_string(&mut echoed).unwrap();
        assert_eq!(echoed, "*1\r\n$4\r\nPING\r\n", "{name}");
    }
    for record in sidecar.records().wait(2, |record| text(record, "/request/protocol") == "tcp") {
        assert_eq!(text(&record, "/source/identity"), id("caller"), "{record:#}");
        assert_eq!(text(&record, "/decision/policy/name"), "callers", "{record:#}");
    }
}
