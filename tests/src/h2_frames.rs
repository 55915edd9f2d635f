//! HTTP/2 frames by hand (RFC 9113), for what no library would send.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::Client;

/// Frames to be sent, after the preface and empty settings.
#[derive(Debug)]
pub struct H2Frames(Vec<u8>);

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const WINDOW_UPDATE: u8 = 0x8;
const INITIAL_WINDOW_SIZE: u8 = 0x4;
const DEFAULT_WINDOW: u32 = 65_535;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

impl H2Frames {
    /// The type of a frame that says the connection is to end.
    pub const GOAWAY: u8 = 0x7;

    /// The preface and empty settings.
    #[expect(clippy::new_without_default, reason = "reads as what it begins")]
    pub fn new() -> Self {
        let mut frames = Self(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec());
        frames.frame(SETTINGS, 0, 0, &[]);
        frames
    }

    /// A request on a stream, its fields exactly as given, literal and unindexed (RFC 7541 section 6.2.2).
    pub fn headers(mut self, stream: u32, fields: &[(&str, &str)], end: bool) -> Self {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).ok().filter(|&length| length < 127).unwrap());
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.frame(HEADERS, END_HEADERS | (u8::from(end) * END_STREAM), stream, &block);
        self
    }

    /// Grants as much as can be granted: every stream and the connection may send two gigabytes.
    pub fn taking_all(mut self) -> Self {
        const MOST: u32 = 0x7fff_ffff;
        let initial_window = [&[0, INITIAL_WINDOW_SIZE][..], &MOST.to_be_bytes()].concat();
        self.frame(SETTINGS, 0, 0, &initial_window);
        self.frame(WINDOW_UPDATE, 0, 0, &(MOST - DEFAULT_WINDOW).to_be_bytes());
        self
    }

    /// Gives a stream up.
    pub fn reset(mut self, stream: u32) -> Self {
        const CANCEL: u32 = 8;
        self.frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
        self
    }

    /// Sends them, and reads nothing.
    pub async fn send<IO: AsyncRead + AsyncWrite + Unpin>(self, client: &mut Client<IO>) -> io::Result<()> {
        client.try_send(self.0).await
    }

    /// More frames of a connection that is there already.
    pub fn more() -> Self {
        Self(Vec::new())
    }

    /// Data on a stream.
    pub fn data(mut self, stream: u32, data: &[u8], end: bool) -> Self {
        self.frame(DATA, u8::from(end) * END_STREAM, stream, data);
        self
    }

    /// Sends them, and reads until the connection ends or `stream` does: the type of the frame that ended it, and the
    /// payload.
    pub async fn exchange<IO>(self, client: &mut Client<IO>, stream: u32) -> Vec<(u8, Vec<u8>)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        client.send(self.0).await;
        let mut answers = Vec::new();
        loop {
            let head = client.bytes(9).await;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let on = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let payload = client.bytes(length).await;
            let ended = kind == Self::GOAWAY || (on == stream && (kind == RST_STREAM || ends(kind, flags)));
            if kind == Self::GOAWAY || on == stream {
                answers.push((kind, payload));
            }
            if ended {
                return answers;
            }
        }
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.0.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
        self.0.extend_from_slice(&[kind, flags]);
        self.0.extend_from_slice(&stream.to_be_bytes());
        self.0.extend_from_slice(payload);
    }
}

fn ends(kind: u8, flags: u8) -> bool {
    matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0
}
