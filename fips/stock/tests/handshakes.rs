//! Own and stock provider, either as client: every suite, group and kind of certificate; and who meets whom without a retry.

use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};
use stock::{Ends, KINDS, only, own, send, stock};

#[test]
fn every_suite_group_and_certificate_both_ways() {
    let mut tried = 0;
    for suite in own().cipher_suites {
        for group in stock().kx_groups.iter().map(|group| group.name()) {
            for kind in KINDS {
                let version = suite.version().version;
                let name = format!("{:?}", suite.suite());
                let hybrid = format!("{group:?}").contains("MLKEM");
                let for_kind = name.contains("_RSA_WITH") == (kind == fips::ca::KeyType::Rsa2048);
                if version == ProtocolVersion::TLSv1_2 && (hybrid || !for_kind) {
                    continue;
                }
                let (own, stock) = (only(&own(), suite, &[group]), only(&stock(), suite, &[group]));
                for (client, server) in [(&own, &stock), (&stock, &own)] {
                    let shaken = Ends::new(client, server, kind).shake();
                    let (mut client, mut server) =
                        shaken.unwrap_or_else(|error| panic!("{name} {group:?} {kind:?}: {error}"));
                    let export = |side: &rustls::Connection| {
                        side.export_keying_material([0; 32], b"label", None).unwrap()
                    };
                    assert_eq!(export(&client), export(&server));
                    for size in [1, 1000, 16_384, 40_000] {
                        let data: Vec<u8> = (0..size).map(|at| at as u8).collect();
                        let mut into = vec![0; size];
                        send(&mut client, &mut server, &data, &mut into);
                        assert_eq!(into, data);
                        into.fill(0);
                        send(&mut server, &mut client, &data, &mut into);
                        assert_eq!(into, data);
                    }
                    if version == ProtocolVersion::TLSv1_3 {
                        client.refresh_traffic_keys().unwrap();
                        let mut into = [0; 4];
                        send(&mut client, &mut server, b"more", &mut into);
                        assert_eq!(&into, b"more");
                    }
                    tried += 1;
                }
            }
        }
    }
    assert_eq!(tried, 2 * (2 * 5 * 4 + 3 * 8));
}

/// As client, ours sends the shares that stock sends, and takes what stock takes.
#[test]
fn as_many_round_trips_as_stock() {
    let suite = own().cipher_suites[0];
    let both = [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1];
    for server in both {
        let kind_of = |client: &_, of: &_| {
            let ends = Ends::new(&only(client, suite, &both), &only(of, suite, &[server]), KINDS[0]);
            ends.shake().unwrap().0.handshake_kind()
        };
        let expected = if server == NamedGroup::secp256r1 {
            HandshakeKind::FullWithHelloRetryRequest
        } else {
            HandshakeKind::Full
        };
        assert_eq!(kind_of(&own(), &stock()), Some(expected), "{server:?}");
        assert_eq!(kind_of(&stock(), &own()), Some(expected), "{server:?}");
    }
}
