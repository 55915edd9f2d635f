//! A small certificate authority: makes keys by the module and signs what a [`Profile`] says. Serves development
//! identities, the demo, tests and benchmarks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PublicKeyData, RevokedCertParams,
    SanType, SerialNumber,
};

mod key;

use key::IssuedKey;
pub use key::KeyType;

/// Why a key or certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The profile can't be encoded.
    #[error("certificate authority: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The module could not make a key, or what was given is not one.
    #[error("certificate authority: {0}")]
    Key(&'static str),
    /// No random serial number.
    #[error(transparent)]
    Random(#[from] crate::RandomFailed),
}

/// What a certificate is to say.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Subject's common name; none by default: identities stand in the URI.
    pub common_name: Option<String>,
    /// URI names, `spiffe://..`.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// notBefore.
    pub not_before: SystemTime,
    /// notAfter.
    pub not_after: SystemTime,
    /// Basic constraints say CA.
    pub ca: bool,
    /// Key usages; none: the certificate says nothing of them.
    pub key_usages: Vec<KeyUsage>,
    /// Extended key usages; none: the certificate says nothing of them.
    pub purposes: Vec<Purpose>,
    /// What key is made for it.
    pub key_type: KeyType,
}

/// The key usages an authority can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyUsage {
    /// Signs handshakes.
    DigitalSignature,
    /// Decrypts keys, as RSA key exchange had it.
    KeyEncipherment,
    /// Signs certificates.
    CertificateSign,
    /// Signs revocation lists.
    CrlSign,
}

/// The extended key usages an authority can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A TLS server's.
    Server,
    /// A TLS client's.
    Client,
}

impl Profile {
    /// A leaf for `uri` (an X.509-SVID), valid from a minute ago, against clocks that run late, for `lifetime`.
    pub fn workload(uri: impl Into<String>, lifetime: Duration) -> Self {
        Self { uris: vec![uri.into()], ..Self::leaf(lifetime) }
    }

    /// A leaf for a server that is known by DNS names.
    pub fn server(dns_names: &[&str], lifetime: Duration) -> Self {
        Self { dns_names: dns_names.iter().map(|&name| name.to_owned()).collect(), ..Self::leaf(lifetime) }
    }

    fn leaf(lifetime: Duration) -> Self {
        let now = SystemTime::now();
        Self {
            common_name: None,
            uris: Vec::new(),
            dns_names: Vec::new(),
            not_before: now - Duration::from_secs(60),
            not_after: now + lifetime,
            ca: false,
            key_usages: vec![KeyUsage::DigitalSignature],
            purposes: vec![Purpose::Server, Purpose::Client],
            key_type: KeyType::P256,
        }
    }
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate alone, without its issuer.
    pub certificate_pem: String,
    /// PKCS #8. Not shown by `Debug`.
    pub key_pem: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// A root certificate and its key.
pub struct Authority {
    issuer: Issuer<'static, IssuedKey>,
    certificate_pem: String,
    key_pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new self-signed root for a trust domain: ECDSA P-256.
    pub fn generate(trust_domain: &str, lifetime: Duration) -> Result<Self, CaError> {
        Self::generate_with(KeyType::P256, trust_domain, lifetime)
    }

    /// A new self-signed root for a trust domain, with a key of this type.
    pub fn generate_with(key_type: KeyType, trust_domain: &str, lifetime: Duration) -> Result<Self, CaError> {
        let key = IssuedKey::generate(key_type)?;
        let params = root(trust_domain, lifetime, &key)?;
        let certificate_pem = params.self_signed(&key)?.pem();
        let key_pem = key.to_pem()?;
        Ok(Self { issuer: Issuer::new(params, key), certificate_pem, key_pem })
    }

    /// The authority of a root that [`Authority::generate`] made for the same trust domain. The certificate is handed on,
    /// not read: what is signed verifies only if it belongs to the key.
    pub fn from_pem(trust_domain: &str, certificate_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let key = IssuedKey::from_pem(key_pem)?;
        // An issuer is its name and its key; both are as they were, the dates don't matter.
        let params = root(trust_domain, Duration::ZERO, &key)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        })
    }

    /// Signs what the profile says, with a new key.
    pub fn issue(&self, profile: &Profile) -> Result<Issued, CaError> {
        let key = IssuedKey::generate(profile.key_type)?;
        let certificate = params(profile, &key)?.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.to_pem()? })
    }

    /// A list of what this authority revokes, by serial number (big-endian), as PEM; its successor is promised for
    /// `next_update`.
    pub fn revocation_list(&self, serials: &[&[u8]], next_update: SystemTime) -> Result<String, CaError> {
        let at = |time| rcgen::date_time_ymd(1970, 1, 1) + since_epoch(time);
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: at(SystemTime::now()),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: at(SystemTime::now().min(next_update) - Duration::from_secs(60)),
            next_update: at(next_update),
            crl_number: serial()?,
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: key_identifier(self.issuer.key()),
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }

    /// The root, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The root's key, PKCS #8 PEM: for the file that keeps it, readable by its owner only.
    pub fn key_pem(&self) -> String {
        self.key_pem.clone()
    }
}

fn root(trust_domain: &str, lifetime: Duration, key: &IssuedKey) -> Result<CertificateParams, CaError> {
    let profile = Profile {
        common_name: Some(format!("{trust_domain} root")),
        ca: true,
        key_usages: vec![KeyUsage::CertificateSign, KeyUsage::CrlSign],
        purposes: Vec::new(),
        ..Profile::workload(format!("spiffe://{trust_domain}"), lifetime)
    };
    params(&profile, key)
}

fn params(profile: &Profile, key: &IssuedKey) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = &profile.common_name {
        params.distinguished_name.push(DnType::CommonName, name.as_str());
    }
    for uri in &profile.uris {
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
    }
    for name in &profile.dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(profile.not_before);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(profile.not_after);
    params.serial_number = Some(serial()?);
    params.use_authority_key_identifier_extension = true;
    params.key_identifier_method = key_identifier(key);
    params.key_usages = profile.key_usages.iter().map(|&usage| usage.into()).collect();
    params.extended_key_usages = profile.purposes.iter().map(|&purpose| purpose.into()).collect();
    params.is_ca = if profile.ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
    Ok(params)
}

/// 16 random bytes, positive and with the first not zero, so that its encoding is as long as it looks.
fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    crate::random(&mut bytes)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// RFC 7093, section 2, method 1, by the module.
fn key_identifier(key: &IssuedKey) -> KeyIdMethod {
    let digest = crate::sha256(&key.subject_public_key_info());
    KeyIdMethod::PreSpecified(digest[..20].to_vec())
}

/// In whole seconds, as certificates have them.
fn since_epoch(at: SystemTime) -> Duration {
    Duration::from_secs(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

impl From<KeyUsage> for KeyUsagePurpose {
    fn from(usage: KeyUsage) -> Self {
        match usage {
            KeyUsage::DigitalSignature => Self::DigitalSignature,
            KeyUsage::KeyEncipherment => Self::KeyEncipherment,
            KeyUsage::CertificateSign => Self::KeyCertSign,
            KeyUsage::CrlSign => Self::CrlSign,
        }
    }
}

impl From<Purpose> for ExtendedKeyUsagePurpose {
    fn from(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Server => Self::ServerAuth,
            Purpose::Client => Self::ClientAuth,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn an_authority_read_back_signs_under_the_same_root() {
        let first = Authority::generate("cluster.local", DAY).unwrap();
        let again = Authority::from_pem("cluster.local", first.certificate_pem(), &first.key_pem()).unwrap();
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        let leaf = again.issue(&Profile::workload("spiffe://cluster.local/ns/a/sa/b", DAY)).unwrap();
        assert!(leaf.certificate_pem.starts_with("-----BEGIN CERTIFICATE-----"));
    }

    #[test]
    fn keys_are_not_shown() {
        let authority = Authority::generate("cluster.local", DAY).unwrap();
        let leaf = authority.issue(&Profile::server(&["a.example"], DAY)).unwrap();
        assert!(!format!("{authority:?} {leaf:?}").contains("PRIVATE"));
    }
}
