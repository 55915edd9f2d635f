//! The mesh's authority, and callers that prove whatever a test wants.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fips::ca::{Authority, Issued, Profile};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{WantsServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{Client, Credentials, Directory, Maker, TlsClient, soon};

/// An authority as proxies find it in a directory.
#[derive(Debug)]
pub struct Pki {
    authority: Authority,
    directory: Directory,
}

impl Pki {
    /// A new one for `cluster.local`.
    #[expect(clippy::new_without_default, reason = "making one is an effect")]
    pub fn new() -> Self {
        let authority = Authority::generate("cluster.local", Duration::from_secs(3600)).unwrap();
        let directory = Directory::new();
        directory.write("ca.key", &authority.key_pem());
        directory.write("ca.crt", authority.certificate_pem());
        let pki = Self { authority, directory };
        pki.list(&[]);
        pki
    }

    /// Where proxies find what is revoked.
    pub fn list_path(&self) -> PathBuf {
        self.directory.path().join("revoked.pem")
    }

    /// Revokes one certificate and no other.
    pub fn revoke(&self, certificate: &CertificateDer<'_>) {
        let serial = webpki::EndEntityCert::try_from(certificate).unwrap().serial().to_vec();
        self.list(&[serial.strip_prefix(&[0]).unwrap_or(&serial)]);
    }

    fn list(&self, serials: &[&[u8]]) {
        let list = self.authority.revocation_list(serials, SystemTime::now() + Duration::from_secs(3600));
        self.directory.write("revoked.pem", &list.unwrap());
    }

    /// Puts another authority in place of this one, for the proxies.
    pub fn replace(&self) {
        let authority = Authority::generate("cluster.local", Duration::from_secs(3600)).unwrap();
        self.directory.write("ca.key", &authority.key_pem());
        self.directory.write("ca.crt", authority.certificate_pem());
    }

    /// Where proxies find it.
    pub fn source(&self) -> proxy::identity::Source {
        proxy::identity::Source::Dev(self.directory.path().to_owned())
    }

    /// A caller that proves `spiffe://cluster.local/ns/bookinfo/sa/ACCOUNT` and offers what Istio's sidecars do for HTTP/1.
    pub fn caller(&self, account: &str) -> Caller {
        let id = format!("spiffe://cluster.local/ns/bookinfo/sa/{account}");
        self.caller_with(&Profile::workload(id, Duration::from_secs(3600)))
    }

    /// Its root, PEM.
    pub fn root(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// A certificate and its key, PEM.
    pub fn issue(&self, profile: &Profile) -> (String, String) {
        let issued = self.authority.issue(profile).unwrap();
        (issued.certificate_pem, issued.key_pem)
    }

    /// TLS of a server outside of the mesh, which asks for certificates of `clients` if there are to be any.
    pub fn website(&self, profile: &Profile, clients: Option<&Pki>) -> Arc<ServerConfig> {
        let (certificate, key) = self.issue(profile);
        let builder = ServerConfig::builder_with_provider(fips::provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(clients.root().as_bytes()).unwrap()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), fips::provider());
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        website(builder, vec![certificate], key)
    }

    /// TLS of a server that presents this chain, whoever made it.
    pub fn website_of(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(fips::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth();
        website(builder, chain, key)
    }

    /// A caller with any certificate of this authority.
    pub fn caller_with(&self, profile: &Profile) -> Caller {
        Caller::of(&self.authority.issue(profile).unwrap())
    }

    /// A proxy's identity as files, for this account.
    pub fn credentials(&self, account: &str) -> Credentials {
        let credentials = Credentials::new(format!("spiffe://cluster.local/ns/bookinfo/sa/{account}"));
        let profile = Profile::workload(credentials.id(), Duration::from_secs(3600));
        credentials.renew(&self.authority.issue(&profile).unwrap(), self.authority.certificate_pem());
        credentials
    }

    /// The authority itself.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The same authority where it makes what it should not.
    pub fn maker(&self) -> Maker {
        Maker::root("cluster.local root", &self.authority.key_pem())
    }
}

fn website(
    builder: ConfigBuilder<ServerConfig, WantsServerCert>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Arc<ServerConfig> {
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Who calls, and what it offers to speak.
#[derive(Debug, Clone)]
pub struct Caller {
    certified: Option<Arc<CertifiedKey>>,
    alpn: Vec<&'static str>,
    /// One for all of its connections, so that sessions can be resumed.
    config: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl Caller {
    /// One that proves nothing.
    pub fn anonymous() -> Self {
        Self { certified: None, alpn: vec!["istio-http/1.1", "istio", "http/1.1"], config: Arc::default() }
    }

    /// One that presents a certificate of any authority.
    pub fn of(issued: &Issued) -> Self {
        let leaf = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        Self::presenting(vec![leaf], PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap())
    }

    /// One that presents this chain and signs with this key, whether or not they fit.
    pub fn presenting(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        let key = fips::provider().key_provider.load_private_key(key).unwrap();
        Self { certified: Some(Arc::new(CertifiedKey::new(chain, key))), ..Self::anonymous() }
    }

    /// Its certificate; the first of what it presents.
    pub fn leaf(&self) -> CertificateDer<'static> {
        self.certified.as_ref().expect("one that has a certificate").cert[0].clone()
    }

    /// The same with other offers.
    pub fn offering(self, alpn: &[&'static str]) -> Self {
        Self { alpn: alpn.to_vec(), config: Arc::default(), ..self }
    }

    /// Connects and shakes hands. The proxy's certificate is not looked at: that is for the proxies' own tests.
    pub async fn connect(&self, to: SocketAddr) -> TlsClient {
        self.try_connect(to).await.expect("a handshake")
    }

    /// The same behind bytes that are sent before the handshake.
    pub async fn connect_behind(&self, to: SocketAddr, first: &[u8]) -> TlsClient {
        self.shake_hands(to, first).await.1.expect("a handshake")
    }

    /// The same where the handshake may fail.
    pub async fn try_connect(&self, to: SocketAddr) -> std::io::Result<TlsClient> {
        self.attempt(to).await.1
    }

    /// The same, with the address that it came from.
    pub async fn attempt(&self, to: SocketAddr) -> (SocketAddr, std::io::Result<TlsClient>) {
        self.shake_hands(to, b"").await
    }

    async fn shake_hands(&self, to: SocketAddr, first: &[u8]) -> (SocketAddr, std::io::Result<TlsClient>) {
        let mut socket = soon("a connection", TcpStream::connect(to)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let source = socket.local_addr().unwrap();
        socket.write_all(first).await.unwrap();
        let name = ServerName::try_from("ratings.bookinfo.svc.cluster.local").unwrap();
        (source, self.try_connect_over(socket, name).await)
    }

    /// Connects, and names this server.
    pub async fn connect_to(&self, to: SocketAddr, name: &str) -> TlsClient {
        self.try_connect_to(to, name).await.expect("a handshake")
    }

    /// The same where the handshake may fail.
    pub async fn try_connect_to(&self, to: SocketAddr, name: &str) -> std::io::Result<TlsClient> {
        let socket = soon("a connection", TcpStream::connect(to)).await?;
        socket.set_nodelay(true)?;
        self.try_connect_over(socket, ServerName::try_from(name.to_owned()).unwrap()).await
    }

    /// Shakes hands on a connection that is there, and names this server.
    pub async fn connect_over(&self, socket: TcpStream, name: ServerName<'static>) -> TlsClient {
        self.try_connect_over(socket, name).await.expect("a handshake")
    }

    async fn try_connect_over(
        &self,
        socket: TcpStream,
        name: ServerName<'static>,
    ) -> std::io::Result<TlsClient> {
        let handshake = TlsConnector::from(self.config()).connect(name, socket);
        soon("a handshake", handshake).await.map(Client::over)
    }

    /// The first bytes that it would send.
    pub fn client_hello(&self) -> Vec<u8> {
        let name = ServerName::try_from("app.example").unwrap();
        let mut connection = rustls::ClientConnection::new(self.config(), name).unwrap();
        let mut hello = Vec::new();
        connection.write_tls(&mut hello).unwrap();
        hello
    }

    fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(self.config.get_or_init(|| Arc::new(self.make_config())))
    }

    fn make_config(&self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(fips::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match &self.certified {
            None => builder.with_no_client_auth(),
            Some(certified) => builder.with_client_cert_resolver(Arc::new(Presented(Arc::clone(certified)))),
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

/// Presents the same to every server.
#[derive(Debug)]
struct Presented(Arc<CertifiedKey>);

impl ResolvesClientCert for Presented {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes any server for what it says it is.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        fips::provider().signature_verification_algorithms.supported_schemes()
    }
}
