//! Single certificates: names as two parsers see them, and bytes at random.

use fips::ca::Profile;
use rustls_pki_types::pem::PemObject;

use super::*;
use crate::identity::fixture::{HOUR, authority, trust};

#[test]
fn a_second_name_that_one_parser_passes_over_is_seen_by_the_other() {
    let (first, second) = ("spiffe://cluster.local/a", "spiffe://cluster.local/b");
    let mut profile = Profile::workload(first, HOUR);
    profile.uris.push(second.to_owned());
    let issued = authority("cluster.local").issue(&profile).unwrap();
    let mut der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap().to_vec();
    let at = der.windows(second.len()).position(|window| window == second.as_bytes()).unwrap();
    der[at..at + second.len()].fill(0xff);

    let der = CertificateDer::from(der);
    let certificate = EndEntityCert::try_from(&der).unwrap();
    assert_eq!(spiffe_id(&certificate).unwrap().as_str(), first, "webpki sees one name");
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    assert!(!is_only_uri(&certificate, first));
}

#[test]
fn a_single_name_is_one_to_both() {
    let profile = Profile::workload("spiffe://cluster.local/a", HOUR);
    let issued = authority("cluster.local").issue(&profile).unwrap();
    let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    assert!(is_only_uri(&certificate, "spiffe://cluster.local/a"));
    assert!(!is_only_uri(&certificate, "spiffe://cluster.local/b"));
}

#[test]
fn hex_is_of_lower_case_and_two_digits() {
    assert_eq!(&*hex(&[0x0a, 0xff, 0x00]), "0aff00");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(flips in proptest::collection::vec((0usize..2000, proptest::num::u8::ANY), 1..8)) {
        let authority = authority("cluster.local");
        let issued = authority.issue(&Profile::workload("spiffe://cluster.local/a", HOUR)).unwrap();
        let trust = trust(&[("cluster.local", &authority)], &[], &[]);
        let mut der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap().to_vec();
        let (before, len) = (der.clone(), der.len());
        for (at, byte) in flips {
            der[at % len] = byte;
        }
        let outcome = verify(&der.clone().into(), &[], &trust, Usage::Client, UnixTime::now());
        assert_eq!(outcome.is_ok(), der == before);
    }
}
