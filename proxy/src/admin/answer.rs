//! What each admin path answers.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::Value;

use super::{AdminState, Kind};
use crate::telemetry::METRICS_CONTENT_TYPE;

/// The answer to one request. Reads the head only.
pub(super) fn answer<B>(request: &Request<B>, kind: Kind, state: &AdminState) -> Response<Full<Bytes>> {
    let mut answer = route(request, kind, state);
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn route<B>(request: &Request<B>, kind: Kind, state: &AdminState) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal =
            text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD: this interface only reads\n");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    if kind == Kind::Admin && !addressed_to_loopback(request) {
        return text(
            StatusCode::MISDIRECTED_REQUEST,
            "address this interface by localhost or an IP address\n",
        );
    }
    match (request.uri().path(), kind) {
        ("/ready" | "/healthz/ready", _) => ready(state),
        ("/live", _) => live(state),
        ("/metrics" | "/stats/prometheus", Kind::Admin | Kind::Metrics) => metrics(state),
        ("/config", Kind::Admin) => json(StatusCode::OK, &state.telemetry.config().to_json()),
        ("/attestation", Kind::Admin) => json(StatusCode::OK, &(state.attestation)()),
        ("/jwks", Kind::Admin) => json(StatusCode::OK, &state.telemetry.issuers()),
        ("/coverage", Kind::Admin) => json(StatusCode::OK, &state.telemetry.coverage()),
        ("/candidate", Kind::Admin) => match &state.candidate {
            Some(report) => json(StatusCode::OK, &report()),
            None => text(
                StatusCode::NOT_FOUND,
                "this proxy has no candidate; give `writ run` one with --candidate\n",
            ),
        },
        ("/explain", Kind::Admin) => explain(request.uri().query().unwrap_or_default(), state),
        ("/", _) => text(StatusCode::OK, index(kind)),
        _ => text(StatusCode::NOT_FOUND, "no such path; / lists them\n"),
    }
}

fn index(kind: Kind) -> &'static str {
    match kind {
        Kind::Admin => {
            "/ready        200 when traffic is welcome, and what to look at; else 503 and why not
\
             /live         200, or 503 when only a restart helps
\
             /metrics      OpenMetrics\n\
             /config       version and digests in force, and what became of each resource\n\
             /attestation  what crypto this process runs\n\
             /jwks         keys of the issuers of tokens: how many, since when, and why not newer ones\n\
             /coverage     rules that nothing met, and what no policy decided\n\
             /candidate    what the configuration of --candidate would change of a sample of the traffic\n\
             /explain?..   the record that the request described would leave\n"
        }
        Kind::Health => "/ready\n/healthz/ready\n/live\n",
        Kind::Metrics => "/metrics\n/stats/prometheus\n/ready\n/live\n",
    }
}

fn live(state: &AdminState) -> Response<Full<Bytes>> {
    match state.ready.check_live() {
        Ok(()) => text(StatusCode::OK, "live\n"),
        Err(lost) => text(StatusCode::SERVICE_UNAVAILABLE, lost),
    }
}

fn ready(state: &AdminState) -> Response<Full<Bytes>> {
    match state.ready.check() {
        Ok(degraded) => text(StatusCode::OK, format!("ready\n{degraded}")),
        Err(reasons) => text(StatusCode::SERVICE_UNAVAILABLE, reasons),
    }
}

fn metrics(state: &AdminState) -> Response<Full<Bytes>> {
    match state.telemetry.metrics() {
        Ok(metrics) => respond(StatusCode::OK, METRICS_CONTENT_TYPE, metrics),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "metrics can't be encoded\n"),
    }
}

fn explain(query: &str, state: &AdminState) -> Response<Full<Bytes>> {
    let Some(explain) = &state.explain else {
        return text(StatusCode::NOT_FOUND, "this proxy has no explain; try `writ explain`\n");
    };
    match explain(query) {
        Ok(record) => json(StatusCode::OK, &record),
        Err(why) => text(StatusCode::BAD_REQUEST, why + "\n"),
    }
}

/// A web page whose name was made to point at loopback must not read this (DNS rebinding), so names are refused.
/// Without a Host (HTTP/1.0, a Unix socket) there is no page behind it.
fn addressed_to_loopback<B>(request: &Request<B>) -> bool {
    let Some(host) = request.headers().get(HOST) else { return true };
    let Ok(authority) = host.to_str().unwrap_or("/").parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

fn json(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    respond(status, "application/json", format!("{value:#}\n"))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body)
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
