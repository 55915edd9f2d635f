//! The same over real sockets, where closing can also mean a reset.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::*;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(listener.accept(), TcpStream::connect(address));
    (near.unwrap().0, far.unwrap())
}

async fn run_tcp<F>(site: &Site, client: impl FnOnce(TcpStream) -> F) -> Ended<TcpStream, Body>
where
    F: Future<Output = ()>,
{
    let (near, far) = pair().await;
    let both = async { tokio::join!(serve(near, site.clone(), control(Timeouts::default())), client(far)).0 };
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("it hangs")
}

#[tokio::test]
async fn a_large_body_goes_both_ways_at_once() {
    const SIZE: usize = 8 << 20;
    run_tcp(&Site::echo(), async |mut client: TcpStream| {
        let (mut read, mut write) = client.split();
        let sent: Vec<u8> = (0..SIZE).map(|n| (n / 7) as u8).collect();
        let sending = async {
            send(&mut write, format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n")).await;
            send(&mut write, &sent).await;
        };
        let receiving = async {
            expect(&mut read, format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n")).await;
            let mut received = vec![0; SIZE];
            read.read_exact(&mut received).await.unwrap();
            received
        };
        let ((), received) = tokio::join!(sending, receiving);
        assert!(received == sent);
    })
    .await;
}

#[tokio::test]
async fn a_reset_drops_the_answer_at_once() {
    let asked = Rc::new(Notify::new());
    let tell = asked.clone();
    let site = Site::new(move |_| {
        tell.notify_one();
        std::future::pending()
    });
    run_tcp(&site, async |mut client: TcpStream| {
        send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        asked.notified().await;
        client.set_zero_linger().unwrap();
        drop(client);
    })
    .await;
    assert_eq!(site.abandoned.get(), 1);
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer() {
    let closed = Rc::new(Notify::new());
    let wait = closed.clone();
    let site = Site::new(move |_| {
        let wait = wait.clone();
        async move {
            wait.notified().await;
            Response::new(Body::full("late"))
        }
    });
    run_tcp(&site, async |mut client: TcpStream| {
        send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.shutdown().await.unwrap();
        closed.notify_one();
        expect_last(&mut client, ok("late")).await;
    })
    .await;
    assert_eq!(site.abandoned.get(), 0);
}

#[tokio::test]
async fn a_client_that_is_refused_while_it_sends_sees_the_answer() {
    let site = Site::hello();
    run_tcp(&site, async |mut client: TcpStream| {
        send(&mut client, "POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n").await;
        // Bytes on the way when the connection closes must not reset the answer away.
        for _ in 0..20 {
            send(&mut client, [b'x'; 5000]).await;
            tokio::task::yield_now().await;
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    })
    .await;
    assert_eq!(site.refusals(), [Reason::MalformedRequest]);
}

#[tokio::test]
async fn a_long_answer_to_a_client_that_left_is_dropped() {
    let dropped = Rc::new(());
    let held = dropped.clone();
    let site = Site::new(move |_| {
        let held = held.clone();
        async move {
            let endless = futures_util::stream::repeat_with(move || {
                let _ = &held;
                Ok(http_body::Frame::data(Bytes::from_static(&[0; 8192])))
            });
            Response::new(Body::Stream(Box::pin(http_body_util::StreamBody::new(endless))))
        }
    });
    let ended = run_tcp(&site, async |mut client: TcpStream| {
        send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        expect(&mut client, "HTTP/1.1 200 OK\r\n").await;
    })
    .await;
    assert!(matches!(ended, Ended::Closed));
    drop(site);
    assert_eq!(Rc::strong_count(&dropped), 1);
}
