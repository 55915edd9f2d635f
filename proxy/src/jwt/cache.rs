//! Tokens that were verified before, one such memory a worker: bounded, by a randomly keyed hash and a full comparison.
//!
//! A worker's own, so that the request path takes no lock: a token is verified once a worker.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use control_client::jwks::KeySet;
use fips::jws::VerifyingKey;
use foldhash::quality::RandomState;
use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::token::Claims;
use crate::tables::{TokenRule, UserAttributes};
use crate::telemetry::UserEvidence;

/// A token that some rule verified.
#[derive(Debug)]
pub struct Verified {
    /// As policies see it.
    pub attributes: Arc<UserAttributes>,
    /// As records show it, with the time until which it is valid.
    pub evidence: Rc<UserEvidence>,
    /// The key that signed it.
    pub(super) key: Arc<VerifyingKey>,
    token: Rc<str>,
    expires: Option<i64>,
    not_before: Option<i64>,
}

/// What a verified token puts into headers.
pub type Outputs = Rc<[(HeaderName, HeaderValue)]>;

/// Tokens, and which rules verified them by which keys.
#[derive(Default)]
pub struct Cache {
    /// Used since the last turn; the others go with the next.
    young: Half,
    old: Half,
}

#[derive(Default)]
struct Half {
    entries: HashMap<Rc<str>, Entry, RandomState>,
    bytes: usize,
}

struct Entry {
    verified: Rc<Verified>,
    by: SmallVec<[By; 1]>,
}

struct By {
    rule: Box<str>,
    /// The very set that holds the key: another one, and the token is verified again.
    keys: Arc<KeySet>,
    outputs: Outputs,
}

/// Tokens in one half.
const MAX_TOKENS: usize = 2048;
/// Bytes of their texts together; what was read out of them takes some five times as much.
const MAX_BYTES: usize = 1024 * 1024;
/// Rules that a token is remembered for.
const MAX_RULES: usize = 8;

/// What is known of a token.
pub enum Known {
    /// Nothing.
    Nothing,
    /// It is one of another issuer: some rule of that issuer verified it.
    OfAnother,
    /// This rule verified it.
    Verified(Rc<Verified>, Outputs),
}

impl Cache {
    /// Looks a token up for a rule and the keys in force.
    pub fn find(&mut self, token: &str, rule: &TokenRule, keys: Option<&Arc<KeySet>>, now: i64) -> Known {
        if !self.young.entries.contains_key(token)
            && let Some((token, entry)) = self.old.entries.remove_entry(token)
        {
            self.put(token, entry);
        }
        let Some(entry) = self.young.entries.get(token) else { return Known::Nothing };
        let verified = &entry.verified;
        if verified.attributes.issuer != *rule.issuer {
            return Known::OfAnother;
        }
        let by = entry.by.iter().find(|by| by.rule == rule.id);
        match by.filter(|by| keys.is_some_and(|keys| Arc::ptr_eq(&by.keys, keys)) && verified.valid_at(now)) {
            Some(by) => Known::Verified(Rc::clone(verified), Rc::clone(&by.outputs)),
            None => Known::Nothing,
        }
    }

    /// Remembers that a rule verified a token by one of its keys.
    pub fn keep(
        &mut self,
        token: &str,
        rule: &TokenRule,
        (keys, key): (&Arc<KeySet>, &Arc<VerifyingKey>),
        claims: Claims,
        outputs: Outputs,
    ) -> (Rc<Verified>, Outputs) {
        let by = By { rule: rule.id.clone(), keys: Arc::clone(keys), outputs: Rc::clone(&outputs) };
        if let Some(entry) = self.young.entries.get_mut(token) {
            entry.by.retain(|by| by.rule != rule.id);
            entry.by.truncate(MAX_RULES - 1);
            entry.by.push(by);
            return (Rc::clone(&entry.verified), outputs);
        }
        let verified = Rc::new(Verified::new(token, key, claims));
        let entry = Entry { verified: Rc::clone(&verified), by: SmallVec::from_iter([by]) };
        self.put(Rc::clone(&verified.token), entry);
        (verified, outputs)
    }

    fn put(&mut self, token: Rc<str>, entry: Entry) {
        if self.young.entries.len() >= MAX_TOKENS || self.young.bytes + token.len() > MAX_BYTES {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.bytes += token.len();
        self.young.entries.insert(token, entry);
    }
}

impl Verified {
    fn new(token: &str, key: &Arc<VerifyingKey>, claims: Claims) -> Self {
        let evidence = UserEvidence {
            issuer: claims.issuer.as_str().into(),
            subject: claims.subject.as_str().into(),
            expires: claims.expires,
        };
        Self {
            evidence: Rc::new(evidence),
            key: Arc::clone(key),
            token: token.into(),
            expires: claims.expires,
            not_before: claims.not_before,
            attributes: Arc::new(UserAttributes {
                issuer: claims.issuer,
                subject: claims.subject,
                audiences: claims.audiences,
                presenter: claims.presenter,
                claims: claims.all,
            }),
        }
    }

    /// The token itself.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Until when it counts, seconds since the epoch.
    pub fn honoured_until(&self) -> Option<i64> {
        self.expires.map(super::token::honoured_until)
    }

    fn valid_at(&self, now: i64) -> bool {
        super::token::valid_at(self.expires, self.not_before, now).is_ok()
    }
}
