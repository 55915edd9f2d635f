//! Project Wycheproof's vectors, through the provider's own types.

use rustls::SignatureScheme;
use rustls::crypto::SupportedKxGroup;
use rustls::crypto::tls13::Hkdf;
use rustls::pki_types::SignatureVerificationAlgorithm;
use wycheproof::TestResult;

use crate::provider::kdf::{HKDF_SHA256, HKDF_SHA384};
use crate::provider::kx::{self, Curve};
use crate::provider::{hybrid, verify};

#[test]
fn hkdf() {
    for (name, hkdf) in [
        (wycheproof::hkdf::TestName::HkdfSha256, &HKDF_SHA256),
        (wycheproof::hkdf::TestName::HkdfSha384, &HKDF_SHA384),
    ] {
        let set = wycheproof::hkdf::TestSet::load(name).unwrap();
        let mut tried = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let expander = hkdf.extract_from_secret(Some(&test.salt), &test.ikm);
            let mut output = vec![0; test.size];
            let expanded = expander.expand_slice(&[&test.info], &mut output);
            assert_eq!(expanded.is_ok(), test.result == TestResult::Valid, "{name:?} {}", test.tc_id);
            if expanded.is_ok() {
                assert_eq!(output, test.okm.as_slice(), "{name:?} {}", test.tc_id);
            }
            tried += 1;
        }
        assert!(tried > 50, "{tried}");
    }
}

#[test]
fn curves_of_nist() {
    use wycheproof::ecdh::{TestFlag, TestName, TestSet};
    for (name, curve, private_len) in [
        (TestName::EcdhSecp256r1Ecpoint, kx::SECP256R1, 32),
        (TestName::EcdhSecp384r1Ecpoint, kx::SECP384R1, 48),
    ] {
        let set = TestSet::load(name).unwrap();
        let mut agreed = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            // TLS has no compressed points, whatever else they are valid for.
            let compressed = test.flags.contains(&TestFlag::CompressedPoint);
            let valid = test.result == TestResult::Valid && !compressed;
            let private = fixed_length(&test.private_key, private_len);
            let secret = agree(curve, &private, &test.public_key);
            assert_eq!(secret.is_some(), valid, "{name:?} {} {}", test.tc_id, test.comment);
            if let Some(secret) = secret {
                assert_eq!(secret, test.shared_secret.as_slice(), "{name:?} {}", test.tc_id);
                agreed += 1;
            }
        }
        assert!(agreed > 100, "{name:?}: {agreed}");
    }
}

#[test]
fn x25519() {
    let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519).unwrap();
    let mut agreed = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let secret = agree(kx::X25519, &test.private_key, &test.public_key);
        // RFC 7748 lets a zero secret pass, TLS 1.3 does not (RFC 8446, section 7.4.2).
        let zero = test.shared_secret.iter().all(|&byte| byte == 0);
        match secret {
            Some(secret) => {
                assert_eq!(secret, test.shared_secret.as_slice(), "{}", test.tc_id);
                assert!(!zero && test.result != TestResult::Invalid, "{}", test.tc_id);
                agreed += 1;
            }
            None => assert!(zero || test.result != TestResult::Valid, "{} {}", test.tc_id, test.comment),
        }
    }
    assert!(agreed > 300, "{agreed}");
}

/// Decapsulation by fixed keys, within each hybrid.
#[test]
fn ml_kem_decapsulates_to_the_known_secret() {
    use wycheproof::mlkem::{TestName, TestSet};
    let set = TestSet::load(TestName::MlKem768SemiExpandedDecaps).unwrap();
    let mut agreed = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let (Some(private), Some(ciphertext)) = (&test.decaps_key, &test.ct) else { continue };
        let (Some(secret), TestResult::Valid) = (&test.shared_secret, test.result) else {
            // A key of the wrong form isn't one that a peer could choose; a ciphertext's length is.
            if private.len() == 2400 && ciphertext.len() != 1088 {
                for (group, curve) in
                    [(hybrid::X25519MLKEM768, kx::X25519), (hybrid::SECP256R1MLKEM768, kx::SECP256R1)]
                {
                    let server = curve.of_private_key(&[3; 32]);
                    let share = joined(group.name() == curve.name, server.share(), ciphertext);
                    assert!(group.of_private_keys(&[5; 32], private).complete(&share).is_err());
                }
            }
            continue;
        };
        for (group, curve, curve_first) in
            [(hybrid::X25519MLKEM768, kx::X25519, false), (hybrid::SECP256R1MLKEM768, kx::SECP256R1, true)]
        {
            let server = curve.of_private_key(&[3; 32]);
            let share = joined(curve_first, server.share(), ciphertext);
            let found = group.of_private_keys(&[5; 32], private).complete(&share).unwrap();
            let of_curve = agree(curve, &[5; 32], server.share()).unwrap();
            assert_eq!(found.secret_bytes(), joined(curve_first, &of_curve, secret), "{}", test.tc_id);
            agreed += 1;
        }
    }
    assert!(agreed >= 4, "{agreed}");
}

/// Encapsulation keys with a coefficient beyond the modulus, one vector for each place and way.
#[test]
fn ml_kem_refuses_bad_encapsulation_keys() {
    use wycheproof::mlkem::{TestFlag, TestName, TestSet};
    let set = TestSet::load(TestName::MlKem768Encaps).unwrap();
    let mut refused = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let Some(key) = &test.encaps_key else { continue };
        let curve_share = kx::X25519.of_private_key(&[3; 32]);
        let share = joined(false, curve_share.share(), key);
        let completed = hybrid::X25519MLKEM768.start_and_complete(&share);
        assert_eq!(completed.is_ok(), test.result == TestResult::Valid, "{} {}", test.tc_id, test.comment);
        if test.flags.contains(&TestFlag::ModulusOverflow) {
            refused += usize::from(completed.is_err());
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn ecdsa() {
    use wycheproof::ecdsa::{TestName, TestSet};
    for (name, scheme, curve) in [
        (TestName::EcdsaSecp256r1Sha256, SignatureScheme::ECDSA_NISTP256_SHA256, 0),
        (TestName::EcdsaSecp384r1Sha384, SignatureScheme::ECDSA_NISTP384_SHA384, 0),
        (TestName::EcdsaSecp521r1Sha512, SignatureScheme::ECDSA_NISTP521_SHA512, 0),
        // TLS 1.2 and certificates: other digests on the same curves.
        (TestName::EcdsaSecp256r1Sha512, SignatureScheme::ECDSA_NISTP521_SHA512, 2),
        (TestName::EcdsaSecp384r1Sha256, SignatureScheme::ECDSA_NISTP256_SHA256, 1),
        (TestName::EcdsaSecp384r1Sha512, SignatureScheme::ECDSA_NISTP521_SHA512, 1),
    ] {
        let set = TestSet::load(name).unwrap();
        let algorithm = algorithms(scheme)[curve];
        let tests = set.test_groups.iter().flat_map(|group| {
            group.tests.iter().map(|test| (&group.key.key, &test.msg, &test.sig, test.result, test.tc_id))
        });
        check(&format!("{name:?}"), algorithm, tests.map(|(k, m, s, r, id)| (&k[..], &m[..], &s[..], r, id)));
    }
}

#[test]
fn ed25519() {
    let set = wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap();
    let algorithm = algorithms(SignatureScheme::ED25519)[0];
    let tests = set.test_groups.iter().flat_map(|group| {
        group
            .tests
            .iter()
            .map(|test| (&group.key.pk[..], &test.msg[..], &test.sig[..], test.result, test.tc_id))
    });
    check("Ed25519", algorithm, tests);
}

#[test]
fn rsa_pkcs1() {
    use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};
    for (name, scheme) in [
        (TestName::Rsa2048Sha256, SignatureScheme::RSA_PKCS1_SHA256),
        (TestName::Rsa2048Sha384, SignatureScheme::RSA_PKCS1_SHA384),
        (TestName::Rsa3072Sha256, SignatureScheme::RSA_PKCS1_SHA256),
        (TestName::Rsa3072Sha384, SignatureScheme::RSA_PKCS1_SHA384),
        (TestName::Rsa4096Sha512, SignatureScheme::RSA_PKCS1_SHA512),
    ] {
        let set = TestSet::load(name).unwrap();
        let tests = set.test_groups.iter().flat_map(|group| {
            let key = &group.asn_key;
            group.tests.iter().map(|test| (&key[..], &test.msg[..], &test.sig[..], test.result, test.tc_id))
        });
        check(&format!("{name:?}"), algorithms(scheme)[0], tests);
    }
}

#[test]
fn rsa_pss() {
    use wycheproof::rsa_pss_verify::{TestName, TestSet};
    for (name, scheme) in [
        (TestName::RsaPss2048Sha256Mgf1SaltLen32, SignatureScheme::RSA_PSS_SHA256),
        (TestName::RsaPss2048Sha384Mgf1SaltLen48, SignatureScheme::RSA_PSS_SHA384),
        (TestName::RsaPss3072Sha256Mgf1SaltLen32, SignatureScheme::RSA_PSS_SHA256),
        (TestName::RsaPss4096Sha512Mgf1SaltLen64, SignatureScheme::RSA_PSS_SHA512),
    ] {
        let set = TestSet::load(name).unwrap();
        let tests = set.test_groups.iter().flat_map(|group| {
            let key = &group.asn_key;
            group.tests.iter().map(|test| (&key[..], &test.msg[..], &test.sig[..], test.result, test.tc_id))
        });
        check(&format!("{name:?}"), algorithms(scheme)[0], tests);
    }
}

fn check<'a>(
    what: &str,
    algorithm: &dyn SignatureVerificationAlgorithm,
    tests: impl Iterator<Item = (&'a [u8], &'a [u8], &'a [u8], TestResult, usize)>,
) {
    let (mut good, mut bad) = (0, 0);
    for (key, message, signature, result, id) in tests {
        // Some sets have keys with an exponent of 3, which the approved flavour takes no signature of.
        let rsa = algorithm.public_key_alg_id() == rustls::pki_types::alg_id::RSA_ENCRYPTION;
        if cfg!(feature = "certified") && rsa && !verify::is_approved_rsa(key) {
            assert!(algorithm.verify_signature(key, message, signature).is_err(), "{what} {id}");
            continue;
        }
        match algorithm.verify_signature(key, message, signature) {
            Ok(()) => {
                assert_ne!(result, TestResult::Invalid, "{what} {id}");
                good += 1;
            }
            Err(_) => {
                assert_ne!(result, TestResult::Valid, "{what} {id}");
                bad += 1;
            }
        }
    }
    assert!(good > 0 && bad > 20, "{what}: {good} good, {bad} bad");
}

fn algorithms(scheme: SignatureScheme) -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    verify::ALGORITHMS.mapping.iter().find(|(of, _)| *of == scheme).unwrap().1
}

fn agree(curve: &Curve, private: &[u8], public: &[u8]) -> Option<Vec<u8>> {
    curve.of_private_key(private).agree(public, |secret| Ok(secret.to_vec())).ok()
}

/// Without the zeros in front that an integer may have, or with those that a key must have.
fn fixed_length(private: &[u8], length: usize) -> Vec<u8> {
    let significant = private.iter().position(|&byte| byte != 0).unwrap_or(private.len());
    let mut fixed = vec![0; length];
    fixed[length - (private.len() - significant)..].copy_from_slice(&private[significant..]);
    fixed
}

fn joined(curve_first: bool, curve: &[u8], kem: &[u8]) -> Vec<u8> {
    if curve_first { [curve, kem].concat() } else { [kem, curve].concat() }
}
