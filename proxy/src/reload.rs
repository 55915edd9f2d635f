//! Snapshot -> Tables -> swap -> status; the only writer of Tables.

use std::sync::Arc;

use control_client::Status;
use control_client::snapshot::Snapshot;
use control_client::verdict::{Diagnostic, Severity};
use tokio::sync::watch;

use crate::generation::{Generation, Published};
use crate::tables::{BackendId, CompileError, Tables};
use crate::telemetry::{ConfigFacts, ConfigStatus};
use crate::upstream::Registry;

/// Compiles the first snapshot. There is nothing older to fall back to.
pub fn first(snapshot: &Snapshot, registry: &Registry) -> Result<Generation, CompileError> {
    let ids = registry.intern(&snapshot.policy.backends);
    registry.update(&snapshot.endpoints);
    compile(1, snapshot, &ids)
}

/// Follows the snapshots until their source is gone: endpoint sets are swapped alone, tables whole.
pub async fn run(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    published: Arc<Published>,
    registry: Arc<Registry>,
    status: Status,
    report: impl Fn(ConfigStatus),
) {
    let mut applied = Arc::clone(&snapshots.borrow_and_update().policy);
    let mut retired: Vec<Arc<Generation>> = Vec::new();
    while snapshots.changed().await.is_ok() {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        if Arc::ptr_eq(&snapshot.policy, &applied) {
            registry.update(&snapshot.endpoints);
        } else {
            match swap(&snapshot, &published, &registry).await {
                Ok(old) => {
                    applied = Arc::clone(&snapshot.policy);
                    retired.push(old);
                }
                Err(error) => {
                    tracing::error!(version = snapshot.version, %error, "configuration rejected; the one before stays");
                    report(ConfigStatus {
                        rejected: Some(error.message.clone()),
                        ..ConfigStatus::of(&snapshot)
                    });
                    status.rejected(snapshot.version, vec![diagnostic(&error)]);
                    continue;
                }
            }
        }
        status.applied(snapshot.version);
        report(ConfigStatus::of(&snapshot));
        retire(&mut retired, &published, &registry);
    }
}

/// Compiles off the runtime's thread and publishes; the generation that was replaced.
async fn swap(
    snapshot: &Arc<Snapshot>,
    published: &Published,
    registry: &Registry,
) -> Result<Arc<Generation>, CompileError> {
    let number = published.load().number + 1;
    let ids = registry.intern(&snapshot.policy.backends);
    let compiled = tokio::task::spawn_blocking({
        let snapshot = Arc::clone(snapshot);
        move || compile(number, &snapshot, &ids)
    });
    let generation = match compiled.await {
        Ok(generation) => generation?,
        Err(panicked) => {
            let message = format!("compiling tables failed: {panicked}");
            return Err(CompileError { object: String::new(), field: String::new(), message });
        }
    };
    // Endpoints first: no table may name a backend that nobody serves yet.
    registry.update(&snapshot.endpoints);
    Ok(published.publish(generation))
}

fn compile(number: u64, snapshot: &Snapshot, ids: &[BackendId]) -> Result<Generation, CompileError> {
    let Snapshot { policy, version, revision, stale, .. } = snapshot;
    let tables = Tables::compile(policy, ids)?;
    let config = ConfigFacts {
        version: *version,
        digest: policy.digest.clone(),
        revision: revision.clone(),
        stale: *stale,
        objects: tables.objects().clone(),
        ..ConfigFacts::default()
    };
    Ok(Generation { number, tables, config })
}

fn diagnostic(error: &CompileError) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        object: None,
        field: error.field.clone(),
        message: error.to_string(),
        file: None,
        line: None,
    }
}

/// Frees generations that no worker holds any more, here and not on a worker, and then the backends only they named.
fn retire(retired: &mut Vec<Arc<Generation>>, published: &Published, registry: &Registry) {
    retired.retain(|generation| Arc::strong_count(generation) > 1);
    let current = published.load();
    let named = retired
        .iter()
        .chain([&current])
        .flat_map(|generation| generation.tables.backends().iter().map(|backend| backend.id));
    registry.retire(&named.collect::<Vec<_>>());
}

#[cfg(test)]
pub(crate) mod tests {
    use control_client::{Workload, load_str};

    use super::*;

    /// What `writ run` would make of these resources.
    pub(crate) fn generation_of(number: u64, resources: &str) -> Generation {
        let workload = Workload {
            namespace: "bookinfo".into(),
            name: "ratings-v1".into(),
            service_account: "ratings".into(),
            labels: [("app".to_owned(), "ratings".to_owned())].into(),
            trust_domain: "cluster.local".into(),
        };
        let snapshot = load_str(resources, &workload).snapshot;
        let generation = first(&snapshot, &Registry::new()).unwrap();
        Generation { number, ..generation }
    }
}
