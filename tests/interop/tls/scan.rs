//! What a stranger's scanner (sslyze) finds at a sidecar's mutual TLS port, and at a gateway: what the binary attests, and
//! nothing weak.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use fips::ca::KeyType;

use serde_json::{Value, json};
use tests::App;
use tests::program::Finished;

use super::house::{Application, House, installed};
use super::suites::{attested, is_approved};
use crate::records::text;

#[test]
fn a_scanner_finds_nothing_weak() {
    let Some(sslyze) = installed("a_scanner_finds_nothing_weak", "sslyze/bin/sslyze") else { return };
    let app = Application::start(App::echo);
    let house = House::new();
    let caller = house.identity("caller", KeyType::P256);
    let mut accepted = BTreeSet::new();
    for (key, edge) in
        [KeyType::P256, KeyType::Rsa2048].into_iter().flat_map(|key| [(key, false), (key, true)])
    {
        let identity = house.identity("server", key);
        let proxy = if edge { house.edge(&identity) } else { house.serving(&identity, app.address()) };
        let report = house.file("report.json");
        let mut scan = Command::new(&sslyze);
        scan.args(["--quiet", "--mozilla_config=disable", "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1"]);
        scan.args(["--tlsv1_2", "--tlsv1_3", "--compression", "--reneg", "--resum", "--early_data", "--ems"]);
        scan.args(["--heartbleed", "--openssl_ccs", "--robot", "--fallback", "--elliptic_curves"]);
        scan.arg("--cert").arg(caller.certificate()).arg("--key").arg(caller.key());
        scan.arg(format!("--json_out={}", report.display())).arg(proxy.address.to_string());
        Finished::of(&mut scan).well();
        let report: Value = serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
        assert_eq!(report["server_scan_results"][0]["scan_status"], "COMPLETED", "{report:#}");
        accepted.extend(nothing_weak(&report["server_scan_results"][0]["scan_result"]));
    }
    // Every suite that is attested, and no other: no CBC, RC4, 3DES, export, static RSA or anonymous suite. An approved
    // module insists on the extended master secret (RFC 7627), without which this scanner tries the suites of TLS 1.2.
    let approved = is_approved();
    let expected = attested("suites").into_iter().filter(|suite| !approved || suite.starts_with("TLS_AES_"));
    assert_eq!(accepted, expected.collect());
}

/// Asserts it, and gives the suites that were accepted.
fn nothing_weak(found: &Value) -> Vec<String> {
    let result = |scan: &str| {
        assert_eq!(found[scan]["status"], "COMPLETED", "{scan}: {:#}", found[scan]);
        found[scan]["result"].clone()
    };
    let none: [String; 0] = [];
    for version in ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"] {
        let result = result(&format!("{version}_cipher_suites"));
        assert_eq!(result["is_tls_version_supported"], false, "{version}");
        assert_eq!(names(&result["accepted_cipher_suites"], "/cipher_suite/name"), none, "{version}");
    }
    for (scan, member, expected) in [
        ("tls_compression", "supports_compression", json!(false)),
        ("tls_1_3_early_data", "supports_early_data", json!(false)),
        ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection", json!(false)),
        ("heartbleed", "is_vulnerable_to_heartbleed", json!(false)),
        ("robot", "robot_result", json!("NOT_VULNERABLE_RSA_NOT_SUPPORTED")),
        ("tls_fallback_scsv", "supports_fallback_scsv", json!(true)),
        ("tls_extended_master_secret", "supports_ems_extension", json!(true)),
        ("session_renegotiation", "client_renegotiations_success_count", json!(0)),
        ("session_renegotiation", "is_vulnerable_to_client_renegotiation_dos", json!(false)),
        // The extension by which a client knows that nothing was spliced in (RFC 5746), not renegotiation itself.
        ("session_renegotiation", "supports_secure_renegotiation", json!(true)),
        ("session_resumption", "session_id_resumption_result", json!("NOT_SUPPORTED")),
        // At the edge this scanner resumes nothing either; OpenSSL does.
        ("session_resumption", "tls_ticket_resumption_result", json!("NOT_SUPPORTED")),
    ] {
        assert_eq!(result(scan)[member], expected, "{scan}: {member}");
    }
    // Hybrid groups are not known to this scanner; OpenSSL calls the others by these names.
    let groups = names(&result("elliptic_curves")["supported_curves"], "/name");
    let attested = attested("groups").into_iter().filter(|group| !group.contains("MLKEM"));
    let attested: BTreeSet<_> = attested.map(|group| group.replace("x25519", "X25519")).collect();
    assert_eq!(groups.into_iter().collect::<BTreeSet<_>>(), attested);
    ["tls_1_2_cipher_suites", "tls_1_3_cipher_suites"]
        .iter()
        .flat_map(|scan| names(&result(scan)["accepted_cipher_suites"], "/cipher_suite/name"))
        .collect()
}

fn names(list: &Value, pointer: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|each| text(each, pointer).to_owned()).collect()
}
