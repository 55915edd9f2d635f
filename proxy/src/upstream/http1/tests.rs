//! The HTTP/1 client against servers that do it right, wrong, late and not at all.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use crate::body::{Body, BodyError};
use crate::decision::{Reason, Stage};
use crate::upstream::testing::*;
use crate::upstream::{HopProtocol, HopTls, SendError, Settings, UpgradedUpstream};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Sends a GET to a server that answers once with `answer`.
async fn refusal(answer: impl Into<Vec<u8>>) -> SendError {
    let server = Server::answering_once(answer).await;
    server.send(&upstream(), get()).await.expect_err("refused")
}

fn reason(result: Result<crate::upstream::Sent, SendError>) -> Reason {
    result.expect_err("no response").reject.reason
}

#[test]
fn one_connection_serves_many_requests() {
    local(async {
        let (server, upstream) = (Server::answering(OK).await, upstream());
        for _ in 0..5 {
            let sent = server.send(&upstream, get()).await.unwrap();
            assert!(matches!(sent.response.body(), Body::Full(Some(body)) if body == "ok"));
            assert_eq!(sent.facts.endpoint, server.address);
            assert_eq!(upstream.idle_connections(), 1);
        }
        assert_eq!(server.accepted(), 1);
    });
}

#[test]
fn requests_at_once_have_a_connection_each() {
    local(async {
        let (server, upstream) = (Server::answering(OK).await, upstream());
        let (one, two) = tokio::join!(server.get(&upstream), server.get(&upstream));
        assert_eq!((one.0, two.0), (200, 200));
        assert_eq!((server.accepted(), upstream.idle_connections()), (2, 2));
    });
}

#[test]
fn the_head_is_written_as_the_codec_says() {
    local(async {
        let (tell, told) = oneshot::channel();
        let tell = std::cell::RefCell::new(Some(tell));
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

#[test]
fn bodies_by_length_chunks_and_close() {
    let answers: [&[u8]; 6] = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nx: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhello world",
        b"HTTP/1.0 200 OK\r\n\r\nhello world",
    ];
    local(async move {
        for answer in answers {
            let server = Server::answering_once(answer).await;
            assert_eq!(server.get(&upstream()).await, (200, Bytes::from_static(b"hello world")));
            // The same, a byte at a time.
            let slow = Server::start(move |_, mut stream| async move {
                read_head(&mut stream).await;
                for byte in answer {
                    stream.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
            assert_eq!(slow.await.get(&upstream()).await, (200, Bytes::from_static(b"hello world")));
        }
    });
}

#[test]
fn trailers_come_through() {
    local(async {
        let answer =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ngrpc-status: 0\r\n\r\n";
        let (server, upstream) = (Server::answering(answer).await, upstream());
        for _ in 0..2 {
            let sent = server.send(&upstream, get()).await.unwrap();
            let collected = sent.response.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
            assert_eq!(collected.to_bytes(), "ok");
        }
        assert_eq!(server.accepted(), 1);
    });
}

#[test]
fn a_large_body_streams_and_gives_its_connection_back() {
    const LENGTH: usize = 3_000_000;
    local(async {
        let server = Server::start(|_, mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&vec![b'x'; LENGTH]).await.unwrap();
            }
        });
        let (server, upstream) = (server.await, upstream());
        for _ in 0..2 {
            let mut body = server.send(&upstream, get()).await.unwrap().response.into_body();
            assert_eq!(body.size_hint().exact(), Some(LENGTH as u64));
            assert_eq!(upstream.idle_connections(), 0);
            let mut length = 0;
            while !body.is_end_stream() {
                length += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
            }
            assert_eq!((length, upstream.idle_connections()), (LENGTH, 1));
        }
        assert_eq!(server.accepted(), 1);
    });
}

#[test]
fn responses_that_never_have_a_body() {
    local(async {
        for (method, answer) in [
            ("HEAD", &b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"[..]),
            ("HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
            ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
        ] {
            let (server, upstream) = (Server::answering(answer).await, upstream());
            for _ in 0..2 {
                let sent = server.send(&upstream, request(method, Body::Empty)).await.unwrap();
                assert!(matches!(sent.response.body(), Body::Empty));
            }
            assert_eq!(server.accepted(), 1, "{method}");
        }
    });
}

#[test]
fn connections_that_must_not_be_reused() {
    local(async {
        for answer in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"[..],
            b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
            // Bytes that nobody asked for, right behind the response.
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        ] {
            let (server, upstream) = (Server::answering(answer).await, upstream());
            for _ in 0..2 {
                assert_eq!(server.get(&upstream).await, (200, Bytes::from_static(b"ok")));
            }
            assert_eq!((server.accepted(), upstream.idle_connections()), (2, 0));
        }
    });
}

#[test]
fn bytes_on_an_idle_connection_spoil_it() {
    local(async {
        let (poison, poisoned) = oneshot::channel::<()>();
        let (done, written) = oneshot::channel::<()>();
        let once = std::cell::RefCell::new(Some((poisoned, done)));
        let server = Server::start(move |_, mut stream| {
            let once = once.borrow_mut().take();
            async move {
                read_head(&mut stream).await;
                stream.write_all(OK).await.unwrap();
                if let Some((poisoned, done)) = once {
                    poisoned.await.unwrap();
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil").await.unwrap();
                    done.send(()).unwrap();
                    std::future::pending::<()>().await;
                }
            }
        });
        let (server, upstream) = (server.await, upstream());
        server.get(&upstream).await;
        assert_eq!(upstream.idle_connections(), 1);
        poison.send(()).unwrap();
        written.await.unwrap();
        turn().await;
        assert_eq!(server.get(&upstream).await, (200, Bytes::from_static(b"ok")));
        assert_eq!(server.accepted(), 2);
    });
}

#[test]
fn a_long_head_is_read_and_a_longer_one_refused() {
    let head =
        |length| format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 2\r\n\r\nok", "x".repeat(length));
    local(async move {
        let server = Server::answering_once(head(10_000)).await;
        let sent = server.send(&upstream(), get()).await.unwrap();
        assert_eq!(sent.response.headers()["x"].len(), 10_000);
        let error = refusal(head(70_000)).await;
        assert_eq!(error.reject.reason, Reason::BadResponse);
    });
}

#[test]
fn responses_without_a_single_meaning_are_refused() {
    local(async {
        for answer in [
            &b"garbage and more garbage\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
            b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-2\r\nok\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            b"HTTP/2 200 OK\r\n\r\n",
        ] {
            let error = refusal(answer).await;
            assert_eq!((error.reject.stage, error.reject.reason), (Stage::Send, Reason::BadResponse));
            assert!(error.reject.detail.is_some() && error.facts.is_some());
        }
        let many = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(17);
        assert_eq!(refusal([&many[..], OK].concat()).await.reject.reason, Reason::BadResponse);
    });
}

#[test]
fn interim_responses_are_skipped() {
    local(async {
        let answer =
            [&b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"[..], OK].concat();
        let server = Server::answering_once(answer).await;
        assert_eq!(server.get(&upstream()).await.0, 200);
    });
}

#[test]
fn a_connection_lost_before_a_response_is_told() {
    local(async {
        let error = refusal(&b""[..]).await;
        assert_eq!(error.reject.reason, Reason::ResetBeforeResponse);
        assert!(error.request.is_some() && !error.reject.before_request());
        assert_eq!(refusal(&b"HTTP/1.1 200 O"[..]).await.reject.reason, Reason::ResetBeforeResponse);
    });
}

#[test]
fn a_reset_is_told() {
    local(async {
        let server = Server::start(|_, mut stream| async move {
            read_head(&mut stream).await;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        });
        let server = server.await;
        let error = server.send(&upstream(), get()).await.expect_err("reset");
        assert_eq!(error.reject.reason, Reason::ResetBeforeResponse);
        assert_eq!(server.accepted(), 1, "a fresh connection says something about the server");
    });
}

#[test]
fn nobody_listens() {
    local(async {
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let upstream = upstream();
        let hop = upstream.hop_to(gone, HopTls::Plaintext, HopProtocol::Http1, TIMEOUT);
        let (_feed, body) = fed(None);
        let error = upstream.send(&hop, request("POST", body)).await.expect_err("refused");
        assert_eq!((error.reject.stage, error.reject.reason), (Stage::Connect, Reason::ConnectRefused));
        assert!(error.reject.before_request() && error.request.is_some() && error.facts.is_none());
    });
}

/// Answers the first request of the first connection, and loses the connection when the second has come.
async fn racing() -> Server {
    Server::start(|number, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(OK).await.unwrap();
        if number > 0 {
            while read_head(&mut stream).await.is_some() {
                stream.write_all(OK).await.unwrap();
            }
        }
        read_head(&mut stream).await;
    })
    .await
}

#[test]
fn an_idempotent_request_survives_the_idle_race() {
    local(async {
        let (server, upstream) = (racing().await, upstream());
        for _ in 0..3 {
            assert_eq!(server.get(&upstream).await.0, 200);
        }
        assert_eq!(server.accepted(), 2);
    });
}

#[test]
fn another_request_is_told_of_the_idle_race() {
    local(async {
        let (server, upstream) = (racing().await, upstream());
        server.get(&upstream).await;
        let error = server.send(&upstream, request("POST", Body::full("x"))).await.expect_err("not repeated");
        assert_eq!(error.reject.reason, Reason::ResetBeforeResponse);
        assert!(error.request.is_some(), "the caller may decide otherwise");
        assert_eq!(server.accepted(), 1);
    });
}

#[test]
fn a_connection_closed_while_idle_is_not_used() {
    local(async {
        let (server, upstream) = (Server::answering_once(OK).await, upstream());
        for count in 1..=3 {
            let sent = server.send(&upstream, request("POST", Body::full("x"))).await.unwrap();
            assert_eq!(whole(sent).await.0, 200);
            server.until_ended(count).await;
        }
        assert_eq!(server.accepted(), 3);
    });
}

/// Reads one request with its body, `length` bytes as framed, answers, and tells what it read.
async fn reading(length: usize) -> (Server, oneshot::Receiver<(String, String)>) {
    let (tell, told) = oneshot::channel();
    let tell = std::cell::RefCell::new(Some(tell));
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
        let closed = std::cell::RefCell::new(Some(closed));
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
        assert!(error.request.is_none(), "half of it is gone");
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
        let asked = std::cell::RefCell::new(Some(asked));
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

#[test]
fn an_upgrade_leaves_the_connection_with_what_was_read_ahead() {
    for (method, answer) in [
        (
            "GET",
            &b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\nahead"[..],
        ),
        ("CONNECT", b"HTTP/1.1 200 OK\r\n\r\nahead"),
    ] {
        local(async move {
            let server = Server::start(move |_, mut stream| async move {
                let head = read_head(&mut stream).await.unwrap();
                assert!(method == "CONNECT" || head.ends_with("connection: upgrade"), "{head}");
                stream.write_all(answer).await.unwrap();
                let said = read_exactly(&mut stream, 4).await;
                stream.write_all(said.as_bytes()).await.unwrap();
            });
            let uri = if method == "CONNECT" { "server.test:80" } else { "/" };
            let request = Request::builder().method(method).uri(uri).header("host", "server.test:80");
            let request = match method {
                "GET" => request.header("upgrade", "echo"),
                _ => request,
            };
            let (server, upstream) = (server.await, upstream());
            let sent = server.send(&upstream, request.body(Body::Empty).unwrap()).await.unwrap();
            let upgraded = sent.response.extensions().get::<UpgradedUpstream>().unwrap();
            let mut tunnel = upgraded.take().unwrap();
            assert!(upgraded.take().is_none());
            assert_eq!(tunnel.read_ahead, "ahead");
            tunnel.io.write_all(b"ping").await.unwrap();
            let mut echoed = [0; 4];
            tunnel.io.read_exact(&mut echoed).await.unwrap();
            assert_eq!((&echoed, upstream.idle_connections()), (b"ping", 0));
        });
    }
}

#[test]
fn a_body_that_breaks_says_how() {
    local(async {
        for (answer, reason) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort"[..], Reason::UpstreamReset),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort", Reason::UpstreamReset),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n1\r\nx\r\n0x\r\n",
                Reason::BadResponse,
            ),
        ] {
            let server = Server::answering_once(answer).await;
            let upstream = upstream();
            let body = server.send(&upstream, get()).await.unwrap().response.into_body();
            assert_eq!(body.collect().await.unwrap_err().reason, reason);
            assert_eq!(upstream.idle_connections(), 0);
        }
    });
}

#[test]
fn a_request_given_up_takes_its_connection_along() {
    local(async {
        let (closed, seen) = oneshot::channel();
        let once = std::cell::RefCell::new(Some(closed));
        let (came, coming) = oneshot::channel();
        let came = std::cell::RefCell::new(Some(came));
        let server = Server::start(move |_, mut stream| {
            let (closed, came) = (once.borrow_mut().take(), came.borrow_mut().take());
            async move {
                read_head(&mut stream).await;
                came.unwrap().send(()).unwrap();
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
                closed.unwrap().send(()).unwrap();
            }
        });
        let (server, upstream) = (server.await, upstream());
        tokio::select! {
            _ = server.send(&upstream, get()) => panic!("no answer was given"),
            arrived = coming => arrived.unwrap(),
        }
        seen.await.unwrap();
        assert_eq!(upstream.idle_connections(), 0);
    });
}
