//! RequestAuthentication in a snapshot: which tokens are asked for where, and what proves them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::ObjectIndex;
use crate::jwks::KeySet;

/// One RequestAuthentication selected for the workload.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestAuthentication {
    /// The object.
    pub object: ObjectIndex,
    /// `spec.jwtRules`.
    pub rules: Vec<JwtRule>,
    /// The object could not be understood: which tokens it asks for and which headers it fills is not known, so that no
    /// request can go on.
    pub quarantined: bool,
}

/// One of `spec.jwtRules`.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtRule {
    /// Its number in `spec.jwtRules`, from 0, as records name it.
    pub index: u16,
    /// `iss` of its tokens, to the letter.
    pub issuer: String,
    /// `aud` must be one of these; empty: any.
    pub audiences: Vec<String>,
    /// Where the issuer's keys come from.
    pub keys: KeySource,
    /// Where a token may be, defaults filled in.
    pub locations: Vec<TokenLocation>,
    /// The application sees the token too.
    pub forward_original: bool,
    /// Header that gets the payload as it is in the token, base64url without padding.
    pub payload_header: Option<String>,
    /// Headers that get a claim.
    pub claim_headers: Vec<ClaimHeader>,
}

/// Where an issuer's keys come from.
#[derive(Debug, Clone, PartialEq)]
pub enum KeySource {
    /// `jwks`.
    Inline(Arc<KeySet>),
    /// Fetched.
    Remote(RemoteKeys),
}

/// Keys that are fetched. `Eq`: two rules with the same share one set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RemoteKeys {
    /// Where.
    pub location: KeyLocation,
    /// For each fetch as a whole. Default 5 s.
    pub timeout: Duration,
}

/// Where keys are fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyLocation {
    /// `jwksUri`.
    Url(String),
    /// OpenID Connect Discovery 1.0 section 4: the issuer's `/.well-known/openid-configuration` names the URL.
    Discovery(String),
}

impl fmt::Display for KeyLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Discovery(issuer) => write!(f, "discovery at {issuer}"),
        }
    }
}

/// Where a token may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenLocation {
    /// `fromHeaders`, name in lower case; the token follows the prefix.
    Header {
        /// In lower case.
        name: String,
        /// Compared without case.
        prefix: String,
    },
    /// `fromParams`: of the query.
    Query(String),
    /// `fromCookies`.
    Cookie(String),
}

impl TokenLocation {
    /// Where RFC 6750 has tokens, sections 2.1 and 2.3.
    pub fn defaults() -> Vec<Self> {
        vec![
            Self::Header { name: "authorization".into(), prefix: "Bearer ".into() },
            Self::Query("access_token".into()),
        ]
    }
}

/// One of `outputClaimToHeaders`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimHeader {
    /// In lower case.
    pub header: String,
    /// The claim's name; where there is none of this name, dots lead into nested ones.
    pub claim: String,
}
