//! The bounded loop of `pick -> connect -> send`: each try is written into the record, and no try sends twice what can't be repeated.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ::http::{Method, Request, Response};
use tokio::time::{timeout, timeout_at};

use super::deadline::timed;
use super::pipeline::Chosen;
use super::serve_h1::CanUpgrade;
use crate::body::Body;
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::stages::{self, Target};
use crate::tables::Rule;
use crate::telemetry::Record;
use crate::upstream::{Hop, HopProtocol, SendError, UpgradedUpstream};
use crate::worker::Worker;

/// Tries after a first that never reached the server, where no `retry` says otherwise (Istio's default).
const CONNECT_RETRIES: u32 = 2;

/// Sends a request where it was decided to go, and gives the response head.
pub async fn send(
    worker: &Worker,
    target: Target,
    chosen: &Chosen<'_>,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<Response<Body>, Reject> {
    let started = Instant::now();
    if request.method() == Method::CONNECT && matches!(target, Target::Authority(_)) {
        return Box::pin(connect(worker, chosen, request, record)).await;
    }
    let rule = rule(chosen);
    let sent = match rule.and_then(|rule| rule.request_timeout) {
        None => attempts(worker, chosen, rule, request, record).await,
        // Boxed: the other requests must not carry the timer's place.
        Some(limit) => Box::pin(within(limit, worker, chosen, rule, request, record)).await,
    };
    record.upstream_us = stages::micros(started.elapsed());
    sent
}

/// All tries and the response within `timeouts.request`.
async fn within(
    limit: Duration,
    worker: &Worker,
    chosen: &Chosen<'_>,
    rule: Option<&Rule>,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<Response<Body>, Reject> {
    let deadline = tokio::time::Instant::now() + limit;
    match timeout_at(deadline, attempts(worker, chosen, rule, request, record)).await {
        Ok(sent) => sent.map(|response| response.map(|body| timed(body, deadline))),
        Err(_) => {
            stages::overtaken(record, Reason::RequestTimeout, stages::micros(limit));
            let why = format_args!("no response in {limit:?}");
            Err(Reject::because(Stage::Send, Reason::RequestTimeout, why))
        }
    }
}

fn rule<'t>(chosen: &Chosen<'t>) -> Option<&'t Rule> {
    match chosen {
        Chosen::Backend(_, choice) => choice.map(|choice| choice.rule),
        Chosen::Application(_) | Chosen::Address(_) => None,
    }
}

async fn attempts(
    worker: &Worker,
    chosen: &Chosen<'_>,
    rule: Option<&Rule>,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<Response<Body>, Reject> {
    let retry = rule.and_then(|rule| rule.retry.as_ref());
    let mut retries = retry.map_or(CONNECT_RETRIES, |retry| retry.attempts);
    let mut tried = Vec::new();
    loop {
        let hop = pick(worker, chosen, as_asked(request), &tried, record)?;
        if request.method() == Method::CONNECT && hop.protocol() != HopProtocol::Http1 {
            let why = "CONNECT is passed on over HTTP/1 only";
            return Err(Reject::because(Stage::Route, Reason::NoRoute, why));
        }
        stages::attempting(record, &hop);
        let spare = retry.filter(|_| retries > 0).and_then(|_| replayable(request)).map(Box::new);
        let started = Instant::now();
        let outcome = match rule.and_then(|rule| rule.backend_timeout) {
            None => worker.upstream.send(&hop, request).await,
            Some(limit) => match Box::pin(timeout(limit, worker.upstream.send(&hop, request))).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    let why = format_args!("no response in {limit:?}");
                    let reject = Reject::because(Stage::Send, Reason::BackendTimeout, why);
                    Err(SendError { reject, whole: false, facts: None })
                }
            },
        };
        let us = stages::micros(started.elapsed());
        match outcome {
            Ok(sent) => {
                let code = sent.response.status().as_u16();
                stages::attempted(record, Some(&sent.facts), None, us);
                match spare.filter(|_| retry.is_some_and(|retry| retry.codes.contains(&code))) {
                    None => return Ok(sent.response),
                    Some(again) => *request = *again,
                }
            }
            Err(failed) => {
                stages::attempted(record, failed.facts.as_deref(), Some(&failed.reject), us);
                again(failed, spare, retries, request)?;
            }
        }
        retries -= 1;
        tried.push(hop.address());
        if let Some(pause) = retry.and_then(|retry| retry.backoff) {
            Box::pin(tokio::time::sleep(pause)).await;
        }
    }
}

/// A tunnel of our own: this proxy is the forward proxy that the CONNECT asks (RFC 9110 section 9.3.6).
async fn connect(
    worker: &Worker,
    chosen: &Chosen<'_>,
    request: &Request<Body>,
    record: &mut Record,
) -> Result<Response<Body>, Reject> {
    let allowed =
        request.extensions().get::<CanUpgrade>().is_some() && record.connection.source.ip().is_loopback();
    if !allowed {
        return Err(Reject::because(
            Stage::Route,
            Reason::NoRoute,
            "CONNECT is for HTTP/1.1 callers on loopback",
        ));
    }
    let hop = pick(worker, chosen, HopProtocol::Tcp, &[], record)?;
    let connected = stages::connect(worker, &hop, record).await?;
    let mut response = Response::new(Body::Empty);
    response.extensions_mut().insert(UpgradedUpstream::new(connected.io, Default::default()));
    Ok(response)
}

/// What a request's hop speaks, unless its backend says otherwise.
fn as_asked(request: &Request<Body>) -> HopProtocol {
    match request.version() {
        ::http::Version::HTTP_2 => HopProtocol::Http2,
        _ => HopProtocol::Http1,
    }
}

/// Where the next try goes.
fn pick(
    worker: &Worker,
    chosen: &Chosen<'_>,
    protocol: HopProtocol,
    tried: &[SocketAddr],
    record: &mut Record,
) -> Result<Hop, Reject> {
    let picked = match chosen {
        Chosen::Application(application) => Ok(stages::to_application(worker, *application, protocol)),
        Chosen::Address(address) => stages::to_address(worker, *address, protocol),
        Chosen::Backend(backend, _) => worker.upstream.pick(backend, protocol, tried),
    };
    picked.inspect_err(|reject| stages::charge_hop(&mut record.decision, reject))
}

/// What to send once more after a try without a response: what the server can't have acted on, or what a policy lets be
/// sent twice. An answer that was not understood is an answer.
fn again(
    failed: SendError,
    spare: Option<Box<Request<Body>>>,
    retries: u32,
    request: &mut Request<Body>,
) -> Result<(), Reject> {
    let SendError { reject, whole, .. } = failed;
    let untouched = reject.before_request();
    let repeatable =
        untouched || matches!(reject.reason, Reason::ResetBeforeResponse | Reason::BackendTimeout);
    match spare {
        _ if retries == 0 || !repeatable => Err(reject),
        _ if untouched && whole => Ok(()),
        Some(spare) => {
            *request = *spare;
            Ok(())
        }
        None => Err(reject),
    }
}

/// A copy to send again: only of what is all here, and does not turn into a tunnel.
fn replayable(request: &Request<Body>) -> Option<Request<Body>> {
    let body = match request.body() {
        Body::Empty => Body::Empty,
        Body::Full(bytes) => Body::Full(bytes.clone()),
        Body::Http2(_) | Body::Stream(_) => return None,
    };
    if request.method() == Method::CONNECT || request.headers().contains_key(::http::header::UPGRADE) {
        return None;
    }
    let mut copy = Request::new(body);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}
