//! What a verified token puts into headers for the application.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use serde_json::{Map, Value};

use super::cache::Outputs;
use super::token::Token;
use crate::tables::TokenRule;

/// The headers of a rule. A claim that is absent, empty or can't stand in a header leaves its header out.
pub fn headers(rule: &TokenRule, token: &Token<'_>) -> Outputs {
    let value = |text: &str| HeaderValue::from_str(text).ok();
    let payload = rule.payload_header.iter().filter_map(|name| Some((name.clone(), value(token.payload)?)));
    let claims = rule.claim_headers.iter().filter_map(|(name, claim)| {
        let text = text(find(&token.claims.all, claim)?)?;
        Some((name.clone(), HeaderValue::from_bytes(text.as_bytes()).ok()?))
    });
    payload.chain(claims).collect()
}

/// The claim of this name, else what dots lead to (Envoy `JwtClaimToHeader`).
fn find<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    if let Some(claim) = claims.get(name) {
        return Some(claim);
    }
    let (first, rest) = name.split_once('.')?;
    rest.split('.').try_fold(claims.get(first)?, |value, key| value.as_object()?.get(key))
}

/// Lists and objects stand as JSON in base64, as in Envoy.
fn text(claim: &Value) -> Option<String> {
    let text = match claim {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => claim.to_string(),
        Value::Array(_) | Value::Object(_) => STANDARD.encode(claim.to_string()),
    };
    (!text.is_empty()).then_some(text)
}
