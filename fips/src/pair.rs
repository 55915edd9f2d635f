//! Whether a private key belongs to a certificate.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Reads a certificate with its intermediates, and the key that belongs to it.
///
/// # Errors
/// What can't be read, or that they don't belong together.
pub fn read_pair(chain_pem: &str, key_pem: &str) -> Result<CertifiedKey, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("certificate: {error}"))?;
    if chain.is_empty() {
        return Err("there is no certificate in it".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| format!("key: {error}"))?;
    CertifiedKey::from_der(chain, key, &crate::provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => "the key is not that of the certificate".to_owned(),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ca::{Authority, Profile};

    #[test]
    fn a_key_of_another_certificate_is_told_apart() {
        let authority = Authority::generate("cluster.local", Duration::from_secs(60)).unwrap();
        let issue = || authority.issue(&Profile::server(&["a.example"], Duration::from_secs(60))).unwrap();
        let (one, other) = (issue(), issue());
        assert!(read_pair(&one.certificate_pem, &one.key_pem).is_ok());
        let refused = |chain: &str, key: &str| read_pair(chain, key).err().unwrap();
        assert_eq!(refused(&one.certificate_pem, &other.key_pem), "the key is not that of the certificate");
        assert_eq!(refused("", &one.key_pem), "there is no certificate in it");
        assert!(refused(&one.certificate_pem, "").starts_with("key: "));
    }
}
