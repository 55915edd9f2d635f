//! `writ demo --once`: a fixed set of requests, and whether they went as the policies say.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use super::mesh::Mesh;
use super::show::{Row, decision_row, text};
use crate::cli::table::{Paint, policy};

/// Requests of the split, and by how many of each hundred it may miss 90/10.
const SPLIT_REQUESTS: usize = 500;
const SPLIT_TOLERANCE: f64 = 2.0;
/// A record is written within milliseconds; this long means that it never will be.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);

/// One of the fixed requests, and what the policies say about it.
struct Expected {
    what: &'static str,
    path: &'static str,
    by: Way,
    status: u16,
    outcome: &'static str,
    reason: &'static str,
    policy: &'static str,
}

/// How a request comes in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Through the caller's sidecar.
    Sidecar,
    /// Straight to the server's sidecar, in plaintext.
    PastMtls,
    /// From outside, over TLS.
    Edge,
}

const FIXED: [Expected; 5] = [
    Expected {
        what: "allowed",
        path: "/ratings/1",
        by: Way::Sidecar,
        status: 200,
        outcome: "allow",
        reason: "matched-allow",
        policy: "AuthorizationPolicy bookinfo/ratings-viewer rule 0",
    },
    Expected {
        what: "denied by a rule",
        path: "/ratings/embargoed/1",
        by: Way::Sidecar,
        status: 403,
        outcome: "deny",
        reason: "matched-deny",
        policy: "AuthorizationPolicy bookinfo/embargo rule 0",
    },
    Expected {
        what: "nothing allows it",
        path: "/metrics",
        by: Way::Sidecar,
        status: 403,
        outcome: "deny",
        reason: "no-allow-matched",
        policy: "",
    },
    Expected {
        what: "plaintext",
        path: "/ratings/1",
        by: Way::PastMtls,
        status: 403,
        outcome: "deny",
        reason: "plaintext-under-strict",
        policy: "PeerAuthentication istio-system/default",
    },
    Expected {
        what: "from outside",
        path: "/ratings/1",
        by: Way::Edge,
        status: 200,
        outcome: "allow",
        reason: "matched-allow",
        policy: "AuthorizationPolicy bookinfo/edge rule 0",
    },
];

/// Sends the fixed set, prints what was decided, and says whether all went as the policies say.
pub async fn fixed_set(
    mesh: &Mesh,
    records: &mut mpsc::Receiver<String>,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let paint = Paint::stdout();
    let mut well = true;
    writeln!(out, "    {}", paint.strong(&Row { what: Some(""), ..Row::HEADING }.to_string()))?;
    for expected in &FIXED {
        let (status, side) = match expected.by {
            Way::Sidecar => (ask(mesh.entrance, expected.path).await?, "inbound"),
            Way::PastMtls => (ask(mesh.ratings, expected.path).await?, "inbound"),
            Way::Edge => (from_outside(mesh, expected.path).await?, "gateway"),
        };
        let record = record_of(records, side).await?;
        let as_expected = status == expected.status
            && text(&record, "/decision/outcome") == expected.outcome
            && text(&record, "/decision/reason") == expected.reason
            && policy(record.pointer("/decision/policy")) == expected.policy;
        well &= as_expected;
        writeln!(out, "{} {}", mark(as_expected), decision_row(Some(expected.what), &record))?;
    }
    well &= split(mesh, records, out).await?;
    let summary = match well {
        true => paint.good("All went as the policies say."),
        false => paint.bad("Not all went as the policies say."),
    };
    writeln!(out, "\n{summary}")?;
    Ok(well)
}

fn mark(as_expected: bool) -> String {
    let paint = Paint::stdout();
    if as_expected { paint.good("ok ") } else { paint.bad("NOT") }
}

/// Sends many, and counts by the records where they went. All are sent first: records leave a proxy in batches, for
/// which each request would wait.
async fn split(
    mesh: &Mesh,
    records: &mut mpsc::Receiver<String>,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let mut to_v2 = 0;
    for _ in 0..SPLIT_REQUESTS {
        let status = ask(mesh.entrance, "/ratings/1").await?;
        anyhow::ensure!(status == 200, "a request of the split was answered {status}");
    }
    for _ in 0..SPLIT_REQUESTS {
        let record = record_of(records, "outbound").await?;
        to_v2 += usize::from(text(&record, "/route/backend").contains("ratings-v2"));
    }
    let share = to_v2 as f64 * 100.0 / SPLIT_REQUESTS as f64;
    let even = (share - 10.0).abs() <= SPLIT_TOLERANCE;
    let row = Row {
        what: Some("split 90/10"),
        side: "outbound",
        request: &format!("{SPLIT_REQUESTS} x GET /ratings/1"),
        status: "200",
        outcome: "allow",
        reason: &format!("{:.1} % / {share:.1} %", 100.0 - share),
        by: "HTTPRoute bookinfo/ratings rule 0",
    };
    writeln!(out, "{} {row}", mark(even))?;
    Ok(even)
}

/// The next record of this side.
async fn record_of(records: &mut mpsc::Receiver<String>, side: &str) -> anyhow::Result<Value> {
    loop {
        let line = tokio::time::timeout(RECORD_PATIENCE, records.recv()).await?;
        let record: Value = serde_json::from_str(&line.ok_or_else(|| anyhow::anyhow!("no more records"))?)?;
        if text(&record, "/proxy/side") == side {
            return Ok(record);
        }
    }
}

/// GET, on a connection of its own.
async fn ask(to: SocketAddr, path: &str) -> anyhow::Result<u16> {
    ask_over(TcpStream::connect(to).await?, "ratings:9080", path).await
}

/// The same over TLS from outside, whose server has to prove that it is `shop.test`.
async fn from_outside(mesh: &Mesh, path: &str) -> anyhow::Result<u16> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(mesh.roots())?)?;
    let config = ClientConfig::builder_with_provider(fips::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpStream::connect(mesh.edge).await?;
    let name = ServerName::try_from("shop.test")?;
    let tls = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    ask_over(tls, "shop.test", path).await
}

async fn ask_over(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path: &str,
) -> anyhow::Result<u16> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header(http::header::HOST, host).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    connection.abort();
    Ok(status)
}
