//! Asking an authorization provider, over gRPC or HTTP, and what its answer may change.
//!
//! Only an answer that says so in full allows: one that can't be understood refuses, whatever `failOpen` says. `failOpen` is
//! for a provider that can't be reached, does not answer in time, or says that it is out of order.

mod answer;
mod edit;
mod grpc;
mod messages;
mod web;

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri, Version};

pub use self::answer::{Allowed, Denied, Metadata};
pub use self::edit::with_query;
use crate::decision::{Reason, Stage};
use crate::edits::Answer;
use crate::error::Reject;
use crate::peer::Peer;
use crate::stages::micros;
use crate::tables::{Consultation, Provider, ProviderProtocol, UserAttributes};
use crate::telemetry::{Consulted, Record};
use crate::upstream::call::{Unheard, ask_grpc};
use crate::worker::Worker;

/// What a provider is shown of a request.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'r> {
    /// Method.
    pub method: &'r Method,
    /// Target as it would be forwarded.
    pub uri: &'r Uri,
    /// HTTP version.
    pub version: Version,
    /// Authority as sent.
    pub authority: Option<&'r str>,
    /// Headers.
    pub headers: &'r HeaderMap,
    /// Its body, as far as it was kept; `None`: the provider does not see bodies.
    pub body: Option<&'r Bytes>,
    /// Bytes of the whole body, if known.
    pub size: Option<u64>,
}

/// Who asks, beyond what the record says.
#[derive(Clone, Copy)]
pub struct Caller<'r> {
    /// The caller of the connection.
    pub peer: &'r Peer,
    /// The verified end user; `None`: not known, or not yet.
    pub user: Option<&'r UserAttributes>,
}

/// What came of asking one provider.
#[derive(Debug)]
pub enum Said {
    /// It allows, with what it changes.
    Allowed(Allowed),
    /// Nobody said anything, and its MeshSettings let that pass.
    FailedOpen,
}

/// Asks a provider about a request, or about an opaque connection, and writes down what it said.
pub async fn ask(
    worker: &Worker,
    provider: &Provider,
    consultation: &Consultation,
    caller: Caller<'_>,
    shown: Option<Shown<'_>>,
    record: &mut Record,
) -> Result<Said, Reject> {
    let started = Instant::now();
    let Some(_asking) = worker.memory.asking.begin() else {
        let unheard = Unheard::Unavailable("this worker waits for too many answers already".into());
        return conclude(provider, consultation, Err(unheard), started, record);
    };
    let heard = match (&provider.backend, &provider.protocol) {
        (None, _) => Err(Unheard::NotUnderstood("its service is not known here".into())),
        (Some(backend), ProviderProtocol::Grpc(check)) => {
            let own = worker.identity.as_ref().map(|identity| identity.id());
            let own = own.as_ref().map(|id| id.as_str());
            let question = grpc::question(provider, check, consultation, caller, shown, own, record);
            let asked = ask_grpc(&worker.upstream, backend, grpc::CHECK, &question, provider.timeout);
            asked.await.and_then(grpc::heard)
        }
        (Some(backend), ProviderProtocol::Http(check)) => match shown {
            Some(shown) => web::ask(&worker.upstream, backend, check, shown, provider.timeout).await,
            // As in Istio: an HTTP provider has nothing to say about what is not HTTP.
            None => return Ok(Said::FailedOpen),
        },
    };
    conclude(provider, consultation, heard, started, record)
}

/// What follows from an answer, written down.
fn conclude(
    provider: &Provider,
    consultation: &Consultation,
    heard: Result<Heard, Unheard>,
    started: Instant,
    record: &mut Record,
) -> Result<Said, Reject> {
    let mut consulted = Consulted {
        provider: provider.name.clone(),
        policy: consultation.policy,
        outcome: Reason::ProviderAllowed,
        us: micros(started.elapsed()),
        ignored: Box::default(),
        metadata: None,
        detail: None,
    };
    let said = match heard {
        Ok(Heard::Allowed(mut allowed)) => {
            consulted.metadata = allowed.metadata.take().map(Metadata::into_json);
            consulted.ignored = std::mem::take(&mut allowed.ignored).into();
            Ok(Said::Allowed(allowed))
        }
        Ok(Heard::Denied(denied)) => {
            consulted.outcome = Reason::ProviderDenied;
            consulted.metadata = denied.metadata.map(Metadata::into_json);
            let reject = Reject::new(Stage::Consult, Reason::ProviderDenied);
            let answer = Answer { headers: denied.headers, body: denied.body };
            record.asked.get_or_insert_default().answer = Some(answer);
            Err(Reject { status: Some(denied.status), ..reject })
        }
        Err(unheard) => {
            consulted.outcome = Reason::ProviderUnavailable;
            consulted.detail = Some(unheard.detail().into());
            match unheard {
                Unheard::Unavailable(_) if provider.fail_open => Ok(Said::FailedOpen),
                Unheard::Unavailable(detail) | Unheard::NotUnderstood(detail) => {
                    let why = format_args!("provider {}: {detail}", provider.name);
                    let reject = Reject::because(Stage::Consult, Reason::ProviderUnavailable, why);
                    Err(Reject { status: Some(provider.status_on_error), ..reject })
                }
            }
        }
    };
    record.consulted(consulted);
    said
}

/// An answer that was understood.
#[derive(Debug)]
enum Heard {
    Allowed(Allowed),
    Denied(Denied),
}

/// The status of a refusal that a provider chose. One that ends no request is not a choice.
fn refusing(status: u16) -> StatusCode {
    let chosen = StatusCode::from_u16(status).ok().filter(|_| (200..600).contains(&status));
    chosen.unwrap_or(StatusCode::FORBIDDEN)
}
