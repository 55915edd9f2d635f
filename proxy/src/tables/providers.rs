//! Authorization providers as policies ask them: which, when, and what of their answers counts.

use std::sync::Arc;
use std::time::Duration;

use control_client::snapshot::{self, BodyInCheck, GrpcCheck, ProviderIndex, ProviderPhase};
use http::{HeaderName, HeaderValue, StatusCode};

use super::filters::{name, parse_value};
use super::pattern::Values;
use super::services::Backend;
use crate::decision::PolicyRef;

/// An external authorization service.
#[derive(Debug)]
pub struct Provider {
    /// As policies and records name it.
    pub name: Arc<str>,
    /// Where it is; `None`: nowhere, so that it allows nothing.
    pub backend: Option<Backend>,
    /// When it is asked.
    pub phase: ProviderPhase,
    /// For the whole of one question.
    pub timeout: Duration,
    /// What can't be asked about is allowed.
    pub fail_open: bool,
    /// Status of a refusal because it can't be asked.
    pub status_on_error: StatusCode,
    /// How much of request bodies it sees.
    pub body: Option<BodyInCheck>,
    /// What it speaks.
    pub protocol: ProviderProtocol,
}

/// What a provider speaks.
#[derive(Debug)]
pub enum ProviderProtocol {
    /// `envoy.service.auth.v3.Authorization/Check`.
    Grpc(GrpcCheck),
    /// A request like the one in question.
    Http(Box<HttpCheck>),
}

/// What an HTTP provider gets and gives.
#[derive(Debug)]
pub struct HttpCheck {
    /// Authority where the request has none.
    pub authority: HeaderValue,
    /// Before the path of the request.
    pub path_prefix: Box<str>,
    /// Headers that it gets besides the request's.
    pub additional_headers: Box<[(HeaderName, HeaderValue)]>,
    request_headers: Values,
    upstream_on_allow: Values,
    downstream_on_deny: Values,
    downstream_on_allow: Values,
}

impl HttpCheck {
    /// Whether the provider gets a header of the request.
    pub fn shows(&self, name: &HeaderName) -> bool {
        self.request_headers.match_text(name.as_str().as_bytes())
    }

    /// Whether a header of an allowing answer goes into the request.
    pub fn takes_upstream(&self, name: &HeaderName) -> bool {
        self.upstream_on_allow.match_text(name.as_str().as_bytes())
    }

    /// Whether a header of an allowing answer goes into the response.
    pub fn takes_downstream(&self, name: &HeaderName) -> bool {
        self.downstream_on_allow.match_text(name.as_str().as_bytes())
    }

    /// Whether the refused caller gets a header of a denying answer.
    pub fn tells(&self, name: &HeaderName) -> bool {
        self.downstream_on_deny.is_empty() || self.downstream_on_deny.match_text(name.as_str().as_bytes())
    }
}

/// Somebody has to be asked about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consultation {
    /// Whom.
    pub provider: ProviderIndex,
    /// By which rule.
    pub policy: PolicyRef,
    /// The rule asks for the end user, so the answer counts as `user-authorization`.
    pub user: bool,
}

impl Provider {
    pub(super) fn compile(provider: &snapshot::Provider, backends: &[Backend]) -> Result<Self, String> {
        let (declared, protocol) = match &provider.protocol {
            snapshot::ProviderProtocol::Grpc(check) => {
                (snapshot::Protocol::Grpc, ProviderProtocol::Grpc(check.clone()))
            }
            snapshot::ProviderProtocol::Http(check) => {
                (snapshot::Protocol::Http1, ProviderProtocol::Http(Box::new(HttpCheck::compile(check)?)))
            }
        };
        let backend = provider.backend.and_then(|index| backends.get(index as usize));
        Ok(Self {
            name: provider.name.as_str().into(),
            backend: backend.map(|backend| backend.speaking(declared)),
            phase: provider.phase,
            timeout: provider.timeout,
            fail_open: provider.fail_open,
            status_on_error: StatusCode::from_u16(provider.status_on_error).unwrap_or(StatusCode::FORBIDDEN),
            body: provider.body,
            protocol,
        })
    }
}

impl HttpCheck {
    fn compile(check: &snapshot::HttpCheck) -> Result<Self, String> {
        let names = |values| Values::compile(values, true);
        let additional = check.additional_headers.iter();
        let additional = additional.map(|(header, value)| Ok((name(header)?, parse_value(header, value)?)));
        Ok(Self {
            authority: parse_value("host", &check.authority)?,
            path_prefix: check.path_prefix.as_str().into(),
            additional_headers: additional.collect::<Result<_, String>>()?,
            request_headers: names(&check.request_headers)?,
            upstream_on_allow: names(&check.upstream_on_allow)?,
            downstream_on_deny: names(&check.downstream_on_deny)?,
            downstream_on_allow: names(&check.downstream_on_allow)?,
        })
    }
}
