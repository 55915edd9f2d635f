//! OpenSSL 3: `s_server` and `s_client`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use rustls::{NamedGroup, ProtocolVersion};

use super::{Case, LINE, Peer, Pki, cases, installed};

/// That every OpenSSL 3 knows; the hybrids came with 3.5, and Go stands for them.
const GROUPS: [NamedGroup; 3] = [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];

#[test]
fn we_dial_openssl() {
    if !installed("openssl", "version") {
        return;
    }
    for case in cases(&GROUPS) {
        let mut command = openssl(&case, "s_server");
        command.args(["-accept", "127.0.0.1:0", "-Verify", "2", "-rev", "-naccept", "1"]);
        let mut peer = Peer(command.spawn().unwrap());
        let address = peer.listening("ACCEPT");
        case.dial(address);
    }
}

#[test]
fn openssl_dials_us() {
    if !installed("openssl", "version") {
        return;
    }
    for case in cases(&GROUPS) {
        let (address, served) = case.serve();
        let mut command = openssl(&case, "s_client");
        command.args(["-connect", &address.to_string(), "-servername", "server.example"]);
        command.args(["-verify_return_error", "-verify_hostname", "server.example", "-quiet"]);
        let mut peer = Peer(command.spawn().unwrap());
        peer.0.stdin.as_mut().unwrap().write_all(LINE.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(peer.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, LINE, "{case}");
        served.join().unwrap();
    }
}

/// A TLS 1.2 peer without extended master secret: refused by the approved flavour, whichever side we are.
#[test]
fn a_peer_without_extended_master_secret() {
    if !installed("openssl", "version") {
        return;
    }
    let case = cases(&[NamedGroup::secp256r1])
        .into_iter()
        .find(|case| case.version == ProtocolVersion::TLSv1_2)
        .unwrap();
    let (address, served) = case.serve();
    let mut command = openssl(&case, "s_client");
    command.args(["-connect", &address.to_string(), "-servername", "server.example", "-quiet"]);
    command.env("OPENSSL_CONF", without_extended_master_secret());
    let mut peer = Peer(command.spawn().unwrap());
    let _ = peer.0.stdin.as_mut().unwrap().write_all(LINE.as_bytes());
    let refused = served.join().is_err();
    assert_eq!(refused, cfg!(feature = "certified"));
}

/// A configuration of OpenSSL's own that turns the extension off.
fn without_extended_master_secret() -> String {
    let path = super::scratch("openssl").join("no-ems.cnf");
    std::fs::write(
        &path,
        "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = off\n[off]\nOptions = -ExtendedMasterSecret\n",
    )
    .unwrap();
    path.to_str().unwrap().to_owned()
}

fn openssl(case: &Case, command: &str) -> Command {
    let pki = Pki::of(case.kind);
    let group = match case.group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        other => panic!("{other:?}"),
    };
    let mut openssl = Command::new("openssl");
    openssl.arg(command).args(["-cert", &pki.path("leaf.pem"), "-key", &pki.path("key.pem")]);
    openssl.args(["-CAfile", &pki.path("ca.pem")]);
    let suite = case.suite.replacen("TLS13_", "TLS_", 1);
    if case.version == ProtocolVersion::TLSv1_3 {
        openssl.args(["-tls1_3", "-groups", group, "-ciphersuites", &suite]);
    } else {
        // TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 is ECDHE-ECDSA-AES256-GCM-SHA384 there. In TLS 1.2 the groups bound the
        // curves of certificates as well.
        let suite = suite.trim_start_matches("TLS_").replace("WITH_AES_", "AES").replace('_', "-");
        let others = ["P-256", "P-384"].into_iter().filter(|other| *other != group);
        let groups = [group].into_iter().chain(others).collect::<Vec<_>>().join(":");
        openssl.args(["-tls1_2", "-groups", &groups, "-cipher", &suite]);
    }
    openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    openssl
}
