//! The cipher suites: AES-GCM with ephemeral key exchange, of TLS 1.3 and TLS 1.2.

use rustls::crypto::KeyExchangeAlgorithm;
use rustls::crypto::cipher::{Tls12AeadAlgorithm, Tls13AeadAlgorithm};
use rustls::{
    CipherSuite, CipherSuiteCommon, SignatureScheme, SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
};

use super::kdf::{self, Digest};
use super::{aead, kdf::Tls12Prf, kdf::Tls13Hkdf};

/// In order of preference: AES-128 first, as BoringSSL and Go have it. Both are approved and neither is near its bounds, but
/// its suites hash by SHA-256, for which processors have instructions that they lack for SHA-384.
pub(super) const ALL: &[SupportedCipherSuite] = &[
    SupportedCipherSuite::Tls13(&TLS13_AES_128_GCM_SHA256),
    SupportedCipherSuite::Tls13(&TLS13_AES_256_GCM_SHA384),
    SupportedCipherSuite::Tls12(&TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    SupportedCipherSuite::Tls12(&TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    SupportedCipherSuite::Tls12(&TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    SupportedCipherSuite::Tls12(&TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
];

/// Records one AES-GCM key may protect, so that an attacker's advantage stays below 2^-60 (draft-irtf-cfrg-aead-limits).
const RECORDS_PER_KEY: u64 = 1 << 24;

static TLS13_AES_256_GCM_SHA384: Tls13CipherSuite =
    tls13(CipherSuite::TLS13_AES_256_GCM_SHA384, &kdf::SHA384, &kdf::HKDF_SHA384, &aead::TLS13_AES_256);
static TLS13_AES_128_GCM_SHA256: Tls13CipherSuite =
    tls13(CipherSuite::TLS13_AES_128_GCM_SHA256, &kdf::SHA256, &kdf::HKDF_SHA256, &aead::TLS13_AES_128);

static TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384: Tls12CipherSuite = tls12(
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    &kdf::SHA384,
    &kdf::PRF_SHA384,
    ECDSA,
    &aead::TLS12_AES_256,
);
static TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: Tls12CipherSuite = tls12(
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    &kdf::SHA256,
    &kdf::PRF_SHA256,
    ECDSA,
    &aead::TLS12_AES_128,
);
static TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384: Tls12CipherSuite = tls12(
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    &kdf::SHA384,
    &kdf::PRF_SHA384,
    RSA,
    &aead::TLS12_AES_256,
);
static TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256: Tls12CipherSuite = tls12(
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    &kdf::SHA256,
    &kdf::PRF_SHA256,
    RSA,
    &aead::TLS12_AES_128,
);

/// What signs a TLS 1.2 key exchange of the ECDSA suites; Ed25519 counts among them (RFC 8422, section 5.10).
const ECDSA: &[SignatureScheme] = &[
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
];

/// What signs a TLS 1.2 key exchange of the RSA suites.
const RSA: &[SignatureScheme] = &[
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

const fn tls13(
    suite: CipherSuite,
    digest: &'static Digest,
    hkdf: &'static Tls13Hkdf,
    aead: &'static dyn Tls13AeadAlgorithm,
) -> Tls13CipherSuite {
    Tls13CipherSuite { common: common(suite, digest), hkdf_provider: hkdf, aead_alg: aead, quic: None }
}

const fn tls12(
    suite: CipherSuite,
    digest: &'static Digest,
    prf: &'static Tls12Prf,
    sign: &'static [SignatureScheme],
    aead: &'static dyn Tls12AeadAlgorithm,
) -> Tls12CipherSuite {
    Tls12CipherSuite {
        common: common(suite, digest),
        prf_provider: prf,
        kx: KeyExchangeAlgorithm::ECDHE,
        sign,
        aead_alg: aead,
    }
}

const fn common(suite: CipherSuite, digest: &'static Digest) -> CipherSuiteCommon {
    CipherSuiteCommon { suite, hash_provider: digest, confidentiality_limit: RECORDS_PER_KEY }
}
