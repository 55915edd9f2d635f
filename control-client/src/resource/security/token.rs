//! `jwtRules` of RequestAuthentication (Istio `security/v1/request_authentication.proto`).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use fips::NotApproved;
use http::Uri;

use super::super::read::{At, Fields};
use super::super::text;
use crate::jwks::{KeySet, Unusable};
use crate::snapshot::{ClaimHeader, JwtRule, KeyLocation, KeySource, RemoteKeys, TokenLocation};

/// Rules of all objects together are looked at one after another; no honest object has this many.
const MAX_RULES: usize = 256;
/// Istio's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// A caller with a key that is not known waits as long.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

const RULE: &[&str] = &[
    "issuer",
    "audiences",
    "jwksUri",
    "jwks",
    "fromHeaders",
    "fromParams",
    "fromCookies",
    "outputPayloadToHeader",
    "outputClaimToHeaders",
    "forwardOriginalToken",
    "timeout",
];

/// Reads the rules. One with a mistake is left out: then the object is not good, and fails closed.
pub(super) fn rules(list: At<'_>) -> Vec<JwtRule> {
    if list.items().len() > MAX_RULES {
        list.error(format!("more than {MAX_RULES} rules in one object"));
        return Vec::new();
    }
    let mut outputs = HashSet::new();
    (0..).zip(list.items()).filter_map(|(index, at)| rule(index, at, &mut outputs)).collect()
}

/// `outputs`: the headers that rules before this one fill.
fn rule(index: u16, at: At<'_>, outputs: &mut HashSet<String>) -> Option<JwtRule> {
    let fields = at.fields(RULE)?;
    let issuer = fields.require("issuer").and_then(At::text);
    let timeout = fields.get("timeout").map_or(Some(DEFAULT_TIMEOUT), timeout);
    let keys = keys(fields, issuer.as_deref(), timeout);
    let locations = locations(fields);
    let mut rule = JwtRule {
        index,
        issuer: issuer?,
        audiences: fields.get("audiences").map(At::texts).unwrap_or_default(),
        keys: keys?,
        locations,
        forward_original: fields.get("forwardOriginalToken").and_then(At::bool).unwrap_or_default(),
        payload_header: None,
        claim_headers: Vec::new(),
    };
    let mut of_rule = HashSet::new();
    let mut output = |at: At<'_>| {
        let name = output_header(at)?;
        if !of_rule.insert(name.clone()) {
            at.error(format!("header {name} is filled twice by this rule"));
        }
        Some(name)
    };
    rule.payload_header = fields.get("outputPayloadToHeader").and_then(&mut output);
    for each in fields.get("outputClaimToHeaders").into_iter().flat_map(At::items) {
        let Some(each) = each.fields(&["header", "claim"]) else { continue };
        let header = each.require("header").and_then(&mut output);
        if let (Some(header), Some(claim)) = (header, each.require("claim").and_then(At::text)) {
            rule.claim_headers.push(ClaimHeader { header, claim });
        }
    }
    outputs.extend(of_rule);
    if let Some(header) = rule.reads_an_output(outputs) {
        at.error(format!(
            "reads tokens from header {header}, which rules of this object fill: what comes in there is removed"
        ));
    }
    Some(rule)
}

impl JwtRule {
    fn reads_an_output(&self, outputs: &HashSet<String>) -> Option<&str> {
        self.locations.iter().find_map(|location| match location {
            TokenLocation::Header { name, .. } if outputs.contains(name) => Some(name.as_str()),
            _ => None,
        })
    }
}

fn timeout(at: At<'_>) -> Option<Duration> {
    let timeout = text::go_duration(at)?;
    if timeout.is_zero() || timeout > MAX_TIMEOUT {
        at.error(format!("must be more than 0 s and at most {} s", MAX_TIMEOUT.as_secs()));
        return None;
    }
    Some(timeout)
}

fn keys(fields: Fields<'_>, issuer: Option<&str>, timeout: Option<Duration>) -> Option<KeySource> {
    let location = match (fields.get("jwks"), fields.get("jwksUri")) {
        (Some(at), Some(_)) => {
            at.error("a rule has jwks or jwksUri, not both");
            return None;
        }
        (Some(at), None) => return inline(at).map(KeySource::Inline),
        (None, Some(at)) => KeyLocation::Url(url(at, at.str()?)?),
        (None, None) => KeyLocation::Discovery(discovered(fields.get("issuer")?, issuer?)?),
    };
    Some(KeySource::Remote(RemoteKeys { location, timeout: timeout? }))
}

fn inline(at: At<'_>) -> Option<Arc<KeySet>> {
    match KeySet::parse(at.str()?.as_bytes()) {
        Ok(set) => {
            for key in &set.left_out {
                match (&key.why, fips::required()) {
                    (Unusable::NotApproved(_), true) => {
                        at.error(NotApproved(key.to_string()).to_string());
                    }
                    _ => at.warn(format!("{key}; this key is left out")),
                }
            }
            Some(Arc::new(set))
        }
        Err(why) => {
            at.error(why);
            None
        }
    }
}

/// The issuer's own URL, where neither keys nor their URL are given.
fn discovered(at: At<'_>, issuer: &str) -> Option<String> {
    if !issuer.starts_with("https://") && !issuer.starts_with("http://") {
        at.error("neither jwks nor jwksUri is given, and this is no URL at which keys could be found");
        return None;
    }
    url(at, issuer)
}

/// As in Istio, `http` is taken, but not in silence.
fn url(at: At<'_>, text: &str) -> Option<String> {
    let uri = text.parse::<Uri>().ok().filter(|uri| {
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        authority.is_some_and(|authority| !authority.host().is_empty()) && !text.contains('#')
    });
    match uri.as_ref().and_then(Uri::scheme_str) {
        Some("https") => {}
        Some("http") => {
            at.warn("keys are fetched in plaintext: who can change them on their way can make any token; use https://");
        }
        _ => {
            at.error(format!("`{text}` is not a URL such as https://issuer.example/keys"));
            return None;
        }
    }
    Some(text.to_owned())
}

fn locations(fields: Fields<'_>) -> Vec<TokenLocation> {
    let mut locations = Vec::new();
    for each in fields.get("fromHeaders").into_iter().flat_map(At::items) {
        let Some(each) = each.fields(&["name", "prefix"]) else { continue };
        let prefix = each.get("prefix").and_then(At::str).unwrap_or_default().to_owned();
        if let Some(name) = each.require("name").and_then(text::header_name) {
            locations.push(TokenLocation::Header { name, prefix });
        }
    }
    let params = fields.get("fromParams").map(At::texts).unwrap_or_default();
    locations.extend(params.into_iter().map(TokenLocation::Query));
    for each in fields.get("fromCookies").into_iter().flat_map(At::items) {
        let Some(name) = each.text() else { continue };
        if name.contains(['=', ';', ' ', '"', ',']) {
            each.error(format!("`{name}` is not the name of a cookie"));
        }
        locations.push(TokenLocation::Cookie(name));
    }
    if locations.is_empty() { TokenLocation::defaults() } else { locations }
}

/// Headers that say how a message is framed, routed or who sent it: no claim may fill them.
const RESERVED: [&str; 12] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "keep-alive",
    "proxy-connection",
    "expect",
    "cookie",
    "x-forwarded-client-cert",
];

fn output_header(at: At<'_>) -> Option<String> {
    let name = text::header_name(at)?;
    if RESERVED.contains(&name.as_str()) || name.starts_with("x-writ-") || name.starts_with("x-envoy-") {
        at.error(format!("header {name} has a meaning of its own and can't carry a claim"));
        return None;
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use fips::jws::{Algorithm, PublicNumbers, SigningKey};

    use super::super::super::Resource;
    use super::super::super::tests::only;
    use super::super::RequestAuthentication;
    use super::*;

    fn read(rule: &str) -> (RequestAuthentication, bool, Vec<String>) {
        let (object, found) = only(&format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: r, namespace: foo}}\nspec:\n  jwtRules:\n  - {rule}\n"
        ));
        let good = object.good;
        let Ok(object) = Arc::try_unwrap(object) else { panic!("held by one") };
        let Resource::RequestAuthentication(policy) = object.resource else { panic!() };
        (policy, good, found)
    }

    #[test]
    fn a_rule_in_full() {
        let (policy, good, found) = read(
            "{issuer: 'https://i.example', audiences: [a, b], jwksUri: 'https://i.example/keys', timeout: 2s, \
             fromHeaders: [{name: X-Jwt, prefix: 'JWT '}, {name: X-Plain}], fromParams: [t], fromCookies: [c], \
             outputPayloadToHeader: X-Payload, outputClaimToHeaders: [{header: X-Sub, claim: sub}], forwardOriginalToken: true}",
        );
        assert!(good, "{found:?}");
        let header =
            |name: &str, prefix: &str| TokenLocation::Header { name: name.into(), prefix: prefix.into() };
        assert_eq!(
            policy.rules,
            [JwtRule {
                index: 0,
                issuer: "https://i.example".into(),
                audiences: vec!["a".into(), "b".into()],
                keys: KeySource::Remote(RemoteKeys {
                    location: KeyLocation::Url("https://i.example/keys".into()),
                    timeout: Duration::from_secs(2),
                }),
                locations: vec![
                    header("x-jwt", "JWT "),
                    header("x-plain", ""),
                    TokenLocation::Query("t".into()),
                    TokenLocation::Cookie("c".into()),
                ],
                forward_original: true,
                payload_header: Some("x-payload".into()),
                claim_headers: vec![ClaimHeader { header: "x-sub".into(), claim: "sub".into() }],
            }]
        );
    }

    #[test]
    fn an_issuer_alone_is_asked_where_its_keys_are() {
        let (policy, good, _) = read("{issuer: 'https://i.example/tenant'}");
        assert!(good);
        let KeySource::Remote(keys) = &policy.rules[0].keys else { panic!() };
        assert_eq!(keys.location, KeyLocation::Discovery("https://i.example/tenant".into()));
        assert_eq!((keys.timeout, &policy.rules[0].locations), (DEFAULT_TIMEOUT, &TokenLocation::defaults()));
    }

    #[test]
    fn inline_keys_are_read_here() {
        let PublicNumbers::Ec(crv, x, y) = SigningKey::generate(Algorithm::Es256).unwrap().public() else {
            panic!()
        };
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let key = format!(r#"{{"kty":"EC","crv":"{crv}","x":"{}","y":"{}"}}"#, encode(&x), encode(&y));
        let (policy, good, found) =
            read(&format!("{{issuer: me, jwks: '{{\"keys\":[{key},{{\"kty\":\"oct\"}}]}}'}}"));
        assert!(good);
        assert!(found[0].contains("keys[1]: a secret"), "{found:?}");
        let KeySource::Inline(keys) = &policy.rules[0].keys else { panic!() };
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn mistakes_are_named() {
        let with = |field: &str| format!("{{issuer: 'https://i', {field}}}");
        for (rule, wanted) in [
            ("{}".to_owned(), "jwtRules[0].issuer: is required"),
            ("{issuer: ''}".into(), "must not be empty"),
            ("{issuer: me}".into(), "no URL at which keys"),
            (with("jwks: '{}', jwksUri: 'https://i/k'"), "not both"),
            (with("jwks: '{\"keys\": []}'"), "it is empty"),
            (with("jwks: 'https://i/k'"), "not a JSON Web Key Set"),
            (with("jwksUri: 'i/k'"), "is not a URL"),
            (with("jwksUri: 'file:///etc/keys'"), "is not a URL"),
            (with("jwksUri: 'https://a:b@i/k'"), "is not a URL"),
            (with("jwksURI: 'https://i/k'"), "did you mean `jwksUri`?"),
            (with("fromHeaders: [{prefix: a}]"), "fromHeaders[0].name: is required"),
            (with("fromHeaders: ['x']"), "expected a mapping"),
            (with("fromCookies: ['a=b']"), "not the name of a cookie"),
            (with("outputPayloadToHeader: Content-Length"), "meaning of its own"),
            (with("outputClaimToHeaders: [{header: x-writ-user, claim: sub}]"), "meaning of its own"),
            (
                with("outputPayloadToHeader: x-a, outputClaimToHeaders: [{header: X-A, claim: a}]"),
                "filled twice",
            ),
            (with("fromHeaders: [{name: x-a}], outputPayloadToHeader: x-a"), "reads tokens from header x-a"),
            (with("timeout: 5m"), "at most 60 s"),
            (with("timeout: 0s"), "more than 0 s"),
            (with("forwardOriginalToken: 'yes'"), "true or false"),
        ] {
            let (_, good, found) = read(&rule);
            assert!(!good, "{rule}");
            assert!(found.join("\n").contains(wanted), "{rule}: {found:?}");
        }
    }

    #[test]
    fn plaintext_keys_are_warned_of() {
        for rule in ["{issuer: me, jwksUri: 'http://i/k'}", "{issuer: 'http://i'}"] {
            let (_, good, found) = read(rule);
            assert!(good && found.len() == 1 && found[0].contains("plaintext"), "{found:?}");
        }
    }
}
