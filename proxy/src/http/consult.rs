//! `consult`: providers asked about a request, and what they may change of it.

use ::http::{Request, StatusCode};

use super::buffered::{self, Beginning};
use super::pipeline::Line;
use super::sanitize;
use crate::body::Body;
use crate::consult::{self, Caller, Said, Shown};
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::generation::Held;
use crate::peer::Peer;
use crate::stages::{self, Target};
use crate::tables::{Consultations, ProviderPhase, UserAttributes};
use crate::telemetry::Record;
use crate::worker::Worker;

/// Asks everyone who has to be asked in a phase: of the request as it came, or of what somebody who was asked made of it. True:
/// its headers or query are others now.
pub async fn request(
    phase: ProviderPhase,
    line: &Line,
    user: Option<&UserAttributes>,
    held: &Held,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<bool, Reject> {
    let mut consultations = consultations(phase, &line.peer, user, held, request, record);
    if consultations.is_empty() {
        return Ok(false);
    }
    let mut beginning = Beginning::default();
    read(&mut beginning, &consultations, held, request, &line.worker).await.inspect_err(|reject| {
        stages::charge_consultation(record, consultations.first(), reject);
    })?;
    let caller = Caller { peer: &line.peer, user };
    let (mut changed, mut asked) = (false, 0);
    while let Some(&consultation) = consultations.get(asked) {
        asked += 1;
        let provider = held.tables.provider(consultation.provider);
        let body = provider.body.map(|limit| {
            let end = beginning.bytes.len().min(limit.max_bytes as usize);
            beginning.bytes.slice(..end)
        });
        let size = http_body::Body::size_hint(request.body()).exact();
        let shown = Shown {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            authority: sanitize::authority(request),
            headers: request.headers(),
            body: body.as_ref(),
            size,
        };
        let said = consult::ask(&line.worker, provider, &consultation, caller, Some(shown), record).await;
        match said.and_then(|said| take(said, request, record)) {
            Ok(false) => {}
            Ok(true) => {
                changed = true;
                let known = consultations.len();
                let now = self::consultations(phase, &line.peer, user, held, request, record);
                let more = now
                    .into_iter()
                    .filter(|each| consultations.iter().all(|known| known.provider != each.provider));
                consultations.extend(more.collect::<Consultations>());
                if consultations.len() > known {
                    let reading = read(&mut beginning, &consultations, held, request, &line.worker);
                    reading.await.inspect_err(|reject| {
                        stages::charge_consultation(record, consultations.get(known), reject);
                    })?;
                }
            }
            Err(reject) => {
                stages::charge_consultation(record, Some(&consultation), &reject);
                return Err(reject);
            }
        }
    }
    Ok(changed)
}

/// Writes down who would be asked in a phase.
pub fn would_ask(
    phase: ProviderPhase,
    peer: &Peer,
    target: Target,
    user: Option<&UserAttributes>,
    held: &Held,
    request: &Request<Body>,
    record: &mut Record,
) {
    if stages::may_consult(target, held) {
        let consultations = consultations(phase, peer, user, held, request, record);
        stages::would_ask(&consultations, held, record);
    }
}

fn consultations(
    phase: ProviderPhase,
    peer: &Peer,
    user: Option<&UserAttributes>,
    held: &Held,
    request: &Request<Body>,
    record: &Record,
) -> Consultations {
    let attributes = super::pipeline::attributes(request, record, user);
    held.tables.consult(phase, &peer.admission(held).remainder, &attributes)
}

/// Reads as much of the body as the most curious provider sees, unless so much of it was read before.
async fn read(
    beginning: &mut Beginning,
    consultations: &Consultations,
    held: &Held,
    request: &mut Request<Body>,
    worker: &Worker,
) -> Result<(), Reject> {
    let limits = consultations.iter().filter_map(|each| held.tables.provider(each.provider).body);
    let Some(max) = limits.clone().map(|limit| limit.max_bytes as usize).max() else { return Ok(()) };
    if !beginning.whole && beginning.bytes.len() < max {
        let within = worker.deadlines.body;
        *beginning = buffered::beginning(request.body_mut(), max, within, &worker.held_bodies).await?;
    }
    if !beginning.whole && beginning.bytes.len() < max {
        let why = "the body did not come in time to be shown to a provider";
        return Err(Reject::because(Stage::Consult, Reason::ClientStalled, why));
    }
    // Those that see whole bodies only.
    let whole = limits.filter(|limit| !limit.allow_partial).map(|limit| limit.max_bytes as usize).min();
    match whole {
        Some(least)
            if beginning.bytes.len() > least || (!beginning.whole && beginning.bytes.len() >= least) =>
        {
            let why = format_args!(
                "the body is longer than {least} bytes (maxRequestBytes), and may not be shown by part"
            );
            let reject = Reject::because(Stage::Consult, Reason::BodyTooLarge, why);
            Err(Reject { status: Some(StatusCode::PAYLOAD_TOO_LARGE), ..reject })
        }
        _ => Ok(()),
    }
}

/// Does what a provider wants. True: the request's headers or query are others now.
fn take(said: Said, request: &mut Request<Body>, record: &mut Record) -> Result<bool, Reject> {
    let Said::Allowed(allowed) = said else { return Ok(false) };
    if !allowed.response.is_empty() {
        record.asked.get_or_insert_default().additions.0.extend(allowed.response.0);
    }
    if allowed.request.is_empty() && allowed.query.is_empty() {
        return Ok(false);
    }
    allowed.request.apply(request.headers_mut());
    if !allowed.query.is_empty() {
        *request.uri_mut() = consult::with_query(request.uri(), &allowed.query).ok_or_else(|| {
            let why = "with a provider's query parameters the target is not one";
            Reject::because(Stage::Consult, Reason::ProviderUnavailable, why)
        })?;
    }
    Ok(true)
}
