//! [`Trust`]: whom to believe: roots, revocation lists and aliases of one time, and the chains verified under them.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use super::chains::{self, Chains};
use super::proof::{self, Proof};
use super::revocation::List;
use super::roots::{Domain, Roots};
use super::svid::{self, Refusal, Usage, Verified};
use super::{Identity, SpiffeId};
use crate::decision::Reason;

/// Whom to believe. Immutable; any change of roots, lists or aliases makes a new one, of a new generation, that has verified
/// nothing yet.
#[derive(Debug)]
pub struct Trust {
    /// The own trust domain.
    own: Box<str>,
    roots: Arc<Roots>,
    lists: Arc<[Arc<List>]>,
    /// Trust domains to be treated as the own one.
    aliases: Arc<[Box<str>]>,
    generation: u64,
    chains: Chains,
}

impl Trust {
    pub(super) fn new(
        own: &str,
        roots: Roots,
        lists: Arc<[Arc<List>]>,
        aliases: Arc<[Box<str>]>,
        generation: u64,
    ) -> Self {
        Self {
            own: own.into(),
            roots: Arc::new(roots),
            lists,
            aliases,
            generation,
            chains: Chains::default(),
        }
    }

    /// The same roots with other lists and aliases.
    pub(super) fn with(&self, lists: Arc<[Arc<List>]>, aliases: Arc<[Box<str>]>, generation: u64) -> Self {
        Self {
            own: self.own.clone(),
            roots: Arc::clone(&self.roots),
            lists,
            aliases,
            generation,
            chains: Chains::default(),
        }
    }

    /// Whether it means the same as another of these.
    pub(super) fn means(&self, roots: &Roots, lists: &[Arc<List>], aliases: &[Box<str>]) -> bool {
        let digests = |lists: &[Arc<List>]| lists.iter().map(|list| list.digest).collect::<Vec<_>>();
        self.roots.digest() == roots.digest()
            && digests(&self.lists) == digests(lists)
            && *self.aliases == *aliases
    }

    /// Moves whenever roots, revocation lists or aliases change; from 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The roots.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    pub(super) fn lists(&self) -> &[Arc<List>] {
        &self.lists
    }

    pub(super) fn shared_lists(&self) -> Arc<[Arc<List>]> {
        Arc::clone(&self.lists)
    }

    pub(super) fn aliases(&self) -> Arc<[Box<str>]> {
        Arc::clone(&self.aliases)
    }

    /// Verifies a chain, from what is known of it where it was seen before. Errors are never remembered.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<Arc<Verified>, Refusal> {
        svid::bound(intermediates)?;
        let key = chains::key(leaf, intermediates, usage);
        if let Some(known) = self.chains.get(&key)
            && self.holds(&known.proof, now).is_ok()
        {
            return Ok(known);
        }
        let verified = Arc::new(svid::verify(leaf, intermediates, self, usage, now)?);
        self.chains.insert(key, Arc::clone(&verified));
        Ok(verified)
    }

    /// Whether what was proven once still holds at `now`: its root is still one of its trust domain's, no certificate in it is
    /// revoked or out of its dates. No signature is verified for it.
    ///
    /// # Errors
    /// `untrusted-root`, `revoked`, `expired` or `not-yet-valid`.
    pub fn holds(&self, proof: &Proof, now: UnixTime) -> Result<(), Reason> {
        let now = proof::seconds(now);
        if !self.roots.of(&proof.trust_domain).is_some_and(|(_, domain)| domain.has(&proof.root)) {
            return Err(Reason::UntrustedRoot);
        }
        if self.revokes(proof) {
            return Err(Reason::Revoked);
        }
        if proof.has_expired(now) {
            return Err(Reason::Expired);
        }
        if proof.has_begun(now) { Ok(()) } else { Err(Reason::NotYetValid) }
    }

    pub(super) fn revokes(&self, proof: &Proof) -> bool {
        proof.links.iter().any(|link| self.lists.iter().any(|list| list.revokes(link)))
    }

    /// The roots that vouch for names of `trust_domain`: its own, else, of an alias of ours, ours.
    pub(super) fn domain(&self, trust_domain: &str) -> Option<(&Arc<str>, &Domain)> {
        self.roots.of(trust_domain).or_else(|| {
            let ours = self.aliases.iter().any(|alias| **alias == *trust_domain);
            ours.then(|| self.roots.of(&self.own)).flatten()
        })
    }

    /// Whether `found` is who is meant by `expected`, `spiffe://..`: the same, or the same but for a trust domain that is an
    /// alias of ours, as ours is of it.
    pub fn is(&self, expected: &str, found: &SpiffeId) -> bool {
        if expected == found.as_str() {
            return true;
        }
        let ours = |domain: &str| *self.own == *domain || self.aliases.iter().any(|alias| **alias == *domain);
        !self.aliases.is_empty()
            && SpiffeId::try_from(expected).is_ok_and(|expected| {
                expected.path() == found.path() && ours(expected.trust_domain()) && ours(found.trust_domain())
            })
    }

    /// Chains that are remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.chains.len()
    }
}

impl Identity {
    /// Whether a peer that was verified on some connection would still be believed now. Cheap: no signature is verified.
    /// What it depends on besides the time moves [`Identity::trust_generation`].
    ///
    /// # Errors
    /// Why not, as a reason of `service-authentication`.
    pub fn still_trusted(&self, proof: &Proof) -> Result<(), Reason> {
        self.current().trust.holds(proof, UnixTime::now())
    }

    /// Moves whenever roots, revocation lists or trust domain aliases change; from 1.
    pub fn trust_generation(&self) -> u64 {
        self.current().trust.generation
    }

    /// Tells each new generation of trust.
    pub fn subscribe_trust(&self) -> watch::Receiver<u64> {
        self.trust.subscribe()
    }
}

#[cfg(test)]
mod tests;
