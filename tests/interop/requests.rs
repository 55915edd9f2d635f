//! HTTP through intercepted sidecars, by curl.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tests::program::Finished;

use crate::mesh::{Mesh, PodOptions, curl, serve};
use crate::namespace::available;
use crate::records::{check, text};

const CLIENT: &str = "spiffe://cluster.local/ns/bookinfo/sa/client";
const RATINGS: &str = "spiffe://cluster.local/ns/bookinfo/sa/ratings";

#[test]
fn ten_thousand_requests_are_split_by_weight() {
    if !available("ten_thousand_requests_are_split_by_weight") {
        return;
    }
    const REQUESTS: usize = 10_000;
    let mesh = Mesh::new();
    let client = mesh.client(PodOptions::default());
    let v1 = mesh.v1(PodOptions::default()).serving("http", 9080, "v1");
    let v2 = mesh.v2(PodOptions { by_mark: true, ..PodOptions::default() }).serving("http", 9080, "v2");

    // One connection, which curl keeps; what comes back says which version answered.
    let answers = Finished::of(client.curl().arg("http://ratings:9080/ratings/[1-10000]")).well();
    let answers = answers.lines().map(|line| text(&json_of(line), "/server").to_owned());
    let answers = count(answers);

    let (outbound, at_v1, at_v2) = (client.records(), v1.records(), v2.records());
    let is_ratings = |record: &Value| text(record, "/request/path").starts_with("/ratings/");
    let outbound = outbound.wait(REQUESTS, is_ratings);
    assert_eq!(outbound.len(), REQUESTS);
    let backend = |record: &Value| {
        assert_eq!(record.pointer("/response/status"), Some(&json!(200)), "{record:#}");
        assert_eq!(text(record, "/route/policy/name"), "ratings");
        text(record, "/route/backend").to_owned()
    };
    let by_records = count(outbound.iter().map(backend));
    let shares: Vec<usize> = by_records.values().copied().collect();
    assert_eq!(shares, answers.values().copied().collect::<Vec<_>>(), "{by_records:?} {answers:?}");
    let [v1_share, v2_share] = shares[..] else { panic!("{by_records:?}") };
    assert!(v1_share.abs_diff(REQUESTS * 9 / 10) <= REQUESTS / 100, "{by_records:?}");
    assert_eq!(at_v1.wait(v1_share, is_ratings).len(), v1_share);
    assert_eq!(at_v2.wait(v2_share, is_ratings).len(), v2_share);
}

#[test]
fn every_check_of_an_intercepted_request_is_recorded() {
    if !available("every_check_of_an_intercepted_request_is_recorded") {
        return;
    }
    for backend in ["nft", "iptables"] {
        let mesh = Mesh::new();
        let options = || PodOptions { backend, ..PodOptions::default() };
        let client = mesh.client(options());
        let v1 = mesh.v1(options()).serving("http", 9080, "v1");
        for (number, family) in ["--ipv4", "--ipv6"].into_iter().enumerate() {
            let path = format!("/ratings/{number}");
            let url = format!("http://ratings-v1:9080{path}");
            let said = json_of(&Finished::of(client.curl().args([family, &url])).well());
            assert_eq!(text(&said, "/server"), "v1");
            let xfcc = text(&said, "/headers/x-forwarded-client-cert");
            assert!(xfcc.contains(&format!("URI={CLIENT}")), "{said:#}");

            let here = |record: &Value| text(record, "/request/path") == path;
            let outbound = client.records().one(here);
            assert_eq!(text(&outbound, "/destination/service"), "ratings-v1.bookinfo.svc.cluster.local:9080");
            assert_eq!(text(&outbound, "/route/attempts/0/identity"), RATINGS, "{outbound:#}");
            let cluster_address = ["10.96.0.11:9080", "[fd96::11]:9080"][number];
            assert_eq!(text(&outbound, "/destination/address"), cluster_address);

            let inbound = v1.records().one(here);
            assert_eq!(text(&inbound, "/source/identity"), CLIENT);
            assert_eq!(text(&inbound, "/decision/reason"), "matched-allow");
            assert_eq!(text(&inbound, "/decision/policy/name"), "ratings-callers");
            for (name, reason) in [
                ("encryption", "mtls"),
                ("service-authentication", "svid-verified"),
                ("service-authorization", "matched-allow"),
                ("user-authentication", "no-request-authentication"),
                ("user-authorization", "no-user-condition"),
            ] {
                assert_eq!(check(&inbound, name)["reason"], reason, "{inbound:#}");
            }
        }
    }
}

#[test]
fn what_nothing_allows_is_refused() {
    if !available("what_nothing_allows_is_refused") {
        return;
    }
    let mesh = Mesh::new();
    let client = mesh.client(PodOptions::default());
    let v1 = mesh.v1(PodOptions::default()).serving("http", 9080, "v1");
    let status = Finished::of(client.curl().args(STATUS).arg("http://ratings-v1:9080/admin")).well();
    assert_eq!(status, "403");
    let record = v1.records().one(|record| text(record, "/request/path") == "/admin");
    assert_eq!(text(&record, "/decision/reason"), "no-allow-matched");
    assert_eq!(check(&record, "service-authorization")["outcome"], "fail");
}

#[test]
fn plaintext_is_refused_under_strict() {
    if !available("plaintext_is_refused_under_strict") {
        return;
    }
    let mesh = Mesh::new();
    let outsider = mesh.outsider();
    let v1 = mesh.v1(PodOptions::default()).serving("http", 9080, "v1");
    for (address, path) in [("10.77.0.21", "/ratings/4"), ("[fd77::21]", "/ratings/6")] {
        let url = format!("http://{address}:9080{path}");
        let status = Finished::of(curl(outsider.command("curl")).args(STATUS).arg(url)).well();
        assert_eq!(status, "403");
        let record = v1.records().one(|record| text(record, "/request/path") == path);
        assert_eq!(text(&record, "/decision/outcome"), "deny");
        assert_eq!(text(&record, "/decision/reason"), "plaintext-under-strict");
        assert_eq!(text(&record, "/decision/policy/kind"), "PeerAuthentication");
        assert_eq!(check(&record, "encryption")["outcome"], "fail");
    }
}

#[test]
fn a_pods_own_address_keeps_its_identity_check() {
    if !available("a_pods_own_address_keeps_its_identity_check") {
        return;
    }
    let mesh = Mesh::new();
    let client = mesh.client(PodOptions::default());
    let _v1 = mesh.v1(PodOptions::default()).serving("http", 9080, "v1");
    // Its certificate is genuine, but not that of the service account which this address belongs to.
    let impostor = PodOptions { service_account: Some("impostor"), ..PodOptions::default() };
    let _v2 = mesh.v2(impostor).serving("http", 9080, "v2");

    let answer = Finished::of(client.curl().arg("http://10.77.0.21:9080/ratings/1")).well();
    assert_eq!(text(&json_of(&answer), "/server"), "v1");
    let record = client.records().one(|record| text(record, "/destination/address") == "10.77.0.21:9080");
    assert_eq!(text(&record, "/route/attempts/0/identity"), RATINGS, "{record:#}");
    assert_eq!(record.pointer("/route/policy"), None, "no routes apply");

    let status = Finished::of(client.curl().args(STATUS).arg("http://10.77.0.22:9080/ratings/2")).well();
    assert_eq!(status, "503");
    let record = client.records().one(|record| text(record, "/destination/address") == "10.77.0.22:9080");
    let authentication = check(&record, "service-authentication");
    assert_eq!(
        (&authentication["outcome"], &authentication["reason"]),
        (&json!("fail"), &json!("identity-mismatch"))
    );
}

#[test]
fn an_application_calls_itself() {
    if !available("an_application_calls_itself") {
        return;
    }
    for (backend, by_mark) in [("nft", false), ("iptables", true)] {
        let mesh = Mesh::new();
        let v1 =
            mesh.v1(PodOptions { backend, by_mark, ..PodOptions::default() }).serving("http", 9080, "v1");
        // Through its own service: out of its sidecar and back into it, with all that is checked on the way.
        for (family, path) in [("--ipv4", "/ratings/4"), ("--ipv6", "/ratings/6")] {
            let url = format!("http://ratings-v1:9080{path}");
            let answer = Finished::of(v1.curl().args([family, &url])).well();
            assert_eq!(text(&json_of(&answer), "/server"), "v1");
            let side = |side: &'static str| {
                move |record: &Value| {
                    text(record, "/request/path") == path && text(record, "/proxy/side") == side
                }
            };
            let records = v1.records();
            assert_eq!(text(&records.one(side("outbound")), "/route/attempts/0/identity"), RATINGS);
            assert_eq!(text(&records.one(side("inbound")), "/source/identity"), RATINGS);
        }
        // By its own address it stays on the loopback interface.
        for address in ["10.77.0.21", "[fd77::21]", "127.0.0.1", "[::1]"] {
            let answer = Finished::of(v1.curl().arg(format!("http://{address}:9080/ratings/own"))).well();
            assert_eq!(text(&json_of(&answer), "/server"), "v1");
        }
    }
}

#[test]
fn an_address_that_no_service_owns_is_passed_on() {
    if !available("an_address_that_no_service_owns_is_passed_on") {
        return;
    }
    let mesh = Mesh::new();
    let client = mesh.client(PodOptions::default());
    let outsider = mesh.outsider();
    let _plain = serve(&outsider, "http", 8000, "elsewhere");
    for (address, path) in [("10.77.0.66", "/4"), ("[fd77::66]", "/6")] {
        let url = format!("http://{address}:8000{path}");
        let answer = Finished::of(client.curl().arg(url)).well();
        assert_eq!(text(&json_of(&answer), "/server"), "elsewhere");
        let record = client.records().one(|record| text(record, "/request/path") == path);
        assert_eq!(text(&record, "/decision/reason"), "no-policy");
        assert_eq!(check(&record, "encryption")["reason"], "plaintext-permitted");
    }
}

/// Only the status code of the answer.
const STATUS: [&str; 4] = ["--output", "/dev/null", "--write-out", "%{http_code}"];

#[track_caller]
fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn count(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}
