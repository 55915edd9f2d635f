//! One fetch of a key set: GET over verified TLS, bounded in time, size and redirects.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use control_client::jwks::{KeySet, MAX_BYTES};
use control_client::snapshot::{KeyLocation, RemoteKeys};
use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Options;
use super::status::{Failure, Problem};
use crate::net::socket;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 3;
/// Addresses of a server that are tried.
const MAX_ADDRESSES: usize = 4;
/// Where distributions have the roots that they trust: Debian and Alpine, Fedora and RHEL, the BSDs.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

pub(super) struct Fetcher {
    options: Options,
}

/// What is read of a discovery document (OpenID Connect Discovery 1.0 section 3).
#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: String,
}

impl Fetcher {
    pub(super) fn new(options: Options) -> Self {
        Self { options }
    }

    /// Fetches a set.
    pub(super) async fn keys(&self, source: &RemoteKeys) -> Result<KeySet, Problem> {
        let within = tokio::time::timeout(source.timeout, self.keys_at(&source.location)).await;
        within.unwrap_or_else(|_| {
            let millis = source.timeout.as_millis();
            Err(Failure::Timeout.because(format_args!("no whole answer within {millis} ms")))
        })
    }

    async fn keys_at(&self, location: &KeyLocation) -> Result<KeySet, Problem> {
        let url = match location {
            KeyLocation::Url(url) => url.clone(),
            KeyLocation::Discovery(issuer) => self.discover(issuer).await?,
        };
        let body = self.get(&url).await?;
        KeySet::parse(&body).map_err(|why| Failure::Unusable.because(why).at(&url))
    }

    /// The key set's URL, as the issuer's configuration says.
    async fn discover(&self, issuer: &str) -> Result<String, Problem> {
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let body = self.get(&url).await?;
        let unusable = |why: String| Failure::Unusable.because(why).at(&url);
        let document: Document = serde_json::from_slice(&body)
            .map_err(|error| unusable(format!("not an issuer's configuration: {error}")))?;
        // Section 4.3: else one issuer could speak for another.
        if document.issuer != issuer {
            return Err(unusable(format!("the configuration of another issuer, {:.200}", document.issuer)));
        }
        if issuer.starts_with("https:") && !document.jwks_uri.starts_with("https:") {
            return Err(unusable("it leads to keys without TLS".into()));
        }
        Ok(document.jwks_uri)
    }

    async fn get(&self, url: &str) -> Result<Bytes, Problem> {
        let not_a_url = |_| Failure::Unusable.because(format_args!("{url:.200} is not a URL"));
        let mut url: Uri = url.parse().map_err(not_a_url)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(&url).await.map_err(|problem| problem.at(&url))?;
            match response.status() {
                StatusCode::OK => return body(response).await.map_err(|problem| problem.at(&url)),
                status if status.is_redirection() => {
                    url = redirected(&url, &response).map_err(|problem| problem.at(&url))?;
                }
                status => return Err(Failure::Status.because(format_args!("it answers {status}")).at(&url)),
            }
        }
        Err(Failure::Redirect.because(format_args!("more than {MAX_REDIRECTS} redirects")).at(&url))
    }

    async fn ask(&self, url: &Uri) -> Result<Response<Incoming>, Problem> {
        let host = url.host().ok_or_else(|| Failure::Unusable.because("no host in the URL"))?;
        let secure = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let plain_host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = self.connect(plain_host, port).await?;
        let request = Request::get(url.path_and_query().map_or("/", |path| path.as_str()))
            .header(HOST, url.authority().map_or(host, |authority| authority.as_str()))
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("writ/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(|error| Failure::Unusable.because(error))?;
        if !secure {
            return send(TokioIo::new(stream), request).await;
        }
        let tls = |why: String| Failure::Tls.because(why);
        let name = ServerName::try_from(plain_host.to_owned())
            .map_err(|_| tls(format!("`{plain_host}` is no name a server can prove")))?;
        let config = self.tls().await.map_err(tls)?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        send(TokioIo::new(stream.map_err(|error| tls(format!("TLS: {error}")))?), request).await
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Problem> {
        let found = tokio::net::lookup_host((host, port)).await;
        let addresses = found.map_err(|error| Failure::Unreachable.because(error))?;
        let mut failed = "its name has no address".to_owned();
        for address in addresses.take(MAX_ADDRESSES) {
            match socket::connect(address, self.options.mark).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = format!("{address}: {error}"),
            }
        }
        Err(Failure::Unreachable.because(failed))
    }

    /// Roots are read for each fetch: they may be renewed, and fetches are rare.
    async fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let authority = self.options.authority.clone();
        let read = tokio::task::spawn_blocking(move || roots(authority)).await;
        let roots = read.unwrap_or_else(|error| Err(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(fips::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = fips::client("TLS to token issuers", config).map_err(|why| why.to_string())?;
        Ok(Arc::new(config))
    }
}

fn roots(authority: Option<PathBuf>) -> Result<RootCertStore, String> {
    let system = || SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists());
    let path = authority.or_else(system).ok_or(
        "no roots to verify the issuer's server by: the system has no bundle, and --issuer-ca names none",
    )?;
    let name = path.display();
    let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(read.map_err(|error| format!("{name}: {error}"))?);
    if taken == 0 { Err(format!("{name}: no root certificate in it")) } else { Ok(roots) }
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, Problem>
where
    S: Read + Write + Unpin + Send + 'static,
{
    let no_http = |error| Failure::Unreachable.because(format_args!("no HTTP answer: {error}"));
    let (mut sender, connection) = http1::handshake(stream).await.map_err(no_http)?;
    // Ends with the answer's body, or when that is dropped.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(no_http)
}

async fn body(response: Response<Incoming>) -> Result<Bytes, Problem> {
    match Limited::new(response.into_body(), MAX_BYTES).collect().await {
        Ok(read) => Ok(read.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Failure::TooLarge.because(format_args!("longer than the {MAX_BYTES} bytes that are read")))
        }
        Err(error) => Err(Failure::BrokenOff.because(error)),
    }
}

fn redirected(from: &Uri, response: &Response<Incoming>) -> Result<Uri, Problem> {
    let refused = |why: String| Failure::Redirect.because(why);
    let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
    let absolute = match (to.starts_with('/') && !to.starts_with("//"), from.scheme_str(), from.authority()) {
        (true, Some(scheme), Some(authority)) => format!("{scheme}://{authority}{to}"),
        _ => to.to_owned(),
    };
    let to = absolute.parse::<Uri>().ok().filter(|to| to.host().is_some());
    match to.as_ref().and_then(Uri::scheme_str) {
        Some("https") => {}
        Some("http") if from.scheme_str() == Some("http") => {}
        Some("http") => return Err(refused("it leads away from TLS".into())),
        _ => return Err(refused(format!("it leads to what is not a URL, {absolute:.200}"))),
    }
    to.ok_or_else(|| refused("it leads nowhere".into()))
}
