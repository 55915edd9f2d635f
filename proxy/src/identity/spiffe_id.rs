//! [`SpiffeId`]: a workload's name, parsed strictly.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
/// SPIFFE ID specification, section 2.3: an implementation must support 2048 bytes; longer ones are refused.
const MAX_BYTES: usize = 2048;
/// Section 2.1.
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// `spiffe://trust-domain/path`, as the SPIFFE ID specification (section 2) writes it: nothing is normalised, what has to
/// be normalised is refused. A clone is a reference count.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path begins, or the end.
    path: u16,
}

impl SpiffeId {
    /// The whole: `spiffe://cluster.local/ns/a/sa/b`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The whole, shared.
    pub fn to_shared(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// As AuthorizationPolicy's `principals` have it: without the scheme.
    pub fn principal(&self) -> &str {
        &self.text[SCHEME.len()..]
    }

    /// `cluster.local`
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.path)]
    }

    /// `/ns/a/sa/b`; empty for a trust domain itself.
    pub fn path(&self) -> &str {
        &self.text[usize::from(self.path)..]
    }

    /// `a` of a Kubernetes identity, `/ns/a/sa/b`.
    pub fn namespace(&self) -> Option<&str> {
        self.kubernetes().map(|(namespace, _)| namespace)
    }

    /// `b` of a Kubernetes identity, `/ns/a/sa/b`.
    pub fn service_account(&self) -> Option<&str> {
        self.kubernetes().map(|(_, service_account)| service_account)
    }

    fn kubernetes(&self) -> Option<(&str, &str)> {
        let (namespace, rest) = self.path().strip_prefix("/ns/")?.split_once('/')?;
        let service_account = rest.strip_prefix("sa/")?;
        (!service_account.contains('/')).then_some((namespace, service_account))
    }
}

/// Why a text is not a SPIFFE id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpiffeId {
    /// Another scheme or none.
    #[error("does not begin with spiffe://")]
    Scheme,
    /// Longer than 2048 bytes.
    #[error("longer than {MAX_BYTES} bytes")]
    Length,
    /// Empty, too long, or has other characters.
    #[error("trust domain must be 1 to {MAX_TRUST_DOMAIN_BYTES} of a-z, 0-9, '.', '-', '_'")]
    TrustDomain,
    /// Ends in a slash, or has an empty or relative segment, or other characters.
    #[error("path segments must be of a-z, A-Z, 0-9, '.', '-', '_', not empty, not '.' or '..'")]
    Path,
}

impl SpiffeId {
    /// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`, as Istio names a workload.
    pub fn for_workload(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidSpiffeId> {
        Self::try_from(format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").as_str())
    }
}

impl TryFrom<&str> for SpiffeId {
    type Error = InvalidSpiffeId;

    fn try_from(text: &str) -> Result<Self, InvalidSpiffeId> {
        if text.len() > MAX_BYTES {
            return Err(InvalidSpiffeId::Length);
        }
        let name = text.strip_prefix(SCHEME).ok_or(InvalidSpiffeId::Scheme)?;
        let (trust_domain, path) = name.split_at(name.find('/').unwrap_or(name.len()));
        if !is_trust_domain(trust_domain) {
            return Err(InvalidSpiffeId::TrustDomain);
        }
        if !path.is_empty() && !path[1..].split('/').all(is_segment) {
            return Err(InvalidSpiffeId::Path);
        }
        let path = u16::try_from(SCHEME.len() + trust_domain.len()).map_err(|_| InvalidSpiffeId::Length)?;
        Ok(Self { text: text.into(), path })
    }
}

/// Whether a text can be a trust domain.
pub(crate) fn is_trust_domain(text: &str) -> bool {
    (1..=MAX_TRUST_DOMAIN_BYTES).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

fn is_segment(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..")
        && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        Self::try_from(text)
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts() {
        let id = SpiffeId::try_from("spiffe://cluster.local/ns/bookinfo/sa/ratings").unwrap();
        assert_eq!(id.principal(), "cluster.local/ns/bookinfo/sa/ratings");
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.path(), "/ns/bookinfo/sa/ratings");
        assert_eq!((id.namespace(), id.service_account()), (Some("bookinfo"), Some("ratings")));
    }

    #[test]
    fn only_the_exact_form_is_of_kubernetes() {
        for text in [
            "spiffe://a",
            "spiffe://a/ns/b",
            "spiffe://a/ns/b/sa",
            "spiffe://a/ns/b/sa/c/d",
            "spiffe://a/x/b/sa/c",
        ] {
            let id = SpiffeId::try_from(text).unwrap();
            assert_eq!((id.namespace(), id.service_account()), (None, None), "{text}");
        }
    }

    #[test]
    fn refused() {
        use InvalidSpiffeId::*;
        let long_domain = format!("spiffe://{}/x", "a".repeat(256));
        let long = format!("spiffe://a/{}", "b".repeat(2048));
        for (text, why) in [
            ("", Scheme),
            ("https://a/b", Scheme),
            ("SPIFFE://a/b", Scheme),
            ("spiffe:/a/b", Scheme),
            ("spiffe://", TrustDomain),
            ("spiffe:///b", TrustDomain),
            ("spiffe://A/b", TrustDomain),
            ("spiffe://a:80/b", TrustDomain),
            ("spiffe://user@a/b", TrustDomain),
            ("spiffe://a?q", TrustDomain),
            ("spiffe://a%2f/b", TrustDomain),
            (&long_domain, TrustDomain),
            ("spiffe://a/", Path),
            ("spiffe://a/b/", Path),
            ("spiffe://a//b", Path),
            ("spiffe://a/./b", Path),
            ("spiffe://a/../b", Path),
            ("spiffe://a/b?q", Path),
            ("spiffe://a/b#f", Path),
            ("spiffe://a/%62", Path),
            ("spiffe://a/\u{e9}", Path),
            (&long, Length),
        ] {
            assert_eq!(SpiffeId::try_from(text), Err(why), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_made_of_its_parts(text in "spiffe://[a-zA-Z0-9.%/_-]{0,40}") {
            if let Ok(id) = SpiffeId::try_from(text.as_str()) {
                prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
            }
        }
    }
}
