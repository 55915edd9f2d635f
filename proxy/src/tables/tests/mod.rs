//! Tests of the tables as a whole: each look-up against a table of cases, and against a naive twin.

mod authorization;
mod authorization_twin;
mod compile;
mod naive;
mod rate_limits;
mod routes;

use std::net::IpAddr;
use std::time::Duration;

use control_client::snapshot::*;
use http::HeaderMap;

use super::pattern::wildcard;
use super::{BackendId, ConnectionAttributes, RequestAttributes, Tables};

/// `n` AuthorizationPolicies `ns/p000`, `ns/p001`, ... to refer to.
fn objects(n: usize) -> Vec<ObjectRef> {
    let object = |index| ObjectRef {
        kind: "AuthorizationPolicy".into(),
        namespace: "ns".into(),
        name: format!("p{index:03}"),
        digest: "sha256:00".into(),
    };
    (0..n).map(object).collect()
}

fn condition(attribute: Attribute, field: &str, values: &[&str], not_values: &[&str]) -> Condition {
    let parse = |text: &&str| match &attribute {
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
            ValueMatch::Cidr(text.parse().unwrap())
        }
        Attribute::DestinationPort => ValueMatch::Port(text.parse().unwrap()),
        Attribute::SourceNamespace if text.contains('*') => ValueMatch::Glob((*text).into()),
        Attribute::Path if text.contains('{') => ValueMatch::PathTemplate((*text).into()),
        _ => wildcard(text),
    };
    Condition {
        field: field.into(),
        values: values.iter().map(parse).collect(),
        not_values: not_values.iter().map(parse).collect(),
        attribute,
    }
}

fn is(attribute: Attribute, values: &[&str]) -> Condition {
    condition(attribute, "field", values, &[])
}

fn is_not(attribute: Attribute, values: &[&str]) -> Condition {
    condition(attribute, "field", &[], values)
}

fn rule(from: &[Condition], to: &[Condition], when: &[Condition]) -> AuthorizationRule {
    let list = |conditions: &[Condition]| {
        if conditions.is_empty() { Vec::new() } else { vec![conditions.to_vec()] }
    };
    AuthorizationRule { index: 0, from: list(from), to: list(to), when: when.to_vec() }
}

fn numbered(mut rules: Vec<AuthorizationRule>) -> Vec<AuthorizationRule> {
    for (index, rule) in rules.iter_mut().enumerate() {
        rule.index = index as u16;
    }
    rules
}

fn policy(object: u32, action: AuthorizationAction, rules: Vec<AuthorizationRule>) -> AuthorizationPolicy {
    let rules = numbered(rules);
    AuthorizationPolicy {
        object,
        action,
        rules,
        dry_run: false,
        quarantined: false,
        expires: None,
        provider: None,
    }
}

fn with_authorization(authorization: Vec<AuthorizationPolicy>) -> Policy {
    let objects = objects(authorization.iter().map(|each| each.object as usize + 1).max().unwrap_or(0));
    Policy { objects, authorization, ..Policy::default() }
}

fn tables(policy: &Policy) -> Tables {
    let ids: Vec<_> = (0..policy.backends.len() as u32).map(BackendId).collect();
    Tables::compile(policy, &ids).unwrap()
}

fn backend(name: &str) -> Backend {
    Backend {
        id: name.into(),
        name: name.into(),
        protocol: None,
        tls: BackendTls::Auto,
        object: None,
        mtls_required: false,
        connect_timeout: Duration::from_secs(10),
    }
}

fn from(identity: Option<&str>) -> ConnectionAttributes<'_> {
    ConnectionAttributes {
        source_identity: identity,
        source_ip: IpAddr::from([10, 1, 0, 7]),
        remote_ip: IpAddr::from([10, 3, 0, 7]),
        destination_ip: IpAddr::from([10, 1, 0, 9]),
        destination_port: 9080,
        sni: None,
    }
}

fn get<'a>(path: &'a str, headers: &'a HeaderMap) -> RequestAttributes<'a> {
    RequestAttributes {
        method: "GET",
        host: Some("ratings:9080"),
        path,
        headers,
        remote_ip: Some(IpAddr::from([192, 0, 2, 1])),
        user: None,
    }
}
