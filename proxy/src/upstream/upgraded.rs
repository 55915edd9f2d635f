//! [`UpgradedUpstream`]: the server's half of a tunnel, carried from `send` to the tunnel in a response's extensions.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::Io;
use crate::identity::Proof;

/// What is left of a connection after 101, or 2xx to CONNECT. Clones share it; the first `take` gets it. (Extensions
/// demand `Clone + Send`, hence the cell.)
#[derive(Debug, Clone)]
pub struct UpgradedUpstream(Arc<Mutex<Option<Upgraded>>>);

/// The server's half of a tunnel.
#[derive(Debug)]
pub struct Upgraded {
    /// Bytes both ways.
    pub io: Io,
    /// What the server sent right behind the head; comes before what `io` yields.
    pub read_ahead: Bytes,
    /// What the server's identity rests on, if it has one.
    pub proof: Option<Arc<Proof>>,
}

impl UpgradedUpstream {
    /// A tunnel to be.
    pub fn new(io: Io, read_ahead: Bytes, proof: Option<Arc<Proof>>) -> Self {
        Self(Arc::new(Mutex::new(Some(Upgraded { io, read_ahead, proof }))))
    }

    /// The half, once.
    pub fn take(&self) -> Option<Upgraded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
