//! Endpoints: joins, identities, and what stays the same.

use super::*;
use crate::snapshot::Endpoint;

fn pod(name: &str, ip: &str, labels: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("foo", name));
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: {namespace}, name: {name}, labels: {{{labels}}}}}\nspec: {{serviceAccountName: {name}-sa}}\nstatus: {{podIP: {ip}}}\n"
    )
}

fn slice(service: &str, ports: &str, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: foo, name: {service}-1, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{ports}]\nendpoints: [{endpoints}]\n"
    )
}

fn endpoints(snapshot: &Snapshot, id: &str) -> Vec<Endpoint> {
    snapshot.endpoints.by_backend[id].endpoints.clone()
}

fn brief(endpoints: &[Endpoint]) -> Vec<String> {
    let text = |e: &Endpoint| {
        let workload = e.workload.as_deref().unwrap_or("?");
        let identity = e.identity.as_deref().unwrap_or("?").trim_start_matches("spiffe://cluster.local/");
        format!(
            "{} {workload} {identity}{}{}",
            e.address,
            if e.mesh_tls { " mesh" } else { "" },
            if e.mtls_required { " strict" } else { "" }
        )
    };
    endpoints.iter().map(text).collect()
}

const MESH: &str = "security.istio.io/tlsMode: istio";

#[test]
fn slices_are_joined_to_pods_by_name_then_by_address() {
    let yaml = object("Service", "a", "{ports: [{name: http, port: 80}]}")
        + &pod("one", "127.0.0.1", MESH)
        + &pod("two", "127.0.0.1", MESH)
        + &pod("three", "10.0.0.3", "app: x")
        + &slice(
            "a",
            "{name: http, port: 8080}, {name: other, port: 1}",
            "{addresses: [127.0.0.1], targetRef: {kind: Pod, name: two}}, {addresses: [10.0.0.3]}, {addresses: [10.0.0.4]}, {addresses: [10.0.0.5], conditions: {ready: false}}, {addresses: [10.0.0.6], targetRef: {kind: Pod, name: gone}}",
        );
    assert_eq!(
        brief(&endpoints(&clean(&yaml), "a.foo.svc.cluster.local:80")),
        [
            "10.0.0.3:8080 foo/three ns/foo/sa/three-sa",
            "10.0.0.4:8080 ? ?",
            "10.0.0.6:8080 ? ?",
            "127.0.0.1:8080 foo/two ns/foo/sa/two-sa mesh"
        ]
    );
}

#[test]
fn without_slices_the_selector_finds_pods_and_workload_entries() {
    let yaml = object(
        "Service",
        "a",
        "{selector: {app: x}, ports: [{name: http, port: 80, targetPort: 8080}]}",
    ) + &pod("one", "10.0.0.1", "app: x")
        + &pod("bar/other", "10.0.0.2", "app: x")
        + &object(
            "WorkloadEntry",
            "vm",
            &format!(
                "{{address: 10.0.0.9, ports: {{http: 9999}}, labels: {{app: x, {MESH}}}, serviceAccount: vm, weight: 5}}"
            ),
        );
    let found = endpoints(&clean(&yaml), "a.foo.svc.cluster.local:80");
    assert_eq!(
        brief(&found),
        ["10.0.0.1:8080 foo/one ns/foo/sa/one-sa", "10.0.0.9:9999 foo/vm ns/foo/sa/vm mesh"]
    );
    assert_eq!(found[1].weight, 5);
}

#[test]
fn service_entries() {
    let entry = |more: &str| {
        object(
            "ServiceEntry",
            "e",
            &format!("{{hosts: [e.example], ports: [{{number: 80, name: http, targetPort: 8080}}], {more}}}"),
        )
    };
    let one = |yaml: &str| brief(&endpoints(&clean(yaml), "e.example:80"));
    assert_eq!(
        one(&entry(&format!(
            "location: MESH_INTERNAL, resolution: STATIC, endpoints: [{{address: 10.0.0.1, serviceAccount: x, labels: {{{MESH}}}}}, {{address: 10.0.0.2, ports: {{http: 7}}}}]"
        ))),
        ["10.0.0.1:8080 ? ns/foo/sa/x mesh", "10.0.0.2:7 ? ?"]
    );
    assert_eq!(one(&entry("resolution: DNS, endpoints: [{address: localhost}]")), ["127.0.0.1:8080 ? ?"]);
    assert_eq!(one(&entry("addresses: [10.0.0.7]")), ["10.0.0.7:80 ? ?"]);
    let vm = object("WorkloadEntry", "vm", "{address: 10.0.0.9, labels: {app: x}, serviceAccount: vm}");
    assert_eq!(
        one(&(entry("resolution: STATIC, workloadSelector: {labels: {app: x}}") + &vm)),
        ["10.0.0.9:8080 foo/vm ns/foo/sa/vm"]
    );
}

#[test]
fn mtls_is_required_by_the_policy_of_the_destination() {
    let yaml = object("Service", "a", "{selector: {app: x}, ports: [{name: http, port: 80}]}")
        + &pod("one", "10.0.0.1", "app: x, version: v1")
        + &pod("two", "10.0.0.2", "app: x, version: v2");
    let strict = |policies: &str| {
        let snapshot = clean(&format!("{yaml}{policies}"));
        let found = endpoints(&snapshot, "a.foo.svc.cluster.local:80");
        (snapshot.policy.backends[0].mtls_required, found[0].mtls_required, found[1].mtls_required)
    };
    let namespace = object("PeerAuthentication", "n", "{mtls: {mode: STRICT}}");
    let exception = object(
        "PeerAuthentication",
        "w",
        "{selector: {matchLabels: {version: v2}}, portLevelMtls: {80: {mode: PERMISSIVE}}}",
    );
    assert_eq!(strict(""), (false, false, false));
    assert_eq!(strict(&namespace), (true, true, true));
    assert_eq!(strict(&format!("{namespace}{exception}")), (false, true, false));
    assert_eq!(
        strict(&object("PeerAuthentication", "bar/n", "{mtls: {mode: STRICT}}")),
        (false, false, false)
    );
}

#[test]
fn addresses_of_workloads() {
    let yaml = pod("one", "10.0.0.1", MESH)
        + &pod("two", "10.0.0.2", "")
        + &pod("shared1", "10.0.0.3", MESH)
        + &pod("shared2", "10.0.0.3", "")
        + &pod("local", "127.0.0.1", "")
        + &pod("host", "10.0.0.4", "").replace("spec: {", "spec: {hostNetwork: true, ");
    let found: Vec<_> = clean(&yaml).endpoints.by_address.values().cloned().collect();
    assert_eq!(
        brief(&found),
        [
            "10.0.0.1:0 foo/one ns/foo/sa/one-sa mesh",
            "10.0.0.2:0 foo/two ns/foo/sa/two-sa",
            "10.0.0.3:0 ? ? mesh"
        ]
    );
}

#[test]
fn labels_come_from_the_pod_if_none_are_given() {
    let yaml = pod("me", "10.0.0.1", "app: x")
        + &object("AuthorizationPolicy", "a", "{selector: {matchLabels: {app: x}}}");
    let workload = Workload { labels: BTreeMap::new(), ..me() };
    assert_eq!(load_str(&yaml, &workload).snapshot.policy.authorization.len(), 1);
    assert_eq!(load(&yaml).snapshot.policy.authorization.len(), 0);
}

#[test]
fn a_thousand_endpoint_changes_keep_the_policy() {
    let policy = object("Service", "a", "{ports: [{name: http, port: 80}]}")
        + &object("Service", "b", "{selector: {app: b}, ports: [{name: http, port: 80}]}")
        + &object("PeerAuthentication", "p", "{mtls: {mode: STRICT}}")
        + &object("AuthorizationPolicy", "z", "{rules: [{}]}")
        + &pod("b", "10.1.0.1", "app: b");
    let file = |name: &str, text: &str| {
        (Arc::<str>::from(name), Arc::new(resource::read_file(&Arc::from(name), text)))
    };
    let mut files = crate::keep::Files::from([file("policy.yaml", &policy)]);
    let (mut pipeline, first) = crate::pipeline::Pipeline::first(me(), &files, Options::default());
    let b = &first.snapshot.endpoints.by_backend["b.foo.svc.cluster.local:80"];
    for change in 0..1000u64 {
        let ip = format!("10.2.{}.{}", change / 250, change % 250);
        files.extend([file(
            "slice.yaml",
            &slice("a", "{name: http, port: 8080}", &format!("{{addresses: [{ip}]}}")),
        )]);
        let crate::pipeline::Outcome::New(loaded) = pipeline.update(&files) else { panic!("nothing new") };
        assert!(Arc::ptr_eq(&loaded.snapshot.policy, &first.snapshot.policy));
        assert!(Arc::ptr_eq(&loaded.snapshot.endpoints.by_backend["b.foo.svc.cluster.local:80"], b));
        assert!(Arc::ptr_eq(&loaded.snapshot.verdicts, &first.snapshot.verdicts));
        assert!(brief(&endpoints(&loaded.snapshot, "a.foo.svc.cluster.local:80"))[0].starts_with(&ip));
        assert_eq!(loaded.snapshot.version, first.snapshot.version + 1 + change);
    }
    assert!(matches!(pipeline.update(&files), crate::pipeline::Outcome::Same));
}
