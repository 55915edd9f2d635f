//! A compact JWS of a JSON web token, read strictly (RFC 7515, RFC 7519, RFC 8725): nothing here is believed yet.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fips::jws::Algorithm;
use serde_json::{Map, Value};

use super::Text;
use super::json;

/// Bytes of a token. Cookies and headers are bounded in the same way by servers; Envoy remembers none of more than 4 KiB.
pub const MAX_BYTES: usize = 16 * 1024;
/// Bytes of a key's name.
const MAX_KEY_ID: usize = 256;

/// A token as its holder gave it.
pub struct Token<'t> {
    /// How it says that it is signed.
    pub algorithm: Algorithm,
    /// By which key, as it says.
    pub key_id: Option<String>,
    /// What it claims.
    pub claims: Claims,
    /// The payload as it stands in the token.
    pub payload: &'t str,
    /// What is signed: header and payload as they stand in the token.
    pub signed: &'t str,
    /// By whom, if a key agrees.
    pub signature: Vec<u8>,
}

/// The claims that have a meaning here, and all of them.
#[derive(Debug)]
pub struct Claims {
    /// `iss`; empty: none.
    pub issuer: String,
    /// `sub`; empty: none.
    pub subject: String,
    /// `aud`, as a list.
    pub audiences: Vec<String>,
    /// `azp`.
    pub presenter: Option<String>,
    /// `exp`, seconds since the epoch.
    pub expires: Option<i64>,
    /// `nbf`, seconds since the epoch.
    pub not_before: Option<i64>,
    /// All.
    pub all: Map<String, Value>,
}

impl<'t> Token<'t> {
    /// Reads a token.
    ///
    /// # Errors
    /// What is wrong, in words that show nothing of the token.
    pub fn parse(text: &'t str) -> Result<Self, Text> {
        if text.len() > MAX_BYTES {
            return Err(format!("longer than {MAX_BYTES} bytes").into());
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("not a signed token: header.payload.signature".into());
        };
        let signature = decode(signature, "signature")?;
        let (algorithm, key_id) = read_header(&object(header, "header")?)?;
        let claims = Claims::read(object(payload, "payload")?)?;
        let signed = &text[..header.len() + 1 + payload.len()];
        Ok(Self { algorithm, key_id, claims, payload, signed, signature })
    }
}

/// Keys that a token brings along or points to (`jwk`, `jku`, `x5c`, `x5u`) are not looked at.
fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, Option<String>), Text> {
    if header.contains_key("crit") {
        return Err("header: crit asks for an extension, and none is known".into());
    }
    let Some(Value::String(name)) = header.get("alg") else { return Err("header: no alg".into()) };
    let algorithm = Algorithm::parse(name).ok_or("header: alg is not an approved signature algorithm")?;
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) if id.len() <= MAX_KEY_ID => Some(id.clone()),
        Some(_) => return Err("header: kid is not a string of at most 256 bytes".into()),
    };
    Ok((algorithm, key_id))
}

impl Claims {
    fn read(all: Map<String, Value>) -> Result<Self, Text> {
        let text = |name: &str| match all.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Text::from(format!("{name} is not a string"))),
        };
        Ok(Self {
            issuer: text("iss")?.unwrap_or_default(),
            subject: text("sub")?.unwrap_or_default(),
            audiences: audiences(all.get("aud"))?,
            presenter: text("azp")?,
            expires: time(&all, "exp", f64::floor)?,
            not_before: time(&all, "nbf", f64::ceil)?,
            all: {
                time(&all, "iat", f64::floor)?;
                all
            },
        })
    }
}

/// Whether a token with these `aud` is for one of `audiences`.
pub fn is_for(own: &[String], audiences: &[Box<str>]) -> bool {
    audiences.is_empty() || own.iter().any(|own| audiences.iter().any(|each| **each == **own))
}

/// Whether `now`, in seconds since the epoch, lies in a time of validity, by clocks that differ by up to [`CLOCK_SKEW`].
///
/// # Errors
/// On which side of it.
pub fn valid_at(expires: Option<i64>, not_before: Option<i64>, now: i64) -> Result<(), Text> {
    if expires.is_some_and(|expires| now > honoured_until(expires)) {
        return Err("it has expired".into());
    }
    if not_before.is_some_and(|not_before| now.saturating_add(CLOCK_SKEW) < not_before) {
        return Err("it is not valid yet".into());
    }
    Ok(())
}

/// The last second in which a token with this `exp` counts.
pub fn honoured_until(expires: i64) -> i64 {
    expires.saturating_add(CLOCK_SKEW)
}

/// Seconds by which the clocks of issuer and proxy may differ (Envoy's default).
pub const CLOCK_SKEW: i64 = 60;

fn audiences(value: Option<&Value>) -> Result<Vec<String>, Text> {
    const WRONG: &str = "aud is neither a string nor a list of strings";
    match value {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(all)) => all
            .iter()
            .map(|each| each.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| WRONG.into()),
        Some(_) => Err(WRONG.into()),
    }
}

/// A NumericDate (RFC 7519 section 2), of which a fraction is rounded to the strict side.
fn time(all: &Map<String, Value>, name: &str, round: fn(f64) -> f64) -> Result<Option<i64>, Text> {
    /// Beyond the year 200,000,000; within what a double has exactly.
    const FAR: f64 = 9e15;
    let Some(value) = all.get(name) else { return Ok(None) };
    match value.as_f64() {
        #[expect(clippy::cast_possible_truncation, reason = "within the bounds just checked")]
        Some(seconds) if (0.0..FAR).contains(&seconds) => Ok(Some(round(seconds) as i64)),
        _ => Err(format!("{name} is not a time in seconds").into()),
    }
}

fn object(part: &str, name: &str) -> Result<Map<String, Value>, Text> {
    json::object(&decode(part, name)?).map_err(|error| format!("{name}: {error}").into())
}

fn decode(part: &str, name: &str) -> Result<Vec<u8>, Text> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| format!("{name} is not base64url without padding").into())
}
