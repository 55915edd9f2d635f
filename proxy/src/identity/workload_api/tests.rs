//! An agent on a Unix socket that says what a test tells it to, in the API's own bytes.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use fips::ca::{Authority, Profile};
use http::Response;
use http_body::Frame;
use http_body_util::StreamBody;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::identity::fixture::{Dir, HOUR, authority};
use crate::identity::{Identity, Source};

const OWN: &str = "spiffe://cluster.local/ns/bookinfo/sa/ratings";
const OTHER: &str = "spiffe://cluster.local/ns/bookinfo/sa/admin";

/// One SVID of an answer.
struct Svid<'a> {
    uri: &'a str,
    hint: &'a str,
    root: &'a Authority,
}

/// `X509SVIDResponse` (workload.proto).
fn response(svids: &[Svid<'_>], federated: &[(&str, &Authority)]) -> Bytes {
    response_with(svids, federated, &[])
}

/// The same with revocation lists.
fn response_with(svids: &[Svid<'_>], federated: &[(&str, &Authority)], lists: &[Vec<u8>]) -> Bytes {
    let mut message = BytesMut::new();
    for svid in svids {
        let issued = svid.root.issue(&Profile::workload(svid.uri, HOUR)).unwrap();
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
        let mut inner = BytesMut::new();
        field(&mut inner, 1, svid.uri.as_bytes());
        field(&mut inner, 2, &der(&issued.certificate_pem));
        field(&mut inner, 3, key.secret_der());
        field(&mut inner, 4, &der(svid.root.certificate_pem()));
        field(&mut inner, 5, svid.hint.as_bytes());
        field(&mut message, 1, &inner);
    }
    for list in lists {
        field(&mut message, 2, list);
    }
    for (domain, root) in federated {
        let mut entry = BytesMut::new();
        field(&mut entry, 1, format!("spiffe://{domain}").as_bytes());
        field(&mut entry, 2, &der(root.certificate_pem()));
        field(&mut message, 3, &entry);
    }
    message.freeze()
}

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

/// A length-delimited field.
fn field(out: &mut BytesMut, number: u8, bytes: &[u8]) {
    out.put_u8(number << 3 | 2);
    let mut length = bytes.len();
    while length > 0x7f {
        out.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
    out.put_slice(bytes);
}

/// An agent; what it says reaches every stream at once. Dropped: it is gone, and its connections with it.
struct Agent {
    says: watch::Sender<Option<Bytes>>,
    streams: Arc<Mutex<u32>>,
    serving: JoinHandle<()>,
}

impl Agent {
    fn start(dir: &Dir, says: Option<Bytes>) -> Self {
        let path = dir.path().join("agent.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        let (says, heard) = watch::channel(says);
        let streams = Arc::<Mutex<u32>>::default();
        let counted = Arc::clone(&streams);
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (heard, counted) = (heard.clone(), Arc::clone(&counted));
                let service = hyper::service::service_fn(move |request: http::Request<_>| {
                    *counted.lock().unwrap() += 1;
                    answer(request, heard.clone())
                });
                connections.spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), service),
                );
            }
        });
        Self { says, streams, serving }
    }

    fn streams(&self) -> u32 {
        *self.streams.lock().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn answer(
    request: http::Request<hyper::body::Incoming>,
    heard: watch::Receiver<Option<Bytes>>,
) -> Result<Response<Body>, Infallible> {
    assert_eq!(request.headers()["workload.spiffe.io"], "true");
    assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
    let response = Response::builder().header("content-type", "application/grpc");
    if heard.borrow().is_none() {
        let refused = response.header("grpc-status", "7").header("grpc-message", "no identity issued");
        return Ok(refused.body(Body::new(http_body_util::Empty::new())).unwrap());
    }
    let frames = futures_util::stream::unfold((heard, true), |(mut heard, first)| async move {
        if !first && heard.changed().await.is_err() {
            return None;
        }
        let message = heard.borrow_and_update().clone().unwrap_or_default();
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(message.len() as u32);
        framed.put_slice(&message);
        Some((Ok(Frame::data(framed.freeze())), (heard, false)))
    });
    Ok(response.body(Body::new(StreamBody::new(frames))).unwrap())
}

fn source(dir: &Dir, query: &str) -> Source {
    format!("spiffe:unix://{}{query}", dir.path().join("agent.sock").display()).parse().unwrap()
}

/// Loads as a start does, beside the runtime that the agent runs in.
async fn load(source: Source) -> Result<Arc<Identity>, IdentityError> {
    let load = move || Identity::load(source, "cluster.local", Some(OWN.parse().unwrap()), None);
    tokio::task::spawn_blocking(load).await.unwrap()
}

#[tokio::test]
async fn the_own_svid_is_taken_with_all_bundles_and_what_comes_later_too() {
    let (root, partner, dir) = (authority("cluster.local"), authority("partner.example"), Dir::new());
    let own = || Svid { uri: OWN, hint: "", root: &root };
    let other = Svid { uri: OTHER, hint: "admin", root: &root };
    let agent = Agent::start(&dir, Some(response(&[other, own()], &[])));
    let identity = load(source(&dir, "")).await.unwrap();
    assert_eq!(identity.id().as_str(), OWN);
    let first = identity.current().certified.cert[0].clone();

    let mut generations = identity.subscribe();
    let watching = tokio::spawn(Arc::clone(&identity).watch());
    agent.says.send_replace(Some(response(&[own()], &[("partner.example", &partner)])));
    generations.wait_for(|&generation| generation == 2).await.unwrap();
    let current = identity.current();
    assert_ne!(current.certified.cert[0], first);
    assert_eq!(
        current.trust.roots().trust_domains().collect::<Vec<_>>(),
        ["cluster.local", "partner.example"]
    );
    assert_eq!(identity.status().rotations, 1);
    watching.abort();
}

#[tokio::test]
async fn an_agent_that_comes_back_is_found_and_the_old_certificate_serves_meanwhile() {
    let (root, dir) = (authority("cluster.local"), Dir::new());
    let says = || Some(response(&[Svid { uri: OWN, hint: "", root: &root }], &[]));
    let first = says();
    let agent = Agent::start(&dir, first.clone());
    let identity = load(source(&dir, "")).await.unwrap();
    let watching = tokio::spawn(Arc::clone(&identity).watch());
    until(|| agent.streams() == 2).await;
    drop(agent);
    until(|| identity.problem().is_some()).await;
    assert!(matches!(identity.health(SystemTime::now()), crate::identity::Health::Degraded(_)));

    let agent = Agent::start(&dir, first);
    until(|| identity.problem().is_none()).await;
    assert_eq!(identity.generation(), 1, "the same again is not a new generation");
    agent.says.send_replace(says());
    until(|| identity.generation() == 2).await;
    watching.abort();
}

#[tokio::test]
async fn a_start_waits_for_an_agent_that_does_not_know_the_workload_yet() {
    let (root, dir) = (authority("cluster.local"), Dir::new());
    let agent = Agent::start(&dir, None);
    let loading = tokio::spawn(load(source(&dir, "")));
    until(|| agent.streams() > 1).await;
    agent.says.send_replace(Some(response(&[Svid { uri: OWN, hint: "", root: &root }], &[])));
    assert_eq!(loading.await.unwrap().unwrap().id().as_str(), OWN);
}

#[tokio::test]
async fn a_hint_picks_one_svid_and_none_has_another() {
    let (root, dir) = (authority("cluster.local"), Dir::new());
    let svids =
        [Svid { uri: OWN, hint: "internal", root: &root }, Svid { uri: OTHER, hint: "admin", root: &root }];
    let _agent = Agent::start(&dir, Some(response(&svids, &[])));
    assert_eq!(load(source(&dir, "?hint=admin")).await.unwrap().id().as_str(), OTHER);
    let Source::Spiffe(api) = source(&dir, "?hint=external") else { unreachable!() };
    let error = first(&api, None, Duration::from_millis(1)).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("their hints: internal, admin"), "{error}");
}

#[tokio::test]
async fn what_can_not_be_used_is_said_and_the_old_stays() {
    let (root, dir) = (authority("cluster.local"), Dir::new());
    let agent = Agent::start(&dir, Some(response(&[Svid { uri: OWN, hint: "", root: &root }], &[])));
    let identity = load(source(&dir, "")).await.unwrap();
    let watching = tokio::spawn(Arc::clone(&identity).watch());
    let elsewhere = authority("other.example");
    for (says, why) in [
        (Bytes::from_static(b"\x0a\x03abc"), "Workload API"),
        (
            response(&[Svid { uri: "spiffe://other.example/x", hint: "", root: &elsewhere }], &[]),
            "trust domain",
        ),
    ] {
        until(|| agent.streams() > 1).await;
        agent.says.send_replace(Some(says));
        until(|| identity.problem().is_some_and(|problem| problem.contains(why))).await;
        assert_eq!((identity.generation(), identity.id().as_str()), (1, OWN));
    }
    watching.abort();
}

#[tokio::test]
async fn revocation_lists_are_taken_with_and_without_a_new_certificate() {
    let (root, dir) = (authority("cluster.local"), Dir::new());
    let revoked = root.issue(&Profile::workload(OTHER, HOUR)).unwrap();
    let leaf = CertificateDer::from(der(&revoked.certificate_pem));
    let serial = webpki::EndEntityCert::try_from(&leaf).unwrap().serial().to_vec();
    let list = |serials: &[&[u8]]| {
        let pem = root.revocation_list(serials, SystemTime::now() + HOUR).unwrap();
        rustls_pki_types::CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
    };
    let svids = [Svid { uri: OWN, hint: "", root: &root }];
    let own = response(&svids, &[]);
    let with = |lists: &[Vec<u8>]| {
        let mut message = BytesMut::from(&own[..]);
        lists.iter().for_each(|list| field(&mut message, 2, list));
        Some(message.freeze())
    };
    let agent = Agent::start(&dir, with(&[list(&[])]));
    let identity = load(source(&dir, "")).await.unwrap();
    let believed = || {
        let now = rustls_pki_types::UnixTime::now();
        let usage = crate::identity::svid::Usage::Client;
        identity.current().trust.verify(&leaf, &[], usage, now).map(drop)
    };
    assert!(believed().is_ok());

    let watching = tokio::spawn(Arc::clone(&identity).watch());
    let mut trust = identity.subscribe_trust();
    agent.says.send_replace(with(&[list(&[]), list(&[&serial])]));
    trust.wait_for(|&generation| generation == 2).await.unwrap();
    assert_eq!(believed().unwrap_err().reason, crate::decision::Reason::Revoked);
    assert_eq!((identity.status().rotations, identity.problem()), (0, None), "the certificate is the same");

    // What can't be read leaves the lists as they were, and the certificate is taken all the same.
    let broken = response_with(&svids, &[], &[list(&[]), b"no list".to_vec()]);
    agent.says.send_replace(Some(broken));
    until(|| identity.status().rotations == 1).await;
    assert!(identity.problem().unwrap().contains("revocation list"));
    assert_eq!(believed().unwrap_err().reason, crate::decision::Reason::Revoked);
    agent.says.send_replace(with(&[]));
    until(|| believed().is_ok()).await;
    until(|| identity.problem().is_none()).await;
    watching.abort();
}

#[tokio::test]
async fn nobody_at_the_socket_is_said_with_the_path() {
    let dir = Dir::new();
    let Source::Spiffe(api) = source(&dir, "") else { unreachable!() };
    let error = first(&api, None, Duration::from_millis(1)).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("agent.sock") && error.contains("No such file"), "{error}");
}

async fn until(condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited).await.expect("it comes to that");
}
