//! Responses as they should be, and as they should not.

use bytes::Bytes;
use http::Request;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{OK, refusal};
use crate::body::Body;
use crate::decision::{Reason, Stage};
use crate::upstream::UpgradedUpstream;
use crate::upstream::testing::*;

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
