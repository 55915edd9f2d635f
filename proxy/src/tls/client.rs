//! Dials TLS: mesh mTLS, where the server must prove an expected SPIFFE id, and what a DestinationRule orders.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use control_client::snapshot::TlsOrigination;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, SignatureScheme};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::SEND_BUFFER_BYTES;
use super::evidence;
use super::failure::{self, Role};
use super::origination::{self, Originations};
use super::verify::{Handshake, SpiffeVerifier, Verdict};
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::identity::svid::Verified;
use crate::identity::{Identity, Proof, SpiffeId};
use crate::telemetry::{CertificateEvidence, TlsEvidence};

/// What is to be spoken on the hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HopAlpn {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Anything.
    Tcp,
}

impl HopAlpn {
    /// What Istio's sidecars offer each other, without metadata exchange: the first name tells a permissive server that
    /// this is mesh mTLS, the last is the one that it answers.
    fn mesh(self) -> Vec<Vec<u8>> {
        let names: &[&[u8]] = match self {
            Self::Http1 => &[b"istio-http/1.1", b"istio", b"http/1.1"],
            Self::Http2 => &[b"istio-h2", b"istio", b"h2"],
            Self::Tcp => &[b"istio"],
        };
        names.iter().map(|name| name.to_vec()).collect()
    }

    /// What is offered to a server outside of the mesh.
    pub(super) fn plain(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
            Self::Tcp => Vec::new(),
        }
    }
}

/// A connection to a server that proved who it is.
#[derive(Debug)]
pub struct ClientConnected<IO> {
    /// Decrypted. Under TLS 1.3 a server's refusal of *our* certificate is met by the first read:
    /// see [`super::refused_by_server`].
    pub stream: Box<TlsStream<IO>>,
    /// Of a server in the mesh.
    pub identity: Option<SpiffeId>,
    /// What was agreed.
    pub evidence: Arc<TlsEvidence>,
    /// The name that a server outside of the mesh proved.
    pub name: Option<Arc<str>>,
    /// What proved the identity or the name.
    pub certificate: Option<CertificateEvidence>,
    /// What that rests on: see [`Identity::still_trusted`].
    pub proof: Option<Arc<Proof>>,
    /// What the server chose of the ALPN offered; `None`: it chose nothing, which Istio's servers do for TCP.
    pub alpn: Option<HopAlpn>,
}

/// Dials TLS. One serves all connections and survives every renewal of the identity.
pub struct ClientTls {
    /// By [`HopAlpn`]; `None`: there is no identity to dial with.
    mesh: Option<[Arc<ClientConfig>; 3]>,
    originations: Originations,
}

impl ClientTls {
    /// Dials as `identity`; without one, only servers outside of the mesh.
    pub fn new(identity: Option<Arc<Identity>>) -> Self {
        let mesh = identity.map(|identity| {
            let config = config(identity);
            [HopAlpn::Http1, HopAlpn::Http2, HopAlpn::Tcp].map(|hop| {
                let mut config = config.clone();
                config.alpn_protocols = hop.mesh();
                Arc::new(config)
            })
        });
        Self { mesh, originations: Originations::default() }
    }

    /// Mesh mTLS. The server must prove one of `expected` (`spiffe://..`) before any byte of ours follows, our certificate
    /// among them; else the refusal is at stage `connect`, for `identity-mismatch` or another reason of
    /// `service-authentication`. `sni` is a hint for gateways on the way and proves nothing. The caller bounds the time.
    pub async fn connect_mesh<IO>(
        &self,
        io: IO,
        expected: &[Arc<str>],
        alpn: HopAlpn,
        sni: Option<&str>,
    ) -> Result<ClientConnected<IO>, Reject>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let unavailable = |why| Reject::because(Stage::Connect, Reason::MtlsUnavailable, why);
        let configs = self
            .mesh
            .as_ref()
            .ok_or_else(|| unavailable("this proxy has no identity to present; see --identity"))?;
        if expected.is_empty() {
            return Err(unavailable("no identity is known that the server could prove"));
        }
        let config = Arc::clone(&configs[alpn as usize]);
        let connect = connect(config, server_name(sni)?, io);
        let (outcome, verdict) = Box::pin(Handshake::expecting(expected).run(connect)).await;
        let stream = match outcome {
            Ok(stream) => stream,
            Err(error) => return Err(failure::reject(Role::Client, &error, verdict)),
        };
        let verified = proven(verdict)?;
        connected(stream, Some(verified), sni)
    }

    /// TLS to a server outside of the mesh, as a DestinationRule (SIMPLE, MUTUAL) or a BackendTLSPolicy orders it: the
    /// server must prove one of the names. The caller bounds the time.
    pub async fn connect_tls<IO>(
        &self,
        io: IO,
        tls: &Arc<TlsOrigination>,
        alpn: HopAlpn,
    ) -> Result<ClientConnected<IO>, Reject>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = async {
            let config = self.originations.config(tls, alpn).await?;
            let name = server_name(tls.sni.as_deref())?;
            connect(config, name, io).await.map_err(|error| failure::reject(Role::Client, &error, None))
        };
        let stream = Box::pin(handshake).await?;
        let connected = connected(stream, None, tls.sni.as_deref())?;
        let leaf = connected.stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let (name, certificate) = leaf.and_then(|leaf| origination::proven(tls, leaf)).unzip();
        Ok(ClientConnected { name, certificate, ..connected })
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("mesh", &self.mesh.is_some()).finish_non_exhaustive()
    }
}

async fn connect<IO>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: IO,
) -> io::Result<Box<TlsStream<IO>>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let limit = |connection: &mut ClientConnection| connection.set_buffer_limit(Some(SEND_BUFFER_BYTES));
    Ok(Box::new(TlsConnector::from(config).connect_with(name, io, limit).await?))
}

/// rustls must have a name. An address is one that it does not send.
fn server_name(sni: Option<&str>) -> Result<ServerName<'static>, Reject> {
    let Some(sni) = sni else { return Ok(ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into())) };
    ServerName::try_from(sni.to_owned()).map_err(|_| {
        Reject::because(Stage::Connect, Reason::TlsFailed, format_args!("`{sni}` is no server name"))
    })
}

fn proven(verdict: Option<Verdict>) -> Result<Arc<Verified>, Reject> {
    match verdict {
        Some(Ok(verified)) => Ok(verified),
        _ => Err(Reject::because(Stage::Connect, Reason::NoIdentity, "no certificate was verified")),
    }
}

fn connected<IO>(
    stream: Box<TlsStream<IO>>,
    verified: Option<Arc<Verified>>,
    sni: Option<&str>,
) -> Result<ClientConnected<IO>, Reject> {
    let (_, connection) = stream.get_ref();
    let evidence = evidence::agreed(connection, connection.fips(), sni.map(Arc::from));
    evidence::approved(&evidence, Stage::Connect)?;
    let alpn = match connection.alpn_protocol() {
        Some(b"h2" | b"istio-h2") => Some(HopAlpn::Http2),
        Some(b"http/1.1" | b"istio-http/1.1" | b"istio-http/1.0") => Some(HopAlpn::Http1),
        Some(_) => Some(HopAlpn::Tcp),
        None => None,
    };
    Ok(ClientConnected {
        certificate: verified.as_deref().map(evidence::certificate),
        proof: verified.as_deref().map(|verified| Arc::clone(&verified.proof)),
        identity: verified.map(|verified| verified.id.clone()),
        name: None,
        evidence: Arc::new(evidence),
        alpn,
        stream,
    })
}

#[expect(clippy::expect_used, reason = "the provider has suites for both versions, as its own test says")]
fn config(identity: Arc<Identity>) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(fips::provider())
        .with_safe_default_protocol_versions()
        .expect("suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SpiffeVerifier(Arc::clone(&identity))))
        .with_client_cert_resolver(Arc::new(Current(identity)));
    // A resumed session is one that no root was asked about.
    config.resumption = Resumption::disabled();
    fips::note_client("mesh mTLS, dialled", &config);
    config
}

/// Presents the certificate that is in force when a connection is made.
struct Current(Arc<Identity>);

impl ResolvesClientCert for Current {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}
