//! Key exchange on one curve: P-256, P-384 and X25519, with shares encoded as TLS has them (RFC 8446, section 4.2.8.2).

use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, PrivateKey, UnparsedPublicKey};
use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved};

use super::approved_mode;

pub(super) const X25519: &Curve =
    &Curve { name: NamedGroup::X25519, algorithm: &agreement::X25519, share_len: 32 };
pub(super) const SECP256R1: &Curve =
    &Curve { name: NamedGroup::secp256r1, algorithm: &ECDH_P256, share_len: 65 };
pub(super) const SECP384R1: &Curve =
    &Curve { name: NamedGroup::secp384r1, algorithm: &ECDH_P384, share_len: 97 };

/// The first byte of a point with both coordinates, the only form that TLS 1.3 has (X9.62).
const UNCOMPRESSED: u8 = 4;

/// A curve, and how long its shares are in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Curve {
    pub(super) name: NamedGroup,
    algorithm: &'static agreement::Algorithm,
    pub(super) share_len: usize,
}

impl Curve {
    /// A new key pair.
    pub(super) fn generate(self) -> Result<Exchange, Error> {
        let private = PrivateKey::generate(self.algorithm).map_err(|_| refused())?;
        self.exchange(private)
    }

    fn exchange(self, private: PrivateKey) -> Result<Exchange, Error> {
        let share = private.compute_public_key().map_err(|_| refused())?.as_ref().to_vec();
        Ok(Exchange { curve: self, private, share })
    }

    /// A key pair that a test knows.
    #[cfg(test)]
    pub(super) fn of_private_key(self, private: &[u8]) -> Exchange {
        self.exchange(PrivateKey::from_private_key(self.algorithm, private).unwrap()).unwrap()
    }

    /// Whether a peer's share has the one encoding that TLS allows. The module would take others too: compressed and hybrid
    /// points, and whole SubjectPublicKeyInfos. Whether the point lies on the curve is the module's to say.
    fn is_encoded(self, share: &[u8]) -> bool {
        let is_point = self.name == NamedGroup::X25519 || share.first() == Some(&UNCOMPRESSED);
        share.len() == self.share_len && is_point
    }
}

impl SupportedKxGroup for Curve {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(self.generate()?))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        self.name
    }

    fn fips(&self) -> bool {
        self.name != NamedGroup::X25519 && approved_mode()
    }
}

/// A key pair, waiting for the peer's share.
pub(super) struct Exchange {
    curve: Curve,
    private: PrivateKey,
    share: Vec<u8>,
}

impl Exchange {
    /// The secret that both sides then have, given to `with`.
    pub(super) fn agree<T>(
        &self,
        peer_share: &[u8],
        with: impl FnOnce(&[u8]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if !self.curve.is_encoded(peer_share) {
            return Err(invalid_share());
        }
        // The module refuses what isn't a point of the curve, and an X25519 secret of zeros.
        let peer = UnparsedPublicKey::new(self.curve.algorithm, peer_share);
        agreement::agree(&self.private, peer, invalid_share(), with)
    }

    pub(super) fn share(&self) -> &[u8] {
        &self.share
    }
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer_share: &[u8]) -> Result<SharedSecret, Error> {
        self.agree(peer_share, |secret| Ok(SharedSecret::from(secret)))
    }

    fn pub_key(&self) -> &[u8] {
        &self.share
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn group(&self) -> NamedGroup {
        self.curve.name
    }
}

/// A share that is no share of its group.
pub(super) fn invalid_share() -> Error {
    PeerMisbehaved::InvalidKeyShare.into()
}

/// The module would not make a key.
pub(super) fn refused() -> Error {
    Error::General("the crypto module could not make a key for a key exchange".to_owned())
}
