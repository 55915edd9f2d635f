//! Snapshot -> Tables -> swap -> status; the only writer of Tables.

use std::sync::Arc;
use std::time::{Duration, Instant};

use control_client::Status;
use control_client::snapshot::{Policy, Snapshot};
use control_client::verdict::{Diagnostic, Severity};
use tokio::sync::watch;

use crate::generation::{Generation, Published};
use crate::jwks;
use crate::limits::{InForce, Rate, Wanted};
use crate::tables::{BackendId, CompileError, LocalLimit, Tables};
use crate::telemetry::{ConfigFacts, ConfigStatus};
use crate::upstream::Registry;

/// Compiles the first snapshot. There is nothing older to fall back to.
pub fn first(snapshot: &Snapshot, registry: &Registry) -> Result<Generation, CompileError> {
    let ids = registry.intern(&snapshot.policy.backends);
    registry.update(&snapshot.endpoints);
    compile(1, snapshot, &ids, None)
}

/// What `/config` says while `generation` is in force, made from `snapshot` or from one before that was not rejected.
pub fn status_of(
    snapshot: &Snapshot,
    generation: &Generation,
    rejected: Option<&CompileError>,
) -> ConfigStatus {
    let refused = generation.tables.refused().iter().map(diagnostic).collect();
    let newest = ConfigStatus { refused, ..ConfigStatus::of(snapshot) };
    match rejected {
        None => newest,
        Some(error) => ConfigStatus {
            version: generation.config.version,
            digest: generation.config.digest.clone(),
            revision: generation.config.revision.clone(),
            rejected: Some(error.to_string()),
            ..newest
        },
    }
}

/// Follows the snapshots until their source is gone: endpoint sets are swapped alone, tables whole. `seen` is the policy
/// in force: a newer one may already be there.
pub async fn run(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    seen: Arc<Policy>,
    published: Arc<Published>,
    registry: Arc<Registry>,
    keys: Arc<jwks::Store>,
    status: Status,
    report: impl Fn(ConfigStatus),
) {
    let mut reload = Reload { published, registry, keys, seen, rejected: None, replaced: Vec::new() };
    loop {
        tokio::select! {
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return;
                }
                let snapshot = Arc::clone(&snapshots.borrow_and_update());
                reload.take(&snapshot, &status).await;
                report(status_of(&snapshot, &reload.published.load(), reload.rejected.as_ref()));
            }
            () = tokio::time::sleep(RETIRE_INTERVAL), if !reload.replaced.is_empty() => reload.retire(),
        }
    }
}

/// How often replaced generations are looked at until nobody holds them.
const RETIRE_INTERVAL: Duration = Duration::from_secs(1);

struct Reload {
    published: Arc<Published>,
    registry: Arc<Registry>,
    keys: Arc<jwks::Store>,
    /// The last policy that was compiled, or could not be.
    seen: Arc<Policy>,
    /// Why it could not be.
    rejected: Option<CompileError>,
    /// Generations that requests may still hold.
    replaced: Vec<Arc<Generation>>,
}

impl Reload {
    /// Takes over what changed. Endpoints flow also where the policy beside them is rejected.
    async fn take(&mut self, snapshot: &Arc<Snapshot>, status: &Status) {
        if Arc::ptr_eq(&snapshot.policy, &self.seen) {
            self.registry.update(&snapshot.endpoints);
        } else {
            self.seen = Arc::clone(&snapshot.policy);
            let compiled = self.compile(snapshot).await;
            // Before the tables: none may name a backend that nobody serves yet.
            self.registry.update(&snapshot.endpoints);
            self.rejected = match compiled {
                Ok(generation) => {
                    // Before the tables: a token may name a key of any set that they name.
                    self.follow_keys(Some(&generation));
                    self.replaced.push(self.published.publish(generation));
                    None
                }
                Err(error) => {
                    status.rejected(snapshot.version, vec![diagnostic(&error)]);
                    Some(error)
                }
            };
        }
        if self.rejected.is_none() {
            status.applied(snapshot.version);
        }
    }

    /// Compiles off the runtime's thread.
    async fn compile(&self, snapshot: &Arc<Snapshot>) -> Result<Generation, CompileError> {
        let current = self.published.load();
        let ids = self.registry.intern(&snapshot.policy.backends);
        let compiled = tokio::task::spawn_blocking({
            let snapshot = Arc::clone(snapshot);
            move || compile(current.number + 1, &snapshot, &ids, Some(&current.limits))
        });
        compiled.await.unwrap_or_else(|panicked| {
            let message = format!("compiling tables failed: {panicked}");
            Err(CompileError { object: String::new(), field: String::new(), message })
        })
    }

    /// Frees generations that nobody else holds any more, here and not on a worker, and then the backends that only they
    /// named.
    fn retire(&mut self) {
        let before = self.replaced.len();
        self.replaced.retain(|generation| Arc::strong_count(generation) > 1);
        if self.replaced.len() == before {
            return;
        }
        let current = self.published.load();
        let held = self.replaced.iter().chain([&current]);
        let named = held.flat_map(|generation| generation.tables.backends().iter().map(|backend| backend.id));
        self.registry.retire(&named.collect::<Vec<_>>());
        self.follow_keys(None);
    }

    /// The sets of keys that are named by what is in force, by what requests still hold, and by what comes next.
    fn follow_keys(&self, next: Option<&Generation>) {
        let current = self.published.load();
        let all = self.replaced.iter().map(|held| &**held).chain([&*current]).chain(next);
        self.keys.follow(all.flat_map(|generation| generation.tables.authentication().remote_keys()));
    }
}

/// `limits` are those in force: what goes on as it is keeps what it has counted.
fn compile(
    number: u64,
    snapshot: &Snapshot,
    ids: &[BackendId],
    limits: Option<&InForce>,
) -> Result<Generation, CompileError> {
    let Snapshot { policy, version, revision, stale, .. } = snapshot;
    let tables = Tables::compile(policy, ids)?;
    let wanted = tables.rate_limits().local().map(|(LocalLimit { id, rate, .. }, keyed)| Wanted {
        id,
        rate: Rate::new(rate.requests, rate.per, rate.burst),
        keyed,
    });
    let limits = match limits {
        Some(before) => before.next(wanted),
        None => InForce::first(wanted),
    };
    for refused in tables.refused() {
        tracing::error!(version, "{refused}; it fails closed for all that it selects");
    }
    let config = ConfigFacts {
        version: *version,
        digest: policy.digest.clone(),
        revision: revision.clone(),
        stale: *stale,
        objects: tables.objects().clone(),
        ..ConfigFacts::default()
    };
    Ok(Generation { number, limits, tables, config, published: Instant::now() })
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

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use control_client::snapshot::{
        Attribute, AuthorizationAction, AuthorizationPolicy, AuthorizationRule, Condition, ValueMatch,
    };
    use control_client::{Report, Workload, load_str};

    use super::*;

    const DEMO: &str = include_str!("cli/demo/config.yaml");

    fn snapshot_of(version: u64, resources: &str) -> Snapshot {
        let workload = Workload {
            namespace: "bookinfo".into(),
            name: "ratings-v1".into(),
            service_account: "ratings".into(),
            labels: [("app".to_owned(), "ratings".to_owned())].into(),
            trust_domain: "cluster.local".into(),
            gateway: None,
        };
        Snapshot { version, ..load_str(resources, &workload).snapshot }
    }

    /// What `writ run` would make of these resources.
    pub(crate) fn generation_of(number: u64, resources: &str) -> Generation {
        let generation = first(&snapshot_of(1, resources), &Registry::new()).unwrap();
        Generation { number, ..generation }
    }

    fn with_policy(snapshot: &Snapshot, version: u64, change: impl FnOnce(&mut Policy)) -> Snapshot {
        let mut policy = Policy::clone(&snapshot.policy);
        change(&mut policy);
        Snapshot { version, policy: Arc::new(policy), ..snapshot.clone() }
    }

    struct Reloading {
        snapshots: watch::Sender<Arc<Snapshot>>,
        published: Arc<Published>,
        status: Status,
        reported: Rc<RefCell<Vec<ConfigStatus>>>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Reloading {
        fn start(snapshot: &Snapshot) -> Self {
            let registry = Registry::new();
            let published = Published::new(first(snapshot, &registry).unwrap());
            let (snapshots, receiver) = watch::channel(Arc::new(snapshot.clone()));
            let (status, reported) = (Status::default(), Rc::<RefCell<Vec<_>>>::default());
            let report = {
                let reported = Rc::clone(&reported);
                move |status| reported.borrow_mut().push(status)
            };
            let running = run(
                receiver,
                Arc::clone(&snapshot.policy),
                Arc::clone(&published),
                registry,
                jwks::Store::new(jwks::Options::default()),
                status.clone(),
                report,
            );
            Self { snapshots, published, status, reported, task: tokio::task::spawn_local(running) }
        }

        /// Sends a snapshot; what is reported about it.
        async fn send(&self, snapshot: &Snapshot) -> ConfigStatus {
            let before = self.reported.borrow().len();
            self.snapshots.send_replace(Arc::new(snapshot.clone()));
            while self.reported.borrow().len() == before {
                tokio::task::yield_now().await;
            }
            self.reported.borrow().last().unwrap().clone()
        }
    }

    fn on_local_set(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn tables_are_swapped_where_the_policy_changed_and_freed_when_nobody_holds_them() {
        on_local_set(async {
            let one = snapshot_of(1, DEMO);
            let reloading = Reloading::start(&one);
            reloading.send(&Snapshot { version: 2, ..one.clone() }).await;
            assert_eq!(reloading.published.load().number, 1, "endpoints alone swap no tables");

            let held = reloading.published.load();
            let old = Arc::downgrade(&held);
            let status = reloading.send(&snapshot_of(3, "")).await;
            assert_eq!((reloading.published.load().number, status.version), (2, 3));
            assert_eq!(reloading.status.last(), Some(Report::Applied { version: 3 }));
            tokio::time::sleep(3 * RETIRE_INTERVAL).await;
            assert!(old.upgrade().is_some(), "a request still holds it");
            drop(held);
            tokio::time::sleep(2 * RETIRE_INTERVAL).await;
            assert!(old.upgrade().is_none());

            drop(reloading.snapshots);
            reloading.task.await.unwrap();
        });
    }

    #[test]
    fn a_policy_that_does_not_compile_changes_nothing_and_is_told_of() {
        on_local_set(async {
            let one = snapshot_of(1, DEMO);
            let reloading = Reloading::start(&one);
            let broken = with_policy(&one, 2, |policy| policy.services[0].ports[0].backend = 99);
            let status = reloading.send(&broken).await;
            assert_eq!((status.version, status.digest.as_str()), (1, one.policy.digest.as_str()));
            assert!(status.rejected.unwrap().contains("backend #99"));
            assert!(matches!(reloading.status.last(), Some(Report::Rejected { version: 2, .. })));

            // The same again with other endpoints is not compiled again, and stays rejected.
            let status = reloading.send(&Snapshot { version: 3, ..broken }).await;
            assert!(status.rejected.is_some());
            assert_eq!(reloading.published.load().number, 1);
            let status = reloading.send(&snapshot_of(4, "")).await;
            assert_eq!((status.version, status.rejected), (4, None));
        });
    }

    #[test]
    fn a_policy_that_fails_closed_alone_is_named() {
        let one = snapshot_of(1, DEMO);
        let refused = with_policy(&one, 2, |policy| {
            let condition = Condition {
                attribute: Attribute::Path,
                field: "to.paths".into(),
                values: vec![ValueMatch::PathTemplate("/{**}/{*}".into())],
                not_values: Vec::new(),
            };
            let rule = AuthorizationRule { to: vec![vec![condition]], ..AuthorizationRule::default() };
            policy.authorization.push(AuthorizationPolicy {
                object: 0,
                action: AuthorizationAction::Deny,
                rules: vec![rule],
                dry_run: false,
                quarantined: false,
                expires: None,
                provider: None,
            });
        });
        let generation = first(&refused, &Registry::new()).unwrap();
        let status = status_of(&refused, &generation, None);
        assert_eq!(status.refused.len(), 1);
        let named = &status.to_json()["refused"][0];
        assert!(named["message"].as_str().unwrap().contains(&refused.policy.objects[0].name), "{named}");
    }
}
