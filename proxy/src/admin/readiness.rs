//! [`Readiness`]: the named conditions that must all hold before traffic is welcome.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Named conditions, each holding or not, with a reason. Shared as `Arc<Readiness>`; whoever owns a condition sets it.
#[derive(Debug)]
pub struct Readiness {
    conditions: Mutex<Vec<(&'static str, Result<(), String>)>>,
}

impl Readiness {
    /// Conditions of which none holds yet.
    pub fn new(names: &[&'static str]) -> Self {
        let conditions = names.iter().map(|&name| (name, Err("not yet".to_owned()))).collect();
        Self { conditions: Mutex::new(conditions) }
    }

    /// The condition holds. A name that [`Readiness::new`] was not told becomes one more condition.
    pub fn ready(&self, name: &'static str) {
        self.set(name, Ok(()));
    }

    /// The condition does not hold (any more), and why.
    pub fn not_ready(&self, name: &'static str, why: impl Into<String>) {
        self.set(name, Err(why.into()));
    }

    /// Whether all hold; if not, a line for each that does not: `config: not yet`.
    ///
    /// # Errors
    /// The reasons.
    pub fn check(&self) -> Result<(), String> {
        let reasons: Vec<String> = self
            .lock()
            .iter()
            .filter_map(|(name, state)| state.as_ref().err().map(|why| format!("{name}: {why}\n")))
            .collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons.concat()) }
    }

    fn set(&self, name: &'static str, state: Result<(), String>) {
        let mut conditions = self.lock();
        match conditions.iter_mut().find(|(known, _)| *known == name) {
            Some(condition) => condition.1 = state,
            None => conditions.push((name, state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(&'static str, Result<(), String>)>> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_conditions_must_hold() {
        let readiness = Readiness::new(&["config", "listeners"]);
        assert_eq!(readiness.check().unwrap_err(), "config: not yet\nlisteners: not yet\n");
        readiness.ready("config");
        readiness.ready("listeners");
        assert_eq!(readiness.check(), Ok(()));
        readiness.not_ready("drain", "shutting down");
        assert_eq!(readiness.check().unwrap_err(), "drain: shutting down\n");
    }
}
