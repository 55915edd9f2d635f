//! HTTP/1 beside hyper's: the codec, a message through a served connection, and what an idle connection holds.
//!
//! `cargo bench -p benches --bench h1`. Both servers run on a duplex pipe in one task with their client, so the figures are the cost of
//! the server's work and of the pipe, and only their difference says something.

#![allow(clippy::unwrap_used, reason = "a benchmark that can't run should say where it stopped")]

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use divan::counter::ItemsCount;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use proxy::body::Body;
use proxy::drain::DrainSignal;
use proxy::error::Reject;
use proxy::h1::{self, BodyLength, ResponseFraming, Timeouts};
use proxy::http::serve_h1::{Control, Handler, Partial, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, LocalSet};

#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

const GET: &[u8] = b"GET /api/v1/reviews/42?full=true HTTP/1.1\r\n\
    Host: reviews.default.svc.cluster.local:9080\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: application/json, text/plain, */*\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    X-Request-Id: 6b8a5f6e-7d0e-4d6c-9b1a-2f6f0c3f8e11\r\n\
    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef\r\n\r\n";

const MESSAGES: usize = 1000;

fn main() {
    divan::main();
}

#[divan::bench]
fn parse_request(bencher: divan::Bencher<'_, '_>) {
    let mut buffer = BytesMut::with_capacity(h1::buffers::READ_CAPACITY);
    bencher.bench_local(|| {
        buffer.clear();
        buffer.reserve(GET.len());
        buffer.extend_from_slice(GET);
        h1::parse_request(&mut buffer).unwrap().unwrap().headers.len()
    });
}

#[divan::bench]
fn encode_response(bencher: divan::Bencher<'_, '_>) {
    let headers = answer_headers();
    let framing = ResponseFraming {
        length: BodyLength::Fixed(64),
        peer: Version::HTTP_11,
        head: false,
        keep_alive: true,
        upgrade: false,
    };
    let mut out = Vec::with_capacity(4096);
    bencher.bench_local(|| {
        out.clear();
        h1::encode_response_head(&mut out, StatusCode::OK, &headers, framing);
        out.len()
    });
}

#[divan::bench(args = [Server::Own, Server::Hyper])]
fn get(bencher: divan::Bencher<'_, '_>, server: Server) {
    exchange(bencher, server, GET, 64);
}

#[divan::bench(args = [Server::Own, Server::Hyper])]
fn post_4k(bencher: divan::Bencher<'_, '_>, server: Server) {
    let head = "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 4096\r\n\r\n";
    let request = [head.as_bytes(), &[b'x'; 4096]].concat();
    exchange(bencher, server, &request, 64);
}

#[divan::bench(args = [Server::Own, Server::Hyper])]
fn answer_64k(bencher: divan::Bencher<'_, '_>, server: Server) {
    exchange(bencher, server, GET, 64 * 1024);
}

/// The bytes allocated and not freed are what one idle connection holds, its task and half a pipe among them.
#[divan::bench(args = [Server::Own, Server::Hyper])]
fn idle(bencher: divan::Bencher<'_, '_>, server: Server) {
    let (runtime, tasks) = (runtime(), LocalSet::new());
    // What is shared by all connections of a worker is there before the first is measured.
    let warm = tasks.block_on(&runtime, one_and_idle(server, tokio::io::duplex(4096)));
    bencher
        .with_inputs(|| tokio::io::duplex(4096))
        .bench_local_values(|pipe| tasks.block_on(&runtime, one_and_idle(server, pipe)));
    drop(warm);
}

async fn one_and_idle(
    server: Server,
    (near, mut far): (DuplexStream, DuplexStream),
) -> (DuplexStream, JoinHandle<()>) {
    let task = tokio::task::spawn_local(server.serve(near, Bytes::from_static(&[b'x'; 64])));
    far.write_all(GET).await.unwrap();
    let mut answer = [0; 2048];
    while !answer.ends_with(b"x") && far.read(&mut answer).await.unwrap() == answer.len() {}
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
    (far, task)
}

fn exchange(bencher: divan::Bencher<'_, '_>, server: Server, request: &[u8], body: usize) {
    let runtime = runtime();
    bencher.counter(ItemsCount::new(MESSAGES)).bench_local(|| {
        let (near, mut far) = tokio::io::duplex(256 * 1024);
        let served = server.serve(near, Bytes::from(vec![b'x'; body]));
        let client = async move {
            let mut answer = vec![0; body + 4096];
            // How long an answer is shows when the first one ends.
            let mut length = 0;
            far.write_all(request).await.unwrap();
            while length < body || answer[length - body..length].iter().any(|byte| *byte != b'x') {
                length += far.read(&mut answer[length..]).await.unwrap();
            }
            for _ in 1..MESSAGES {
                far.write_all(request).await.unwrap();
                far.read_exact(&mut answer[..length]).await.unwrap();
            }
        };
        runtime.block_on(async { tokio::join!(served, client) });
    });
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[derive(Debug, Clone, Copy)]
enum Server {
    Own,
    Hyper,
}

impl Server {
    fn serve(self, io: DuplexStream, body: Bytes) -> Pin<Box<dyn Future<Output = ()>>> {
        match self {
            Self::Own => {
                let control = Control {
                    timeouts: Rc::new(Timeouts::default()),
                    drain: Rc::new(DrainSignal::new().watch()),
                };
                let connection = serve(io, Site(body), control);
                Box::pin(async move { drop(connection.await) })
            }
            Self::Hyper => {
                let service = hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
                    let body = body.clone();
                    let answer: Pin<Box<dyn Future<Output = _>>> =
                        Box::pin(async move { Ok::<_, Infallible>(answer(Full::new(body))) });
                    answer
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .auto_date_header(false)
                    .serve_connection(TokioIo::new(io), service);
                Box::pin(async move { connection.await.unwrap() })
            }
        }
    }
}

struct Site(Bytes);

impl Handler for Site {
    type Body = Body;

    fn handle(&self, _request: Request<Body>) -> Pin<Box<dyn Future<Output = Response<Body>>>> {
        let body = self.0.clone();
        Box::pin(async move { answer(Body::full(body)) })
    }

    fn refuse(&self, reject: Reject, _partial: Partial) -> Response<Body> {
        panic!("{reject}")
    }
}

fn answer<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.headers_mut() = answer_headers();
    response
}

fn answer_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("content-type", "application/json"),
        ("date", "Tue, 24 Nov 2026 02:00:00 GMT"),
        ("server", "writ"),
        ("cache-control", "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
}
