//! A client that sends bytes and reads responses, over TCP or mesh mTLS.

use std::io;
use std::net::{Shutdown, SocketAddr};

use rustls::HandshakeKind;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Reply, soon};

/// A connection to a proxy.
#[derive(Debug)]
pub struct Client<IO = TcpStream> {
    io: IO,
    read: Vec<u8>,
}

/// The same over TLS.
pub type TlsClient = Client<tokio_rustls::client::TlsStream<TcpStream>>;

impl Client {
    /// Connects.
    pub async fn connect(to: SocketAddr) -> Self {
        let io = soon("a connection", TcpStream::connect(to)).await.unwrap();
        io.set_nodelay(true).unwrap();
        Self::over(io)
    }

    /// Resets the connection.
    pub fn reset(self) {
        self.io.set_zero_linger().unwrap();
    }

    /// The connection's own address.
    pub fn address(&self) -> SocketAddr {
        self.io.local_addr().unwrap()
    }
}

impl TlsClient {
    /// The proxy's certificate.
    pub fn server(&self) -> CertificateDer<'static> {
        self.io.get_ref().1.peer_certificates().expect("a certificate")[0].clone()
    }

    /// Whether the handshake went on from an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.io.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Ends the TCP connection without a word of TLS.
    pub fn cut(self) {
        let socket = self.io.into_inner().0.into_std().unwrap();
        let _ = socket.shutdown(Shutdown::Both);
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Client<IO> {
    /// Over a connection that is there.
    pub fn over(io: IO) -> Self {
        Self { io, read: Vec::new() }
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon("room to send", async {
            self.io.write_all(bytes.as_ref()).await.unwrap();
            self.io.flush().await.unwrap();
        })
        .await;
    }

    /// Sends bytes to a peer that may stop taking them.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        soon("room to send", async {
            self.io.write_all(bytes.as_ref()).await?;
            self.io.flush().await
        })
        .await
    }

    /// Sends a GET with these header lines, each ended by CR LF.
    pub async fn get(&mut self, path: &str, headers: &str) -> Reply {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: ratings:9080\r\n{headers}\r\n")).await;
        self.reply().await
    }

    /// Reads a response, whole.
    pub async fn reply(&mut self) -> Reply {
        self.try_reply().await.expect("a response").expect("a response before the end")
    }

    /// Reads a response if one comes before the end of the connection.
    pub async fn try_reply(&mut self) -> io::Result<Option<Reply>> {
        soon("a response", async {
            let Some(mut reply) = Reply::read_head(&mut self.io, &mut self.read).await? else {
                return Ok(None);
            };
            reply.read_body(&mut self.io, &mut self.read).await?;
            Ok(Some(reply))
        })
        .await
    }

    /// Reads a head without the body that may follow.
    pub async fn head(&mut self) -> Reply {
        let head = soon("a head", Reply::read_head(&mut self.io, &mut self.read)).await;
        head.expect("a head").expect("a head before the end")
    }

    /// Reads exactly so many bytes.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        soon("bytes", async {
            while self.read.len() < count {
                assert_ne!(
                    self.io.read_buf(&mut self.read).await.unwrap(),
                    0,
                    "{count} bytes before the end"
                );
            }
        })
        .await;
        self.read.drain(..count).collect()
    }

    /// All bytes up to the end of the connection, however it comes.
    pub async fn rest(&mut self) -> Vec<u8> {
        soon("the end", async {
            while self.io.read_buf(&mut self.read).await.is_ok_and(|count| count > 0) {}
        })
        .await;
        std::mem::take(&mut self.read)
    }

    /// Ends the sending side.
    pub async fn finish(&mut self) {
        soon("the end of sending", self.io.shutdown()).await.unwrap();
    }

    /// The connection itself.
    pub fn into_io(self) -> IO {
        assert!(self.read.is_empty(), "nothing was read ahead");
        self.io
    }
}
