//! What remains after CONNECT, Upgrade and opaque TCP: bytes both ways, with their record.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::decision::{Reason, Stage};
use crate::live::Place;
use crate::net::{Copy, How, Transferred};
use crate::telemetry::Record;

/// Copies between a client and a server until both are done, one breaks off, nothing moves for `idle`, or a change ends
/// it. The record is emitted then, also when this future is dropped.
pub async fn run<A, B>(client: A, server: B, mut record: Box<Record>, place: Place, idle: Duration)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let transferred = Rc::<Transferred>::default();
    record.tunnelled = Some(Rc::clone(&transferred));
    place.hold(record);
    let copy = Copy::new(client, server, transferred, Some(idle));
    if let Ok(ended) = place.during(copy).await
        && let Some(mut record) = place.take()
    {
        record.ended = Some((Stage::Relay, reason(ended.how)));
        record.detail = ended.error.map(|error| error.to_string().into());
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
