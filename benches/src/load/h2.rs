//! HTTP/2 load with prior knowledge: a few connections, several requests in flight on each.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::{Counts, LocalExecutor, Request};

/// Sends on one connection until told to stop.
pub(super) async fn send(
    target: SocketAddr,
    request: Request,
    streams: usize,
    counts: &Counts,
) -> Result<()> {
    let sender = connect(target).await?;
    let message = message(request)?;
    try_join_all((0..streams).map(|_| stream(sender.clone(), &message, counts))).await?;
    Ok(())
}

/// One request on a fresh connection.
pub(super) async fn ask(target: SocketAddr, request: Request) -> Result<u16> {
    exchange(&mut connect(target).await?, message(request)?).await
}

async fn stream(
    mut sender: SendRequest<Empty<Bytes>>,
    message: &http::Request<Empty<Bytes>>,
    counts: &Counts,
) -> Result<()> {
    while !counts.stopping() {
        let sent = Instant::now();
        let status = exchange(&mut sender, message.clone()).await?;
        counts.answered(status, sent);
    }
    Ok(())
}

async fn connect(target: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(target).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (sender, connection) =
        http2::handshake(LocalExecutor, TokioIo::new(stream)).await.context("HTTP/2")?;
    // Its end is seen by the senders, as an error of their next request.
    spawn_local(async { drop(connection.await) });
    Ok(sender)
}

async fn exchange(
    sender: &mut SendRequest<Empty<Bytes>>,
    message: http::Request<Empty<Bytes>>,
) -> Result<u16> {
    sender.ready().await.context("HTTP/2 connection")?;
    let response = sender.send_request(message).await.context("HTTP/2 request")?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.context("HTTP/2 response body")?;
    }
    Ok(status)
}

fn message(request: Request) -> Result<http::Request<Empty<Bytes>>> {
    let mut message = http::Request::get(format!("http://{}{}", request.authority, request.path))
        .header("user-agent", "writ-compare")
        .header("accept", "*/*");
    if let Some(tenant) = request.tenant {
        message = message.header("x-tenant", tenant);
    }
    if let Some(token) = request.token {
        message = message.header("authorization", format!("Bearer {token}"));
    }
    Ok(message.body(Empty::new())?)
}
