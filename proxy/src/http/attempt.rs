//! The bounded loop of `pick -> connect -> send`: each try is written into the record, and no try sends twice what can't be repeated.

use std::net::SocketAddr;
use std::time::Duration;

use ::http::{Method, Request, Response};
use tokio::time::{timeout, timeout_at};

use super::deadline::timed;
use super::pipeline::Chosen;
use super::reply;
use super::serve_h1::CanUpgrade;
use crate::body::Body;
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::stages::{self, Target};
use crate::tables::{Retry, Rule};
use crate::telemetry::{Record, Side};
use crate::upstream::{Hop, HopProtocol, SendError, Sent, UpgradedUpstream};
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
    if request.method() == Method::CONNECT && matches!(target, Target::Authority(_)) {
        return Box::pin(connect(worker, chosen, request, record)).await;
    }
    let rule = rule(chosen);
    let sent = match rule.and_then(|rule| rule.request_timeout) {
        None => attempts(worker, chosen, rule, request, record).await,
        // Boxed: the other requests must not carry the timer's place.
        Some(limit) => Box::pin(within(limit, worker, chosen, rule, request, record)).await,
    };
    // Deciding ends where this begins.
    record.upstream_us = record.age().saturating_sub(record.policy_us);
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
        Chosen::Backend(_, choice, _) => choice.map(|choice| choice.rule),
        Chosen::Application(..) | Chosen::Address(_) => None,
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
        let hop = pick(worker, chosen, as_asked(request, record.connection.side), &tried, record)?;
        if request.method() == Method::CONNECT && hop.protocol() != HopProtocol::Http1 {
            let why = "CONNECT is passed on over HTTP/1 only";
            return Err(Reject::because(Stage::Route, Reason::NoRoute, why));
        }
        stages::attempting(record, &hop);
        let spare = retry.filter(|_| retries > 0).and_then(|_| replayable(request)).map(Box::new);
        let started = record.age();
        // A block of its own: what came of a try is not to be held while the next one is waited for.
        let answered = {
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
            let us = record.age().saturating_sub(started);
            settle(outcome, us, retry, spare, retries, request, record)?
        };
        if let Some(response) = answered {
            return Ok(response);
        }
        retries -= 1;
        tried.push(hop.address());
        if let Some(pause) = retry.and_then(|retry| retry.backoff) {
            Box::pin(tokio::time::sleep(pause)).await;
        }
    }
}

/// Writes down what came of a try. `None`: the request, as it is now, is to be sent again.
fn settle(
    outcome: Result<Sent, SendError>,
    us: u32,
    retry: Option<&Retry>,
    spare: Option<Box<Request<Body>>>,
    retries: u32,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<Option<Response<Body>>, Reject> {
    match outcome {
        Ok(sent) => {
            let code = sent.response.status().as_u16();
            stages::attempted(record, Some(&sent.facts), None, us);
            match spare.filter(|_| retry.is_some_and(|retry| retry.codes.contains(&code))) {
                None => return Ok(Some(sent.response)),
                Some(again) => *request = *again,
            }
        }
        Err(mut failed) => {
            failed.reject = callers_doing(failed.reject, record);
            stages::attempted(record, failed.facts.as_deref(), Some(&failed.reject), us);
            again(failed, spare, retries, request)?;
        }
    }
    Ok(None)
}

/// Over HTTP/2 a request whose body breaks is reset towards the server, and all that is known of that is the reset. Why the
/// body broke is known to whoever read it.
fn callers_doing(reject: Reject, record: &Record) -> Reject {
    match record.upload.as_ref().and_then(|upload| upload.failed.get()) {
        Some(reason) if reject.reason == Reason::ResetBeforeResponse => Reject::new(reject.stage, reason),
        _ => reject,
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
    response.extensions_mut().insert(UpgradedUpstream::new(
        connected.io,
        Default::default(),
        connected.facts.proof.clone(),
    ));
    Ok(response)
}

/// What a request's hop speaks, unless its backend says otherwise. What came to a Gateway by HTTP/2, as browsers do, says
/// nothing of what its backend speaks; gRPC does.
fn as_asked(request: &Request<Body>, side: Side) -> HopProtocol {
    match request.version() {
        ::http::Version::HTTP_2 if side != Side::Gateway || reply::is_grpc(request.headers()) => {
            HopProtocol::Http2
        }
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
        Chosen::Application(application, _) => Ok(stages::to_application(worker, *application, protocol)),
        Chosen::Address(address) => stages::to_address(worker, *address, protocol),
        Chosen::Backend(backend, ..) => worker.upstream.pick(backend, protocol, tried).and_then(|hop| {
            // A workload may call itself. What comes to an edge from outside comes to it once, and never to its own doors.
            match record.connection.side == Side::Gateway && worker.own.leads_back(hop.address()) {
                true => Err(stages::to_itself(hop.address())),
                false => Ok(hop),
            }
        }),
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

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn failed(stage: Stage, reason: Reason, whole: bool) -> SendError {
        SendError { reject: Reject::new(stage, reason), whole, facts: None }
    }

    fn spare() -> Option<Box<Request<Body>>> {
        Some(Box::new(Request::get("/spare").body(Body::Empty).unwrap()))
    }

    #[test]
    fn only_what_is_all_here_and_no_tunnel_is_kept_to_be_sent_again() {
        let body = || Body::full("all");
        let put = Request::put("/a").header("x-a", "1").body(body()).unwrap();
        let copy = replayable(&put).unwrap();
        assert_eq!(
            (copy.method(), copy.uri().path(), &copy.headers()["x-a"]),
            (&Method::PUT, "/a", put.headers().get("x-a").unwrap())
        );
        assert!(matches!(copy.body(), Body::Full(Some(bytes)) if bytes == "all"));

        let stream = Body::Stream(Box::pin(http_body_util::Empty::new().map_err(|never| match never {})));
        assert!(replayable(&Request::put("/a").body(stream).unwrap()).is_none());
        assert!(replayable(&Request::get("/a").header("upgrade", "x").body(Body::Empty).unwrap()).is_none());
        assert!(replayable(&Request::connect("a:1").body(Body::Empty).unwrap()).is_none());
    }

    #[test]
    fn what_the_server_cannot_have_acted_on_is_sent_again_and_other_things_only_where_a_policy_says_so() {
        use Reason::*;
        let cases = [
            ("refused, whole", failed(Stage::Connect, ConnectRefused, true), None, Ok("/")),
            ("refused, taken from", failed(Stage::Connect, ConnectRefused, false), None, Err(ConnectRefused)),
            (
                "reset, no policy",
                failed(Stage::Send, ResetBeforeResponse, true),
                None,
                Err(ResetBeforeResponse),
            ),
            ("reset, with policy", failed(Stage::Send, ResetBeforeResponse, false), spare(), Ok("/spare")),
            ("too slow, no policy", failed(Stage::Send, BackendTimeout, false), None, Err(BackendTimeout)),
            ("too slow, with policy", failed(Stage::Send, BackendTimeout, false), spare(), Ok("/spare")),
            ("not understood", failed(Stage::Send, BadResponse, true), spare(), Err(BadResponse)),
            (
                "another identity",
                failed(Stage::Connect, IdentityMismatch, true),
                spare(),
                Err(IdentityMismatch),
            ),
        ];
        for (what, failure, spare, expected) in cases {
            let mut request = Request::get("/").body(Body::Empty).unwrap();
            let outcome = again(failure, spare, 1, &mut request);
            let outcome = outcome.map(|()| request.uri().path()).map_err(|reject| reject.reason);
            assert_eq!(outcome, expected, "{what}");
        }
        let mut request = Request::default();
        let last = again(failed(Stage::Connect, ConnectRefused, true), None, 0, &mut request);
        assert_eq!(last.unwrap_err().reason, ConnectRefused, "no try is left");
    }
}
