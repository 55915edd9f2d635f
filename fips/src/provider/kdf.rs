//! Digests, HKDF for the key schedule of TLS 1.3 (RFC 5869), and the PRF of TLS 1.2 (RFC 5246, section 5).

use aws_lc_rs::{digest, hkdf, hmac, tls_prf};
use rustls::Error;
use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::tls12::Prf;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::crypto::{ActiveKeyExchange, hmac as tls_hmac};
use rustls::version::TLS12;

use super::{approved_mode, module_failed};

pub(super) static SHA256: Digest = Digest(&digest::SHA256, HashAlgorithm::SHA256);
pub(super) static SHA384: Digest = Digest(&digest::SHA384, HashAlgorithm::SHA384);
pub(super) static HKDF_SHA256: Tls13Hkdf = Tls13Hkdf(hkdf::HKDF_SHA256, 32);
pub(super) static HKDF_SHA384: Tls13Hkdf = Tls13Hkdf(hkdf::HKDF_SHA384, 48);
pub(super) static PRF_SHA256: Tls12Prf = Tls12Prf(&tls_prf::P_SHA256);
pub(super) static PRF_SHA384: Tls12Prf = Tls12Prf(&tls_prf::P_SHA384);

/// A digest, for transcripts.
pub(super) struct Digest(&'static digest::Algorithm, HashAlgorithm);

impl Hash for Digest {
    fn start(&self) -> Box<dyn Context> {
        Box::new(Transcript(digest::Context::new(self.0)))
    }

    fn hash(&self, data: &[u8]) -> Output {
        Output::new(digest::digest(self.0, data).as_ref())
    }

    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.1
    }

    fn fips(&self) -> bool {
        approved_mode()
    }
}

struct Transcript(digest::Context);

impl Context for Transcript {
    fn fork_finish(&self) -> Output {
        Output::new(self.0.clone().finish().as_ref())
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Self(self.0.clone()))
    }

    fn finish(self: Box<Self>) -> Output {
        Output::new(self.0.finish().as_ref())
    }

    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }
}

/// HKDF by the module, not HMAC put together here: so that the module knows it for what it is. With its digest's length.
pub(super) struct Tls13Hkdf(hkdf::Algorithm, usize);

impl Tls13Hkdf {
    /// A salt or secret that isn't there: zeros, as many as the digest is long.
    fn zeros(&self) -> &'static [u8] {
        &[0; OkmBlock::MAX_LEN][..self.1]
    }
}

impl Hkdf for Tls13Hkdf {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        self.extract_from_secret(salt, self.zeros())
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        let salt = hkdf::Salt::new(self.0, salt.unwrap_or(self.zeros()));
        Box::new(Expander { key: salt.extract(secret), digest_len: self.1 })
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(Expander { key: hkdf::Prk::new_less_safe(self.0, okm.as_ref()), digest_len: self.1 })
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> tls_hmac::Tag {
        let key = hmac::Key::new(self.0.hmac_algorithm(), key.as_ref());
        tls_hmac::Tag::new(hmac::sign(&key, message).as_ref())
    }

    fn fips(&self) -> bool {
        approved_mode()
    }
}

struct Expander {
    key: hkdf::Prk,
    digest_len: usize,
}

impl HkdfExpander for Expander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        let expanded = self.key.expand(info, Length(output.len())).map_err(|_| OutputLengthError)?;
        expanded.fill(output).map_err(|_| OutputLengthError)
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        let mut block = [0; OkmBlock::MAX_LEN];
        let block = &mut block[..self.digest_len];
        if self.expand_slice(info, block).is_err() {
            module_failed("HKDF-Expand");
        }
        OkmBlock::new(block)
    }

    fn hash_len(&self) -> usize {
        self.digest_len
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// The PRF by the module's own, which knows the label of the extended master secret for an approved one.
pub(super) struct Tls12Prf(&'static tls_prf::Algorithm);

impl Tls12Prf {
    fn derive(&self, output: &mut [u8], secret: &[u8], label: &[u8], seed: &[u8]) -> Result<(), Error> {
        let derived = tls_prf::Secret::new(self.0, secret)
            .and_then(|secret| secret.derive(label, seed, output.len()))
            .map_err(|_| Error::General("the crypto module refused the TLS 1.2 PRF".to_owned()))?;
        output.copy_from_slice(derived.as_ref());
        Ok(())
    }
}

impl Prf for Tls12Prf {
    fn for_key_exchange(
        &self,
        output: &mut [u8; 48],
        exchange: Box<dyn ActiveKeyExchange>,
        peer_share: &[u8],
        label: &[u8],
        seed: &[u8],
    ) -> Result<(), Error> {
        let secret = exchange.complete_for_tls_version(peer_share, &TLS12)?;
        self.derive(output, secret.secret_bytes(), label, seed)
    }

    fn for_secret(&self, output: &mut [u8], secret: &[u8], label: &[u8], seed: &[u8]) {
        if self.derive(output, secret, label, seed).is_err() {
            module_failed("the TLS 1.2 PRF");
        }
    }

    fn fips(&self) -> bool {
        approved_mode()
    }
}
