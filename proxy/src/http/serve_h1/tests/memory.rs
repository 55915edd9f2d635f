//! What a connection costs while it waits.

use super::*;

#[tokio::test]
async fn the_future_is_small() {
    let (near, _far) = tokio::io::duplex(64);
    let io_size = size_of_val(&near);
    let served = serve(near, Site::hello(), control(Timeouts::default()));
    let size = size_of_val(&served) - io_size - size_of::<Site>();
    assert!(size <= 256, "{size}");
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let mut served = serve(near, Site::echo(), control(Timeouts::default()));
    for text in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ] {
        send(&mut far, text).await;
        let polled = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut served).poll(cx)));
        assert!(polled.await.is_pending());
        let mut answer = [0; 1024];
        assert_ne!(far.read(&mut answer).await.unwrap(), 0);
        assert!(served.holds_no_buffer(), "after {text:?}");
    }
}
