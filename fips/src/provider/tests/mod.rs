//! What the provider offers, and how it is tested: known answers, bad shares, records and signatures, whole handshakes.

mod approved;
mod handshakes;
mod known;
mod pair;
mod records;
mod shares;
mod signatures;
mod vectors;

use rustls::{NamedGroup, SupportedCipherSuite};

use super::{APPROVED_GROUPS, STANDARD_GROUPS, kdf, provider};
use crate::ca;

/// Bytes from hexadecimal digits; spaces and line ends between them don't count.
pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.bytes().filter_map(|byte| char::from(byte).to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn only_aes_gcm_in_order_of_preference() {
    let suites: Vec<_> =
        provider().cipher_suites.iter().map(|suite| format!("{:?}", suite.suite())).collect();
    assert_eq!(
        suites,
        [
            "TLS13_AES_128_GCM_SHA256",
            "TLS13_AES_256_GCM_SHA384",
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        ]
    );
}

#[test]
fn groups_by_flavour() {
    let names = |groups: &[&dyn rustls::crypto::SupportedKxGroup]| {
        groups.iter().map(|g| g.name()).collect::<Vec<_>>()
    };
    let standard = [
        NamedGroup::X25519MLKEM768,
        NamedGroup::X25519,
        NamedGroup::secp256r1,
        NamedGroup::secp384r1,
        NamedGroup::secp256r1MLKEM768,
    ];
    let approved = [
        NamedGroup::secp256r1MLKEM768,
        NamedGroup::secp256r1,
        NamedGroup::X25519MLKEM768,
        NamedGroup::secp384r1,
    ];
    assert_eq!(names(STANDARD_GROUPS), standard);
    assert_eq!(names(APPROVED_GROUPS), approved);
    let offered = names(&provider().kx_groups);
    assert_eq!(offered, if cfg!(feature = "certified") { approved.to_vec() } else { standard.to_vec() });
}

#[test]
fn randomness_is_the_modules() {
    let (mut one, mut other) = ([0; 32], [0; 32]);
    provider().secure_random.fill(&mut one).unwrap();
    provider().secure_random.fill(&mut other).unwrap();
    assert!(one != other && one != [0; 32], "{one:?} {other:?}");
}

/// Both ends of a handshake in memory would agree on a suite put together wrongly.
#[test]
fn a_suite_is_what_its_name_says() {
    for suite in &provider().cipher_suites {
        let name = format!("{:?}", suite.suite());
        let (key_len, digest_len) = if name.contains("AES_256") { (32, 48) } else { (16, 32) };
        assert!(name.ends_with(if digest_len == 48 { "SHA384" } else { "SHA256" }), "{name}");
        match suite {
            SupportedCipherSuite::Tls13(suite) => {
                assert_eq!(suite.common.hash_provider.output_len(), digest_len, "{name}");
                let expander = suite.hkdf_provider.extract_from_secret(None, b"secret");
                assert_eq!(expander.hash_len(), digest_len, "{name}");
                assert_eq!(suite.aead_alg.key_len(), key_len, "{name}");
            }
            SupportedCipherSuite::Tls12(suite) => {
                assert_eq!(suite.common.hash_provider.output_len(), digest_len, "{name}");
                assert_eq!(suite.aead_alg.key_block_shape().enc_key_len, key_len, "{name}");
                let (mut found, mut expected) = ([0; 48], [0; 48]);
                suite.prf_provider.for_secret(&mut found, b"secret", b"label", b"seed");
                let prf = if digest_len == 48 { &kdf::PRF_SHA384 } else { &kdf::PRF_SHA256 };
                rustls::crypto::tls12::Prf::for_secret(prf, &mut expected, b"secret", b"label", b"seed");
                assert_eq!(found, expected, "{name}");
                let rsa = suite.sign.iter().all(|scheme| format!("{scheme:?}").starts_with("RSA_"));
                assert_eq!(rsa, name.contains("_RSA_WITH"), "{name}");
            }
        }
    }
}
