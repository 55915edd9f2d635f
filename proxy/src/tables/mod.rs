//! Policy and routes compiled for speed: immutable, pure look-ups.

use std::sync::Arc;
use std::time::Duration;

use control_client::snapshot::{BackendTls, Protocol};

/// A backend's stable id in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub u32);

/// Where traffic is sent.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Stable id.
    pub id: BackendId,
    /// As records name it.
    pub name: Arc<str>,
    /// Declared protocol.
    pub protocol: Option<Protocol>,
    /// How TLS to it is decided.
    pub tls: BackendTls,
    /// Never plaintext to it.
    pub mtls_required: bool,
    /// Bound of a dial.
    pub connect_timeout: Duration,
}
