//! Keys and signatures: what loads, what each key signs with, and that nothing else verifies.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{EcdsaKeyPair, RsaKeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivateSec1KeyDer, SignatureVerificationAlgorithm};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{Error, InconsistentKeys, SignatureScheme};

use crate::ca::{Authority, Issued, KeyType, Profile};
use crate::provider::{provider, verify};

const ALL_SCHEMES: [SignatureScheme; 10] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

#[test]
fn each_key_signs_with_its_schemes_and_no_other() {
    for (name, key, expected) in keys() {
        let signing: Vec<_> = ALL_SCHEMES
            .iter()
            .filter(|&&scheme| {
                let signer = key.choose_scheme(&[scheme]);
                assert!(signer.as_ref().is_none_or(|signer| signer.scheme() == scheme));
                signer.is_some()
            })
            .copied()
            .collect();
        assert_eq!(signing, expected, "{name}");
        assert!(key.choose_scheme(&[]).is_none());
        // Offered everything, RSA prefers PSS, which is all that TLS 1.3 allows it.
        let first = key.choose_scheme(&ALL_SCHEMES).unwrap().scheme();
        assert_eq!(first, expected[0], "{name}");
    }
}

#[test]
fn signatures_verify_by_their_scheme_and_key_alone() {
    let keys = keys();
    for (name, key, schemes) in &keys {
        let public = public_key(&**key);
        for &scheme in schemes {
            let message = b"what a handshake signs";
            let signature = key.choose_scheme(&[scheme]).unwrap().sign(message).unwrap();
            let of_scheme = first_algorithm(scheme);
            assert!(of_scheme.verify_signature(&public, message, &signature).is_ok(), "{name} {scheme:?}");
            assert!(of_scheme.verify_signature(&public, b"another", &signature).is_err());
            assert!(of_scheme.verify_signature(&public, message, &[]).is_err());
            assert!(of_scheme.verify_signature(&[], message, &signature).is_err());
            for at in [0, signature.len() / 2, signature.len() - 1] {
                let mut changed = signature.clone();
                changed[at] ^= 1;
                assert!(of_scheme.verify_signature(&public, message, &changed).is_err(), "{name} {at}");
            }
            for other in ALL_SCHEMES.into_iter().filter(|&other| other != scheme) {
                let verified = first_algorithm(other).verify_signature(&public, message, &signature);
                assert!(verified.is_err(), "{name}: {scheme:?} passes for {other:?}");
            }
            for (other, key, _) in keys.iter().filter(|(other, ..)| other[..3] != name[..3]) {
                let verified = of_scheme.verify_signature(&public_key(&**key), message, &signature);
                assert!(verified.is_err(), "{name}'s passes for {other}'s");
            }
        }
    }
}

/// TLS 1.3 binds the digest to the curve: it takes the first of a list, and that is the curve of the scheme's name.
#[test]
fn the_first_algorithm_of_a_scheme_is_that_of_its_curve() {
    use rustls::pki_types::alg_id;
    for (scheme, curve) in [
        (SignatureScheme::ECDSA_NISTP256_SHA256, alg_id::ECDSA_P256),
        (SignatureScheme::ECDSA_NISTP384_SHA384, alg_id::ECDSA_P384),
        (SignatureScheme::ECDSA_NISTP521_SHA512, alg_id::ECDSA_P521),
    ] {
        assert_eq!(first_algorithm(scheme).public_key_alg_id(), curve);
    }
    let told = provider().signature_verification_algorithms.supported_schemes();
    assert_eq!(told, ALL_SCHEMES);
}

#[test]
fn public_keys_have_one_encoding() {
    let (_, key, _) = keys().into_iter().find(|(name, ..)| *name == "P-256").unwrap();
    let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap();
    let signature = signer.sign(b"message").unwrap();
    let point = public_key(&*key);
    let algorithm = first_algorithm(SignatureScheme::ECDSA_NISTP256_SHA256);
    assert!(algorithm.verify_signature(&point, b"message", &signature).is_ok());
    let mut compressed = point[..33].to_vec();
    compressed[0] = 2 + (point[64] & 1);
    let whole = key.public_key().unwrap().as_ref().to_vec();
    let mut hybrid = point.clone();
    hybrid[0] = 6 + (point[64] & 1);
    for (what, key) in [("compressed", compressed), ("whole", whole), ("X9.62 hybrid", hybrid)] {
        assert!(algorithm.verify_signature(&key, b"message", &signature).is_err(), "{what}");
    }
}

#[test]
fn a_certificate_goes_with_its_key_only() {
    let authority = Authority::generate("cluster.local", Duration::from_secs(60)).unwrap();
    let issued: Vec<Issued> = KEY_TYPES.iter().map(|&key_type| issue(&authority, key_type)).collect();
    for (of, certificate) in issued.iter().enumerate() {
        for (with, key) in issued.iter().enumerate() {
            let chain = vec![CertificateDer::from_pem_slice(certificate.certificate_pem.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.key_pem.as_bytes()).unwrap();
            let joined = CertifiedKey::from_der(chain, key, &provider());
            if of == with {
                assert!(joined.unwrap().keys_match().is_ok());
            } else {
                let error = joined.unwrap_err();
                assert!(matches!(error, Error::InconsistentKeys(InconsistentKeys::KeyMismatch)), "{error:?}");
            }
        }
    }
}

#[test]
fn keys_say_nothing_of_themselves() {
    for (name, key, schemes) in keys() {
        let signer = key.choose_scheme(&schemes).unwrap();
        assert!(format!("{key:?}").len() < 20, "{name}: {key:?}");
        assert!(format!("{signer:?}").len() < 50, "{name}: {signer:?}");
    }
}

#[test]
fn what_is_no_key_or_a_weak_one_is_refused() {
    let weak = super::hex(include_str!("rsa-1024.hex"));
    for (what, der) in [("nothing", Vec::new()), ("noise", vec![0x30; 64]), ("RSA of 1024 bits", weak)] {
        for key in [
            PrivateKeyDer::Pkcs8(der.clone().into()),
            PrivateKeyDer::Pkcs1(der.clone().into()),
            PrivateKeyDer::Sec1(der.clone().into()),
        ] {
            let error = provider().key_provider.load_private_key(key).unwrap_err();
            assert!(error.to_string().contains("private key: "), "{what}: {error}");
        }
    }
}

/// FIPS 186-5 lists the lengths and the least exponent. The module would load and use others all the same.
#[test]
fn rsa_keys_beyond_the_standard_are_refused_by_the_approved_flavour() {
    for (what, text) in [("2056 bits", include_str!("rsa-2056.hex")), ("e = 3", include_str!("rsa-e3.hex"))] {
        let loaded = provider().key_provider.load_private_key(PrivateKeyDer::Pkcs1(super::hex(text).into()));
        assert_eq!(loaded.is_ok(), !cfg!(feature = "certified"), "{what}: {loaded:?}");
    }
}

const KEY_TYPES: [KeyType; 4] = [KeyType::P256, KeyType::P384, KeyType::Rsa2048, KeyType::Ed25519];

type Named = (&'static str, Arc<dyn SigningKey>, Vec<SignatureScheme>);

/// One key of each type and encoding.
fn keys() -> Vec<Named> {
    let load = |key| provider().key_provider.load_private_key(key).unwrap();
    let sec1 = |algorithm| {
        let pair = EcdsaKeyPair::generate(algorithm).unwrap();
        let der: aws_lc_rs::encoding::EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
        load(PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(der.as_ref().to_vec())))
    };
    let pkcs8 =
        |pair: EcdsaKeyPair| load(PrivateKeyDer::Pkcs8(pair.to_pkcs8v1().unwrap().as_ref().to_vec().into()));
    use aws_lc_rs::signature as algorithms;
    let p256 = || EcdsaKeyPair::generate(&algorithms::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let p384 = || EcdsaKeyPair::generate(&algorithms::ECDSA_P384_SHA384_ASN1_SIGNING).unwrap();
    let p521 = || EcdsaKeyPair::generate(&algorithms::ECDSA_P521_SHA512_ASN1_SIGNING).unwrap();
    let ed25519 = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
    let ed25519 = load(PrivateKeyDer::Pkcs8(ed25519.to_pkcs8v1().unwrap().as_ref().to_vec().into()));
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let rsa: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    // PKCS #1 lies inside PKCS #8, behind its version, its algorithm and the header of an octet string.
    let inner = rsa.as_ref()[26..].to_vec();
    let rsa_schemes = ALL_SCHEMES[4..].to_vec();
    vec![
        ("P-256", pkcs8(p256()), vec![SignatureScheme::ECDSA_NISTP256_SHA256]),
        ("P-384", pkcs8(p384()), vec![SignatureScheme::ECDSA_NISTP384_SHA384]),
        ("P-521", pkcs8(p521()), vec![SignatureScheme::ECDSA_NISTP521_SHA512]),
        (
            "P-256, SEC 1",
            sec1(&algorithms::ECDSA_P256_SHA256_ASN1_SIGNING),
            vec![SignatureScheme::ECDSA_NISTP256_SHA256],
        ),
        (
            "P-384, SEC 1",
            sec1(&algorithms::ECDSA_P384_SHA384_ASN1_SIGNING),
            vec![SignatureScheme::ECDSA_NISTP384_SHA384],
        ),
        ("Ed25519", ed25519, vec![SignatureScheme::ED25519]),
        ("RSA", load(PrivateKeyDer::Pkcs8(rsa.as_ref().to_vec().into())), rsa_schemes.clone()),
        ("RSA, PKCS #1", load(PrivateKeyDer::Pkcs1(inner.into())), rsa_schemes),
    ]
}

fn issue(authority: &Authority, key_type: KeyType) -> Issued {
    let profile = Profile::workload("spiffe://cluster.local/ns/a/sa/b", Duration::from_secs(60));
    authority.issue(&Profile { key_type, ..profile }).unwrap()
}

/// The bits inside of the SubjectPublicKeyInfo.
fn public_key(key: &dyn SigningKey) -> Vec<u8> {
    use rustls::SignatureAlgorithm;
    let whole = key.public_key().unwrap();
    let whole = whole.as_ref();
    let header = match key.algorithm() {
        SignatureAlgorithm::RSA => 24,
        SignatureAlgorithm::ED25519 => 12,
        _ if whole.len() == 91 => 26,
        _ if whole.len() == 120 => 23,
        _ => 25,
    };
    whole[header..].to_vec()
}

fn first_algorithm(scheme: SignatureScheme) -> &'static dyn SignatureVerificationAlgorithm {
    verify::ALGORITHMS.mapping.iter().find(|(of, _)| *of == scheme).unwrap().1[0]
}

/// A peer's RSA keys, by the same rule as our own.
#[test]
fn rsa_public_keys_of_the_validated_lengths_are_approved() {
    let encode = |modulus_len: usize, first: u8, exponent: &[u8]| {
        let mut modulus = vec![0x02, 0x82, 0, 0, 0, first];
        modulus.resize(5 + modulus_len, 0x11);
        let length = (modulus_len + 1) as u16;
        modulus[2..4].copy_from_slice(&length.to_be_bytes());
        let integers = [&modulus[..], &[2, exponent.len() as u8], exponent].concat();
        [&[0x30, 0x82][..], &(integers.len() as u16).to_be_bytes(), &integers].concat()
    };
    let e = [1, 0, 1];
    for length in [256, 384, 512] {
        assert!(verify::is_approved_rsa(&encode(length, 0x80, &e)), "{length}");
        assert!(!verify::is_approved_rsa(&encode(length, 0x7f, &e)), "{length} and a bit short");
        for weak in [&[3][..], &[1], &[0xff, 0xff], &[0, 0xff, 0xff], &[1, 0, 0]] {
            assert!(!verify::is_approved_rsa(&encode(length, 0x80, weak)), "e = {weak:?}");
        }
        assert!(verify::is_approved_rsa(&encode(length, 0x80, &[0, 0x80, 0, 1])));
    }
    for length in [128, 255, 257, 320, 1024] {
        assert!(!verify::is_approved_rsa(&encode(length, 0x80, &e)), "{length}");
    }
    let good = encode(256, 0x80, &e);
    for cut in 0..good.len() {
        assert!(!verify::is_approved_rsa(&good[..cut]));
    }
}
