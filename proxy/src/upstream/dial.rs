//! Opening connections: TCP, then TLS as the hop demands, under one deadline. Boxed, so that a request that finds a
//! pooled connection never carries any of it.

use std::future::Future;
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::hop::{Belief, Hop, HopFacts, HopProtocol, HopTls};
use super::{Connected, Io, Upstream};
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::net::socket::{self, Keepalive};
use crate::tls::{ClientConnected, HopAlpn};

/// A dial under way.
pub(super) type Dial<'a> = Pin<Box<dyn Future<Output = Result<Connected, Reject>> + 'a>>;

impl Upstream {
    /// Connects to the hop's endpoint within its connect timeout.
    pub(super) fn dial<'a>(self: &'a Rc<Self>, hop: &'a Hop) -> Dial<'a> {
        // Whether or not a connection comes of it, its target must not stay for ever.
        self.ensure_swept();
        Box::pin(async move {
            let deadline = Instant::now() + hop.connect_timeout;
            let stream = timeout_at(deadline, self.dial_tcp(hop)).await;
            let stream = stream.unwrap_or_else(|_| Err(timed_out(hop, "TCP connection")))?;
            if *hop.tls() == HopTls::Plaintext {
                let facts = HopFacts {
                    endpoint: hop.address(),
                    identity: None,
                    name: None,
                    tls: None,
                    certificate: None,
                    proof: None,
                    belief: Belief::default(),
                };
                return Ok(Connected { io: Io::Plain(stream), facts: Rc::new(facts) });
            }
            let secured = timeout_at(deadline, self.dial_tls(hop, stream)).await;
            secured.unwrap_or_else(|_| Err(timed_out(hop, "TLS handshake")))
        })
    }

    async fn dial_tcp(&self, hop: &Hop) -> Result<TcpStream, Reject> {
        let address = hop.address();
        let connected = socket::connect_from(hop.target.key.source, address, self.settings.mark).await;
        let stream = connected.map_err(|error| {
            let (reason, hint) = match error.kind() {
                ErrorKind::TimedOut => (Reason::ConnectTimeout, "is a NetworkPolicy in the way?"),
                ErrorKind::ConnectionRefused => (Reason::ConnectRefused, "does anything listen there?"),
                _ => (Reason::ConnectRefused, "is there a route to it?"),
            };
            Reject::because(Stage::Connect, reason, format_args!("{address}: {error}; {hint}"))
        })?;
        // Only finds out sooner that a server is gone; the connection works without.
        let _ = Keepalive::default().apply(&stream);
        Ok(stream)
    }

    async fn dial_tls(&self, hop: &Hop, stream: TcpStream) -> Result<Connected, Reject> {
        let alpn = alpn(hop.protocol());
        let connected = match hop.tls() {
            HopTls::Mesh { identities } => self.tls.connect_mesh(stream, identities, alpn, None).await?,
            HopTls::Tls(options) => {
                let connected = self.tls.connect_tls(stream, options, alpn).await?;
                if hop.protocol() == HopProtocol::Http2 && connected.alpn != Some(HopAlpn::Http2) {
                    return Err(not_http2(hop));
                }
                connected
            }
            HopTls::Plaintext => return Err(Reject::new(Stage::Connect, Reason::TlsFailed)),
        };
        // A mesh server may choose no ALPN at all and still take what comes; it can't mean another protocol.
        if hop.protocol() == HopProtocol::Http2 && connected.alpn == Some(HopAlpn::Http1) {
            return Err(not_http2(hop));
        }
        let connected = secured(hop, connected);
        if connected.facts.proof.is_some() {
            self.believe(&connected.facts);
        }
        Ok(connected)
    }
}

fn secured(hop: &Hop, connected: ClientConnected<TcpStream>) -> Connected {
    let facts = HopFacts {
        endpoint: hop.address(),
        identity: connected.identity.map(|identity| Arc::from(identity.as_str())),
        name: connected.name,
        tls: Some(connected.evidence),
        certificate: connected.certificate.map(Arc::new),
        proof: connected.proof,
        belief: Belief::default(),
    };
    Connected { io: Io::Tls(connected.stream), facts: Rc::new(facts) }
}

fn alpn(protocol: HopProtocol) -> HopAlpn {
    match protocol {
        HopProtocol::Http1 => HopAlpn::Http1,
        HopProtocol::Http2 => HopAlpn::Http2,
        HopProtocol::Tcp => HopAlpn::Tcp,
    }
}

fn not_http2(hop: &Hop) -> Reject {
    let detail =
        format_args!("{}: the server does not agree to HTTP/2; declare the port's protocol", hop.address());
    Reject::because(Stage::Connect, Reason::TlsFailed, detail)
}

fn timed_out(hop: &Hop, what: &str) -> Reject {
    let (address, timeout) = (hop.address(), hop.connect_timeout);
    let hint = "is the address right, or a NetworkPolicy in the way?";
    let detail = format_args!("{address}: no {what} within {timeout:?}; {hint}");
    Reject::because(Stage::Connect, Reason::ConnectTimeout, detail)
}
