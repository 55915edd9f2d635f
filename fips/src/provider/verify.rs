//! Verifying signatures: of certificates and of handshakes. SHA-1 and RSA below 2048 bits are not among them.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};

use super::approved_mode;
use crate::der;

/// All for certificates; by scheme for handshakes, in the order in which a peer is told. TLS 1.3 binds a digest to each
/// curve and takes the first of a list; TLS 1.2 tries them all.
pub(crate) const ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        &P256_SHA256,
        &P256_SHA384,
        &P256_SHA512,
        &P384_SHA256,
        &P384_SHA384,
        &P384_SHA512,
        &P521_SHA256,
        &P521_SHA384,
        &P521_SHA512,
        &ED25519,
        &PKCS1_SHA256,
        &PKCS1_SHA384,
        &PKCS1_SHA512,
        &PKCS1_SHA256_BARE,
        &PKCS1_SHA384_BARE,
        &PKCS1_SHA512_BARE,
        &PSS_SHA256,
        &PSS_SHA384,
        &PSS_SHA512,
    ],
    mapping: &[
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[&P256_SHA256, &P384_SHA256, &P521_SHA256]),
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[&P384_SHA384, &P256_SHA384, &P521_SHA384]),
        (SignatureScheme::ECDSA_NISTP521_SHA512, &[&P521_SHA512, &P384_SHA512, &P256_SHA512]),
        (SignatureScheme::ED25519, &[&ED25519]),
        (SignatureScheme::RSA_PSS_SHA256, &[&PSS_SHA256]),
        (SignatureScheme::RSA_PSS_SHA384, &[&PSS_SHA384]),
        (SignatureScheme::RSA_PSS_SHA512, &[&PSS_SHA512]),
        (SignatureScheme::RSA_PKCS1_SHA256, &[&PKCS1_SHA256]),
        (SignatureScheme::RSA_PKCS1_SHA384, &[&PKCS1_SHA384]),
        (SignatureScheme::RSA_PKCS1_SHA512, &[&PKCS1_SHA512]),
    ],
};

/// A kind of public key, a kind of signature, and the module's check of one by the other.
#[derive(Debug)]
struct Verification {
    public: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    by: &'static dyn VerificationAlgorithm,
    /// Bytes of a point with both coordinates, for keys on a curve of NIST.
    point: Option<usize>,
}

/// The first byte of a point with both coordinates (X9.62).
const UNCOMPRESSED: u8 = 4;

impl SignatureVerificationAlgorithm for Verification {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        // The module would take compressed points and whole SubjectPublicKeyInfos for a key as well. One key has one form.
        if let Some(length) = self.point
            && (public_key.len() != length || public_key[0] != UNCOMPRESSED)
        {
            return Err(InvalidSignature);
        }
        if self.public == alg_id::RSA_ENCRYPTION && approved_mode() && !is_approved_rsa(public_key) {
            return Err(InvalidSignature);
        }
        UnparsedPublicKey::new(self.by, public_key).verify(message, signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.public
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }

    fn fips(&self) -> bool {
        approved_mode()
    }
}

/// Whether an RSAPublicKey (RFC 8017, appendix A.1.1) has a length that the module was validated with and an exponent of
/// at least 65537 (FIPS 186-5, section 5.1). Which is odd, and the rest of its form, the module sees to.
pub(crate) fn is_approved_rsa(public_key: &[u8]) -> bool {
    der::rsa_public_key(public_key).is_some_and(|(modulus, exponent)| {
        [256, 384, 512].contains(&modulus.len())
            && modulus[0] >= 0x80
            && exponent.len() >= 3
            && exponent != [1, 0, 0]
    })
}

const fn p256(signature: AlgorithmIdentifier, by: &'static dyn VerificationAlgorithm) -> Verification {
    Verification { public: alg_id::ECDSA_P256, signature, by, point: Some(65) }
}

const fn p384(signature: AlgorithmIdentifier, by: &'static dyn VerificationAlgorithm) -> Verification {
    Verification { public: alg_id::ECDSA_P384, signature, by, point: Some(97) }
}

const fn p521(signature: AlgorithmIdentifier, by: &'static dyn VerificationAlgorithm) -> Verification {
    Verification { public: alg_id::ECDSA_P521, signature, by, point: Some(133) }
}

const fn rsa(signature: AlgorithmIdentifier, by: &'static dyn VerificationAlgorithm) -> Verification {
    Verification { public: alg_id::RSA_ENCRYPTION, signature, by, point: None }
}

/// sha256WithRSAEncryption and its like as some authorities write them, without the NULL that RFC 4055 asks for.
const SHA256_BARE: AlgorithmIdentifier =
    AlgorithmIdentifier::from_slice(&[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b]);
const SHA384_BARE: AlgorithmIdentifier =
    AlgorithmIdentifier::from_slice(&[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c]);
const SHA512_BARE: AlgorithmIdentifier =
    AlgorithmIdentifier::from_slice(&[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d]);

static P256_SHA256: Verification = p256(alg_id::ECDSA_SHA256, &signature::ECDSA_P256_SHA256_ASN1);
static P256_SHA384: Verification = p256(alg_id::ECDSA_SHA384, &signature::ECDSA_P256_SHA384_ASN1);
static P256_SHA512: Verification = p256(alg_id::ECDSA_SHA512, &signature::ECDSA_P256_SHA512_ASN1);
static P384_SHA256: Verification = p384(alg_id::ECDSA_SHA256, &signature::ECDSA_P384_SHA256_ASN1);
static P384_SHA384: Verification = p384(alg_id::ECDSA_SHA384, &signature::ECDSA_P384_SHA384_ASN1);
static P384_SHA512: Verification = p384(alg_id::ECDSA_SHA512, &signature::ECDSA_P384_SHA512_ASN1);
static P521_SHA256: Verification = p521(alg_id::ECDSA_SHA256, &signature::ECDSA_P521_SHA256_ASN1);
static P521_SHA384: Verification = p521(alg_id::ECDSA_SHA384, &signature::ECDSA_P521_SHA384_ASN1);
static P521_SHA512: Verification = p521(alg_id::ECDSA_SHA512, &signature::ECDSA_P521_SHA512_ASN1);
static PKCS1_SHA256: Verification = rsa(alg_id::RSA_PKCS1_SHA256, &signature::RSA_PKCS1_2048_8192_SHA256);
static PKCS1_SHA384: Verification = rsa(alg_id::RSA_PKCS1_SHA384, &signature::RSA_PKCS1_2048_8192_SHA384);
static PKCS1_SHA512: Verification = rsa(alg_id::RSA_PKCS1_SHA512, &signature::RSA_PKCS1_2048_8192_SHA512);
static PKCS1_SHA256_BARE: Verification = rsa(SHA256_BARE, &signature::RSA_PKCS1_2048_8192_SHA256);
static PKCS1_SHA384_BARE: Verification = rsa(SHA384_BARE, &signature::RSA_PKCS1_2048_8192_SHA384);
static PKCS1_SHA512_BARE: Verification = rsa(SHA512_BARE, &signature::RSA_PKCS1_2048_8192_SHA512);
static PSS_SHA256: Verification = rsa(alg_id::RSA_PSS_SHA256, &signature::RSA_PSS_2048_8192_SHA256);
static PSS_SHA384: Verification = rsa(alg_id::RSA_PSS_SHA384, &signature::RSA_PSS_2048_8192_SHA384);
static PSS_SHA512: Verification = rsa(alg_id::RSA_PSS_SHA512, &signature::RSA_PSS_2048_8192_SHA512);
static ED25519: Verification = Verification {
    public: alg_id::ED25519,
    signature: alg_id::ED25519,
    by: &signature::ED25519,
    point: None,
};
