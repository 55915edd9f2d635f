//! A directory as teams write it: read once, and followed while it changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::snapshot::{MtlsMode, Snapshot};
use crate::verdict::{Diagnostic, Severity, VerdictState};
use crate::{Health, Options, Source, StartError, Workload, load_once, start};
use tokio::sync::watch::Receiver;

/// A directory of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("writ-directory-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn peer_authentication(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: p\nspec:\n  mtls:\n    mode: {mode}\n"
    )
}

#[test]
fn ten_mistakes_are_ten_diagnostics_and_nobody_elses_objects_suffer() {
    let dir = Dir::new();
    let mistakes = [
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: bad}\nspec:\n  action: ALOW\n",
            5,
            "spec.action",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: bad1}\nspec:\n  rules:\n  - to:\n    - operation:\n        path: [/a]\n",
            8,
            "spec.rules[0].to[0].operation.path",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: bad2}\nspec:\n  mtls:\n    mode: ON\n",
            6,
            "spec.mtls.mode",
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: bad3}\nspec:\n  parentRefs:\n  - {group: '', kind: Service, name: good3}\n  rules:\n  - backendRefs:\n    - {name: nowhere, port: 80}\n",
            9,
            "spec.rules[0].backendRefs[0]",
        ),
        ("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: bad4}\n", 2, "kind"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: bad5}\nspec:\n  ports:\n  - port: 80\n  - name: b\n    port: 81\n",
            6,
            "spec.ports[0].name",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: bad6}\nspec:\n  hosts: [a.example]\n  resolution: STATIC\n  endpoints: [{address: b.example}]\n  ports: [{number: 80, name: http}]\n",
            7,
            "spec.endpoints[0].address",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: bad7, labels: {a: b, a: c}}\nspec: {ports: [{port: 80}]}\n",
            3,
            "metadata.labels.a",
        ),
        (
            "apiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {name: bad8}\nspec:\n  rootNamespace: mesh\n  outboundTraficPolicy: {mode: ALLOW_ANY}\n",
            6,
            "spec.outboundTraficPolicy",
        ),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: bad9\nspec: {}\n", 4, ""),
    ];
    for (team, (mistake, ..)) in mistakes.iter().enumerate() {
        let good = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: good{team}}}\nspec: {{ports: [{{port: 80}}]}}\n"
        );
        dir.write(&format!("team{team}/bad.yaml"), mistake);
        dir.write(&format!("team{team}/good.yaml"), &good);
    }
    let loaded = load_once(&dir.0, &Workload::default());
    let errors: Vec<&Diagnostic> =
        loaded.diagnostics.iter().filter(|found| found.severity == Severity::Error).collect();
    assert_eq!(errors.len(), mistakes.len(), "{errors:#?}");
    for (team, (error, (_, line, field))) in errors.iter().zip(&mistakes).enumerate() {
        assert!(error.file.as_ref().unwrap().ends_with(&format!("team{team}/bad.yaml")), "{error}");
        assert_eq!((error.line, error.field.as_str()), (Some(*line), *field), "{error}");
    }
    let good = |name: &str| {
        loaded.snapshot.verdicts.iter().any(|v| v.object.name == name && v.state == VerdictState::Accepted)
    };
    assert!((0..mistakes.len()).all(|team| good(&format!("good{team}"))));
}

#[test]
fn json_files_hidden_files_and_others() {
    let dir = Dir::new();
    dir.write(
        "a.json",
        "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}}\n",
    );
    dir.write("b.yml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n");
    dir.write("README.md", "not: [yaml\n");
    dir.write(".hidden.yaml", "not: [yaml\n");
    let loaded = load_once(&dir.0, &Workload::default());
    let names: Vec<_> = loaded.snapshot.verdicts.iter().map(|verdict| verdict.object.name.as_str()).collect();
    assert_eq!((names, loaded.diagnostics), (vec!["a", "b"], vec![]));
    let one = load_once(&dir.0.join("b.yml"), &Workload::default());
    assert_eq!(one.snapshot.verdicts.len(), 1);
}

/// Runs a test against a followed directory.
fn follow<F: Future<Output = ()>>(path: &Path, test: impl FnOnce(Receiver<Arc<Snapshot>>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (receiver, _, future) =
            start(Source::Dir(path.to_owned()), Workload::default(), Options::default()).unwrap();
        let follower = tokio::spawn(future);
        tokio::time::timeout(Duration::from_secs(60), test(receiver)).await.expect("no such snapshot came");
        // Nobody listens any more.
        follower.await.unwrap();
    });
}

async fn wait(
    receiver: &mut Receiver<Arc<Snapshot>>,
    wanted: impl FnMut(&Arc<Snapshot>) -> bool,
) -> Arc<Snapshot> {
    receiver.wait_for(wanted).await.unwrap().clone()
}

fn mode(snapshot: &Snapshot) -> MtlsMode {
    snapshot.policy.peer_authentication.default.mode
}

#[test]
fn a_bad_update_keeps_the_last_good_version_and_a_good_one_heals() {
    let dir = Dir::new();
    dir.write("p.yaml", &peer_authentication("STRICT"));
    follow(&dir.0, async |mut receiver| {
        assert_eq!(mode(&receiver.borrow()), MtlsMode::Strict);
        dir.write("p.yaml", &peer_authentication("DISABEL"));
        let bad =
            wait(&mut receiver, |snapshot| snapshot.verdicts[0].state == VerdictState::KeptLastGood).await;
        assert_eq!(mode(&bad), MtlsMode::Strict);
        assert_eq!(bad.verdicts[0].diagnostics[0].line, Some(7));
        dir.write("p.yaml", &peer_authentication("DISABLE"));
        let healed = wait(&mut receiver, |snapshot| mode(snapshot) == MtlsMode::Disable).await;
        assert_eq!(healed.verdicts[0].state, VerdictState::Accepted);
        assert!(healed.version > bad.version);
        fs::remove_file(dir.0.join("p.yaml")).unwrap();
        wait(&mut receiver, |snapshot| snapshot.verdicts.is_empty()).await;
    });
}

#[test]
fn half_a_file_keeps_its_objects_until_the_rest_comes() {
    let dir = Dir::new();
    let second = peer_authentication("DISABLE").replace("name: p", "name: q\n  namespace: other");
    let whole = format!("{}---\n{second}", peer_authentication("STRICT"));
    dir.write("p.yaml", &whole);
    follow(&dir.0, async |mut receiver| {
        assert_eq!(receiver.borrow().verdicts.len(), 2);
        // A writer that is slower than any debouncing.
        dir.write("p.yaml", &whole.replace("mode: STRICT", "mode: {").replace(&second, ""));
        let half = wait(&mut receiver, |snapshot| snapshot.verdicts[0].object.kind == "File").await;
        assert_eq!(mode(&half), MtlsMode::Strict);
        let kept = half.verdicts.iter().filter(|verdict| verdict.state == VerdictState::KeptLastGood);
        assert_eq!(kept.count(), 2);
        dir.write("p.yaml", &whole.replace("mode: STRICT", "mode: PERMISSIVE"));
        let all = wait(&mut receiver, |snapshot| mode(snapshot) == MtlsMode::Permissive).await;
        assert!(all.verdicts.iter().all(|verdict| verdict.state == VerdictState::Accepted));
    });
}

fn is_failing(snapshot: &Snapshot, why: &str) -> bool {
    matches!(&snapshot.health, Health::Failing(said) if said.contains(why))
}

fn is_degraded(snapshot: &Snapshot, why: &str) -> bool {
    matches!(&snapshot.health, Health::Degraded(said) if said.contains(why))
}

#[test]
fn a_file_that_was_never_understood_fails_until_it_is() {
    let dir = Dir::new();
    dir.write("p.yaml", &peer_authentication("STRICT"));
    dir.write("q.yaml", "metadata:\n  name: [\n");
    dir.write("r.yaml", "kind: AuthorizationPolicy\n");
    follow(&dir.0, async |mut receiver| {
        let first = receiver.borrow().clone();
        assert_eq!(mode(&first), MtlsMode::Strict, "what is understood is in force");
        assert!(is_failing(&first, "q.yaml:2, ") && is_failing(&first, "r.yaml:1"), "{:?}", first.health);
        // One that breaks only now leaves it as it is.
        dir.write("p.yaml", "a: [\n");
        wait(&mut receiver, |snapshot| snapshot.verdicts[0].object.name.ends_with("p.yaml")).await;
        dir.write("q.yaml", "");
        let one = wait(&mut receiver, |snapshot| !is_failing(snapshot, "q.yaml")).await;
        assert!(is_failing(&one, "r.yaml:1"), "{:?}", one.health);
        fs::remove_file(dir.0.join("r.yaml")).unwrap();
        let mended = wait(&mut receiver, |snapshot| is_degraded(snapshot, "p.yaml:1")).await;
        assert_eq!(mode(&mended), MtlsMode::Strict, "the last good version");
        // It was understood once.
        dir.write("q.yaml", "a: [\n");
        wait(&mut receiver, |snapshot| is_degraded(snapshot, "q.yaml:1")).await;
        dir.write("q.yaml", "");
        dir.write("p.yaml", &peer_authentication("DISABLE"));
        wait(&mut receiver, |snapshot| snapshot.health == Health::Well).await;
    });
}

#[test]
fn a_source_that_can_not_be_read_any_more_is_told() {
    let dir = Dir::new();
    dir.write("c/p.yaml", &peer_authentication("STRICT"));
    follow(&dir.0.join("c"), async |mut receiver| {
        fs::rename(dir.0.join("c"), dir.0.join("d")).unwrap();
        let left = wait(&mut receiver, |snapshot| is_degraded(snapshot, "can't be read")).await;
        assert_eq!((mode(&left), left.version), (MtlsMode::Strict, 1));
        fs::rename(dir.0.join("d"), dir.0.join("c")).unwrap();
        wait(&mut receiver, |snapshot| snapshot.health == Health::Well).await;
    });
}

#[test]
fn a_swap_of_links_as_kubernetes_makes_it_is_one_update() {
    let dir = Dir::new();
    let version = |name: &str, mode: &str| {
        dir.write(&format!("{name}/a.yaml"), &peer_authentication(mode));
        dir.write(
            &format!("{name}/b.yaml"),
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n", mode.to_lowercase()),
        );
    };
    version("..1", "STRICT");
    std::os::unix::fs::symlink("..1", dir.0.join("..data")).unwrap();
    for file in ["a.yaml", "b.yaml"] {
        std::os::unix::fs::symlink(format!("..data/{file}"), dir.0.join(file)).unwrap();
    }
    follow(&dir.0, async |mut receiver| {
        assert_eq!(receiver.borrow_and_update().verdicts[0].object.name, "strict");
        version("..2", "DISABLE");
        std::os::unix::fs::symlink("..2", dir.0.join("..data_tmp")).unwrap();
        fs::rename(dir.0.join("..data_tmp"), dir.0.join("..data")).unwrap();
        receiver.changed().await.unwrap();
        let next = receiver.borrow_and_update().clone();
        assert_eq!((mode(&next), next.verdicts[0].object.name.as_str()), (MtlsMode::Disable, "disable"));
        assert_eq!(next.version, 2);
    });
}

#[test]
fn one_file_is_followed_when_an_editor_replaces_it() {
    let dir = Dir::new();
    dir.write("p.yaml", &peer_authentication("STRICT"));
    follow(&dir.0.join("p.yaml"), async |mut receiver| {
        dir.write("p.tmp", &peer_authentication("DISABLE"));
        fs::rename(dir.0.join("p.tmp"), dir.0.join("p.yaml")).unwrap();
        wait(&mut receiver, |snapshot| mode(snapshot) == MtlsMode::Disable).await;
    });
}

#[test]
fn strict_refuses_an_update_as_a_whole() {
    let dir = Dir::new();
    let options = || Options { strict: true, ..Options::default() };
    dir.write("p.yaml", &peer_authentication("STRIKT"));
    let refused = start(Source::Dir(dir.0.clone()), Workload::default(), options()).err();
    assert!(matches!(refused, Some(StartError::Strict(found)) if found.len() == 1));
    dir.write("p.yaml", &peer_authentication("STRICT"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut receiver, _, future) =
            start(Source::Dir(dir.0.clone()), Workload::default(), options()).unwrap();
        let follower = tokio::spawn(future);
        // The bad half first, so that no moment between the two writes is a good update.
        dir.write("q.yaml", "apiVersion: v1\nkind: Servce\nmetadata: {name: q}\n");
        dir.write("p.yaml", &peer_authentication("DISABLE"));
        let told = receiver.wait_for(|snapshot| is_degraded(snapshot, "first for")).await.unwrap().clone();
        assert_eq!(told.version, 1);
        let nothing = tokio::time::timeout(Duration::from_millis(500), receiver.changed()).await;
        assert!(nothing.is_err(), "the good half of a bad update must not come through");
        dir.write("p.yaml", &peer_authentication("PERMISSIVE"));
        fs::remove_file(dir.0.join("q.yaml")).unwrap();
        let changed = tokio::time::timeout(
            Duration::from_secs(60),
            receiver.wait_for(|s| mode(s) == MtlsMode::Permissive),
        )
        .await;
        let changed = changed.unwrap().unwrap();
        assert_eq!((changed.version, &changed.health), (2, &Health::Well));
        drop(changed);
        drop(receiver);
        follower.await.unwrap();
    });
}

#[test]
fn a_source_that_is_not_there_is_an_error() {
    let failed = start(Source::Dir("/nonexistent/writ".into()), Workload::default(), Options::default())
        .err()
        .unwrap();
    assert!(failed.to_string().contains("check the path"), "{failed}");
}
