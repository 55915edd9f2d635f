//! Wrong usage, and the commands that need nothing.

use std::process::{Command, Stdio};

use serde_json::Value;
use tests::program::{self, beside};

use crate::writ;

#[test]
fn wrong_usage_exits_2_and_says_why() {
    for (arguments, says) in [
        (&[][..], "Usage: writ <COMMAND>"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["check"], "<DIR>"),
        (&["explain"], "--config"),
        (&["diff", "."], "<NEW>"),
        (&["diff", ".", "/nowhere"], "can't read /nowhere"),
        (&["run", "--role=sidecar"], "--identity"),
        (&["run", "--role=captain"], "sidecar"),
        (&["run", "--workload=nameless"], "NAMESPACE/NAME"),
        (&["run", "--workload=a/b/c"], "NAMESPACE/NAME"),
        (&["run", "--trust-domain=Not A Domain"], "--trust-domain"),
        (&["explain", "--config=.", "--url=/ratings/1"], "--url=/ratings/1: expected http://"),
        (&["explain", "--config=.", "--url=http://a/", "--from=me"], "--from=me"),
        (&["explain", "--config=.", "--url=http://a/", "--header=x"], "NAME=VALUE"),
        (
            &["explain", "--config=.", "--url=http://a/", "--header=x=1", "--header=y"],
            "header (number 2 of them)",
        ),
        (&["demo", "--once", "--port=8081"], "--once"),
        (&["run", "--crl=Cargo.toml"], "--crl needs --identity"),
        (&["run", "--drain=soon"], "ms, s, m or h"),
        (&["run", "--forward=19080"], "LISTEN=APP"),
        (&["run", "--admin=192.0.2.1:0"], "--metrics for what other hosts may ask"),
        (&["run", "--admin=0.0.0.0:15000"], "on loopback only"),
        (&["run", "--admin=[::]:15000"], "on loopback only"),
        (&["admin", "ready"], "begins with /"),
        (&["demo", "--port=http"], "--port"),
        (&["intercept"], "install"),
        (&["intercept", "install", "--mark=0"], "mark 0"),
    ] {
        let finished = writ(arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}: {finished:#?}");
        assert!(finished.stderr.contains(says), "{arguments:?}: {finished:#?}");
        assert_eq!(finished.stdout, "", "{arguments:?}");
    }
}

/// Whoever is told to read it.
#[test]
fn a_path_that_is_not_there_is_wrong_usage() {
    let directory = tests::Directory::new();
    let dev = format!("--identity=dev:{}", directory.path().display());
    let about = ["explain", "--config=../docker/mesh", "--url=http://a/"];
    for (arguments, says) in [
        (&["check", "/nowhere"][..], "can't read /nowhere"),
        (&["diff", "/nowhere", "."], "can't read /nowhere"),
        (&["explain", "--config=/nowhere", "--url=http://a/"], "can't read /nowhere"),
        (&[&about[..], &["--from-record=/nowhere"]].concat(), "can't read /nowhere"),
        (&[&about[..], &["--jwt=/nowhere"]].concat(), "--jwt /nowhere"),
        (&["run", "--config=/nowhere"], "--config: can't read /nowhere"),
        (&["run", "--candidate=/nowhere"], "--candidate: can't read /nowhere"),
        (&["run", "--identity=files:/nowhere"], "--identity: can't read /nowhere"),
        (&["run", "--issuer-ca=/nowhere"], "--issuer-ca: can't read /nowhere"),
        (&["run", &dev, "--crl=/nowhere"], "--crl: can't read /nowhere"),
    ] {
        let finished = writ(arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}: {finished:#?}");
        let said = finished.stderr.strip_prefix(&format!("writ {}: ", arguments[0]));
        assert!(said.is_some_and(|said| said.contains(says)), "{arguments:?}: {finished:#?}");
    }
    let finished = writ(&["run", &dev, "--crl=Cargo.toml"]);
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    assert!(finished.stderr.contains("--crl Cargo.toml: revocation list"), "{finished:#?}");
    assert!(!finished.stderr.contains("identity from"), "{finished:#?}");
}

#[test]
fn help_says_where_to_start() {
    let help = writ(&["--help"]).well();
    for command in ["demo", "run", "check", "explain", "diff", "intercept", "attest", "admin"] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
        assert!(writ(&[command, "--help"]).well().contains("Usage: writ"));
    }
    assert!(help.contains("Exit codes: 0 well, 1 failed, 2 wrong usage"), "{help}");
    assert!(writ(&["--version"]).well().starts_with("writ "));
}

#[test]
fn attest_says_what_crypto_runs() {
    let attested: Value = serde_json::from_str(&writ(&["attest", "--json"]).well()).unwrap();
    assert_eq!(attested["self_test"], "passed");
    assert!(attested["module"].as_str().unwrap().contains("AWS-LC"), "{attested:#}");
    let suites = attested["suites"].as_array().unwrap();
    assert!(suites.iter().any(|suite| suite["name"] == "TLS_AES_256_GCM_SHA384"), "{attested:#}");
    let table = writ(&["attest"]).well();
    assert!(table.contains(attested["module_version"].as_str().unwrap()), "{table}");
}

#[test]
fn the_demo_goes_as_its_policies_say() {
    let said = writ(&["demo", "--once"]).well();
    for reason in [
        "matched-allow",
        "matched-deny",
        "no-allow-matched",
        "plaintext-under-strict",
        "from outside",
        "split 90/10",
    ] {
        assert!(said.contains(reason), "{said}");
    }
    assert!(said.contains("All went as the policies say."), "{said}");
}

/// A gateway is told which Gateway it serves, and nobody else is.
#[test]
fn a_gateway_and_its_gateway_go_together() {
    let identity = "--identity=dev:/nonexistent";
    for (arguments, said) in [
        (&["run", "--role=gateway", identity][..], "--role gateway needs --gateway NAMESPACE/NAME"),
        (&["run", "--gateway=edge/public"], "--gateway is for --role gateway"),
        (&["run", "--role=gateway", "--gateway=edge/public"], "--role gateway needs --identity"),
        (&["run", "--role=gateway", "--gateway=public", identity], "expected NAMESPACE/NAME"),
        (
            &["run", "--role=gateway", "--gateway=edge/public", "--workload=other/front", identity],
            "is not of the namespace of --workload, other",
        ),
    ] {
        let finished = writ(arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}: {finished:#?}");
        assert!(finished.stderr.contains(said), "{arguments:?}: {finished:#?}");
    }
}

/// What is documented for later must not be passed over in silence.
#[test]
fn what_is_to_come_says_so() {
    for arguments in [
        &["run", "--otlp=http://collector:4317"][..],
        &["run", "--record=otlp"],
        &["run", "--state=/var/lib/writ"],
        &["run", "--config=kubernetes:"],
        &["run", "--config=ads:https://control:15012"],
    ] {
        let finished = writ(arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}: {finished:#?}");
        assert!(finished.stderr.contains("not supported yet"), "{arguments:?}: {finished:#?}");
    }
}

/// As with `| head`: the exit code says it, and nothing else.
#[test]
fn a_reader_that_has_gone_away_is_no_panic() {
    let mesh = beside("interop/mesh.yaml");
    let mesh = mesh.to_str().unwrap();
    for arguments in [
        &["demo", "--once"][..],
        &["check", mesh],
        &["explain", "--config", mesh, "--workload=bookinfo/ratings-v1", "--url=http://ratings:9080/"],
        &["attest"],
        &["intercept", "install", "--dry-run"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(program::writ());
        let child = command.args(arguments).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
}
