//! [`Health`]: how far what is in force is what was written.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::keep::Files;

/// Whether a configuration is in force as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Health {
    /// As far as each object's verdict says.
    #[default]
    Well,
    /// What was good before stays in force: why.
    Degraded(String),
    /// Some of it has never been in force here: why.
    Failing(String),
}

impl Health {
    /// By every reason there is; those of the worst are told.
    pub(crate) fn of(failing: Vec<String>, degraded: Vec<String>) -> Self {
        if !failing.is_empty() {
            Self::Failing(failing.join("; "))
        } else if !degraded.is_empty() {
            Self::Degraded(degraded.join("; "))
        } else {
            Self::Well
        }
    }

    /// The same, where an update can't be taken over.
    pub(crate) fn not_updated(&self, why: String) -> Self {
        match self {
            Self::Well => Self::Degraded(why),
            Self::Degraded(other) => Self::Degraded(format!("{why}; {other}")),
            Self::Failing(_) => self.clone(),
        }
    }
}

/// Files that are not understood, with the line.
#[derive(Debug, Default)]
pub(crate) struct NotUnderstood {
    /// Not once since the start: some of what they hold has never been in force.
    since_start: BTreeSet<Arc<str>>,
    since_start_at: Vec<String>,
    /// What was in force of these stays.
    later_at: Vec<String>,
}

impl NotUnderstood {
    /// What `files` make of it; `None` before: these are the first.
    pub(crate) fn next(before: Option<&Self>, files: &Files) -> Self {
        let mut next = Self::default();
        for (name, file) in files {
            let Some(first) = file.broken.first() else { continue };
            let place = format!("{name}:{}", first.line.unwrap_or(1));
            if before.is_none_or(|before| before.since_start.contains(name)) {
                next.since_start.insert(Arc::clone(name));
                next.since_start_at.push(place);
            } else {
                next.later_at.push(place);
            }
        }
        next
    }

    /// Why nobody should rely on this proxy, if there is a reason.
    pub(crate) fn failing(&self) -> Option<String> {
        let why = "not understood since the start, so what it holds has never been in force";
        some(&self.since_start_at).map(|files| format!("{why}: {files}"))
    }

    /// What somebody should look at, if there is anything.
    pub(crate) fn degraded(&self) -> Option<String> {
        let why = "not understood, so what was in force of it stays";
        some(&self.later_at).map(|files| format!("{why}: {files}"))
    }
}

/// The first few, and how many more; `None` of nothing.
pub(crate) fn some(all: &[String]) -> Option<String> {
    const SHOWN: usize = 3;
    let shown = all.get(..SHOWN.min(all.len())).filter(|shown| !shown.is_empty())?.join(", ");
    Some(match all.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    })
}
