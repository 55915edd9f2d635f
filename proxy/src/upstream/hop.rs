//! [`Hop`]: one place to send to, and how; [`HopFacts`]: what was proven about the connection that carried it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use control_client::snapshot::{self, BackendTls, TlsOrigination};
use tokio::task::AbortHandle;

use super::pick::Load;
use super::pool::Target;
use super::registry::Endpoint;
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::identity::Proof;
use crate::telemetry::{CertificateEvidence, TlsEvidence};

/// Where a request or connection is sent, chosen by [`super::Upstream::pick`] or named by [`super::Upstream::hop_to`].
/// Cheap to clone. It holds no connection.
#[derive(Debug, Clone)]
pub struct Hop {
    pub(super) target: Rc<Target>,
    /// Requests outstanding at the endpoint, for balancing; `None` outside endpoint sets.
    pub(super) load: Option<Rc<Load>>,
    pub(super) connect_timeout: Duration,
}

impl Hop {
    /// The endpoint.
    pub fn address(&self) -> SocketAddr {
        self.target.key.address
    }

    /// The protocol spoken to it.
    pub fn protocol(&self) -> HopProtocol {
        self.target.key.protocol
    }

    /// How the connection is secured.
    pub fn tls(&self) -> &HopTls {
        &self.target.key.tls
    }
}

/// What is spoken over the hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HopProtocol {
    /// HTTP/1.1, a connection per outstanding request.
    Http1,
    /// HTTP/2, many requests on few connections.
    Http2,
    /// Opaque bytes: [`super::Upstream::connect`] only.
    Tcp,
}

/// How the hop is secured. Part of the pool's key: a connection proven for one identity never serves another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HopTls {
    /// Not at all.
    Plaintext,
    /// Mesh mTLS; the server must prove one of `identities`.
    Mesh {
        /// `spiffe://..`, never empty.
        identities: Arc<[Arc<str>]>,
    },
    /// TLS as a DestinationRule (SIMPLE, MUTUAL) or a BackendTLSPolicy orders it.
    Tls(Arc<TlsOrigination>),
}

impl HopTls {
    /// Mesh mTLS with a server of one known identity.
    pub fn mesh(identity: impl Into<Arc<str>>) -> Self {
        Self::Mesh { identities: Arc::from([identity.into()]) }
    }

    /// Decides how to reach `endpoint`, by the backend's setting. Never falls back to plaintext where mTLS is due.
    pub fn decide(tls: &BackendTls, mtls_required: bool, endpoint: &Endpoint) -> Result<Self, Reject> {
        let required = mtls_required || endpoint.mtls_required;
        match tls {
            BackendTls::Auto if endpoint.mesh_tls => Self::mesh_with(endpoint, &[]),
            BackendTls::Auto | BackendTls::Plaintext if required => Err(mtls_unavailable(
                endpoint,
                match tls {
                    BackendTls::Plaintext => "a DestinationRule turns TLS off",
                    _ => "it is not labelled security.istio.io/tlsMode: istio",
                },
            )),
            BackendTls::Auto | BackendTls::Plaintext => Ok(Self::Plaintext),
            BackendTls::Mesh { sans } => Self::mesh_with(endpoint, sans),
            // SIMPLE and MUTUAL prove no mesh identity, so they don't satisfy STRICT either; the server itself refuses
            // them, and says why.
            BackendTls::Tls(tls) => Ok(Self::Tls(Arc::clone(tls))),
            BackendTls::Unusable { why, not_approved } => {
                let reason = if *not_approved { Reason::NotFips } else { Reason::TlsFailed };
                Err(Reject::because(Stage::Pick, reason, why))
            }
        }
    }

    fn mesh_with(endpoint: &Endpoint, sans: &[String]) -> Result<Self, Reject> {
        if !sans.is_empty() {
            return Ok(Self::Mesh { identities: sans.iter().map(|san| Arc::from(san.as_str())).collect() });
        }
        match &endpoint.identities {
            Some(identities) => Ok(Self::Mesh { identities: identities.clone() }),
            None => Err(mtls_unavailable(endpoint, "its service account is not known")),
        }
    }
}

fn mtls_unavailable(endpoint: &Endpoint, why: &str) -> Reject {
    let (ip, workload) = (endpoint.address.ip(), endpoint.workload.as_deref().unwrap_or("unknown workload"));
    let detail = format_args!("{ip} ({workload}) must be reached by mesh mTLS, but {why}");
    Reject::because(Stage::Pick, Reason::MtlsUnavailable, detail)
}

/// What is true of one connection to an endpoint, for the record's attempt and the `encryption` check.
#[derive(Debug, Clone)]
pub struct HopFacts {
    /// Where it goes.
    pub endpoint: SocketAddr,
    /// The server's verified identity in the mesh.
    pub identity: Option<Arc<str>>,
    /// The name that a server outside of the mesh proved.
    pub name: Option<Arc<str>>,
    /// What was agreed; `None`: plaintext.
    pub tls: Option<Arc<TlsEvidence>>,
    /// What proved the identity or the name.
    pub certificate: Option<Arc<CertificateEvidence>>,
    /// What that rests on.
    pub proof: Option<Arc<Proof>>,
    /// Whether the server is still believed.
    pub belief: Belief,
}

/// Whether the server of a connection is still believed, and what is to end when it isn't.
#[derive(Debug, Clone, Default)]
pub struct Belief {
    lost: Cell<Option<Reason>>,
    /// The task of an HTTP/2 connection; others are asked by whoever polls them.
    task: RefCell<Option<AbortHandle>>,
}

impl Belief {
    /// How the requests on it end: `certificate-revoked` or `credential-expired`. `None`: it is believed.
    pub fn lost(&self) -> Option<Reason> {
        self.lost.get()
    }

    pub(super) fn lose(&self, reason: Reason) {
        self.lost.set(Some(reason));
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    pub(super) fn served_by(&self, task: AbortHandle) {
        self.task.replace(Some(task));
    }
}

/// The protocol a backend is spoken to in: what it declares, else that of the request.
pub fn hop_protocol(declared: Option<snapshot::Protocol>, request: HopProtocol) -> HopProtocol {
    if request == HopProtocol::Tcp {
        return request;
    }
    match declared {
        Some(snapshot::Protocol::Http2 | snapshot::Protocol::Grpc) => HopProtocol::Http2,
        Some(snapshot::Protocol::Http1) => HopProtocol::Http1,
        Some(snapshot::Protocol::Tcp | snapshot::Protocol::Tls) | None => request,
    }
}
