//! Known answers: RFC 5869, RFC 8448, the PRF of TLS 1.2, and records sealed by another implementation.

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage,
};
use rustls::crypto::hash::Hash;
use rustls::crypto::tls12::Prf;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock};
use rustls::internal::{derive_traffic_iv, derive_traffic_key};
use rustls::{ContentType, ProtocolVersion};

use super::hex;
use crate::provider::kdf::{HKDF_SHA256, HKDF_SHA384, PRF_SHA256, PRF_SHA384, SHA256, SHA384};
use crate::provider::{aead, kx};

#[test]
fn hkdf_of_rfc_5869() {
    struct Case {
        secret: Vec<u8>,
        salt: Option<Vec<u8>>,
        info: Vec<u8>,
        output: &'static str,
    }
    let cases = [
        Case {
            secret: vec![0x0b; 22],
            salt: Some((0x00..=0x0c).collect()),
            info: (0xf0..=0xf9).collect(),
            output: "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        },
        Case {
            secret: (0x00..=0x4f).collect(),
            salt: Some((0x60..=0xaf).collect()),
            info: (0xb0..=0xff).collect(),
            output: "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09
                     da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        },
        Case {
            secret: vec![0x0b; 22],
            salt: Some(Vec::new()),
            info: Vec::new(),
            output: "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        },
        // The same: a salt that isn't there is one of zeros.
        Case {
            secret: vec![0x0b; 22],
            salt: None,
            info: Vec::new(),
            output: "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        },
    ];
    for (number, case) in cases.iter().enumerate() {
        let expected = hex(case.output);
        let expander = HKDF_SHA256.extract_from_secret(case.salt.as_deref(), &case.secret);
        let mut output = vec![0; expected.len()];
        // In two pieces: they count as one.
        let (first, second) = case.info.split_at(case.info.len() / 2);
        expander.expand_slice(&[first, second], &mut output).unwrap();
        assert_eq!(output, expected, "case {}", number + 1);
    }
}

#[test]
fn hkdf_expands_to_255_blocks_and_no_further() {
    for (hkdf, length) in [(&HKDF_SHA256, 32), (&HKDF_SHA384, 48)] {
        let expander = hkdf.extract_from_secret(None, b"secret");
        assert_eq!(expander.hash_len(), length);
        assert!(expander.expand_slice(&[], &mut vec![0; 255 * length]).is_ok());
        assert!(expander.expand_slice(&[], &mut vec![0; 255 * length + 1]).is_err());
        let block = expander.expand_block(&[b"info"]);
        assert_eq!(block.as_ref().len(), length);
        let mut slice = vec![0; length];
        expander.expand_slice(&[b"in", b"fo"], &mut slice).unwrap();
        assert_eq!(block.as_ref(), slice);
    }
}

/// RFC 8448, section 3: from the keys of both sides to a record's bytes.
#[test]
fn key_schedule_and_record_of_rfc_8448() {
    let client =
        kx::X25519.of_private_key(&hex("49af42ba7f7994852d713ef2784bcbcaa7911de26adc5642cb634540e7ea5005"));
    assert_eq!(client.share(), hex("99381de560e4bd43d23d8e435a7dbafeb3c06e51c13cae4d5413691e529aaf2c"));
    let server_share = hex("c9828876112095fe66762bdbf7c672e156d6cc253b833df1dd69b1b04e751f0f");
    let shared = client.agree(&server_share, |secret| Ok(secret.to_vec())).unwrap();

    let early = HKDF_SHA256.extract_from_zero_ikm(None);
    let no_message = SHA256.hash(b"");
    let salt = expand_label(&*early, "derived", no_message.as_ref());
    assert_eq!(salt, hex("6f2615a108c702c5678f54fc9dbab69716c076189c48250cebeac3576c3611ba"));

    let handshake = HKDF_SHA256.extract_from_secret(Some(&salt), &shared);
    let hello_hash = hex("860c06edc07858ee8e78f0e7428c58edd6b43f2ca3e6e95f02ed063cf0e1cad8");
    let server_secret = expand_label(&*handshake, "s hs traffic", &hello_hash);
    assert_eq!(server_secret, hex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38"));
    let client_secret = expand_label(&*handshake, "c hs traffic", &hello_hash);
    assert_eq!(client_secret, hex("b3eddb126e067f35a780b3abf45e2d8f3b1a950738f52e9600746a0e27a55a21"));

    let salt = expand_label(&*handshake, "derived", no_message.as_ref());
    assert_eq!(salt, hex("43de77e0c77713859a944db9db2590b53190a65b3ee2e4f12dd7a0bb7ce254b4"));
    let master = HKDF_SHA256.extract_from_zero_ikm(Some(&salt));
    let finished_hash = hex("9608102a0f1ccc6db6250b7b7e417b1a000eaada3daae4777a7686c9ff83df13");
    let secret = expand_label(&*master, "c ap traffic", &finished_hash);
    assert_eq!(secret, hex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5"));

    let expander = HKDF_SHA256.expander_for_okm(&OkmBlock::new(&secret));
    let key = || derive_traffic_key(&*expander, &aead::TLS13_AES_128);
    let iv = || derive_traffic_iv(&*expander);
    assert_eq!(key().as_ref(), hex("17422dda596ed5d9acd890e3c63f5051"));
    assert_eq!(iv().as_ref(), hex("5b78923dee08579033e523d9"));

    // The client's first application data: 50 bytes that count from 0.
    let plaintext: Vec<u8> = (0..50).collect();
    let sealed = hex(
        "a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a
         6292a2977014bd1e3deae63aeebb21694915e4",
    );
    check_record(
        &mut *tls13(&aead::TLS13_AES_128).encrypter(key(), iv()),
        &mut *tls13(&aead::TLS13_AES_128).decrypter(key(), iv()),
        ProtocolVersion::TLSv1_3,
        0,
        &plaintext,
        &sealed,
    );
}

#[test]
fn finished_of_rfc_8448() {
    let secret = OkmBlock::new(&hex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38"));
    let key = expand_label(&*HKDF_SHA256.expander_for_okm(&secret), "finished", b"");
    assert_eq!(key, hex("008d3b66f816ea559f96b537e885c31fc068bf492c652f01f288a1d8cdc19fc8"));
    // RFC 4231, test case 2: HMAC with a key of ordinary length.
    let tag = HKDF_SHA256.hmac_sign(&OkmBlock::new(b"Jefe"), b"what do ya want for nothing?");
    assert_eq!(tag.as_ref(), hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"));
    let tag = HKDF_SHA384.hmac_sign(&OkmBlock::new(b"Jefe"), b"what do ya want for nothing?");
    assert_eq!(
        tag.as_ref(),
        hex("af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e
             8e2240ca5e69e2c78b3239ecfab21649")
    );
}

/// Vectors of the TLS working group's mailing list, 2009, "Test vectors for TLS 1.2 PRF".
#[test]
fn prf_of_tls12() {
    let mut output = vec![0; 100];
    PRF_SHA256.for_secret(
        &mut output,
        &hex("9bbe436ba940f017b17652849a71db35"),
        b"test label",
        &hex("a0ba9f936cda311827a6f796ffd5198c"),
    );
    assert_eq!(
        output,
        hex(
            "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a6b301791e90d35c9c9a46b4e14baf9af
             0fa022f7077def17abfd3797c0564bab4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff701
             87347b66"
        )
    );
    let mut output = vec![0; 148];
    PRF_SHA384.for_secret(
        &mut output,
        &hex("b80b733d6ceefcdc71566ea48e5567df"),
        b"test label",
        &hex("cd665cf6a8447dd6ff8b27555edb7465"),
    );
    assert_eq!(
        output,
        hex(
            "7b0c18e9ced410ed1804f2cfa34a336a1c14dffb4900bb5fd7942107e81c83cde9ca0faa60be9fe34f82b1233c9146a0
             e534cb400fed2700884f9dc236f80edd8bfa961144c9e8d792eca722a7b32fc3d416d473ebc2c5fd4abfdad05d918425
             9b5bf8cd4d90fa0d31e2dec479e4f1a26066f2eea9a69236a3e52655c9e9aee691c8f3a26854308d5eaa3be85e099070
             3d73e56f"
        )
    );
}

#[test]
fn prf_takes_the_secret_of_a_key_exchange() {
    let ours = [7; 32];
    let theirs = kx::X25519.of_private_key(&[9; 32]);
    let shared = theirs.agree(kx::X25519.of_private_key(&ours).share(), |s| Ok(s.to_vec())).unwrap();
    let (mut expected, mut output) = ([0; 48], [0; 48]);
    PRF_SHA384.for_secret(&mut expected, &shared, b"extended master secret", b"seed");
    let exchange = Box::new(kx::X25519.of_private_key(&ours));
    PRF_SHA384
        .for_key_exchange(&mut output, exchange, theirs.share(), b"extended master secret", b"seed")
        .unwrap();
    assert_eq!(output, expected);
}

#[test]
fn digests() {
    let of_abc_256 = hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    let of_abc_384 = hex("cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed
         8086072ba1e7cc2358baeca134c825a7");
    for (digest, of_abc) in [(&SHA256, of_abc_256), (&SHA384, of_abc_384)] {
        assert_eq!(digest.output_len(), of_abc.len());
        assert_eq!(digest.hash(b"abc").as_ref(), of_abc);
        let mut transcript = digest.start();
        transcript.update(b"a");
        let fork = transcript.fork();
        transcript.update(b"bc");
        assert_eq!(transcript.fork_finish().as_ref(), of_abc);
        assert_eq!(transcript.finish().as_ref(), of_abc);
        assert_eq!(fork.finish().as_ref(), digest.hash(b"a").as_ref());
    }
}

/// Sealed by Go's crypto/cipher, by the nonces and additional data of the RFCs.
#[test]
fn records_sealed_by_another() {
    let plaintext = b"the quick brown fox";
    let key: [u8; 32] = std::array::from_fn(|i| i as u8);
    let iv: [u8; 12] = std::array::from_fn(|i| 0xa0 + i as u8);
    check_record(
        &mut *tls13(&aead::TLS13_AES_256).encrypter(AeadKey::from(key), Iv::new(iv)),
        &mut *tls13(&aead::TLS13_AES_256).decrypter(AeadKey::from(key), Iv::new(iv)),
        ProtocolVersion::TLSv1_3,
        5,
        plaintext,
        &hex("ba9261d15b03bf49f62fc86ce71500119fb6fd2dba5fa9b9b396ffb7ace62813471b0f45"),
    );
    check_record(
        &mut *tls12(&aead::TLS12_AES_256).encrypter(AeadKey::from(key), &iv[..4], &[]),
        &mut *tls12(&aead::TLS12_AES_256).decrypter(AeadKey::from(key), &iv[..4]),
        ProtocolVersion::TLSv1_2,
        5,
        plaintext,
        &hex("0000000000000005 eda18d2849a2155cdda5fc986779299eceae677bf73a47ac63eb7054b6e8da02d7e940"),
    );
    let secret = OkmBlock::new(&hex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38"));
    let expander = HKDF_SHA256.expander_for_okm(&secret);
    let key = || derive_traffic_key(&*expander, &aead::TLS13_AES_128);
    assert_eq!(key().as_ref(), hex("3fce516009c21727d0f2e4e86ee403bc"));
    check_record(
        &mut *tls12(&aead::TLS12_AES_128).encrypter(key(), &iv[..4], &[]),
        &mut *tls12(&aead::TLS12_AES_128).decrypter(key(), &iv[..4]),
        ProtocolVersion::TLSv1_2,
        5,
        plaintext,
        &hex("0000000000000005 2e8f0eb264a863b709da69aa09408cc80d054ec4bcad61ecb46e7ecd7bf27089754be8"),
    );
}

/// Sealing gives these bytes, opening them gives the plaintext.
fn check_record(
    sealer: &mut dyn MessageEncrypter,
    opener: &mut dyn MessageDecrypter,
    version: ProtocolVersion,
    number: u64,
    plaintext: &[u8],
    sealed: &[u8],
) {
    let message = OutboundPlainMessage {
        typ: ContentType::ApplicationData,
        version: ProtocolVersion::TLSv1_2,
        payload: OutboundChunks::Single(plaintext),
    };
    assert_eq!(sealer.encrypted_payload_len(plaintext.len()), sealed.len());
    let record = sealer.encrypt(message, number).unwrap().encode();
    let length = u16::try_from(sealed.len()).unwrap().to_be_bytes();
    assert_eq!(record[..5], [0x17, 3, 3, length[0], length[1]]);
    assert_eq!(record[5..], *sealed);

    let mut sealed = sealed.to_vec();
    let message =
        InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, &mut sealed);
    let opened = opener.decrypt(message, number).unwrap();
    assert_eq!((opened.typ, opened.version), (ContentType::ApplicationData, version));
    assert_eq!(opened.payload, plaintext);
}

/// HKDF-Expand-Label (RFC 8446, section 7.1) to one digest.
fn expand_label(expander: &dyn HkdfExpander, label: &str, context: &[u8]) -> Vec<u8> {
    let length = (expander.hash_len() as u16).to_be_bytes();
    let label = format!("tls13 {label}");
    let info: [&[u8]; 5] = [&length, &[label.len() as u8], label.as_bytes(), &[context.len() as u8], context];
    expander.expand_block(&info).as_ref().to_vec()
}

fn tls13(algorithm: &'static aead::Tls13Aead) -> &'static dyn rustls::crypto::cipher::Tls13AeadAlgorithm {
    algorithm
}

fn tls12(algorithm: &'static aead::Tls12Aead) -> &'static dyn rustls::crypto::cipher::Tls12AeadAlgorithm {
    algorithm
}
