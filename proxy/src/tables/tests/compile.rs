//! Compiling a policy: what is looked up by port, what is escaped, and what is refused.

use super::*;
use crate::decision::{PolicyRef, Reason};
use crate::tables::{CompileError, PeerMode, RouteAttributes, RouteChoice};

#[test]
fn peer_mode_by_port() {
    let mode = |mode, object| snapshot_mode(mode, object);
    let policy = Policy {
        objects: objects(2),
        peer_authentication: PeerAuthentication {
            default: mode(MtlsMode::Strict, Some(0)),
            ports: vec![(8080, mode(MtlsMode::Permissive, Some(1))), (90, mode(MtlsMode::Disable, None))],
        },
        ..Policy::default()
    };
    let tables = tables(&policy);
    for (port, mode, policy) in [
        (80, MtlsMode::Strict, PolicyRef::object(0)),
        (8080, MtlsMode::Permissive, PolicyRef::object(1)),
        (90, MtlsMode::Disable, PolicyRef::NONE),
    ] {
        assert_eq!(tables.peer_mode(port), PeerMode { mode, policy, quarantined: false }, "{port}");
    }
}

fn snapshot_mode(mode: MtlsMode, object: Option<u32>) -> control_client::snapshot::PeerMode {
    control_client::snapshot::PeerMode { mode, object, quarantined: false }
}

#[test]
fn inbound_ports() {
    let port = |port, service: Option<&str>| InboundPort {
        port,
        protocol: Some(Protocol::Http1),
        service: service.map(Into::into),
    };
    let policy = Policy { inbound_ports: vec![port(90, None), port(80, Some("a:80"))], ..Policy::default() };
    let tables = tables(&policy);
    assert_eq!(tables.inbound_port(80).unwrap().service.as_deref(), Some("a:80"));
    assert_eq!(tables.inbound_port(90).unwrap().service, None);
    assert!(tables.inbound_port(81).is_none());
}

#[test]
fn objects_are_escaped_once() {
    let object = ObjectRef {
        kind: "HTTPRoute".into(),
        namespace: "a\"b".into(),
        name: "c\\d\n".into(),
        digest: "sha256:00".into(),
    };
    let tables = tables(&Policy { objects: vec![object], ..Policy::default() });
    let interned = tables.objects().get(PolicyRef::object(0)).unwrap();
    assert_eq!(interned.json, r#""kind":"HTTPRoute","namespace":"a\"b","name":"c\\d\n""#);
    let parsed: serde_json::Value = serde_json::from_str(&format!("{{{}}}", interned.json)).unwrap();
    assert_eq!(parsed["name"], "c\\d\n");
}

#[test]
fn forwarding_identities() {
    let identities = ["spiffe://td/ns/a/sa/gw", "spiffe://td/ns/edge/*", "*/sa/router"];
    let mut policy = Policy::default();
    policy.mesh.forwarding_identities = identities.iter().map(|each| (*each).into()).collect();
    let tables = tables(&policy);
    for (identity, expected) in [
        ("spiffe://td/ns/a/sa/gw", true),
        ("spiffe://td/ns/a/sa/gw2", false),
        ("spiffe://td/ns/edge/sa/any", true),
        ("spiffe://x/ns/y/sa/router", true),
    ] {
        assert_eq!(tables.forwards_client_cert(identity), expected, "{identity}");
    }
    assert!(!super::tables(&Policy::default()).forwards_client_cert("spiffe://td/ns/a/sa/gw"));
}

fn compile_error(policy: &Policy) -> CompileError {
    let ids: Vec<_> = (0..policy.backends.len() as u32).map(BackendId).collect();
    Tables::compile(policy, &ids).unwrap_err()
}

#[test]
fn a_policy_that_cannot_be_meant_fails_closed_alone_and_is_named() {
    use AuthorizationAction::{Allow, Deny};
    let good = || rule(&[], &[is(Attribute::Path, &["/good"])], &[]);
    let reason = |policies: Vec<AuthorizationPolicy>| {
        let tables = tables(&with_authorization(policies));
        let remainder = tables.admit(&from(None));
        (tables.authorize(&remainder, &get("/", &HeaderMap::new())).reason, tables.refused().to_vec())
    };
    for (bad, message) in [
        (is(Attribute::Path, &["/{**}/{*}"]), "last operator"),
        (is(Attribute::SourceServiceAccount, &["ns/a*"]), "no wildcard"),
        (is(Attribute::SourceServiceAccount, &["a"]), "namespace/name"),
        (is(Attribute::Header("a b".into()), &["x"]), "header name"),
        (Condition { attribute: Attribute::Path, ..is(Attribute::DestinationPort, &["80"]) }, "80"),
        (Condition { attribute: Attribute::SourceIp, ..is(Attribute::Path, &["/a"]) }, "address block"),
        (Condition { attribute: Attribute::DestinationPort, ..is(Attribute::Path, &["/a"]) }, "no port"),
    ] {
        let bad = rule(&[], &[Condition { field: "to.paths".into(), ..bad }], &[]);
        for action in [Allow, Deny] {
            let policies = vec![policy(0, action, vec![good(), bad.clone()]), policy(1, Allow, vec![good()])];
            let (reason, refused) = reason(policies);
            assert_eq!(reason, Reason::QuarantinedPolicy, "{action:?} {message}");
            let [error] = &*refused else { panic!("{refused:?}") };
            assert_eq!(error.object, "AuthorizationPolicy ns/p000");
            assert_eq!(error.field, "spec.rules[1].to.paths");
            assert!(error.message.contains(message), "{error}");
        }
    }
}

#[test]
fn backends_that_are_not_there_are_refused() {
    let port = ServicePort { port: 80, protocol: None, routes: Vec::new(), backend: 0 };
    let service = Service {
        host: "a".into(),
        names: vec!["a".into()],
        addresses: Vec::new(),
        object: None,
        ports: vec![port],
    };
    let mut policy = Policy { services: vec![service], ..Policy::default() };
    assert!(compile_error(&policy).message.contains("backend #0"));
    policy.backends.push(backend("a:80"));
    assert!(Tables::compile(&policy, &[]).is_err());

    let tables = tables(&policy);
    let id = tables.service_by_authority("A.", 80).unwrap();
    assert_eq!(&*tables.service_port(id).name, "a:80");
    assert_eq!(tables.backend(0).id, BackendId(0));
    let headers = HeaderMap::new();
    let request = RouteAttributes { method: &http::Method::GET, path: "/", query: None, headers: &headers };
    assert!(matches!(tables.match_route(id, &request), RouteChoice::Default(0)));
}

#[test]
fn tables_may_cross_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Tables>();
    shared::<crate::tables::Remainder>();
}
