//! Whole handshakes in memory: every suite, group and kind of certificate, mutual, with data both ways.

use std::io::{Read, Write};
use std::sync::OnceLock;

use rustls::crypto::CryptoProvider;
use rustls::{ClientConnection, Connection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection};

use super::pair::{KEY_TYPES, client_config, connect, flight, server_config, shake, shake_changing};
use crate::ca::KeyType;
use crate::provider::{STANDARD_GROUPS, build, provider, suites};

#[test]
fn every_suite_group_and_certificate() {
    let mut tried = 0;
    for &suite in suites::ALL {
        for &group in STANDARD_GROUPS {
            for key_type in KEY_TYPES {
                let version = suite.version().version;
                let name = format!("{:?}", suite.suite());
                let rsa = key_type == KeyType::Rsa2048;
                let unusable = version == ProtocolVersion::TLSv1_2
                    && (name.contains("_RSA_WITH") != rsa || !group.usable_for_version(version));
                if unusable {
                    continue;
                }
                let provider =
                    CryptoProvider { cipher_suites: vec![suite], kx_groups: vec![group], ..build(false) };
                let (mut client, mut server) = pair(&provider, &provider, key_type);
                shake(&mut client, &mut server).unwrap();
                for side in [&client, &server] {
                    assert_eq!(side.negotiated_cipher_suite().unwrap().suite(), suite.suite());
                    assert_eq!(side.negotiated_key_exchange_group().unwrap().name(), group.name());
                    assert_eq!(side.protocol_version(), Some(version));
                }
                exchange(&mut client, &mut server);
                tried += 1;
            }
        }
    }
    // TLS 1.3: 2 suites, 5 groups, 4 kinds; TLS 1.2: 3 groups without the hybrids, 2 suites for 3 kinds and 2 for RSA.
    assert_eq!(tried, 2 * 5 * 4 + 3 * (2 * 3 + 2));
}

#[test]
fn both_sides_export_the_same_keys_and_update_them() {
    let (mut client, mut server) = pair(&provider(), &provider(), KeyType::P256);
    shake(&mut client, &mut server).unwrap();
    let export =
        |side: &Connection| side.export_keying_material([0; 32], b"label", Some(b"context")).unwrap();
    assert_eq!(export(&client), export(&server));
    for round in 0..3 {
        client.refresh_traffic_keys().unwrap();
        exchange(&mut client, &mut server);
        server.refresh_traffic_keys().unwrap();
        exchange(&mut client, &mut server);
        assert_eq!(export(&client), export(&server), "round {round}");
    }
}

/// A ClientHello carries a share for the hybrid in front and for its curve: a server that knows either answers at once.
#[test]
fn a_peer_without_the_hybrid_costs_no_round_trip() {
    for (ours, classical) in [(build(false), NamedGroup::X25519), (build(true), NamedGroup::secp256r1)] {
        let only = |name: NamedGroup| CryptoProvider {
            kx_groups: STANDARD_GROUPS.iter().filter(|group| group.name() == name).copied().collect(),
            ..build(false)
        };
        let hybrid = ours.kx_groups[0].name();
        for (peer, kind) in [
            (hybrid, HandshakeKind::Full),
            (classical, HandshakeKind::Full),
            (NamedGroup::secp384r1, HandshakeKind::FullWithHelloRetryRequest),
        ] {
            let (mut client, mut server) = pair(&ours, &only(peer), KeyType::P256);
            shake(&mut client, &mut server).unwrap();
            assert_eq!(client.handshake_kind(), Some(kind), "{hybrid:?} and {peer:?}");
            assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), peer);
            exchange(&mut client, &mut server);
        }
    }
}

#[test]
fn a_connection_is_approved_where_its_configuration_is() {
    let name = "server.example".try_into().unwrap();
    let client = ClientConnection::new(client_config(&provider(), KeyType::P256).into(), name).unwrap();
    let server = ServerConnection::new(server_config(&provider(), KeyType::P256).into()).unwrap();
    assert_eq!(client.fips(), cfg!(feature = "certified"));
    assert_eq!(server.fips(), cfg!(feature = "certified"));
}

/// TLS 1.2 without extended master secret: refused by the approved flavour on both sides, as client and as server.
#[test]
fn the_approved_flavour_wants_extended_master_secret() {
    let tls12 = CryptoProvider { cipher_suites: suites::ALL[2..].to_vec(), ..build(true) };
    let config = client_config(&tls12, KeyType::P256);
    assert_eq!(config.require_ems, cfg!(feature = "certified"));
    let config = server_config(&tls12, KeyType::P256);
    assert_eq!(config.require_ems, cfg!(feature = "certified"));
}

/// What a man in the middle changes on the wire ends the handshake.
#[test]
fn a_changed_handshake_fails() {
    for flight in 0..4 {
        for at in [5, 40, 90, 200, 600] {
            let (mut client, mut server) = pair(&provider(), &provider(), KeyType::P256);
            // Signatures differ in length by a byte or two, and so do flights: whether there was such a byte is seen here.
            let mut changed = false;
            let outcome = shake_changing(&mut client, &mut server, |number, bytes| {
                if number == flight && at < bytes.len() {
                    bytes[at] ^= 0x10;
                    changed = true;
                }
            });
            // The last flight is the server's tickets, which change nothing of the handshake.
            let matters = changed && flight + 1 < flights();
            assert!(outcome.is_err() || !matters, "flight {flight}, byte {at}");
        }
    }
}

fn flights() -> usize {
    static FLIGHTS: OnceLock<usize> = OnceLock::new();
    *FLIGHTS.get_or_init(|| {
        let (mut client, mut server) = pair(&provider(), &provider(), KeyType::P256);
        let mut flights = 0;
        shake_changing(&mut client, &mut server, |_, _| flights += 1).unwrap();
        flights
    })
}

fn pair(client: &CryptoProvider, server: &CryptoProvider, key_type: KeyType) -> (Connection, Connection) {
    connect(client_config(client, key_type).into(), server_config(server, key_type).into())
}

/// Data of several sizes both ways, also in pieces.
fn exchange(client: &mut Connection, server: &mut Connection) {
    for length in [0, 1, 100, 16_384, 16_385, 40_000] {
        let data: Vec<u8> = (0..length).map(|at| at as u8).collect();
        for to_server in [true, false] {
            let (from, to) =
                if to_server { (&mut *client, &mut *server) } else { (&mut *server, &mut *client) };
            let mut sent = 0;
            let mut received = Vec::new();
            loop {
                let (one, other) = data[sent..].split_at((length - sent).min(7));
                sent += from.writer().write_vectored(&[one, other].map(std::io::IoSlice::new)).unwrap();
                let sent_now = flight(from);
                let mut flight = &sent_now[..];
                while !flight.is_empty() {
                    to.read_tls(&mut flight).unwrap();
                    let state = to.process_new_packets().unwrap();
                    let mut part = vec![0; state.plaintext_bytes_to_read()];
                    to.reader().read_exact(&mut part).unwrap();
                    received.extend(part);
                }
                if sent == length {
                    break;
                }
            }
            assert_eq!(received, data);
        }
    }
}
