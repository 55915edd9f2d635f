//! The issuer of the end user's token: one key and one token for the whole comparison.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use fips::jws::{Algorithm, PublicNumbers, SigningKey};
use serde_json::{Value, json};

/// Its name, `iss`.
pub const NAME: &str = "https://issuer.example";

/// An issuer that has issued.
#[derive(Debug)]
pub struct Issuer {
    /// Its key set, as RequestAuthentication takes it inline.
    pub keys: String,
    /// A token of the one user there is: of team `blue`, good for a day.
    pub token: &'static str,
}

impl Issuer {
    /// Makes a key and signs a token by it.
    pub fn create() -> Result<Self> {
        let key = SigningKey::generate(Algorithm::Es256).context("make a key")?;
        let PublicNumbers::Ec(curve, x, y) = key.public() else { bail!("ES256 is of a curve") };
        let jwk = json!({ "kty": "EC", "crv": curve, "kid": "1", "x": base64url(&x), "y": base64url(&y) });
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = json!({
            "iss": NAME, "sub": "alice", "aud": ["ratings"], "azp": "browser", "exp": now + 86_400, "iat": now,
            "team": "blue", "groups": ["readers", "writers"], "realm": { "roles": ["user"] },
        });
        let encode = |value: &Value| base64url(value.to_string().as_bytes());
        let signed = format!("{}.{}", encode(&json!({ "alg": "ES256", "kid": "1" })), encode(&claims));
        let signature = key.sign(signed.as_bytes()).context("sign a token")?;
        // For as long as the process: every request of the load has it.
        let token = format!("{signed}.{}", base64url(&signature)).leak();
        Ok(Self { keys: json!({ "keys": [jwk] }).to_string(), token })
    }
}

/// RFC 4648 section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * digit)) as usize % 64]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_as_in_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("\u{3e}\u{7f}?", "Pn8_")]
        {
            assert_eq!(base64url(bytes.as_bytes()), text);
        }
    }
}
