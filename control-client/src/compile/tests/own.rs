//! A workload whose labels its Pod says: while nobody has said them, and when the Pod goes away.

use super::*;
use crate::Health;
use crate::keep::Files;
use crate::pipeline::{Outcome, Pipeline};
use crate::snapshot::{AuthorizationAction, MtlsMode};

/// Workload `foo/me` as one knows it who is told no labels.
fn nameless() -> Workload {
    Workload { labels: BTreeMap::new(), ..me() }
}

fn files(text: &str) -> Files {
    let name: Arc<str> = "a.yaml".into();
    Files::from([(name.clone(), Arc::new(resource::read_file(&name, text)))])
}

const INBOUND: Options = Options { strict: false, inbound: true };

/// What a proxy makes of it that serves the workload.
fn serving(yaml: &str) -> (Pipeline, Loaded) {
    Pipeline::first(nameless(), &files(yaml), INBOUND)
}

fn update(pipeline: &mut Pipeline, yaml: &str) -> Loaded {
    match pipeline.update(&files(yaml)) {
        Outcome::New(loaded) => *loaded,
        other => panic!("{other:?}"),
    }
}

fn my_pod(app: &str) -> String {
    object("Pod", "me", "{}").replace("name: me}", &format!("name: me, labels: {{app: {app}}}}}"))
}

/// What is in force, as `NAME RULES`, and what is closed with a `!`.
fn in_force(snapshot: &Snapshot) -> Vec<String> {
    let policy = &snapshot.policy;
    let text = |object, rules: usize, closed| {
        format!("{} {rules}{}", object_name(policy, Some(object)), if closed { "!" } else { "" })
    };
    let authorization =
        policy.authorization.iter().map(|each| text(each.object, each.rules.len(), each.quarantined));
    let users = policy.request_authentication.iter().map(|each| text(each.object, 0, each.quarantined));
    let limits = policy.rate_limits.iter().map(|each| text(each.object, each.rules.len(), each.quarantined));
    let peers = &policy.peer_authentication.default;
    let peers = (peers.mode == MtlsMode::Strict).then(|| text(peers.object.unwrap(), 0, peers.quarantined));
    let mut all: Vec<_> = authorization.chain(users).chain(limits).chain(peers).collect();
    all.sort();
    all
}

const SELECTOR: &str = "selector: {matchLabels: {app: me}}";

fn policy(kind: &str, name: &str, spec: &str) -> String {
    object(kind, name, &format!("{{{SELECTOR}, {spec}}}"))
}

#[test]
fn while_nobody_has_said_its_labels_what_may_select_a_workload_fails_closed() {
    let limit = "rules: [{local: {requests: 1, per: 1s}}]";
    let issuer = "jwtRules: [{issuer: 'https://a.example'}]";
    let cases = [
        (policy("AuthorizationPolicy", "allow", "rules: [{}]"), "allow 0!", "allow 1"),
        (policy("AuthorizationPolicy", "deny", "action: DENY, rules: [{}]"), "deny 1!", "deny 1"),
        (policy("RequestAuthentication", "users", issuer), "users 0!", "users 0"),
        (policy("RateLimit", "limit", limit), "limit 0!", "limit 1"),
        (policy("PeerAuthentication", "peers", "mtls: {mode: DISABLE}"), "peers 0!", ""),
        (policy("PeerAuthentication", "ports", "portLevelMtls: {80: {mode: DISABLE}}"), "ports 0!", ""),
        (policy("AuthorizationPolicy", "istio-system/root", "rules: [{}]"), "root 0!", "root 1"),
        (
            object("AuthorizationPolicy", "target", "{targetRefs: [{kind: Service, group: '', name: s}]}")
                + &object("Service", "s", "{selector: {app: me}, ports: [{port: 80}]}"),
            "target 0!",
            "target 0",
        ),
    ];
    for (yaml, closed, known) in cases {
        let (mut pipeline, first) = serving(&yaml);
        assert_eq!(in_force(&first.snapshot), [closed], "{yaml}");
        let name = closed.split(' ').next().unwrap();
        assert_eq!(state(&first.snapshot, name), VerdictState::Quarantined);
        let said = texts(&first).into_iter().find(|text| text.contains("no --labels")).unwrap();
        assert!(said.contains("foo/me"), "{said}");
        let Health::Failing(why) = &first.snapshot.health else { panic!("{:?}", first.snapshot.health) };
        assert!(
            why.contains("no Pod or WorkloadEntry foo/me, and no --labels") && why.contains(name),
            "{why}"
        );

        let second = update(&mut pipeline, &(yaml.clone() + &my_pod("me")));
        assert_eq!(in_force(&second.snapshot).join(","), known, "{yaml}");
        assert_eq!(state(&second.snapshot, name), VerdictState::Accepted);
        assert_eq!(second.snapshot.health, Health::Well);

        let (_, other) = serving(&(yaml.clone() + &my_pod("you")));
        assert_eq!((in_force(&other.snapshot), &other.snapshot.health), (vec![], &Health::Well), "{yaml}");

        // Where nothing comes in, and where somebody only asks, it is left out.
        let left_out = load_str(&yaml, &nameless());
        assert_eq!((in_force(&left_out.snapshot), &left_out.snapshot.health), (vec![], &Health::Well));
        assert!(!left_out.workload_known && texts(&left_out).is_empty(), "{yaml}");
    }
    let custom = policy("AuthorizationPolicy", "p", "action: CUSTOM, provider: {name: x}, rules: [{}]");
    let asks = &serving(&custom).1.snapshot.policy.authorization[0];
    assert_eq!((asks.action, asks.rules.len(), asks.quarantined), (AuthorizationAction::Custom, 1, true));
}

#[test]
fn what_can_not_select_the_workload_closes_nothing() {
    let yaml = [
        object("AuthorizationPolicy", "all", "{rules: [{}]}"),
        policy("AuthorizationPolicy", "bar/elsewhere", "rules: [{}]"),
        policy("PeerAuthentication", "bar/elsewhere", "mtls: {mode: STRICT}"),
        policy("PeerAuthentication", "istio-system/without-effect", "mtls: {mode: STRICT}"),
    ]
    .concat();
    let (_, loaded) = serving(&yaml);
    assert_eq!((in_force(&loaded.snapshot), &loaded.snapshot.health), (vec!["all 1".into()], &Health::Well));
    assert!(loaded.workload_known);
    // A Pod that is not understood says nothing.
    let bad = my_pod("me").replace("app: me", "app: [me]");
    let (_, loaded) = serving(&(policy("AuthorizationPolicy", "p", "rules: [{}]") + &bad));
    assert_eq!(in_force(&loaded.snapshot), ["p 0!"]);
}

#[test]
fn labels_last_known_hold_while_the_pod_is_not_there() {
    let yaml = policy("AuthorizationPolicy", "mine", "action: DENY, rules: [{}]")
        + &object("AuthorizationPolicy", "others", "{selector: {matchLabels: {app: you}}, rules: [{}]}");
    let (mut pipeline, first) = serving(&(yaml.clone() + &my_pod("me")));
    assert_eq!((in_force(&first.snapshot), &first.snapshot.health), (vec!["mine 1".into()], &Health::Well));

    let gone = update(&mut pipeline, &yaml);
    assert!(Arc::ptr_eq(&gone.snapshot.policy, &first.snapshot.policy), "nothing else is in force");
    let Health::Degraded(why) = &gone.snapshot.health else { panic!("{:?}", gone.snapshot.health) };
    assert!(why.contains("no Pod or WorkloadEntry foo/me any more"), "{why}");
    assert!(gone.workload_known);

    let back = update(&mut pipeline, &(yaml.clone() + &my_pod("you")));
    assert_eq!((in_force(&back.snapshot), &back.snapshot.health), (vec!["others 1".into()], &Health::Well));
    assert_eq!(in_force(&update(&mut pipeline, &yaml).snapshot), ["others 1"]);
}

#[test]
fn a_strict_proxy_waits_for_its_labels_too() {
    let yaml = policy("AuthorizationPolicy", "p", "rules: [{}]");
    let (mut pipeline, first) =
        Pipeline::first(nameless(), &files(&yaml), Options { strict: true, ..INBOUND });
    assert!(!first.diagnostics.iter().any(crate::verdict::Diagnostic::is_mistake));
    let more = yaml.clone() + &object("AuthorizationPolicy", "q", "{rules: [{}]}");
    assert_eq!(in_force(&update(&mut pipeline, &more).snapshot), ["p 0!", "q 1"]);
    assert_eq!(in_force(&update(&mut pipeline, &(yaml + &my_pod("me"))).snapshot), ["p 1"]);
}
