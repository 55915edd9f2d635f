//! Tokens of an issuer of our own, good and bad in every way, against rules.

mod corpus;
mod outputs;
mod rules;

use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control_client::jwks::KeySet;
use control_client::snapshot::{JwtRule, KeySource, ObjectRef, Policy, RequestAuthentication, TokenLocation};
use fips::jws::{Algorithm, PublicNumbers, SigningKey};
use http::Request;
use serde_json::{Value, json};

use super::{Outcome, Tokens, Verified};
use crate::decision::Reason;
use crate::jwks;
use crate::tables::Tables;

/// The time of all tests.
const NOW: i64 = 1_800_000_000;

/// Who signs tokens.
struct Issuer {
    key: SigningKey,
    name: &'static str,
}

impl Issuer {
    fn new(name: &'static str, algorithm: Algorithm) -> Self {
        Self { key: SigningKey::generate(algorithm).unwrap(), name }
    }

    fn jwk(&self, id: &str) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match self.key.public() {
            PublicNumbers::Rsa(n, e) => json!({"kty": "RSA", "n": encode(&n), "e": encode(&e)}),
            PublicNumbers::Ec(crv, x, y) => {
                json!({"kty": "EC", "crv": crv, "x": encode(&x), "y": encode(&y)})
            }
            PublicNumbers::Ed25519(x) => json!({"kty": "OKP", "crv": "Ed25519", "x": encode(&x)}),
        };
        jwk["kid"] = id.into();
        jwk
    }

    fn keys(&self) -> Arc<KeySet> {
        keys(&[self.jwk("k")])
    }

    fn header(&self) -> Value {
        json!({"alg": self.key.algorithm().as_str(), "kid": "k", "typ": "JWT"})
    }

    fn claims(&self) -> Value {
        json!({"iss": self.name, "sub": "alice", "aud": ["app", "other"], "exp": NOW + 600, "iat": NOW})
    }

    /// Signs whatever is given.
    fn sign(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = self.key.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&self.header().to_string(), &claims.to_string())
    }

    fn rule(&self) -> JwtRule {
        JwtRule {
            index: 0,
            issuer: self.name.into(),
            audiences: Vec::new(),
            keys: KeySource::Inline(self.keys()),
            locations: TokenLocation::defaults(),
            forward_original: false,
            payload_header: None,
            claim_headers: Vec::new(),
        }
    }
}

fn keys(jwks: &[Value]) -> Arc<KeySet> {
    Arc::new(KeySet::parse(json!({ "keys": jwks }).to_string().as_bytes()).unwrap())
}

fn with(mut value: Value, name: &str, to: impl Into<Value>) -> Value {
    value[name] = to.into();
    value
}

/// A worker that verifies by these rules, each of an object of its own.
struct Verifier {
    tables: Tables,
    tokens: Tokens,
}

impl Verifier {
    fn new(rules: Vec<JwtRule>) -> Self {
        let store = jwks::Store::new(jwks::Options::default());
        let tables = tables(rules);
        store.follow(tables.authentication().remote_keys());
        Self { tables, tokens: Tokens::new(store) }
    }

    fn ask(&self, request: &mut Request<()>) -> Outcome {
        self.ask_at(NOW, request)
    }

    fn ask_at(&self, now: i64, request: &mut Request<()>) -> Outcome {
        self.tokens.authenticate(self.tables.authentication(), request, now)
    }

    /// What becomes of a token where it is expected.
    fn bearer(&self, token: &str) -> Outcome {
        self.ask(&mut bearer(token))
    }
}

fn tables(rules: Vec<JwtRule>) -> Tables {
    let object = |number: usize| ObjectRef {
        kind: "RequestAuthentication".into(),
        namespace: "ns".into(),
        name: format!("r{number:03}"),
        digest: format!("sha256:{number:02}"),
    };
    let objects = (0..rules.len()).map(object).collect();
    let one =
        |(number, rule)| RequestAuthentication { object: number, rules: vec![rule], quarantined: false };
    let request_authentication = (0..).zip(rules).map(one).collect();
    Tables::compile(&Policy { objects, request_authentication, ..Policy::default() }, &[]).unwrap()
}

fn request(uri: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let request =
        headers.iter().fold(Request::get(uri), |request, (name, value)| request.header(*name, *value));
    request.body(()).unwrap()
}

fn bearer(token: &str) -> Request<()> {
    request("/", &[("authorization", &format!("Bearer {token}"))])
}

#[track_caller]
fn verified(outcome: Outcome) -> Rc<Verified> {
    match outcome {
        Outcome::Verified(_, verified) => verified,
        other => panic!("not verified: {}", text(&other)),
    }
}

/// `jwt-invalid: it has expired`.
fn text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::NotAsked => "not asked".into(),
        Outcome::NoToken => "no token".into(),
        Outcome::Verified(policy, user) => format!("{policy:?} verified {}", user.attributes.subject),
        Outcome::Refused(_, reason, why) => format!("{}: {why}", reason.as_str()),
        Outcome::Asking(..) => "asking".into(),
    }
}

#[track_caller]
fn refused(outcome: &Outcome, reason: Reason, why: &str) {
    let Outcome::Refused(_, found, text) = outcome else { panic!("{}; wanted {why}", self::text(outcome)) };
    assert_eq!(*found, reason, "{text}");
    assert!(text.contains(why), "{text}; wanted {why}");
}
