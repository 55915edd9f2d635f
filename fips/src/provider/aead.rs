//! Protection of records by AES-GCM, TLS 1.3 (RFC 8446, section 5.2) and TLS 1.2 (RFC 5288).
//!
//! Both use the module's own record keys, which refuse a nonce that doesn't rise: a mistake here can't use one twice.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, Nonce, TlsProtocolId, TlsRecordOpeningKey, TlsRecordSealingKey,
};
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, KeyBlockShape, MessageDecrypter,
    MessageEncrypter, Nonce as TlsNonce, OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload,
    Tls12AeadAlgorithm, Tls13AeadAlgorithm, UnsupportedOperationError, make_tls12_aad, make_tls13_aad,
};
use rustls::{ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion};

use super::approved_mode;

pub(super) static TLS13_AES_128: Tls13Aead = Tls13Aead(&AES_128_GCM);
pub(super) static TLS13_AES_256: Tls13Aead = Tls13Aead(&AES_256_GCM);
pub(super) static TLS12_AES_128: Tls12Aead = Tls12Aead(&AES_128_GCM);
pub(super) static TLS12_AES_256: Tls12Aead = Tls12Aead(&AES_256_GCM);

/// The most plaintext one record may carry (RFC 8446, section 5.1; RFC 5246, section 6.2.1).
const MAX_PLAINTEXT: usize = 1 << 14;
/// Both key sizes have the same tag.
const TAG: usize = 16;
/// TLS 1.2: the part of the nonce that both sides know from the key block, and the part that each record carries.
const IMPLICIT_NONCE: usize = 4;
const EXPLICIT_NONCE: usize = 8;
const NONCE: usize = IMPLICIT_NONCE + EXPLICIT_NONCE;

/// TLS 1.3 records under one algorithm.
pub(super) struct Tls13Aead(&'static Algorithm);

impl Tls13AeadAlgorithm for Tls13Aead {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(Tls13Sealer { key: sealing(self.0, TlsProtocolId::TLS13, key.as_ref()), iv })
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(Tls13Opener { key: opening(self.0, TlsProtocolId::TLS13, key.as_ref()), iv })
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    /// Keys don't leave the module: nothing of Writ hands a connection to the kernel.
    fn extract_keys(&self, _: AeadKey, _: Iv) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Err(UnsupportedOperationError)
    }

    fn fips(&self) -> bool {
        approved_mode()
    }
}

/// TLS 1.2 records under one algorithm.
pub(super) struct Tls12Aead(&'static Algorithm);

impl Tls12AeadAlgorithm for Tls12Aead {
    fn encrypter(&self, key: AeadKey, iv: &[u8], _: &[u8]) -> Box<dyn MessageEncrypter> {
        Box::new(Tls12Sealer {
            key: sealing(self.0, TlsProtocolId::TLS12, key.as_ref()),
            implicit: implicit(iv),
        })
    }

    fn decrypter(&self, key: AeadKey, iv: &[u8]) -> Box<dyn MessageDecrypter> {
        Box::new(Tls12Opener {
            key: opening(self.0, TlsProtocolId::TLS12, key.as_ref()),
            implicit: implicit(iv),
        })
    }

    /// No more of the key block than RFC 5288 takes: the explicit part is the record's number, which needs no offset.
    fn key_block_shape(&self) -> KeyBlockShape {
        KeyBlockShape { enc_key_len: self.0.key_len(), fixed_iv_len: IMPLICIT_NONCE, explicit_nonce_len: 0 }
    }

    fn extract_keys(
        &self,
        _: AeadKey,
        _: &[u8],
        _: &[u8],
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Err(UnsupportedOperationError)
    }

    fn fips(&self) -> bool {
        approved_mode()
    }
}

/// `None` when the module refused the key: then every record fails, since rustls takes no error here.
fn sealing(algorithm: &'static Algorithm, of: TlsProtocolId, key: &[u8]) -> Option<TlsRecordSealingKey> {
    TlsRecordSealingKey::new(algorithm, of, key).ok()
}

fn opening(algorithm: &'static Algorithm, of: TlsProtocolId, key: &[u8]) -> Option<TlsRecordOpeningKey> {
    TlsRecordOpeningKey::new(algorithm, of, key).ok()
}

/// As long as the key block's shape asked for.
fn implicit(iv: &[u8]) -> [u8; IMPLICIT_NONCE] {
    let mut implicit = [0; IMPLICIT_NONCE];
    implicit.copy_from_slice(iv);
    implicit
}

struct Tls13Sealer {
    key: Option<TlsRecordSealingKey>,
    iv: Iv,
}

impl MessageEncrypter for Tls13Sealer {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        number: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let length = self.encrypted_payload_len(message.payload.len());
        let key = self.key.as_mut().ok_or(Error::EncryptError)?;
        let mut payload = PrefixedPayload::with_capacity(length);
        payload.extend_from_chunks(&message.payload);
        payload.extend_from_slice(&message.typ.to_array());
        let nonce = Nonce::assume_unique_for_key(TlsNonce::new(&self.iv, number).0);
        key.seal_in_place_append_tag(nonce, Aad::from(make_tls13_aad(length)), &mut payload)
            .map_err(|_| Error::EncryptError)?;
        // What a record says outside of its protection is fixed: the real type lies inside, the version is of the past.
        Ok(OutboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload))
    }

    fn encrypted_payload_len(&self, plaintext: usize) -> usize {
        plaintext + 1 + TAG
    }
}

struct Tls13Opener {
    key: Option<TlsRecordOpeningKey>,
    iv: Iv,
}

impl MessageDecrypter for Tls13Opener {
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        number: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let key = self.key.as_ref().ok_or(Error::DecryptError)?;
        let length = message.payload.len();
        let nonce = Nonce::assume_unique_for_key(TlsNonce::new(&self.iv, number).0);
        let plaintext = key
            .open_in_place(nonce, Aad::from(make_tls13_aad(length)), &mut message.payload)
            .map_err(|_| Error::DecryptError)?
            .len();
        message.payload.truncate(plaintext);
        // Takes the padding and the type off, and refuses what is too long or has no type.
        message.into_tls13_unpadded_message()
    }
}

struct Tls12Sealer {
    key: Option<TlsRecordSealingKey>,
    implicit: [u8; IMPLICIT_NONCE],
}

impl MessageEncrypter for Tls12Sealer {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        number: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let plaintext = message.payload.len();
        let explicit = number.to_be_bytes();
        let mut payload = PrefixedPayload::with_capacity(self.encrypted_payload_len(plaintext));
        let key = self.key.as_mut().ok_or(Error::EncryptError)?;
        payload.extend_from_slice(&explicit);
        payload.extend_from_chunks(&message.payload);
        let aad = make_tls12_aad(number, message.typ, message.version, plaintext);
        let tag = key
            .seal_in_place_separate_tag(
                tls12_nonce(self.implicit, explicit),
                Aad::from(aad),
                &mut payload.as_mut()[EXPLICIT_NONCE..],
            )
            .map_err(|_| Error::EncryptError)?;
        payload.extend_from_slice(tag.as_ref());
        Ok(OutboundOpaqueMessage::new(message.typ, message.version, payload))
    }

    fn encrypted_payload_len(&self, plaintext: usize) -> usize {
        EXPLICIT_NONCE + plaintext + TAG
    }
}

struct Tls12Opener {
    key: Option<TlsRecordOpeningKey>,
    implicit: [u8; IMPLICIT_NONCE],
}

impl MessageDecrypter for Tls12Opener {
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        number: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let key = self.key.as_ref().ok_or(Error::DecryptError)?;
        let Some(plaintext) = message.payload.len().checked_sub(EXPLICIT_NONCE + TAG) else {
            return Err(Error::DecryptError);
        };
        if plaintext > MAX_PLAINTEXT {
            return Err(Error::PeerSentOversizedRecord);
        }
        let aad = make_tls12_aad(number, message.typ, message.version, plaintext);
        let (explicit, sealed) = message.payload.split_at_mut(EXPLICIT_NONCE);
        let mut of_record = [0; EXPLICIT_NONCE];
        of_record.copy_from_slice(explicit);
        key.open_in_place(tls12_nonce(self.implicit, of_record), Aad::from(aad), sealed)
            .map_err(|_| Error::DecryptError)?;
        Ok(message.into_plain_message_range(EXPLICIT_NONCE..EXPLICIT_NONCE + plaintext))
    }
}

fn tls12_nonce(implicit: [u8; IMPLICIT_NONCE], explicit: [u8; EXPLICIT_NONCE]) -> Nonce {
    let mut nonce = [0; NONCE];
    nonce[..IMPLICIT_NONCE].copy_from_slice(&implicit);
    nonce[IMPLICIT_NONCE..].copy_from_slice(&explicit);
    Nonce::assume_unique_for_key(nonce)
}
