//! Session tickets of servers (RFC 8446 section 4.6.1, RFC 5077): sealed with AES-256-GCM under keys that never leave the
//! process and are replaced as they age.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use rustls::crypto::GetRandomFailed;
use rustls::server::ProducesTickets;
use rustls::ticketer::TicketRotator;

use crate::{RandomFailed, random};

/// For so long a key seals tickets, in seconds; for as long again it opens them.
const KEY_LIFETIME: u32 = 6 * 3600;
const KEY: usize = 32;
/// Names the key in a ticket, so that one of another key costs nothing to refuse.
const NAME: usize = 16;

/// Tickets under keys of their own: nobody else's tickets are taken.
///
/// # Errors
/// When there is no randomness.
pub fn tickets() -> Result<Arc<dyn ProducesTickets>, RandomFailed> {
    let rotator = TicketRotator::new(KEY_LIFETIME, || match Sealer::generate() {
        Ok(sealer) => Ok(Box::new(sealer)),
        Err(RandomFailed) => Err(GetRandomFailed),
    });
    rotator.map(|rotator| Arc::new(rotator) as Arc<dyn ProducesTickets>).map_err(|_| RandomFailed)
}

/// One key.
struct Sealer {
    name: [u8; NAME],
    key: RandomizedNonceKey,
}

impl Sealer {
    fn generate() -> Result<Self, RandomFailed> {
        let (mut name, mut key) = ([0; NAME], [0; KEY]);
        random(&mut name)?;
        random(&mut key)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| RandomFailed)?;
        Ok(Self { name, key })
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

impl ProducesTickets for Sealer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        KEY_LIFETIME
    }

    /// `name || nonce || sealed`.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = plain.to_vec();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(&self.name), &mut sealed).ok()?;
        Some([&self.name, nonce.as_ref().as_slice(), &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        if name != self.name {
            return None;
        }
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self.key.open_in_place(nonce, Aad::from(&self.name), &mut sealed).ok()?.len();
        sealed.truncate(plain);
        Some(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sealed_here_is_opened() {
        let (own, other) = (tickets().unwrap(), tickets().unwrap());
        let ticket = own.encrypt(b"session").unwrap();
        assert_eq!(own.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert!(ticket.windows(7).all(|window| window != b"session"));
        assert_ne!(own.encrypt(b"session").unwrap(), ticket, "every nonce is another");
        assert_eq!(other.decrypt(&ticket), None);
        for at in 0..ticket.len() {
            let mut tampered = ticket.clone();
            tampered[at] ^= 1;
            assert_eq!(own.decrypt(&tampered), None, "byte {at}");
            assert_eq!(own.decrypt(&ticket[..at]), None, "cut at {at}");
        }
    }
}
