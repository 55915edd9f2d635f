//! The upstream side as a whole: who is picked, how they are reached, what is kept and for how long.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control_client::snapshot::{self, BackendTls, EndpointSet, Endpoints, Protocol};
use fips::ca::{Authority, Profile};
use tokio::io::AsyncWriteExt;

use super::testing::*;
use super::*;
use crate::decision::PolicyRef;
use crate::identity::fixture::{HOUR, authority, identity};
use crate::tls::ServerTls;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const SERVER: &str = "spiffe://cluster.local/ns/bookinfo/sa/ratings";
const OTHER: &str = "spiffe://cluster.local/ns/bookinfo/sa/details";
const CLIENT: &str = "spiffe://cluster.local/ns/bookinfo/sa/reviews";

fn endpoint(address: &str, weight: u32) -> snapshot::Endpoint {
    snapshot::Endpoint {
        address: address.parse().unwrap(),
        workload: Some("bookinfo/ratings".into()),
        mesh_tls: false,
        identity: None,
        weight,
        mtls_required: false,
    }
}

fn endpoints(sets: &[(&str, Vec<snapshot::Endpoint>)]) -> Endpoints {
    let set = |(id, endpoints): &(&str, Vec<_>)| {
        ((*id).to_owned(), Arc::new(EndpointSet { endpoints: endpoints.clone() }))
    };
    Endpoints { by_backend: sets.iter().map(set).collect(), by_address: Arc::default() }
}

fn declared(id: &str) -> snapshot::Backend {
    snapshot::Backend {
        id: id.into(),
        name: id.into(),
        protocol: None,
        tls: BackendTls::Auto,
        object: None,
        mtls_required: false,
        connect_timeout: TIMEOUT,
    }
}

fn backend(id: BackendId, tls: BackendTls) -> Backend {
    Backend {
        id,
        name: "ratings".into(),
        protocol: None,
        tls,
        mtls_required: false,
        connect_timeout: TIMEOUT,
        object: PolicyRef::NONE,
    }
}

/// An upstream side with one backend of these endpoints.
fn with(endpoints_of: Vec<snapshot::Endpoint>) -> (Rc<Upstream>, Backend) {
    let upstream = upstream();
    let id = upstream.registry.intern(&[declared("a")])[0];
    upstream.registry.update(&endpoints(&[("a", endpoints_of)]));
    (upstream, backend(id, BackendTls::Auto))
}

fn pick(upstream: &Upstream, backend: &Backend) -> Result<Hop, Reject> {
    upstream.pick(backend, HopProtocol::Http1, &[])
}

fn shares(upstream: &Upstream, backend: &Backend, picks: usize) -> HashMap<SocketAddr, usize> {
    let mut shares = HashMap::new();
    for _ in 0..picks {
        *shares.entry(pick(upstream, backend).unwrap().address()).or_default() += 1;
    }
    shares
}

#[test]
fn a_pooled_request_is_a_small_future() {
    local(async {
        let (server, upstream) = (Server::answering(OK).await, upstream());
        let hop = server.hop(&upstream, HopProtocol::Http1);
        let size = size_of_val(&upstream.send(&hop, &mut get()));
        assert!(size <= 216, "{size}");
    });
}

#[test]
fn ids_stay_and_are_never_given_twice() {
    let registry = Registry::new();
    let first = registry.intern(&[declared("a"), declared("b")]);
    assert_eq!(registry.intern(&[declared("b"), declared("c"), declared("a")])[..], {
        let c = BackendId(2);
        [first[1], c, first[0]]
    });
    registry.retire(&[first[0]]);
    let status: Vec<_> = registry.status().into_iter().map(|backend| backend.id).collect();
    assert_eq!(status, ["a"]);
    assert_eq!(registry.intern(&[declared("b")]), [BackendId(3)]);
}

#[test]
fn endpoints_known_before_their_backend_are_found() {
    let registry = Registry::new();
    registry.update(&endpoints(&[("a", vec![endpoint("10.0.0.1:80", 0)])]));
    registry.intern(&[declared("a")]);
    let status = registry.status();
    assert_eq!(status[0].endpoints[0].address, "10.0.0.1:80".parse().unwrap());
    assert_eq!(status[0].endpoints[0].weight, 1);
}

#[test]
fn a_set_that_did_not_change_is_not_swapped() {
    let registry = Registry::new();
    let id = registry.intern(&[declared("a")])[0];
    let cell = registry.cell(id).unwrap();
    let two = vec![endpoint("10.0.0.1:80", 1), endpoint("10.0.0.2:80", 1)];
    registry.update(&endpoints(&[("a", two.clone())]));
    let before = Arc::clone(&cell.load());
    registry.update(&endpoints(&[("a", two.clone()), ("b", two.clone())]));
    assert!(Arc::ptr_eq(&before, &cell.load()));

    let three = [vec![endpoint("10.0.0.0:80", 1)], two].concat();
    registry.update(&endpoints(&[("a", three)]));
    let after = cell.load();
    assert_eq!(after.endpoints.len(), 3);
    assert!(Arc::ptr_eq(&before.endpoints[1], &after.endpoints[2]), "an endpoint that stays is the same");
    registry.update(&Endpoints::default());
    assert!(cell.load().endpoints.is_empty());
}

#[test]
fn workloads_are_found_by_address() {
    let registry = Registry::new();
    let known =
        |identity: &str| snapshot::Endpoint { identity: Some(identity.into()), ..endpoint("10.0.0.1:0", 1) };
    let at: IpAddr = "10.0.0.1".parse().unwrap();
    let by_address = |identity| Endpoints {
        by_address: Arc::new(BTreeMap::from([(at, known(identity))])),
        ..Endpoints::default()
    };
    assert_eq!(registry.endpoint_at(at), None);
    registry.update(&by_address(SERVER));
    let found = registry.endpoint_at(at).unwrap();
    assert_eq!(&*found.identities.as_ref().unwrap()[0], SERVER);
    assert_eq!(registry.endpoint_at("::ffff:10.0.0.1".parse().unwrap()), Some(Arc::clone(&found)));
    registry.update(&by_address(SERVER));
    assert!(Arc::ptr_eq(&found, &registry.endpoint_at(at).unwrap()));
    registry.update(&by_address(OTHER));
    assert_eq!(&*registry.endpoint_at(at).unwrap().identities.as_ref().unwrap()[0], OTHER);
}

#[test]
fn no_endpoint_is_told_with_the_name_of_the_backend() {
    let (upstream, backend) = with(vec![]);
    let reject = pick(&upstream, &backend).expect_err("none");
    assert_eq!((reject.stage, reject.reason), (Stage::Pick, Reason::NoEndpoints));
    assert!(reject.detail.unwrap().contains("ratings"));
    let unknown = self::backend(BackendId(7), BackendTls::Auto);
    assert_eq!(pick(&upstream, &unknown).expect_err("none").reason, Reason::NoEndpoints);
}

#[test]
fn picks_follow_weights() {
    let (upstream, backend) =
        with(vec![endpoint("10.0.0.1:80", 1), endpoint("10.0.0.2:80", 3), endpoint("10.0.0.3:80", 6)]);
    let shares = shares(&upstream, &backend, 10_000);
    for (address, expected) in [("10.0.0.1:80", 1000), ("10.0.0.2:80", 3000), ("10.0.0.3:80", 6000)] {
        let share = shares[&address.parse().unwrap()];
        assert!(share.abs_diff(expected) < 300, "{address}: {share} of 10,000");
    }
}

#[test]
fn equal_endpoints_have_equal_shares_and_the_busy_one_fewer() {
    let all: Vec<_> = (1..=4).map(|n| endpoint(&format!("10.0.0.{n}:80"), 1)).collect();
    let (upstream, backend) = with(all);
    for share in shares(&upstream, &backend, 8000).values() {
        assert!(share.abs_diff(2000) < 250, "{share} of 8,000");
    }
    let busy = pick(&upstream, &backend).unwrap();
    let mut asked = get();
    let request = upstream.send(&busy, &mut asked);
    let share = shares(&upstream, &backend, 1000).get(&busy.address()).copied();
    assert_eq!(share, None, "of two, the other is less loaded");
    drop(request);
    assert!(shares(&upstream, &backend, 1000).contains_key(&busy.address()));
}

#[test]
fn endpoints_tried_before_are_avoided_while_there_are_others() {
    let (upstream, backend) = with(vec![endpoint("10.0.0.1:80", 1), endpoint("10.0.0.2:80", 1)]);
    let tried = ["10.0.0.1:80".parse().unwrap()];
    for _ in 0..50 {
        let hop = upstream.pick(&backend, HopProtocol::Http1, &tried).unwrap();
        assert_eq!(hop.address(), "10.0.0.2:80".parse().unwrap());
    }
    let all = [tried[0], "10.0.0.2:80".parse().unwrap()];
    assert!(upstream.pick(&backend, HopProtocol::Http1, &all).is_ok());
}

#[test]
fn load_survives_a_change_of_the_set() {
    let (upstream, backend) = with(vec![endpoint("10.0.0.1:80", 1), endpoint("10.0.0.2:80", 1)]);
    let busy = pick(&upstream, &backend).unwrap();
    let mut asked = get();
    let request = upstream.send(&busy, &mut asked);
    let changed: Vec<_> = ["10.0.0.1:80", "10.0.0.2:80"].map(|address| endpoint(address, 5)).to_vec();
    upstream.registry.update(&endpoints(&[("a", changed)]));
    assert!(!shares(&upstream, &backend, 100).contains_key(&busy.address()));
    drop(request);
}

#[test]
fn a_retired_backend_is_forgotten_by_workers() {
    let (upstream, backend) = with(vec![endpoint("10.0.0.1:80", 1)]);
    pick(&upstream, &backend).unwrap();
    upstream.registry.retire(&[]);
    let other = upstream.registry.intern(&[declared("b")])[0];
    let _ = pick(&upstream, &self::backend(other, BackendTls::Auto));
    assert!(upstream.balancers.borrow()[backend.id.0 as usize].is_none());
}

#[test]
fn tls_is_decided_by_backend_and_endpoint() {
    let speaks = |mesh_tls, identity: Option<&str>, mtls_required| {
        let identity = identity.map(Into::into);
        Endpoint::from(&snapshot::Endpoint {
            mesh_tls,
            identity,
            mtls_required,
            ..endpoint("10.0.0.1:80", 1)
        })
    };
    let mesh = Ok(HopTls::mesh(SERVER));
    let plaintext = Ok(HopTls::Plaintext);
    let refused = Err(Reason::MtlsUnavailable);
    let ordered = |sans: &[&str]| BackendTls::Mesh { sans: sans.iter().map(|san| (*san).into()).collect() };
    for (tls, required, endpoint, expected) in [
        (BackendTls::Auto, false, speaks(true, Some(SERVER), false), &mesh),
        (BackendTls::Auto, true, speaks(true, Some(SERVER), true), &mesh),
        (BackendTls::Auto, false, speaks(true, None, false), &refused),
        (BackendTls::Auto, false, speaks(false, None, false), &plaintext),
        (BackendTls::Auto, false, speaks(false, Some(SERVER), false), &plaintext),
        (BackendTls::Auto, true, speaks(false, Some(SERVER), false), &refused),
        (BackendTls::Auto, false, speaks(false, Some(SERVER), true), &refused),
        (BackendTls::Plaintext, false, speaks(true, Some(SERVER), false), &plaintext),
        (BackendTls::Plaintext, true, speaks(true, Some(SERVER), false), &refused),
        (ordered(&[]), false, speaks(false, Some(SERVER), false), &mesh),
        (ordered(&[]), false, speaks(true, None, false), &refused),
        (ordered(&[SERVER]), false, speaks(true, Some(OTHER), false), &mesh),
    ] {
        let decided = HopTls::decide(&tls, required, &endpoint).map_err(|reject| reject.reason);
        assert_eq!(decided, *expected, "{tls:?} {required} {endpoint:?}");
    }
}

#[test]
fn a_change_of_tls_takes_effect_at_once() {
    let speaker =
        snapshot::Endpoint { mesh_tls: true, identity: Some(SERVER.into()), ..endpoint("10.0.0.1:80", 1) };
    let (upstream, mut backend) = with(vec![speaker]);
    assert_eq!(*pick(&upstream, &backend).unwrap().tls(), HopTls::mesh(SERVER));
    backend.tls = BackendTls::Plaintext;
    assert_eq!(*pick(&upstream, &backend).unwrap().tls(), HopTls::Plaintext);
    backend.mtls_required = true;
    assert_eq!(pick(&upstream, &backend).expect_err("refused").reason, Reason::MtlsUnavailable);
    for sans in 0..20 {
        backend.tls = BackendTls::Mesh { sans: vec![format!("{SERVER}{sans}")] };
        assert!(pick(&upstream, &backend).is_ok());
    }
    backend.tls = BackendTls::Auto;
    assert_eq!(*pick(&upstream, &backend).unwrap().tls(), HopTls::mesh(SERVER));
}

#[test]
fn a_declared_protocol_wins_over_the_requests() {
    let (upstream, mut backend) = with(vec![endpoint("10.0.0.1:80", 1)]);
    use HopProtocol::{Http1, Http2, Tcp};
    for (declared, asked, expected) in [
        (None, Http1, Http1),
        (None, Http2, Http2),
        (Some(Protocol::Grpc), Http1, Http2),
        (Some(Protocol::Http2), Http1, Http2),
        (Some(Protocol::Http1), Http2, Http1),
        (Some(Protocol::Http2), Tcp, Tcp),
    ] {
        backend.protocol = declared;
        assert_eq!(upstream.pick(&backend, asked, &[]).unwrap().protocol(), expected);
    }
}

#[test]
fn idle_connections_are_bounded() {
    local(async {
        let server = Server::answering(OK).await;
        for (per_target, in_all, kept) in [(2, 10, 2), (10, 3, 3)] {
            let settings =
                Settings { max_idle_per_target: per_target, max_idle: in_all, ..Settings::default() };
            let upstream = upstream_with(settings);
            futures_util::future::join_all((0..5).map(|_| server.get(&upstream))).await;
            assert_eq!(upstream.idle_connections(), kept);
        }
    });
}

#[test]
fn idle_connections_grow_old() {
    local_paused(async {
        let settings = Settings { idle_timeout: Duration::from_secs(80), ..Settings::default() };
        let (server, upstream) = (Server::answering(OK).await, upstream_with(settings));
        for _ in 0..2 {
            let start = tokio::time::Instant::now();
            server.get(&upstream).await;
            assert_eq!(upstream.idle_connections(), 1);
            while upstream.idle_connections() > 0 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            assert!((70..=90).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
            turn().await;
            assert!(upstream.targets.borrow().is_empty() && !upstream.sweeping.get());
        }
        assert_eq!(server.accepted(), 2);
    });
}

#[test]
fn destinations_that_keep_no_connection_are_forgotten() {
    local_paused(async {
        let closed = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let (server, upstream) = (Server::answering(closed).await, upstream());
        server.get(&upstream).await;
        for port in 1..100 {
            let nobody = SocketAddr::from(([127, 0, 0, 1], port));
            let hop = upstream.hop_to(nobody, HopTls::Plaintext, HopProtocol::Tcp, Duration::from_secs(1));
            assert!(upstream.connect(&hop).await.is_err());
        }
        assert_eq!(upstream.targets.borrow().len(), 100);
        tokio::time::sleep(upstream.settings.idle_timeout).await;
        assert!(upstream.targets.borrow().is_empty() && !upstream.sweeping.get());
    });
}

#[test]
fn the_sweeper_drops_what_the_server_closed() {
    local_paused(async {
        let (server, upstream) = (Server::answering_once(OK).await, upstream());
        server.get(&upstream).await;
        server.until_ended(1).await;
        assert_eq!(upstream.idle_connections(), 1);
        tokio::time::sleep(upstream.settings.idle_timeout / 4).await;
        assert_eq!(upstream.idle_connections(), 0);
    });
}

#[test]
fn close_idle_leaves_no_connection_of_before() {
    local(async {
        let (server, upstream) = (Server::answering(OK).await, upstream());
        server.get(&upstream).await;
        upstream.close_idle();
        assert_eq!(upstream.idle_connections(), 0);
        // One that is in use when trust changes serves its request and no other.
        let answer = server.send(&upstream, get()).await.unwrap();
        assert_eq!((whole(answer).await.0, upstream.idle_connections()), (200, 1));
        let hop = server.hop(&upstream, HopProtocol::Http1);
        let mut asked = get();
        let mut busy = Box::pin(upstream.send(&hop, &mut asked));
        assert!(futures_util::FutureExt::now_or_never(&mut busy).is_none());
        upstream.close_idle();
        assert_eq!(whole(busy.await.unwrap()).await.0, 200);
        assert_eq!(upstream.idle_connections(), 0);
    });
}

/// A server and an upstream side that are in a mesh with each other. The server proves [`SERVER`].
async fn mesh() -> (Server, Rc<Upstream>) {
    let root = authority("cluster.local");
    mesh_of(&root, &root).await
}

/// The same where both know the server's root only.
async fn mesh_of(root: &Authority, clients_root: &Authority) -> (Server, Rc<Upstream>) {
    let member = |signer, uri| identity(signer, &Profile::workload(uri, HOUR), &[("cluster.local", root)]);
    let (server_tls, client) = (ServerTls::mesh(member(root, SERVER)), member(clients_root, CLIENT));
    let server = Server::start(move |_, stream| {
        let tls = Arc::clone(&server_tls);
        async move {
            let Ok(accepted) = tls.accept(stream, TIMEOUT).await else { return };
            let mut stream = accepted.stream;
            while read_head(&mut stream).await.is_some() {
                stream.write_all(OK).await.unwrap();
                stream.flush().await.unwrap();
            }
        }
    });
    let tls = Arc::new(ClientTls::new(Some(client)));
    (server.await, Upstream::new(Registry::new(), tls, Settings::default()))
}

#[test]
fn mesh_connections_are_proven_and_reused_for_the_same_identity_only() {
    local(async {
        let (server, upstream) = mesh().await;
        let hop = upstream.hop_to(server.address, HopTls::mesh(SERVER), HopProtocol::Http1, TIMEOUT);
        for _ in 0..3 {
            let sent = upstream.send(&hop, &mut get()).await.unwrap();
            assert_eq!(sent.facts.identity.as_deref(), Some(SERVER));
            assert!(sent.facts.tls.is_some() && sent.facts.certificate.is_some());
            assert_eq!(whole(sent).await, (200, Bytes::from_static(b"ok")));
        }
        assert_eq!((server.accepted(), upstream.idle_connections()), (1, 1));

        let hop = upstream.hop_to(server.address, HopTls::mesh(OTHER), HopProtocol::Http1, TIMEOUT);
        let error = upstream.send(&hop, &mut get()).await.expect_err("another identity");
        assert_eq!((error.reject.stage, error.reject.reason), (Stage::Connect, Reason::IdentityMismatch));
        let detail = error.reject.detail.unwrap();
        assert!(detail.contains(SERVER) && detail.contains(OTHER), "{detail}");
        assert!(error.whole);
        assert_eq!((server.accepted(), upstream.idle_connections()), (2, 1));
    });
}

#[test]
fn a_server_that_stalls_in_tls_runs_into_the_connect_timeout() {
    local(async {
        let stalling = Server::start(|_, stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        });
        let (stalling, (_, upstream)) = (stalling.await, mesh().await);
        let timeout = Duration::from_millis(250);
        let hop = upstream.hop_to(stalling.address, HopTls::mesh(SERVER), HopProtocol::Http1, timeout);
        let error = upstream.send(&hop, &mut get()).await.expect_err("no handshake");
        assert_eq!((error.reject.stage, error.reject.reason), (Stage::Connect, Reason::ConnectTimeout));
        assert!(error.reject.detail.unwrap().contains("TLS"));
    });
}

#[test]
fn a_server_that_refuses_our_certificate_is_told_from_one_that_breaks() {
    local(async {
        let (server, upstream) = mesh_of(&authority("cluster.local"), &authority("cluster.local")).await;
        let hop = upstream.hop_to(server.address, HopTls::mesh(SERVER), HopProtocol::Http1, TIMEOUT);
        let error = upstream.send(&hop, &mut get()).await.expect_err("an unknown authority");
        assert_eq!((error.reject.stage, error.reject.reason), (Stage::Connect, Reason::TlsFailed));
        assert!(error.reject.before_request() && error.whole, "{error}");
    });
}

#[test]
fn a_connection_of_its_own_carries_bytes() {
    local(async {
        let server = Server::start(|_, mut stream| async move {
            let said = read_exactly(&mut stream, 4).await;
            stream.write_all(said.as_bytes()).await.unwrap();
        });
        let (server, upstream) = (server.await, upstream());
        let hop = server.hop(&upstream, HopProtocol::Tcp);
        let mut connected = upstream.connect(&hop).await.unwrap();
        connected.io.write_all(b"ping").await.unwrap();
        assert_eq!(read_exactly(&mut connected.io, 4).await, "ping");
        assert_eq!(connected.facts.endpoint, server.address);
    });
}
