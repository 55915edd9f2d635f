//! An issuer of tokens: signs them, and says over TLS by which keys.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fips::ca::{Authority, Profile};
use fips::jws::{Algorithm, PublicNumbers, SigningKey};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::Directory;

/// An issuer on a port of its own, gone when dropped.
#[derive(Debug)]
pub struct Issuer {
    root: Arc<Authority>,
    address: SocketAddr,
    key: SigningKey,
    key_id: String,
    published: Arc<Published>,
    directory: Directory,
    serving: JoinHandle<()>,
}

/// What it tells the world.
#[derive(Debug, Default)]
struct Published {
    keys: Mutex<Vec<Value>>,
    /// Answers to `/keys` so far.
    fetches: AtomicUsize,
    /// What `/keys` answers instead.
    instead: Mutex<Option<Instead>>,
}

/// What an issuer's server may do in place of telling its keys.
#[derive(Debug, Clone)]
pub enum Instead {
    /// It sends these bytes.
    Bytes(Vec<u8>),
    /// It sends these bytes over and over, for as long as they are taken.
    Endless(Vec<u8>, Vec<u8>),
    /// One byte of them at a time, with pauses.
    Drip(Vec<u8>),
    /// It breaks the connection off after these bytes.
    CutAfter(Vec<u8>),
    /// It says nothing.
    Hang,
}

impl Issuer {
    /// An issuer whose first key, `first`, is published.
    pub async fn start(algorithm: Algorithm) -> Self {
        let root = Authority::generate("issuer.example", Duration::from_secs(3600)).unwrap();
        Self::under(Arc::new(root), algorithm).await
    }

    /// Another one, for whose server the same root vouches.
    pub async fn beside(&self) -> Self {
        Self::under(Arc::clone(&self.root), self.key.algorithm()).await
    }

    async fn under(authority: Arc<Authority>, algorithm: Algorithm) -> Self {
        let issued = authority.issue(&Profile::server(&["localhost"], Duration::from_secs(3600))).unwrap();
        let config = ServerConfig::builder_with_provider(fips::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap(),
            )
            .unwrap();
        let directory = Directory::new();
        directory.write("ca.pem", authority.certificate_pem());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let published = Arc::<Published>::default();
        let serving = {
            let (published, issuer) = (Arc::clone(&published), url(address));
            let acceptor = TlsAcceptor::from(Arc::new(config));
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    let (published, issuer) = (Arc::clone(&published), issuer.clone());
                    let accepting = acceptor.accept(socket);
                    tokio::spawn(async move {
                        // A client that takes us for somebody else leaves here.
                        if let Ok(stream) = accepting.await {
                            let _ = answer(stream, &issuer, &published).await;
                        }
                    });
                }
            })
        };
        let key = SigningKey::generate(algorithm).unwrap();
        let key_id = "first".into();
        let issuer = Self { root: authority, address, key, key_id, published, directory, serving };
        issuer.publish();
        issuer
    }

    /// Its name, `iss`.
    pub fn name(&self) -> String {
        url(self.address)
    }

    /// The file with the root that vouches for it.
    pub fn authority(&self) -> std::path::PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Signs by a new key from now on.
    pub fn rotate(&mut self, key_id: &str) {
        self.key = SigningKey::generate(self.key.algorithm()).unwrap();
        self.key_id = key_id.into();
    }

    /// Publishes the key that it signs by, beside those before.
    pub fn publish(&self) {
        self.published.keys.lock().unwrap().push(self.jwk());
    }

    /// Publishes a key no longer.
    pub fn withdraw(&self, key_id: &str) {
        self.published.keys.lock().unwrap().retain(|key| key["kid"] != key_id);
    }

    /// The public half of the key that it signs by.
    pub fn jwk(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match self.key.public() {
            PublicNumbers::Rsa(n, e) => json!({"kty": "RSA", "n": encode(&n), "e": encode(&e)}),
            PublicNumbers::Ec(crv, x, y) => {
                json!({"kty": "EC", "crv": crv, "x": encode(&x), "y": encode(&y)})
            }
            PublicNumbers::Ed25519(x) => json!({"kty": "OKP", "crv": "Ed25519", "x": encode(&x)}),
        };
        jwk["kid"] = self.key_id.as_str().into();
        jwk
    }

    /// How often its keys were asked for.
    pub fn fetches(&self) -> usize {
        self.published.fetches.load(Ordering::Relaxed)
    }

    /// Answers differently from now on where its keys are asked for.
    pub fn instead(&self, instead: Instead) {
        *self.published.instead.lock().unwrap() = Some(instead);
    }

    /// It answers no more.
    pub fn go_down(&self) {
        self.serving.abort();
    }

    /// Claims that are good for ten minutes.
    pub fn claims(&self) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        json!({"iss": self.name(), "sub": "alice", "aud": "ratings", "exp": now + 600, "iat": now})
    }

    /// The header of its tokens.
    pub fn header(&self) -> Value {
        json!({"alg": self.key.algorithm().as_str(), "kid": self.key_id, "typ": "JWT"})
    }

    /// Signs claims.
    pub fn token(&self, claims: &Value) -> String {
        self.sign(&self.header().to_string(), &claims.to_string())
    }

    /// Signs whatever it is given.
    pub fn sign(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = self.key.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// A token for Alice.
    pub fn alice(&self) -> String {
        self.token(&self.claims())
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn url(address: SocketAddr) -> String {
    format!("https://localhost:{}", address.port())
}

async fn answer(
    mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    issuer: &str,
    published: &Published,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let body = if head.starts_with(b"GET /.well-known/openid-configuration ") {
        json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys"), "other": [1]}).to_string()
    } else {
        let keys = published.keys.lock().unwrap().clone();
        published.fetches.fetch_add(1, Ordering::Relaxed);
        let instead = published.instead.lock().unwrap().clone();
        // What it does elsewhere on its server, it does well.
        if let Some(instead) = instead.filter(|_| !head.starts_with(b"GET /moved ")) {
            return misbehave(stream, instead).await;
        }
        json!({ "keys": keys }).to_string()
    };
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

async fn misbehave(
    mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    instead: Instead,
) -> std::io::Result<()> {
    match instead {
        Instead::Bytes(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await
        }
        Instead::Endless(first, bytes) => {
            stream.write_all(&first).await?;
            loop {
                stream.write_all(&bytes).await?;
            }
        }
        Instead::Drip(bytes) => {
            for byte in bytes {
                stream.write_all(&[byte]).await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            stream.shutdown().await
        }
        Instead::CutAfter(bytes) => {
            stream.write_all(&bytes).await?;
            stream.flush().await
        }
        Instead::Hang => std::future::pending().await,
    }
}
