//! [`Maker`]: an authority that makes what no sound one would.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

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

/// Of an RSA key of 1024 bits, which nobody should have any more: made once, its private half thrown away.
const WEAK_KEY: &str = "30818902818100e7e44ad2fc5cec8e6551b8805262158794c3781f90cf4ff554e373da8114a39479368ff6969102d05470324bc590c355e105b5a5c842be5299423eed9d012baac4036db67bf7da0db0917f277e4ede7799a69d7bd3f8b5c25268c1a532f7c263d0c2e609bf618c9ea186f0a27d4e2c89c858e1d354e75cdbd11aa44bbc04d4050203010001";

struct WeakKey(Vec<u8>);

impl PublicKeyData for WeakKey {
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
        let der = params.signed_by(&weak_key(), &self.issuer).unwrap().der().clone();
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

    /// A caller of this id whose certificate has a weak key.
    pub fn weak_caller(&self, id: &str) -> Caller {
        let leaf = leaf(id).signed_by(&weak_key(), &self.issuer).unwrap().der().clone();
        caller(vec![leaf], &Key::generate())
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

fn weak_key() -> WeakKey {
    let digits = WEAK_KEY.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    WeakKey(digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect())
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
