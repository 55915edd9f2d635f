//! Shares of key exchange: their layout, and that each bad one is refused on either side.

use aws_lc_rs::agreement::{self, UnparsedPublicKey};
use aws_lc_rs::encoding::{AsBigEndian, AsDer, EcPublicKeyCompressedBin, PublicKeyX509Der};
use aws_lc_rs::kem::{DecapsulationKey, ML_KEM_768};
use rustls::crypto::{ActiveKeyExchange, SupportedKxGroup};
use rustls::{NamedGroup, ProtocolVersion};

use crate::provider::kx::Curve;
use crate::provider::{STANDARD_GROUPS, hybrid, kx};

const KEM_SHARE: usize = 1184;
const CIPHERTEXT: usize = 1088;

#[test]
fn both_sides_get_the_same_secret() {
    for group in STANDARD_GROUPS {
        let client = group.start().unwrap();
        assert_eq!(client.group(), group.name());
        let server = group.start_and_complete(client.pub_key()).unwrap();
        assert_eq!(server.group, group.name());
        let secret = client.complete(&server.pub_key).unwrap();
        assert_eq!(secret.secret_bytes(), server.secret.secret_bytes(), "{group:?}");
        assert!(group.ffdhe_group().is_none() && group.start().unwrap().ffdhe_group().is_none());
    }
}

#[test]
fn hybrids_are_for_tls13_and_curves_for_both() {
    for group in STANDARD_GROUPS {
        let hybrid = [NamedGroup::X25519MLKEM768, NamedGroup::secp256r1MLKEM768].contains(&group.name());
        assert!(group.usable_for_version(ProtocolVersion::TLSv1_3));
        assert_eq!(group.usable_for_version(ProtocolVersion::TLSv1_2), !hybrid, "{group:?}");
    }
}

/// Where the parts stand in what is sent and in the secret (draft-ietf-tls-ecdhe-mlkem, section 4).
#[test]
fn hybrids_are_laid_out_as_the_draft_says() {
    let kem = DecapsulationKey::generate(&ML_KEM_768).unwrap();
    let kem_private = kem.key_bytes().unwrap();
    let kem_share = kem.encapsulation_key().unwrap().key_bytes().unwrap();
    let curve_private = {
        let mut bytes = [0x42; 32];
        bytes[0] = 1;
        bytes
    };
    for (group, curve, curve_first) in
        [(hybrid::X25519MLKEM768, kx::X25519, false), (hybrid::SECP256R1MLKEM768, kx::SECP256R1, true)]
    {
        let share_len = curve.share_len;
        let alone = curve.of_private_key(&curve_private);
        let client_share = join(curve_first, alone.share(), kem_share.as_ref());
        assert_eq!(client_share.len(), share_len + KEM_SHARE);
        let server = group.start_and_complete(&client_share).unwrap();
        assert_eq!(server.pub_key.len(), share_len + CIPHERTEXT);

        let (curve_share, ciphertext) = split(curve_first, &server.pub_key, share_len);
        let curve_secret = alone.agree(curve_share, |secret| Ok(secret.to_vec())).unwrap();
        let kem_secret = kem.decapsulate(ciphertext.into()).unwrap();
        let expected = join(curve_first, &curve_secret, kem_secret.as_ref());
        assert_eq!(server.secret.secret_bytes(), expected, "{group:?}");

        let client = group.of_private_keys(&curve_private, kem_private.as_ref());
        assert_eq!(client.complete(&server.pub_key).unwrap().secret_bytes(), expected, "{group:?}");

        let client = group.start().unwrap();
        let (name, component) = client.hybrid_component().unwrap();
        assert_eq!(name, curve.name);
        assert_eq!(component, split(curve_first, client.pub_key(), share_len).0, "{group:?}");
        let peer = curve.of_private_key(&curve_private);
        let expected = peer.agree(component, |secret| Ok(secret.to_vec())).unwrap();
        assert_eq!(client.complete_hybrid_component(peer.share()).unwrap().secret_bytes(), expected);
    }
}

#[test]
fn bad_shares_are_refused_by_both_sides() {
    for curve in [kx::SECP256R1, kx::SECP384R1, kx::X25519] {
        for (what, share) in bad_curve_shares(*curve) {
            refused(curve, &what, &share, &share);
            let kem = vec![0; KEM_SHARE];
            for (group, first) in hybrids_with(curve) {
                let good_kem = kem_parts();
                let client = join(first, &share, &good_kem.0);
                let server = join(first, &share, &good_kem.1);
                refused(group, &what, &client, &server);
                // And the part that stands alone.
                let exchange = group.start().unwrap();
                assert!(exchange.complete_hybrid_component(&share).is_err(), "{group:?}, {what} alone");
                let swapped = join(!first, &good_curve_share(*curve), &kem);
                refused(group, "parts in the other order", &swapped, &swapped);
            }
        }
    }
}

#[test]
fn bad_kem_parts_are_refused() {
    for curve in [kx::SECP256R1, kx::X25519] {
        let good = good_curve_share(*curve);
        let (encapsulation, ciphertext) = kem_parts();
        for (group, first) in hybrids_with(curve) {
            // A coefficient of 4095 where the modulus is 3329 (FIPS 203, section 7.2).
            let mut beyond = encapsulation.clone();
            beyond[..3].fill(0xff);
            let mut last_beyond = encapsulation.clone();
            last_beyond[1149..1152].fill(0xff);
            for (what, kem) in [
                ("coefficient beyond the modulus", beyond),
                ("last coefficient beyond the modulus", last_beyond),
                ("short", encapsulation[1..].to_vec()),
                ("long", [&encapsulation[..], &[0]].concat()),
                ("of ML-KEM-512", encapsulation[..800].to_vec()),
                ("none", Vec::new()),
            ] {
                let share = join(first, &good, &kem);
                assert!(group.start_and_complete(&share).is_err(), "{group:?}: encapsulation key {what}");
            }
            for (what, kem) in [
                ("short", ciphertext[1..].to_vec()),
                ("long", [&ciphertext[..], &[0]].concat()),
                ("of ML-KEM-512", ciphertext[..768].to_vec()),
                ("none", Vec::new()),
            ] {
                let share = join(first, &good, &kem);
                assert!(group.start().unwrap().complete(&share).is_err(), "{group:?}: ciphertext {what}");
            }
        }
    }
}

/// A changed ciphertext gives another secret and no error (FIPS 203 rejects implicitly): the handshake then fails.
#[test]
fn a_changed_ciphertext_gives_another_secret() {
    for (group, first, share_len) in
        [(hybrid::X25519MLKEM768, false, 32), (hybrid::SECP256R1MLKEM768, true, 65)]
    {
        let client = group.start().unwrap();
        let mut server = group.start_and_complete(client.pub_key()).unwrap();
        let at = if first { share_len + 100 } else { 100 };
        server.pub_key[at] ^= 1;
        let secret = client.complete(&server.pub_key).unwrap();
        assert_ne!(secret.secret_bytes(), server.secret.secret_bytes());
    }
}

fn refused(group: &dyn SupportedKxGroup, what: &str, to_server: &[u8], to_client: &[u8]) {
    assert!(group.start_and_complete(to_server).is_err(), "{group:?}: {what} as a client's share");
    let client: Box<dyn ActiveKeyExchange> = group.start().unwrap();
    assert!(client.complete(to_client).is_err(), "{group:?}: {what} as a server's share");
}

fn bad_curve_shares(curve: Curve) -> Vec<(String, Vec<u8>)> {
    let good = good_curve_share(curve);
    let mut bad = vec![
        ("none".to_owned(), Vec::new()),
        ("one byte".to_owned(), vec![4]),
        ("short".to_owned(), good[..good.len() - 1].to_vec()),
        ("long".to_owned(), [&good[..], &[0]].concat()),
        ("zeros".to_owned(), vec![0; good.len()]),
    ];
    if curve.name == NamedGroup::X25519 {
        let key = agreement::PrivateKey::generate(&agreement::X25519).unwrap().compute_public_key().unwrap();
        let whole: PublicKeyX509Der<'_> = key.as_der().unwrap();
        bad.push(("a SubjectPublicKeyInfo".to_owned(), whole.as_ref().to_vec()));
        // Points of small order, which give a secret of zeros (RFC 7748, section 6.1).
        let mut one = vec![0; 32];
        one[0] = 1;
        bad.push(("one".to_owned(), one));
        let mut order_8 = super::hex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800");
        bad.push(("a point of order 8".to_owned(), order_8.clone()));
        order_8[31] |= 0x80;
        bad.push(("a point of order 8 with the high bit".to_owned(), order_8));
        let mut minus_one = vec![0xff; 32];
        (minus_one[0], minus_one[31]) = (0xec, 0x7f);
        bad.push(("minus one".to_owned(), minus_one));
    } else {
        let algorithm =
            if curve.name == NamedGroup::secp256r1 { &agreement::ECDH_P256 } else { &agreement::ECDH_P384 };
        let key = agreement::PrivateKey::generate(algorithm).unwrap().compute_public_key().unwrap();
        let compressed: EcPublicKeyCompressedBin<'_> = key.as_be_bytes().unwrap();
        bad.push(("compressed".to_owned(), compressed.as_ref().to_vec()));
        let whole: PublicKeyX509Der<'_> = key.as_der().unwrap();
        bad.push(("a SubjectPublicKeyInfo".to_owned(), whole.as_ref().to_vec()));
        // What the module would take: that the provider looks itself is what this is about.
        let ours = agreement::PrivateKey::generate(algorithm).unwrap();
        let peer = UnparsedPublicKey::new(algorithm, compressed.as_ref());
        assert!(agreement::agree(&ours, peer, (), |_| Ok(())).is_ok());
        for first in [0, 2, 3, 5, 6, 7, 0xff] {
            let mut share = good.clone();
            share[0] = first;
            bad.push((format!("a first byte of {first}"), share));
        }
        let mut off = good.clone();
        *off.last_mut().unwrap() ^= 1;
        bad.push(("not on the curve".to_owned(), off));
        let mut beyond = vec![0xff; good.len()];
        beyond[0] = 4;
        bad.push(("coordinates beyond the field".to_owned(), beyond));
        let mut at_zero = vec![0; good.len()];
        at_zero[0] = 4;
        bad.push(("coordinates of zero".to_owned(), at_zero));
    }
    bad
}

fn good_curve_share(curve: Curve) -> Vec<u8> {
    curve.generate().unwrap().share().to_vec()
}

/// A valid encapsulation key and a valid ciphertext for it.
fn kem_parts() -> (Vec<u8>, Vec<u8>) {
    let key = DecapsulationKey::generate(&ML_KEM_768).unwrap().encapsulation_key().unwrap();
    let (ciphertext, _) = key.encapsulate().unwrap();
    (key.key_bytes().unwrap().as_ref().to_vec(), ciphertext.as_ref().to_vec())
}

fn hybrids_with(curve: &Curve) -> Vec<(&'static hybrid::Hybrid, bool)> {
    match curve.name {
        NamedGroup::X25519 => vec![(hybrid::X25519MLKEM768, false)],
        NamedGroup::secp256r1 => vec![(hybrid::SECP256R1MLKEM768, true)],
        _ => Vec::new(),
    }
}

fn join(curve_first: bool, curve: &[u8], kem: &[u8]) -> Vec<u8> {
    if curve_first { [curve, kem].concat() } else { [kem, curve].concat() }
}

/// The curve's part and the other.
fn split(curve_first: bool, share: &[u8], curve_len: usize) -> (&[u8], &[u8]) {
    if curve_first {
        share.split_at(curve_len)
    } else {
        let (kem, curve) = share.split_at(share.len() - curve_len);
        (curve, kem)
    }
}
