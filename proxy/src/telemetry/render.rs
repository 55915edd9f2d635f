//! One record as one JSON line, in the shape of the decision record. The same code serves the log, `writ explain` and
//! the tests.

use std::time::{Instant, SystemTime};

use http::Method;

use super::fragments::{self, IDENTITY_LIMIT, NAME_LIMIT};
use super::json;
use super::open::Begun;
use super::options::ProxyFragments;
use super::queue::END;
use super::record::{Asked, Attempt, ConnectionFacts, Consulted, Cut, Limited, Marks, Record, Side};
use crate::decision::{Check, Objects, Outcome, PolicyRef, Reason, Shadow};

/// The whole line, with its line end.
pub(super) fn line(record: &Record, elapsed_us: u64, proxy: &ProxyFragments, out: &mut Vec<u8>) {
    head(record, proxy, out);
    durations(record, elapsed_us, out);
    decision(record, out);
    end(record, out);
    json::raw(out, END);
}

/// The same as text without its line end.
pub(super) fn text(record: &Record, proxy: &ProxyFragments) -> String {
    let mut out = Vec::with_capacity(2048);
    line(record, record.elapsed_us(), proxy, &mut out);
    out.pop();
    json::into_text(out)
}

/// A line that says "still here", with what is decided and the bytes so far.
pub(super) fn progress(record: &Record, now: Instant, proxy: &ProxyFragments, out: &mut Vec<u8>) {
    head(record, proxy, out);
    decision(record, out);
    progress_tail(record.started, now, out);
}

/// The beginning of one for a record that is out of reach, from what is known of every record.
pub(super) fn bare_progress_head(
    id: u128,
    time: SystemTime,
    connection: &ConnectionFacts,
    proxy: &ProxyFragments,
    out: &mut Vec<u8>,
) {
    identity(id, time, out);
    json::raw(out, proxy.of(connection.side));
    json::raw(out, &connection.rendered.of(connection).peers);
    json::raw(out, "}");
}

/// The end of a `progress` line.
pub(super) fn progress_tail(started: Instant, now: Instant, out: &mut Vec<u8>) {
    json::raw(out, r#","progress":{"total_us":"#);
    json::number(out, now.saturating_duration_since(started).as_micros() as u64);
    json::raw(out, "}}\n");
}

fn head(record: &Record, proxy: &ProxyFragments, out: &mut Vec<u8>) {
    identity(record.id, record.time, out);
    if let Some((trace, span)) = record.trace {
        json::raw(out, r#","trace_id":"#);
        json::hex(out, trace, 32);
        json::raw(out, r#","span_id":"#);
        json::hex(out, span.into(), 16);
    }
    if let Some(previous) = record.previous {
        json::raw(out, r#","previous":"#);
        json::ulid(out, previous);
    }
    json::raw(out, proxy.of(record.connection.side));
    json::raw(out, record.config.rendered.of(&record.config));
    json::raw(out, &record.connection.rendered.of(&record.connection).peers);
    if let Some(service) = &record.service {
        json::raw(out, r#","service":"#);
        json::bounded_string(out, service, NAME_LIMIT);
    }
    json::raw(out, "}");
    request(record, out);
    response(record, out);
    route(record, out);
}

fn identity(id: u128, time: SystemTime, out: &mut Vec<u8>) {
    json::raw(out, r#"{"time":"#);
    json::time(out, time);
    json::raw(out, r#","id":"#);
    json::ulid(out, id);
}

/// The request of such a record.
pub(super) fn begun(request: &Begun, out: &mut Vec<u8>) {
    let Begun { protocol, method, authority, path, upload } = request;
    asked_for(protocol, method.as_ref(), authority.as_deref(), path.as_deref(), out);
    json::raw(out, r#""bytes":"#);
    json::number(out, upload.as_ref().map_or(0, |upload| upload.bytes.get()));
    json::raw(out, "}");
}

/// The request, as far as it was asked.
fn asked_for(
    protocol: &str,
    method: Option<&Method>,
    authority: Option<&str>,
    path: Option<&str>,
    out: &mut Vec<u8>,
) {
    json::raw(out, r#","request":{"#);
    if !protocol.is_empty() {
        json::raw(out, r#""protocol":"#);
        json::string(out, protocol);
        json::raw(out, ",");
    }
    if let Some(method) = method {
        json::raw(out, r#""method":"#);
        json::bounded_string(out, method.as_str(), NAME_LIMIT);
        json::raw(out, ",");
    }
    if let Some(authority) = authority {
        json::raw(out, r#""authority":"#);
        json::bounded_string(out, authority, NAME_LIMIT);
        json::raw(out, ",");
    }
    if let Some(path) = path {
        json::raw(out, r#""path":"#);
        json::bounded_string(out, path, PATH_LIMIT);
        json::raw(out, ",");
    }
}

fn request(record: &Record, out: &mut Vec<u8>) {
    let Record { protocol, method, authority, path, .. } = record;
    asked_for(protocol, method.as_ref(), authority.as_deref(), path.as_deref(), out);
    if let Some(remote) = &record.remote {
        json::raw(out, r#""remote":"#);
        json::string(out, &remote.to_string());
        json::raw(out, ",");
    }
    json::raw(out, r#""bytes":"#);
    json::number(out, record.bytes().0);
    json::raw(out, "}");
}

fn response(record: &Record, out: &mut Vec<u8>) {
    let (_, bytes) = record.bytes();
    if record.status == 0 && bytes == 0 {
        return;
    }
    json::raw(out, r#","response":{"#);
    if record.status != 0 {
        json::raw(out, r#""status":"#);
        json::number(out, record.status);
        json::raw(out, ",");
    }
    if let Some(status) = record.grpc_status {
        json::raw(out, r#""grpc_status":"#);
        json::number(out, status);
        json::raw(out, ",");
    }
    json::raw(out, r#""bytes":"#);
    json::number(out, bytes);
    json::raw(out, "}");
}

fn route(record: &Record, out: &mut Vec<u8>) {
    let route = record.decision.route;
    if route.is_none() && record.backend.is_none() && record.attempts.is_empty() {
        return;
    }
    json::raw(out, r#","route":"#);
    let mut comma = Comma::new(b'{');
    if record.config.objects.get(route).is_some() {
        comma.next(out);
        json::raw(out, r#""policy":"#);
        policy(&record.config.objects, route, Version::Stated, out);
    }
    if let Some(backend) = &record.backend {
        comma.next(out);
        json::raw(out, r#""backend":"#);
        json::bounded_string(out, backend, NAME_LIMIT);
    }
    if let Some((weight, sum)) = record.weight {
        comma.next(out);
        json::raw(out, r#""weight":""#);
        json::number(out, weight);
        json::raw(out, "/");
        json::number(out, sum);
        json::raw(out, "\"");
    }
    if !record.attempts.is_empty() {
        comma.next(out);
        json::raw(out, r#""attempts":"#);
        let mut between = Comma::new(b'[');
        for one in record.attempts.iter().take(ATTEMPT_LIMIT) {
            between.next(out);
            attempt(one, out);
        }
        json::raw(out, "]");
    }
    json::raw(out, "}");
}

fn attempt(attempt: &Attempt, out: &mut Vec<u8>) {
    json::raw(out, r#"{"endpoint":"#);
    json::address(out, attempt.endpoint);
    if let Some(identity) = &attempt.identity {
        json::raw(out, r#","identity":"#);
        json::bounded_string(out, identity, IDENTITY_LIMIT);
    }
    json::raw(out, r#","outcome":"#);
    json::string(out, attempt.failed.map_or("ok", Reason::as_str));
    json::raw(out, r#","us":"#);
    json::number(out, attempt.us);
    json::raw(out, "}");
}

fn durations(record: &Record, total_us: u64, out: &mut Vec<u8>) {
    json::raw(out, r#","duration_us":{"total":"#);
    json::number(out, total_us);
    json::raw(out, r#","policy":"#);
    json::number(out, record.policy_us);
    if !record.attempts.is_empty() {
        json::raw(out, r#","upstream":"#);
        json::number(out, record.upstream_us);
    }
    json::raw(out, "}");
}

fn decision(record: &Record, out: &mut Vec<u8>) {
    let (decision, objects) = (&record.decision, &record.config.objects);
    json::raw(
        out,
        match decision.outcome {
            Outcome::Allow => r#","decision":{"outcome":"allow","stage":""#,
            Outcome::Deny => r#","decision":{"outcome":"deny","stage":""#,
        },
    );
    json::raw(out, decision.stage.as_str());
    json::raw(out, r#"","reason":""#);
    json::raw(out, decision.reason.as_str());
    json::raw(out, "\"");
    if objects.get(decision.policy).is_some() {
        json::raw(out, r#","policy":"#);
        policy(objects, decision.policy, Version::Stated, out);
    }
    json::raw(out, r#","checks":"#);
    let mut comma = Comma::new(b'[');
    for kind in Check::ALL {
        comma.next(out);
        check(record, kind, out);
    }
    json::raw(out, "]}");
    if let Some(said) = &record.marks {
        marks(said, objects, out);
    }
    if let Some(others) = &record.asked {
        asked(others, objects, out);
    }
}

/// Who was asked.
fn asked(asked: &Asked, objects: &Objects, out: &mut Vec<u8>) {
    if !asked.consulted.is_empty() {
        json::raw(out, r#","consulted":"#);
        let mut comma = Comma::new(b'[');
        for one in &asked.consulted {
            comma.next(out);
            consulted(one, objects, out);
        }
        json::raw(out, "]");
    }
    if !asked.limits.is_empty() {
        json::raw(out, r#","limits":"#);
        let mut comma = Comma::new(b'[');
        for one in &asked.limits {
            comma.next(out);
            limited(one, objects, out);
        }
        json::raw(out, "]");
    }
}

fn limited(limited: &Limited, objects: &Objects, out: &mut Vec<u8>) {
    json::raw(out, r#"{"outcome":""#);
    json::raw(out, limited.outcome.as_str());
    json::raw(out, "\"");
    if objects.get(limited.policy).is_some() {
        json::raw(out, r#","policy":"#);
        policy(objects, limited.policy, Version::Stated, out);
    }
    if let Some(provider) = &limited.provider {
        json::raw(out, r#","provider":"#);
        json::bounded_string(out, provider, NAME_LIMIT);
        json::raw(out, r#","us":"#);
        json::number(out, limited.us);
    }
    if let Some(detail) = &limited.detail {
        json::raw(out, r#","detail":"#);
        json::bounded_string(out, detail, DETAIL_LIMIT);
    }
    json::raw(out, "}");
}

fn consulted(consulted: &Consulted, objects: &Objects, out: &mut Vec<u8>) {
    json::raw(out, r#"{"provider":"#);
    json::bounded_string(out, &consulted.provider, NAME_LIMIT);
    json::raw(out, r#","outcome":""#);
    json::raw(out, consulted.outcome.as_str());
    json::raw(out, "\"");
    if objects.get(consulted.policy).is_some() {
        json::raw(out, r#","policy":"#);
        policy(objects, consulted.policy, Version::Stated, out);
    }
    json::raw(out, r#","us":"#);
    json::number(out, consulted.us);
    if !consulted.ignored.is_empty() {
        json::raw(out, r#","ignored":"#);
        let mut comma = Comma::new(b'[');
        for name in &consulted.ignored {
            comma.next(out);
            json::string(out, name);
        }
        json::raw(out, "]");
    }
    if let Some(metadata) = &consulted.metadata {
        json::raw(out, r#","metadata":"#);
        json::raw(out, metadata);
    }
    if let Some(detail) = &consulted.detail {
        json::raw(out, r#","detail":"#);
        json::bounded_string(out, detail, DETAIL_LIMIT);
    }
    json::raw(out, "}");
}

fn marks(marks: &Marks, objects: &Objects, out: &mut Vec<u8>) {
    if objects.get(marks.audit).is_some() {
        json::raw(out, r#","audit":"#);
        policy(objects, marks.audit, Version::Stated, out);
    }
    if !marks.shadow.is_empty() {
        json::raw(out, r#","shadow":"#);
        let mut comma = Comma::new(b'[');
        for one in &marks.shadow {
            comma.next(out);
            shadow(one, objects, out);
        }
        json::raw(out, "]");
    }
}

/// What a dry-run policy would have done.
fn shadow(shadow: &Shadow, objects: &Objects, out: &mut Vec<u8>) {
    json::raw(out, r#"{"outcome":""#);
    json::raw(out, shadow.outcome.as_str());
    json::raw(out, r#"","reason":""#);
    json::raw(out, shadow.reason.as_str());
    json::raw(out, "\"");
    if objects.get(shadow.policy).is_some() {
        json::raw(out, r#","policy":"#);
        policy(objects, shadow.policy, Version::Stated, out);
    }
    json::raw(out, "}");
}

fn check(record: &Record, kind: Check, out: &mut Vec<u8>) {
    let (result, objects) = (record.decision.result(kind), &record.config.objects);
    json::raw(out, r#"{"check":""#);
    json::raw(out, kind.as_str());
    json::raw(out, r#"","outcome":""#);
    json::raw(out, result.outcome.as_str());
    json::raw(out, r#"","reason":""#);
    json::raw(out, result.reason.as_str());
    json::raw(out, "\"");
    if objects.get(result.policy).is_some() {
        json::raw(out, r#","policy":"#);
        policy(objects, result.policy, Version::Left, out);
    }
    evidence(record, kind, out);
    json::raw(out, "}");
}

/// Inbound and at a gateway the hop looked at is the caller's; outbound it is that to the server.
fn evidence(record: &Record, kind: Check, out: &mut Vec<u8>) {
    let outbound = record.connection.side == Side::Outbound;
    match kind {
        Check::Encryption if outbound => {
            if let Some(tls) = record.attempts.last().and_then(|attempt| attempt.tls.as_deref()) {
                fragments::tls_evidence(tls, out);
            }
        }
        Check::Encryption => {
            json::raw(out, &record.connection.rendered.of(&record.connection).encryption);
        }
        Check::ServiceAuthentication if outbound => {
            let proof = record.attempts.last().and_then(|attempt| attempt.certificate.as_deref());
            if let Some(certificate) = proof {
                fragments::certificate_evidence(certificate, out);
            }
        }
        Check::ServiceAuthentication => {
            json::raw(out, &record.connection.rendered.of(&record.connection).certificate);
        }
        Check::UserAuthentication => {
            if let Some(user) = &record.user {
                fragments::user_evidence(user, out);
            }
        }
        _ => {}
    }
}

/// Whether a policy's digest is written: with what decided, and not again with the checks that led there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Stated,
    Left,
}

fn policy(objects: &Objects, policy: PolicyRef, version: Version, out: &mut Vec<u8>) {
    let Some(object) = objects.get(policy) else { return };
    json::raw(out, "{");
    json::raw(out, &object.json);
    if let Some(rule) = policy.rule_index() {
        json::raw(out, r#","rule":"#);
        json::number(out, rule);
    }
    if version == Version::Stated {
        json::raw(out, r#","digest":"#);
        json::string(out, &object.digest);
    }
    json::raw(out, "}");
}

fn end(record: &Record, out: &mut Vec<u8>) {
    let Some((stage, reason)) = record.ended else { return };
    json::raw(out, r#","ended":{"stage":""#);
    json::raw(out, stage.as_str());
    json::raw(out, r#"","reason":""#);
    json::raw(out, reason.as_str());
    json::raw(out, "\"");
    // What is wrong with a policy concerns those who read records, and nobody else.
    let closed = reason == Reason::QuarantinedPolicy;
    let problem =
        record.config.objects.get(record.decision.policy).and_then(|object| object.problem.as_deref());
    if let Some(detail) = problem.filter(|_| closed).or(record.detail.as_deref()) {
        json::raw(out, r#","detail":"#);
        json::bounded_string(out, detail, DETAIL_LIMIT);
    }
    if let Some(by) = &record.cut {
        cut(by, record, out);
    }
    json::raw(out, "}");
}

/// By what a request was cut, as members of its end.
fn cut(by: &Cut, record: &Record, out: &mut Vec<u8>) {
    if by.config.objects.get(by.policy).is_some() {
        json::raw(out, r#","policy":"#);
        policy(&by.config.objects, by.policy, Version::Stated, out);
    }
    if let Some(why) = by.why {
        json::raw(out, r#","why":""#);
        json::raw(out, why.as_str());
        json::raw(out, "\"");
    }
    if record.ended.is_some_and(|(_, reason)| reason == Reason::PolicyChanged) {
        json::raw(out, r#","config":{"from":"#);
        json::number(out, record.config.version);
        json::raw(out, r#","to":"#);
        json::number(out, by.config.version);
        json::raw(out, r#","digest":"#);
        json::string(out, &by.config.digest);
        json::raw(out, "}");
    }
    json::raw(out, r#","after_us":"#);
    json::number(out, u64::try_from(by.after.as_micros()).unwrap_or(u64::MAX));
}

/// What stands before the next member or element: the opening bracket, then commas.
struct Comma(u8);

impl Comma {
    fn new(open: u8) -> Self {
        Self(open)
    }

    fn next(&mut self, out: &mut Vec<u8>) {
        out.push(std::mem::replace(&mut self.0, b','));
    }
}

/// Bytes of a path that a record shows.
const PATH_LIMIT: usize = 1024;
/// Bytes of a text for the operator.
const DETAIL_LIMIT: usize = 512;
/// Attempts that a record shows.
const ATTEMPT_LIMIT: usize = 16;
