//! The only `CryptoProvider`, one for both flavours: AES-GCM suites, ECDHE and its post-quantum hybrids, by the linked module.
//!
//! It stands on rustls' public traits and on safe calls of the module. It is written here because rustls' own
//! provider needs an aws-lc-rs that no longer links the module with a certificate; what it offers is the same in both
//! flavours but for the order of the groups and for X25519, which is not approved.

mod aead;
mod hybrid;
mod kdf;
mod kx;
mod sign;
mod suites;
pub(crate) mod verify;

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use aws_lc_rs::rand;
use rustls::crypto::{CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, SupportedKxGroup};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;

/// The provider that every `ServerConfig` and `ClientConfig` is built with. One per process.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(build(approved_mode()))).clone()
}

/// Whether the linked module runs in its approved mode. Asked of the module: a build flag would only say what was meant.
pub(crate) fn approved_mode() -> bool {
    aws_lc_rs::try_fips_mode().is_ok()
}

fn build(approved: bool) -> CryptoProvider {
    CryptoProvider {
        cipher_suites: suites::ALL.to_vec(),
        kx_groups: if approved { APPROVED_GROUPS } else { STANDARD_GROUPS }.to_vec(),
        signature_verification_algorithms: verify::ALGORITHMS,
        secure_random: &Module,
        key_provider: &Module,
    }
}

/// A ClientHello carries shares for the hybrid that stands first and, taken from inside it, for its classical part, so
/// that neither kind of peer costs another round trip.
const STANDARD_GROUPS: &[&dyn SupportedKxGroup] =
    &[hybrid::X25519MLKEM768, kx::X25519, kx::SECP256R1, kx::SECP384R1, hybrid::SECP256R1MLKEM768];

/// Without X25519, which is approved only inside the hybrid; so the hybrid that contains P-256 goes first.
const APPROVED_GROUPS: &[&dyn SupportedKxGroup] =
    &[hybrid::SECP256R1MLKEM768, kx::SECP256R1, hybrid::X25519MLKEM768, kx::SECP384R1];

/// What the module does without a state of its own: random bytes and loading keys.
#[derive(Debug)]
struct Module;

impl SecureRandom for Module {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        rand::fill(bytes).map_err(|_| GetRandomFailed)
    }

    fn fips(&self) -> bool {
        approved_mode()
    }
}

impl KeyProvider for Module {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        sign::load(&key)
    }

    fn fips(&self) -> bool {
        approved_mode()
    }
}

/// The module refused an operation that can't fail while it is sound, at a place where rustls takes no error. A module in
/// its error state must give out nothing more, and there is nothing to go on with.
fn module_failed(operation: &str) -> ! {
    eprintln!("writ: the crypto module failed at {operation}; stopping");
    std::process::abort()
}
