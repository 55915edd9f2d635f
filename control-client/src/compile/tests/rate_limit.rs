use super::*;
use crate::verdict::VerdictState::{KeptLastGood, Quarantined};

const RULE: &str = "rules: [{local: {requests: 1, per: 1s}}]";

/// `NAME RULES QUARANTINED` of what is selected for the workload.
fn selected(yaml: &str) -> Vec<(String, usize, bool)> {
    let policy = load(yaml).snapshot.policy;
    let each = |limit: &crate::snapshot::RateLimit| {
        (object_name(&policy, Some(limit.object)), limit.rules.len(), limit.quarantined)
    };
    policy.rate_limits.iter().map(each).collect()
}

#[test]
fn limits_are_selected_as_policies_are() {
    let yaml = [
        object("RateLimit", "here", &format!("{{{RULE}}}")),
        object("RateLimit", "mine", &format!("{{selector: {{matchLabels: {{app: me}}}}, {RULE}}}")),
        object("RateLimit", "other", &format!("{{selector: {{matchLabels: {{app: you}}}}, {RULE}}}")),
        object("RateLimit", "bar/elsewhere", &format!("{{{RULE}}}")),
        object("RateLimit", "istio-system/everywhere", &format!("{{{RULE}}}")),
        object("RateLimit", "service", &format!("{{targetRefs: [{{kind: Service, name: s}}], {RULE}}}")),
        object("Service", "s", "{selector: {app: me}, ports: [{port: 80}]}"),
    ]
    .concat();
    let mut names: Vec<_> = selected(&yaml).into_iter().map(|(name, ..)| name).collect();
    names.sort();
    assert_eq!(names, ["everywhere", "here", "mine", "service"]);
}

#[test]
fn what_is_not_understood_is_quarantined_for_what_it_selects() {
    let broken = |selector: &str| {
        object("RateLimit", "r", &format!("{{{selector}rules: [{{local: {{requests: many, per: 1s}}}}]}}"))
    };
    for (selector, here) in [
        ("", true),
        ("selector: {matchLabels: {app: me}}, ", true),
        ("selector: {matchLabels: {app: you}}, ", false),
        ("selector: {labels: {app: you}}, ", true),
    ] {
        let yaml = broken(selector);
        let expected: Vec<_> = here.then(|| ("r".to_owned(), 0, true)).into_iter().collect();
        assert_eq!(selected(&yaml), expected, "{selector}");
        let loaded = load(&yaml);
        assert_eq!(state(&loaded.snapshot, "r"), Quarantined);
        let said = loaded.diagnostics[0].to_string();
        assert!(
            said.contains("RateLimit foo/r: spec.rules[0].local.requests") || !selector.is_empty(),
            "{said}"
        );
    }
}

#[test]
fn a_bad_update_keeps_the_last_good_version() {
    let good = object("RateLimit", "r", &format!("{{{RULE}}}"));
    let files = |text: &str| {
        let name: Arc<str> = "a.yaml".into();
        crate::keep::Files::from([(name.clone(), Arc::new(resource::read_file(&name, text)))])
    };
    let (mut pipeline, first) = crate::pipeline::Pipeline::first(me(), &files(&good), Options::default());
    let updated = pipeline.update(&files(&good.replace("local:", "locally:")));
    let crate::pipeline::Outcome::New(second) = updated else { panic!("{updated:?}") };
    assert_eq!(state(&second.snapshot, "r"), KeptLastGood);
    assert_eq!(second.snapshot.policy.rate_limits, first.snapshot.policy.rate_limits);
    assert!(!second.snapshot.policy.rate_limits[0].quarantined);
}

#[test]
fn global_limits_name_services_that_can_be_asked() {
    let settings = object(
        "MeshSettings",
        "m",
        "{extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: rls.foo, port: 8081}}, \
         {name: rls, envoyRateLimitGrpc: {service: rls.foo, port: 8081}}, \
         {name: gone, envoyRateLimitGrpc: {service: gone.foo, port: 1}}]}",
    );
    let service = object("Service", "rls", "{ports: [{name: grpc, port: 8081}]}");
    for (name, index, said) in [
        ("rls", Some(0), ""),
        ("gone", Some(1), "no Service or ServiceEntry gone.foo"),
        ("opa", None, "is no rate limit service"),
        ("none", None, "no provider none in MeshSettings"),
    ] {
        let limit =
            object("RateLimit", "r", &format!("{{rules: [{{global: {{provider: {name}, domain: d}}}}]}}"));
        let loaded = load(&(limit + &settings + &service));
        let of_limit: Vec<_> = texts(&loaded).into_iter().filter(|text| text.starts_with("r ")).collect();
        assert_eq!(of_limit.is_empty(), said.is_empty(), "{name}: {of_limit:?}");
        assert!(of_limit.iter().all(|text| text.contains(said)), "{name}: {of_limit:?}");
        let policy = &loaded.snapshot.policy;
        let global = policy.rate_limits[0].rules[0].global.as_ref().unwrap();
        assert_eq!(global.limiter, index, "{name}");
        assert_eq!(policy.limiters.iter().filter(|limiter| limiter.backend.is_some()).count(), 1);
    }
    // Of an AuthorizationPolicy it is none to be asked.
    let policy = object("AuthorizationPolicy", "p", "{action: CUSTOM, provider: {name: rls}, rules: [{}]}");
    assert!(
        texts(&load(&(policy + &settings + &service))).iter().any(|text| text.contains("can't be asked"))
    );
}
