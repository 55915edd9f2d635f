//! The demo's own look at its configuration: what each change comes to, told once rather than by every sidecar.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use control_client::snapshot::Snapshot;
use control_client::verdict::{Diagnostic, Severity, VerdictState};
use control_client::{Options, Source, Workload};
use tokio::sync::watch;

use crate::cli::check::counted;

/// The configuration as the sidecars follow it.
pub struct Configuration {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    told: HashSet<Diagnostic>,
}

/// What is to be said of a change.
#[derive(Debug, PartialEq, Eq)]
pub struct Changes {
    /// Mistakes that were not there before.
    pub mistakes: Vec<String>,
    /// What is in force now.
    pub summary: String,
}

impl Configuration {
    /// Follows a directory for as long as the future runs.
    pub fn follow(directory: PathBuf) -> anyhow::Result<(Self, impl Future<Output = ()>)> {
        let (mut snapshots, _, follow) =
            control_client::start(Source::Dir(directory), Workload::default(), Options::default())?;
        snapshots.mark_unchanged();
        Ok((Self { snapshots, told: HashSet::new() }, follow))
    }

    /// The next change.
    pub async fn changed(&mut self) -> Changes {
        if self.snapshots.changed().await.is_err() {
            // Nothing follows any more: there are no changes to tell of.
            std::future::pending::<()>().await;
        }
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        changes(&snapshot, &mut self.told)
    }
}

fn changes(snapshot: &Snapshot, told: &mut HashSet<Diagnostic>) -> Changes {
    let found: HashSet<_> =
        snapshot.verdicts.iter().flat_map(|verdict| verdict.diagnostics.iter().cloned()).collect();
    let mut fresh: Vec<_> = found.difference(told).collect();
    fresh.sort_by_key(|diagnostic| (&diagnostic.file, diagnostic.line));
    let mistakes = fresh.into_iter().map(Diagnostic::to_string).collect();
    let errors = found.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
    let kept = snapshot.verdicts.iter().filter(|verdict| verdict.state == VerdictState::KeptLastGood).count();
    let what = match (errors, kept) {
        (0, _) => "in force as written".to_owned(),
        (errors, 0) => counted(errors, "error"),
        (errors, kept) => {
            format!("{}; {} at the last good version", counted(errors, "error"), counted(kept, "object"))
        }
    };
    *told = found;
    Changes { mistakes, summary: format!("{what}, policy {:.19}", snapshot.policy.digest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(mode: &str) -> Snapshot {
        let policy = format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: a}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
        );
        control_client::load_str(&policy, &Workload::default()).snapshot
    }

    #[test]
    fn a_mistake_is_told_once() {
        let mut told = HashSet::new();
        let first = changes(&snapshot("STRICKT"), &mut told);
        assert!(first.mistakes[0].contains("STRICKT") && first.mistakes.len() == 1, "{first:?}");
        assert!(first.summary.starts_with("1 error, policy sha256:"), "{first:?}");
        let again = changes(&snapshot("STRICKT"), &mut told);
        assert_eq!((again.mistakes.len(), again.summary), (0, first.summary));
        let healed = changes(&snapshot("STRICT"), &mut told);
        assert!(healed.summary.starts_with("in force as written, policy sha256:"), "{healed:?}");
    }
}
