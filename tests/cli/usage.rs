//! Wrong usage, and the commands that need nothing.

use serde_json::Value;

use crate::writ;

#[test]
fn wrong_usage_exits_2_and_says_why() {
    for (arguments, says) in [
        (&[][..], "Usage: writ <COMMAND>"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["check"], "<DIR>"),
        (&["explain"], "--config"),
        (&["run", "--role=sidecar"], "--identity"),
        (&["run", "--role=captain"], "sidecar"),
        (&["run", "--workload=nameless"], "NAMESPACE/NAME"),
        (&["run", "--drain=soon"], "ms, s or m"),
        (&["run", "--forward=19080"], "LISTEN=APP"),
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

#[test]
fn help_says_where_to_start() {
    let help = writ(&["--help"]).well();
    for command in ["demo", "run", "check", "explain", "intercept", "attest", "admin"] {
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
    assert!(suites.contains(&"TLS_AES_256_GCM_SHA384".into()), "{attested:#}");
    let table = writ(&["attest"]).well();
    assert!(table.contains(attested["module_version"].as_str().unwrap()), "{table}");
}

#[test]
fn the_demo_goes_as_its_policies_say() {
    let said = writ(&["demo", "--once"]).well();
    for reason in
        ["matched-allow", "matched-deny", "no-allow-matched", "plaintext-under-strict", "split 90/10"]
    {
        assert!(said.contains(reason), "{said}");
    }
    assert!(said.contains("All went as the policies say."), "{said}");
}
