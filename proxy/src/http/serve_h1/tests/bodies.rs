//! Bodies in both directions: streamed, expected, unread, broken off.

use http_body::Frame;

use super::*;

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\n";

#[tokio::test]
async fn chunks_and_trailers_go_through() {
    run(&Site::echo(), Timeouts::default(), async |mut client: DuplexStream| {
        send(
            &mut client,
            format!("{POST}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nDigest: x\r\n\r\n"),
        )
        .await;
        let answer =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\ndigest: x\r\n\r\n";
        expect(&mut client, answer).await;
    })
    .await;
}

#[tokio::test]
async fn an_answer_flows_while_the_request_still_does() {
    run(&Site::echo(), Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, format!("{POST}Transfer-Encoding: chunked\r\n\r\n")).await;
        expect(&mut client, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        for word in ["one", "two", "six"] {
            send(&mut client, format!("3\r\n{word}\r\n")).await;
            expect(&mut client, format!("3\r\n{word}\r\n")).await;
        }
        send(&mut client, "0\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n").await;
        expect(&mut client, "0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    })
    .await;
}

#[tokio::test]
async fn a_body_in_pieces_is_counted_whole() {
    run(&Site::count(), Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, format!("{POST}Content-Length: 100000\r\n\r\n")).await;
        for _ in 0..10 {
            send(&mut client, vec![b'x'; 10_000]).await;
        }
        expect(&mut client, ok("100000")).await;
        send(&mut client, format!("{POST}Content-Length: 3\r\n\r\nabc")).await;
        expect(&mut client, ok("3")).await;
    })
    .await;
}

#[tokio::test]
async fn continue_is_said_when_the_body_is_wanted() {
    run(&Site::count(), Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, format!("{POST}Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")).await;
        expect(&mut client, "HTTP/1.1 100 Continue\r\n\r\n").await;
        send(&mut client, "abc").await;
        expect(&mut client, ok("3")).await;
        // A client that doesn't wait for it isn't told.
        send(&mut client, format!("{POST}Content-Length: 3\r\nExpect: 100-continue\r\n\r\na")).await;
        tokio::task::yield_now().await;
        send(&mut client, "bc").await;
        expect(&mut client, ok("3")).await;
    })
    .await;
}

#[tokio::test]
async fn a_refused_expectation_ends_the_connection() {
    run(&Site::hello(), Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, format!("{POST}Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")).await;
        expect_last(&mut client, ok_last("POST /")).await;
    })
    .await;
}

#[tokio::test]
async fn an_unread_body_does_not_poison_the_next_request() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = smuggled.len();
    for framed in [
        format!("Content-Length: {length}\r\n\r\n{smuggled}"),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{smuggled}\r\n0\r\n\r\n"),
    ] {
        run(&Site::hello(), Timeouts::default(), async |mut client: DuplexStream| {
            let text = format!("{POST}{framed}GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
            // Cut within the body, so that the answer is there first.
            let (start, rest) = text.split_at(text.len() - 60);
            send(&mut client, start).await;
            expect(&mut client, ok("POST /")).await;
            send(&mut client, rest).await;
            expect(&mut client, ok("GET /next")).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_long_unread_body_ends_the_connection() {
    // Known to be too long: the answer says so.
    run(&Site::hello(), Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, format!("{POST}Content-Length: 1000000\r\n\r\nxxx")).await;
        expect_last(&mut client, ok_last("POST /")).await;
    })
    .await;
    // Found to be too long: it just ends.
    run(&Site::hello(), Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, format!("{POST}Transfer-Encoding: chunked\r\n\r\n")).await;
        expect(&mut client, ok("POST /")).await;
        for _ in 0..8 {
            send(&mut client, format!("2710\r\n{}\r\n", "x".repeat(10_000))).await;
        }
        expect_last(&mut client, "").await;
    })
    .await;
}

#[tokio::test]
async fn a_malformed_body_fails_its_reader_and_the_connection() {
    run(&Site::count(), Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, format!("{POST}Transfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n")).await;
        expect_last(&mut client, ok_last("ambiguous-length")).await;
    })
    .await;
}

#[tokio::test]
async fn a_body_may_be_read_by_another_task() {
    let site = Site::new(|request: Request<Body>| async move {
        let read =
            tokio::task::spawn_local(async move { request.into_body().collect().await.unwrap().to_bytes() });
        Response::new(Body::full(read.await.unwrap()))
    });
    let test = run(&site, Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, format!("{POST}Content-Length: 6\r\n\r\nabc")).await;
        tokio::task::yield_now().await;
        send(&mut client, "def").await;
        expect(&mut client, ok("abcdef")).await;
    });
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_body_held_beyond_its_answer_fails() {
    let held: Rc<RefCell<Option<Body>>> = Rc::default();
    let keep = held.clone();
    let site = Site::new(move |request: Request<Body>| {
        *keep.borrow_mut() = Some(request.into_body());
        async { Response::new(Body::Empty) }
    });
    run(&site, Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, format!("{POST}Content-Length: 6\r\n\r\nabc")).await;
        expect(&mut client, ok("")).await;
    })
    .await;
    let error = held.take().unwrap().collect().await.unwrap_err();
    assert_eq!(error.reason, Reason::ClientClosed);
}

#[tokio::test]
async fn a_body_that_nobody_reads_stays_with_the_client() {
    let (near, mut far) = tokio::io::duplex(1024);
    let served = serve(near, Site::silent(), control(Timeouts::default()));
    tokio::pin!(served);
    let client = async {
        send(&mut far, format!("{POST}Content-Length: 100000\r\n\r\n")).await;
        send(&mut far, vec![b'x'; 100_000]).await;
    };
    tokio::select! {
        biased;
        _ = &mut served => panic!("ended"),
        () = client => panic!("the whole body was taken"),
        () = async { for _ in 0..1000 { tokio::task::yield_now().await } } => {}
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    let site = Site::new(|request: Request<Body>| async move {
        let (sender, body) = channel();
        sender.send(Ok(Frame::data(Bytes::from_static(b"half")))).unwrap();
        match request.uri().path() {
            "/reset" => sender.send(Err(BodyError::new(Reason::UpstreamReset))).unwrap(),
            "/short" => {}
            _ => sender.send(Ok(Frame::data(Bytes::from_static(b"too much")))).unwrap(),
        }
        let mut response = Response::new(body);
        if request.uri().path() != "/reset" {
            response.headers_mut().insert("content-length", http::HeaderValue::from_static("6"));
        }
        response
    });
    let cases = [
        ("/reset", "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        ("/short", "content-length: 6\r\n\r\nhalf"),
        ("/long", "content-length: 6\r\n\r\nhalf"),
    ];
    for (path, rest) in cases {
        let ended = run(&site, Timeouts::default(), async |mut client: DuplexStream| {
            send(&mut client, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            expect_last(&mut client, format!("HTTP/1.1 200 OK\r\n{rest}")).await;
        });
        assert!(matches!(ended.await, Ended::Closed));
    }
}

#[tokio::test]
async fn what_is_there_is_sent_before_the_rest_is_waited_for() {
    let (sender, body) = channel();
    let body = RefCell::new(Some(body));
    let site = Site::new(move |_| {
        let body = body.take().unwrap();
        async { Response::new(body) }
    });
    run(&site, Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        expect(&mut client, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        for word in ["a", "b"] {
            sender.send(Ok(Frame::data(Bytes::from_static(word.as_bytes())))).unwrap();
            expect(&mut client, format!("1\r\n{word}\r\n")).await;
        }
        drop(sender);
        expect(&mut client, "0\r\n\r\n").await;
    })
    .await;
}

#[tokio::test]
async fn a_large_answer_waits_for_its_client() {
    const SIZE: usize = 1 << 20;
    let site = Site::new(|_| async { Response::new(Body::full(vec![b'x'; SIZE])) });
    let (near, mut far) = tokio::io::duplex(1000);
    let client = async move {
        send(&mut far, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\nconnection: close\r\n\r\n");
        assert!(read.starts_with(head.as_bytes()));
        assert_eq!(read.len(), head.len() + SIZE);
    };
    tokio::join!(serve(near, site, control(Timeouts::default())), client);
}

#[tokio::test]
async fn a_body_read_elsewhere_fails_when_its_answer_is_refused() {
    let reader: Rc<RefCell<Option<tokio::task::JoinHandle<Reason>>>> = Rc::default();
    let keep = reader.clone();
    let site = Site::new(move |request: Request<Body>| {
        let read = async move { request.into_body().collect().await.unwrap_err().reason };
        *keep.borrow_mut() = Some(tokio::task::spawn_local(read));
        async {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response
        }
    });
    let test = async {
        run(&site, Timeouts::default(), async |mut client: DuplexStream| {
            send(&mut client, format!("{POST}Content-Length: 6\r\n\r\nabc")).await;
            expect(&mut client, "HTTP/1.1 502 Bad Gateway\r\n").await;
        })
        .await;
        let reader = reader.take().unwrap();
        assert_eq!(reader.await.unwrap(), Reason::BadResponse);
    };
    tokio::task::LocalSet::new().run_until(test).await;
}
