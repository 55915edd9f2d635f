//! What is in force and what became of each resource: what `/config` and the configuration metrics say.

use std::sync::Arc;

use control_client::Health;
use control_client::snapshot::{Policy, Snapshot};
use control_client::verdict::{Diagnostic, Severity, Verdict, VerdictState};
use serde_json::{Value, json};

/// The configuration in force.
#[derive(Debug, Clone, Default)]
pub struct ConfigStatus {
    /// The process's own counter; 0: none yet.
    pub version: u64,
    /// Policy digest, `sha256:..`.
    pub digest: String,
    /// `git:..`, when the source knows.
    pub revision: Option<String>,
    /// Digest over endpoints and other live data.
    pub runtime_digest: String,
    /// The last known good snapshot, its source out of reach.
    pub stale: bool,
    /// The policy in force; `None`: none yet.
    pub policy: Option<Arc<Policy>>,
    /// What became of each resource.
    pub verdicts: Arc<Vec<Verdict>>,
    /// Why the newest snapshot is not the one in force, if it is not.
    pub rejected: Option<String>,
    /// Whether the newest snapshot is all that was written.
    pub health: Health,
    /// Policies in force that could not be compiled, and fail closed.
    pub refused: Vec<Diagnostic>,
}

impl ConfigStatus {
    /// The status of a snapshot that is in force.
    pub fn of(snapshot: &Snapshot) -> Self {
        Self {
            version: snapshot.version,
            digest: snapshot.policy.digest.clone(),
            revision: snapshot.revision.clone(),
            runtime_digest: snapshot.runtime_digest.clone(),
            stale: snapshot.stale,
            policy: Some(Arc::clone(&snapshot.policy)),
            verdicts: Arc::clone(&snapshot.verdicts),
            rejected: None,
            health: snapshot.health.clone(),
            refused: Vec::new(),
        }
    }

    /// As `/config` shows it.
    pub fn to_json(&self) -> Value {
        let mut status = json!({
            "version": self.version,
            "digest": self.digest,
            "runtime_digest": self.runtime_digest,
            "stale": self.stale,
            "verdicts": self.verdicts.iter().map(verdict).collect::<Vec<_>>(),
        });
        set(&mut status, "revision", self.revision.as_deref());
        set(&mut status, "rejected", self.rejected.as_deref());
        match &self.health {
            Health::Well => {}
            Health::Degraded(why) => status["degraded"] = why.as_str().into(),
            Health::Failing(why) => status["not_ready"] = why.as_str().into(),
        }
        if !self.refused.is_empty() {
            status["refused"] = self.refused.iter().map(diagnostic).collect();
        }
        status
    }
}

/// Every state, so that metrics show zeros too.
pub(super) const STATES: [VerdictState; 4] =
    [VerdictState::Accepted, VerdictState::KeptLastGood, VerdictState::Quarantined, VerdictState::Ignored];

fn verdict(verdict: &Verdict) -> Value {
    json!({
        "kind": verdict.object.kind,
        "namespace": verdict.object.namespace,
        "name": verdict.object.name,
        "digest": verdict.object.digest,
        "state": verdict.state.as_str(),
        "diagnostics": verdict.diagnostics.iter().map(diagnostic).collect::<Vec<_>>(),
    })
}

fn diagnostic(diagnostic: &Diagnostic) -> Value {
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut shown = json!({ "severity": severity, "message": diagnostic.message });
    if !diagnostic.field.is_empty() {
        shown["field"] = diagnostic.field.as_str().into();
    }
    set(&mut shown, "file", diagnostic.file.as_deref());
    if let Some(line) = diagnostic.line {
        shown["line"] = line.into();
    }
    shown
}

/// Absent values are left out.
fn set(object: &mut Value, key: &str, value: Option<&str>) {
    if let Some(value) = value {
        object[key] = value.into();
    }
}

#[cfg(test)]
mod tests {
    use control_client::snapshot::ObjectRef;

    use super::*;

    #[test]
    fn verdicts_are_shown_with_their_diagnostics() {
        let status = ConfigStatus {
            version: 3,
            digest: "sha256:1".into(),
            runtime_digest: "sha256:2".into(),
            verdicts: Arc::new(vec![Verdict {
                object: ObjectRef {
                    kind: "HTTPRoute".into(),
                    namespace: "a".into(),
                    name: "b".into(),
                    digest: "sha256:3".into(),
                },
                state: VerdictState::Quarantined,
                diagnostics: vec![Diagnostic {
                    severity: Severity::Error,
                    object: None,
                    field: "spec.rules".into(),
                    message: "no".into(),
                    file: Some("a.yaml".into()),
                    line: Some(7),
                }],
            }]),
            ..ConfigStatus::default()
        };
        assert_eq!(
            status.to_json(),
            json!({"version": 3, "digest": "sha256:1", "runtime_digest": "sha256:2", "stale": false, "verdicts": [
                {"kind": "HTTPRoute", "namespace": "a", "name": "b", "digest": "sha256:3", "state": "quarantined",
                 "diagnostics": [{"severity": "error", "message": "no", "field": "spec.rules", "file": "a.yaml", "line": 7}]}
            ]})
        );
    }
}
