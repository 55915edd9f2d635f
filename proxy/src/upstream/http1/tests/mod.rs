//! The HTTP/1 client against servers that do it right, wrong, late and not at all.

mod requests;
mod responses;
mod reuse;

use crate::upstream::SendError;
use crate::upstream::testing::{Server, get, upstream};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Sends a GET to a server that answers once with `answer`.
async fn refusal(answer: impl Into<Vec<u8>>) -> SendError {
    let server = Server::answering_once(answer).await;
    server.send(&upstream(), get()).await.expect_err("refused")
}
