//! PeerAuthentication: Istio's cases of ComposePeerAuthentication, quarantine, the enforced floor.

use super::*;
use crate::snapshot::BackendTls;
use crate::snapshot::MtlsMode::{self, Disable, Permissive, Strict};

fn policy(name: &str, created: u32, spec: &str) -> String {
    object("PeerAuthentication", name, spec).replacen(
        "metadata: {",
        &format!("metadata: {{creationTimestamp: '2024-01-01T00:00:{created:02}Z', "),
        1,
    )
}

type Ports = Vec<(u16, MtlsMode)>;

fn merged(snapshot: &Snapshot) -> (MtlsMode, Ports) {
    let merged = &snapshot.policy.peer_authentication;
    (merged.default.mode, merged.ports.iter().map(|(port, mode)| (*port, mode.mode)).collect())
}

const SELECTOR: &str = "selector: {matchLabels: {app: me}}";

#[test]
fn composed_as_istio_composes() {
    let mesh =
        |created, mode: &str| policy("istio-system/mesh", created, &format!("{{mtls: {{mode: {mode}}}}}"));
    let namespace =
        |name: &str, created, mode: &str| policy(name, created, &format!("{{mtls: {{mode: {mode}}}}}"));
    let workload = |name: &str, created, mode: &str| {
        policy(name, created, &format!("{{{SELECTOR}, mtls: {{mode: {mode}}}}}"))
    };
    let ports = |mode: &str, ports: &str| {
        policy("w", 1, &format!("{{{SELECTOR}, mtls: {{mode: {mode}}}, portLevelMtls: {{{ports}}}}}"))
    };
    let none = Ports::new;
    let cases: Vec<(&str, Vec<String>, MtlsMode, Ports)> = vec![
        ("no config", vec![], Permissive, none()),
        ("mesh only", vec![mesh(1, "STRICT")], Strict, none()),
        ("mesh and namespace", vec![mesh(1, "STRICT"), namespace("n", 1, "PERMISSIVE")], Permissive, none()),
        (
            "mesh, namespace and workload",
            vec![mesh(1, "STRICT"), namespace("n", 1, "PERMISSIVE"), workload("w", 1, "DISABLE")],
            Disable,
            none(),
        ),
        ("unset namespace inherits", vec![mesh(1, "STRICT"), namespace("n", 1, "UNSET")], Strict, none()),
        ("unset workload inherits", vec![mesh(1, "STRICT"), workload("w", 1, "UNSET")], Strict, none()),
        ("empty mtls inherits", vec![mesh(1, "STRICT"), policy("n", 1, "{}")], Strict, none()),
        (
            "the oldest namespace policy",
            vec![namespace("n1", 9, "STRICT"), namespace("n2", 3, "DISABLE")],
            Disable,
            none(),
        ),
        (
            "the oldest workload policy",
            vec![workload("w1", 5, "STRICT"), workload("w2", 2, "PERMISSIVE")],
            Permissive,
            none(),
        ),
        (
            "the oldest mesh policy",
            vec![
                policy("istio-system/m1", 5, "{mtls: {mode: DISABLE}}"),
                policy("istio-system/m2", 2, "{mtls: {mode: STRICT}}"),
            ],
            Strict,
            none(),
        ),
        (
            "port level",
            vec![ports("STRICT", "80: {mode: DISABLE}, 90: {mode: PERMISSIVE}")],
            Strict,
            vec![(80, Disable), (90, Permissive)],
        ),
        (
            "port level unset inherits the merged mode",
            vec![mesh(1, "STRICT"), ports("UNSET", "80: {mode: UNSET}, 90: {mode: DISABLE}")],
            Strict,
            vec![(80, Strict), (90, Disable)],
        ),
        ("another namespace", vec![policy("bar/n", 1, "{mtls: {mode: STRICT}}")], Permissive, none()),
        (
            "another workload",
            vec![policy("w", 1, "{selector: {matchLabels: {app: other}}, mtls: {mode: STRICT}}")],
            Permissive,
            none(),
        ),
        (
            "empty selector is for the namespace",
            vec![policy("n", 1, "{selector: {}, mtls: {mode: STRICT}}")],
            Strict,
            none(),
        ),
    ];
    for (name, objects, mode, ports) in cases {
        assert_eq!(merged(&clean(&objects.concat())), (mode, ports), "{name}");
    }
}

#[test]
fn a_selector_in_the_root_namespace_is_ignored_with_a_warning() {
    let loaded = load(&policy("istio-system/r", 1, &format!("{{{SELECTOR}, mtls: {{mode: STRICT}}}}")));
    assert_eq!(merged(&loaded.snapshot), (Permissive, vec![]));
    assert!(texts(&loaded)[0].starts_with("r spec.selector: has no effect"), "{:?}", texts(&loaded));
}

#[test]
fn what_can_not_be_understood_is_strict_where_it_applies() {
    let cases = [
        ("{mtls: {mode: STRIKT}}", Strict),
        ("{selector: {matchLabels: {app: me}}, portLevelMtls: {x: {mode: DISABLE}}}", Strict),
        ("{selector: {matchLabels: {app: other}}, mtls: {mode: X}}", Permissive),
        ("{selector: {matchLabels: 1}, mtls: {mode: DISABLE}}", Strict),
        ("[]", Strict),
    ];
    for (spec, mode) in cases {
        let snapshot = load(&object("PeerAuthentication", "p", spec)).snapshot;
        assert_eq!(merged(&snapshot).0, mode, "{spec}");
        assert_eq!(snapshot.policy.peer_authentication.default.quarantined, mode == Strict);
        assert_eq!(state(&snapshot, "p"), VerdictState::Quarantined);
    }
    let bad_mesh = object("PeerAuthentication", "istio-system/m", "{mtls: {mode: X}}");
    assert_eq!(merged(&load(&bad_mesh).snapshot).0, Strict);
    // An older good one of the same level does not open what a bad one closes.
    let both = policy("good", 1, "{mtls: {mode: DISABLE}}") + &policy("bad", 9, "{mtls: {mode: X}}");
    assert_eq!(merged(&load(&both).snapshot).0, Strict);
}

fn enforced(mode: &str) -> String {
    object("PeerAuthentication", "istio-system/floor", &format!("{{mtls: {{mode: {mode}}}}}")).replacen(
        "metadata: {",
        "metadata: {annotations: {writ.dev/enforced: 'true'}, ",
        1,
    )
}

#[test]
fn an_enforced_mode_can_not_be_weakened() {
    let weaker = [
        "{mtls: {mode: PERMISSIVE}}",
        "{selector: {matchLabels: {app: me}}, mtls: {mode: DISABLE}}",
        "{selector: {matchLabels: {app: me}}, portLevelMtls: {80: {mode: DISABLE}}}",
    ];
    for spec in weaker {
        let loaded = load(&(enforced("STRICT") + &object("PeerAuthentication", "weak", spec)));
        assert_eq!(merged(&loaded.snapshot), (Strict, vec![]), "{spec}");
        assert_eq!(state(&loaded.snapshot, "weak"), VerdictState::Ignored);
        assert!(texts(&loaded)[0].contains("istio-system/floor, which is enforced"), "{:?}", texts(&loaded));
    }
    // An older one of the mesh itself, too.
    let older = policy("istio-system/older", 1, "{mtls: {mode: DISABLE}}");
    assert_eq!(merged(&load(&(older + &enforced("STRICT"))).snapshot).0, Strict);
    // One that says nothing and is older doesn't take its place.
    let silent = policy("istio-system/older", 1, "{}");
    assert_eq!(merged(&clean(&(silent + &enforced("STRICT")))).0, Strict);
    // A value that can't be understood enforces.
    let unclear = enforced("STRICT").replace("'true'", "'yes'");
    let weak = object("PeerAuthentication", "weak", "{mtls: {mode: DISABLE}}");
    let loaded = load(&(unclear + &weak));
    assert_eq!(merged(&loaded.snapshot).0, Strict);
    assert_eq!(state(&loaded.snapshot, "weak"), VerdictState::Ignored);
    // As strong or stronger is no weakening; without the annotation Istio's merge holds.
    let stronger = enforced("PERMISSIVE") + &object("PeerAuthentication", "n", "{mtls: {mode: STRICT}}");
    assert_eq!(merged(&clean(&stronger)).0, Strict);
}

#[test]
fn of_an_object_that_would_weaken_an_enforced_one_what_is_as_strict_holds() {
    let weak = |name: &str, created, rest: &str| policy(name, created, &format!("{{{SELECTOR}, {rest}}}"));
    let strict = weak("other", 9, "mtls: {mode: STRICT}");
    let cases = [
        // What is ignored is as if it were not written.
        ("mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}", "", Strict, vec![(80, Strict)]),
        ("mtls: {mode: DISABLE}, portLevelMtls: {80: {mode: STRICT}}", "", Permissive, vec![(80, Strict)]),
        (
            "portLevelMtls: {80: {mode: DISABLE}, 90: {mode: STRICT}, 91: {mode: PERMISSIVE}}",
            "",
            Permissive,
            vec![(80, Permissive), (90, Strict), (91, Permissive)],
        ),
        // Nothing becomes weaker by what is left of it, either.
        ("mtls: {mode: DISABLE}, portLevelMtls: {80: {mode: STRICT}}", &strict, Strict, vec![(80, Strict)]),
        (
            "mtls: {mode: PERMISSIVE}, portLevelMtls: {80: {mode: DISABLE}}",
            &strict,
            Strict,
            vec![(80, Strict)],
        ),
        ("portLevelMtls: {80: {mode: DISABLE}}", &strict, Strict, vec![]),
    ];
    for (rest, other, mode, ports) in cases {
        let loaded = load(&(enforced("PERMISSIVE") + &weak("weak", 1, rest) + other));
        assert_eq!(merged(&loaded.snapshot), (mode, ports), "{rest}");
        assert_eq!(state(&loaded.snapshot, "weak"), VerdictState::Ignored, "{rest}");
        assert_eq!(texts(&loaded).len(), 1, "{rest}: only the field that is weaker is told");
        assert!(texts(&loaded)[0].contains("istio-system/floor, which is enforced"), "{:?}", texts(&loaded));
    }
    let loaded = load(
        &(enforced("PERMISSIVE")
            + &weak("w", 1, "mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}")),
    );
    let told = "w spec.portLevelMtls.80.mode: would weaken PeerAuthentication istio-system/floor, which is enforced; \
                this field is ignored";
    assert_eq!(texts(&loaded), [told]);
    // One that is younger than another has no say, as ever.
    let first = weak("first", 1, "mtls: {mode: PERMISSIVE}");
    let second = weak("second", 2, "mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}");
    assert_eq!(merged(&load(&(enforced("PERMISSIVE") + &first + &second)).snapshot), (Permissive, vec![]));
}

#[test]
fn enforced_mtls_can_not_be_turned_off_by_clients() {
    let service = object("Service", "a", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}");
    let outside = object(
        "ServiceEntry",
        "out",
        "{hosts: [out.example.com], location: MESH_EXTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]}",
    );
    let off = |host: &str| format!("{{host: {host}, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}");
    let off_for_port =
        "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}}";
    let tls = |snapshot: &Snapshot, host: &str| {
        let backend = snapshot.policy.backends.iter().find(|backend| backend.id.starts_with(host)).unwrap();
        (backend.tls.clone(), backend.mtls_required)
    };
    for spec in [&off("a"), &off("'*.local'"), &off("a.foo.svc.cluster.local"), off_for_port] {
        let rule = object("DestinationRule", "plain", spec);
        let loaded = load(&(enforced("STRICT") + &service + &outside + &rule));
        assert_eq!(tls(&loaded.snapshot, "a.foo"), (BackendTls::Auto, true), "{spec}");
        assert_eq!(state(&loaded.snapshot, "plain"), VerdictState::Ignored);
        assert!(texts(&loaded)[0].contains("would weaken PeerAuthentication istio-system/floor"), "{spec}");
        // Without the annotation the endpoint is refused instead, when it is picked.
        let plain = object("PeerAuthentication", "istio-system/m", "{mtls: {mode: STRICT}}");
        let (mode, required) = tls(&clean(&(plain + &service + &outside + &rule)), "a.foo");
        assert_eq!((mode, required), (BackendTls::Plaintext, true), "{spec}");
    }
    let rule = object("DestinationRule", "plain", &off("out.example.com"));
    let snapshot = clean(&(enforced("STRICT") + &service + &outside + &rule));
    assert_eq!(tls(&snapshot, "out.example.com"), (BackendTls::Plaintext, false), "not of the mesh");
    let permissive =
        clean(&(enforced("PERMISSIVE") + &service + &object("DestinationRule", "plain", &off("a"))));
    assert_eq!(tls(&permissive, "a.foo").0, BackendTls::Plaintext);
}

#[test]
fn enforcing_elsewhere_is_an_error() {
    let yaml = enforced("STRICT").replace("istio-system", "foo");
    assert!(texts(&load(&yaml))[0].contains("only in the root namespace"));
}
