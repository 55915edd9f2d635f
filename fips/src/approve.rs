//! Whether certificates and keys that come from elsewhere are of approved kinds, and what they are where they are not.
//!
//! Approved is what the provider verifies by, in the lengths that the module was validated with; `provider/verify.rs` has the
//! list. These fail only where approved crypto is required: see [`crate::require`].

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{AlgorithmIdentifier, CertificateDer, PrivateKeyDer, alg_id};

use crate::der::{BIT_STRING, EXPLICIT_0, INTEGER, OBJECT_IDENTIFIER, SEQUENCE, element, rsa_public_key};
use crate::provider::verify::{ALGORITHMS, is_approved_rsa};
use crate::{NotApproved, required};

/// A certificate of a chain: its key, and how it is signed.
pub fn certificate(der: &[u8]) -> Result<(), NotApproved> {
    only_where_required(|| flaw(der).or_else(|| signature_flaw(der)))
}

/// A root, by its key: its own signature is never verified.
pub fn root(der: &[u8]) -> Result<(), NotApproved> {
    only_where_required(|| flaw(der))
}

/// Every certificate in a text. What can't be read at all is for who uses it to refuse.
pub fn chain_in(pem: &str) -> Result<(), NotApproved> {
    all_in(pem, certificate)
}

/// Every root in a text.
pub fn roots_in(pem: &str) -> Result<(), NotApproved> {
    all_in(pem, root)
}

/// The private key in a text.
pub fn key_in(pem: &str) -> Result<(), NotApproved> {
    only_where_required(|| {
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()?;
        crate::provider().key_provider.load_private_key(key).err().map(|error| error.to_string())
    })
}

/// How a certificate or revocation list is signed, where that is a way that nobody here can verify, in either flavour.
pub(crate) fn unknown_signature(der: &[u8]) -> Option<String> {
    let algorithm = signature_algorithm(der).map(algorithm_name);
    let unknown = signature_flaw(der);
    unknown.map(|_| algorithm.unwrap_or_else(|| "an algorithm that can't be read".to_owned()))
}

fn only_where_required(flaw: impl FnOnce() -> Option<String>) -> Result<(), NotApproved> {
    if !required() {
        return Ok(());
    }
    flaw().map_or(Ok(()), |flaw| Err(NotApproved(flaw)))
}

fn all_in(pem: &str, check: fn(&[u8]) -> Result<(), NotApproved>) -> Result<(), NotApproved> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().collect();
    for (number, der) in (1..).zip(&all) {
        check(der).map_err(|NotApproved(flaw)| match all.len() {
            1 => NotApproved(flaw),
            _ => NotApproved(format!("certificate {number}: {flaw}")),
        })?;
    }
    Ok(())
}

/// What is not approved of a certificate's key.
fn flaw(der: &[u8]) -> Option<String> {
    let Some((algorithm, key)) = public_key(der) else { return Some("its key can't be read".to_owned()) };
    if algorithm == alg_id::RSA_ENCRYPTION.as_ref() {
        return (!is_approved_rsa(key)).then(|| rsa_flaw(key));
    }
    let known = ALGORITHMS.all.iter().any(|each| each.public_key_alg_id().as_ref() == algorithm);
    (!known).then(|| format!("a key of {} is not approved", algorithm_name(algorithm)))
}

fn rsa_flaw(key: &[u8]) -> String {
    let allowed = "2048, 3072 and 4096 bits with an exponent of at least 65537 are approved";
    match rsa_public_key(key) {
        Some((modulus, exponent)) => {
            let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
            let exponent = exponent.iter().take(8).fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
            format!("an RSA key of {bits} bits with exponent {exponent}; {allowed}")
        }
        None => format!("an RSA key that can't be read; {allowed}"),
    }
}

fn signature_flaw(der: &[u8]) -> Option<String> {
    let Some(algorithm) = signature_algorithm(der) else {
        return Some("its signature can't be read".to_owned());
    };
    let known = |id: AlgorithmIdentifier| id.as_ref() == algorithm;
    let known = ALGORITHMS.all.iter().any(|each| known(each.signature_alg_id()));
    (!known).then(|| format!("a signature by {} is not approved", algorithm_name(algorithm)))
}

/// `signatureAlgorithm` of a Certificate or CertificateList (RFC 5280, sections 4.1 and 5.1).
fn signature_algorithm(der: &[u8]) -> Option<&[u8]> {
    let (signed, _) = element(SEQUENCE, der)?;
    let (_, rest) = element(SEQUENCE, signed)?;
    Some(element(SEQUENCE, rest)?.0)
}

/// Algorithm and key of `subjectPublicKeyInfo`.
fn public_key(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (signed, _) = element(SEQUENCE, der)?;
    let (tbs, _) = element(SEQUENCE, signed)?;
    let after_version = element(EXPLICIT_0, tbs).map_or(tbs, |(_, rest)| rest);
    let (_, mut rest) = element(INTEGER, after_version)?;
    // Signature, issuer, validity and subject.
    for _ in 0..4 {
        rest = element(SEQUENCE, rest)?.1;
    }
    let (algorithm, key) = element(SEQUENCE, element(SEQUENCE, rest)?.0)?;
    Some((algorithm, element(BIT_STRING, key)?.0.strip_prefix(&[0])?))
}

/// Kinds that are met and not approved; the rest is named by number.
const NAMES: &[(&[u8], &str)] = &[
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04], "md5WithRSAEncryption"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05], "sha1WithRSAEncryption"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a], "RSASSA-PSS"),
    (&[0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01], "DSA"),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01], "ecdsa-with-SHA1"),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x01], "ecdsa-with-SHA224"),
    (&[0x2b, 0x81, 0x04, 0x00, 0x0a], "secp256k1"),
    (&[0x2b, 0x65, 0x71], "Ed448"),
];
/// id-ecPublicKey, whose parameter says which curve.
const ELLIPTIC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

/// The name of an AlgorithmIdentifier's content; for an elliptic key, of its curve.
fn algorithm_name(algorithm: &[u8]) -> String {
    let Some((identifier, parameter)) = element(OBJECT_IDENTIFIER, algorithm) else {
        return "an unreadable kind".to_owned();
    };
    let curve = element(OBJECT_IDENTIFIER, parameter).filter(|_| identifier == ELLIPTIC);
    let identifier = curve.map_or(identifier, |(curve, _)| curve);
    let named = NAMES.iter().find(|(known, _)| *known == identifier);
    named.map_or_else(|| dotted(identifier), |(_, name)| (*name).to_owned())
}

/// An object identifier in figures (X.690, section 8.19); at most 16 of them.
fn dotted(identifier: &[u8]) -> String {
    let mut arcs = Vec::new();
    let mut arc = 0u64;
    for &byte in identifier.iter().take(64) {
        arc = arc << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            arcs.push(arc);
            arc = 0;
        }
    }
    let Some((&first, rest)) = arcs.split_first() else { return "an unreadable kind".to_owned() };
    let root = (first / 40).min(2);
    let all = [root, first - root * 40].into_iter().chain(rest.iter().copied()).take(16);
    all.map(|arc| arc.to_string()).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ca::{Authority, KeyType, Profile};

    const HOUR: Duration = Duration::from_secs(3600);
    const SHA256_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
    const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

    fn issued(root: KeyType, leaf: KeyType) -> Vec<u8> {
        let authority = Authority::generate_with(root, "a.example", HOUR).unwrap();
        let profile = Profile { key_type: leaf, ..Profile::server(&["a.example"], HOUR) };
        let issued = authority.issue(&profile).unwrap();
        CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap().to_vec()
    }

    /// The same certificate with one object identifier in place of another as long.
    fn with(der: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut changed = der.to_vec();
        let at: Vec<_> = (0..der.len()).filter(|&at| der[at..].starts_with(from)).collect();
        assert!(!at.is_empty());
        at.into_iter().for_each(|at| changed[at..at + to.len()].copy_from_slice(to));
        changed
    }

    #[test]
    fn what_the_authority_makes_is_approved() {
        for key in [KeyType::P256, KeyType::P384, KeyType::Rsa2048, KeyType::Ed25519] {
            let der = issued(key, key);
            assert_eq!((flaw(&der), signature_flaw(&der)), (None, None), "{key:?}");
        }
    }

    #[test]
    fn what_is_not_approved_is_named() {
        let rsa = issued(KeyType::Rsa2048, KeyType::Rsa2048);
        let sha1 = with(&rsa, SHA256_WITH_RSA, NAMES[1].0);
        assert_eq!(signature_flaw(&sha1).unwrap(), "a signature by sha1WithRSAEncryption is not approved");
        assert_eq!(flaw(&sha1), None);
        assert_eq!(unknown_signature(&sha1).unwrap(), "sha1WithRSAEncryption");
        let p256 = issued(KeyType::P256, KeyType::P256);
        assert_eq!(unknown_signature(&p256), None);
        // A number that no curve has.
        let curve = with(&p256, P256, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x63]);
        assert_eq!(flaw(&curve).unwrap(), "a key of 1.2.840.10045.3.1.99 is not approved");
        let ed448 = with(&issued(KeyType::Ed25519, KeyType::Ed25519), &[0x2b, 0x65, 0x70], NAMES[7].0);
        assert_eq!(flaw(&ed448).unwrap(), "a key of Ed448 is not approved");
        assert_eq!(flaw(b"\x30\x03\x02\x01\x01").unwrap(), "its key can't be read");
        assert_eq!(signature_flaw(&p256[..40]).unwrap(), "its signature can't be read");
    }

    #[test]
    fn rsa_keys_are_described() {
        let key = |bits: usize, exponent: &[u8]| {
            let mut modulus = vec![0; bits / 8 + 1];
            modulus[1] = 0x80;
            let integers = [number(&modulus), number(exponent)].concat();
            [&[0x30, 0x82][..], &(integers.len() as u16).to_be_bytes(), &integers].concat()
        };
        assert!(
            rsa_flaw(&key(1024, &[1, 0, 1]))
                .starts_with("an RSA key of 1024 bits with exponent 65537; 2048,")
        );
        assert!(rsa_flaw(&key(2048, &[3])).contains("exponent 3;"));
        assert!(rsa_flaw(b"").contains("can't be read"));
    }

    fn number(bytes: &[u8]) -> Vec<u8> {
        [&[INTEGER, 0x82][..], &(bytes.len() as u16).to_be_bytes(), bytes].concat()
    }

    /// Other tests of this process may require approved crypto, where there is any.
    #[test]
    fn nothing_is_refused_unless_that_is_required() {
        if !cfg!(feature = "certified") {
            assert_eq!(certificate(b"nonsense"), Ok(()));
            assert_eq!(chain_in("nonsense"), Ok(()));
            return;
        }
        crate::require().unwrap();
        let rsa = Authority::generate_with(KeyType::Rsa2048, "a.example", HOUR).unwrap();
        let issued = rsa.issue(&Profile::server(&["a.example"], HOUR)).unwrap();
        assert_eq!(chain_in(&format!("{}{}", issued.certificate_pem, rsa.certificate_pem())), Ok(()));
        assert_eq!(key_in(&issued.key_pem), Ok(()));
        let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let sha1 = pem::encode(&pem::Pem::new("CERTIFICATE", with(&der, SHA256_WITH_RSA, NAMES[1].0)));
        let refused = chain_in(&format!("{}{sha1}", issued.certificate_pem)).unwrap_err().to_string();
        assert!(refused.contains("certificate 2: a signature by sha1WithRSAEncryption"), "{refused}");
        assert_eq!(roots_in(&sha1), Ok(()), "nobody verifies a root's own signature");
    }
}
