//! gRPC's own implementation on both ends of a pair of sidecars. Every call must end as it does without them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::Directory;
use tests::program::{Finished, Program, beside, writ};

use crate::records::{Records, check, text};

const AUTHORITY: &str = "echo.shop.svc.cluster.local:50051";

#[test]
fn calls_end_as_they_do_without_sidecars() {
    let Some(python) = python("calls_end_as_they_do_without_sidecars") else { return };
    let server = Program::start("grpc-server", Command::new(&python).arg(beside("interop/grpc_server.py")));
    let port: u16 =
        server.line(|line| line.starts_with("ready ")).split_once(' ').unwrap().1.parse().unwrap();
    let calls = |target: &str| -> BTreeMap<String, Value> {
        let mut client = Command::new(&python);
        client.arg(beside("interop/grpc_client.py")).args([target, AUTHORITY]);
        let said = Finished::of(&mut client).well();
        said.lines().map(|line| serde_json::from_str(line).unwrap()).map(named).collect()
    };
    let directly = calls(&format!("127.0.0.1:{port}"));
    let mesh = Pair::start(port);
    let mut through_mesh = calls(&mesh.entrance);

    // The one thing that policy changes.
    let denied = through_mesh.insert("denied".into(), directly["denied"].clone()).unwrap();
    assert_eq!(directly["denied"]["code"], "OK");
    assert_eq!(denied["code"], "PERMISSION_DENIED");
    for (case, outcome) in &directly {
        assert_eq!(&through_mesh[case], outcome, "{case}");
    }
    assert_eq!(directly.len(), 11);
    assert_records(&mesh);
    // Cancelled both without sidecars and through them.
    let mut cancelled = 0;
    server.lines_from(0, |line| {
        cancelled += usize::from(line == "cancelled");
        cancelled == 2
    });
}

/// The case's name and how it ended; how long it took is not compared, nor the words that the client's own library finds
/// for a deadline that it met itself.
fn named(mut outcome: Value) -> (String, Value) {
    let case = text(&outcome, "/case").to_owned();
    let seconds = outcome["seconds"].as_f64().unwrap();
    if case == "deadline" {
        assert!((0.4..5.0).contains(&seconds), "{outcome}");
    }
    let members = outcome.as_object_mut().unwrap();
    members.remove("seconds");
    if case == "deadline" {
        members.remove("details");
    }
    (case, outcome)
}

fn assert_records(mesh: &Pair) {
    for (records, side) in [(Records::of(&mesh.client), "outbound"), (Records::of(&mesh.server), "inbound")] {
        let of = |method: &'static str| {
            records.one(|record| text(record, "/request/path").ends_with(&format!("/{method}")))
        };
        for (method, status) in [
            ("ServerStream", 0),
            ("ClientStream", 0),
            ("Bidirectional", 0),
            ("FailAtOnce", 9),
            ("FailLater", 8),
            ("Nothing", 12),
        ] {
            let record = of(method);
            assert_eq!(text(&record, "/proxy/side"), side);
            assert_eq!(record.pointer("/response/grpc_status"), Some(&json!(status)), "{record:#}");
            assert_eq!(record.pointer("/response/status"), Some(&json!(200)));
            assert_eq!(text(&record, "/decision/outcome"), "allow");
            assert_eq!(text(&record, "/ended/reason"), "complete", "{record:#}");
        }
        let refused = of("Secret");
        assert_eq!(refused.pointer("/response/grpc_status"), Some(&json!(7)), "{refused:#}");
        let cancelled = of("Forever");
        assert_eq!(cancelled.pointer("/response/grpc_status"), None, "{cancelled:#}");
        assert_eq!(text(&cancelled, "/ended/reason"), "client-closed", "{cancelled:#}");
        // The server knows the deadline too, and may say so before the caller has left.
        let late = of("Slow");
        match late.pointer("/response/grpc_status") {
            Some(status) => assert_eq!(status, &json!(4), "{late:#}"),
            None => assert_eq!(text(&late, "/ended/reason"), "client-closed", "{late:#}"),
        }
    }
    let refused = Records::of(&mesh.server).one(|record| text(record, "/decision/outcome") == "deny");
    assert_eq!(text(&refused, "/decision/policy/name"), "secrets");
    assert_eq!(text(&refused, "/decision/reason"), "matched-deny");
    assert_eq!(check(&refused, "service-authorization")["outcome"], "fail");
    assert_eq!(text(&refused, "/source/identity"), "spiffe://cluster.local/ns/shop/sa/till");
}

/// Two sidecars on loopback, without interception.
struct Pair {
    entrance: String,
    client: Program,
    server: Program,
    _directory: Directory,
}

impl Pair {
    fn start(application: u16) -> Self {
        let directory = Directory::new();
        let config = directory.path().join("config");
        fs::create_dir(&config).unwrap();
        let policy = include_str!("grpc.yaml").replace("APPLICATION", &application.to_string());
        fs::write(config.join("policy.yaml"), policy).unwrap();
        let forward = format!("--forward=127.0.0.1:0=127.0.0.1:{application}");
        let server = sidecar(&directory, "echo", "echo", &["--labels=app=echo", "--outbound=off", &forward]);
        // The cluster knows where the server is only once that is bound.
        let (_, port) =
            address(&server).rsplit_once(':').map(|(ip, port)| (ip.to_owned(), port.to_owned())).unwrap();
        let endpoints = include_str!("grpc-endpoints.yaml").replace("PORT", &port);
        fs::write(config.join("endpoints.yaml"), endpoints).unwrap();
        let client = sidecar(&directory, "till", "till", &["--outbound=127.0.0.1:0"]);
        Self { entrance: address(&client), client, server, _directory: directory }
    }
}

fn sidecar(directory: &Directory, name: &str, account: &str, more: &[&str]) -> Program {
    let mut run = Command::new(writ());
    run.args(["run", "--role=sidecar", "--inbound=off", "--admin=off", "--health=off", "--metrics=off"]);
    run.args(["--workload", &format!("shop/{name}"), "--service-account", account]).args(more);
    run.arg("--config").arg(directory.path().join("config"));
    run.arg("--identity").arg(format!("dev:{}", directory.path().join("authority").display()));
    Program::start(name, &mut run)
}

/// Where a proxy with one listener listens.
fn address(proxy: &Program) -> String {
    let line = proxy.error_line(|line| line.contains("\"serving\""));
    let serving: Value = serde_json::from_str(&line).unwrap();
    text(&serving, "/listening").trim_matches(['[', ']']).to_owned()
}

/// A Python that has grpcio, as `tests/peers.sh` installs it.
fn python(test: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("WRIT_CACHE").map_or_else(|| beside("../.cache"), PathBuf::from);
    let python = cache.join("python/bin/python");
    let has_grpc = |python: &Path| {
        let import = Command::new(python).args(["-c", "import grpc"]).output();
        import.is_ok_and(|output| output.status.success())
    };
    if has_grpc(&python) {
        return Some(python);
    }
    crate::skipped(test, "Python with grpcio: run tests/peers.sh");
    None
}
