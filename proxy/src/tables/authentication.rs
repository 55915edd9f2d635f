//! RequestAuthentication: which tokens are looked for where, in the order in which they are asked.

use std::sync::Arc;

use control_client::jwks::KeySet;
use control_client::snapshot::{self, JwtRule, KeySource, RemoteKeys};
use http::HeaderName;

use super::filters;
use super::{CompileError, Located};
use crate::decision::PolicyRef;

/// What is asked of the end user of a request.
#[derive(Debug, Default)]
pub struct Authentication {
    /// By issuer, as Istio sorts them; of equals, by object and rule.
    pub rules: Box<[TokenRule]>,
    /// Every header that some rule fills: what comes in there is nobody's claim.
    pub outputs: Box<[HeaderName]>,
    /// The first object that could not be understood: no request goes on.
    pub quarantined: Option<PolicyRef>,
}

/// Tokens of one issuer.
#[derive(Debug)]
pub struct TokenRule {
    /// The object and the number of its rule.
    pub policy: PolicyRef,
    /// The same only for the same rule, over all versions of the policy: a verified token is remembered by it.
    pub id: Box<str>,
    /// `iss` of its tokens.
    pub issuer: Box<str>,
    /// `aud` must be one of these; empty: any.
    pub audiences: Box<[Box<str>]>,
    /// What proves them.
    pub keys: Keys,
    /// Where they may be.
    pub locations: Box<[Location]>,
    /// The application sees the token too.
    pub forward_original: bool,
    /// Gets the payload.
    pub payload_header: Option<HeaderName>,
    /// Get a claim each.
    pub claim_headers: Box<[(HeaderName, Box<str>)]>,
}

/// What proves tokens.
#[derive(Debug)]
pub enum Keys {
    /// Written in the rule.
    Inline(Arc<KeySet>),
    /// Whatever is there by now of a set that is fetched.
    Remote(RemoteKeys),
}

/// Where a token may be.
#[derive(Debug, PartialEq, Eq)]
pub enum Location {
    /// In a header, behind a prefix that is compared without case.
    Header(HeaderName, Box<str>),
    /// A parameter of the query.
    Query(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
}

impl Authentication {
    /// Compiles the rules of all objects. One that can't be compiled fails closed, and is told of beside.
    pub(super) fn compile(policy: &snapshot::Policy) -> (Self, Vec<CompileError>) {
        let (mut rules, mut refused) = (Vec::new(), Vec::new());
        let mut quarantined = Vec::new();
        for object in &policy.request_authentication {
            if object.quarantined {
                quarantined.push(PolicyRef::object(object.object));
            }
            for rule in &object.rules {
                match TokenRule::compile(object.object, rule, &policy.objects) {
                    Ok(rule) => rules.push(rule),
                    Err(error) => {
                        quarantined.push(PolicyRef::object(object.object));
                        refused.push(error);
                    }
                }
            }
        }
        rules.sort_by(|a, b| (&a.issuer, a.policy).cmp(&(&b.issuer, b.policy)));
        let mut outputs: Vec<_> = rules.iter().flat_map(TokenRule::outputs).cloned().collect();
        outputs.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        outputs.dedup();
        let quarantined = quarantined.into_iter().min();
        (Self { rules: rules.into(), outputs: outputs.into(), quarantined }, refused)
    }

    /// The sets of keys that are fetched.
    pub fn remote_keys(&self) -> impl Iterator<Item = &RemoteKeys> {
        self.rules.iter().filter_map(|rule| match &rule.keys {
            Keys::Remote(keys) => Some(keys),
            Keys::Inline(_) => None,
        })
    }

    /// True if no token is asked for and every request goes on.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.quarantined.is_none()
    }
}

impl TokenRule {
    fn compile(object: u32, rule: &JwtRule, objects: &[snapshot::ObjectRef]) -> Result<Self, CompileError> {
        let field = |name: &str| format!("spec.jwtRules[{}].{name}", rule.index);
        let header = |name: &str, of: &str| filters::name(name).located(object, objects, &field(of));
        let location = |location: &snapshot::TokenLocation| {
            Ok(match location {
                snapshot::TokenLocation::Header { name, prefix } => {
                    Location::Header(header(name, "fromHeaders")?, prefix.as_str().into())
                }
                snapshot::TokenLocation::Query(name) => Location::Query(name.as_str().into()),
                snapshot::TokenLocation::Cookie(name) => Location::Cookie(name.as_str().into()),
            })
        };
        let claim_header = |each: &snapshot::ClaimHeader| {
            Ok((header(&each.header, "outputClaimToHeaders")?, each.claim.as_str().into()))
        };
        // The object's digest covers all that the rule says, its keys among it.
        let digest = objects.get(object as usize).map_or("", |object| &object.digest);
        Ok(Self {
            policy: PolicyRef::rule(object, rule.index),
            id: format!("{digest}#{}", rule.index).into(),
            issuer: rule.issuer.as_str().into(),
            audiences: rule.audiences.iter().map(|audience| audience.as_str().into()).collect(),
            keys: match &rule.keys {
                KeySource::Inline(keys) => Keys::Inline(Arc::clone(keys)),
                KeySource::Remote(keys) => Keys::Remote(keys.clone()),
            },
            locations: rule.locations.iter().map(location).collect::<Result<_, _>>()?,
            forward_original: rule.forward_original,
            payload_header: rule
                .payload_header
                .as_deref()
                .map(|name| header(name, "outputPayloadToHeader"))
                .transpose()?,
            claim_headers: rule.claim_headers.iter().map(claim_header).collect::<Result<_, _>>()?,
        })
    }

    /// The headers that it fills.
    fn outputs(&self) -> impl Iterator<Item = &HeaderName> {
        self.payload_header.iter().chain(self.claim_headers.iter().map(|(header, _)| header))
    }
}
