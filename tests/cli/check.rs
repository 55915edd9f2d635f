//! Commands about a configuration: `check` and `explain`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tests::Directory;
use tests::program::beside;

use crate::writ;

/// Each wrong line of the directory says so itself: `# wrong: TEXT`, where TEXT stands in what `check` says about it.
#[test]
fn ten_mistakes_are_ten_errors_at_their_lines() {
    let directory = beside("cli/mistakes");
    let mut marked = BTreeSet::new();
    for file in fs::read_dir(&directory).unwrap() {
        let path = file.unwrap().path();
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            if let Some((_, expected)) = line.split_once("# wrong: ") {
                marked.insert((format!("{}:{}", path.display(), number + 1), expected.to_owned()));
            }
        }
    }
    assert_eq!(marked.len(), 10);

    let said = writ(&["check", directory.to_str().unwrap()]).code(1);
    let mut errors: Vec<(&str, &str)> =
        said.lines().filter_map(|line| line.split_once(": error: ")).collect();
    errors.sort_unstable();
    assert_eq!(errors.len(), 10, "{said}");
    for (place, expected) in &marked {
        let at_place: Vec<_> = errors.iter().filter(|(at, _)| at == place).collect();
        assert!(matches!(at_place[..], [(_, text)] if text.contains(expected)), "{place} {expected}: {said}");
    }
    assert!(said.contains("10 errors"), "{said}");

    let json: Value =
        serde_json::from_str(&writ(&["check", "--json", directory.to_str().unwrap()]).code(1)).unwrap();
    let diagnostics = json["diagnostics"].as_array().unwrap();
    let places: BTreeSet<String> = diagnostics
        .iter()
        .filter(|diagnostic| diagnostic["severity"] == "error")
        .map(|diagnostic| format!("{}:{}", diagnostic["file"].as_str().unwrap(), diagnostic["line"]))
        .collect();
    assert_eq!(places, marked.into_iter().map(|(place, _)| place).collect());
}

#[test]
fn a_clean_configuration_is_told_to_be_clean() {
    for directory in ["../docker/mesh", "interop/mesh.yaml"] {
        let said = writ(&["check", beside(directory).to_str().unwrap()]).well();
        assert!(said.contains(" 0 errors, 0 warnings"), "{said}");
    }
}

#[test]
fn warnings_fail_only_where_asked_to() {
    let directory = Directory::new();
    directory.write(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: idle}\nspec: {action: DENY}\n",
    );
    let path = directory.path().to_str().unwrap();
    assert!(writ(&["check", path]).well().contains("0 errors, 1 warning;"));
    assert!(writ(&["check", "--strict", path]).code(1).contains("0 errors, 1 warning;"));
}

#[test]
fn what_is_not_there_is_wrong_usage() {
    let finished = writ(&["check", "/nonexistent/directory"]);
    assert_eq!(finished.status.code(), Some(2));
    assert!(finished.stderr.contains("/nonexistent/directory"), "{finished:?}");
}

#[test]
fn a_directory_without_objects_is_a_mistaken_path() {
    let directory = Directory::new();
    let path = directory.path().to_str().unwrap();
    let finished = writ(&["check", path]);
    assert_eq!(finished.status.code(), Some(2), "{finished:?}");
    assert!(finished.stderr.contains("holds no objects"), "{finished:?}");
    for config in [path, "/nonexistent/directory"] {
        let finished = writ(&["explain", "--config", config, "--url=http://ratings:9080/"]);
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(2), ""), "{finished:?}");
        assert!(finished.stderr.contains(config), "{finished:?}");
    }
}

#[test]
fn explain_doubts_a_workload_that_is_not_there() {
    let config = beside("interop/mesh.yaml");
    let ask = |workload: &str| {
        let config = config.to_str().unwrap();
        writ(&["explain", "--config", config, "--workload", workload, "--url=http://ratings:9080/ratings/1"])
    };
    assert_eq!(ask("bookinfo/ratings-v1").stderr, "");
    let doubted = ask("bookinfo/raitngs-v1");
    assert!(doubted.stderr.contains("policies with a selector are left out"), "{doubted:?}");
    doubted.well();
}

/// A record is explained by itself: its workload, side, caller and request. Flags beside it win.
#[test]
fn a_record_is_explained() {
    let config = beside("interop/mesh.yaml");
    let directory = Directory::new();
    let file = directory.path().join("record.json");
    let explain = |record: &Value, flags: &[&str]| -> Value {
        fs::write(&file, record.to_string()).unwrap();
        let record =
            ["explain", "--config", config.to_str().unwrap(), "--from-record", file.to_str().unwrap()];
        serde_json::from_str(&writ(&[&record, flags].concat()).well()).unwrap()
    };
    let inbound = json!({
        "proxy": {"side": "inbound", "workload": "bookinfo/ratings-v1"},
        "source": {"address": "10.1.0.7:41234", "identity": "spiffe://cluster.local/ns/bookinfo/sa/client"},
        "destination": {"address": "10.1.0.9:9080"},
        "request": {"method": "GET", "authority": "ratings:9080", "path": "/ratings/1"},
    });
    let decision =
        |explained: &Value| (explained["proxy"]["workload"].clone(), explained["decision"]["reason"].clone());
    let workload = json!("bookinfo/ratings-v1");
    assert_eq!(decision(&explain(&inbound, &[])), (workload.clone(), "matched-allow".into()));
    let other_caller = explain(&inbound, &["--from=spiffe://cluster.local/ns/other/sa/other"]);
    assert_eq!(decision(&other_caller), (workload.clone(), "no-allow-matched".into()));
    let without_any = explain(&inbound, &["--plaintext"]);
    assert_eq!(decision(&without_any), (workload, "plaintext-under-strict".into()));

    // Sent to the outbound listener itself, which routed it by its authority.
    let outbound = json!({
        "proxy": {"side": "outbound", "workload": "bookinfo/client"},
        "source": {"address": "127.0.0.1:41234"},
        "destination": {"address": "127.0.0.1:15001", "service": "ratings.bookinfo.svc.cluster.local:9080"},
        "request": {"method": "GET", "authority": "ratings:9080", "path": "/ratings/1"},
    });
    let explained = explain(&outbound, &[]);
    assert_eq!(explained["destination"]["service"], outbound["destination"]["service"], "{explained:#}");
    assert_eq!(explain(&outbound, &["--side=inbound"])["proxy"]["side"], "inbound");
}

/// Callers name the port of a service, policies that of the workload.
#[test]
fn explain_asks_about_the_port_behind_the_service() {
    let mesh = beside("../docker/mesh");
    let explain = |config: &Path, workload: &str, url: &str| -> (Value, String) {
        let config = ["explain", "--config", config.to_str().unwrap(), "--workload", workload];
        let finished = writ(&[&config[..], &["--url", url]].concat());
        (serde_json::from_str(&finished.stdout).unwrap(), finished.stderr)
    };
    let ratings = "bookinfo/ratings-v1";
    for (url, address) in [
        ("http://ratings:9080/ratings/1", "172.30.91.11:19080"),
        ("http://ratings-v1.bookinfo:9080/ratings/1", "172.30.91.11:19080"),
        ("http://elsewhere:19080/", "172.30.91.11:19080"),
    ] {
        let (explained, doubt) = explain(&mesh, ratings, url);
        assert_eq!(explained["destination"]["address"], address, "{url}");
        assert!(url.contains(explained["request"]["authority"].as_str().unwrap()), "{explained:#}");
        assert_eq!(doubt, "");
    }
    let (explained, doubt) = explain(&mesh, ratings, "http://ratings:80/");
    assert_eq!(explained["destination"]["address"], "172.30.91.11:80");
    assert!(doubt.contains("bookinfo/ratings-v1 has no port 80; known: 9080, 19080"), "{doubt}");

    // By the name of the container's port, of a Pod that is not ready, and by the port that policies are about.
    let directory = Directory::new();
    fs::write(
        directory.path().join("mesh.yaml"),
        "
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: ns}
spec: {selector: {app: shop}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shop, namespace: ns, labels: {app: shop}}
spec: {containers: [{name: shop, ports: [{name: web, containerPort: 8080}]}]}
status: {podIP: 10.1.0.4, conditions: [{type: Ready, status: 'False'}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: shop, namespace: ns}
spec: {selector: {matchLabels: {app: shop}}, rules: [{to: [{operation: {ports: ['8080']}}]}]}
",
    )
    .unwrap();
    let (explained, doubt) = explain(directory.path(), "ns/shop", "http://shop/");
    assert_eq!(explained["destination"]["address"], "10.1.0.4:8080", "{explained:#}");
    assert_eq!(explained["decision"]["reason"], "matched-allow", "{explained:#}");
    assert_eq!(doubt, "");
}

#[test]
fn explain_names_the_policy_and_the_reason() {
    let config = beside("interop/mesh.yaml");
    let explain = |from: &str, url: &str| -> Value {
        let config = config.to_str().unwrap();
        let workload = ["explain", "--config", config, "--workload", "bookinfo/ratings-v1", "--json"];
        let caller = if from.is_empty() { vec!["--plaintext"] } else { vec!["--from", from] };
        let said = writ(&[&workload[..], &caller[..], &["--url", url]].concat()).well();
        serde_json::from_str(&said).unwrap()
    };
    let client = "spiffe://cluster.local/ns/bookinfo/sa/client";
    let stranger = "spiffe://cluster.local/ns/elsewhere/sa/stranger";
    for (from, path, outcome, reason, policy) in [
        (client, "/ratings/1", "allow", "matched-allow", Some("ratings-callers")),
        (client, "/admin", "deny", "no-allow-matched", None),
        (stranger, "/ratings/1", "deny", "no-allow-matched", None),
        ("", "/ratings/1", "deny", "plaintext-under-strict", Some("default")),
    ] {
        let record = explain(from, &format!("http://ratings:9080{path}"));
        let decision = &record["decision"];
        assert_eq!(
            (&decision["outcome"], &decision["reason"]),
            (&outcome.into(), &reason.into()),
            "{record:#}"
        );
        assert_eq!(decision.pointer("/policy/name").and_then(Value::as_str), policy, "{record:#}");
        assert_eq!(decision["checks"].as_array().unwrap().len(), 5);
    }
}
