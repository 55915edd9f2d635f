//! `writ intercept` by its command line, in namespaces with a proxy at work.

use std::process::Command;

use serde_json::Value;
use tests::program::Finished;

use crate::mesh::{Mesh, PodOptions, curl};
use crate::namespace::available;
use crate::records::text;

#[test]
fn rules_are_installed_verified_and_removed() {
    if !available("rules_are_installed_verified_and_removed") {
        return;
    }
    for backend in ["nft", "iptables"] {
        let mesh = Mesh::new();
        let v1 = mesh.v1(PodOptions { backend, ..PodOptions::default() }).serving("http", 9080, "v1");
        let outsider = mesh.outsider();
        let writ = |arguments: &[&str]| {
            Finished::of(v1.machine.command(mesh.writ()).arg("intercept").args(arguments))
        };
        let ruleset = || {
            let nft = Finished::of(v1.machine.command("nft").args(["--stateless", "list", "ruleset"])).well();
            nft + &Finished::of(&mut v1.machine.command("ip6tables-save")).well()
        };
        let without_counters = |text: String| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with([':', '#'])).map(str::to_owned).collect()
        };
        let status = || -> String {
            let mut curl: Command = curl(outsider.command("curl"));
            curl.args([
                "--output",
                "/dev/null",
                "--write-out",
                "%{http_code}",
                "http://10.77.0.21:9080/ratings/1",
            ]);
            Finished::of(&mut curl).well()
        };

        let report = writ(&["verify"]).well();
        assert!(report.contains("Captured: what these flags cover goes to the proxy."), "{report}");
        let report: Value = serde_json::from_str(&writ(&["verify", "--json"]).well()).unwrap();
        let by = [0, 1].map(|family| text(&report, &format!("/families/{family}/rules/installed_by/0")));
        assert_eq!(by, if backend == "nft" { ["nft"; 2] } else { ["iptables", "ip6tables"] }, "{report:#}");
        let once = without_counters(ruleset());
        writ(&["install", "--backend", backend]).well();
        assert_eq!(without_counters(ruleset()), once, "{backend}: installed twice");
        assert_eq!(status(), "403", "captured, and refused for plaintext");

        // With other flags than those that are in force.
        let report = writ(&["verify", "--exclude-outbound-ports=3306"]).code(1);
        assert!(report.contains("NOT captured"), "{report}");

        writ(&["remove"]).well();
        let report = writ(&["verify"]).code(1);
        assert!(report.contains("NOT captured"), "{report}");
        assert_eq!(status(), "200", "straight to the application");
        assert!(writ(&["remove"]).well().contains("nothing to remove"));

        // What a dry run prints does the same.
        let script = writ(&["install", "--dry-run", "--backend", backend]).well();
        Finished::of(v1.machine.command("sh").args(["-e", "-c", &script])).well();
        writ(&["verify"]).well();
        assert_eq!(status(), "403");
    }
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    if !available("wrong_usage_is_told_apart_from_failure") {
        return;
    }
    let mesh = Mesh::new();
    let outsider = mesh.outsider();
    let writ =
        |arguments: &[&str]| Finished::of(outsider.command(mesh.writ()).arg("intercept").args(arguments));
    assert_eq!(writ(&["install", "--inbound-port=15001"]).status.code(), Some(2));
    assert_eq!(writ(&["install", "--mark=0"]).status.code(), Some(2));
    assert_eq!(writ(&["install", "--backend=ebpf"]).status.code(), Some(2));
    let unprivileged = Finished::of(outsider.command_as(1000, mesh.writ()).args(["intercept", "install"]));
    assert_eq!(unprivileged.status.code(), Some(1));
    assert!(unprivileged.stderr.contains("CAP_NET_ADMIN"), "{unprivileged:?}");
}
