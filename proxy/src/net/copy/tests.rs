//! Copying: half-close, failures, idleness, backpressure, and what the counters say.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// Both far ends of a running copy, its counters and its result.
struct Running {
    client: DuplexStream,
    upstream: DuplexStream,
    transferred: Rc<Transferred>,
    result: tokio::task::JoinHandle<Ended>,
}

fn start(capacity: usize, idle: Option<Duration>) -> Running {
    let (client, near_client) = duplex(capacity);
    let (upstream, near_upstream) = duplex(capacity);
    let transferred = Rc::new(Transferred::default());
    let copy = Copy::new(near_client, near_upstream, Rc::clone(&transferred), idle);
    Running { client, upstream, transferred, result: tokio::task::spawn_local(copy) }
}

async fn local<T>(future: impl Future<Output = T>) -> T {
    tokio::task::LocalSet::new().run_until(future).await
}

#[tokio::test]
async fn half_close_passes_on_and_the_other_half_goes_on() {
    local(async {
        let mut run = start(64, None);
        run.client.write_all(b"question").await.unwrap();
        run.client.shutdown().await.unwrap();
        let mut question = String::new();
        run.upstream.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        run.upstream.write_all(b"an answer").await.unwrap();
        assert!(!run.result.is_finished());
        drop(run.upstream);
        let mut answer = String::new();
        run.client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "an answer");
        let ended = run.result.await.unwrap();
        assert_eq!((ended.how, ended.first_eof), (How::Complete, Some(Side::Client)));
        assert_eq!((run.transferred.from_client.get(), run.transferred.from_upstream.get()), (8, 9));
    })
    .await;
}

#[tokio::test]
async fn much_both_ways_through_every_buffer_size() {
    local(async {
        let run = start(64 * 1024, Some(Duration::from_secs(60)));
        let size: usize = 12 * 1024 * 1024;
        let bulk = |seed: u8| -> Vec<u8> { (0..size).map(|i| (i / 251) as u8 ^ seed).collect() };
        let far = |stream: DuplexStream, send: Vec<u8>| async move {
            let (mut read, mut write) = tokio::io::split(stream);
            let mut received = Vec::new();
            let sending = async {
                write.write_all(&send).await.unwrap();
                write.shutdown().await.unwrap();
            };
            tokio::join!(sending, async { read.read_to_end(&mut received).await.unwrap() });
            received
        };
        let (at_client, at_upstream) = tokio::join!(far(run.client, bulk(1)), far(run.upstream, bulk(2)));
        assert!(at_client == bulk(2) && at_upstream == bulk(1));
        assert_eq!(run.result.await.unwrap().how, How::Complete);
        assert_eq!(run.transferred.from_client.get(), size as u64);
        assert_eq!(run.transferred.from_upstream.get(), size as u64);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_means_nothing_moved_either_way() {
    local(async {
        let mut run = start(64, Some(Duration::from_secs(10)));
        let began = Instant::now();
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(6)).await;
            run.upstream.write_all(b"tick").await.unwrap();
            let mut tick = [0; 4];
            run.client.read_exact(&mut tick).await.unwrap();
        }
        let ended = run.result.await.unwrap();
        assert_eq!(ended.how, How::Idle);
        assert_eq!(began.elapsed().as_secs(), 40);
    })
    .await;
}

/// Reads, then fails; writes fail too.
#[derive(Debug)]
struct Reset(Vec<u8>);

impl AsyncRead for Reset {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        buf.put_slice(&std::mem::take(&mut self.0));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Reset {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
    }
}

#[tokio::test]
async fn an_answer_is_delivered_though_the_upstream_takes_no_more() {
    let (mut client, near) = duplex(64);
    client.write_all(b"too much").await.unwrap();
    let transferred = Rc::new(Transferred::default());
    let ended = Copy::new(near, Reset(b"413".to_vec()), Rc::clone(&transferred), None).await;
    assert_eq!(ended.how, How::UpstreamReset);
    assert_eq!(ended.first_eof, None);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "413");
    assert_eq!((transferred.from_client.get(), transferred.from_upstream.get()), (8, 3));
}

#[tokio::test]
async fn a_client_reset_ends_the_copy() {
    let (_upstream, near) = duplex(64);
    let ended = Copy::new(Reset(Vec::new()), near, Rc::default(), None).await;
    assert_eq!(ended.how, How::ClientClosed);
    assert_eq!(ended.error.unwrap().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn counters_outlive_a_dropped_copy_and_idle_directions_hold_no_buffer() {
    local(async {
        let (mut client, near_client) = duplex(64);
        let (mut upstream, near_upstream) = duplex(64);
        let transferred = Rc::new(Transferred::default());
        let mut copy = Box::pin(Copy::new(near_client, near_upstream, Rc::clone(&transferred), None));
        client.write_all(b"half").await.unwrap();
        let mut half = [0; 4];
        tokio::select! {
            _ = &mut copy => panic!("ended early"),
            read = upstream.read_exact(&mut half) => { read.unwrap(); }
        }
        assert!(copy.from_client.buffer.is_none() && copy.from_upstream.buffer.is_none());
        drop(copy);
        assert_eq!(transferred.from_client.get(), 4);
    })
    .await;
}

/// Keeps what is written until it is flushed, as TLS may.
struct Buffered(DuplexStream, Vec<u8>);

impl AsyncRead for Buffered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Buffered {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.1.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self(io, held) = self.get_mut();
        while !held.is_empty() {
            let count = ready!(Pin::new(&mut *io).poll_write(cx, held))?;
            held.drain(..count);
        }
        Pin::new(io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn writes_are_flushed_before_waiting() {
    local(async {
        let (mut client, near_client) = duplex(64);
        let (mut upstream, near_upstream) = duplex(8);
        let copy = Copy::new(near_client, Buffered(near_upstream, Vec::new()), Rc::default(), None);
        let running = tokio::task::spawn_local(copy);
        client.write_all(b"longer than the pipe is wide").await.unwrap();
        let mut received = [0; 28];
        upstream.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"longer than the pipe is wide");
        drop((client, upstream));
        assert_eq!(running.await.unwrap().how, How::Complete);
    })
    .await;
}

#[test]
fn the_future_stays_small() {
    type Tunnel = Copy<tokio::net::TcpStream, tokio::net::TcpStream>;
    assert!(size_of::<Tunnel>() <= 384, "{}", size_of::<Tunnel>());
}
