//! HTTPRoutes with Service parents: producer and consumer sets, ports, references.

use super::*;
use crate::snapshot::RouteRule;

const SERVICES: &str = "a b bar/c";

fn services() -> String {
    let service =
        |name| object("Service", name, "{ports: [{name: http, port: 80}, {name: admin, port: 81}]}");
    SERVICES.split(' ').map(service).collect()
}

fn route(name: &str, parent: &str, rules: &str) -> String {
    object(
        "HTTPRoute",
        name,
        &format!("{{parentRefs: [{{group: '', kind: Service, {parent}}}], rules: [{rules}]}}"),
    )
}

/// Names of the routes on a port of a service, with what their backends resolve to.
fn rules_of(loaded: &Loaded, host: &str, port: u16) -> Vec<String> {
    let policy = &loaded.snapshot.policy;
    let service =
        policy.services.iter().find(|service| service.host.starts_with(&format!("{host}."))).unwrap();
    let port = service.ports.iter().find(|found| found.port == port).unwrap();
    let text = |rule: &RouteRule| {
        let backend = |backend: &crate::snapshot::WeightedBackend| {
            let id = backend.backend.map_or("invalid", |index| &policy.backends[index as usize].name);
            format!(" {}={id}*{}", backend.name, backend.weight)
        };
        let backends: String = rule.backends.iter().map(backend).collect();
        format!("{}[{}]{backends}", object_name(policy, Some(rule.object)), rule.rule)
    };
    let mut found: Vec<_> = port.routes.iter().map(text).collect();
    found.sort();
    found
}

#[test]
fn attached_to_all_ports_or_one() {
    let loaded = load(
        &(services()
            + &route(
                "r",
                "name: a",
                "{backendRefs: [{name: b, port: 80, weight: 9}, {name: a, port: 81}]}, {}",
            )),
    );
    assert_eq!(texts(&loaded), [] as [String; 0]);
    let wanted = ["r[0] b:80=b.foo:80*9 a:81=a.foo:81*1", "r[1]"];
    assert_eq!(rules_of(&loaded, "a", 80), wanted);
    assert_eq!(rules_of(&loaded, "a", 81), wanted);
    assert_eq!(rules_of(&loaded, "b", 80), [] as [&str; 0]);
    for parent in ["name: a, port: 81", "name: a, sectionName: admin"] {
        let loaded = load(&(services() + &route("r", parent, "{}")));
        assert_eq!((rules_of(&loaded, "a", 80).len(), rules_of(&loaded, "a", 81).len()), (0, 1), "{parent}");
    }
}

#[test]
fn a_consumer_replaces_the_producer_for_itself_only() {
    let producer = route("bar/producer", "name: c", "{}");
    let consumer =
        route("consumer", "name: c, namespace: bar", "{backendRefs: [{name: c, namespace: bar, port: 80}]}");
    let foreign = route("baz/foreign", "name: c, namespace: bar", "{}");
    let producers_only = load(&(services() + &producer + &foreign));
    assert_eq!(rules_of(&producers_only, "c", 80), ["producer[0]"]);
    let both = load(&(services() + &producer + &consumer + &foreign));
    assert_eq!(texts(&both), [] as [String; 0]);
    assert_eq!(rules_of(&both, "c", 80), ["consumer[0] c.bar:80=c.bar:80*1"]);
}

#[test]
fn another_namespace_needs_a_grant() {
    let yaml = services() + &route("r", "name: a", "{backendRefs: [{name: c, namespace: bar, port: 80}]}");
    let grant = |from: &str, to: &str| {
        object(
            "ReferenceGrant",
            "bar/g",
            &format!(
                "{{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {from}}}], to: [{{group: '', kind: Service{to}}}]}}"
            ),
        )
    };
    let refused = load(&yaml);
    assert_eq!(rules_of(&refused, "a", 80), ["r[0] c.bar:80=invalid*1"]);
    assert!(
        texts(&refused)[0].contains("r spec.rules[0].backendRefs[0]: no ReferenceGrant in bar"),
        "{:?}",
        texts(&refused)
    );
    for (from, to, granted) in
        [("foo", "", true), ("foo", ", name: c", true), ("foo", ", name: d", false), ("baz", "", false)]
    {
        let loaded = load(&(yaml.clone() + &grant(from, to)));
        assert_eq!(texts(&loaded).is_empty(), granted, "{from} {to}");
    }
}

#[test]
fn invalid_references_keep_their_share_and_are_told() {
    let cases = [
        ("{name: x, port: 80}", "no Service foo/x"),
        ("{name: b, port: 9}", "has no port 9"),
        ("{name: b}", "port is required"),
        ("{group: example.com, kind: Thing, name: b, port: 80}", "can't be a backend"),
    ];
    for (backend, wanted) in cases {
        let loaded = load(
            &(services()
                + &route("r", "name: a", &format!("{{backendRefs: [{{name: b, port: 80}}, {backend}]}}"))),
        );
        assert!(texts(&loaded)[0].contains(wanted), "{:?}", texts(&loaded));
        let rules = rules_of(&loaded, "a", 80);
        assert!(rules[0].contains("=invalid*1") && rules[0].contains("b:80=b.foo:80*1"), "{rules:?}");
        assert_eq!(state(&loaded.snapshot, "r"), VerdictState::Accepted);
    }
}

#[test]
fn parents_that_are_not_there() {
    for (parent, wanted) in
        [("name: x", "no Service foo/x"), ("name: a, port: 9", "no such port, only 80, 81")]
    {
        let loaded = load(&(services() + &route("r", parent, "{}")));
        assert!(texts(&loaded)[0].contains(wanted), "{:?}", texts(&loaded));
    }
}

#[test]
fn a_quarantined_route_leaves_its_service_as_it_was() {
    let loaded = load(&(services() + &route("r", "name: a", "{x: 1}")));
    assert_eq!(rules_of(&loaded, "a", 80), [] as [&str; 0]);
    assert!(texts(&loaded).iter().any(|text| text.contains("no rule of it is in force")));
}
