//! [`Chains`]: chains that were verified under one trust, so that a peer's next handshake costs a digest in place of
//! signatures.
//!
//! A hit spares finding a path and verifying its signatures, and nothing else: dates and revocation are looked at again by who
//! asks, and that the peer holds the leaf's key is proven in each handshake.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls_pki_types::CertificateDer;

use super::svid::{Usage, Verified};

/// Parts, each behind a lock that is held for one look-up.
const SHARDS: usize = 16;
/// Chains in the younger half of a shard: 4096 in all, some 5 MiB.
const HALF_SHARD: usize = 128;

/// Verified chains by the digest of the whole chain as it was presented, and what it was presented for.
pub(super) struct Chains([Mutex<Shard>; SHARDS]);

/// When the younger half is full it becomes the older one, and what was not asked for since is forgotten.
#[derive(Default)]
struct Shard {
    young: HashMap<Key, Arc<Verified>, foldhash::fast::RandomState>,
    old: HashMap<Key, Arc<Verified>, foldhash::fast::RandomState>,
}

/// Digest of a presented chain.
pub(super) type Key = [u8; 32];

impl Chains {
    pub(super) fn get(&self, key: &Key) -> Option<Arc<Verified>> {
        let mut shard = self.shard(key);
        if let Some(known) = shard.young.get(key) {
            return Some(Arc::clone(known));
        }
        let known = shard.old.remove(key)?;
        shard.insert(*key, Arc::clone(&known));
        Some(known)
    }

    pub(super) fn insert(&self, key: Key, verified: Arc<Verified>) {
        self.shard(&key).insert(key, verified);
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        self.0[usize::from(key[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let of = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap();
            shard.young.len() + shard.old.len()
        };
        self.0.iter().map(of).sum()
    }
}

impl Shard {
    fn insert(&mut self, key: Key, verified: Arc<Verified>) {
        if self.young.len() >= HALF_SHARD {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, verified);
    }
}

impl Default for Chains {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl fmt::Debug for Chains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chains")
    }
}

/// What a chain is known by. Lengths keep one chain from reading as another.
pub(super) fn key(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], usage: Usage) -> Key {
    let chain = || std::iter::once(leaf).chain(intermediates);
    let mut bytes = Vec::with_capacity(1 + chain().map(|each| 8 + each.len()).sum::<usize>());
    bytes.push(usage as u8);
    for certificate in chain() {
        bytes.extend_from_slice(&(certificate.len() as u64).to_be_bytes());
        bytes.extend_from_slice(certificate);
    }
    fips::sha256(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_of_the_whole_chain_in_its_order_and_its_use() {
        let der = |bytes: &[u8]| CertificateDer::from(bytes.to_vec());
        let keys = [
            key(&der(b"ab"), &[der(b"c")], Usage::Client),
            key(&der(b"a"), &[der(b"bc")], Usage::Client),
            key(&der(b"ab"), &[], Usage::Client),
            key(&der(b"c"), &[der(b"ab")], Usage::Client),
            key(&der(b"ab"), &[der(b"c")], Usage::Server),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
