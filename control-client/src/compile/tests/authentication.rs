//! RequestAuthentication: selection and quarantine.

use super::*;

const RULE: &str = "jwtRules: [{issuer: 'https://i.example'}]";

fn selected(yaml: &str) -> Vec<(String, usize, bool)> {
    let policy = load(yaml).snapshot.policy;
    let all = policy.request_authentication.iter();
    all.map(|each| (object_name(&policy, Some(each.object)), each.rules.len(), each.quarantined)).collect()
}

#[test]
fn all_that_select_the_workload_are_in_force() {
    for (name, spec, wanted) in [
        ("a", format!("{{{RULE}}}"), true),
        ("a", format!("{{selector: {{matchLabels: {{app: me}}}}, {RULE}}}"), true),
        ("a", format!("{{selector: {{matchLabels: {{app: other}}}}, {RULE}}}"), false),
        ("istio-system/a", format!("{{{RULE}}}"), true),
        ("bar/a", format!("{{{RULE}}}"), false),
        ("a", format!("{{targetRefs: [{{group: '', kind: Service, name: mine}}], {RULE}}}"), true),
    ] {
        let service = object("Service", "mine", "{selector: {app: me}, ports: [{port: 80}]}");
        let snapshot = clean(&(object("RequestAuthentication", name, &spec) + &service));
        assert_eq!(snapshot.policy.request_authentication.len() == 1, wanted, "{name} {spec}");
    }
    let two = object("RequestAuthentication", "b", &format!("{{{RULE}}}"))
        + &object("RequestAuthentication", "istio-system/a", &format!("{{{RULE}}}"));
    assert_eq!(selected(&two).len(), 2, "none overrides the other");
}

#[test]
fn what_can_not_be_understood_is_in_force_as_quarantined() {
    for (spec, wanted) in [
        ("{jwtRules: [{issuer: 'https://i', jwks: '{}'}]}", Some(("a".to_owned(), 0, true))),
        ("{jwtRules: {}}", Some(("a".to_owned(), 0, true))),
        ("{selectr: {}}", Some(("a".to_owned(), 0, true))),
        ("[]", Some(("a".to_owned(), 0, true))),
        ("{selector: {matchLabels: {app: other}}, jwtRules: [{}]}", None),
        ("{selector: {matchLabels: {app: '*'}}, jwtRules: []}", Some(("a".to_owned(), 0, true))),
    ] {
        let found = selected(&object("RequestAuthentication", "a", spec));
        assert_eq!(found.first(), wanted.as_ref(), "{spec}");
    }
}

#[test]
fn one_without_rules_is_warned_of() {
    let loaded = load(&object("RequestAuthentication", "a", "{selector: {matchLabels: {app: me}}}"));
    assert!(texts(&loaded)[0].contains("without jwtRules"), "{:?}", texts(&loaded));
}
