//! What counts as approved, part by part: a golden table for each flavour.

use std::fmt::Write;

use rustls::crypto::SupportedKxGroup;
use rustls::{ClientConfig, RootCertStore};

use crate::provider::{APPROVED_GROUPS, STANDARD_GROUPS, build, kx, provider};

/// Changed on purpose only, and with a look at the module's security policy.
const CERTIFIED: &str = "\
suite TLS13_AES_128_GCM_SHA256 approved
suite TLS13_AES_256_GCM_SHA384 approved
suite TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 approved
suite TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 approved
suite TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 approved
suite TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 approved
group X25519MLKEM768 approved
group X25519 not approved
group secp256r1 approved
group secp384r1 approved
group secp256r1MLKEM768 approved
scheme ECDSA_NISTP256_SHA256 approved approved approved
scheme ECDSA_NISTP384_SHA384 approved approved approved
scheme ECDSA_NISTP521_SHA512 approved approved approved
scheme ED25519 approved
scheme RSA_PSS_SHA256 approved
scheme RSA_PSS_SHA384 approved
scheme RSA_PSS_SHA512 approved
scheme RSA_PKCS1_SHA256 approved
scheme RSA_PKCS1_SHA384 approved
scheme RSA_PKCS1_SHA512 approved
randomness approved
keys approved
provider approved
";

#[test]
fn table_of_what_is_approved() {
    // The module that has no approved mode has approved nothing.
    let expected = if cfg!(feature = "certified") {
        CERTIFIED.to_owned()
    } else {
        CERTIFIED.replace("not approved", "approved").replace("approved", "not approved")
    };
    let word = |approved| if approved { "approved" } else { "not approved" };
    let provider = provider();
    let mut table = String::new();
    for suite in &provider.cipher_suites {
        writeln!(table, "suite {:?} {}", suite.suite(), word(suite.fips())).unwrap();
    }
    for group in STANDARD_GROUPS {
        writeln!(table, "group {:?} {}", group.name(), word(group.fips())).unwrap();
    }
    for (scheme, algorithms) in provider.signature_verification_algorithms.mapping {
        let words: Vec<_> = algorithms.iter().map(|algorithm| word(algorithm.fips())).collect();
        writeln!(table, "scheme {scheme:?} {}", words.join(" ")).unwrap();
    }
    writeln!(table, "randomness {}", word(provider.secure_random.fips())).unwrap();
    writeln!(table, "keys {}", word(provider.key_provider.fips())).unwrap();
    writeln!(table, "provider {}", word(provider.fips())).unwrap();
    assert_eq!(table, expected);
}

#[test]
fn approved_groups_are_approved() {
    for group in APPROVED_GROUPS {
        assert_eq!(group.fips(), cfg!(feature = "certified"), "{group:?}");
    }
    assert!(!SupportedKxGroup::fips(kx::X25519));
}

#[test]
fn one_part_that_is_not_approved_spoils_the_whole() {
    let config = |provider: rustls::crypto::CryptoProvider| {
        ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth()
    };
    let approved = config(build(true));
    assert_eq!(approved.fips(), cfg!(feature = "certified"));
    // Without extended master secret, TLS 1.2 derives its keys in a way that is not approved.
    assert_eq!(approved.require_ems, cfg!(feature = "certified"));
    let mut without = approved.clone();
    without.require_ems = false;
    assert!(!without.fips());
    assert!(!config(build(false)).fips(), "X25519 is on that list");
}

/// The versions that `certified/workspace` pins, asked of what is linked.
#[test]
#[cfg(feature = "certified")]
fn the_module_is_the_branch_with_a_certificate() {
    assert!(aws_lc_rs::try_fips_mode().is_ok());
    assert_eq!(aws_lc_rs::fips_version(), Some(3));
    assert!(aws_lc_rs::awslc_version().starts_with("3."), "{}", aws_lc_rs::awslc_version());
}

#[test]
#[cfg(not(feature = "certified"))]
fn the_module_has_no_approved_mode() {
    assert!(aws_lc_rs::try_fips_mode().is_err());
    assert_eq!(aws_lc_rs::fips_version(), None);
}
