//! Go's crypto/tls, which has both hybrids: `peer.go`, built with the toolchain that is there.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustls::{NamedGroup, ProtocolVersion};

use super::{Case, Peer, Pki, cases, installed, scratch};

const GROUPS: [NamedGroup; 5] = [
    NamedGroup::X25519MLKEM768,
    NamedGroup::secp256r1MLKEM768,
    NamedGroup::X25519,
    NamedGroup::secp256r1,
    NamedGroup::secp384r1,
];

#[test]
fn we_dial_go() {
    let Some(program) = program() else { return };
    for case in cases(&GROUPS) {
        let mut peer = Peer(go(program, &case).args(["-listen", "127.0.0.1:0"]).spawn().unwrap());
        let address = peer.listening("listening on");
        case.dial(address);
    }
}

#[test]
fn go_dials_us() {
    let Some(program) = program() else { return };
    for case in cases(&GROUPS) {
        let (address, served) = case.serve();
        let dialled = go(program, &case).args(["-dial", &address.to_string()]).output().unwrap();
        assert!(dialled.status.success(), "{case}: {}", String::from_utf8_lossy(&dialled.stderr));
        served.join().unwrap();
    }
}

fn go(program: &PathBuf, case: &Case) -> Command {
    let pki = Pki::of(case.kind);
    let mut go = Command::new(program);
    go.args(["-cert", &pki.path("leaf.pem"), "-key", &pki.path("key.pem"), "-ca", &pki.path("ca.pem")]);
    go.args(["-group", &u16::from(case.group).to_string()]);
    if case.version == ProtocolVersion::TLSv1_2 {
        go.args(["-tls12", &case.suite]);
    }
    go.stdout(Stdio::piped()).stderr(Stdio::piped());
    go
}

/// Built once for all tests; `None`: there is no Go.
fn program() -> Option<&'static PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        if !installed("go", "version") {
            return None;
        }
        let directory = scratch("go");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/peer.go");
        let program = directory.join("peer");
        let built = Command::new("go")
            .args(["build", "-o"])
            .arg(&program)
            .arg(source)
            .env("GOFLAGS", "-mod=mod")
            .env("CGO_ENABLED", "0")
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Some(program)
    });
    program.as_ref()
}
