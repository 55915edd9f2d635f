//! What the demo prints: an invitation, decisions as they come, and the table of `--once`.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::mesh::Mesh;
use crate::cli::table::{Paint, policy};

/// Requests of the split, and by how many of each hundred it may miss 90/10.
const SPLIT_REQUESTS: usize = 500;
const SPLIT_TOLERANCE: f64 = 2.0;
/// A record is written within milliseconds; this long means that it never will be.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);

/// How to try the live demo.
pub fn invitation(mesh: &Mesh) -> String {
    let paint = Paint::stdout();
    let at = mesh.entrance;
    let ask = |path: &str| format!("curl -s http://{at}{path} -H 'Host: ratings:9080'");
    format!(
        "\n{}\n\n  you = productpage -> [sidecar] == mTLS ==> [sidecar] -> ratings v1 (90 %) or v2 (10 %)\n\n\
         allowed                 {}\n\
         denied by a rule        {}\n\
         nothing allows it       {}\n\
         plaintext, past mTLS    curl -s http://{}/ratings/1\n\n\
         The policies are in {} (edit them; the sidecars follow).\n\
         Decisions, as they are recorded (Ctrl-C ends):\n\n",
        paint.strong("A small mesh is running."),
        ask("/ratings/1"),
        ask("/ratings/embargoed/1"),
        ask("/metrics"),
        mesh.ratings,
        mesh.config().display(),
    )
}

/// Prints decisions as they come.
#[derive(Default)]
pub struct Live {
    heading: bool,
}

impl Live {
    /// Prints one record.
    pub fn show(&mut self, line: &str) {
        let Ok(record) = serde_json::from_str::<Value>(line) else { return };
        if !self.heading {
            self.heading = true;
            println!(
                "{}",
                Paint::stdout().dim(&row("side", "request", "status", "decision", "reason", "by"))
            );
        }
        println!("{}", decision_row(&record));
    }
}

fn row(side: &str, request: &str, status: &str, decision: &str, reason: &str, by: &str) -> String {
    format!("{side:<9} {request:<32} {status:<6} {decision:<8} {reason:<24} {by}")
}

fn text<'r>(record: &'r Value, pointer: &str) -> &'r str {
    record.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn decision_row(record: &Value) -> String {
    let paint = Paint::stdout();
    let status = record.pointer("/response/status").and_then(Value::as_u64).unwrap_or_default();
    let request = format!("{} {}", text(record, "/request/method"), text(record, "/request/path"));
    let by = match (policy(record.pointer("/decision/policy")), text(record, "/route/backend")) {
        (policy, "") => policy,
        (policy, backend) => format!("{policy} -> {backend}"),
    };
    let plain = row(
        text(record, "/proxy/side"),
        &request,
        &status.to_string(),
        text(record, "/decision/outcome"),
        text(record, "/decision/reason"),
        &by,
    );
    match text(record, "/decision/outcome") {
        "deny" => paint.bad(&plain),
        _ if text(record, "/proxy/side") == "inbound" => paint.good(&plain),
        _ => plain,
    }
}

/// One of the fixed requests, and what the policies say about it.
struct Expected {
    what: &'static str,
    path: &'static str,
    /// Straight to the server's sidecar, in plaintext.
    past_mtls: bool,
    status: u16,
    outcome: &'static str,
    reason: &'static str,
    policy: &'static str,
}

const FIXED: [Expected; 4] = [
    Expected {
        what: "allowed",
        path: "/ratings/1",
        past_mtls: false,
        status: 200,
        outcome: "allow",
        reason: "matched-allow",
        policy: "AuthorizationPolicy bookinfo/ratings-viewer rule 0",
    },
    Expected {
        what: "denied by a rule",
        path: "/ratings/embargoed/1",
        past_mtls: false,
        status: 403,
        outcome: "deny",
        reason: "matched-deny",
        policy: "AuthorizationPolicy bookinfo/embargo rule 0",
    },
    Expected {
        what: "nothing allows it",
        path: "/metrics",
        past_mtls: false,
        status: 403,
        outcome: "deny",
        reason: "no-allow-matched",
        policy: "",
    },
    Expected {
        what: "plaintext",
        path: "/ratings/1",
        past_mtls: true,
        status: 403,
        outcome: "deny",
        reason: "plaintext-under-strict",
        policy: "PeerAuthentication istio-system/default",
    },
];

/// Sends the fixed set, prints what was decided, and says whether all went as the policies say.
pub async fn fixed_set(mesh: &Mesh, records: &mut mpsc::Receiver<String>) -> anyhow::Result<bool> {
    let paint = Paint::stdout();
    let mut well = true;
    println!(
        "{}",
        paint.strong(&format!("{:<22} {}", "", row("side", "request", "status", "decision", "reason", "by")))
    );
    for expected in &FIXED {
        let to = if expected.past_mtls { mesh.ratings } else { mesh.entrance };
        let status = ask(to, expected.path).await?;
        let record = inbound_record(records).await?;
        let as_expected = status == expected.status
            && text(&record, "/decision/outcome") == expected.outcome
            && text(&record, "/decision/reason") == expected.reason
            && policy(record.pointer("/decision/policy")) == expected.policy;
        well &= as_expected;
        let mark = if as_expected { paint.good("ok ") } else { paint.bad("NOT") };
        println!("{mark} {:<18} {}", expected.what, decision_row(&record));
    }
    well &= split(mesh, records).await?;
    println!(
        "\n{}",
        if well {
            paint.good("All went as the policies say.")
        } else {
            paint.bad("Not all went as the policies say.")
        }
    );
    Ok(well)
}

/// Sends many, and counts by the records where they went. All are sent first: records leave a proxy in batches, for
/// which each request would wait.
async fn split(mesh: &Mesh, records: &mut mpsc::Receiver<String>) -> anyhow::Result<bool> {
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
    let paint = Paint::stdout();
    let mark = if even { paint.good("ok ") } else { paint.bad("NOT") };
    println!(
        "{mark} {:<18} {}",
        "split 90/10",
        row(
            "outbound",
            &format!("{SPLIT_REQUESTS} x GET /ratings/1"),
            "200",
            "allow",
            &format!("{:.1} % / {share:.1} %", 100.0 - share),
            "HTTPRoute bookinfo/ratings rule 0"
        )
    );
    Ok(even)
}

/// The next record of the server's side.
async fn inbound_record(records: &mut mpsc::Receiver<String>) -> anyhow::Result<Value> {
    record_of(records, "inbound").await
}

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
    let socket = TcpStream::connect(to).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header(http::header::HOST, "ratings:9080").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    connection.abort();
    Ok(status)
}
