//! Through a Gateway: its policies decide, then its routes; and answers that only say where to look instead.

use ::http::{HeaderMap, HeaderValue, Method, Request, header};

use super::pipeline::{self, Chosen};
use super::sanitize;
use crate::body::Body;
use crate::decision::{PolicyRef, Reason, Stage};
use crate::edits::Answer;
use crate::error::Reject;
use crate::generation::Held;
use crate::jwt::Outcome;
use crate::memory::Memory;
use crate::peer::Peer;
use crate::tables::{GatewayChoice, Redirect, Rule};
use crate::telemetry::{Record, Side};

/// Through a Gateway: its policies decide, then its routes.
pub fn choose<'t>(
    peer: &Peer,
    port: u16,
    held: &'t Held,
    user: Outcome,
    request: &Request<Body>,
    record: &mut Record,
    memory: &Memory,
) -> Result<Chosen<'t>, Reject> {
    let host = sanitize::authority(request).and_then(sanitize::split_authority).map_or("", |(host, _)| host);
    let server_name = peer.facts.tls.as_ref().and_then(|tls| tls.sni.as_deref());
    let choice = match held.tables.gateway_port(port) {
        Some(port) => port.route(server_name, host, &pipeline::route_attributes(request)),
        None => GatewayChoice::NoRoute(None),
    };
    if let GatewayChoice::Rule(listener, rule) = choice
        && let (Some(redirect), true) = (rule.filters.redirect(), listener.only_redirects)
    {
        // There is nothing behind the listener that could be asked, so nobody has to prove anything.
        record.service = Some(listener.name.clone());
        return Err(redirected(rule, redirect, request, record));
    }
    let user = pipeline::authorize_user(peer, held, user, request, record, memory)?;
    let (listener, reject) = match choice {
        GatewayChoice::Rule(listener, _) if request.method() == Method::CONNECT => {
            (Some(listener), Reject::because(Stage::Route, Reason::NoRoute, "CONNECT through a Gateway"))
        }
        GatewayChoice::Rule(listener, rule) => {
            record.service = Some(listener.name.clone());
            if let Some(redirect) = rule.filters.redirect() {
                return Err(redirected(rule, redirect, request, record));
            }
            let (backend, choice) = pipeline::split(rule, held, record, &memory.splits)?;
            return Ok(Chosen::Backend(backend, Some(choice), user));
        }
        GatewayChoice::NoRoute(listener) => {
            let why = match listener {
                Some(_) => format_args!("no route of the listener is for this host and path"),
                None => format_args!("no listener is for this host"),
            };
            (listener, Reject::because(Stage::Route, Reason::NoRoute, why))
        }
        GatewayChoice::Misdirected(listener) => {
            let why = "the host is another listener's than the server name of the TLS that it came by";
            (Some(listener), Reject::because(Stage::Route, Reason::Misdirected, why))
        }
    };
    record.service = listener.map(|listener| listener.name.clone());
    record.decision.deny(Stage::Route, reject.reason, PolicyRef::NONE);
    Err(reject)
}

/// Answers a request by where to look instead.
pub fn redirected(rule: &Rule, redirect: &Redirect, request: &Request<Body>, record: &mut Record) -> Reject {
    record.decision.route = rule.policy;
    let scheme = if record.connection.tls.is_some() { "https" } else { "http" };
    let authority = sanitize::authority(request).unwrap_or_default();
    let host = sanitize::without_port(authority).unwrap_or_default();
    let port = sanitize::split_authority(authority).and_then(|(_, port)| port);
    let port = match record.connection.side {
        Side::Gateway => record.connection.destination.port(),
        Side::Inbound | Side::Outbound => port.unwrap_or(80),
    };
    let location = HeaderValue::try_from(redirect.location(scheme, host, port, request.uri()));
    let Ok(location) = location else {
        return pipeline::nowhere(rule, "the redirect makes no Location", record);
    };
    record.decision.allow(Stage::Route, Reason::Redirected, rule.policy);
    record.asked.get_or_insert_default().answer =
        Some(Answer { headers: HeaderMap::from_iter([(header::LOCATION, location)]), ..Answer::default() });
    Reject { status: Some(redirect.status), ..Reject::new(Stage::Route, Reason::Redirected) }
}
