//! A SPIFFE Workload API: X.509-SVIDs, bundles and revocation lists as it streams them, over a connection that is made again when it ends.

mod messages;
mod stream;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use self::messages::{X509Svid, X509SvidResponse};
use self::stream::{NO_IDENTITY, Refused, Stream};
use super::set::{Key, Set};
use super::source::{ENDPOINT_VARIABLE, WorkloadApi, socket_path};
use super::spiffe_id::is_trust_domain;
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
    let of_api = |why: Refused| failed(api, why);
    let silent = || failed(api, format_args!("no answer within {ANSWER_TIMEOUT:?}"));
    let opened = tokio::time::timeout(ANSWER_TIMEOUT, Stream::open(&path)).await.map_err(|_| silent())?;
    let mut answers = opened.map_err(of_api)?;
    let mut patience = ANSWER_TIMEOUT;
    let mut answered = false;
    loop {
        match tokio::time::timeout(patience, answers.next()).await {
            Ok(Ok(Some(answer))) => {
                patience = take(set(api, answer, own));
                answered = true;
            }
            Ok(Ok(None)) => return Ok(Ended::Closed),
            Ok(Err(why)) => return Err(of_api(why)),
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

/// The set of the SVID that is meant, with the bundles of its own and of federated domains, and the revocation lists.
fn set(api: &WorkloadApi, answer: X509SvidResponse, own: Option<&SpiffeId>) -> Update {
    let X509SvidResponse { svids, crl, federated_bundles } = answer;
    let chosen = choose(api, &svids, own)?;
    let mut roots = BTreeMap::new();
    for svid in &svids {
        let id = svid.spiffe_id.parse::<SpiffeId>();
        let id = id.map_err(|why| failed(api, format_args!("it gave an SVID of no SPIFFE id: {why}")))?;
        roots.insert(id.trust_domain().to_owned(), certificates(api, "bundle", &svid.bundle)?);
    }
    for (name, bundle) in &federated_bundles {
        let domain = name.strip_prefix("spiffe://").unwrap_or(name);
        if !is_trust_domain(domain) {
            return Err(failed(api, format_args!("it gave a bundle of `{name}`, which is no trust domain")));
        }
        let bundle = certificates(api, "bundle", bundle)?;
        roots.entry(domain.to_owned()).or_insert(bundle);
    }
    Ok(Set {
        chain: certificates(api, "certificate", &svids[chosen].x509_svid)?,
        key: Key::new(PrivatePkcs8KeyDer::from(svids[chosen].x509_svid_key.clone()).into()),
        roots,
        lists: crl.into_iter().map(Into::into).collect(),
    })
}

/// Certificates one behind the other, DER (SPIFFE Workload API, section 5.2.1).
fn certificates(
    api: &WorkloadApi,
    what: &str,
    mut der: &[u8],
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der)
            .map_err(|error| failed(api, format_args!("it gave a {what} that can't be read: {error}")))?;
        all.push(CertificateDer::from(der[..der.len() - rest.len()].to_vec()));
        der = rest;
    }
    if all.is_empty() { Err(failed(api, format_args!("it gave an empty {what}"))) } else { Ok(all) }
}

/// Number of the SVID with the hint that was asked for; without one the workload's own, else the first, which is the default
/// identity (SPIFFE Workload API, section 5.2.1).
fn choose(api: &WorkloadApi, svids: &[X509Svid], own: Option<&SpiffeId>) -> Result<usize, IdentityError> {
    let is_own = |svid: &X509Svid| own.is_some_and(|own| svid.spiffe_id == own.as_str());
    let chosen = match &api.hint {
        Some(hint) => svids.iter().position(|svid| svid.hint == *hint),
        None => svids.iter().position(is_own).or((!svids.is_empty()).then_some(0)),
    };
    chosen.ok_or_else(|| {
        if svids.is_empty() {
            return failed(api, NO_IDENTITY);
        }
        let hint = |svid: &X509Svid| if svid.hint.is_empty() { "(none)".into() } else { svid.hint.clone() };
        let hints: Vec<_> = svids.iter().map(hint).collect();
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
