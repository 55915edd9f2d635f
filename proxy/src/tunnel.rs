//! What remains after CONNECT, Upgrade and opaque TCP: bytes both ways, with their record.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::decision::{Reason, Stage};
use crate::net::{Copy, How, Transferred};
use crate::telemetry::Record;

/// Copies between a client and a server until both are done, one breaks off, or nothing moves for `idle`. The record is
/// emitted here, also when this future is dropped.
pub async fn run<A, B>(client: A, server: B, record: Box<Record>, idle: Duration)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut tunnel = Tunnel::new(record);
    let copy = Copy::new(client, server, Rc::clone(&tunnel.transferred), Some(idle));
    tunnel.record.checkpoint();
    let ended = copy.await;
    tunnel.record.ended = Some((Stage::Relay, reason(ended.how)));
    tunnel.record.detail = ended.error.map(|error| error.to_string().into());
}

/// A record that learns at the end how much went each way.
struct Tunnel {
    record: Box<Record>,
    transferred: Rc<Transferred>,
    /// Counted before the tunnel began: an upgrade's own bodies.
    before: (u64, u64),
}

impl Tunnel {
    fn new(record: Box<Record>) -> Self {
        let before = (record.request_bytes, record.response_bytes);
        Self { record, transferred: Rc::default(), before }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.record.request_bytes = self.before.0 + self.transferred.from_client.get();
        self.record.response_bytes = self.before.1 + self.transferred.from_upstream.get();
    }
}

fn reason(how: How) -> Reason {
    match how {
        How::Complete => Reason::Complete,
        How::ClientClosed => Reason::ClientClosed,
        How::UpstreamReset => Reason::UpstreamReset,
        How::Idle => Reason::ClientStalled,
    }
}
