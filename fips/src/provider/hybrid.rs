//! Hybrid key exchange: a curve beside ML-KEM-768, so that the secret holds while either does (draft-ietf-tls-ecdhe-mlkem).

use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use rustls::crypto::{ActiveKeyExchange, CompletedKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, ProtocolVersion};

use super::approved_mode;
use super::kx::{self, Curve, Exchange, invalid_share, refused};

/// ML-KEM goes first: in the shares and in the secret.
pub(super) const X25519MLKEM768: &Hybrid =
    &Hybrid { name: NamedGroup::X25519MLKEM768, curve: *kx::X25519, curve_first: false };
/// The curve goes first: in the shares and in the secret.
pub(super) const SECP256R1MLKEM768: &Hybrid =
    &Hybrid { name: NamedGroup::secp256r1MLKEM768, curve: *kx::SECP256R1, curve_first: true };

/// Lengths in bytes of what a client and a server send, and of each part of the secret (FIPS 203, table 3).
const ENCAPSULATION_KEY: usize = 1184;
const CIPHERTEXT: usize = 1088;

/// A curve with ML-KEM-768, and which of the two stands first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hybrid {
    name: NamedGroup,
    curve: Curve,
    curve_first: bool,
}

impl Hybrid {
    /// `curve` and `kem` in the order of the group.
    fn join(self, curve: &[u8], kem: &[u8]) -> Vec<u8> {
        let (first, second) = if self.curve_first { (curve, kem) } else { (kem, curve) };
        // With its whole capacity at once, so that no piece of a secret stays behind in an outgrown buffer.
        let mut joined = Vec::with_capacity(first.len() + second.len());
        joined.extend_from_slice(first);
        joined.extend_from_slice(second);
        joined
    }

    /// The curve's part and ML-KEM's, of a share whose ML-KEM part is `kem_len` long.
    fn split(self, share: &[u8], kem_len: usize) -> Result<(&[u8], &[u8]), Error> {
        if share.len() != self.curve.share_len + kem_len {
            return Err(invalid_share());
        }
        Ok(if self.curve_first {
            share.split_at(self.curve.share_len)
        } else {
            let (kem, curve) = share.split_at(kem_len);
            (curve, kem)
        })
    }

    fn begin(self, curve: Exchange, kem: DecapsulationKey) -> Result<HybridExchange, Error> {
        let encapsulation = kem.encapsulation_key().map_err(|_| refused())?;
        let encapsulation = encapsulation.key_bytes().map_err(|_| refused())?;
        let share = self.join(curve.share(), encapsulation.as_ref());
        Ok(HybridExchange { hybrid: self, curve, kem, share })
    }

    /// A client's keys that a test knows.
    #[cfg(test)]
    pub(super) fn of_private_keys(self, curve: &[u8], kem: &[u8]) -> Box<dyn ActiveKeyExchange> {
        let kem = DecapsulationKey::new(&ML_KEM_768, kem).unwrap();
        let encapsulation = [0; ENCAPSULATION_KEY];
        let curve = self.curve.of_private_key(curve);
        // A decapsulation key alone doesn't give its encapsulation key back: the share is only as long as one.
        let share = self.join(curve.share(), &encapsulation);
        Box::new(HybridExchange { hybrid: self, curve, kem, share })
    }
}

impl SupportedKxGroup for Hybrid {
    /// A client's side.
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let kem = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| refused())?;
        Ok(Box::new(self.begin(self.curve.generate()?, kem)?))
    }

    /// A server's side: what it sends depends on what the client sent.
    fn start_and_complete(&self, client_share: &[u8]) -> Result<CompletedKeyExchange, Error> {
        let (curve_share, encapsulation) = self.split(client_share, ENCAPSULATION_KEY)?;
        let curve = self.curve.generate()?;
        let (ciphertext, kem_secret) = EncapsulationKey::new(&ML_KEM_768, encapsulation)
            .map_err(|_| invalid_share())?
            .encapsulate()
            .map_err(|_| invalid_share())?;
        let secret = curve.agree(curve_share, |curve_secret| {
            Ok(SharedSecret::from(self.join(curve_secret, kem_secret.as_ref())))
        })?;
        Ok(CompletedKeyExchange {
            group: self.name,
            pub_key: self.join(curve.share(), ciphertext.as_ref()),
            secret,
        })
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        self.name
    }

    /// Approved by either part: ML-KEM (FIPS 203), P-256 (SP 800-56A); the other counts as data beside it (SP 800-56C r2).
    fn fips(&self) -> bool {
        approved_mode()
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}

/// A client's keys, waiting for the server's share.
struct HybridExchange {
    hybrid: Hybrid,
    curve: Exchange,
    kem: DecapsulationKey,
    share: Vec<u8>,
}

impl ActiveKeyExchange for HybridExchange {
    fn complete(self: Box<Self>, server_share: &[u8]) -> Result<SharedSecret, Error> {
        let (curve_share, ciphertext) = self.hybrid.split(server_share, CIPHERTEXT)?;
        let kem_secret = self.kem.decapsulate(Ciphertext::from(ciphertext)).map_err(|_| invalid_share())?;
        self.curve.agree(curve_share, |curve_secret| {
            Ok(SharedSecret::from(self.hybrid.join(curve_secret, kem_secret.as_ref())))
        })
    }

    /// The curve's part on its own, for a server that knows only it: rustls sends it as a second share.
    fn hybrid_component(&self) -> Option<(NamedGroup, &[u8])> {
        Some((self.hybrid.curve.name, self.curve.share()))
    }

    fn complete_hybrid_component(self: Box<Self>, server_share: &[u8]) -> Result<SharedSecret, Error> {
        Box::new(self.curve).complete(server_share)
    }

    fn pub_key(&self) -> &[u8] {
        &self.share
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn group(&self) -> NamedGroup {
        self.hybrid.name
    }
}
