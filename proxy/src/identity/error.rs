//! [`IdentityError`]: why there is no identity, or no new one.

use std::io;
use std::path::{Path, PathBuf};

use super::source::WorkloadApi;
use super::{SpiffeId, svid};

/// Why there is no identity, or no new one.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The directory has none of the names.
    #[error(
        "{0}: neither tls.crt nor svid.pem is there; expected tls.crt, tls.key and ca.crt, or svid.pem, svid_key.pem and svid_bundle.pem"
    )]
    NoFiles(PathBuf),
    /// A file or directory can't be read or written.
    #[error("{}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The Workload API gives nothing that can be used.
    #[error("Workload API {api}: {why}")]
    WorkloadApi {
        /// Which.
        api: WorkloadApi,
        /// What it said, or what became of the connection.
        why: String,
    },
    /// Not of the form that it should be.
    #[error("{what}: {why}")]
    Malformed {
        /// `certificate`, `key`, `bundle` or `revocation list`.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// It is not approved, and must be.
    #[error("{what}: {why}")]
    NotApproved {
        /// `own certificate` or `bundle`.
        what: &'static str,
        /// What is not approved.
        why: fips::NotApproved,
    },
    /// The revocation lists that were asked for.
    #[error("--crl {}: {error}", path.display())]
    Lists {
        /// Where.
        path: PathBuf,
        /// What is wrong with them.
        error: Box<Self>,
    },
    /// What the configuration says of who is revoked.
    #[error("{0}")]
    Configured(String),
    /// The key is of an unknown kind or of another certificate, as when only one of the two is written yet.
    #[error("key does not fit the certificate: {0}")]
    Key(rustls::Error),
    /// No peer would take the certificate.
    #[error("own certificate would be refused: {0}")]
    Certificate(svid::Refusal),
    /// The certificate is of another trust domain than this proxy.
    #[error("certificate is for {id}, but the trust domain is {expected}; see --trust-domain")]
    TrustDomain {
        /// Of the certificate.
        id: SpiffeId,
        /// Of this proxy.
        expected: Box<str>,
    },
    /// The certificate in force ran out, and the source has no other.
    #[error(
        "the certificate has expired and there is no newer one; peers refuse it. Is whatever renews it running?"
    )]
    Lapsed,
    /// A trust domain that can't be one.
    #[error("`{0}` is no trust domain: 1 to 255 of a-z, 0-9, '.', '-', '_'")]
    InvalidTrustDomain(Box<str>),
    /// A development identity needs to be told whose it is.
    #[error("dev: identities need the workload's SPIFFE id, which --workload and --service-account make")]
    NoOwnId,
    /// The authority failed.
    #[error(transparent)]
    Authority(#[from] fips::ca::CaError),
    /// The machine refused what the source needs.
    #[error("can't wait for the source: {0}")]
    Runtime(io::Error),
}

impl IdentityError {
    /// A file that was asked for is not there.
    pub(super) fn missing(path: &Path) -> Self {
        Self::Read { path: path.to_owned(), error: io::ErrorKind::NotFound.into() }
    }
}
