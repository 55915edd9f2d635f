//! AuthorizationPolicy: selection and quarantine.

use super::*;
use crate::snapshot::{AuthorizationAction, AuthorizationPolicy};

fn selected(yaml: &str) -> Vec<(String, usize, bool)> {
    let policy = load(yaml).snapshot.policy;
    let text = |a: &AuthorizationPolicy| (object_name(&policy, Some(a.object)), a.rules.len(), a.quarantined);
    policy.authorization.iter().map(text).collect()
}

#[test]
fn selection() {
    let cases = [
        ("a", "{}", true),
        ("a", "{selector: {}}", true),
        ("a", "{selector: {matchLabels: {app: me}}}", true),
        ("a", "{selector: {matchLabels: {app: me, version: v1}}}", true),
        ("a", "{selector: {matchLabels: {app: me, version: v2}}}", false),
        ("a", "{selector: {matchLabels: {tier: x}}}", false),
        ("istio-system/a", "{}", true),
        ("istio-system/a", "{selector: {matchLabels: {app: me}}}", true),
        ("istio-system/a", "{selector: {matchLabels: {app: other}}}", false),
        ("bar/a", "{}", false),
        ("bar/a", "{selector: {matchLabels: {app: me}}}", false),
        ("a", "{targetRefs: [{group: '', kind: Service, name: mine}]}", true),
        ("a", "{targetRefs: [{group: '', kind: Service, name: other}]}", false),
        (
            "a",
            "{targetRefs: [{group: '', kind: Service, name: other}, {group: '', kind: Service, name: mine}]}",
            true,
        ),
        ("a", "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}]}", false),
        ("a", "{targetRef: {group: '', kind: Service, name: mine}}", true),
    ];
    let services = object("Service", "mine", "{selector: {app: me}, ports: [{port: 80}]}")
        + &object("Service", "other", "{selector: {app: other}, ports: [{port: 80}]}")
        + &object("Gateway", "g", "{gatewayClassName: writ, listeners: []}");
    for (name, spec, wanted) in cases {
        let snapshot = clean(&(object("AuthorizationPolicy", name, spec) + &services));
        assert_eq!(snapshot.policy.authorization.len() == 1, wanted, "{name} {spec}");
    }
}

#[test]
fn a_root_namespace_of_its_own() {
    let yaml =
        object("MeshSettings", "m", "{rootNamespace: bar}") + &object("AuthorizationPolicy", "bar/a", "{}");
    assert_eq!(selected(&yaml).len(), 1);
}

#[test]
fn what_can_not_be_understood_fails_closed() {
    let rule = "rules: [{to: [{operation: {ports: ['x']}}]}]";
    let cases = [
        (format!("{{action: ALLOW, {rule}}}"), Some((AuthorizationAction::Allow, 0))),
        (format!("{{action: DENY, {rule}}}"), Some((AuthorizationAction::Deny, 1))),
        (
            format!("{{action: CUSTOM, provider: {{name: x}}, {rule}}}"),
            Some((AuthorizationAction::Custom, 1)),
        ),
        (format!("{{action: AUDIT, {rule}}}"), Some((AuthorizationAction::Audit, 0))),
        (format!("{{action: DENNY, {rule}}}"), Some((AuthorizationAction::Deny, 1))),
        // A valid selector limits what is closed; one that can't be understood covers the namespace.
        (format!("{{action: DENY, selector: {{matchLabels: {{app: other}}}}, {rule}}}"), None),
        (
            format!("{{action: DENY, selector: {{matchLabels: [app]}}, {rule}}}"),
            Some((AuthorizationAction::Deny, 1)),
        ),
        ("[]".into(), Some((AuthorizationAction::Deny, 1))),
    ];
    for (spec, wanted) in cases {
        let snapshot = load(&object("AuthorizationPolicy", "a", &spec)).snapshot;
        let found = snapshot.policy.authorization.first().map(|a| (a.action, a.rules.len()));
        assert_eq!(found, wanted, "{spec}");
        assert!(snapshot.policy.authorization.iter().all(|a| a.quarantined));
        if let Some(AuthorizationPolicy { rules, .. }) = snapshot.policy.authorization.first() {
            assert!(rules.iter().all(|rule| *rule == Default::default()), "always matches");
        }
        assert_eq!(state(&snapshot, "a"), VerdictState::Quarantined);
    }
}

#[test]
fn an_unreadable_root_policy_covers_the_mesh_and_another_namespace_its_own() {
    assert_eq!(
        selected(&object("AuthorizationPolicy", "istio-system/a", "{selector: 1}")),
        [("a".into(), 0, true)]
    );
    assert_eq!(selected(&object("AuthorizationPolicy", "bar/a", "{selector: 1}")), []);
}

#[test]
fn http_route_targets_depend_on_the_parent_of_the_route() {
    let policy = object(
        "AuthorizationPolicy",
        "a",
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}], rules: [{}]}",
    );
    let route =
        |parent: &str| object("HTTPRoute", "r", &format!("{{parentRefs: [{parent}], rules: [{{}}]}}"));
    assert_eq!(selected(&(policy.clone() + &route("{name: g}"))), []);
    let mesh = policy.clone() + &route("{group: '', kind: Service, name: s}");
    assert_eq!(selected(&mesh), [("a".into(), 0, true)]);
    assert_eq!(state(&load(&mesh).snapshot, "a"), VerdictState::Quarantined);
    assert!(texts(&load(&policy))[0].contains("no HTTPRoute foo/r"));
}

#[test]
fn dry_run_stays_dry_when_it_is_bad() {
    let yaml = object("AuthorizationPolicy", "a", "{action: DENY, rules: [{x: 1}]}").replacen(
        "metadata: {",
        "metadata: {annotations: {istio.io/dry-run: 'true'}, ",
        1,
    );
    let policy = load(&yaml).snapshot.policy;
    assert!(policy.authorization[0].dry_run && policy.authorization[0].quarantined);
}

#[test]
fn an_expired_allow_counts_and_matches_nothing() {
    let at = |time: &str| {
        object("AuthorizationPolicy", "a", "{rules: [{}]}").replacen(
            "metadata: {",
            &format!("metadata: {{annotations: {{writ.dev/expires-at: '{time}'}}, "),
            1,
        )
    };
    assert_eq!(selected(&at("2020-01-01T00:00:00Z")), [("a".into(), 0, false)]);
    assert_eq!(selected(&at("2999-01-01T00:00:00Z")), [("a".into(), 1, false)]);
    assert!(texts(&load(&at("2020-01-01T00:00:00Z")))[0].contains("has expired at 2020-01-01T00:00:00Z"));
    assert_eq!(texts(&load(&at("2999-01-01T00:00:00Z"))), [] as [String; 0]);
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(2)).to_string();
    assert!(texts(&load(&at(&soon)))[0].contains("and from then on allows nothing"));
    let past = load(&at("2020-01-01T00:00:00Z")).snapshot.policy.authorization[0].expires;
    assert_eq!(
        past.map(|expires| (expires.past, expires.to_string())),
        Some((true, "2020-01-01T00:00:00Z".into()))
    );
}

#[test]
fn only_an_allow_policy_can_expire() {
    let expiring = |kind: &str, spec: &str| {
        object(kind, "a", spec).replacen(
            "metadata: {",
            "metadata: {annotations: {writ.dev/expires-at: '2999-01-01T00:00:00Z'}, ",
            1,
        )
    };
    for (kind, spec) in [
        ("AuthorizationPolicy", "{action: DENY, rules: [{}]}"),
        ("PeerAuthentication", "{mtls: {mode: STRICT}}"),
        ("HTTPRoute", "{parentRefs: [{group: '', kind: Service, name: s}], rules: [{}]}"),
        ("MeshSettings", "{rootNamespace: mesh}"),
    ] {
        let loaded = load(&expiring(kind, spec));
        assert!(
            loaded.diagnostics.iter().any(|found| found.field.contains("expires-at")),
            "{kind}: {loaded:#?}"
        );
    }
}

#[test]
fn an_unknown_provider_is_told() {
    let policy = object("AuthorizationPolicy", "a", "{action: CUSTOM, provider: {name: ext}, rules: [{}]}");
    assert!(texts(&load(&policy))[0].contains("no provider ext"));
    let settings = object(
        "MeshSettings",
        "m",
        "{extensionProviders: [{name: ext, envoyExtAuthzHttp: {service: a, port: 1}}]}",
    );
    let found = texts(&load(&(policy + &settings)));
    let said = "no Service or ServiceEntry a that is visible here: what this policy matches is denied";
    assert!(found.iter().any(|text| text.contains(said)), "{found:?}");
}

#[test]
fn custom_policies_name_providers_that_can_be_asked() {
    let settings = object(
        "MeshSettings",
        "m",
        "{extensionProviders: [{name: trace, zipkin: {}}, \
         {name: opa, envoyExtAuthzGrpc: {service: foo/opa.foo.svc.cluster.local, port: 9191}}, \
         {name: late, phase: after-authorization, envoyExtAuthzGrpc: {service: opa.foo, port: 9191}}, \
         {name: gone, envoyExtAuthzGrpc: {service: gone.foo, port: 1}}, \
         {name: port, envoyExtAuthzGrpc: {service: opa.foo, port: 1}}, \
         {name: broken, envoyExtAuthzGrpc: {service: opa.foo, port: 9191, timeout: x}}]}",
    );
    let service = object("Service", "opa", "{ports: [{name: grpc, port: 9191}]}");
    let user = "rules: [{from: [{source: {requestPrincipals: ['*']}}]}]";
    let cases = [
        ("opa", "rules: [{}]", Some(0), ""),
        ("late", user, Some(1), ""),
        ("opa", user, Some(0), "before the end user is authenticated"),
        ("gone", "rules: [{}]", Some(2), "no Service or ServiceEntry gone.foo"),
        ("port", "rules: [{}]", Some(3), "has no port 1"),
        ("broken", "rules: [{}]", None, "can't be asked"),
        ("trace", "rules: [{}]", None, "can't be asked"),
        ("none", "rules: [{}]", None, "no provider none in MeshSettings"),
    ];
    for (name, rules, index, said) in cases {
        let policy = object(
            "AuthorizationPolicy",
            "p",
            &format!("{{action: CUSTOM, provider: {{name: {name}}}, {rules}}}"),
        );
        let loaded = load(&(policy + &settings + &service));
        let of_policy: Vec<_> = texts(&loaded).into_iter().filter(|text| text.starts_with("p ")).collect();
        assert_eq!(of_policy.is_empty(), said.is_empty(), "{name}: {of_policy:?}");
        assert!(of_policy.iter().all(|text| text.contains(said)), "{name}: {of_policy:?}");
        let policy = &loaded.snapshot.policy;
        assert_eq!(policy.authorization[0].provider, index, "{name}");
        let known = index.map(|index| policy.providers[index as usize].backend.is_some());
        assert_eq!(known, index.map(|index| index < 2), "{name}");
    }
}

#[test]
fn escapes_in_paths_have_the_form_that_requests_get() {
    let policy = "{rules: [{to: [{operation: {paths: ['/caf%c3%a9', '/a%2fb*'], notPaths: ['*%c3%a9', '/%c3/{*}']}}]}]}";
    let paths = |normalization: &str| {
        let settings = object(
            "MeshSettings",
            "m",
            &format!("{{pathNormalization: {{normalization: {normalization}}}}}"),
        );
        let snapshot = clean(&(settings + &object("AuthorizationPolicy", "a", policy)));
        let condition = &snapshot.policy.authorization[0].rules[0].to[0][0];
        let all = condition.values.iter().chain(&condition.not_values);
        all.map(|value| format!("{value:?}")).collect::<Vec<_>>().join(" ")
    };
    let written = r#"Exact("/caf%c3%a9") Prefix("/a%2fb") Suffix("%c3%a9") PathTemplate("/%c3/{*}")"#;
    assert_eq!(paths("NONE"), written);
    let upper = r#"Exact("/caf%C3%A9") Prefix("/a%2Fb") Suffix("%C3%A9") PathTemplate("/%C3/{*}")"#;
    assert_eq!(paths("BASE"), upper);
}
