//! Signatures of JSON web tokens by the module (RFC 7518 section 3, RFC 8037): only algorithms that FIPS 186-5 approves.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, ParsedPublicKey, RsaKeyPair, RsaPublicKeyComponents,
    VerificationAlgorithm,
};

use crate::der::rsa_public_key;
use crate::provider::approved_mode;

/// `alg` of a token. There is no other: no `none`, no HMAC, no SHA-1, no curve that is not approved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// The same with SHA-384.
    Rs384,
    /// The same with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// The same with SHA-384.
    Ps384,
    /// The same with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// Ed25519.
    EdDsa,
}

/// What an RSA key can be used with, unless it says.
const RSA: [Algorithm; 6] = [
    Algorithm::Rs256,
    Algorithm::Rs384,
    Algorithm::Rs512,
    Algorithm::Ps256,
    Algorithm::Ps384,
    Algorithm::Ps512,
];

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 10] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    /// From `alg`, to the letter.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name)
    }

    /// As `alg` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::Es384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::Es512 => &signature::ECDSA_P521_SHA512_FIXED,
            Self::EdDsa => &signature::ED25519,
        }
    }
}

/// A curve that a key can lie on (`crv`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// `P-256`.
    P256,
    /// `P-384`.
    P384,
    /// `P-521`.
    P521,
}

impl Curve {
    /// From `crv`, to the letter.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "P-521" => Some(Self::P521),
            _ => None,
        }
    }

    const fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::P521 => Algorithm::Es512,
        }
    }

    /// Bytes of a coordinate.
    const fn width(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

/// Why a key can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    /// RSA of another size.
    #[error("an RSA key has from 2048 to 8192 bits; 2048, 3072 and 4096 are approved")]
    Size,
    /// RSA with a small or even exponent (FIPS 186-5 section 5.4).
    #[error("an RSA exponent is odd and at least 65537")]
    Exponent,
    /// Not a point, or not a key at all.
    #[error("not a public key of its type")]
    Malformed,
}

/// A public key, read once; verifies any number of signatures.
pub struct VerifyingKey {
    /// By algorithm: the module binds a key to one.
    parsed: Vec<(Algorithm, ParsedPublicKey)>,
}

impl VerifyingKey {
    /// An RSA key of big-endian `n` and `e`. Where the module is the approved one, only of the lengths that it was
    /// validated with.
    pub fn rsa(n: &[u8], e: &[u8]) -> Result<Self, KeyRefused> {
        let (n, e) = (without_zeros(n), without_zeros(e));
        if !(2048..=8192).contains(&bits(n)) || (approved_mode() && ![2048, 3072, 4096].contains(&bits(n))) {
            return Err(KeyRefused::Size);
        }
        if bits(e) < 17 || e.len() > 4 || e.last().is_none_or(|last| last & 1 == 0) {
            return Err(KeyRefused::Exponent);
        }
        let der: PublicKeyX509Der<'_> =
            RsaPublicKeyComponents { n, e }.as_der().map_err(|_| KeyRefused::Malformed)?;
        let parsed = RSA.into_iter().map(|algorithm| parse(algorithm, der.as_ref()));
        Ok(Self { parsed: parsed.collect::<Result<_, _>>()? })
    }

    /// A key on a curve; coordinates have the full width (RFC 7518 section 6.2.1.2).
    pub fn ec(curve: Curve, x: &[u8], y: &[u8]) -> Result<Self, KeyRefused> {
        if x.len() != curve.width() || y.len() != curve.width() {
            return Err(KeyRefused::Malformed);
        }
        let point = [&[4], x, y].concat();
        Ok(Self { parsed: vec![parse(curve.algorithm(), &point)?] })
    }

    /// An Ed25519 key.
    pub fn ed25519(x: &[u8]) -> Result<Self, KeyRefused> {
        if x.len() != 32 {
            return Err(KeyRefused::Malformed);
        }
        Ok(Self { parsed: vec![parse(Algorithm::EdDsa, x)?] })
    }

    /// The same key, for one algorithm alone; `None`: it is not one of this key.
    pub fn only(mut self, algorithm: Algorithm) -> Option<Self> {
        self.parsed.retain(|(of, _)| *of == algorithm);
        (!self.parsed.is_empty()).then_some(self)
    }

    /// Whether the key can be used with this algorithm.
    pub fn serves(&self, algorithm: Algorithm) -> bool {
        self.parsed.iter().any(|(of, _)| *of == algorithm)
    }

    /// Whether the key's owner signed `message` by this algorithm. Elliptic signatures are `r || s` (RFC 7518 section 3.4).
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        self.parsed
            .iter()
            .find(|(of, _)| *of == algorithm)
            .is_some_and(|(_, key)| key.verify_sig(message, signature).is_ok())
    }
}

impl PartialEq for VerifyingKey {
    fn eq(&self, other: &Self) -> bool {
        self.parsed.len() == other.parsed.len()
            && self.parsed.iter().zip(&other.parsed).all(|((a, key), (b, other))| {
                a == b && AsRef::<[u8]>::as_ref(key) == AsRef::<[u8]>::as_ref(other)
            })
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.parsed.iter().map(|(algorithm, _)| algorithm)).finish()
    }
}

fn parse(algorithm: Algorithm, bytes: &[u8]) -> Result<(Algorithm, ParsedPublicKey), KeyRefused> {
    let key = ParsedPublicKey::new(algorithm.verification(), bytes).map_err(|_| KeyRefused::Malformed)?;
    Ok((algorithm, key))
}

fn without_zeros(mut number: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = number {
        number = rest;
    }
    number
}

/// Of a number without leading zeros.
fn bits(number: &[u8]) -> usize {
    number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

/// The module could not make a key, or not sign with it.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the crypto module could not make a key or signature; see `writ attest` for its state")]
pub struct SigningFailed;

/// An issuer's key. Writ issues no tokens: serves tests, benchmarks and demonstrations, as the authority of `ca` does.
pub struct SigningKey {
    algorithm: Algorithm,
    key: Private,
}

enum Private {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

/// The numbers of a public key, as a JSON web key shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicNumbers {
    /// `n` and `e`.
    Rsa(Vec<u8>, Vec<u8>),
    /// `crv`, `x` and `y`.
    Ec(&'static str, Vec<u8>, Vec<u8>),
    /// `x`.
    Ed25519(Vec<u8>),
}

impl SigningKey {
    /// A new key: RSA has 2048 bits.
    pub fn generate(algorithm: Algorithm) -> Result<Self, SigningFailed> {
        let ec = |algorithm| EcdsaKeyPair::generate(algorithm).map(Private::Ec);
        let key = match algorithm {
            Algorithm::Es256 => ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::Es384 => ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::Es512 => ec(&signature::ECDSA_P521_SHA512_FIXED_SIGNING),
            Algorithm::EdDsa => Ed25519KeyPair::generate().map(Private::Ed),
            _ => RsaKeyPair::generate(KeySize::Rsa2048).map(Private::Rsa),
        };
        Ok(Self { algorithm, key: key.map_err(|_| SigningFailed)? })
    }

    /// What it signs by.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SigningFailed> {
        let random = SystemRandom::new();
        match &self.key {
            Private::Ec(key) => key.sign(&random, message).map(|signature| signature.as_ref().to_vec()),
            Private::Ed(key) => Ok(key.sign(message).as_ref().to_vec()),
            Private::Rsa(key) => {
                let encoding: &dyn signature::RsaEncoding = match self.algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_SHA384,
                    _ => &signature::RSA_PSS_SHA512,
                };
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(encoding, &random, message, &mut out).map(|()| out)
            }
        }
        .map_err(|_| SigningFailed)
    }

    /// What others verify by.
    pub fn public(&self) -> PublicNumbers {
        match &self.key {
            Private::Ed(key) => PublicNumbers::Ed25519(key.public_key().as_ref().to_vec()),
            Private::Ec(key) => {
                let curve = match self.algorithm {
                    Algorithm::Es384 => "P-384",
                    Algorithm::Es512 => "P-521",
                    _ => "P-256",
                };
                // An uncompressed point: 4, then both coordinates.
                let coordinates = key.public_key().as_ref().get(1..).unwrap_or_default();
                let (x, y) = coordinates.split_at(coordinates.len() / 2);
                PublicNumbers::Ec(curve, x.to_vec(), y.to_vec())
            }
            Private::Rsa(key) => {
                let (n, e) = rsa_public_key(key.public_key().as_ref()).unwrap_or_default();
                PublicNumbers::Rsa(n.to_vec(), e.to_vec())
            }
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.algorithm.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verifying(public: &PublicNumbers) -> VerifyingKey {
        match public {
            PublicNumbers::Rsa(n, e) => VerifyingKey::rsa(n, e),
            PublicNumbers::Ec(curve, x, y) => VerifyingKey::ec(Curve::parse(curve).unwrap(), x, y),
            PublicNumbers::Ed25519(x) => VerifyingKey::ed25519(x),
        }
        .unwrap()
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn what_a_key_signs_it_verifies_by_that_algorithm_alone() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::parse(algorithm.as_str()), Some(algorithm));
            let key = SigningKey::generate(algorithm).unwrap();
            let (signature, public) = (key.sign(b"message").unwrap(), verifying(&key.public()));
            for tried in Algorithm::ALL {
                assert_eq!(public.verify(tried, b"message", &signature), tried == algorithm, "{tried:?}");
            }
            assert!(!public.verify(algorithm, b"messagf", &signature));
            for at in [0, signature.len() / 2, signature.len() - 1] {
                let mut broken = signature.clone();
                broken[at] ^= 1;
                assert!(!public.verify(algorithm, b"message", &broken), "{algorithm:?} byte {at}");
            }
            assert!(!public.verify(algorithm, b"message", &signature[1..]));
            assert!(!public.verify(algorithm, b"message", &[]));
        }
    }

    #[test]
    fn a_signature_of_zeros_is_none() {
        for algorithm in [Algorithm::Es256, Algorithm::Es384, Algorithm::Es512, Algorithm::EdDsa] {
            let key = SigningKey::generate(algorithm).unwrap();
            let zeros = vec![0; key.sign(b"m").unwrap().len()];
            assert!(!verifying(&key.public()).verify(algorithm, b"m", &zeros), "{algorithm:?}");
        }
    }

    /// RFC 8032 section 7.1, test 2.
    #[test]
    fn the_known_ed25519_signature() {
        let key = hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let signature = hex(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        );
        assert!(VerifyingKey::ed25519(&key).unwrap().verify(Algorithm::EdDsa, &[0x72], &signature));
    }

    #[test]
    fn weak_and_malformed_keys_are_refused() {
        let PublicNumbers::Rsa(n, e) = SigningKey::generate(Algorithm::Rs256).unwrap().public() else {
            panic!()
        };
        assert_eq!((n.len(), e.as_slice()), (256, &[1, 0, 1][..]));
        assert_eq!(VerifyingKey::rsa(&n[..128], &e), Err(KeyRefused::Size));
        assert_eq!(VerifyingKey::rsa(&[1; 2048], &e), Err(KeyRefused::Size));
        for exponent in [&[3][..], &[1, 0, 0], &[], &[0xff; 5]] {
            assert_eq!(VerifyingKey::rsa(&n, exponent), Err(KeyRefused::Exponent), "{exponent:?}");
        }
        assert!(VerifyingKey::rsa(&[&[0], &*n].concat(), &e).is_ok(), "a leading zero is no matter");
        let PublicNumbers::Ec(_, x, y) = SigningKey::generate(Algorithm::Es256).unwrap().public() else {
            panic!()
        };
        assert_eq!(VerifyingKey::ec(Curve::P384, &x, &y), Err(KeyRefused::Malformed));
        assert_eq!(VerifyingKey::ec(Curve::P256, &x, &x), Err(KeyRefused::Malformed), "not on the curve");
        assert_eq!(VerifyingKey::ec(Curve::P256, &x[1..], &y), Err(KeyRefused::Malformed));
        assert_eq!(VerifyingKey::ed25519(&x[1..]), Err(KeyRefused::Malformed));
    }

    #[test]
    fn a_key_can_be_held_to_one_algorithm() {
        let key = verifying(&SigningKey::generate(Algorithm::Ps256).unwrap().public());
        assert!(key.serves(Algorithm::Rs256));
        let key = key.only(Algorithm::Ps384).unwrap();
        assert!(key.serves(Algorithm::Ps384) && !key.serves(Algorithm::Rs256));
        assert!(key.only(Algorithm::Es256).is_none());
    }

    #[test]
    fn what_is_not_approved_has_no_name() {
        for name in ["none", "None", "HS256", "RS1", "ES256K", "rs256", "", "EdDSA "] {
            assert_eq!(Algorithm::parse(name), None, "{name}");
        }
    }
}
