//! A SPIFFE Workload API: X.509-SVIDs and bundles as it streams them, over a connection that is made again when it ends.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::transport::Endpoint;
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Context, X509Svid};

use super::set::{Key, Set};
use super::source::{ENDPOINT_VARIABLE, WorkloadApi, socket_path};
use super::{IdentityError, SpiffeId};

/// The first wait after a failure; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// No wait is longer. SPIFFE Workload API, section 5: clients back off and never give up.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The same for a start, that somebody waits for.
const LONGEST_START_WAIT: Duration = Duration::from_secs(1);
/// An API that takes a connection answers on it, or says that it can't.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the API said last.
pub(super) type Update = Result<Set, IdentityError>;

/// The first set, waited for within `patience`: at a start its agent may not be there yet, or not know the workload.
pub(super) async fn first(api: &WorkloadApi, own: Option<&SpiffeId>, patience: Duration) -> Update {
    let deadline = tokio::time::Instant::now() + patience;
    let mut said = String::new();
    let mut wait = FIRST_WAIT;
    loop {
        let mut first = None;
        let mut take = |update| {
            first = Some(update);
            // Nothing more is wanted of this stream.
            Duration::ZERO
        };
        let outcome = tokio::time::timeout_at(deadline, stream(api, own, &mut take)).await;
        let error = match (first, outcome) {
            (Some(Ok(set)), _) => return Ok(set),
            (Some(Err(error)), _) | (None, Ok(Err(error))) => error,
            (None, Ok(Ok(_))) => failed(api, "the stream ended"),
            (None, Err(_)) => failed(api, format_args!("no identity within {patience:?}")),
        };
        if tokio::time::Instant::now() + wait >= deadline {
            return Err(error);
        }
        if said != error.to_string() {
            said = error.to_string();
            tracing::warn!(problem = %said, "no identity yet; waiting for it");
        }
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(LONGEST_START_WAIT);
    }
}

/// Hands every update to `take`, failures too, for as long as it is polled. `take` tells how long the API may be silent
/// before it is asked anew: an agent that hangs says nothing, and a certificate runs out meanwhile.
pub(super) async fn follow(
    api: &WorkloadApi,
    own: Option<&SpiffeId>,
    mut take: impl FnMut(Update) -> Duration,
) {
    let mut wait = FIRST_WAIT;
    loop {
        let mut answered = false;
        let mut told = |update| {
            answered = true;
            take(update)
        };
        let ended = stream(api, own, &mut told).await;
        if answered {
            wait = FIRST_WAIT;
        }
        match ended {
            Ok(Ended::Closed) => {
                take(Err(failed(api, "the stream ended")));
            }
            Ok(Ended::Silent) => {}
            Err(error) => {
                take(Err(error));
            }
        }
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// How a stream came to its end.
enum Ended {
    Closed,
    Silent,
}

/// One connection's life.
async fn stream(
    api: &WorkloadApi,
    own: Option<&SpiffeId>,
    take: &mut impl FnMut(Update) -> Duration,
) -> Result<Ended, IdentityError> {
    let path = path(api)?;
    let of_api = |error: WorkloadApiError| failed(api, explain(&error));
    let opened = async {
        let client = WorkloadApiClient::connect(Endpoint::Unix(path)).await?;
        client.stream_x509_contexts().await
    };
    let silent = || failed(api, format_args!("no answer within {ANSWER_TIMEOUT:?}"));
    let opened = tokio::time::timeout(ANSWER_TIMEOUT, opened).await.map_err(|_| silent())?;
    let mut contexts = opened.map_err(of_api)?;
    let mut patience = ANSWER_TIMEOUT;
    let mut answered = false;
    loop {
        match tokio::time::timeout(patience, contexts.next()).await {
            Ok(Some(context)) => {
                patience = take(set(api, &context.map_err(of_api)?, own));
                answered = true;
            }
            Ok(None) => return Ok(Ended::Closed),
            Err(_) if answered => return Ok(Ended::Silent),
            Err(_) => return Err(silent()),
        }
    }
}

fn path(api: &WorkloadApi) -> Result<PathBuf, IdentityError> {
    if let Some(path) = &api.path {
        return Ok(path.clone());
    }
    let unusable = |why: &str| failed(api, format_args!("{ENDPOINT_VARIABLE} {why}"));
    let endpoint = std::env::var(ENDPOINT_VARIABLE)
        .map_err(|_| unusable("is not set; name the socket: spiffe:unix:///path"))?;
    socket_path(&endpoint).ok_or_else(|| unusable(&format!("is `{endpoint}`; expected unix:///path")))
}

fn failed(api: &WorkloadApi, why: impl std::fmt::Display) -> IdentityError {
    IdentityError::WorkloadApi { api: api.clone(), why: why.to_string() }
}

/// The error with its causes, and what to look at where there is something to.
fn explain(error: &WorkloadApiError) -> String {
    if matches!(error, WorkloadApiError::NoIdentityIssued) {
        return "it issues this process no identity; does a registration entry select it?".into();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            let _ = write!(text, ": {next_text}");
        }
        cause = next.source();
    }
    text
}

/// The set of the SVID that is meant, with the bundles of its own and of federated domains.
fn set(api: &WorkloadApi, context: &X509Context, own: Option<&SpiffeId>) -> Update {
    let svid = choose(api, context.svids(), own)?;
    let der = |certificate: &spiffe::Certificate| CertificateDer::from(certificate.as_bytes().to_vec());
    let roots: BTreeMap<_, _> = context
        .bundle_set()
        .iter()
        .map(|(domain, bundle)| (domain.as_str().to_owned(), bundle.authorities().iter().map(der).collect()))
        .collect();
    Ok(Set {
        chain: svid.cert_chain().iter().map(der).collect(),
        key: Key::new(PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec()).into()),
        roots,
    })
}

/// The SVID with the hint that was asked for; without one the workload's own, else the first, which is the default
/// identity (SPIFFE Workload API, section 5.2.1).
fn choose<'a>(
    api: &WorkloadApi,
    svids: &'a [std::sync::Arc<X509Svid>],
    own: Option<&SpiffeId>,
) -> Result<&'a X509Svid, IdentityError> {
    let with = |wanted: &str| svids.iter().find(|svid| svid.hint() == Some(wanted));
    let is_own = |svid: &&std::sync::Arc<X509Svid>| {
        own.is_some_and(|own| svid.spiffe_id().to_string() == own.as_str())
    };
    let chosen = match &api.hint {
        Some(hint) => with(hint),
        None => svids.iter().find(is_own).or_else(|| svids.first()),
    };
    chosen.map(|svid| &**svid).ok_or_else(|| {
        let hints: Vec<_> = svids.iter().map(|svid| svid.hint().unwrap_or("(none)")).collect();
        failed(
            api,
            format_args!("no SVID has the hint that was asked for; their hints: {}", hints.join(", ")),
        )
    })
}

/// Three quarters to five quarters of a wait, so that what lost one agent does not come back at once.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.75 + 0.5 * rand::random::<f64>())
}

#[cfg(test)]
mod tests;
