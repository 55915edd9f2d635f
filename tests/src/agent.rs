//! A SPIFFE Workload API on a socket of its own: an SVID for each account, and the revocation lists that a test wants.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use fips::ca::Profile;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::app::serve_over;
use crate::protobuf::Message;
use crate::{Directory, Pki};

/// An agent at work, for as long as the runtime that it was started in.
pub struct Agent {
    directory: Directory,
    /// `X509SVIDResponse` without lists (SPIFFE Workload API, `workload.proto`).
    svids: Message,
    says: watch::Sender<Bytes>,
}

impl Agent {
    /// With an SVID of this authority for each account.
    pub(crate) fn start(pki: &Pki, accounts: &[String]) -> Self {
        let directory = Directory::new();
        let listener = std::os::unix::net::UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        let svids =
            accounts.iter().fold(Message::default(), |all, account| all.message(1, svid(pki, account)));
        let (says, heard) = watch::channel(svids.framed());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let heard = heard.clone();
                tokio::spawn(serve_over(socket, true, move |request| answer(request, heard.clone())));
            }
        });
        Self { directory, svids, says }
    }

    /// Where proxies find it.
    pub(crate) fn source(&self) -> proxy::identity::Source {
        format!("spiffe:unix://{}", self.directory.path().join("agent.sock").display()).parse().unwrap()
    }

    /// Says to everybody what it said before, and this list, PEM.
    pub fn revoke(&self, list: &str) {
        let list = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
        self.says.send_replace(self.svids.clone().bytes(2, &list).framed());
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("directory", &self.directory).finish_non_exhaustive()
    }
}

fn svid(pki: &Pki, account: &str) -> Message {
    let id = format!("spiffe://cluster.local/ns/bookinfo/sa/{account}");
    let issued = pki.authority().issue(&Profile::workload(&id, Duration::from_secs(3600))).unwrap();
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    Message::default()
        .text(1, &id)
        .bytes(2, &der(&issued.certificate_pem))
        .bytes(3, key.secret_der())
        .bytes(4, &der(pki.root()))
}

async fn answer(
    request: Request<Incoming>,
    heard: watch::Receiver<Bytes>,
) -> Result<Response<impl http_body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
    assert_eq!(request.headers()["workload.spiffe.io"], "true");
    let frames = futures_util::stream::unfold((heard, true), |(mut heard, first)| async move {
        if !first && heard.changed().await.is_err() {
            return None;
        }
        let said = heard.borrow_and_update().clone();
        Some((Ok(Frame::data(said)), (heard, false)))
    });
    let response = Response::builder().header("content-type", "application/grpc");
    Ok(response.body(StreamBody::new(Box::pin(frames))).unwrap())
}
