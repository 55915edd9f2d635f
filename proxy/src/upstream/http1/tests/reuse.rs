//! Which connections serve another request, and what becomes of a request whose connection is lost.

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::{OK, refusal};
use crate::body::Body;
use crate::decision::{Reason, Stage};
use crate::upstream::testing::*;
use crate::upstream::{HopProtocol, HopTls};

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
        let once = RefCell::new(Some((poisoned, done)));
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
fn a_connection_lost_before_a_response_is_told() {
    local(async {
        let error = refusal(&b""[..]).await;
        assert_eq!(error.reject.reason, Reason::ResetBeforeResponse);
        assert!(error.whole && !error.reject.before_request());
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
        let error = upstream.send(&hop, &mut request("POST", body)).await.expect_err("refused");
        assert_eq!((error.reject.stage, error.reject.reason), (Stage::Connect, Reason::ConnectRefused));
        assert!(error.reject.before_request() && error.whole && error.facts.is_none());
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
        assert!(error.whole, "the caller may decide otherwise");
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

#[test]
fn a_request_given_up_takes_its_connection_along() {
    local(async {
        let (closed, seen) = oneshot::channel();
        let once = RefCell::new(Some(closed));
        let (came, coming) = oneshot::channel();
        let came = RefCell::new(Some(came));
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
