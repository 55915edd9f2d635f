//! [`Target`]: what a connection can be reused for, and the connections that are idle or shared there.

use std::cell::RefCell;
use std::net::SocketAddr;

use super::hop::{HopProtocol, HopTls};

/// A connection may serve a request exactly when all of this is equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TargetKey {
    pub(super) address: SocketAddr,
    pub(super) tls: HopTls,
    pub(super) protocol: HopProtocol,
}

/// One key with its connections, per worker.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) key: TargetKey,
    #[expect(dead_code, reason = "filled by the HTTP/1 client")]
    idle: RefCell<Vec<()>>,
}

impl Target {
    pub(super) fn new(key: TargetKey) -> Self {
        Self { key, idle: RefCell::default() }
    }
}
