//! `limit`: rate limits taken of a request or an opaque connection, of what this proxy counts first, then of what services
//! count for all proxies.
//!
//! Only an answer that says so lets pass: `failOpen` is for a service that can't be reached, does not answer in time, or
//! says that it is out of order.

mod messages;
mod service;

use std::time::{Duration, Instant};

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, StatusCode};
use smallvec::SmallVec;

use crate::decision::{Reason, Stage};
use crate::edits::{Answer, Edits};
use crate::error::Reject;
use crate::generation::Held;
use crate::limits::Taken;
use crate::peer::Peer;
use crate::stages::micros;
use crate::tables::{
    ConnectionAttributes, Counting, LimitPhase, LocalLimit, RateLimit, RateLimiter, RequestAttributes,
};
use crate::telemetry::{Limited, Quota, Record};
use crate::upstream::call::{Unheard, ask_grpc};
use crate::worker::Worker;

/// What is counted.
#[derive(Clone, Copy)]
pub struct Counted<'r> {
    /// Of a connection,
    pub connection: ConnectionAttributes<'r>,
    /// and of a request on it; `None`: the connection is opaque.
    pub request: Option<RequestAttributes<'r>>,
}

/// What a service is to be asked.
pub struct Question<'t> {
    limit: &'t RateLimit,
    entries: Vec<(String, String)>,
}

/// The limits that count something in a phase; a request that nobody can count is refused.
pub fn counting<'t>(
    phase: LimitPhase,
    peer: &Peer,
    held: &'t Held,
    counted: &Counted<'_>,
    record: &mut Record,
) -> Result<Counting<'t>, Reject> {
    let limits = held.tables.rate_limits();
    if let Some(policy) = limits.quarantined {
        record.decision.deny(Stage::Limit, Reason::QuarantinedPolicy, policy);
        let reject = Reject::new(Stage::Limit, Reason::QuarantinedPolicy);
        return Err(Reject { status: Some(StatusCode::SERVICE_UNAVAILABLE), ..reject });
    }
    Ok(match &counted.request {
        Some(request) => limits.counting(&peer.admission(held).limits, phase, request),
        None => limits.counting_connection(&counted.connection),
    })
}

/// Takes what this proxy counts. What services count is left to be asked.
pub fn take<'t>(
    held: &'t Held,
    counting: &Counting<'t>,
    counted: &Counted<'_>,
    record: &mut Record,
) -> Result<Vec<Question<'t>>, Reject> {
    if counting.is_empty() {
        return Ok(Vec::new());
    }
    let Counted { connection, request } = counted;
    let local = counting.iter().filter_map(|limit| Some((*limit, limit.local.as_ref()?)));
    let keyed = local
        .map(|(limit, local)| (limit, local, limit.hash(connection, request.as_ref(), held.limits.hasher())));
    let keyed: SmallVec<[(&RateLimit, &LocalLimit, u64); 2]> = keyed.collect();
    let now = held.limits.now();
    if keyed.len() > 1 {
        // What one refuses is not taken of another: else a caller that has too much would use up what all share.
        for (limit, local, key) in &keyed {
            let looked = held.limits.buckets(local.number).look(*key, now);
            if !looked.within {
                return Err(exceeded(limit, local, looked, record));
            }
        }
    }
    for (limit, local, key) in keyed {
        let taken = held.limits.buckets(local.number).take(key, now);
        if !taken.within {
            return Err(exceeded(limit, local, taken, record));
        }
        tell(quota(local, taken), record);
    }
    let global = counting.iter().filter(|limit| limit.global.is_some());
    let question =
        |limit: &&'t RateLimit| Question { limit, entries: limit.entries(connection, request.as_ref()) };
    Ok(global.map(question).collect())
}

/// Writes down what would be taken, and takes nothing.
pub fn would_take(held: &Held, counting: &Counting<'_>, record: &mut Record) {
    for limit in counting {
        let limiter = limit.global.as_ref().and_then(|global| global.limiter);
        let provider = limiter.map(|limiter| held.tables.limiter(limiter).name.clone());
        record.asked.get_or_insert_default().limits.push(Limited {
            policy: limit.policy,
            provider,
            outcome: Reason::NotReached,
            us: 0,
            detail: Some("not taken: this only explains, as if there were enough".into()),
        });
    }
}

/// Asks the services, one after the other, and writes down what they said. What they add to the request is given back.
pub async fn ask(
    worker: &Worker,
    held: &Held,
    questions: Vec<Question<'_>>,
    record: &mut Record,
) -> Result<Edits, Reject> {
    let mut edits = Edits::default();
    for Question { limit, entries } in questions {
        let Some(global) = &limit.global else { continue };
        let limiter = global.limiter.map(|limiter| held.tables.limiter(limiter));
        let started = Instant::now();
        let heard = match (worker.memory.asking.begin(), limiter) {
            (None, _) => Err(Unheard::Unavailable("this worker waits for too many answers already".into())),
            (Some(_asking), Some(RateLimiter { backend: Some(backend), timeout, .. })) => {
                let question = service::question(global, entries);
                let asked =
                    ask_grpc(&worker.upstream, backend, service::SHOULD_RATE_LIMIT, &question, *timeout);
                asked.await.and_then(|response| service::heard(&limit.name, response))
            }
            (Some(_), _) => Err(Unheard::NotUnderstood("its service is not known here".into())),
        };
        edits.0.extend(conclude(limit, limiter, heard, started, record)?.0);
    }
    Ok(edits)
}

/// What follows from an answer, written down.
fn conclude(
    limit: &RateLimit,
    limiter: Option<&RateLimiter>,
    heard: Result<service::Heard, Unheard>,
    started: Instant,
    record: &mut Record,
) -> Result<Edits, Reject> {
    let fail_open = limit.global.as_ref().is_some_and(|global| global.fail_open);
    let mut limited = Limited {
        policy: limit.policy,
        provider: limiter.map(|limiter| limiter.name.clone()),
        outcome: Reason::WithinLimit,
        us: micros(started.elapsed()),
        detail: None,
    };
    let said = match heard {
        Ok(heard) => {
            limited.detail = heard.ignored.map(|name| format!("it may not add {name}").into());
            match heard.over {
                false => {
                    let asked = record.asked.get_or_insert_default();
                    asked.additions.0.extend(heard.response.0);
                    if let Some(quota) = heard.quota {
                        tell(quota, record);
                    }
                    Ok(heard.request)
                }
                true => {
                    limited.outcome = Reason::LimitExceeded;
                    let mut headers = HeaderMap::new();
                    heard.response.apply(&mut headers);
                    Err(refuse(limit, heard.quota, Answer { headers, body: heard.body }, record))
                }
            }
        }
        Err(unheard) => {
            limited.outcome = Reason::LimiterUnavailable;
            limited.detail = Some(unheard.detail().into());
            match unheard {
                Unheard::Unavailable(_) if fail_open => Ok(Edits::default()),
                Unheard::Unavailable(detail) | Unheard::NotUnderstood(detail) => {
                    record.decision.deny(Stage::Limit, Reason::LimiterUnavailable, limit.policy);
                    Err(Reject::because(Stage::Limit, Reason::LimiterUnavailable, detail))
                }
            }
        }
    };
    record.asked.get_or_insert_default().limits.push(limited);
    said
}

/// Too much, by this proxy's own count.
fn exceeded(limit: &RateLimit, local: &LocalLimit, taken: Taken, record: &mut Record) -> Reject {
    refuse(limit, Some(quota(local, taken)), Answer::default(), record)
}

fn refuse(limit: &RateLimit, quota: Option<Quota>, mut answer: Answer, record: &mut Record) -> Reject {
    record.decision.deny(Stage::Limit, Reason::LimitExceeded, limit.policy);
    let reset = quota.as_ref().and_then(|quota| quota.reset_secs);
    if let Some(seconds) = reset
        && !answer.headers.contains_key(RETRY_AFTER)
    {
        // A map with this much in it has room for one more.
        let _ = answer.headers.try_insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    let asked = record.asked.get_or_insert_default();
    asked.answer = Some(answer);
    if quota.is_some() {
        asked.quota = quota;
    }
    Reject::new(Stage::Limit, Reason::LimitExceeded)
}

/// Keeps what leaves least for the caller to know.
fn tell(quota: Quota, record: &mut Record) {
    let asked = record.asked.get_or_insert_default();
    if asked.quota.as_ref().is_none_or(|known| quota.remaining < known.remaining) {
        asked.quota = Some(quota);
    }
}

fn quota(local: &LocalLimit, taken: Taken) -> Quota {
    Quota {
        policy: local.header.clone(),
        remaining: taken.remaining,
        reset_secs: Some(whole_seconds(taken.until_more)),
    }
}

/// Not before it is time.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
