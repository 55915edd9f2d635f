//! Records: whatever is changed is refused, nothing too long passes, and no nonce comes twice.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage, PrefixedPayload, Tls12AeadAlgorithm, Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::crypto::tls13::{Hkdf, HkdfExpander};
use rustls::internal::{derive_traffic_iv, derive_traffic_key};
use rustls::{ContentType, Error, ProtocolVersion};

use crate::provider::aead::{TLS12_AES_128, TLS12_AES_256, TLS13_AES_128, TLS13_AES_256};
use crate::provider::kdf::HKDF_SHA256;

const MAX_PLAINTEXT: usize = 16_384;
const VERSIONS: [Records; 4] = [
    Records::Tls13(&TLS13_AES_128),
    Records::Tls13(&TLS13_AES_256),
    Records::Tls12(&TLS12_AES_128),
    Records::Tls12(&TLS12_AES_256),
];

/// A version's records under one algorithm, always with the same key.
#[derive(Clone, Copy)]
enum Records {
    Tls13(&'static dyn Tls13AeadAlgorithm),
    Tls12(&'static dyn Tls12AeadAlgorithm),
}

impl Records {
    fn sealer(self) -> Box<dyn MessageEncrypter> {
        match self {
            Self::Tls13(algorithm) => algorithm.encrypter(self.key(), iv()),
            Self::Tls12(algorithm) => algorithm.encrypter(self.key(), &iv().as_ref()[..4], &[]),
        }
    }

    fn opener(self) -> Box<dyn MessageDecrypter> {
        match self {
            Self::Tls13(algorithm) => algorithm.decrypter(self.key(), iv()),
            Self::Tls12(algorithm) => algorithm.decrypter(self.key(), &iv().as_ref()[..4]),
        }
    }

    fn key(self) -> AeadKey {
        let key_len = match self {
            Self::Tls13(algorithm) => algorithm.key_len(),
            Self::Tls12(algorithm) => algorithm.key_block_shape().enc_key_len,
        };
        let of_that_length: &dyn Tls13AeadAlgorithm =
            if key_len == 16 { &TLS13_AES_128 } else { &TLS13_AES_256 };
        derive_traffic_key(&*expander(), of_that_length)
    }

    /// The bytes behind the header.
    fn seal(self, sealer: &mut dyn MessageEncrypter, number: u64, plaintext: &[u8]) -> Vec<u8> {
        sealer.encrypt(message(plaintext), number).unwrap().encode()[5..].to_vec()
    }

    fn open(self, number: u64, mut sealed: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.open_as(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, number, &mut sealed)
    }

    fn open_as(
        self,
        typ: ContentType,
        version: ProtocolVersion,
        number: u64,
        sealed: &mut [u8],
    ) -> Result<Vec<u8>, Error> {
        let message = InboundOpaqueMessage::new(typ, version, sealed);
        self.opener().decrypt(message, number).map(|opened| opened.payload.to_vec())
    }

    /// Beyond the plaintext: the type or the explicit nonce, and the tag.
    fn overhead(self) -> usize {
        if matches!(self, Self::Tls13(_)) { 17 } else { 24 }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_sealed_opens(
        version in 0..4_usize,
        plaintext in proptest::collection::vec(any::<u8>(), 0..600),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
        number in 0..u64::MAX,
    ) {
        let records = VERSIONS[version];
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(plaintext.len() + 1)).collect();
        cuts.extend([0, plaintext.len()]);
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|ends| &plaintext[ends[0]..ends[1]]).collect();
        let mut message = message(&[]);
        message.payload = OutboundChunks::new(&chunks);
        let sealed = records.sealer().encrypt(message, number).unwrap().encode()[5..].to_vec();
        prop_assert_eq!(sealed.len(), plaintext.len() + records.overhead());
        prop_assert_eq!(records.open(number, sealed).unwrap(), plaintext);
    }

    #[test]
    fn a_changed_record_is_refused(
        version in 0..4_usize,
        plaintext in proptest::collection::vec(any::<u8>(), 0..100),
        at in any::<prop::sample::Index>(),
        with in 1..=255_u8,
        number in 0..1_000_u64,
    ) {
        let records = VERSIONS[version];
        let mut sealed = records.seal(&mut *records.sealer(), number, &plaintext);
        let at = at.index(sealed.len());
        sealed[at] ^= with;
        prop_assert_eq!(records.open(number, sealed), Err(Error::DecryptError));
    }

    #[test]
    fn bytes_that_nobody_sealed_are_refused(
        version in 0..4_usize,
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        prop_assert_eq!(VERSIONS[version].open(0, bytes), Err(Error::DecryptError));
    }
}

#[test]
fn every_bit_counts() {
    for records in VERSIONS {
        let sealed = records.seal(&mut *records.sealer(), 7, b"hello");
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(records.open(7, changed), Err(Error::DecryptError), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert_eq!(records.open(7, sealed[..length].to_vec()), Err(Error::DecryptError));
        }
        assert_eq!(records.open(7, [&sealed[..], &[0]].concat()), Err(Error::DecryptError));
    }
}

#[test]
fn records_out_of_order_are_refused() {
    for records in VERSIONS {
        let mut sealer = records.sealer();
        let first = records.seal(&mut *sealer, 0, b"first");
        let second = records.seal(&mut *sealer, 1, b"second");
        assert_eq!(records.open(1, first.clone()), Err(Error::DecryptError));
        assert_eq!(records.open(0, second.clone()), Err(Error::DecryptError));
        assert_eq!(records.open(0, first).unwrap(), b"first");
        assert_eq!(records.open(1, second).unwrap(), b"second");
    }
}

#[test]
fn tls12_protects_the_type_and_the_version() {
    for records in &VERSIONS[2..] {
        let sealed = records.seal(&mut *records.sealer(), 0, b"hello");
        for (typ, version) in [
            (ContentType::Handshake, ProtocolVersion::TLSv1_2),
            (ContentType::Alert, ProtocolVersion::TLSv1_2),
            (ContentType::ApplicationData, ProtocolVersion::TLSv1_1),
        ] {
            let opened = records.open_as(typ, version, 0, &mut sealed.clone());
            assert_eq!(opened, Err(Error::DecryptError), "{typ:?} {version:?}");
        }
    }
}

#[test]
fn a_record_carries_2_to_the_14_bytes_and_no_more() {
    for records in VERSIONS {
        let largest = vec![7; MAX_PLAINTEXT];
        let sealed = records.seal(&mut *records.sealer(), 0, &largest);
        assert_eq!(records.open(0, sealed).unwrap(), largest);
        for excess in [1, 2, 255, 256] {
            let sealed = records.seal(&mut *records.sealer(), 0, &vec![7; MAX_PLAINTEXT + excess]);
            assert_eq!(records.open(0, sealed), Err(Error::PeerSentOversizedRecord), "{excess} too many");
        }
    }
}

/// TLS 1.3 hides the length behind zeros, and a type must stand before them.
#[test]
fn padding_is_taken_off_and_nothing_but_padding_is_refused() {
    for records in &VERSIONS[..2] {
        // Zeros at the end of a plaintext are data: the type stands behind them.
        let sealed = records.seal(&mut *records.sealer(), 0, b"data\0\0");
        assert_eq!(records.open(0, sealed).unwrap(), b"data\0\0");
        let padded = records.seal_inner(b"data\x17\0\0\0");
        assert_eq!(records.open(0, padded).unwrap(), b"data");
        for nothing in [&b""[..], b"\0", b"\0\0\0\0"] {
            assert!(records.open(0, records.seal_inner(nothing)).is_err(), "{nothing:?}");
        }
        // The largest with padding is as long as it may be, padding included.
        let mut inner = vec![0; MAX_PLAINTEXT + 1];
        inner[0] = 0x17;
        assert_eq!(records.open(0, records.seal_inner(&inner)).unwrap(), b"");
        inner.push(0);
        assert_eq!(records.open(0, records.seal_inner(&inner)), Err(Error::PeerSentOversizedRecord));
    }
}

impl Records {
    /// A TLS 1.3 record with this inner plaintext, type and padding included, sealed by the module alone.
    fn seal_inner(self, inner: &[u8]) -> Vec<u8> {
        use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
        let key = self.key();
        let algorithm = if key.as_ref().len() == 16 { &AES_128_GCM } else { &AES_256_GCM };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).unwrap());
        let length = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let mut sealed = inner.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(iv().as_ref()).unwrap();
        let aad = Aad::from([0x17, 3, 3, length[0], length[1]]);
        key.seal_in_place_append_tag(nonce, aad, &mut sealed).unwrap();
        sealed
    }
}

#[test]
fn tls12_sends_the_records_number_as_nonce() {
    for records in &VERSIONS[2..] {
        let mut sealer = records.sealer();
        let mut seen = BTreeSet::new();
        for number in [0_u64, 1, 2, 255, 256, 1 << 32, u64::MAX - 1] {
            let sealed = records.seal(&mut *sealer, number, b"hello");
            assert_eq!(sealed[..8], number.to_be_bytes());
            assert!(seen.insert(sealed[..8].to_vec()));
        }
    }
}

#[test]
fn a_nonce_is_never_used_twice() {
    for records in VERSIONS {
        let mut sealer = records.sealer();
        for number in 0..4 {
            sealer.encrypt(message(b"hello"), number).unwrap();
        }
        for number in [3, 2, 0] {
            assert!(
                matches!(sealer.encrypt(message(b"hello"), number), Err(Error::EncryptError)),
                "{number}"
            );
        }
        // The same plaintext under the next number looks different.
        let (one, other) = (records.seal(&mut *sealer, 4, b"hello"), records.seal(&mut *sealer, 5, b"hello"));
        assert_ne!(one[8..], other[8..]);
    }
}

#[test]
fn keys_do_not_leave() {
    for records in VERSIONS {
        let extracted = match records {
            Records::Tls13(algorithm) => algorithm.extract_keys(records.key(), iv()),
            Records::Tls12(algorithm) => algorithm.extract_keys(records.key(), &[0; 4], &[]),
        };
        assert!(matches!(extracted, Err(UnsupportedOperationError)));
    }
}

#[test]
fn a_key_of_the_wrong_length_seals_and_opens_nothing() {
    let mut sealer = Tls13AeadAlgorithm::encrypter(&TLS13_AES_128, AeadKey::from([1; 32]), iv());
    assert!(matches!(sealer.encrypt(message(b"hello"), 0), Err(Error::EncryptError)));
    let mut opener = Tls12AeadAlgorithm::decrypter(&TLS12_AES_128, AeadKey::from([1; 32]), &[0; 4]);
    let mut sealed = PrefixedPayload::from(&[0; 40]);
    let message =
        InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, sealed.as_mut());
    assert!(matches!(opener.decrypt(message, 0), Err(Error::DecryptError)));
}

fn message(plaintext: &[u8]) -> OutboundPlainMessage<'_> {
    OutboundPlainMessage {
        typ: ContentType::ApplicationData,
        version: ProtocolVersion::TLSv1_2,
        payload: OutboundChunks::Single(plaintext),
    }
}

fn expander() -> Box<dyn HkdfExpander> {
    HKDF_SHA256.extract_from_secret(None, b"a secret")
}

fn iv() -> Iv {
    derive_traffic_iv(&*expander())
}
