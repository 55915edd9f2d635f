//! Terminates mesh mTLS: every client proves a SPIFFE id or is refused with the reason.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::SEND_BUFFER_BYTES;
use super::evidence::{self, PeerTls};
use super::failure::{self, Role};
use super::verify::{Handshake, SpiffeVerifier};
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::identity::Identity;

/// What a server agrees to, in its order. Istio's sidecars name the application protocol twice, as `istio-h2, istio, h2`,
/// and expect the plain name back, so that stands first. Two names are never agreed to: `istio`, which only marks mesh
/// traffic, and `istio-peer-exchange`, after which an Envoy would send its metadata ahead of the application's bytes.
/// A client that offers nothing else gets no answer to its offer, and a connection.
const ALPN: [&[u8]; 5] = [b"h2", b"http/1.1", b"istio-h2", b"istio-http/1.1", b"istio-http/1.0"];

/// Which protocol the client's ALPN means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// It offers something, and none of it is HTTP.
    Tcp,
    /// It offers nothing: the port's declaration or detection decides.
    None,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Accepted<IO> {
    /// Decrypted.
    pub stream: Box<TlsStream<IO>>,
    /// Which protocol is spoken in it.
    pub alpn: Alpn,
    /// Whether the client offered one of Istio's names (`istio`, `istio-..`): it means mesh traffic.
    pub mesh: bool,
    /// Who it is.
    pub peer: PeerTls,
}

/// Terminates mesh mTLS. One serves all connections and survives every renewal of the identity.
pub struct ServerTls {
    /// For a client that offers something of [`ALPN`].
    agreeing: Arc<ServerConfig>,
    /// For others: rustls refuses offers that have nothing in common with ours, so there is nothing of ours.
    silent: Arc<ServerConfig>,
    /// Whether both are approved. A connection that rustls accepts step by step says no of itself, whatever it runs.
    fips: bool,
}

impl ServerTls {
    /// Presents `identity` and takes clients that its roots vouch for.
    pub fn mesh(identity: Arc<Identity>) -> Arc<Self> {
        let silent = config(identity);
        let mut agreeing = silent.clone();
        agreeing.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        let fips = agreeing.fips() && silent.fips();
        Arc::new(Self { agreeing: Arc::new(agreeing), silent: Arc::new(silent), fips })
    }

    /// Shakes hands within `deadline`. A refusal is at stage `terminate`, for `handshake-failed` or, where the client's
    /// certificate is at fault, for the reason of `service-authentication`.
    pub async fn accept<IO>(&self, io: IO, deadline: Duration) -> Result<Accepted<IO>, Reject>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        // Boxed: an open connection must not carry what its handshake needed.
        let handshake = Box::pin(Handshake::default().run(self.shake_hands(io)));
        let Ok((outcome, verdict)) = tokio::time::timeout(deadline, handshake).await else {
            return Err(stalled(deadline));
        };
        let (stream, offer) = match outcome {
            Ok(accepted) => accepted,
            Err(error) => return Err(failure::reject(Role::Server, &error, verdict)),
        };
        let (_, connection) = stream.get_ref();
        let (Some(Ok(verified)), Some([leaf, ..])) = (verdict, connection.peer_certificates()) else {
            return Err(Reject::because(Stage::Terminate, Reason::NoIdentity, "no certificate was verified"));
        };
        let sni = connection.server_name().map(Arc::from);
        let evidence = evidence::agreed(connection, self.fips, sni);
        evidence::approved(&evidence, Stage::Terminate)?;
        let peer = PeerTls::verified(&verified, leaf, evidence);
        Ok(Accepted { stream, alpn: offer.alpn, mesh: offer.mesh, peer })
    }

    async fn shake_hands<IO>(&self, io: IO) -> io::Result<(Box<TlsStream<IO>>, Offer)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let offer = Offer::of(&start.client_hello());
        let config = if offer.agreed { &self.agreeing } else { &self.silent };
        let limit = |connection: &mut rustls::ServerConnection| {
            connection.set_buffer_limit(Some(SEND_BUFFER_BYTES));
        };
        let stream = start.into_stream_with(Arc::clone(config), limit).await?;
        Ok((Box::new(stream), offer))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

pub(super) fn stalled(deadline: Duration) -> Reject {
    Reject::because(
        Stage::Terminate,
        Reason::HandshakeFailed,
        format_args!("the client stalled: no complete handshake within {deadline:?}"),
    )
}

/// What a ClientHello offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offer {
    alpn: Alpn,
    mesh: bool,
    /// Something of [`ALPN`] is in it.
    agreed: bool,
}

impl Offer {
    fn of(hello: &ClientHello<'_>) -> Self {
        hello.alpn().map_or(Self { alpn: Alpn::None, mesh: false, agreed: false }, Self::from_names)
    }

    fn from_names<'a>(names: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut mesh = false;
        let mut best = ALPN.len();
        for name in names {
            mesh |= name == b"istio" || name.starts_with(b"istio-");
            best = ALPN.iter().position(|ours| *ours == name).unwrap_or(best).min(best);
        }
        let alpn = match ALPN.get(best) {
            Some(&(b"h2" | b"istio-h2")) => Alpn::Http2,
            Some(_) => Alpn::Http1,
            None => Alpn::Tcp,
        };
        Self { alpn, mesh, agreed: best < ALPN.len() }
    }
}

#[expect(clippy::expect_used, reason = "the provider has suites for both versions, as its own test says")]
fn config(identity: Arc<Identity>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(fips::provider())
        .with_safe_default_protocol_versions()
        .expect("suites for both versions")
        .with_client_cert_verifier(Arc::new(SpiffeVerifier(Arc::clone(&identity))))
        .with_cert_resolver(Arc::new(Current(identity)));
    // A resumed session is one that no root was asked about, so there are none.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    fips::note_server("mesh mTLS, accepted", &config);
    config
}

/// Presents the certificate that is in force when a client comes.
struct Current(Arc<Identity>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current().certified))
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_read_as_istio_means_them() {
        let read = |names: &[&str]| {
            let offer = Offer::from_names(names.iter().map(|name| name.as_bytes()));
            (offer.alpn, offer.mesh, offer.agreed)
        };
        assert_eq!(read(&["istio-http/1.1", "istio", "http/1.1"]), (Alpn::Http1, true, true));
        assert_eq!(read(&["istio-http/1.0", "istio"]), (Alpn::Http1, true, true));
        assert_eq!(read(&["istio-h2", "istio", "h2"]), (Alpn::Http2, true, true));
        assert_eq!(read(&["istio-peer-exchange", "istio"]), (Alpn::Tcp, true, false));
        assert_eq!(read(&["istio"]), (Alpn::Tcp, true, false));
        assert_eq!(read(&["http/1.1", "h2"]), (Alpn::Http2, false, true));
        assert_eq!(read(&["mqtt"]), (Alpn::Tcp, false, false));
    }
}
