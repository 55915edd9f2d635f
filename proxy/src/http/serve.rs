//! `serve`: a connection's HTTP version meets the line of requests; tunnels leave here.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::pipeline::Line;
use super::reply::is_grpc;
use super::resets::{Resets, Watched};
use super::serve_h1::{self, Control, Ended};
use super::streams::{Limits, Streams};
use crate::body::Body;
use crate::drain::Word;
use crate::io::Io;
use crate::net::Prefixed;
use crate::tunnel;
use crate::upstream::UpgradedUpstream;

/// Flow-control windows: large and fixed (an adaptive one cost 6 % more CPU, small ones 3 %).
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// What a stream holds of its answer for the client to take: one that takes nothing holds as much a hundred times.
const MAX_SEND_BUFFER: usize = 16 * 1024;
/// Streams at once on one connection (Envoy's recommended edge value).
const MAX_STREAMS: u32 = 100;
/// For GOAWAY and what else is on its way to a client that is no longer believed.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// HTTP/2 header list: as the HTTP/1 head.
const MAX_HEADER_LIST: u32 = crate::h1::MAX_HEAD as u32;

/// Serves HTTP/1 until the connection ends, or as the tunnel it becomes.
pub async fn http1(io: Io, line: Rc<Line>) {
    let worker = Rc::clone(&line.worker);
    let control = Control { timeouts: Rc::clone(&worker.http1), drain: Rc::clone(&line.connection.watch) };
    let ended = serve_h1::serve(io, line, control).await;
    if let Ended::Tunnel { io, read_ahead, mut response } = ended {
        let upstream =
            response.extensions_mut().remove::<UpgradedUpstream>().and_then(|upgraded| upgraded.take());
        let record = response.body_mut().take_record();
        if let (Some(upstream), Some((record, Some(place)))) = (upstream, record) {
            let client = Prefixed::new(read_ahead, io);
            let server = Prefixed::new(upstream.read_ahead, upstream.io);
            place.leads_to(upstream.proof);
            Box::pin(tunnel::run(client, server, record, place, worker.deadlines.idle)).await;
        }
    }
}

/// Serves HTTP/2 until the connection ends.
pub async fn http2(io: Io, line: Rc<Line>) {
    let resets = Rc::new(Resets::default());
    let limits = Limits::of(&line.worker.deadlines);
    let streams = Streams::new(Rc::clone(&resets), limits);
    let (requests, beginning) = (Rc::clone(&line), Rc::clone(&streams));
    let service = service_fn(move |request: Request<Incoming>| {
        let line = Rc::clone(&requests);
        let underway = beginning.begin(is_grpc(request.headers()));
        // Boxed, so that hyper's stream futures stay small: they are moved several times.
        Box::pin(async move {
            let stream = Some(Rc::clone(underway.stream()));
            let response = Line::handle(line, request.map(Body::Http2), stream).await;
            Ok::<_, std::convert::Infallible>(response.map(|body| body.while_underway(underway)))
        })
    });
    let connection = http2::Builder::new(StreamExec(Rc::clone(&streams)))
        .timer(hyper_util::rt::TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .keep_alive_interval(Some(Duration::from_secs(60)))
        .keep_alive_timeout(Duration::from_secs(20))
        .serve_connection(TokioIo::new(Watched::new(io, Rc::clone(&resets))), service);
    let mut connection = pin!(connection);
    let watch = Rc::clone(&line.connection.watch);
    let mut clock = tokio::time::interval(limits.interval());
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    clock.reset();
    let mut asked_to_end = false;
    let mut last = None;
    let ended = poll_fn(|cx| {
        while clock.poll_tick(cx).is_ready() {
            streams.tick();
        }
        if streams.is_abandoned() || streams.is_idle() && streams.begun() == 0 {
            // Good-bye was said and not taken; or perhaps not even the preface came, and then there is nobody to say it to.
            return Poll::Ready(Ok(()));
        }
        if watch.told() != Word::End && streams.is_flood() {
            line.flooded();
            watch.tell(Word::End);
        }
        watch.wake_on_drain(cx);
        if watch.told() == Word::End {
            let last = last.get_or_insert_with(|| Box::pin(tokio::time::sleep(LAST_WORDS)));
            if last.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
        }
        if !asked_to_end && (streams.is_idle() || watch.is_draining()) {
            asked_to_end = true;
            connection.as_mut().graceful_shutdown();
        }
        let polled = connection.as_mut().poll(cx);
        for _ in 0..resets.take_unrecorded(streams.is_busy()) {
            line.refused_stream();
        }
        polled
    })
    .await;
    if let Err(error) = ended {
        line.broken(&error);
    }
}

/// Spawns a connection's streams on the worker's own thread; futures as they are.
#[derive(Clone)]
struct StreamExec(Rc<Streams>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for StreamExec {
    fn execute(&self, future: F) {
        // The library asks for the answer and spawns what sends it in one go, a stream at a time.
        self.0.spawned(&tokio::task::spawn_local(future));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_size<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// The numbers change on purpose only.
    #[test]
    fn connections_stay_small() {
        let http1 = future_size(http1);
        let http2 = future_size(http2);
        assert!(http1 <= 640 && http2 <= 2048, "{http1} {http2}");
    }
}
