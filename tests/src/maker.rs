//! [`Maker`]: an authority that makes what no sound one would.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fips::ca::{Authority, Profile};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, PublicKeyData, SanType,
    SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls::SignatureScheme;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Caller;

/// A certificate that signs others, and its key.
#[derive(Debug)]
pub struct Maker {
    issuer: Issuer<'static, Key>,
    der: CertificateDer<'static>,
}

/// A P-256 key that signs whatever it is given.
struct Key {
    signer: Arc<dyn rustls::sign::SigningKey>,
    pem: String,
    point: Vec<u8>,
}

impl Key {
    /// A new one.
    fn generate() -> Self {
        static ANY: OnceLock<Authority> = OnceLock::new();
        let day = Duration::from_secs(86_400);
        let any = ANY.get_or_init(|| Authority::generate("any.example", day).unwrap());
        Self::from_pem(&any.issue(&Profile::server(&["any.example"], day)).unwrap().key_pem)
    }

    fn from_pem(pem: &str) -> Self {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
        let signer = fips::provider().key_provider.load_private_key(der).unwrap();
        let public = signer.public_key().expect("of every key here").into_owned();
        // The point ends what says that it is one.
        let point = public[public.len() - 65..].to_vec();
        Self { signer, pem: pem.to_owned(), point }
    }

    fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.pem.as_bytes()).unwrap()
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signer = self.signer.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        signer.and_then(|signer| signer.sign(message).ok()).ok_or(rcgen::Error::RemoteKeyError)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// The public half of an RSA key that nobody has: any number of the size will do.
struct RsaKey(Vec<u8>);

impl RsaKey {
    fn new(bits: usize, exponent: u32) -> Self {
        let mut modulus = vec![0x5a; bits / 8];
        modulus[0] = 0xc1;
        modulus[bits / 8 - 1] = 1;
        let integers = [integer(&modulus), integer(&exponent.to_be_bytes())].concat();
        Self(element(0x30, &integers))
    }
}

/// A positive INTEGER.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let significant = &bytes[bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len() - 1)..];
    let sign: &[u8] = if significant[0] < 0x80 { &[] } else { &[0] };
    element(2, &[sign, significant].concat())
}

/// A DER element of less than 64 KiB.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = (content.len() as u16).to_be_bytes();
    let length = match (high, low) {
        (0, 0..0x80) => vec![low],
        (0, _) => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [&[tag], &length[..], content].concat()
}

impl PublicKeyData for RsaKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_RSA_SHA256
    }
}

impl Maker {
    /// The authority called `name` with this key, PEM, whose certificate is known elsewhere.
    pub(crate) fn root(name: &str, key_pem: &str) -> Self {
        let key = Key::from_pem(key_pem);
        let params = authority(name, None);
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }

    /// An authority below this one, that allows so many below itself.
    pub fn authority(&self, name: &str, below: Option<u8>) -> Self {
        let key = Key::generate();
        let params = authority(name, below);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }

    /// An authority below this one whose certificate has a weak key. (What it signs is signed by another.)
    pub fn weak_authority(&self, name: &str) -> Self {
        let params = authority(name, None);
        let der = params.signed_by(&RsaKey::new(1024, 65537), &self.issuer).unwrap().der().clone();
        Self { issuer: Issuer::new(params, Key::generate()), der }
    }

    /// Its certificate.
    pub fn der(&self) -> CertificateDer<'static> {
        self.der.clone()
    }

    /// A caller of this id, which presents these besides its own certificate.
    pub fn caller(&self, id: &str, more: Vec<CertificateDer<'static>>) -> Caller {
        let key = Key::generate();
        let leaf = leaf(id).signed_by(&key, &self.issuer).unwrap().der().clone();
        caller([vec![leaf], more].concat(), &key)
    }

    /// A caller of this id whose certificate has an RSA key of so many bits, and this exponent.
    pub fn rsa_caller(&self, id: &str, bits: usize, exponent: u32) -> Caller {
        let leaf = leaf(id).signed_by(&RsaKey::new(bits, exponent), &self.issuer).unwrap().der().clone();
        caller(vec![leaf], &Key::generate())
    }

    /// A caller of this id whose certificate says that its key lies on a curve that nobody has.
    pub fn strange_caller(&self, id: &str) -> Caller {
        const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        const NONE: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x63];
        let key = Key::generate();
        let leaf = leaf(id).signed_by(&key, &self.issuer).unwrap().der().clone();
        caller(vec![replaced(&leaf, P256, NONE).into()], &key)
    }

    /// A caller that presents anything.
    pub fn presenting(&self, chain: Vec<CertificateDer<'static>>) -> Caller {
        caller(chain, &Key::generate())
    }

    /// A caller that signed for itself.
    pub fn self_signed(&self, id: &str) -> Caller {
        let key = Key::generate();
        caller(vec![leaf(id).self_signed(&key).unwrap().der().clone()], &key)
    }
}

fn caller(chain: Vec<CertificateDer<'static>>, key: &Key) -> Caller {
    Caller::presenting(chain, key.private())
}

/// A certificate as it would be if SHA-1 had been used where SHA-256 was, with RSA. (The signature does not fit.)
pub fn signed_by_sha1(certificate: &CertificateDer<'_>) -> CertificateDer<'static> {
    const SHA256_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
    const SHA1_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05];
    replaced(certificate, SHA256_WITH_RSA, SHA1_WITH_RSA).into()
}

/// PEM of DER.
pub fn pem(tag: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n", lines.join("\n"))
}

/// The same bytes with one part in place of another as long, wherever that is.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut changed = bytes.to_vec();
    for at in (0..bytes.len()).filter(|&at| bytes[at..].starts_with(from)) {
        changed[at..at + to.len()].copy_from_slice(to);
    }
    assert_ne!(changed, bytes);
    changed
}

/// What every certificate has.
fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut serial = [0; 8];
    fips::random(&mut serial).unwrap();
    serial[0] = 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.key_identifier_method = KeyIdMethod::PreSpecified(serial.to_vec());
    params.distinguished_name = DistinguishedName::new();
    params
}

fn authority(name: &str, below: Option<u8>) -> CertificateParams {
    let mut params = params();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(below.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(id: &str) -> CertificateParams {
    let mut params = params();
    params.subject_alt_names.push(SanType::URI(id.try_into().unwrap()));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    params
}
