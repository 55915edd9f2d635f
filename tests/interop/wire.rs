//! What a listener on the wire sees: TLS records, and nothing of what they carry.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::program::{Finished, Program};

use crate::mesh::{Mesh, PodOptions, curl, serve};
use crate::namespace::available;

/// Stands in paths, headers and bodies of both directions.
const MARKER: &str = "marker-6f2d41";
/// Ends a capture.
const LAST: &str = "last-90b1c3";
/// A server without TLS.
const PLAIN: &str = "http://10.77.0.66:8000";

#[test]
fn the_wire_shows_tls_only() {
    if !available("the_wire_shows_tls_only") {
        return;
    }
    let mesh = Mesh::new();
    let client = mesh.client(PodOptions::default());
    let _v1 = mesh.v1(PodOptions::default()).serving("http", 9080, "v1");
    let outsider = mesh.outsider();
    let plain = serve(&outsider, "http", 8000, "elsewhere");

    let capture = Capture::start(&mesh);
    for family in ["--ipv4", "--ipv6"] {
        let mut post = client.curl();
        post.args([family, "--header", &format!("x-secret: {MARKER}"), "--data", MARKER]);
        let url = format!("http://ratings-v1:9080/ratings/{MARKER}");
        let answer = Finished::of(post.arg(url)).well();
        assert_eq!(answer.matches(MARKER).count(), 3, "{answer}");
    }
    let seen = capture.stop();
    assert!(seen.records_of_tls > 0, "{seen:?}");
    assert_eq!(seen.markers, 0, "{seen:?}");

    // That this method would have seen it: the same in plaintext.
    let capture = Capture::start(&mesh);
    let url = format!("{PLAIN}/{MARKER}");
    let wire = &mesh.wire.namespace;
    assert!(Finished::of(curl(wire.command("curl")).arg(url)).well().contains(MARKER));
    let seen = capture.stop();
    assert!(seen.markers >= 2, "{seen:?}");
    drop(plain);
}

#[derive(Debug)]
struct Seen {
    records_of_tls: usize,
    markers: usize,
}

/// tcpdump on every cable's end.
struct Capture<'m> {
    mesh: &'m Mesh,
    tcpdump: Program,
}

impl<'m> Capture<'m> {
    fn start(mesh: &'m Mesh) -> Self {
        let mut tcpdump: Command = mesh.wire.namespace.command("tcpdump");
        tcpdump.args([
            "--interface=any",
            "--immediate-mode",
            "-U",
            "--relinquish-privileges=root",
            "-s",
            "0",
        ]);
        tcpdump.arg("-w").arg(mesh.file("wire.pcap")).arg("tcp");
        let tcpdump = Program::start("tcpdump", &mut tcpdump);
        tcpdump.error_line(|line| line.contains("listening on"));
        Self { mesh, tcpdump }
    }

    /// It ends when asked to, and has written by then what came before: it has once it shows what was sent last.
    fn stop(self) -> Seen {
        let url = format!("{PLAIN}/{LAST}");
        Finished::of(curl(self.mesh.wire.namespace.command("curl")).arg(url)).well();
        let pcap = self.mesh.file("wire.pcap");
        let has = |bytes: &[u8], wanted: &[u8]| bytes.windows(wanted.len()).any(|window| window == wanted);
        let soon = Instant::now() + Duration::from_secs(20);
        while !has(&std::fs::read(&pcap).unwrap(), LAST.as_bytes()) {
            assert!(Instant::now() < soon, "tcpdump writes nothing");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.tcpdump.stop(Signal::INT);
        let bytes = std::fs::read(pcap).unwrap();
        let count = |wanted: &[u8]| bytes.windows(wanted.len()).filter(|window| *window == wanted).count();
        // Application data of TLS 1.2 and 1.3 (RFC 8446, 5.1).
        Seen { records_of_tls: count(&[23, 3, 3]), markers: count(MARKER.as_bytes()) }
    }
}
