//! How long an HTTP/1 server waits for its clients.

use std::time::Duration;

/// How long a connection waits, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a whole head, from its first byte.
    pub head: Duration,
    /// For the first byte of a request.
    pub idle: Duration,
    /// For the next bytes of a body that is being read.
    pub body: Duration,
    /// For the client to take any of an answer.
    pub write: Duration,
    /// For an answer to a client that closed its sending side, between any two pieces. Zero: it counts as gone at once.
    pub half_close: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            idle: Duration::from_secs(3600),
            body: Duration::from_secs(60),
            write: Duration::from_secs(60),
            half_close: Duration::from_secs(5),
        }
    }
}
