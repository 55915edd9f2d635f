//! Clients that leave or stall at every stage, and connections told to finish.

use tokio::time::Instant;

use super::*;
use crate::drain::Word;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn short() -> Timeouts {
    Timeouts {
        head: Duration::from_secs(2),
        idle: Duration::from_secs(10),
        body: Duration::from_secs(3),
        write: Duration::from_secs(4),
        half_close: Duration::from_secs(5),
    }
}

#[tokio::test]
async fn leaving_between_requests_is_no_event() {
    let site = Site::hello();
    run(&site, short(), async |mut client: DuplexStream| {
        send(&mut client, GET).await;
        expect(&mut client, ok("GET /")).await;
    })
    .await;
    run(&site, short(), async |_| {}).await;
    assert_eq!(site.refusals(), []);
}

#[tokio::test]
async fn leaving_within_a_head_is_recorded() {
    let site = Site::hello();
    run(&site, short(), async |mut client: DuplexStream| send(&mut client, "GET /half HTT").await).await;
    let refused = site.refused.borrow();
    assert_eq!((refused.len(), refused[0].0), (1, Reason::ClientClosed));
    assert_eq!(refused[0].1.path.as_deref(), Some("/half"));
}

#[tokio::test]
async fn leaving_within_a_body_drops_the_answer() {
    let site = Site::count();
    run(&site, short(), async |mut client: DuplexStream| {
        send(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").await;
    })
    .await;
    assert_eq!(site.abandoned.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn leaving_before_the_answer_drops_it_after_a_while() {
    for (half_close, waits) in [(0, 0), (5, 5)] {
        let site = Site::silent();
        let start = Instant::now();
        let timeouts = Timeouts { half_close: Duration::from_secs(half_close), ..short() };
        run(&site, timeouts, async |mut client: DuplexStream| send(&mut client, GET).await).await;
        assert_eq!((site.abandoned.get(), start.elapsed().as_secs()), (1, waits));
    }
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_client_gets_its_answers() {
    let site = Site::new(|request: Request<Body>| async move {
        tokio::time::sleep(Duration::from_secs(4)).await;
        Response::new(Body::full(request.uri().path().to_owned()))
    });
    run(&site, short(), async |mut client: DuplexStream| {
        send(&mut client, [GET, GET].concat()).await;
        client.shutdown().await.unwrap();
        expect_last(&mut client, [ok("/"), ok("/")].concat()).await;
    })
    .await;
    assert_eq!(site.abandoned.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_without_a_word() {
    let site = Site::hello();
    let start = Instant::now();
    run(&site, short(), async |mut client: DuplexStream| {
        expect_last(&mut client, "").await;
        assert_eq!(start.elapsed().as_secs(), 10);
    })
    .await;
    let start = Instant::now();
    run(&site, short(), async |mut client: DuplexStream| {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            send(&mut client, GET).await;
            expect(&mut client, ok("GET /")).await;
        }
        expect_last(&mut client, "").await;
        assert_eq!(start.elapsed().as_secs(), 28);
    })
    .await;
    assert_eq!(site.refusals(), []);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_takes_too_long_is_refused() {
    let site = Site::hello();
    run(&site, short(), async |mut client: DuplexStream| {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let start = Instant::now();
        // A byte now and then doesn't help.
        let drip = async {
            for byte in b"GET /slow HTTP/1.1\r\nX: aaaaaaaaaaaaaaaaaaa" {
                if client.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            client
        };
        let mut client = drip.await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 408 Request Timeout\r\n") && answer.ends_with("client-stalled"),
            "{answer}"
        );
        assert!(start.elapsed().as_secs() < 6);
    })
    .await;
    assert_eq!(site.refusals(), [Reason::ClientStalled]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_fails_its_reader() {
    run(&Site::count(), short(), async |mut client: DuplexStream| {
        send(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n").await;
        for byte in [b"a", b"b"] {
            tokio::time::sleep(Duration::from_secs(2)).await;
            send(&mut client, byte).await;
        }
        let start = Instant::now();
        expect(&mut client, ok_last("client-stalled")).await;
        assert_eq!(start.elapsed().as_secs(), 3);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_given_up() {
    let site = Site::new(|_| async { Response::new(Body::full(vec![0; 1 << 20])) });
    let (near, mut far) = tokio::io::duplex(1024);
    let start = Instant::now();
    let served = serve(near, site, control(short()));
    let client = async {
        send(&mut far, GET).await;
        far
    };
    let (ended, _far) = tokio::join!(served, client);
    assert!(matches!(ended, Ended::Closed));
    assert_eq!(start.elapsed().as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_little_is_not() {
    let site = Site::new(|_| async { Response::new(Body::full(vec![b'x'; 10_000])) });
    let (near, mut far) = tokio::io::duplex(1000);
    let client = async move {
        send(&mut far, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let mut read = Vec::new();
        loop {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let mut piece = [0; 1000];
            match far.read(&mut piece).await.unwrap() {
                0 => break,
                count => read.extend_from_slice(&piece[..count]),
            }
        }
        assert_eq!(read.iter().filter(|byte| **byte == b'x').count(), 10_000);
    };
    tokio::join!(serve(near, site, control(short())), client);
}

#[tokio::test]
async fn draining_closes_an_idle_connection_at_once() {
    let control = control(Timeouts::default());
    let drain = control.drain.clone();
    let (near, mut far) = tokio::io::duplex(1024);
    let client = async {
        send(&mut far, GET).await;
        expect(&mut far, ok("GET /")).await;
        drain.tell(Word::Finish);
        expect_last(&mut far, "").await;
    };
    let (ended, ()) = tokio::join!(serve(near, Site::hello(), control), client);
    assert!(matches!(ended, Ended::Closed));
}

#[tokio::test]
async fn draining_lets_a_busy_connection_answer() {
    let control = control(Timeouts::default());
    let drain = control.drain.clone();
    let (near, mut far) = tokio::io::duplex(1024);
    let answer = Rc::new(tokio::sync::Notify::new());
    let wait = answer.clone();
    let site = Site::new(move |_| {
        let wait = wait.clone();
        async move {
            wait.notified().await;
            Response::new(Body::Empty)
        }
    });
    let client = async {
        send(&mut far, GET).await;
        tokio::task::yield_now().await;
        drain.tell(Word::Finish);
        tokio::task::yield_now().await;
        answer.notify_one();
        expect_last(&mut far, ok_last("")).await;
    };
    tokio::join!(serve(near, site, control), client);
}

#[tokio::test]
async fn a_request_that_came_with_the_drain_is_answered() {
    let control = control(Timeouts::default());
    let drain = control.drain.clone();
    let (near, mut far) = tokio::io::duplex(1024);
    send(&mut far, GET).await;
    drain.tell(Word::Finish);
    let client = async { expect_last(&mut far, ok_last("GET /")).await };
    tokio::join!(serve(near, Site::hello(), control), client);
}
