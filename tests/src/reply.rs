//! An HTTP/1 response as a client sees it, read by rules of its own, so that no mistake of the proxy's codec hides here.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// A response, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status.
    pub status: u16,
    /// `HTTP/1.1 200 OK`.
    pub status_line: String,
    /// In order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Decoded.
    pub body: Vec<u8>,
    /// Those of a chunked body.
    pub trailers: Vec<(String, String)>,
    /// The body was chunked.
    pub chunked: bool,
}

impl Reply {
    /// The value of a header, if it is there exactly once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(header, _)| header == name);
        let value = values.next().map(|(_, value)| value.as_str());
        if values.next().is_some() { None } else { value }
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// Reads a head. `None`: the connection ended before a byte.
    pub(crate) async fn read_head<IO: AsyncRead + Unpin>(
        io: &mut IO,
        read: &mut Vec<u8>,
    ) -> io::Result<Option<Self>> {
        let end = loop {
            if let Some(at) = find(read, b"\r\n\r\n") {
                break at;
            }
            if io.read_buf(read).await? == 0 {
                return match read.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        };
        let head: Vec<u8> = read.drain(..end + 4).collect();
        let head = String::from_utf8(head).expect("a head is text");
        let mut lines = head.trim_end_matches("\r\n").split("\r\n");
        let status_line = lines.next().unwrap_or_default().to_owned();
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok(Some(Self {
            status: status.unwrap_or_else(|| panic!("not a status line: {status_line:?}")),
            status_line,
            headers: lines.map(field).collect(),
            body: Vec::new(),
            trailers: Vec::new(),
            chunked: false,
        }))
    }

    /// Reads the body that the head announces.
    pub(crate) async fn read_body<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        read: &mut Vec<u8>,
    ) -> io::Result<()> {
        if self.header("transfer-encoding") == Some("chunked") {
            self.chunked = true;
            return self.read_chunks(io, read).await;
        }
        match self.header("content-length") {
            Some(length) => {
                let length = length.parse().expect("a length is a number");
                self.body = take(io, read, length).await?;
            }
            None => {
                io.read_to_end(read).await?;
                self.body = std::mem::take(read);
            }
        }
        Ok(())
    }

    async fn read_chunks<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        read: &mut Vec<u8>,
    ) -> io::Result<()> {
        loop {
            let size = line(io, read).await?;
            let size =
                usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("not a chunk size: {size:?}"));
            if size == 0 {
                break;
            }
            self.body.extend(take(io, read, size).await?);
            assert_eq!(take(io, read, 2).await?, b"\r\n", "a chunk ends in CR LF");
        }
        loop {
            let trailer = line(io, read).await?;
            if trailer.is_empty() {
                return Ok(());
            }
            self.trailers.push(field(&trailer));
        }
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a field: {line:?}"));
    (name.to_ascii_lowercase(), value.trim().to_owned())
}

/// Exactly so many bytes.
async fn take<IO: AsyncRead + Unpin>(io: &mut IO, read: &mut Vec<u8>, count: usize) -> io::Result<Vec<u8>> {
    while read.len() < count {
        if io.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(read.drain(..count).collect())
}

/// A line without its end.
async fn line<IO: AsyncRead + Unpin>(io: &mut IO, read: &mut Vec<u8>) -> io::Result<String> {
    loop {
        if let Some(at) = find(read, b"\r\n") {
            let line: Vec<u8> = read.drain(..at + 2).collect();
            return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
        }
        if io.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
