//! Signing handshakes: loading keys, and which scheme each signs with.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::error::{KeyRejected, Unspecified};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair,
};
use rustls::pki_types::{AlgorithmIdentifier, PrivateKeyDer, SubjectPublicKeyInfoDer, alg_id};
use rustls::sign::{Signer, SigningKey, public_key_to_spki};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};

/// A private key for signing: RSA (PKCS #1 or PKCS #8), ECDSA on P-256, P-384 or P-521 (SEC 1 or PKCS #8), Ed25519
/// (PKCS #8). Where the module is the approved one, an RSA key must be one that FIPS 186-5 allows.
pub(super) fn load(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, Error> {
    if let Ok(rsa) = rsa(key) {
        return if is_approved(&rsa) {
            Ok(Arc::new(Key::Rsa(Arc::new(rsa))))
        } else {
            Err(Error::General(
                "private key: RSA keys must have 2048, 3072 or 4096 bits and an exponent of at least 65537"
                    .to_owned(),
            ))
        };
    }
    for curve in &CURVES {
        if let Ok(pair) = ecdsa(curve.signing, key) {
            return Ok(Arc::new(Key::Ecdsa(curve, Arc::new(pair))));
        }
    }
    if let PrivateKeyDer::Pkcs8(der) = key
        && let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
    {
        return Ok(Arc::new(Key::Ed25519(Arc::new(pair))));
    }
    Err(Error::General(
        "private key: not RSA of at least 2048 bits, ECDSA on P-256, P-384 or P-521, or Ed25519".to_owned(),
    ))
}

fn rsa(key: &PrivateKeyDer<'_>) -> Result<RsaKeyPair, KeyRejected> {
    match key {
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        _ => Err(KeyRejected::from(Unspecified)),
    }
}

/// The lengths that the module was validated with; the exponent is for the module to judge.
#[cfg(feature = "certified")]
fn is_approved(key: &RsaKeyPair) -> bool {
    [256, 384, 512].contains(&key.public_modulus_len()) && key.is_valid_fips_key()
}

#[cfg(not(feature = "certified"))]
fn is_approved(_: &RsaKeyPair) -> bool {
    true
}

fn ecdsa(
    algorithm: &'static EcdsaSigningAlgorithm,
    key: &PrivateKeyDer<'_>,
) -> Result<EcdsaKeyPair, KeyRejected> {
    match key {
        PrivateKeyDer::Sec1(der) => EcdsaKeyPair::from_private_key_der(algorithm, der.secret_sec1_der()),
        PrivateKeyDer::Pkcs8(der) => EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der()),
        _ => Err(KeyRejected::from(Unspecified)),
    }
}

/// A curve that signs, with the digest that TLS 1.3 binds to it.
struct Curve {
    signing: &'static EcdsaSigningAlgorithm,
    scheme: SignatureScheme,
    public: AlgorithmIdentifier,
}

static CURVES: [Curve; 3] = [
    Curve {
        signing: &ECDSA_P256_SHA256_ASN1_SIGNING,
        scheme: SignatureScheme::ECDSA_NISTP256_SHA256,
        public: alg_id::ECDSA_P256,
    },
    Curve {
        signing: &ECDSA_P384_SHA384_ASN1_SIGNING,
        scheme: SignatureScheme::ECDSA_NISTP384_SHA384,
        public: alg_id::ECDSA_P384,
    },
    Curve {
        signing: &ECDSA_P521_SHA512_ASN1_SIGNING,
        scheme: SignatureScheme::ECDSA_NISTP521_SHA512,
        public: alg_id::ECDSA_P521,
    },
];

/// What an RSA key signs with, in order of preference; PKCS #1 for TLS 1.2 only.
static RSA_SCHEMES: [(SignatureScheme, &dyn RsaEncoding); 6] = [
    (SignatureScheme::RSA_PSS_SHA256, &signature::RSA_PSS_SHA256),
    (SignatureScheme::RSA_PSS_SHA384, &signature::RSA_PSS_SHA384),
    (SignatureScheme::RSA_PSS_SHA512, &signature::RSA_PSS_SHA512),
    (SignatureScheme::RSA_PKCS1_SHA256, &signature::RSA_PKCS1_SHA256),
    (SignatureScheme::RSA_PKCS1_SHA384, &signature::RSA_PKCS1_SHA384),
    (SignatureScheme::RSA_PKCS1_SHA512, &signature::RSA_PKCS1_SHA512),
];

/// A loaded key.
enum Key {
    Rsa(Arc<RsaKeyPair>),
    Ecdsa(&'static Curve, Arc<EcdsaKeyPair>),
    Ed25519(Arc<Ed25519KeyPair>),
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        match self {
            Self::Rsa(pair) => {
                let (scheme, encoding) = RSA_SCHEMES.iter().find(|(scheme, _)| offered.contains(scheme))?;
                Some(Box::new(RsaSigner { pair: pair.clone(), scheme: *scheme, encoding: *encoding }))
            }
            Self::Ecdsa(curve, pair) => offered
                .contains(&curve.scheme)
                .then(|| Box::new(EcdsaSigner { pair: pair.clone(), scheme: curve.scheme }) as _),
            Self::Ed25519(pair) => offered
                .contains(&SignatureScheme::ED25519)
                .then(|| Box::new(Ed25519Signer(pair.clone())) as _),
        }
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(match self {
            Self::Rsa(pair) => public_key_to_spki(&alg_id::RSA_ENCRYPTION, pair.public_key()),
            Self::Ecdsa(curve, pair) => public_key_to_spki(&curve.public, pair.public_key()),
            Self::Ed25519(pair) => public_key_to_spki(&alg_id::ED25519, pair.public_key()),
        })
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self {
            Self::Rsa(_) => SignatureAlgorithm::RSA,
            Self::Ecdsa(..) => SignatureAlgorithm::ECDSA,
            Self::Ed25519(_) => SignatureAlgorithm::ED25519,
        }
    }
}

/// Names the kind of key and nothing of it.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.algorithm()).finish()
    }
}

struct RsaSigner {
    pair: Arc<RsaKeyPair>,
    scheme: SignatureScheme,
    encoding: &'static dyn RsaEncoding,
}

impl Signer for RsaSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(self.encoding, &SystemRandom::new(), message, &mut signature)
            .map_err(|_| not_signed())?;
        Ok(signature)
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

struct EcdsaSigner {
    pair: Arc<EcdsaKeyPair>,
    scheme: SignatureScheme,
}

impl Signer for EcdsaSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature = self.pair.sign(&SystemRandom::new(), message).map_err(|_| not_signed())?;
        Ok(signature.as_ref().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

struct Ed25519Signer(Arc<Ed25519KeyPair>);

impl Signer for Ed25519Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.try_sign(message).map_err(|_| not_signed())?.as_ref().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

fn not_signed() -> Error {
    Error::General("the crypto module could not sign".to_owned())
}

/// Each says its scheme and nothing of its key.
macro_rules! debug_by_scheme {
    ($($signer:ident),*) => {$(
        impl fmt::Debug for $signer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($signer)).field(&self.scheme()).finish()
            }
        }
    )*};
}
debug_by_scheme!(RsaSigner, EcdsaSigner, Ed25519Signer);
