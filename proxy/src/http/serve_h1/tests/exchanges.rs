//! Requests and answers: order, versions, framing, refusals, upgrades.

use http_body::Frame;

use super::*;

#[tokio::test]
async fn requests_follow_each_other() {
    let ended = run(&Site::hello(), Timeouts::default(), async |mut client: DuplexStream| {
        for path in ["/a", "/b", "/c"] {
            send(&mut client, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            expect(&mut client, ok(&format!("GET {path}"))).await;
        }
    })
    .await;
    assert!(matches!(ended, Ended::Closed));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_in_one_write() {
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let io = Counted::new(near);
    let (reads, writes) = (io.reads.clone(), io.writes.clone());
    let served = serve(io, Site::hello(), control(Timeouts::default()));
    let client = async move {
        let text = ["/a", "/b", "/c"].map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).concat();
        send(&mut far, text).await;
        expect(&mut far, [ok("GET /a"), ok("GET /b"), ok("GET /c")].concat()).await;
        assert_eq!((reads.get(), writes.get()), (1, 1));
    };
    tokio::join!(served, client);
}

#[tokio::test]
async fn a_request_costs_one_read_and_one_write() {
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let io = Counted::new(near);
    let (reads, writes) = (io.reads.clone(), io.writes.clone());
    let served = serve(io, Site::echo(), control(Timeouts::default()));
    let client = async move {
        for round in 1..=3 {
            send(&mut far, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").await;
            expect(&mut far, ok("hello")).await;
            assert_eq!((reads.get(), writes.get()), (round, round));
        }
    };
    tokio::join!(served, client);
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte() {
    run(&Site::echo(), Timeouts::default(), async |mut client: DuplexStream| {
        for byte in
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n"
        {
            send(&mut client, [*byte]).await;
            tokio::task::yield_now().await;
        }
        let expected = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        expect(&mut client, expected).await;
        // However the data was cut, trailers and end are there.
        let mut rest = Vec::new();
        while !rest.ends_with(b"0\r\nt: v\r\n\r\n") {
            assert_ne!(client.read_buf(&mut rest).await.unwrap(), 0, "{}", rest.escape_ascii());
        }
    })
    .await;
}

#[tokio::test]
async fn the_old_version_is_closed_unless_it_asks() {
    let cases = [
        ("", true, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nGET /"),
        (
            "Connection: keep-alive\r\n",
            false,
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\nGET /",
        ),
    ];
    for (field, closes, answer) in cases {
        run(&Site::hello(), Timeouts::default(), async |mut client: DuplexStream| {
            send(&mut client, format!("GET / HTTP/1.0\r\n{field}\r\n")).await;
            if closes {
                expect_last(&mut client, answer).await;
            } else {
                expect(&mut client, answer).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_ends_as_the_version_allows() {
    let site = Site::new(|_| async {
        let (sender, body) = channel();
        sender.send(Ok(Frame::data(Bytes::from_static(b"hi")))).unwrap();
        Response::new(body)
    });
    run(&site, Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        expect(&mut client, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
            .await;
        send(&mut client, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        expect_last(&mut client, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhi").await;
    })
    .await;
}

#[tokio::test]
async fn some_answers_have_no_body() {
    let site = Site::new(|request: Request<Body>| async move {
        let status = request.uri().path()[1..].parse().unwrap_or(200);
        let mut response = Response::new(Body::full("body"));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
    });
    let cases = [
        ("HEAD /200", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"),
        ("GET /204", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET /304", "HTTP/1.1 304 Not Modified\r\n\r\n"),
        ("GET /200", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"),
    ];
    run(&site, Timeouts::default(), async |mut client: DuplexStream| {
        for (line, answer) in cases {
            send(&mut client, format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            expect(&mut client, answer).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_length_of_an_upstream_head_answer_is_passed_on() {
    let site = Site::new(|_| async {
        let mut response = Response::new(Body::Empty);
        response.headers_mut().insert("content-length", http::HeaderValue::from_static("99"));
        response
    });
    run(&site, Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        expect(&mut client, "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n").await;
    })
    .await;
}

#[tokio::test]
async fn either_side_may_end_the_connection() {
    run(&Site::hello(), Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        expect_last(&mut client, ok_last("GET /")).await;
    })
    .await;
    let site = Site::new(|_| async {
        let mut response = Response::new(Body::Empty);
        response.headers_mut().insert("connection", http::HeaderValue::from_static("x, Close"));
        response
    });
    run(&site, Timeouts::default(), async |mut client: DuplexStream| {
        send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        expect_last(&mut client, ok_last("")).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_not_a_request_is_refused_and_recorded() {
    let long = format!("GET /long?x HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(h1::MAX_HEAD));
    let cases = [
        ("GET /p?q HTTP/1.1\r\n\r\n", "400 Bad Request", Reason::MalformedRequest, Some("GET"), Some("/p")),
        (
            "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "400 Bad Request",
            Reason::AmbiguousLength,
            Some("POST"),
            Some("/p"),
        ),
        (&long, "431 Request Header Fields Too Large", Reason::HeaderTooLarge, Some("GET"), Some("/long")),
        ("\x16\x03\x01\x02\0\x01", "400 Bad Request", Reason::MalformedRequest, None, None),
    ];
    for (text, status, reason, method, path) in cases {
        let site = Site::hello();
        run(&site, Timeouts::default(), async |mut client: DuplexStream| {
            send(&mut client, text).await;
            let word = reason.as_str();
            let length = word.len();
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{word}");
            expect_last(&mut client, answer).await;
        })
        .await;
        let refused = site.refused.borrow();
        let (recorded, partial) = &refused[0];
        assert_eq!((refused.len(), *recorded), (1, reason));
        assert_eq!((partial.method.as_ref().map(Method::as_str), partial.path.as_deref()), (method, path));
    }
}

#[tokio::test]
async fn what_precedes_a_refused_request_is_answered() {
    let site = Site::hello();
    run(&site, Timeouts::default(), async |mut client: DuplexStream| {
        send(
            &mut client,
            "GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
        expect(&mut client, ok("GET /a")).await;
        expect(&mut client, "HTTP/1.1 400 Bad Request\r\n").await;
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert!(!rest.contains("GET /c"), "{rest}");
    })
    .await;
    assert_eq!(site.refusals(), [Reason::MalformedRequest]);
}

#[tokio::test]
async fn an_upgrade_hands_the_connection_on() {
    let site = Site::new(|request: Request<Body>| async move {
        assert!(request.extensions().get::<CanUpgrade>().is_some());
        let mut response = Response::new(Body::Empty);
        if request.method() != Method::CONNECT {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("upgrade", http::HeaderValue::from_static("echo"));
        }
        response.extensions_mut().insert("upstream half");
        response
    });
    let cases = [
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nahead",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n",
        ),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nahead", "HTTP/1.1 200 OK\r\n\r\n"),
    ];
    for (request, answer) in cases {
        let ended = run(&site, Timeouts::default(), async |mut client: DuplexStream| {
            send(&mut client, request).await;
            expect(&mut client, answer).await;
        })
        .await;
        let Ended::Tunnel { read_ahead, response, .. } = ended else { panic!("{ended:?}") };
        assert_eq!(read_ahead, "ahead");
        assert_eq!(response.extensions().get::<&str>(), Some(&"upstream half"));
    }
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_not_passed_on() {
    let site = Site::new(|_| async {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response
    });
    for request in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"] {
        run(&site, Timeouts::default(), async |mut client: DuplexStream| {
            send(&mut client, request).await;
            expect(&mut client, "HTTP/1.1 502 Bad Gateway\r\n").await;
        })
        .await;
    }
    assert_eq!(site.refusals(), [Reason::BadResponse; 2]);
}
