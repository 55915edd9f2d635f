//! The difference in words and in JSON.

use serde_json::{Value, json};

use super::compare::{Calls, Change, Kind};
use super::{Diff, WorkloadDiff};
use crate::cli::table::Paint;

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Grants => "grants",
            Self::Takes => "takes",
            Self::MayGrant => "may grant",
            Self::MayTake => "may take",
            Self::Mixed => "may grant or take",
            Self::Unknown => "unknown",
        }
    }

    fn paint(self, paint: Paint) -> String {
        match self {
            Self::Grants | Self::MayGrant => paint.good(self.word()),
            Self::Takes | Self::MayTake => paint.bad(self.word()),
            Self::Mixed | Self::Unknown => paint.strong(self.word()),
        }
    }
}

impl Diff {
    pub(super) fn to_json(&self) -> Value {
        let [added, removed, changed] = &self.objects;
        json!({
            "workloads": self.workloads.iter().map(WorkloadDiff::to_json).collect::<Vec<_>>(),
            "objects": { "added": added, "removed": removed, "changed": changed },
        })
    }

    pub(super) fn to_text(&self, paint: Paint) -> String {
        let mut text = String::new();
        for workload in &self.workloads {
            text += &format!("{}\n", paint.strong(&workload.title()));
            for warning in &workload.found.warnings {
                text += &format!("  {}: {warning}\n", paint.bad("warning"));
            }
            for unknown in &workload.found.unknown {
                text += &format!("  {}: {unknown}\n", paint.strong("unknown"));
            }
            for change in &workload.found.changes {
                text += &change.to_text(paint);
            }
            text.push('\n');
        }
        if self.workloads.is_empty() {
            text += "nobody may do more or less than before\n";
        }
        for (what, objects) in ["added", "removed", "changed"].iter().zip(&self.objects) {
            if !objects.is_empty() {
                text += &format!("{}\n", paint.dim(&format!("{what}: {}", objects.join(", "))));
            }
        }
        text
    }
}

impl WorkloadDiff {
    fn to_json(&self) -> Value {
        json!({
            "namespace": self.selection.namespace,
            "labels": self.selection.labels,
            "workloads": self.names,
            "changes": self.found.changes.iter().map(Change::to_json).collect::<Vec<_>>(),
            "warnings": self.found.warnings,
            "unknown": self.found.unknown,
        })
    }

    /// `bookinfo app=ratings (ratings-v1, ratings-v2)`.
    fn title(&self) -> String {
        const MAX_NAMES: usize = 5;
        let labels: String =
            self.selection.labels.iter().map(|(key, value)| format!(" {key}={value}")).collect();
        let mut names: Vec<_> = self.names.iter().take(MAX_NAMES).cloned().collect();
        match self.names.len() {
            0 => names.push("no such workload is here".into()),
            all if all > MAX_NAMES => names.push(format!("and {} more", all - MAX_NAMES)),
            _ => {}
        }
        format!("{}{labels} ({})", self.selection.namespace, names.join(", "))
    }
}

impl Change {
    fn to_json(&self) -> Value {
        let mut shown = json!({
            "change": self.kind.word().replace(' ', "-"),
            "principals": self.principals,
            "calls": self.calls.iter().map(Calls::to_json).collect::<Vec<_>>(),
        });
        for (name, list) in [("ports", &self.ports), ("depends_on", &self.depends_on)] {
            if !list.is_empty() {
                shown[name] = json!(list);
            }
        }
        for (name, policy) in [("before", &self.before), ("after", &self.after)] {
            if !policy.is_empty() {
                shown[name] = policy.as_str().into();
            }
        }
        shown
    }

    fn to_text(&self, paint: Paint) -> String {
        let mut text = format!("  {} {}\n", self.kind.paint(paint), self.principals.join(", "));
        for calls in &self.calls {
            text += &format!("    {}\n", calls.to_text());
        }
        if !self.ports.is_empty() {
            text += &format!("    on {}\n", self.ports.join(", "));
        }
        for unknown in &self.depends_on {
            text += &format!("    {}\n", paint.dim(unknown));
        }
        for (what, policy) in [("before", &self.before), ("now", &self.after)] {
            if !policy.is_empty() {
                text += &format!("    {}\n", paint.dim(&format!("{what} by {policy}")));
            }
        }
        text
    }
}

impl Calls {
    fn to_json(&self) -> Value {
        let mut shown = json!({});
        if self.opaque {
            shown["opaque"] = true.into();
        }
        for (name, list) in [("methods", &self.methods), ("paths", &self.paths)] {
            if !list.is_empty() {
                shown[name] = json!(list);
            }
        }
        shown
    }

    fn to_text(&self) -> String {
        if self.opaque {
            return "opaque connections".into();
        }
        match (self.methods.join(", "), self.paths.join(", ")) {
            (methods, paths) if methods.is_empty() && paths.is_empty() => "any method on any path".into(),
            (methods, paths) if methods.is_empty() => format!("any method on {paths}"),
            (methods, paths) if paths.is_empty() => format!("{methods} on any path"),
            (methods, paths) => format!("{methods} {paths}"),
        }
    }
}
