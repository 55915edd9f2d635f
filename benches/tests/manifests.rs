//! The manifests in `docker/` are configuration that people copy: all of it must be understood.

use std::path::Path;

use control_client::{Workload, load_once};

fn ratings() -> Workload {
    Workload {
        namespace: "bookinfo".into(),
        name: "ratings-v1".into(),
        service_account: "ratings".into(),
        labels: [("app".to_owned(), "ratings".to_owned())].into(),
        trust_domain: "cluster.local".into(),
        gateway: None,
    }
}

#[test]
fn the_compose_mesh_is_accepted() {
    let mesh = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/mesh");
    let loaded = load_once(&mesh, &ratings());
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    assert_eq!(loaded.snapshot.policy.authorization.len(), 1);
    let split = loaded.snapshot.policy.services.iter().find(|service| service.host.starts_with("ratings."));
    let routes = &split.expect("the service ratings").ports[0].routes;
    let weights: Vec<u32> = routes[0].backends.iter().map(|backend| backend.weight).collect();
    assert_eq!(weights, [90, 10]);
}

#[test]
fn the_policies_of_the_kubernetes_example_are_accepted() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/k8s/sidecar.yaml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    // The block under `policy.yaml: |` of the ConfigMap, without its indentation.
    let block = manifest.split_once("policy.yaml: |\n").expect("the ConfigMap's key").1;
    let lines =
        block.lines().map_while(|line| if line.is_empty() { Some("") } else { line.strip_prefix("    ") });
    let policies = lines.collect::<Vec<_>>().join("\n");
    let loaded = control_client::load_str(&policies, &ratings());
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    assert_eq!(loaded.snapshot.policy.authorization.len(), 1);
}
