//! The HTTP/2 client against servers that do it right, wrong and not at all.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason as H2Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::net::TcpStream;

use crate::body::{Body, BodyError};
use crate::decision::Reason;
use crate::upstream::testing::*;
use crate::upstream::{HopProtocol, SendError, Sent, Settings, Upstream};

type Asked = http::Request<RecvStream>;

/// An HTTP/2 server that gives each request to a script.
async fn serving<F>(script: impl Fn(Asked, SendResponse<Bytes>) -> F + 'static) -> Server
where
    F: Future<Output = ()> + 'static,
{
    let script = Rc::new(script);
    Server::start(move |_, stream| {
        let script = Rc::clone(&script);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::task::spawn_local(script(request, respond));
            }
        }
    })
    .await
}

async fn answer(_: Asked, mut respond: SendResponse<Bytes>) {
    let mut body = respond.send_response(Response::new(()), false).unwrap();
    body.send_data(Bytes::from_static(b"ok"), true).unwrap();
}

async fn send(
    server: &Server,
    upstream: &Rc<Upstream>,
    request: http::Request<Body>,
) -> Result<Sent, SendError> {
    let mut request = request;
    upstream.send(&server.hop(upstream, HopProtocol::Http2), &mut request).await
}

#[test]
fn one_connection_serves_requests_at_once() {
    local(async {
        let (server, upstream) = (serving(answer).await, upstream());
        let requests = (0..50).map(|_| send(&server, &upstream, get()));
        for sent in futures_util::future::join_all(requests).await {
            let sent = sent.unwrap();
            assert_eq!(sent.facts.endpoint, server.address);
            assert_eq!(whole(sent).await, (200, Bytes::from_static(b"ok")));
        }
        assert_eq!(server.accepted(), 1);
    });
}

#[test]
fn more_streams_than_the_cap_open_another_connection() {
    local(async {
        let settings = Settings { max_streams: 2, max_h2_connections: 3, ..Settings::default() };
        let (server, upstream) = (serving(answer).await, upstream_with(settings));
        // Unread bodies hold their streams.
        let mut open = Vec::new();
        for expected in [1, 1, 2, 2, 3, 3, 3, 3] {
            open.push(send(&server, &upstream, get()).await.unwrap());
            assert_eq!(server.accepted(), expected);
        }
        open.clear();
        send(&server, &upstream, get()).await.unwrap();
        assert_eq!(server.accepted(), 3);
    });
}

/// Requests that come at once, while the first connection is being opened, fill it and open the next.
#[test]
fn those_who_find_no_room_in_the_connection_that_they_waited_for_open_another() {
    local(async {
        let settings = Settings { max_streams: 100, max_h2_connections: 2, ..Settings::default() };
        let server = serving(|asked, respond| async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            answer(asked, respond).await;
        });
        let (server, upstream) = (server.await, upstream_with(settings));
        let requests = (0..400).map(|_| send(&server, &upstream, get()));
        for sent in futures_util::future::join_all(requests).await {
            assert_eq!(whole(sent.unwrap()).await.0, 200);
        }
        assert_eq!(server.accepted(), 2);
    });
}

/// A server that ends every connection of which it took the start is asked a few times, and no more.
#[test]
fn connections_that_are_of_no_use_are_not_opened_for_ever() {
    local(async {
        let (server, upstream) = (Server::start(|_, _| async {}).await, upstream());
        let requests = (0..250).map(|_| send(&server, &upstream, get()));
        let sent = futures_util::future::join_all(requests).await;
        assert!(sent.iter().all(Result::is_err));
        assert!(server.accepted() <= 250 * 3, "{}", server.accepted());
    });
}

#[test]
fn the_head_is_made_for_http2() {
    local(async {
        let server = serving(|request: Asked, mut respond| async move {
            assert_eq!(request.uri().to_string(), "http://server.test/path?query");
            let mut names: Vec<_> = request.headers().keys().map(|name| name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, ["te", "x-kept", "x-padded"]);
            assert_eq!(request.headers()["x-padded"], "1");
            respond.send_response(Response::new(()), true).unwrap();
        });
        let mut request = get();
        for (name, value) in [
            ("connection", "keep-alive, x"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-connection", "close"),
            ("te", "trailers"),
            ("x-kept", "1"),
            ("x-padded", " 1\t"),
        ] {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        let sent = send(&server.await, &upstream(), request).await.unwrap();
        assert!(matches!(sent.response.body(), Body::Empty));
    });
}

#[test]
fn bodies_and_trailers_both_ways() {
    local(async {
        let server = serving(|request: Asked, mut respond| async move {
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            let mut asked = request.into_body();
            while let Some(data) = asked.data().await {
                let data = data.unwrap();
                asked.flow_control().release_capacity(data.len()).unwrap();
                body.send_data(data, false).unwrap();
            }
            body.send_trailers(asked.trailers().await.unwrap().unwrap()).unwrap();
        });
        let (feed, body) = fed(None);
        let (server, upstream) = (server.await, upstream());
        let mut echo = send(&server, &upstream, request("POST", body)).await.unwrap().response.into_body();
        for piece in [b"aa", b"bb"] {
            feed.send(data(piece)).unwrap();
            assert_eq!(&echo.frame().await.unwrap().unwrap().into_data().unwrap()[..], piece);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        feed.send(Ok(Frame::trailers(trailers))).unwrap();
        drop(feed);
        let collected = echo.collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    });
}

#[test]
fn a_closed_connection_is_replaced() {
    local(async {
        // One request a connection, then GOAWAY.
        let server = Server::start(|_, stream: TcpStream| async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let (request, respond) = connection.accept().await.unwrap().unwrap();
            connection.graceful_shutdown();
            tokio::task::spawn_local(answer(request, respond));
            while connection.accept().await.is_some() {}
        });
        let (server, upstream) = (server.await, upstream());
        for count in 1..=3 {
            let sent = send(&server, &upstream, request("POST", Body::full("x"))).await.unwrap();
            assert_eq!(whole(sent).await.0, 200);
            server.until_ended(count).await;
            assert_eq!(server.accepted(), count);
        }
    });
}

async fn reset_with(reason: H2Reason) -> Reason {
    let server = serving(move |_, mut respond| async move { respond.send_reset(reason) });
    let error = send(&server.await, &upstream(), get()).await.expect_err("reset");
    assert!(!error.whole && error.facts.is_some() && error.reject.detail.is_some());
    error.reject.reason
}

#[test]
fn resets_before_a_response_have_reasons() {
    local(async {
        assert_eq!(reset_with(H2Reason::REFUSED_STREAM).await, Reason::IdleRace);
        assert_eq!(reset_with(H2Reason::INTERNAL_ERROR).await, Reason::ResetBeforeResponse);
    });
}

#[test]
fn a_reset_in_the_middle_of_a_body_is_told() {
    local(async {
        let server = serving(|_, mut respond| async move {
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"half"), false).unwrap();
            turn().await;
            body.send_reset(H2Reason::CANCEL);
        });
        let sent = send(&server.await, &upstream(), get()).await.unwrap();
        assert_eq!(sent.response.into_body().collect().await.unwrap_err().reason, Reason::UpstreamReset);
    });
}

#[test]
fn a_server_that_speaks_http1_is_told() {
    local(async {
        let server = Server::start(|_, mut stream| async move {
            use tokio::io::AsyncWriteExt;
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            read_head(&mut stream).await;
        });
        let error = send(&server.await, &upstream(), get()).await.expect_err("not HTTP/2");
        assert!(matches!(error.reject.reason, Reason::ResetBeforeResponse | Reason::BadResponse), "{error}");
    });
}

#[test]
fn nobody_listens_and_all_who_wait_are_told() {
    local(async {
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let upstream = upstream();
        let hop = upstream.hop_to(gone, crate::upstream::HopTls::Plaintext, HopProtocol::Http2, TIMEOUT);
        let sends = (0..3).map(|_| async { upstream.send(&hop, &mut get()).await });
        for sent in futures_util::future::join_all(sends).await {
            let error = sent.expect_err("refused");
            assert_eq!(error.reject.reason, Reason::ConnectRefused);
            assert!(error.whole && error.reject.detail.is_some());
        }
    });
}

#[test]
fn a_dial_given_up_by_one_goes_on_for_others() {
    local(async {
        let (server, upstream) = (serving(answer).await, upstream());
        let hop = server.hop(&upstream, HopProtocol::Http2);
        let mut asked = [get(), get()];
        let [one, other] = &mut asked;
        let mut first = Box::pin(upstream.send(&hop, one));
        let mut second = Box::pin(upstream.send(&hop, other));
        assert!(futures_util::FutureExt::now_or_never(&mut first).is_none());
        assert!(futures_util::FutureExt::now_or_never(&mut second).is_none());
        drop(first);
        assert_eq!(whole(second.await.unwrap()).await.0, 200);
        assert_eq!(server.accepted(), 1);
    });
}

#[test]
fn a_request_given_up_is_cancelled() {
    local(async {
        let (tell, told) = tokio::sync::oneshot::channel();
        let (came, coming) = tokio::sync::oneshot::channel();
        let once = RefCell::new(Some((tell, came)));
        let server = serving(move |_, mut respond| {
            let once = once.borrow_mut().take();
            async move {
                let (tell, came) = once.unwrap();
                came.send(()).unwrap();
                let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
                tell.send(reason).unwrap();
            }
        });
        let (server, upstream) = (server.await, upstream());
        // Another stream keeps the connection.
        tokio::select! {
            _ = send(&server, &upstream, get()) => panic!("no answer was given"),
            arrived = coming => arrived.unwrap(),
        }
        assert_eq!(told.await.unwrap(), H2Reason::CANCEL);
    });
}

#[test]
fn a_connection_that_answers_nothing_gets_no_more_requests() {
    local(async {
        // The first connection swallows everything.
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let server = Server::start(move |number, stream: TcpStream| {
            let tell = tell.clone();
            async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut swallowed = Vec::new();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    if number > 0 {
                        tokio::task::spawn_local(answer(request, respond));
                    } else {
                        swallowed.push((request, respond));
                        tell.send(()).unwrap();
                    }
                }
            }
        });
        let (server, upstream) = (server.await, upstream());
        for _ in 0..10 {
            tokio::select! {
                _ = send(&server, &upstream, get()) => panic!("no answer was given"),
                arrived = told.recv() => arrived.unwrap(),
            }
        }
        // Those were given up at once, which says nothing about the server.
        let given_up = (0..5).map(|_| tokio::time::timeout(LONG_ENOUGH, send(&server, &upstream, get())));
        assert!(futures_util::future::join_all(given_up).await.iter().all(Result::is_err));
        assert_eq!(server.accepted(), 1);
        assert_eq!(whole(send(&server, &upstream, get()).await.unwrap()).await.0, 200);
        assert_eq!(server.accepted(), 2);
    });
}

/// Time in which a server answers that does.
const LONG_ENOUGH: Duration = Duration::from_millis(150);

/// One that hangs keeps its connection, others are given up on it: again and again, that would be connections without end.
#[test]
fn connections_that_answer_nothing_count_and_serve_when_there_may_be_no_other() {
    local(async {
        let settings = Settings { max_h2_connections: 2, ..Settings::default() };
        let server = serving(|asked, respond| async move {
            if asked.method() == "POST" {
                return answer(asked, respond).await;
            }
            std::future::pending().await
        });
        let (server, upstream) = (server.await, upstream_with(settings));
        let mut hanging = Vec::new();
        for _ in 0..4 {
            let sent = (0..6).map(|_| Box::pin(send(&server, &upstream, get())));
            let mut sent: Vec<_> = sent.collect();
            let all = futures_util::future::join_all(sent.iter_mut());
            assert!(tokio::time::timeout(LONG_ENOUGH, all).await.is_err());
            hanging.extend(sent.pop());
        }
        assert_eq!(server.accepted(), 2);
        let served = send(&server, &upstream, request("POST", Body::full("x"))).await.unwrap();
        assert_eq!(whole(served).await.0, 200);
        assert_eq!(server.accepted(), 2);
    });
}

#[test]
fn a_client_that_leaves_resets_the_stream() {
    local(async {
        let server = serving(|request: Asked, mut respond| async move {
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.data().await {}
            respond.send_reset(H2Reason::CANCEL);
        });
        let (feed, body) = fed(None);
        feed.send(data(b"half")).unwrap();
        feed.send(Err(BodyError::new(Reason::ClientClosed))).unwrap();
        let error = send(&server.await, &upstream(), request("POST", body)).await.expect_err("left");
        assert_eq!(error.reject.reason, Reason::ResetBeforeResponse);
    });
}

#[test]
fn an_idle_connection_is_closed() {
    local_paused(async {
        let settings = Settings { idle_timeout: Duration::from_secs(8), ..Settings::default() };
        let (server, upstream) = (serving(answer).await, upstream_with(settings));
        whole(send(&server, &upstream, get()).await.unwrap()).await;
        server.until_ended(1).await;
        whole(send(&server, &upstream, get()).await.unwrap()).await;
        assert_eq!(server.accepted(), 2);
    });
}

#[test]
fn close_idle_moves_new_requests_to_new_connections() {
    local(async {
        let (server, upstream) = (serving(answer).await, upstream());
        let before = send(&server, &upstream, get()).await.unwrap();
        upstream.close_idle();
        whole(send(&server, &upstream, get()).await.unwrap()).await;
        assert_eq!(server.accepted(), 2);
        assert_eq!(whole(before).await.0, 200, "a stream under way goes on");
    });
}
