//! The TLS configurations in use, and the switch after which only approved ones can be made.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustls::{ClientConfig, ServerConfig};
use serde::Serialize;

/// What is used is not approved, and approved crypto is required.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("approved crypto is required (--fips required): {0}")]
pub struct NotApproved(pub String);

/// From here on the process takes approved crypto only. Fails where the linked module, or what it offers, is not.
pub fn require() -> Result<(), NotApproved> {
    match crate::install().not_approved() {
        Some(reason) => Err(NotApproved(reason)),
        None => {
            REQUIRED.store(true, Ordering::Relaxed);
            Ok(())
        }
    }
}

/// Whether the process takes approved crypto only.
pub fn required() -> bool {
    REQUIRED.load(Ordering::Relaxed)
}

static REQUIRED: AtomicBool = AtomicBool::new(false);

/// Notes a server's configuration that `name` says the use of. Its connections say themselves whether they are approved, and
/// [`require_live`] whether all are.
pub fn note_server(name: &'static str, config: &ServerConfig) {
    note(name, config.fips());
}

/// Notes a client's configuration likewise.
pub fn note_client(name: &'static str, config: &ClientConfig) {
    note(name, config.fips());
}

/// A server's configuration, once it may be used, for what `name` says.
pub fn server(name: &'static str, config: ServerConfig) -> Result<ServerConfig, NotApproved> {
    check(required(), name, config.fips())?;
    note(name, config.fips());
    Ok(config)
}

/// A client's configuration likewise.
pub fn client(name: &'static str, config: ClientConfig) -> Result<ClientConfig, NotApproved> {
    check(required(), name, config.fips())?;
    note(name, config.fips());
    Ok(config)
}

/// Fails where approved crypto is required and a configuration in use is not.
pub fn require_live() -> Result<(), NotApproved> {
    live_configs().iter().try_for_each(|config| check(required(), config.name, config.fips))
}

/// The configurations made so far, by what they are for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LiveConfig {
    /// What they are for.
    pub name: &'static str,
    /// How many were made.
    pub made: u64,
    /// Whether every one of them was approved, as rustls says it of suites, groups, signatures, keys and, for TLS 1.2,
    /// extended master secret.
    pub fips: bool,
}

/// All of them.
pub fn live_configs() -> Vec<LiveConfig> {
    let all = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().map(|(&name, &(made, fips))| LiveConfig { name, made, fips }).collect()
}

static LIVE: Mutex<BTreeMap<&'static str, (u64, bool)>> = Mutex::new(BTreeMap::new());

fn note(name: &'static str, approved: bool) {
    let mut all = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    let (made, throughout) = all.entry(name).or_insert((0, true));
    *made += 1;
    *throughout &= approved;
}

fn check(required: bool, name: &str, approved: bool) -> Result<(), NotApproved> {
    if required && !approved {
        return Err(NotApproved(format!("the TLS configuration for {name} is not approved throughout")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_approved_is_refused_by_name_where_it_must_be() {
        assert_eq!(check(false, "a server", false), Ok(()));
        assert_eq!(check(true, "a server", true), Ok(()));
        let refused = check(true, "a server", false).unwrap_err().to_string();
        assert!(refused.contains("the TLS configuration for a server"), "{refused}");
    }

    #[test]
    fn configurations_are_counted() {
        note("a test", true);
        note("a test", true);
        note("another test", false);
        let all = live_configs();
        assert!(all.contains(&LiveConfig { name: "a test", made: 2, fips: true }));
        assert!(all.contains(&LiveConfig { name: "another test", made: 1, fips: false }));
    }

    #[test]
    fn only_the_certified_module_can_be_required() {
        if !cfg!(feature = "certified") {
            let refused = require().unwrap_err().to_string();
            assert!(refused.contains("has no approved mode"), "{refused}");
            assert!(!required());
        } else {
            require().unwrap();
            assert!(required());
        }
    }
}
