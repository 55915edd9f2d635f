//! Tests of what is said of policies beside each other.

use std::sync::Arc;

use super::*;
use crate::keep::{self, Files};
use crate::resource;

/// `LINE FIELD: MESSAGE` of each warning.
fn warned(yaml: &str) -> Vec<String> {
    let name: Arc<str> = Arc::from("test");
    let file = resource::read_file(&name, yaml);
    assert!(file.objects.iter().all(|object| object.good), "{:?}", file.objects);
    let in_force = keep::update(&Objects::new(), &Files::from([(name, Arc::new(file))]));
    let shown = |found: Diagnostic| {
        let (line, field) = (found.line.unwrap(), found.field);
        format!("{line} {field}: {}", found.message)
    };
    warnings(&in_force).into_iter().map(shown).collect()
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: foo}}\nspec:\n{spec}\n---\n"
    )
}

#[test]
fn what_can_never_match() {
    for (rule, why) in [
        ("{to: [{operation: {methods: [GET], notMethods: [GET]}}]}", "all values of to.methods are excluded"),
        ("{to: [{operation: {paths: [/a/b], notPaths: ['/a*']}}]}", "all values of to.paths are excluded"),
        (
            "{to: [{operation: {ports: ['80']}}], when: [{key: destination.port, values: ['90']}]}",
            "no value in common",
        ),
        (
            "{from: [{source: {ipBlocks: [10.0.0.0/8]}}], when: [{key: source.ip, values: [192.0.2.1]}]}",
            "no value in common",
        ),
        ("{when: [{key: 'request.headers[a]', values: [x], notValues: ['*']}]}", "are excluded"),
    ] {
        let found = warned(&policy("p", &format!("  rules:\n  - {rule}")));
        assert!(
            found.len() == 1 && found[0].starts_with("6 spec.rules[0]: can never match"),
            "{rule}: {found:?}"
        );
        assert!(found[0].contains(why), "{rule}: {found:?}");
    }
}

#[test]
fn a_deny_rule_that_no_request_meets_may_still_refuse_opaque_connections() {
    const NONE: &str = "to: [{operation: {methods: [GET], notMethods: [GET]}}]";
    let found = warned(&policy("p", &format!("  action: DENY\n  rules:\n  - {NONE}")));
    assert!(found.len() == 1 && found[0].contains("can match no request"), "{found:?}");
    // One of its ways can't be met by a request; of a connection it refuses all, the other rule only what 80 gets.
    let some = format!(
        "  action: DENY\n  rules:\n  - to: [{{operation: {{ports: ['80']}}}}]\n  - {}",
        NONE.replace("]}}]", "]}}, {operation: {ports: ['80'], methods: [GET]}}]")
    );
    assert_eq!(warned(&policy("p", &some)), [""; 0]);
}

#[test]
fn what_another_rule_does_already() {
    let inside = policy(
        "p",
        "  rules:\n  - to: [{operation: {paths: ['/a*']}}]\n  - to: [{operation: {paths: [/a/b], methods: [GET]}}]",
    );
    assert_eq!(warned(&inside), ["7 spec.rules[1]: changes nothing: rules[0] matches all that it matches"]);
    let twice = policy("a", "  rules: [{to: [{operation: {methods: [GET]}}]}]")
        + &policy("b", "  rules: [{to: [{operation: {methods: [GET]}}]}]");
    let found = warned(&twice);
    assert!(
        found.len() == 1 && found[0].contains("AuthorizationPolicy foo/a rule 0 is the same"),
        "{found:?}"
    );
}

#[test]
fn what_is_denied_whatever_allows_it() {
    let allow = "  selector: {matchLabels: {app: a}}\n  rules:\n  - from: [{source: {namespaces: [bar]}}]\n    to: [{operation: {paths: [/admin/x, '/admin/y/*']}}]";
    let deny = |spec: &str| policy("d", &format!("  action: DENY\n{spec}"));
    let found =
        warned(&(policy("a", allow) + &deny("  rules: [{to: [{operation: {paths: ['/admin/*']}}]}]")));
    assert_eq!(
        found,
        ["7 spec.rules[0]: allows nothing: AuthorizationPolicy foo/d rule 0 denies all that it matches"]
    );
    for narrower in [
        "  rules: [{to: [{operation: {paths: ['/admin/x*']}}]}]",
        "  rules: [{to: [{operation: {paths: ['/admin/*'], notPaths: [/admin/x]}}]}]",
        "  rules: [{from: [{source: {namespaces: [other]}}]}]",
        "  rules: [{to: [{operation: {paths: ['/admin/*'], methods: [GET]}}]}]",
        "  selector: {matchLabels: {app: b}}\n  rules: [{}]",
    ] {
        assert_eq!(warned(&(policy("a", allow) + &deny(narrower))), [""; 0], "{narrower}");
    }
}

#[test]
fn what_is_not_certain_is_not_said() {
    for spec in [
        // The same claim may hold both.
        "  rules: [{when: [{key: 'request.auth.claims[a]', values: [x]}, {key: 'request.auth.claims[a]', values: [y]}]}]",
        // Another trust domain may be ours as well.
        "  rules:\n  - from: [{source: {principals: ['cluster.local/ns/a/sa/b']}}]\n  - from: [{source: {principals: ['cluster.local/*']}}]",
        "  rules:\n  - to: [{operation: {paths: ['/a/{*}']}}]\n  - to: [{operation: {paths: ['/a/b']}}]",
        "  rules:\n  - to: [{operation: {methods: [GET]}}]\n  - from: [{source: {namespaces: [a]}}]",
        "  selector: {matchLabels: {app: a}}\n  rules: [{}]",
    ] {
        assert_eq!(warned(&policy("p", spec)), [""; 0], "{spec}");
    }
}

#[test]
fn a_policy_in_a_namespace_of_nobody() {
    let service = |namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: {namespace}}}\nspec: {{ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let policy = policy("p", "  rules: [{}]");
    let warned = |yaml: &str| warned(&(yaml.to_owned() + &policy));
    assert_eq!(warned(&service("foo")), [""; 0]);
    let found = warned(&service("fooo"));
    assert!(
        found[0].contains("metadata.namespace: nothing else that is here is in namespace foo"),
        "{found:?}"
    );
    assert_eq!(warned("apiVersion: v1\nkind: Namespace\nmetadata: {name: foo}\n---\n"), [""; 0]);
    assert_eq!(warned(""), [""; 0], "nothing at all is known");
}

#[test]
fn selectors_and_ports_of_nobody() {
    const CLUSTER: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a-1, namespace: foo, labels: {app: a}}\nspec: {serviceAccountName: a}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: foo}\nspec: {selector: {app: a}, ports: [{port: 80, targetPort: 8080}]}\n---\n";
    let of = |label: &str, port: &str| {
        let spec = format!(
            "  selector: {{matchLabels: {{app: {label}}}}}\n  rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]"
        );
        warned(&(CLUSTER.to_owned() + &policy("p", &spec)))
    };
    assert_eq!(of("a", "8080"), [""; 0]);
    assert_eq!(of("a", "9999"), [""; 0], "a workload may listen where no Service sends");
    let found = of("a", "80");
    assert!(
        found[0]
            .ends_with("80 is the port of Service a; policies look at the workload's, which is 8080 there"),
        "{found:?}"
    );
    let found = of("b", "8080");
    assert!(
        found[0].ends_with("spec.selector: no Pod or WorkloadEntry that is here has app: b"),
        "{found:?}"
    );
    assert_eq!((found.len(), of("a", "80").len()), (1, 1));
    // What a Deployment makes isn't read.
    let entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: foo}\nspec: {address: 192.0.2.1, labels: {app: vm}}\n---\n";
    let made = policy("p", "  selector: {matchLabels: {app: made}}\n  rules: [{}]");
    assert_eq!(warned(&(entry.to_owned() + &made)), [""; 0]);
}

/// Rules of ten kinds, none of which does what another does; and the number of all.
fn many(each: usize) -> String {
    let kinds = [
        ("ALLOW", "from: [{source: {principals: [cluster.local/ns/foo/sa/app-N]}}]"),
        ("DENY", "from: [{source: {principals: [cluster.local/ns/bar/sa/app-N]}}]"),
        ("ALLOW", "to: [{operation: {methods: [GET], paths: ['/app-N/*', '/other-N/{*}']}}]"),
        ("DENY", "to: [{operation: {methods: [GET], paths: ['/gone-N/*']}}]"),
        ("ALLOW", "to: [{operation: {hosts: ['*.N.Example.com']}}]"),
        ("DENY", "to: [{operation: {hosts: ['*.gone-N.example.com']}}]"),
        ("ALLOW", "when: [{key: 'request.auth.claims[team]', values: [app-N]}]"),
        ("DENY", "when: [{key: 'request.headers[x-tenant]', values: [gone-N]}]"),
        ("ALLOW", "from: [{source: {remoteIpBlocks: [10.0.0.0/8], notRequestPrincipals: [iss/app-N]}}]"),
        ("DENY", "from: [{source: {notPrincipals: [cluster.local/ns/foo/*, spare/ns/foo/sa/app-N]}}]"),
    ];
    let rule = |number: usize| {
        let (action, rule) = kinds[number % kinds.len()];
        let rule = rule.replace('N', &number.to_string());
        policy(&format!("p{number}"), &format!("  action: {action}\n  rules:\n  - {rule}"))
    };
    (0..each * kinds.len()).map(rule).collect()
}

#[test]
fn of_many_policies_few_are_compared() {
    let name: Arc<str> = Arc::from("test");
    let file = resource::read_file(&name, &many(200));
    let in_force = keep::update(&Objects::new(), &Files::from([(name, Arc::new(file))]));
    assert_eq!(warnings(&in_force), []);
    let found = Found::new(&in_force);
    let allowing = found.policies.iter().filter(|each| each.spec.action == AuthorizationAction::Allow);
    let rules: Vec<_> = allowing.flat_map(|each| &each.spec.rules).collect();
    let compared = |rule: &&AuthorizationRule| found.denying.candidates(&combinations(rule).unwrap()).len();
    let compared: usize = rules.iter().map(compared).sum();
    assert!(compared <= rules.len(), "{compared} of {}", rules.len() * found.deny_rules.len());
}

#[test]
fn among_many_policies_each_that_does_nothing_is_found() {
    for (more, what) in [
        ("to: [{operation: {hosts: [a.gone-15.EXAMPLE.com]}}]", "p15 rule 0 denies all"),
        ("to: [{operation: {methods: [GET], paths: ['/gone-13/{*}']}}]", "p13 rule 0 denies all"),
        ("to: [{operation: {methods: [GET], paths: ['/gone-13/x/*', /gone-13/y]}}]", "p13 rule 0 denies all"),
        (
            "to: [{operation: {paths: [/a]}}]\n    when: [{key: 'request.headers[x-tenant]', values: [gone-17]}]",
            "p17 rule 0 denies all",
        ),
        ("from: [{source: {principals: [cluster.local/ns/bar/sa/app-11]}}]", "p11 rule 0 denies all"),
        (
            "from: [{source: {notPrincipals: [spare/ns/foo/sa/app-19, cluster.local/ns/foo/*]}}]",
            "p19 rule 0 denies all",
        ),
        ("when: [{key: 'request.auth.claims[team]', values: [app-16]}]", "p16 rule 0 is the same"),
    ] {
        let spec = format!("  rules:\n  - {more}");
        let found = warned(&(many(5) + &policy("q", &spec)));
        assert!(found.len() == 1 && found[0].contains(what), "{more}: {found:?}");
    }
}

#[test]
fn limits_of_requests_count_no_opaque_connections() {
    let cluster = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a-1, namespace: foo, labels: {{app: a}}}}\nspec: {{serviceAccountName: a}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: foo}}\nspec: {{selector: {{app: a}}, ports: [{{name: {name}, port: 80}}]}}\n---\n"
        )
    };
    let limit = |rule: &str| {
        format!(
            "apiVersion: writ.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: r, namespace: foo}}\nspec:\n  selector: {{matchLabels: {{app: a}}}}\n  rules:\n  - {{{rule}, local: {{requests: 1, per: 1s}}}}\n"
        )
    };
    let by_path = limit("key: [source.ip, request.path]");
    let found = warned(&(cluster("tcp-db") + &by_path));
    assert!(found.len() == 1 && found[0].contains("spec.rules[0]: asks for something of HTTP"), "{found:?}");
    assert_eq!(warned(&(cluster("http") + &by_path)), [""; 0]);
    let found = warned(&(cluster("web") + &by_path));
    assert!(found.len() == 1 && found[0].contains("declares no protocol"), "{found:?}");
    for rule in ["key: [source.ip]", "key: [remote.ip], when: [{key: source.namespace, values: [b]}]"] {
        assert_eq!(warned(&(cluster("tcp-db") + &limit(rule))), [""; 0], "{rule}");
    }
}

#[test]
fn what_judges_only_http_is_told_of_ports_that_declare_nothing() {
    let cluster = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a-1, namespace: foo, labels: {{app: a}}}}\nspec: {{serviceAccountName: a}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: foo}}\nspec: {{selector: {{app: a}}, ports: [{{name: {name}, port: 80}}]}}\n---\napiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {{name: m}}\nspec:\n  extensionProviders:\n  - {{name: web, envoyExtAuthzHttp: {{service: a.foo.svc.cluster.local, port: 80}}}}\n  - {{name: grpc, envoyExtAuthzGrpc: {{service: a.foo.svc.cluster.local, port: 80}}}}\n---\n"
        )
    };
    let custom = |selector: &str, provider: &str| {
        policy("p", &format!("{selector}  action: CUSTOM\n  provider: {{name: {provider}}}\n  rules: [{{}}]"))
    };
    let mine = "  selector: {matchLabels: {app: a}}\n";
    let tokens = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: r, namespace: istio-system}\nspec: {jwtRules: [{issuer: i, jwksUri: 'https://i.example/keys'}]}\n";
    let said = |name: &str, policy: &str| warned(&(cluster(name) + policy));
    for (policy, what) in [
        (custom(mine, "web"), "spec.provider.name: provider web is asked about nothing but HTTP"),
        (custom("", "web"), "spec.provider.name: provider web is asked about nothing but HTTP"),
        (tokens.to_owned(), "spec: asks for tokens of nothing but HTTP"),
    ] {
        let found = said("web", &policy);
        assert!(found.len() == 1 && found[0].contains(what), "{found:?}");
        assert!(found[0].contains("port 80 of Service a"), "{found:?}");
        for declared in ["http", "tcp"] {
            assert_eq!(said(declared, &policy), [""; 0], "{declared}");
        }
    }
    // By gRPC it is asked about any connection; others are not selected.
    assert_eq!(said("web", &custom(mine, "grpc")), [""; 0]);
    assert!(
        !said("web", &custom("  selector: {matchLabels: {app: b}}\n", "web"))
            .iter()
            .any(|found| found.contains("HTTP"))
    );
}
