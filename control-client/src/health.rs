//! [`Health`]: how far what is in force is what was written.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Workload;
use crate::compile::{OwnLabels, Told};
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
    pub(crate) fn of(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().fold(Self::Well, |one, other| match (one, other) {
            (Self::Failing(one), Self::Failing(other)) => Self::Failing(format!("{one}; {other}")),
            (Self::Degraded(one), Self::Degraded(other)) => Self::Degraded(format!("{one}; {other}")),
            (failing @ Self::Failing(_), _) | (_, failing @ Self::Failing(_)) => failing,
            (one, Self::Well) => one,
            (Self::Well, other) => other,
        })
    }

    /// The same, where an update can't be taken over.
    pub(crate) fn not_updated(&self, why: String) -> Self {
        Self::of([Self::Degraded(why), self.clone()])
    }
}

/// Of a workload by whose labels it is decided what comes in.
pub(crate) fn of_labels(own: &OwnLabels, workload: &Workload) -> Health {
    let Some(select) = some(own.select.iter()) else { return Health::Well };
    let Workload { namespace, name, .. } = workload;
    match own.told {
        Told::Now => Health::Well,
        Told::Before => Health::Degraded(format!(
            "there is no Pod or WorkloadEntry {namespace}/{name} any more: its labels are taken to be as they were"
        )),
        Told::Never => Health::Failing(format!(
            "there is no Pod or WorkloadEntry {namespace}/{name}, and no --labels: what may be for it fails closed ({select})"
        )),
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

    pub(crate) fn health(&self) -> Health {
        let since_start = some(self.since_start_at.iter()).map_or(Health::Well, |files| {
            let why = "not understood since the start, so what it holds has never been in force";
            Health::Failing(format!("{why}: {files}"))
        });
        let later = some(self.later_at.iter()).map_or(Health::Well, |files| {
            Health::Degraded(format!("not understood, so what was in force of it stays: {files}"))
        });
        Health::of([since_start, later])
    }
}

/// The first few, and how many more; `None` of nothing.
fn some<'s>(all: impl ExactSizeIterator<Item = &'s String>) -> Option<String> {
    const SHOWN: usize = 3;
    let more = all.len().saturating_sub(SHOWN);
    let shown: Vec<&str> = all.take(SHOWN).map(String::as_str).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!shown.is_empty()).then(|| shown.join(", ") + &more)
}
