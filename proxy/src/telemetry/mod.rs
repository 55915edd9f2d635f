//! Records, metrics, logs: what leaves the proxy about what it decided.

mod record;

pub use record::{Attempt, CertificateEvidence, ConfigFacts, ConnectionFacts, Record, Side, TlsEvidence};

/// A worker's own share of telemetry.
#[derive(Debug, Default)]
pub struct Shard {}
