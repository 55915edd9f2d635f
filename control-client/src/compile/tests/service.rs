//! Services, ServiceEntries, DestinationRules and the workload's own ports.

use super::*;
use crate::snapshot::{BackendTls, Protocol};

#[test]
fn names_seen_from_the_namespace() {
    let yaml = object("Service", "a", "{clusterIPs: [10.0.0.1, 'fd00::1'], ports: [{port: 80, name: http}]}")
        + &object(
            "Service",
            "bar/b",
            "{clusterIP: None, ports: [{port: 90, appProtocol: grpc}, {name: u, port: 53, protocol: UDP}]}",
        )
        .replace("{port: 90", "{name: x, port: 90");
    let policy = clean(&yaml).policy;
    let [b, a] = &policy.services[..] else { panic!("{:?}", policy.services) };
    assert_eq!(a.names, ["a", "a.foo", "a.foo.svc", "a.foo.svc.cluster.local"]);
    assert_eq!(b.names, ["b.bar", "b.bar.svc", "b.bar.svc.cluster.local"]);
    assert_eq!(a.addresses.len(), 2);
    assert_eq!(b.addresses, [] as [std::net::IpAddr; 0]);
    assert_eq!(
        b.ports.iter().map(|p| (p.port, p.protocol)).collect::<Vec<_>>(),
        [(90, Some(Protocol::Grpc))]
    );
    assert_eq!(policy.backends[a.ports[0].backend as usize].name, "a.foo:80");
    assert_eq!(policy.backends[a.ports[0].backend as usize].id, "a.foo.svc.cluster.local:80");
}

#[test]
fn service_entries_are_seen_where_they_are_exported() {
    let entry = |name: &str, host: &str, more: &str| {
        object(
            "ServiceEntry",
            name,
            &format!(
                "{{hosts: [{host}], ports: [{{number: 443, name: tls}}], resolution: STATIC, endpoints: [{{address: 10.9.9.9}}]{more}}}"
            ),
        )
    };
    let yaml = entry("bar/all", "a.example", "")
        + &entry("bar/own", "b.example", ", exportTo: ['.']")
        + &entry("bar/us", "'*.c.example'", ", exportTo: [foo]");
    let hosts: Vec<_> = clean(&yaml).policy.services.iter().map(|s| s.host.clone()).collect();
    assert_eq!(hosts, ["a.example", "*.c.example"]);
    let twice = load(&(entry("bar/x", "a.example", "") + &entry("foo/y", "a.example", "")));
    assert!(texts(&twice)[0].starts_with("x spec.hosts[0]: a.example already belongs to ServiceEntry foo/y"));
    let external = clean(&entry("bar/all", "a.example", "")).policy;
    assert_eq!(external.services[0].names, ["a.example"]);
}

fn backend_of(rule: &str) -> (BackendTls, u128, Vec<String>) {
    let loaded = load(&(object("Service", "bar/a", "{ports: [{port: 80}]}") + rule));
    let backend = &loaded.snapshot.policy.backends[0];
    (backend.tls.clone(), backend.connect_timeout.as_millis(), texts(&loaded))
}

#[test]
fn destination_rules_are_found_by_host_and_namespace() {
    let disable = |name: &str, host: &str| {
        object(
            "DestinationRule",
            name,
            &format!("{{host: {host}, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}"),
        )
    };
    let applies = |rule: &str| backend_of(rule).0 == BackendTls::Plaintext;
    assert!(applies(&disable("bar/d", "a")), "a short name is of the rule's namespace");
    assert!(!applies(&disable("foo/d", "a")));
    assert!(applies(&disable("foo/d", "a.bar")));
    assert!(applies(&disable("foo/d", "a.bar.svc")));
    assert!(applies(&disable("foo/d", "a.bar.svc.cluster.local")));
    assert!(applies(&disable("istio-system/d", "'*.bar.svc.cluster.local'")));
    assert!(applies(&disable("istio-system/d", "'*'")));
    assert!(!applies(&disable("baz/d", "a.bar")));
    // The client's namespace comes first, and a longer suffix before a shorter one.
    let both = disable("bar/d", "a")
        + &object("DestinationRule", "foo/e", "{host: a.bar, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}");
    assert_eq!(backend_of(&both).0, BackendTls::Mesh { sans: vec![] });
    let (.., found) = backend_of(&disable("foo/d", "a"));
    assert!(found[0].contains("no service a.foo.svc.cluster.local is known"), "{found:?}");
}

#[test]
fn destination_rule_values() {
    assert_eq!(backend_of("").1, 10_000);
    let rule = object(
        "DestinationRule",
        "bar/d",
        "{host: a, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1s}}}}",
    );
    assert_eq!((backend_of(&rule).0, backend_of(&rule).1), (BackendTls::Auto, 1000));
    let by_port = object(
        "DestinationRule",
        "bar/d",
        "{host: a, trafficPolicy: {tls: {mode: DISABLE}, portLevelSettings: [{port: {number: 80}, tls: {mode: ISTIO_MUTUAL}}]}}",
    );
    assert_eq!(backend_of(&by_port).0, BackendTls::Mesh { sans: vec![] });
    // TLS that was asked for and can't be understood never becomes plaintext.
    let bad = object("DestinationRule", "bar/d", "{host: a, trafficPolicy: {tls: {mode: SIMPEL}}}");
    assert!(matches!(backend_of(&bad).0, BackendTls::Unusable { .. }));
}

#[test]
fn own_ports() {
    let yaml = [
        object("Service", "z", "{selector: {app: me}, ports: [{port: 80, targetPort: 8080, name: tcp-x}]}"),
        object("Service", "b", "{selector: {app: me}, ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 90, targetPort: web}]}"),
        object("Service", "c", "{selector: {app: other}, ports: [{port: 1}]}"),
        object("Service", "bar/d", "{selector: {app: me}, ports: [{port: 2}]}"),
        object("Pod", "me", "{containers: [{name: x, ports: [{name: web, containerPort: 9090}]}]}"),
    ]
    .concat();
    let ports = clean(&yaml).policy.inbound_ports.clone();
    let found: Vec<_> = ports.iter().map(|p| (p.port, p.protocol, p.service.as_deref().unwrap())).collect();
    assert_eq!(
        found,
        [
            (8080, Some(Protocol::Http1), "b.foo.svc.cluster.local:80"),
            (9090, Some(Protocol::Grpc), "b.foo.svc.cluster.local:90")
        ]
    );
}

#[test]
fn external_names_are_not_followed() {
    let loaded = load(&object("Service", "a", "{type: ExternalName, externalName: example.com}"));
    assert_eq!(loaded.snapshot.policy.services, []);
    assert!(texts(&loaded)[0].contains("ExternalName is not followed"));
}
