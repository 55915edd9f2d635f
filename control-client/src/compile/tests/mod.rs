//! Tests of compiling, by what users write and what the proxy gets.

mod authentication;
mod authorization;
mod endpoint;
mod gateway;
mod own;
mod peer;
mod rate_limit;
mod route;
mod service;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::resource;
use crate::snapshot::{Policy, Snapshot};
use crate::verdict::VerdictState;
use crate::{Loaded, Options, Workload, load_str};

/// Workload `foo/me` with labels `app: me, version: v1`.
pub(super) fn me() -> Workload {
    Workload {
        namespace: "foo".into(),
        name: "me".into(),
        service_account: "me".into(),
        labels: BTreeMap::from([("app".into(), "me".into()), ("version".into(), "v1".into())]),
        trust_domain: "cluster.local".into(),
        gateway: None,
    }
}

pub(super) fn load(yaml: &str) -> Loaded {
    load_str(yaml, &me())
}

/// Loads what must be clean.
pub(super) fn clean(yaml: &str) -> Snapshot {
    let loaded = load(yaml);
    assert_eq!(texts(&loaded), [] as [String; 0]);
    loaded.snapshot
}

/// Diagnostics as `name field: message`.
pub(super) fn texts(loaded: &Loaded) -> Vec<String> {
    let text = |d: &crate::verdict::Diagnostic| {
        let name = d.object.as_ref().map_or("", |(_, _, name)| name);
        format!("{name} {}: {}", d.field, d.message)
    };
    loaded.diagnostics.iter().map(text).collect()
}

pub(super) fn object(kind: &str, name: &str, spec: &str) -> String {
    let (api_version, namespace) = match kind {
        "Service" | "Pod" => ("v1", "foo"),
        "Gateway" | "HTTPRoute" | "ReferenceGrant" | "BackendTLSPolicy" => {
            ("gateway.networking.k8s.io/v1", "foo")
        }
        "PeerAuthentication" | "RequestAuthentication" | "AuthorizationPolicy" => {
            ("security.istio.io/v1", "foo")
        }
        "MeshSettings" => ("writ.dev/v1alpha1", ""),
        "RateLimit" => ("writ.dev/v1alpha1", "foo"),
        _ => ("networking.istio.io/v1", "foo"),
    };
    let (namespace, name) = name.split_once('/').unwrap_or((namespace, name));
    let namespace = if namespace.is_empty() { String::new() } else { format!("namespace: {namespace}, ") };
    format!(
        "---\napiVersion: {api_version}\nkind: {kind}\nmetadata: {{{namespace}name: {name}}}\nspec: {spec}\n"
    )
}

pub(super) fn object_name(policy: &Policy, index: Option<u32>) -> String {
    index.map_or("none".into(), |index| policy.objects[index as usize].name.clone())
}

pub(super) fn state(snapshot: &Snapshot, name: &str) -> VerdictState {
    snapshot.verdicts.iter().find(|verdict| verdict.object.name == name).unwrap().state
}

#[test]
fn objects_are_sorted_and_every_reference_still_names_its_own() {
    let yaml = [
        object("Service", "z", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}"),
        object("Service", "a", "{clusterIP: 10.0.0.2, ports: [{port: 80}]}"),
        object("PeerAuthentication", "p", "{mtls: {mode: STRICT}}"),
        object("AuthorizationPolicy", "y", "{}"),
        object("AuthorizationPolicy", "b", "{}"),
        object("DestinationRule", "d", "{host: z, trafficPolicy: {tls: {mode: DISABLE}}}"),
        object("HTTPRoute", "r", "{parentRefs: [{group: '', kind: Service, name: z}], rules: [{backendRefs: [{name: a, port: 80}]}]}"),
    ]
    .concat();
    let policy = clean(&yaml).policy;
    let names: Vec<_> = policy.objects.iter().map(|o| format!("{} {}", o.kind, o.name)).collect();
    assert_eq!(
        names,
        [
            "AuthorizationPolicy b",
            "AuthorizationPolicy y",
            "DestinationRule d",
            "HTTPRoute r",
            "PeerAuthentication p",
            "Service a",
            "Service z"
        ]
    );
    assert_eq!(object_name(&policy, policy.peer_authentication.default.object), "p");
    let authorization: Vec<_> =
        policy.authorization.iter().map(|a| object_name(&policy, Some(a.object))).collect();
    assert_eq!(authorization, ["b", "y"]);
    let z = policy.services.iter().find(|service| service.names[0] == "z").unwrap();
    assert_eq!(object_name(&policy, z.object), "z");
    assert_eq!(object_name(&policy, Some(z.ports[0].routes[0].object)), "r");
    let backend = &policy.backends[z.ports[0].backend as usize];
    assert_eq!(object_name(&policy, backend.object), "d");
    let target = z.ports[0].routes[0].backends[0].backend.unwrap();
    assert_eq!(policy.backends[target as usize].id, "a.foo.svc.cluster.local:80");
}

#[test]
fn the_digest_does_not_depend_on_order_and_splitting() {
    let a = object("AuthorizationPolicy", "a", "{}");
    let b = object("PeerAuthentication", "b", "{mtls: {mode: STRICT}}");
    let digest = |texts: &[&str]| {
        let file = |(index, text): (usize, &&str)| {
            let name: Arc<str> = format!("{index}.yaml").into();
            (name.clone(), Arc::new(resource::read_file(&name, text)))
        };
        let files = texts.iter().enumerate().map(file).collect();
        crate::load(&files, &me()).snapshot.policy.digest.clone()
    };
    let one = digest(&[&format!("{a}{b}")]);
    assert_eq!(one, digest(&[&format!("# c\n{b}{a}")]));
    assert_eq!(one, digest(&[&b, &a]));
    assert_ne!(one, digest(&[&a]));
    assert_ne!(one, digest(&[&a, &b.replace("STRICT", "DISABLE")]));
    // Live data has a digest of its own.
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIP: 10.0.0.1}\n";
    assert_eq!(one, digest(&[&a, &b, pod]));
    let runtime = |yaml: &str| load(yaml).snapshot.runtime_digest;
    assert_ne!(runtime(pod), runtime(&pod.replace("10.0.0.1", "10.0.0.2")));
}

#[test]
fn mesh_settings_the_oldest_counts() {
    let settings = |name: &str, created: &str, root: &str| {
        format!(
            "---\napiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {{name: {name}, creationTimestamp: '{created}'}}\nspec: {{rootNamespace: {root}}}\n"
        )
    };
    let loaded = load(
        &(settings("a", "2024-02-01T00:00:00Z", "late") + &settings("b", "2024-01-01T00:00:00Z", "early")),
    );
    assert_eq!(loaded.snapshot.policy.mesh.root_namespace, "early");
    assert_eq!(texts(&loaded).len(), 1);
    assert!(texts(&loaded)[0].contains("only one"));
}

#[test]
fn a_directory_that_is_not_there_is_a_diagnostic() {
    let loaded = crate::load_once(std::path::Path::new("/nonexistent/writ"), &me());
    assert!(loaded.diagnostics[0].message.contains("can't be read"));
}
