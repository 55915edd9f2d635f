//! Commands about a configuration: `check` and `explain`.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
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
fn what_is_not_there_is_wrong_usage() {
    let finished = writ(&["check", "/nonexistent/directory"]);
    assert_eq!(finished.status.code(), Some(2));
    assert!(finished.stderr.contains("/nonexistent/directory"), "{finished:?}");
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
