//! End-user authentication: tokens found in requests, verified by their issuers' keys, and what is made of them.
//!
//! Own code around `fips::jws` rather than a library: a name written twice, base64 that is not canonical, `crit`, and keys
//! that a token brings along have to be refused and not read over; keys are parsed once and not for each token.

mod cache;
mod json;
mod output;
mod place;
mod standing;
mod token;

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use control_client::jwks::KeySet;
use fips::jws::VerifyingKey;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{HeaderMap, Method, Request};

pub use cache::Verified;
pub use standing::standing;
pub use token::{CLOCK_SKEW, MAX_BYTES};

use cache::{Cache, Known, Outputs};
use token::Token;

use crate::decision::{PolicyRef, Reason};
use crate::jwks::{Refetch, Store};
use crate::tables::{Authentication, Keys, TokenRule};

/// A text for the operator, that shows nothing of the token.
pub type Text = Cow<'static, str>;

/// Verifies tokens on one worker.
pub struct Tokens {
    verified: RefCell<Cache>,
    keys: Arc<Store>,
}

/// What became of a request's token.
pub enum Outcome {
    /// No rule asks for one.
    NotAsked,
    /// None is there, or the request is a CORS preflight, which has none to show.
    NoToken,
    /// Verified by this rule.
    Verified(PolicyRef, Rc<Verified>),
    /// The request can't go on.
    Refused(PolicyRef, Reason, Text),
    /// Signed by a key that is not known, for which its issuer is being asked: worth another try then, and no more.
    Asking(PolicyRef, Box<Unknown>),
}

/// A token by a key that is not known.
pub struct Unknown {
    /// Its issuer is being asked.
    pub refetch: Refetch,
    /// What is wrong with it as things are.
    pub why: Text,
}

impl Outcome {
    /// The user, if there is one.
    pub fn verified(&self) -> Option<&Rc<Verified>> {
        match self {
            Self::Verified(_, verified) => Some(verified),
            _ => None,
        }
    }
}

/// Why a rule does not take a token.
enum Failure {
    OtherIssuer,
    Audience,
    Invalid(Text),
    Asking(Box<Unknown>),
}

/// A rule, and the token that it takes.
type Taken<'t> = (&'t TokenRule, Rc<Verified>, Outputs);

impl Tokens {
    /// With the keys of issuers.
    pub fn new(keys: Arc<Store>) -> Self {
        Self { verified: RefCell::default(), keys }
    }

    /// Looks for a token as the rules ask, verifies it, and makes of the request what they say: headers that rules fill
    /// hold what a verified token claims and nothing else; a token that is not to be forwarded is taken out.
    ///
    /// `now`: seconds since the epoch. The request passes if any rule takes a token, or if there is none at all.
    pub fn authenticate<B>(&self, rules: &Authentication, request: &mut Request<B>, now: i64) -> Outcome {
        if let Some(policy) = rules.quarantined {
            let why = "what the object says, or for whom, could not be understood (see /config), so it fails closed";
            return Outcome::Refused(policy, Reason::QuarantinedPolicy, why.into());
        }
        for header in &rules.outputs {
            request.headers_mut().remove(header);
        }
        if rules.rules.is_empty() {
            return Outcome::NotAsked;
        }
        if is_preflight(request.method(), request.headers()) {
            return Outcome::NoToken;
        }
        match self.first_taken(rules, request, now) {
            Ok(Some((rule, verified, outputs))) => {
                if !rule.forward_original {
                    let everywhere = rules.rules.iter().map(|rule| &*rule.locations);
                    everywhere.for_each(|places| place::remove(request, places, verified.token()));
                }
                for (header, value) in outputs.iter() {
                    request.headers_mut().insert(header, value.clone());
                }
                Outcome::Verified(rule.policy, verified)
            }
            Ok(None) => Outcome::NoToken,
            Err((policy, failure)) => failure.outcome(policy),
        }
    }

    /// The first rule that takes a token; `None`: no rule finds one.
    fn first_taken<'t, B>(
        &self,
        rules: &'t Authentication,
        request: &Request<B>,
        now: i64,
    ) -> Result<Option<Taken<'t>>, (PolicyRef, Failure)> {
        let mut failed: Option<(PolicyRef, Failure)> = None;
        for rule in &rules.rules {
            let failure = match place::find(request, &rule.locations) {
                Ok(None) => continue,
                Ok(Some(token)) => match self.verify(rule, &token, now) {
                    Ok((verified, outputs)) => return Ok(Some((rule, verified, outputs))),
                    Err(failure) => failure,
                },
                Err(why) => Failure::Invalid(why),
            };
            if failed.as_ref().is_none_or(|(_, before)| failure.says_more_than(before)) {
                failed = Some((rule.policy, failure));
            }
        }
        failed.map_or(Ok(None), Err)
    }

    fn verify(&self, rule: &TokenRule, text: &str, now: i64) -> Result<(Rc<Verified>, Outputs), Failure> {
        let keys = match &rule.keys {
            Keys::Inline(keys) => Some(Cow::Borrowed(keys)),
            Keys::Remote(source) => self.keys.keys(source).map(Cow::Owned),
        };
        let mut cache = self.verified.borrow_mut();
        match cache.find(text, rule, keys.as_deref(), now) {
            Known::Verified(verified, outputs) => return Ok((verified, outputs)),
            Known::OfAnother => return Err(Failure::OtherIssuer),
            Known::Nothing => {}
        }
        // What costs least comes first, as in Envoy; nothing of it is believed before the signature agrees.
        let token = Token::parse(text).map_err(Failure::Invalid)?;
        if *token.claims.issuer != *rule.issuer {
            return Err(Failure::OtherIssuer);
        }
        token::valid_at(token.claims.expires, token.claims.not_before, now).map_err(Failure::Invalid)?;
        if !token::is_for(&token.claims.audiences, &rule.audiences) {
            return Err(Failure::Audience);
        }
        let keys = match keys {
            Some(keys) if knows(&keys, &token) => keys,
            keys => return Err(self.key_unknown(rule, keys.is_some())),
        };
        let signed = |key: &&Arc<_>| {
            VerifyingKey::verify(key, token.algorithm, token.signed.as_bytes(), &token.signature)
        };
        let Some(key) = keys.candidates(token.key_id.as_deref(), token.algorithm).find(signed) else {
            return Err(Failure::Invalid("no key of its issuer made this signature".into()));
        };
        let outputs = output::headers(rule, &token);
        Ok(cache.keep(text, rule, (&keys, key), token.claims, outputs))
    }

    fn key_unknown(&self, rule: &TokenRule, some_keys: bool) -> Failure {
        let Keys::Remote(source) = &rule.keys else {
            return Failure::Invalid("no key of the rule has its kid and alg".into());
        };
        let why = match self.keys.problem(source) {
            _ if some_keys => "no key of its issuer has its kid and alg".into(),
            Some(problem) => format!("its issuer's keys are not there: {}", problem.detail).into(),
            None => "its issuer's keys are not there yet".into(),
        };
        match self.keys.refetch(source) {
            Some(refetch) => Failure::Asking(Box::new(Unknown { refetch, why })),
            None => Failure::Invalid(why),
        }
    }
}

fn knows(keys: &KeySet, token: &Token<'_>) -> bool {
    keys.candidates(token.key_id.as_deref(), token.algorithm).next().is_some()
}

/// A CORS preflight (Fetch standard, CORS-preflight request), as Envoy's `bypass_cors_preflight` knows it.
fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    let is_given = |name| headers.get(name).is_some_and(|value| !value.is_empty());
    *method == Method::OPTIONS && is_given(ORIGIN) && is_given(ACCESS_CONTROL_REQUEST_METHOD)
}

impl Failure {
    /// Of several rules, the one whose token it is knows best what is wrong with it.
    fn says_more_than(&self, before: &Self) -> bool {
        let weight = |failure: &Self| match failure {
            Self::OtherIssuer => 0,
            Self::Audience => 1,
            Self::Invalid(_) => 2,
            Self::Asking(_) => 3,
        };
        weight(self) > weight(before)
    }

    fn outcome(self, policy: PolicyRef) -> Outcome {
        match self {
            Self::OtherIssuer => {
                Outcome::Refused(policy, Reason::JwtInvalid, "no rule is for its issuer".into())
            }
            Self::Audience => {
                Outcome::Refused(policy, Reason::JwtAudience, "it is for another audience".into())
            }
            Self::Invalid(why) => Outcome::Refused(policy, Reason::JwtInvalid, why),
            Self::Asking(unknown) => Outcome::Asking(policy, unknown),
        }
    }
}

#[cfg(test)]
mod tests;
