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
        assert_eq!(warned(&(TOKENS.to_owned() + &policy("p", spec))), [""; 0], "{spec}");
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
    std::iter::once(TOKENS.to_owned()).chain((0..each * kinds.len()).map(rule)).collect()
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

const TOKENS: &str = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: r, namespace: istio-system}\nspec: {jwtRules: [{issuer: i, jwksUri: 'https://i.example/keys'}]}\n---\n";

#[test]
fn end_users_where_nobody_asks_for_tokens() {
    let of_claim = "  rules: [{when: [{key: 'request.auth.claims[a]', values: [x]}]}]";
    let found = warned(&policy("p", of_claim));
    assert!(
        found.len() == 1 && found[0].contains("when[request.auth.claims[a]] is of end users"),
        "{found:?}"
    );
    for tokens in [TOKENS.to_owned(), TOKENS.replace("istio-system", "foo")] {
        assert_eq!(warned(&(tokens + &policy("p", of_claim))), [""; 0]);
    }
    assert_eq!(warned(&(TOKENS.replace("istio-system", "bar") + &policy("p", of_claim))).len(), 1);
    // Of others; a policy that closes may be anybody's.
    let selecting = |app: &str| {
        TOKENS.replace("spec: {", &format!("spec: {{selector: {{matchLabels: {{app: {app}}}}}, "))
    };
    let mine = policy("p", &format!("  selector: {{matchLabels: {{app: a}}}}\n{of_claim}"));
    assert_eq!(warned(&(selecting("b").replace("istio-system", "foo") + &mine)).len(), 1);
    assert_eq!(warned(&(selecting("a").replace("istio-system", "foo") + &mine)), [""; 0]);
    for may_match in [
        "  rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]",
        "  rules: [{from: [{source: {requestPrincipals: ['*']}}, {source: {namespaces: [a]}}]}]",
    ] {
        assert_eq!(warned(&policy("p", may_match)), [""; 0], "{may_match}");
    }
}

#[test]
fn paths_that_are_brought_into_another_form() {
    let of = |path: &str| policy("p", &format!("  rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]"));
    for path in ["/a/../b", "/a/./*", "*/..", "/a/."] {
        let found = warned(&of(path));
        assert!(
            found.len() == 1 && found[0].contains("matches no request: paths have no"),
            "{path}: {found:?}"
        );
    }
    for path in ["/a/.well-known", "/a/..*", "/a.b", "*..", "/..a/b"] {
        assert_eq!(warned(&of(path)), [""; 0], "{path}");
    }
    let as_it_came = "apiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {name: m}\nspec: {pathNormalization: {normalization: NONE}}\n---\n";
    assert_eq!(warned(&(as_it_came.to_owned() + &of("/a/../b"))), [""; 0]);
}

#[test]
fn ports_that_no_workload_declares() {
    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a-1, namespace: foo, labels: {app: a}}\nspec: {containers: [{ports: [{containerPort: 8080}, {name: admin, containerPort: 9090}]}]}\n---\n";
    let peer = |port: u16| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: foo}}\nspec:\n  selector: {{matchLabels: {{app: a}}}}\n  portLevelMtls:\n    {port}: {{mode: DISABLE}}\n---\n"
        )
    };
    let of = |port: u16| {
        let rules = format!(
            "  selector: {{matchLabels: {{app: a}}}}\n  rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]"
        );
        warned(&format!("{POD}{}{}", peer(port), policy("p", &rules)))
    };
    for known in [8080, 9090] {
        assert_eq!(of(known), [""; 0]);
    }
    let found = of(80);
    assert!(found.len() == 2, "{found:?}");
    assert!(found.iter().all(|each| each.ends_with("declares port 80; known: 8080, 9090")), "{found:?}");
    assert!(found.iter().any(|each| each.starts_with("12 spec.portLevelMtls.80: ")), "{found:?}");
}

#[test]
fn of_two_peer_authentications_for_the_same_one_is_in_force() {
    let peer = |name: &str, meta: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: foo{meta}}}\nspec: {{{spec}mtls: {{mode: STRICT}}}}\n---\n"
        )
    };
    let old = ", creationTimestamp: '2020-01-01T00:00:00Z'";
    let labels = "selector: {matchLabels: {app: a}}, ";
    for spec in ["", labels] {
        let found = warned(&(peer("a", "", spec) + &peer("b", old, spec)));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("1 : not in force: PeerAuthentication foo/b (test:6) "), "{found:?}");
        let found = warned(&(peer("a", "", spec) + &peer("b", "", spec)));
        assert!(found.len() == 1 && found[0].contains("PeerAuthentication foo/a (test:1) "), "{found:?}");
    }
    assert_eq!(warned(&(peer("a", "", "") + &peer("b", "", labels))), [""; 0]);
}

#[test]
fn rules_of_routes_that_nothing_reaches_or_that_lead_nowhere() {
    let route = |rules: &str| {
        warned(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: a}}]\n  rules:\n{rules}"
        ))
    };
    let to = "backendRefs: [{name: a, port: 80}]";
    let found = route(&format!(
        "  - {{matches: [{{path: {{value: /a}}}}, {{method: GET}}], {to}}}\n  - {to}\n  - {{matches: [{{path: {{value: /a/}}}}, {{path: {{value: /}}}}], {to}}}\n"
    ));
    assert_eq!(found, ["9 spec.rules[2]: never taken: rules[0] matches the same before"]);
    let found = route(&format!(
        "  - {{matches: [{{path: {{value: /a}}}}, {{path: {{value: /b}}}}], {to}}}\n  - {{matches: [{{path: {{value: /b}}}}, {{path: {{value: /c}}}}], {to}}}\n"
    ));
    assert_eq!(found, [""; 0], "/c is its own");
    let found = route("  - backendRefs: [{name: a, port: 80, weight: 0}, {name: b, port: 80, weight: 0}]\n");
    assert_eq!(
        found,
        ["7 spec.rules[0]: all its backendRefs have weight 0: what it matches is answered with 500"]
    );
}
