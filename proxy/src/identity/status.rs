//! How the identity stands: what metrics, readiness and the log say of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Identity, SpiffeId};
use crate::clock;

/// The most of a certificate's time that may be left when a missing renewal is spoken of: of one that lives for a year, the
/// last quarter is too long to be alarmed.
const LONGEST_ALARM: Duration = Duration::from_secs(7 * 86_400);
/// The same for taking no more traffic.
const LONGEST_LAST_STRETCH: Duration = Duration::from_secs(60);

/// How the identity stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whose it is.
    pub id: SpiffeId,
    /// notAfter of the leaf in force, seconds since the epoch.
    pub leaf_not_after: i64,
    /// notAfter of the root that vouches for it.
    pub root_not_after: i64,
    /// Sets taken since the first.
    pub rotations: u64,
    /// When the set in force was taken.
    pub taken: SystemTime,
    /// How often the source had nothing that could be taken.
    pub failures: u64,
    /// Why what the source has now is not in force; `None` when it is.
    pub problem: Option<Arc<str>>,
}

/// What the identity means for readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// In force, and followed.
    Well,
    /// It serves, but its renewal fails or is overdue.
    Degraded(String),
    /// It has expired, or is so close to it that no new traffic is welcome.
    Failing(String),
}

impl Identity {
    /// How it stands.
    pub fn status(&self) -> Status {
        let (current, renewal) = (self.current(), self.renewal());
        Status {
            id: current.id.clone(),
            leaf_not_after: current.not_after,
            root_not_after: current.root_not_after,
            rotations: renewal.rotations,
            taken: renewal.taken,
            failures: renewal.failures,
            problem: renewal.problem(),
        }
    }

    /// Why what the source has now is not in force; `None` when it is.
    pub fn problem(&self) -> Option<Arc<str>> {
        self.renewal().problem()
    }

    /// What it means for readiness at `now`. Renewals are due by half of a certificate's time: in its last quarter a missing
    /// one degrades the proxy, which serves on; in the last twentieth, and after it, the proxy takes no more traffic.
    pub fn health(&self, now: SystemTime) -> Health {
        let current = self.current();
        let lifetime = current.lifetime();
        let left = self.not_after().duration_since(now).unwrap_or_default();
        let because = || self.problem().map_or_else(String::new, |problem| format!(": {problem}"));
        if left.is_zero() {
            return Health::Failing(format!("the certificate has expired{}", because()));
        }
        if current.trust.revokes(&current.proof) {
            return Health::Failing("the certificate is revoked".into());
        }
        if left < (lifetime / 20).min(LONGEST_LAST_STRETCH) {
            return Health::Failing(format!("the certificate expires in {left:.0?}{}", because()));
        }
        if left < (lifetime / 4).min(LONGEST_ALARM) {
            let why = "and has not been renewed";
            return Health::Degraded(format!("the certificate expires in {left:.0?} {why}{}", because()));
        }
        let late = || current.trust.lists().iter().find_map(|list| list.late(clock::seconds(now)));
        let problem = self.problem().map(|problem| problem.to_string());
        problem.or_else(late).map_or(Health::Well, Health::Degraded)
    }
}
