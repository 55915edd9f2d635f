//! A sidecar calls Envoy over mutual TLS.

use std::collections::BTreeMap;

use fips::ca::KeyType;

use super::envoy::{ENVOY, Envoy, Tls, answering, answering_as_istio};
use super::house::{House, Identity, KEYS, agreed, curl, id, installed, of_path, status};
use super::suites::Choice;
use crate::records::{check, text};

/// As a mesh of Envoys would answer.
fn mesh_tls(identity: &Identity, alpn: &[&'static str]) -> Tls {
    Tls::mesh(identity, alpn, "caller")
}

#[test]
fn a_sidecar_calls_envoy_over_http1_and_http2() {
    let Some(envoy) = installed("a_sidecar_calls_envoy_over_http1_and_http2", ENVOY) else { return };
    let house = House::new();
    let server = house.identity("server", KeyType::P256);
    let listeners = vec![
        answering("h1", &mesh_tls(&server, &["http/1.1"])),
        answering("h2", &mesh_tls(&server, &["h2"])),
        answering("silent-h1", &mesh_tls(&server, &[])),
        // What Istio gives its sidecars, whichever they serve.
        answering_as_istio("istio-h1", &mesh_tls(&server, &["istio-peer-exchange", "h2", "http/1.1"])),
        answering_as_istio("istio-h2", &mesh_tls(&server, &["istio-peer-exchange", "h2", "http/1.1"])),
    ];
    let names = ["h1", "h2", "silent-h1", "istio-h1", "istio-h2"];
    let envoy = Envoy::start(&envoy, &house, "envoy", listeners, vec![]);
    let servers: BTreeMap<_, _> =
        names.iter().map(|name| ((*name).to_owned(), envoy.address(name))).collect();
    let sidecar = house.calling(&house.identity("caller", KeyType::P256), &servers);
    let records = sidecar.records();
    for name in names {
        let http2 = name.contains("h2");
        let (path, url) = (format!("/{name}/1"), format!("http://{}/{name}/1", sidecar.address));
        let protocol = if http2 { "--http2-prior-knowledge" } else { "--http1.1" };
        let answer = curl(&[protocol, "--include", "--header", &format!("Host: {name}.shop"), &url]).well();
        let answer = answer.to_lowercase();
        assert!(answer.contains(&format!("x-peer: {}", id("caller"))), "{name}: {answer}");
        assert!(
            answer.contains(if http2 { "x-protocol: http/2" } else { "x-protocol: http/1.1" }),
            "{name}: {answer}"
        );
        let record = records.one(of_path(&path));
        assert_eq!(text(&record, "/route/attempts/0/identity"), id("server"), "{name}: {record:#}");
        assert_eq!(check(&record, "service-authentication")["reason"], "svid-verified", "{name}: {record:#}");
    }
}

#[test]
fn a_sidecar_calls_envoy_by_every_suite_and_group() {
    let Some(envoy) = installed("a_sidecar_calls_envoy_by_every_suite_and_group", ENVOY) else { return };
    let house = House::new();
    let identities = KEYS.map(|key| house.identity("server", key));
    let choices = Choice::all();
    let names: Vec<String> = choices.iter().map(ToString::to_string).collect();
    let listeners = choices.iter().zip(&names).map(|(choice, name)| {
        answering(name, &mesh_tls(&identities[choice.key as usize], &["http/1.1"]).held_to(choice))
    });
    let envoy = Envoy::start(&envoy, &house, "envoy", listeners.collect(), vec![]);
    let servers: BTreeMap<_, _> = names.iter().map(|name| (name.clone(), envoy.address(name))).collect();
    let sidecars = KEYS.map(|key| house.calling(&house.identity("caller", key), &servers));
    let records = sidecars.each_ref().map(|sidecar| sidecar.records());
    for (choice, name) in choices.iter().zip(&names) {
        let (path, kind) = (format!("/{name}/1"), choice.key as usize);
        let url = format!("http://{}{path}", sidecars[kind].address);
        assert_eq!(status(false, &format!("{name}.shop"), &url), "200", "{name}");
        let record = records[kind].one(of_path(&path));
        assert!(choice.is(agreed(&record)), "{name}: {:?}", agreed(&record));
    }
}

#[test]
fn identities_that_are_not_the_right_ones_are_refused_between_a_sidecar_and_envoy() {
    let test = "identities_that_are_not_the_right_ones_are_refused_between_a_sidecar_and_envoy";
    let Some(envoy) = installed(test, ENVOY) else { return };
    let house = House::new();
    let right = mesh_tls(&house.identity("server", KeyType::P256), &["http/1.1"]);
    let cases = [
        (
            "is-another",
            Tls { identity: house.identity("another", KeyType::P256), ..right.clone() },
            "identity-mismatch",
        ),
        ("is-forged", Tls { identity: house.forged("server"), ..right.clone() }, "untrusted-root"),
        ("expects-another", Tls { expects: id("other"), ..right }, "tls-failed"),
    ];
    let listeners = cases.iter().map(|(name, tls, _)| answering(name, tls)).collect();
    let envoy = Envoy::start(&envoy, &house, "envoy", listeners, vec![]);
    let servers: BTreeMap<_, _> =
        cases.iter().map(|(name, ..)| ((*name).to_owned(), envoy.address(name))).collect();
    let sidecar = house.calling(&house.identity("caller", KeyType::P256), &servers);
    let records = sidecar.records();
    for (name, _, reason) in cases {
        let path = format!("/{name}/1");
        let url = format!("http://{}{path}", sidecar.address);
        assert_eq!(status(false, &format!("{name}.shop"), &url), "503", "{name}");
        let record = records.one(of_path(&path));
        assert_eq!(text(&record, "/ended/reason"), reason, "{name}: {record:#}");
    }
}
