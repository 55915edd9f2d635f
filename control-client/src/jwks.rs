//! Key sets of issuers (RFC 7517): bytes that nobody vouches for, to keys that can verify tokens.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fips::jws::{Algorithm, Curve, KeyRefused, VerifyingKey};
use serde::Deserialize;

/// Bytes of a key set, and of what leads to one.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Keys of a set. Issuers have a handful.
pub const MAX_KEYS: usize = 128;
/// Keys that a token without `kid`, or of a set whose keys have none, is tried against: each costs a verification.
const MAX_TRIED: usize = 8;

/// Keys that can verify tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    /// What was left out: keys for encryption, of algorithms that are not approved, malformed ones.
    pub left_out: Vec<LeftOut>,
}

/// A key that was left out of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct LeftOut {
    /// Its number in `keys`, from 0.
    pub index: usize,
    /// Why.
    pub why: Unusable,
}

/// Why a key can't verify tokens.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Unusable {
    /// It is meant for something else.
    #[error("not for signatures")]
    OtherUse,
    /// Its algorithm, curve or length is not approved.
    #[error("{0}")]
    NotApproved(String),
    /// It can't be read.
    #[error("{0}")]
    Malformed(String),
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "keys[{}]: {}", self.index, self.why)
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Key {
    id: Option<Box<str>>,
    key: Arc<VerifyingKey>,
}

/// A key as written. What it says beside (`x5u`, `x5c`, ..) is not looked at.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a set. Keys that can't verify tokens are left out.
    ///
    /// # Errors
    /// Not a key set, larger than [`MAX_BYTES`], more than [`MAX_KEYS`], or no key of use in it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        if bytes.len() > MAX_BYTES {
            return Err(format!("a key set of {} bytes; at most {MAX_BYTES} are read", bytes.len()));
        }
        let Set { keys: written } =
            serde_json::from_slice(bytes).map_err(|error| format!("not a JSON Web Key Set: {error}"))?;
        if written.len() > MAX_KEYS {
            return Err(format!("a key set of {} keys; at most {MAX_KEYS} are taken", written.len()));
        }
        let mut set = Self::default();
        for (index, value) in written.into_iter().enumerate() {
            let read = serde_json::from_value::<Jwk>(value);
            let read = read.map_err(|error| Unusable::Malformed(error.to_string()));
            match read.and_then(|jwk| jwk.verifying()) {
                Ok(key) => set.keys.push(key),
                Err(why) => set.left_out.push(LeftOut { index, why }),
            }
        }
        if set.keys.is_empty() {
            let why = set.left_out.first().map_or_else(|| "it is empty".to_owned(), LeftOut::to_string);
            return Err(format!("no key of this set can verify tokens ({why})"));
        }
        Ok(set)
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// True if no key is there.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a key is one of the set.
    pub fn holds(&self, key: &Arc<VerifyingKey>) -> bool {
        self.keys.iter().any(|each| Arc::ptr_eq(&each.key, key) || each.key == *key)
    }

    /// The keys that a token with this `kid` and `alg` may be signed with: a key without an id stands for any.
    pub fn candidates(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &Arc<VerifyingKey>> {
        let fits = move |key: &&Key| match (id, &key.id) {
            (Some(wanted), Some(id)) => **id == *wanted,
            _ => true,
        };
        let keys = self.keys.iter().filter(fits).filter(move |key| key.key.serves(algorithm));
        keys.map(|key| &key.key).take(MAX_TRIED)
    }
}

impl Jwk {
    fn verifying(self) -> Result<Key, Unusable> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig")
            || self.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify"))
        {
            return Err(Unusable::OtherUse);
        }
        let not_approved = |what: String| Unusable::NotApproved(what);
        let mut key = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => VerifyingKey::rsa(&decode("n", &self.n)?, &decode("e", &self.e)?),
            ("EC", Some(curve)) => {
                let known = Curve::parse(curve);
                let known = known.ok_or_else(|| not_approved(format!("curve {curve} is not approved")))?;
                VerifyingKey::ec(known, &decode("x", &self.x)?, &decode("y", &self.y)?)
            }
            ("OKP", Some("Ed25519")) => VerifyingKey::ed25519(&decode("x", &self.x)?),
            ("oct", _) => return Err(not_approved("a secret, not a public key".into())),
            (kty, curve) => {
                let curve = curve.unwrap_or_default();
                return Err(not_approved(format!("type {kty} {curve} is not known, or not approved")));
            }
        }
        .map_err(|error| match error {
            KeyRefused::Size | KeyRefused::Exponent => not_approved(error.to_string()),
            KeyRefused::Malformed => Unusable::Malformed(error.to_string()),
        })?;
        if let Some(alg) = self.alg {
            // RFC 9864 gives Ed25519 a name of its own.
            let name = if alg == "Ed25519" { "EdDSA" } else { &alg };
            let algorithm = Algorithm::parse(name)
                .ok_or_else(|| not_approved(format!("algorithm {alg} is not approved")))?;
            let only = key.only(algorithm);
            key = only.ok_or_else(|| Unusable::Malformed(format!("its type has no algorithm {alg}")))?;
        }
        Ok(Key { id: self.kid.map(Into::into), key: key.into() })
    }
}

fn decode(name: &str, text: &Option<String>) -> Result<Vec<u8>, Unusable> {
    let malformed = |why: String| Unusable::Malformed(why);
    let text = text.as_deref().ok_or_else(|| malformed(format!("{name} is missing")))?;
    URL_SAFE_NO_PAD.decode(text).map_err(|error| malformed(format!("{name}: {error}")))
}

#[cfg(test)]
mod tests {
    use fips::jws::{PublicNumbers, SigningKey};
    use serde_json::{Value, json};

    use super::*;

    fn jwk(algorithm: Algorithm) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match SigningKey::generate(algorithm).unwrap().public() {
            PublicNumbers::Rsa(n, e) => json!({"kty": "RSA", "n": encode(&n), "e": encode(&e)}),
            PublicNumbers::Ec(crv, x, y) => {
                json!({"kty": "EC", "crv": crv, "x": encode(&x), "y": encode(&y)})
            }
            PublicNumbers::Ed25519(x) => json!({"kty": "OKP", "crv": "Ed25519", "x": encode(&x)}),
        }
    }

    fn with(mut key: Value, name: &str, value: impl Into<Value>) -> Value {
        key[name] = value.into();
        key
    }

    fn parse(keys: &[Value]) -> Result<KeySet, String> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn keys_are_found_by_id_and_algorithm() {
        let set = parse(&[
            with(jwk(Algorithm::Es256), "kid", "a"),
            with(jwk(Algorithm::Es256), "kid", "b"),
            with(with(jwk(Algorithm::Rs256), "kid", "c"), "alg", "PS256"),
            jwk(Algorithm::EdDsa),
        ])
        .unwrap();
        let found = |id, algorithm| set.candidates(id, algorithm).count();
        assert_eq!(found(Some("a"), Algorithm::Es256), 1);
        assert_eq!(found(None, Algorithm::Es256), 2);
        assert_eq!(found(Some("x"), Algorithm::Es256), 0);
        assert_eq!(found(Some("c"), Algorithm::Ps256), 1);
        assert_eq!(found(Some("c"), Algorithm::Rs256), 0, "the key is for another algorithm");
        assert_eq!(found(Some("a"), Algorithm::Rs256), 0);
        assert_eq!(found(Some("any"), Algorithm::EdDsa), 1, "a key without an id stands for any");
    }

    #[test]
    fn what_can_not_verify_tokens_is_left_out() {
        let good = jwk(Algorithm::Es256);
        let bad = [
            (with(good.clone(), "use", "enc"), "not for signatures"),
            (with(good.clone(), "key_ops", json!(["sign"])), "not for signatures"),
            (with(good.clone(), "alg", "ES384"), "no algorithm ES384"),
            (with(good.clone(), "alg", "HS256"), "not approved"),
            (with(good.clone(), "crv", "secp256k1"), "not approved"),
            (with(good.clone(), "x", "AAAA"), "not a public key"),
            (with(good.clone(), "x", "*"), "x:"),
            (with(good.clone(), "y", Value::Null), "y is missing"),
            (with(good.clone(), "kid", 7), "invalid type"),
            (json!({"kty": "oct", "k": "c2VjcmV0"}), "a secret"),
            (json!({"kty": "AKP"}), "not known"),
            (json!(1), "invalid type"),
        ];
        for (key, why) in &bad {
            let refused = parse(std::slice::from_ref(key)).unwrap_err();
            assert!(refused.contains(why), "{key}: {refused}");
        }
        let mut keys: Vec<_> = bad.into_iter().map(|(key, _)| key).collect();
        keys.push(good);
        let set = parse(&keys).unwrap();
        assert_eq!((set.len(), set.left_out.len()), (1, keys.len() - 1));
        assert!(set.left_out[0].to_string().starts_with("keys[0]: "));
    }

    #[test]
    fn what_is_no_set_is_refused_and_so_is_too_much_of_one() {
        for bad in ["", "<html><body>Sign in</body></html>", "[]", "{}", r#"{"keys": {}}"#, r#"{"keys": []}"#]
        {
            assert!(KeySet::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let key = jwk(Algorithm::Es256);
        assert!(parse(&vec![key.clone(); 5_000]).unwrap_err().contains("at most 128"));
        assert!(parse(&vec![key.clone(); 10_000]).unwrap_err().contains("bytes"));
        let huge = format!("{{\"keys\": [{key}]}}{}", " ".repeat(10 << 20));
        assert!(KeySet::parse(huge.as_bytes()).unwrap_err().contains("bytes"));
        let deep = format!("{{\"keys\": [{}1{}]}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(KeySet::parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_token_that_names_no_key_is_tried_against_few() {
        let set = parse(&vec![jwk(Algorithm::Es256); MAX_KEYS]).unwrap();
        assert_eq!(set.candidates(None, Algorithm::Es256).count(), MAX_TRIED);
    }
}
