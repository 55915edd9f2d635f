//! Handshakes with other implementations, both ways: OpenSSL's `s_client` and `s_server`, and Go's crypto/tls.
//!
//! Each group, suite and kind of certificate, mutual, with a line of data that comes back. A peer that is not installed is
//! named, and missed where CI=true.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod go;
mod openssl;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fips::ca::{Authority, KeyType, Profile};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, NamedGroup, ProtocolVersion, RootCertStore, ServerConfig,
    ServerConnection, Stream,
};

const LINE: &str = "a line of data\n";
/// Longer than a handshake takes anywhere.
const PATIENCE: Duration = Duration::from_secs(30);

/// One handshake: our provider offers only this.
#[derive(Debug, Clone)]
struct Case {
    provider: CryptoProvider,
    version: ProtocolVersion,
    /// As rustls names it.
    suite: String,
    group: NamedGroup,
    kind: KeyType,
}

/// Every one that the provider of this build can do, with the groups that the peer knows.
fn cases(groups: &[NamedGroup]) -> Vec<Case> {
    let provider = fips::provider();
    let mut cases = Vec::new();
    for &suite in &provider.cipher_suites {
        for &group in provider.kx_groups.iter().filter(|group| groups.contains(&group.name())) {
            for kind in [KeyType::P256, KeyType::P384, KeyType::Rsa2048, KeyType::Ed25519] {
                let version = suite.version().version;
                let name = format!("{:?}", suite.suite());
                let for_kind = name.contains("_RSA_WITH") == (kind == KeyType::Rsa2048);
                if version == ProtocolVersion::TLSv1_2 && !(for_kind && group.usable_for_version(version)) {
                    continue;
                }
                // In TLS 1.2 the groups are also the curves that certificates may have, so the others follow (RFC 8422,
                // section 5.1).
                let mut kx_groups = vec![group];
                if version == ProtocolVersion::TLSv1_2 {
                    let curves = [NamedGroup::secp256r1, NamedGroup::secp384r1];
                    let others = provider.kx_groups.iter().filter(|other| curves.contains(&other.name()));
                    kx_groups.extend(others.filter(|other| other.name() != group.name()));
                }
                let provider =
                    CryptoProvider { cipher_suites: vec![suite], kx_groups, ..(*provider).clone() };
                cases.push(Case { provider, version, suite: name, group: group.name(), kind });
            }
        }
    }
    assert!(!cases.is_empty());
    cases
}

impl Case {
    /// We dial; the peer sends the line back.
    fn dial(&self, address: SocketAddr) {
        let provider = Arc::new(self.provider.clone());
        let pki = Pki::of(self.kind);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(pki.roots(), provider.clone()).build().unwrap();
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(pki.chain(), pki.key())
            .unwrap();
        let mut tcp = connect(address);
        let mut tls = ClientConnection::new(config.into(), "server.example".try_into().unwrap()).unwrap();
        let mut stream = Stream::new(&mut tls, &mut tcp);
        let mut read = stream
            .write_all(LINE.as_bytes())
            .and_then(|()| {
                let mut read = vec![0; LINE.len()];
                stream.read_exact(&mut read).map(|()| read)
            })
            .unwrap_or_else(|error| panic!("{self}, we dial: {error}"));
        // `s_server -rev` reverses a line, and leaves its end where it was.
        if read != LINE.as_bytes() {
            read[..LINE.len() - 1].reverse();
        }
        assert_eq!(read, LINE.as_bytes(), "{self}");
        assert_eq!(tls.negotiated_key_exchange_group().unwrap().name(), self.group);
        assert_eq!(tls.protocol_version(), Some(self.version));
    }

    /// We serve one connection and send a line back. Gives the address; the thread ends with the connection.
    fn serve(&self) -> (SocketAddr, std::thread::JoinHandle<()>) {
        let provider = Arc::new(self.provider.clone());
        let pki = Pki::of(self.kind);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(pki.roots(), provider.clone()).build().unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(pki.chain(), pki.key())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let case = self.clone();
        let thread = std::thread::spawn(move || {
            let mut tcp = accept(&listener);
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut tls = ServerConnection::new(config.into()).unwrap();
            let mut line = vec![0; LINE.len()];
            let mut stream = Stream::new(&mut tls, &mut tcp);
            let served = stream
                .read_exact(&mut line)
                .and_then(|()| stream.write_all(&line))
                .and_then(|()| stream.flush());
            served.unwrap_or_else(|error| panic!("{case}, we serve: {error}"));
            assert_eq!(tls.negotiated_key_exchange_group().unwrap().name(), case.group);
            assert_eq!(tls.protocol_version(), Some(case.version));
            assert!(tls.peer_certificates().is_some(), "{case}");
        });
        (address, thread)
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {:?}", self.suite, self.group, self.kind)
    }
}

/// A root and a leaf of one kind, in files: a peer reads them.
struct Pki {
    directory: PathBuf,
}

impl Pki {
    fn of(kind: KeyType) -> &'static Self {
        static PKIS: OnceLock<Vec<(KeyType, Pki)>> = OnceLock::new();
        let all = PKIS.get_or_init(|| {
            [KeyType::P256, KeyType::P384, KeyType::Rsa2048, KeyType::Ed25519]
                .map(|kind| (kind, Self::make(kind)))
                .into()
        });
        &all.iter().find(|(of, _)| *of == kind).unwrap().1
    }

    fn make(kind: KeyType) -> Self {
        let directory = scratch(&format!("{kind:?}"));
        let hour = Duration::from_secs(3600);
        let authority = Authority::generate_with(kind, "cluster.local", hour).unwrap();
        let profile = Profile { key_type: kind, ..Profile::server(&["server.example"], hour) };
        let leaf = authority.issue(&profile).unwrap();
        fs::write(directory.join("ca.pem"), authority.certificate_pem()).unwrap();
        fs::write(directory.join("leaf.pem"), leaf.certificate_pem).unwrap();
        fs::write(directory.join("key.pem"), leaf.key_pem).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.directory.join("ca.pem")).unwrap()).unwrap();
        Arc::new(roots)
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_file(self.directory.join("leaf.pem")).unwrap()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(self.directory.join("key.pem")).unwrap()
    }
}

/// An empty directory of this run, under cargo's.
fn scratch(name: &str) -> PathBuf {
    let directory =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("peers-{}", std::process::id())).join(name);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// A peer that never dials must not keep the test waiting.
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((tcp, _)) => {
                tcp.set_nonblocking(false).unwrap();
                return tcp;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("nobody dialled: {error}"),
        }
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp
}

/// A peer's process, which ends with the test.
struct Peer(Child);

impl Peer {
    /// Where it says on its standard output that it listens: the first line with this word holds the address at its end.
    fn listening(&mut self, word: &str) -> SocketAddr {
        let mut output = BufReader::new(self.0.stdout.take().unwrap());
        loop {
            let mut line = String::new();
            assert!(output.read_line(&mut line).unwrap() > 0, "the peer ended before it listened");
            if let Some(address) = line.trim().strip_prefix(word) {
                // What it says later must not fill a pipe that nobody reads.
                std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
                return address.trim().parse().unwrap();
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the program runs; else says that the test is missed, and fails where CI=true.
fn installed(program: &str, argument: &str) -> bool {
    let found = Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success());
    if !found {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "{program} is not installed, and CI must not miss it"
        );
        // Past the capture of the test harness, which shows nothing of tests that end well.
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            format!("SKIPPED: what needs {program}, which is not installed\n").as_bytes(),
        );
    }
    found
}
