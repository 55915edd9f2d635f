//! Revocation lists (RFC 5280, section 5) as far as anybody can tell who knows no authority: what is one, and what can be used.

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use webpki::{BorrowedCertRevocationList, OwnedCertRevocationList};

use crate::approve;

/// The lists in a text, PEM. What holds one that can't be used is refused whole.
///
/// # Errors
/// There is none in it, or one is malformed, a delta or an indirect one, or signed in a way that nobody here verifies; by its
/// number where there are several.
pub fn lists_in(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| error.to_string())?;
    if all.is_empty() {
        return Err("no revocation list in it".to_owned());
    }
    for (number, list) in (1..).zip(&all) {
        read(list).map_err(|why| if all.len() == 1 { why } else { format!("list {number}: {why}") })?;
    }
    Ok(all)
}

/// Reads one list, DER.
///
/// # Errors
/// As those of [`lists_in`].
pub fn read(der: &[u8]) -> Result<OwnedCertRevocationList, String> {
    let list = BorrowedCertRevocationList::from_der(der).and_then(|list| list.to_owned());
    let list = list.map_err(|error| error.to_string())?;
    // Nobody could be found to have signed it, and so nobody to be on it.
    match approve::unknown_signature(der) {
        Some(algorithm) => Err(format!("it is signed by {algorithm}, which is not verified here")),
        None => Ok(list),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::ca::{Authority, KeyType};

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn one_that_can_not_be_used_refuses_them_all() {
        let authority = Authority::generate_with(KeyType::Rsa2048, "a.example", HOUR).unwrap();
        let list = authority.revocation_list(&[b"\x41"], SystemTime::now() + HOUR).unwrap();
        assert_eq!(lists_in(list.as_bytes()).unwrap().len(), 1);
        let both = format!("{list}{list}");
        assert_eq!(lists_in(both.as_bytes()).unwrap().len(), 2);

        assert_eq!(lists_in(b"").unwrap_err(), "no revocation list in it");
        assert!(lists_in(list.replace("END X509", "END").as_bytes()).is_err());
        let der = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
        let pem = |der: &[u8]| pem::encode(&pem::Pem::new("X509 CRL", der));
        let cut = format!("{list}{}", pem(&der[..der.len() / 2]));
        assert!(lists_in(cut.as_bytes()).unwrap_err().starts_with("list 2: "));
        // sha256WithRSAEncryption becomes sha1WithRSAEncryption.
        let of_sha256 = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
        let mut sha1 = der.to_vec();
        for at in (0..der.len()).filter(|&at| der[at..].starts_with(of_sha256)) {
            sha1[at + of_sha256.len() - 1] = 0x05;
        }
        let why = lists_in(pem(&sha1).as_bytes()).unwrap_err();
        assert_eq!(why, "it is signed by sha1WithRSAEncryption, which is not verified here");
    }
}
