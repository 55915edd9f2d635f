//! TLS that ends at a Gateway: only the server proves who it is, by a certificate of the listener that the client names.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control_client::snapshot::{ListenerTls, PemObject};
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use webpki::EndEntityCert;

use super::SEND_BUFFER_BYTES;
use super::evidence::{self, PeerTls};
use super::failure::{self, Role};
use super::server::{Accepted, Alpn, stalled};
use crate::decision::{Reason, Stage};
use crate::error::Reject;

/// Configurations kept: past this all are made anew, and tickets of before are of no use.
const MAX_KEPT: usize = 1024;
/// Session tickets that a client gets, each for one session to come.
const TICKETS: usize = 1;

/// Terminates TLS at a Gateway. One serves all listeners.
#[derive(Default)]
pub struct GatewayTls(Mutex<HashMap<Arc<ListenerTls>, Kept>>);

/// The configuration of a listener, or why it has none.
type Kept = Result<Arc<Ends>, Arc<str>>;

/// What ends TLS for a listener.
struct Ends {
    config: Arc<ServerConfig>,
    /// A connection that rustls accepts step by step says no of itself, whatever it runs.
    fips: bool,
}

impl GatewayTls {
    /// Shakes hands within `deadline`, as the listener that `choose` finds for the client's server name (empty: it gives
    /// none). A refusal is at stage `terminate`.
    pub async fn accept<IO>(
        &self,
        io: IO,
        deadline: Duration,
        choose: impl FnOnce(&str) -> Option<Arc<ListenerTls>>,
    ) -> Result<Accepted<IO>, Reject>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        // Boxed: an open connection must not carry what its handshake needed.
        let handshake = Box::pin(self.shake_hands(io, choose));
        match tokio::time::timeout(deadline, handshake).await {
            Ok(accepted) => accepted,
            Err(_) => Err(stalled(deadline)),
        }
    }

    async fn shake_hands<IO>(
        &self,
        io: IO,
        choose: impl FnOnce(&str) -> Option<Arc<ListenerTls>>,
    ) -> Result<Accepted<IO>, Reject>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let failed = |error: io::Error| failure::reject(Role::Server, &error, None);
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await.map_err(failed)?;
        let name = start.client_hello().server_name().unwrap_or_default().to_owned();
        let ends = match choose(&name) {
            Some(tls) => self.ends(&tls).map_err(refused)?,
            None if name.is_empty() => {
                return Err(refused("the client names no server, and no listener is for any"));
            }
            None => return Err(refused(format_args!("no listener is for server name {name}"))),
        };
        let limit = |connection: &mut rustls::ServerConnection| {
            connection.set_buffer_limit(Some(SEND_BUFFER_BYTES));
        };
        let stream = start.into_stream_with(Arc::clone(&ends.config), limit).await.map_err(failed)?;
        let (_, connection) = stream.get_ref();
        let alpn = match connection.alpn_protocol() {
            Some(b"h2") => Alpn::Http2,
            Some(_) => Alpn::Http1,
            None => Alpn::None,
        };
        let sni = (!name.is_empty()).then(|| Arc::from(name));
        let evidence = evidence::agreed(connection, ends.fips, sni);
        evidence::approved(&evidence, Stage::Terminate)?;
        Ok(Accepted { stream: Box::new(stream), alpn, mesh: false, peer: PeerTls::nobody(evidence) })
    }

    fn ends(&self, tls: &Arc<ListenerTls>) -> Kept {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = all.get(tls) {
            return kept.clone();
        }
        if all.len() >= MAX_KEPT {
            all.clear();
        }
        let made = Ends::make(tls).map(Arc::new).map_err(Arc::from);
        all.insert(Arc::clone(tls), made.clone());
        made
    }
}

fn refused(why: impl fmt::Display) -> Reject {
    Reject::because(Stage::Terminate, Reason::HandshakeFailed, why)
}

impl fmt::Debug for GatewayTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GatewayTls")
    }
}

impl Ends {
    fn make(tls: &ListenerTls) -> Result<Self, String> {
        let (pairs, tickets) = match tls {
            ListenerTls::Certificates { pairs, tickets } => (pairs, *tickets),
            ListenerTls::Unusable(why) => return Err(why.clone()),
        };
        let read = |(certificate, key): &(PemObject, PemObject)| {
            let pair = fips::read_pair(certificate.text(), key.text());
            pair.map(Arc::new).map_err(|why| format!("{}: {why}", certificate.name()))
        };
        let shown = Shown(pairs.iter().map(read).collect::<Result<_, _>>()?);
        let mut config = ServerConfig::builder_with_provider(fips::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shown));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Nobody is authenticated here, so nothing goes unasked when a session is resumed. Tickets are this listener's own.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if tickets {
            config.ticketer = fips::tickets().map_err(|error| error.to_string())?;
            config.send_tls13_tickets = TICKETS;
        }
        let config = fips::server("TLS of a Gateway, accepted", config).map_err(|error| error.to_string())?;
        Ok(Self { fips: config.fips(), config: Arc::new(config) })
    }
}

/// Shows the first certificate that fits what a client asks for.
struct Shown(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let [first, _, ..] = self.0.as_slice() else { return self.0.first().cloned() };
        let signs = |pair: &&Arc<CertifiedKey>| pair.key.choose_scheme(hello.signature_schemes()).is_some();
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let has_name = |pair: &&Arc<CertifiedKey>| name.as_ref().is_some_and(|name| covers(pair, name));
        let all = || self.0.iter().filter(signs);
        Some(Arc::clone(all().find(has_name).or_else(|| all().next()).unwrap_or(first)))
    }
}

fn covers(pair: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let leaf = pair.cert.first().and_then(|leaf| EndEntityCert::try_from(leaf).ok());
    leaf.is_some_and(|leaf| leaf.verify_is_valid_for_subject_name(name).is_ok())
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}
