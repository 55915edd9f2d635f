//! Each service as the provider and the tokens use it.

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, KeyPair as _, RsaKeyPair};
use fips::ca::{Authority, KeyType, Profile};
use fips::jws::{Algorithm, Curve, PublicNumbers, SigningKey, VerifyingKey};
use rustls::crypto::cipher::{AeadKey, InboundOpaqueMessage, Iv, OutboundChunks, OutboundPlainMessage};
use rustls::crypto::tls13::OkmBlock;
use rustls::internal::derive_traffic_key;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ContentType, ProtocolVersion, SupportedCipherSuite, Tls13CipherSuite};
use webpki::EndEntityCert;

use super::Table;

pub fn randomness(table: &mut Table) {
    table.run("randomness", || fips::random(&mut [0; 32]).unwrap());
    let mut bytes = [0; 32];
    table.run("randomness of handshakes", || fips::provider().secure_random.fill(&mut bytes).unwrap());
}

pub fn digests(table: &mut Table) {
    table.run("SHA-256", || fips::sha256(b"message"));
    for suite in tls13() {
        let name = format!("{:?}", suite.common.hash_provider.algorithm());
        table.run(&format!("{name} of transcripts"), || {
            let mut context = suite.common.hash_provider.start();
            context.update(b"message");
            context.fork_finish()
        });
        let key = OkmBlock::new(&[7; 32]);
        table.run(&format!("HMAC with {name}"), || suite.hkdf_provider.hmac_sign(&key, b"message"));
    }
}

pub fn key_derivation(table: &mut Table) {
    for suite in tls13() {
        let name = format!("{:?}", suite.common.hash_provider.algorithm());
        let expander = table.run(&format!("HKDF-Extract with {name}"), || {
            suite.hkdf_provider.extract_from_secret(Some(&[1; 32]), &[2; 32])
        });
        table.run(&format!("HKDF-Expand with {name}"), || expander.expand_block(&[b"info"]));
    }
    for suite in &fips::provider().cipher_suites {
        let SupportedCipherSuite::Tls12(suite) = suite else { continue };
        let name = format!("{:?}", suite.common.hash_provider.algorithm());
        if !format!("{:?}", suite.common.suite).contains("ECDSA") {
            continue;
        }
        for label in ["extended master secret", "master secret", "key expansion", "client finished"] {
            let mut output = [0; 48];
            table.run(&format!("TLS 1.2 PRF with {name}, \"{label}\""), || {
                suite.prf_provider.for_secret(&mut output, &[3; 48], label.as_bytes(), &[4; 64]);
            });
        }
    }
}

/// As records are sealed and opened, with nonces that are counted up.
pub fn records(table: &mut Table) {
    for suite in &fips::provider().cipher_suites {
        let name = fips::suite_name(suite.suite());
        let (mut sealer, mut opener, version) = match suite {
            SupportedCipherSuite::Tls13(suite) => {
                let iv = || Iv::from([5; 12]);
                let aead = suite.aead_alg;
                (aead.encrypter(key(suite), iv()), aead.decrypter(key(suite), iv()), ProtocolVersion::TLSv1_3)
            }
            SupportedCipherSuite::Tls12(suite) => {
                // A key of the length that the suite of TLS 1.3 with the same cipher has.
                let length = suite.aead_alg.key_block_shape().enc_key_len;
                let like = tls13().find(|like| like.aead_alg.key_len() == length).unwrap();
                let (sealer, iv) = (suite.aead_alg, [5; 4]);
                let opener = suite.aead_alg.decrypter(key(like), &iv);
                (sealer.encrypter(key(like), &iv, &[]), opener, ProtocolVersion::TLSv1_2)
            }
        };
        let plain = OutboundPlainMessage {
            typ: ContentType::ApplicationData,
            version,
            payload: OutboundChunks::Single(b"data"),
        };
        let mut sealed = table
            .run(&format!("{name}, sealing"), || sealer.encrypt(plain, 0).unwrap().encode()[5..].to_vec());
        let message =
            InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, &mut sealed);
        table.run(&format!("{name}, opening"), || opener.decrypt(message, 0).map(drop).unwrap());
    }
}

pub fn key_exchange(table: &mut Table) {
    for group in &fips::provider().kx_groups {
        let name = fips::group_name(group.name());
        let ours = table.run(&format!("{name}, a key pair"), || group.start().unwrap());
        let theirs =
            table.run(&format!("{name}, as server"), || group.start_and_complete(ours.pub_key()).unwrap());
        table.run(&format!("{name}, as client"), || ours.complete(&theirs.pub_key).map(drop).unwrap());
    }
    // Offered by the other flavour alone.
    let key = table.run("x25519, a key pair", || PrivateKey::generate(&X25519).unwrap());
    let peer = key.compute_public_key().unwrap();
    table.run("x25519, agreement", || {
        agreement::agree(&key, UnparsedPublicKey::new(&X25519, peer.as_ref()), (), |_| Ok(())).unwrap();
    });
}

/// Of handshakes and certificates.
pub fn signatures(table: &mut Table) {
    let provider = fips::provider();
    let hour = std::time::Duration::from_secs(3600);
    let authority = Authority::generate("a.example", hour).unwrap();
    for key_type in [KeyType::P256, KeyType::P384, KeyType::Rsa2048, KeyType::Ed25519] {
        let issued = authority.issue(&Profile { key_type, ..Profile::server(&["a.example"], hour) }).unwrap();
        let private = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
        let key = provider.key_provider.load_private_key(private).unwrap();
        let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let certificate = EndEntityCert::try_from(&der).unwrap();
        for (scheme, algorithms) in provider.signature_verification_algorithms.mapping {
            let Some(signer) = key.choose_scheme(&[*scheme]) else { continue };
            let name = format!("{scheme:?}");
            let signature = table.run(&format!("{name}, signing"), || signer.sign(b"message").unwrap());
            table.run(&format!("{name}, verifying"), || {
                certificate.verify_signature(algorithms[0], b"message", &signature).unwrap();
            });
        }
    }
}

/// Of end users' tokens.
pub fn tokens(table: &mut Table) {
    for algorithm in Algorithm::ALL {
        let key = SigningKey::generate(algorithm).unwrap();
        let signature = key.sign(b"message").unwrap();
        let verifying = match key.public() {
            PublicNumbers::Rsa(n, e) => VerifyingKey::rsa(&n, &e),
            PublicNumbers::Ec(curve, x, y) => VerifyingKey::ec(Curve::parse(curve).unwrap(), &x, &y),
            PublicNumbers::Ed25519(x) => VerifyingKey::ed25519(&x),
        }
        .unwrap();
        table.run(&format!("{}, verifying", algorithm.as_str()), || {
            assert!(verifying.verify(algorithm, b"message", &signature));
        });
    }
}

/// The lengths that the module was validated with, and one between them, which the indicator lets pass. The provider goes by
/// the security policy, and refuses it.
pub fn rsa_by_length(table: &mut Table) {
    let of_2056 = include_str!("../../src/provider/tests/rsa-2056.hex");
    let digits: Vec<u8> = of_2056.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let of_2056: Vec<u8> = digits.chunks(2).map(pair).collect();
    let keys = [
        (2048, RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
        (2056, RsaKeyPair::from_der(&of_2056).unwrap()),
        (3072, RsaKeyPair::generate(KeySize::Rsa3072).unwrap()),
        (4096, RsaKeyPair::generate(KeySize::Rsa4096).unwrap()),
    ];
    for (bits, key) in &keys {
        let mut signed = vec![0; key.public_modulus_len()];
        table.run(&format!("RSA of {bits} bits, PSS, signing"), || {
            key.sign(&signature::RSA_PSS_SHA256, &SystemRandom::new(), b"message", &mut signed).unwrap();
        });
        let public = signature::UnparsedPublicKey::new(
            &signature::RSA_PSS_2048_8192_SHA256,
            key.public_key().as_ref(),
        );
        table.run(&format!("RSA of {bits} bits, PSS, verifying"), || {
            public.verify(b"message", &signed).unwrap();
        });
    }
}

fn tls13() -> impl Iterator<Item = &'static Tls13CipherSuite> {
    let suites = fips::provider().cipher_suites.clone();
    suites.into_iter().filter_map(|suite| suite.tls13())
}

fn key(suite: &Tls13CipherSuite) -> AeadKey {
    derive_traffic_key(&*suite.hkdf_provider.extract_from_secret(None, &[6; 32]), suite.aead_alg)
}
