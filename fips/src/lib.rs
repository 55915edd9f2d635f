//! Ground floor: the only crate that names a crypto backend.

#![forbid(unsafe_code)]

pub mod approve;
mod attest;
pub mod ca;
mod der;
mod digest;
pub mod jws;
mod live;
mod pair;
mod provider;
mod random;
pub mod revocation;
mod tickets;

pub use attest::{Attestation, Offered, SelfTest, Validation, group_name, suite_name};
pub use digest::sha256;
pub use live::{
    LiveConfig, NotApproved, client, live_configs, note_client, note_server, require, require_live, required,
    server,
};
pub use pair::read_pair;
pub use provider::provider;
pub use random::{RandomFailed, random, warm};
pub use tickets::tickets;

use std::sync::OnceLock;

/// What the process runs now: the module's self-test is run again where it can be asked for.
pub fn attest() -> Attestation {
    Attestation::of(&provider())
}

/// Makes the process use this crate's provider and says what it runs. The first call does the work, later ones return
/// the same answer.
pub fn install() -> &'static Attestation {
    static INSTALLED: OnceLock<Attestation> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let provider = provider();
        // Every configuration names the provider itself. This one is for libraries that fall back on the process's;
        // if one is there already, it stays, and what it may be is not what is attested.
        let _ = rustls::crypto::CryptoProvider::install_default((*provider).clone());
        Attestation::of(&provider)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn installing_twice_gives_the_same_attestation() {
        assert!(std::ptr::eq(super::install(), super::install()));
        assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    }
}
