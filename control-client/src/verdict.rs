//! What became of each resource, and why.

use std::fmt;

/// What became of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `HTTPRoute bookinfo/ratings`: kind, namespace, name.
    pub object: crate::snapshot::ObjectRef,
    /// What is in force.
    pub state: VerdictState,
    /// Errors and warnings; none for a clean object.
    pub diagnostics: Vec<Diagnostic>,
}

/// What of a resource is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerdictState {
    /// As written.
    Accepted,
    /// The last good version; the one written is refused.
    KeptLastGood,
    /// Nothing of it; a security object fails closed.
    Quarantined,
    /// Refused, as far as it would weaken an enforced object.
    Ignored,
}

impl VerdictState {
    /// The word in the log, `/config` and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::KeptLastGood => "kept-last-good",
            Self::Quarantined => "quarantined",
            Self::Ignored => "ignored",
        }
    }
}

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Refuses the object, or leaves what `field` names without effect (a backendRef to nothing, say).
    Error,
    /// In force, but probably not what was meant.
    Warning,
}

/// One thing wrong with one object or file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Diagnostic {
    /// How bad.
    pub severity: Severity,
    /// Kind, namespace and name, when it can be attributed.
    pub object: Option<(String, String, String)>,
    /// `spec.rules[0].backendRefs[1].weight`; empty for the whole object.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
    /// File as given to the source.
    pub file: Option<String>,
    /// From 1.
    pub line: Option<u32>,
}

/// Where an AuthorizationPolicy says until when it allows.
pub const EXPIRY_FIELD: &str = "metadata.annotations[writ.dev/expires-at]";

/// Where the labels of the proxy's own workload would be said.
pub const LABELS_FLAG: &str = "--labels";

impl Diagnostic {
    /// Whether somebody wrote something wrong. Not so: an approaching or past expiry, and that nobody tells the workload's
    /// labels. A strict proxy that refused updates for these would go on allowing what has expired, and never learn them.
    pub fn is_mistake(&self) -> bool {
        let of_time = self.severity == Severity::Warning && self.field == EXPIRY_FIELD;
        !of_time && self.field != LABELS_FLAG
    }

    /// As it is displayed, but without its severity: for where that is told otherwise.
    pub fn unrated(&self) -> impl fmt::Display + '_ {
        fmt::from_fn(|f| self.write(f, ""))
    }

    /// The field and what is wrong: for where the object is told otherwise.
    pub(crate) fn in_object(&self) -> String {
        if self.field.is_empty() { self.message.clone() } else { format!("{}: {}", self.field, self.message) }
    }

    /// The same after its place.
    pub(crate) fn placed(&self) -> String {
        match &self.file {
            Some(file) => format!("{file}:{}: {}", self.line.unwrap_or(1), self.in_object()),
            None => self.in_object(),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, severity: &str) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:{}: ", self.line.unwrap_or(1))?;
        }
        f.write_str(severity)?;
        if let Some((kind, namespace, name)) = &self.object {
            write!(f, "{kind} {namespace}/{name}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(
            f,
            match self.severity {
                Severity::Error => "error: ",
                Severity::Warning => "warning: ",
            },
        )
    }
}
