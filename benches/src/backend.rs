//! The application behind the proxies: answers every request with its version and counts what it saw.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use crate::load::LocalExecutor;

/// A running application; it lives as long as the process.
#[derive(Debug)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Seen>,
}

/// Requests so far, by protocol.
#[derive(Debug, Default)]
struct Seen {
    http1: AtomicU64,
    http2: AtomicU64,
}

impl Backend {
    /// Starts it on a thread of its own, which inherits the core of the calling thread.
    pub fn start(version: &'static str) -> Result<Self> {
        let listener =
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind the application")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let counted = seen.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("app-{version}")).spawn(move || {
            LocalSet::new().block_on(&runtime, accept(listener, version, counted));
        })?;
        Ok(Self { address, seen })
    }

    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.seen.http1.load(Ordering::Relaxed) + self.seen.http2.load(Ordering::Relaxed)
    }

    /// Those of them that came over HTTP/2.
    pub fn http2_requests(&self) -> u64 {
        self.seen.http2.load(Ordering::Relaxed)
    }
}

async fn accept(listener: std::net::TcpListener, version: &'static str, seen: Arc<Seen>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        // Out of descriptors or the like: the connection's owner sees it fail, the application goes on.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        spawn_local(serve(stream, version, seen.clone()));
    }
}

/// HTTP/2 with prior knowledge or HTTP/1, as the first bytes say.
async fn serve(stream: TcpStream, version: &'static str, seen: Arc<Seen>) {
    let mut first = [0; 3];
    if stream.set_nodelay(true).is_err() || !matches!(stream.peek(&mut first).await, Ok(1..)) {
        return;
    }
    let http2 = first == *b"PRI";
    let service = service_fn(move |_: http::Request<Incoming>| {
        let counter = if http2 { &seen.http2 } else { &seen.http1 };
        counter.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok::<_, Infallible>(answer(version)))
    });
    // A proxy that goes away mid-request is the load generator's to report.
    if http2 {
        let _ = hyper::server::conn::http2::Builder::new(LocalExecutor)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    } else {
        let _ =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }
}

fn answer(version: &'static str) -> http::Response<Full<Bytes>> {
    const BODY: &[u8] = br#"{"id":1,"ratings":{"Reviewer1":5,"Reviewer2":4}}"#;
    let mut response = http::Response::new(Full::new(Bytes::from_static(BODY)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(BODY.len()));
    headers.insert(HeaderName::from_static("x-version"), HeaderValue::from_static(version));
    response
}
