//! TLS to servers outside of the mesh: which names a server must prove, under which roots, and what it is shown.

use std::fmt;
use std::sync::Arc;

/// TLS as a DestinationRule (SIMPLE, MUTUAL) or a BackendTLSPolicy orders it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsOrigination {
    /// Server name to send; `None`: none.
    pub sni: Option<String>,
    /// Names of which the server must prove one. Never empty.
    pub names: Vec<ServerId>,
    /// Roots. Never empty.
    pub roots: Vec<Pem>,
    /// Client certificate and key.
    pub client: Option<(Pem, Pem)>,
}

/// A name that a server can prove by its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServerId {
    /// A DNS name, which a wildcard in the certificate may cover, or an address.
    Host(String),
    /// A URI name, to the letter.
    Uri(String),
}

impl ServerId {
    /// A name of DestinationRule or ServiceEntry `subjectAltNames`, which don't say what kind it is.
    pub fn of_any_kind(name: &str) -> Self {
        if name.contains("://") { Self::Uri(name.to_owned()) } else { Self::Host(name.to_owned()) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Host(name) | Self::Uri(name) => name,
        }
    }
}

/// Certificates or a key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pem {
    /// In a file of the proxy's, by its path.
    File(String),
    /// In an object.
    Object(PemObject),
}

impl Pem {
    /// What to call it where it is at fault: `/etc/ca.crt`, `ConfigMap bookinfo/ca`.
    pub fn name(&self) -> &str {
        match self {
            Self::File(path) => path,
            Self::Object(object) => &object.name,
        }
    }
}

/// PEM out of a Secret or ConfigMap, which may be a private key: compared by its fingerprint and never shown.
#[derive(Clone)]
pub struct PemObject {
    name: Arc<str>,
    text: Arc<str>,
    fingerprint: [u8; 32],
}

impl PemObject {
    /// The text of the object called `name`.
    pub fn new(name: impl Into<Arc<str>>, text: &str) -> Self {
        Self { name: name.into(), fingerprint: fips::sha256(text.as_bytes()), text: text.into() }
    }

    /// What to call it where it is at fault.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The PEM.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for PemObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl PartialEq for PemObject {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.fingerprint == other.fingerprint
    }
}

impl Eq for PemObject {}

impl std::hash::Hash for PemObject {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.fingerprint.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown_and_another_one_is_another() {
        let key = |text: &str| Pem::Object(PemObject::new("Secret a/b", text));
        assert_eq!(format!("{:?}", key("hidden")), "Object(Secret a/b)");
        assert_eq!(key("one"), key("one"));
        assert_ne!(key("one"), key("two"));
    }
}
