//! HTTP/1.1 load: the request's bytes are made once, responses are parsed no further than their end.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Counts, Request};

const LARGEST_HEAD: usize = 16 * 1024;

/// Sends on one connection until told to stop.
pub(super) async fn send(target: SocketAddr, request: Request, counts: &Counts) -> Result<()> {
    let mut stream = TcpStream::connect(target).await.context("connect")?;
    stream.set_nodelay(true)?;
    let request = encode(request);
    let mut buffer = Vec::with_capacity(4096);
    while !counts.stopping() {
        let sent = Instant::now();
        let status = exchange(&mut stream, &request, &mut buffer).await?;
        counts.answered(status, sent);
    }
    Ok(())
}

/// One request on a fresh connection.
pub(super) async fn ask(target: SocketAddr, request: Request) -> Result<u16> {
    let mut stream = TcpStream::connect(target).await.context("connect")?;
    exchange(&mut stream, &encode(request), &mut Vec::new()).await
}

/// The bytes of a request.
pub fn encode(request: Request) -> Vec<u8> {
    let Request { authority, path, tenant, token } = request;
    let tenant = tenant.map(|tenant| format!("x-tenant: {tenant}\r\n")).unwrap_or_default();
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    format!(
        "GET {path} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: writ-compare\r\naccept: */*\r\n{tenant}{token}\r\n"
    )
    .into_bytes()
}

/// Writes `request` and reads one whole response; `buffer` is scratch space. Gives the status.
pub async fn exchange<IO>(io: &mut IO, request: &[u8], buffer: &mut Vec<u8>) -> Result<u16>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    io.write_all(request).await.context("write the request")?;
    io.flush().await.context("write the request")?;
    buffer.clear();
    let (status, whole) = loop {
        ensure!(io.read_buf(buffer).await.context("read the response")? > 0, "closed before a response");
        if let Some(head) = parse_head(buffer)? {
            break head;
        }
        ensure!(buffer.len() < LARGEST_HEAD, "response head over {LARGEST_HEAD} bytes");
    };
    while buffer.len() < whole {
        ensure!(io.read_buf(buffer).await.context("read the response")? > 0, "closed within a response");
    }
    ensure!(buffer.len() == whole, "{} bytes after the response", buffer.len() - whole);
    Ok(status)
}

/// Status, and length of head and body together; `None` while the head is not whole.
fn parse_head(bytes: &[u8]) -> Result<Option<(u16, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).context("parse the response")? else {
        return Ok(None);
    };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let Some(length) = length else { bail!("response without a content-length") };
    let length: usize = std::str::from_utf8(length.value)?.parse().context("content-length")?;
    Ok(Some((response.code.unwrap_or(0), head + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESPONSE: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nRBAC";

    #[test]
    fn a_head_gives_status_and_length_once_it_is_whole() {
        assert_eq!(parse_head(RESPONSE).unwrap(), Some((403, RESPONSE.len())));
        assert_eq!(parse_head(&RESPONSE[..30]).unwrap(), None);
        assert!(parse_head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parse_head(b"SSH-2.0\r\n\r\n").is_err());
    }

    #[test]
    fn a_response_in_pieces_is_read_whole() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let status = runtime.block_on(async {
            let (mut ours, mut theirs) = tokio::io::duplex(16);
            let server = async {
                let mut request = [0; 3];
                theirs.read_exact(&mut request).await.unwrap();
                theirs.write_all(RESPONSE).await.unwrap();
            };
            let mut scratch = Vec::new();
            tokio::join!(exchange(&mut ours, b"GET", &mut scratch), server).0
        });
        assert_eq!(status.unwrap(), 403);
    }
}
