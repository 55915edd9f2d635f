//! What the proxy reports back about the snapshots it was given.

use std::sync::Arc;

use tokio::sync::watch;

use crate::verdict::Diagnostic;

/// What became of one snapshot in the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Its tables are in force.
    Applied {
        /// [`crate::snapshot::Snapshot::version`].
        version: u64,
    },
    /// Its tables could not be built; the previous ones stay in force.
    Rejected {
        /// [`crate::snapshot::Snapshot::version`].
        version: u64,
        /// Why.
        diagnostics: Vec<Diagnostic>,
    },
}

/// The proxy's way to report. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Status {
    last: Arc<watch::Sender<Option<Report>>>,
}

impl Status {
    /// The snapshot's tables are in force.
    pub fn applied(&self, version: u64) {
        self.last.send_replace(Some(Report::Applied { version }));
    }

    /// The snapshot could not be turned into tables.
    pub fn rejected(&self, version: u64, diagnostics: Vec<Diagnostic>) {
        tracing::error!(
            version,
            count = diagnostics.len(),
            "configuration refused; the previous one stays in force"
        );
        for diagnostic in &diagnostics {
            tracing::error!(version, "{diagnostic}");
        }
        self.last.send_replace(Some(Report::Rejected { version, diagnostics }));
    }

    /// The latest report.
    pub fn last(&self) -> Option<Report> {
        self.last.borrow().clone()
    }

    /// To wait for reports, as a source with a server behind it does.
    pub fn subscribe(&self) -> watch::Receiver<Option<Report>> {
        self.last.subscribe()
    }
}
