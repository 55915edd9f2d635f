//! Requests and their bodies on the way out, early answers, and both ways at once.

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::OK;
use crate::body::{Body, BodyError};
use crate::decision::Reason;
use crate::upstream::testing::*;
use crate::upstream::{SendError, Settings};

fn reason(result: Result<crate::upstream::Sent, SendError>) -> Reason {
    result.expect_err("no response").reject.reason
}

#[test]
fn the_head_is_written_as_the_codec_says() {
    local(async {
        let (tell, told) = oneshot::channel();
        let tell = RefCell::new(Some(tell));
        let server = Server::start(move |_, mut stream| {
            let tell = tell.borrow_mut().take();
            async move {
                let head = read_head(&mut stream).await.unwrap();
                tell.unwrap().send(head).unwrap();
                stream.write_all(OK).await.unwrap();
            }
        })
        .await;
        server.get(&upstream()).await;
        assert_eq!(told.await.unwrap(), "GET /path?query HTTP/1.1\r\nhost: server.test");
    });
}

/// Reads one request with its body, `length` bytes as framed, answers, and tells what it read.
async fn reading(length: usize) -> (Server, oneshot::Receiver<(String, String)>) {
    let (tell, told) = oneshot::channel();
    let tell = RefCell::new(Some(tell));
    let server = Server::start(move |_, mut stream| {
        let tell = tell.borrow_mut().take();
        async move {
            let head = read_head(&mut stream).await.unwrap();
            let body = read_exactly(&mut stream, length).await;
            stream.write_all(OK).await.unwrap();
            tell.unwrap().send((head, body)).unwrap();
            read_head(&mut stream).await;
        }
    });
    (server.await, told)
}

#[test]
fn a_body_at_hand_goes_out_with_its_length() {
    for length in [1, 4096, 100_000] {
        local(async move {
            let ((server, told), upstream) = (reading(length).await, upstream());
            let body = "x".repeat(length);
            server.send(&upstream, request("POST", Body::full(body.clone()))).await.unwrap();
            let (head, read) = told.await.unwrap();
            assert!(head.ends_with(&format!("\r\ncontent-length: {length}")), "{head}");
            assert!(read == body);
            assert_eq!(upstream.idle_connections(), 1);
        });
    }
}

#[test]
fn a_streamed_body_of_unknown_length_is_chunked() {
    local(async {
        let framed = "5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 1\r\n\r\n";
        let ((server, told), upstream) = (reading(framed.len()).await, upstream());
        let (feed, body) = fed(None);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        for frame in [data(b"hello"), data(b" world"), Ok(Frame::trailers(trailers))] {
            feed.send(frame).unwrap();
        }
        server.send(&upstream, request("POST", body)).await.unwrap();
        let (head, read) = told.await.unwrap();
        assert!(head.ends_with("\r\ntransfer-encoding: chunked"), "{head}");
        assert_eq!(read, framed);
        assert_eq!(upstream.idle_connections(), 1);
    });
}

#[test]
fn a_streamed_body_keeps_its_length() {
    local(async {
        let ((server, told), upstream) = (reading(11).await, upstream());
        let (feed, body) = fed(Some(11));
        let sending = server.send(&upstream, request("PUT", body));
        let feeding = async {
            for frame in [&b"hello"[..], b" world"] {
                feed.send(data(frame)).unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (sent, ()) = tokio::join!(sending, feeding);
        assert_eq!(sent.unwrap().response.status(), 200);
        let (head, read) = told.await.unwrap();
        assert!(head.ends_with("\r\ncontent-length: 11"), "{head}");
        assert_eq!(read, "hello world");
        assert_eq!(upstream.idle_connections(), 1, "the end of the feed was not needed");
    });
}

#[test]
fn large_pieces_of_a_stream_arrive_whole() {
    const PIECE: &[u8] = &[b'x'; 70_000];
    local(async {
        let framed = 20 * ("11170\r\n".len() + PIECE.len() + 2) + "0\r\n\r\n".len();
        let ((server, told), upstream) = (reading(framed).await, upstream());
        let (feed, body) = fed(None);
        for _ in 0..20 {
            feed.send(data(PIECE)).unwrap();
        }
        drop(feed);
        server.send(&upstream, request("POST", body)).await.unwrap();
        let (_, read) = told.await.unwrap();
        assert!(read.starts_with("11170\r\nxx") && read.ends_with("xx\r\n0\r\n\r\n"));
        assert_eq!(read.matches('x').count(), 20 * PIECE.len());
    });
}

#[test]
fn a_body_that_is_not_as_long_as_stated_ends_the_request() {
    local(async {
        let server = Server::start(|_, mut stream| async move { while stream.read_u8().await.is_ok() {} });
        let (server, upstream) = (server.await, upstream());
        for piece in [&b"toolong"[..], b"x"] {
            let (feed, body) = fed(Some(5));
            feed.send(data(piece)).unwrap();
            drop(feed);
            let error = server.send(&upstream, request("POST", body)).await;
            assert_eq!(reason(error), Reason::MalformedRequest);
        }
        assert_eq!(upstream.idle_connections(), 0);
    });
}

#[test]
fn a_client_that_leaves_ends_the_request() {
    local(async {
        let (closed, seen) = oneshot::channel();
        let closed = RefCell::new(Some(closed));
        let server = Server::start(move |_, mut stream| {
            let closed = closed.borrow_mut().take();
            async move {
                while stream.read_u8().await.is_ok() {}
                closed.unwrap().send(()).unwrap();
            }
        });
        let (server, upstream) = (server.await, upstream());
        let (feed, body) = fed(None);
        feed.send(data(b"half")).unwrap();
        feed.send(Err(BodyError::new(Reason::ClientClosed))).unwrap();
        let error = server.send(&upstream, request("POST", body)).await.expect_err("the client left");
        assert_eq!(error.reject.reason, Reason::ClientClosed);
        assert!(!error.whole, "half of it is gone");
        seen.await.unwrap();
    });
}

#[test]
fn an_early_answer_stops_the_request() {
    local(async {
        let answer = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nno!";
        let server = Server::start(move |_, mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(answer).await.unwrap();
            while stream.read_u8().await.is_ok() {}
        });
        let (server, upstream) = (server.await, upstream());
        let (feed, body) = fed(None);
        feed.send(data(b"some of much")).unwrap();
        let sent = server.send(&upstream, request("POST", body)).await.unwrap();
        assert_eq!(whole(sent).await, (413, Bytes::from_static(b"no!")));
        assert_eq!(upstream.idle_connections(), 0);
        drop(feed);
    });
}

#[test]
fn an_answer_before_a_broken_pipe_counts() {
    local(async {
        let server = Server::start(move |_, mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
            std::future::pending::<()>().await;
        });
        let (feed, body) = fed(None);
        for _ in 0..200 {
            feed.send(data(&[b'x'; 70_000])).unwrap();
        }
        let sent = server.await.send(&upstream(), request("POST", body)).await.unwrap();
        assert_eq!(sent.response.status(), 413);
    });
}

#[test]
fn both_ways_at_once() {
    local(async {
        // Echoes chunk by chunk, each before the next was sent.
        let server = Server::start(|_, mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            for _ in 0..3 {
                let chunk = read_exactly(&mut stream, 7).await;
                stream.write_all(chunk.as_bytes()).await.unwrap();
            }
            let end = read_exactly(&mut stream, 5).await;
            stream.write_all(end.as_bytes()).await.unwrap();
            read_head(&mut stream).await;
        });
        let (server, upstream) = (server.await, upstream());
        let (feed, body) = fed(None);
        let mut echo = server.send(&upstream, request("POST", body)).await.unwrap().response.into_body();
        for piece in [b"aa", b"bb", b"cc"] {
            feed.send(data(piece)).unwrap();
            let echoed = echo.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(&echoed[..], piece);
        }
        drop(feed);
        assert!(echo.frame().await.is_none() && echo.is_end_stream());
        assert_eq!(upstream.idle_connections(), 1);
    });
}

#[test]
fn a_body_waits_for_continue() {
    local(async {
        let (asked, ask) = oneshot::channel();
        let asked = RefCell::new(Some(asked));
        let server = Server::start(move |_, mut stream| {
            let asked = asked.borrow_mut().take();
            async move {
                read_head(&mut stream).await;
                turn().await;
                assert!(stream.try_read(&mut [0]).is_err(), "the body came unasked");
                asked.unwrap().send(()).unwrap();
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
                assert_eq!(read_exactly(&mut stream, 4).await, "body");
                stream.write_all(OK).await.unwrap();
                read_head(&mut stream).await;
            }
        });
        let settings = Settings { continue_timeout: TIMEOUT, ..Settings::default() };
        let (server, upstream) = (server.await, upstream_with(settings));
        let (feed, body) = fed(Some(4));
        feed.send(data(b"body")).unwrap();
        let mut request = request("POST", body);
        request.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
        let sent = server.send(&upstream, request).await.unwrap();
        ask.await.unwrap();
        assert_eq!((sent.response.status().as_u16(), upstream.idle_connections()), (200, 1));
    });
}

#[test]
fn a_body_does_not_wait_for_ever() {
    local(async {
        let settings = Settings { continue_timeout: Duration::from_millis(5), ..Settings::default() };
        let ((server, told), upstream) = (reading(4).await, upstream_with(settings));
        let (feed, body) = fed(Some(4));
        feed.send(data(b"body")).unwrap();
        let mut request = request("POST", body);
        request.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
        assert_eq!(server.send(&upstream, request).await.unwrap().response.status(), 200);
        assert_eq!(told.await.unwrap().1, "body");
    });
}

#[test]
fn a_refused_expectation_leaves_the_body_untouched() {
    local(async {
        let server = Server::answering(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n").await;
        let upstream = upstream();
        let (feed, body) = fed(Some(4));
        feed.send(data(b"body")).unwrap();
        let mut request = request("POST", body);
        request.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
        let sent = server.send(&upstream, request).await.unwrap();
        assert_eq!((sent.response.status().as_u16(), upstream.idle_connections()), (417, 0));
    });
}
