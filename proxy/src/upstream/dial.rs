//! Opening connections: TCP, then TLS as the hop demands, under one deadline. Boxed, so that a request that finds a
//! pooled connection never carries any of it.

use std::future::Future;
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;

use tokio::net::TcpStream;

use super::hop::{Hop, HopFacts, HopTls};
use super::{Connected, Io, Settings, Upstream};
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::tls::ClientTls;

/// A dial under way.
pub(super) type Dial<'a> = Pin<Box<dyn Future<Output = Result<Connected, Reject>> + 'a>>;

impl Upstream {
    /// Connects to the hop's endpoint within its connect timeout.
    pub(super) fn dial<'a>(&'a self, hop: &'a Hop) -> Dial<'a> {
        Box::pin(async move {
            let deadline = tokio::time::Instant::now() + hop.connect_timeout;
            let connected = tokio::time::timeout_at(deadline, tcp(&self.settings, hop)).await;
            let stream = connected.unwrap_or_else(|_| Err(timed_out(hop, "TCP")))?;
            let secured = tokio::time::timeout_at(deadline, secure(&self.tls, hop, stream)).await;
            secured.unwrap_or_else(|_| Err(timed_out(hop, "TLS")))
        })
    }
}

async fn tcp(_settings: &Settings, hop: &Hop) -> Result<TcpStream, Reject> {
    let connected = TcpStream::connect(hop.address()).await;
    let stream = connected.map_err(|error| {
        let reason = match error.kind() {
            ErrorKind::TimedOut => Reason::ConnectTimeout,
            _ => Reason::ConnectRefused,
        };
        Reject::because(Stage::Connect, reason, format_args!("{}: {error}", hop.address()))
    })?;
    // Only a latency matter: the connection works without.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn secure(_tls: &ClientTls, hop: &Hop, stream: TcpStream) -> Result<Connected, Reject> {
    let facts = HopFacts { endpoint: hop.address(), identity: None, tls: None, certificate: None };
    match hop.tls() {
        HopTls::Plaintext => Ok(Connected { io: Io::Plain(stream), facts: Rc::new(facts) }),
        HopTls::Mesh { .. } | HopTls::Tls(_) => Err(Reject::because(
            Stage::Connect,
            Reason::TlsFailed,
            format_args!("{}: no client TLS", hop.address()),
        )),
    }
}

fn timed_out(hop: &Hop, phase: &str) -> Reject {
    Reject::because(
        Stage::Connect,
        Reason::ConnectTimeout,
        format_args!(
            "{}: no {phase} within {:?}; is the address right, or a NetworkPolicy in the way?",
            hop.address(),
            hop.connect_timeout
        ),
    )
}
