//! Envoy by a static bootstrap: listeners and clusters whose TLS a test describes.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::program::Program;

use super::house::{House, Identity, curl, id};
use super::suites::Choice;
use crate::records::text;

const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// Where `tests/peers.sh` puts it.
pub const ENVOY: &str = "peers/envoy";

/// A running Envoy.
pub struct Envoy {
    _program: Program,
    listeners: Value,
}

impl Envoy {
    pub fn start(
        program: &Path,
        house: &House,
        name: &str,
        listeners: Vec<Value>,
        clusters: Vec<Value>,
    ) -> Self {
        let (bootstrap, admin) = (house.file(&format!("{name}.json")), house.file(&format!("{name}.admin")));
        let resources = json!({
            "node": {"id": name, "cluster": name},
            "admin": {"address": socket_address(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        });
        serde_json::to_writer(File::create(&bootstrap).unwrap(), &resources).unwrap();
        let mut envoy = Command::new(program);
        envoy.arg("-c").arg(&bootstrap).arg("--admin-address-path").arg(&admin);
        envoy.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "info"]);
        let program = Program::start(name, &mut envoy);
        program.error_line(|line| line.contains("starting main dispatch loop"));
        program.error_line(|line| line.contains("starting workers"));
        let admin = fs::read_to_string(admin).unwrap();
        let answer = curl(&[&format!("http://{admin}/listeners?format=json")]).well();
        Self { _program: program, listeners: serde_json::from_str(&answer).unwrap() }
    }

    /// Where a listener is.
    #[track_caller]
    pub fn address(&self, listener: &str) -> SocketAddr {
        let all = self.listeners["listener_statuses"].as_array().unwrap();
        let found = all.iter().find(|status| text(status, "/name") == listener);
        let port = found.unwrap()["local_address"]["socket_address"]["port_value"].as_u64().unwrap();
        SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(port).unwrap()))
    }
}

/// One side's TLS.
#[derive(Clone)]
pub struct Tls {
    pub identity: Identity,
    pub alpn: Vec<&'static str>,
    /// `TLSv1_2` or `TLSv1_3`.
    pub version: &'static str,
    /// BoringSSL's name, for TLS 1.2; BoringSSL has no choice of TLS 1.3 suites.
    pub suite: Option<&'static str>,
    pub groups: Vec<&'static str>,
    /// The one SPIFFE id that the other side may prove.
    pub expects: String,
}

impl Tls {
    /// As in a mesh of Envoys: TLS 1.3, and the other side must have this account.
    pub fn mesh(identity: &Identity, alpn: &[&'static str], expects: &str) -> Self {
        Self {
            identity: identity.clone(),
            alpn: alpn.to_vec(),
            version: "TLSv1_3",
            suite: None,
            groups: vec!["X25519MLKEM768", "X25519", "P-256"],
            expects: id(expects),
        }
    }

    /// The same that agrees to nothing else than this.
    pub fn held_to(self, choice: &Choice) -> Self {
        Self {
            version: if choice.version == "1.2" { "TLSv1_2" } else { "TLSv1_3" },
            suite: choice.suite.map(|(suite, _)| suite),
            groups: choice.groups(),
            ..self
        }
    }

    fn common(&self) -> Value {
        let file = |path: PathBuf| json!({"filename": path});
        json!({
            "alpn_protocols": self.alpn,
            "tls_params": {
                "tls_minimum_protocol_version": self.version,
                "tls_maximum_protocol_version": self.version,
                "cipher_suites": self.suite.into_iter().collect::<Vec<_>>(),
                "ecdh_curves": self.groups,
            },
            "tls_certificates": [{
                "certificate_chain": file(self.identity.certificate()),
                "private_key": file(self.identity.key()),
            }],
            "validation_context": {
                "trusted_ca": file(self.identity.roots()),
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": self.expects}}],
            },
        })
    }

    fn upstream(&self) -> Value {
        socket("UpstreamTlsContext", json!({"common_tls_context": self.common()}))
    }

    /// Tickets are left on: who refuses them must do so by itself.
    fn downstream(&self) -> Value {
        socket(
            "DownstreamTlsContext",
            json!({"require_client_certificate": true, "common_tls_context": self.common()}),
        )
    }
}

fn socket(kind: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("{TYPES}.transport_sockets.tls.v3.{kind}"));
    json!({"name": "envoy.transport_sockets.tls", "typed_config": config})
}

/// A cluster of one endpoint behind mutual TLS.
pub fn cluster(name: &str, address: SocketAddr, http2: bool, tls: &Tls) -> Value {
    let protocol = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "transport_socket": tls.upstream(),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(address)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {protocol: {}},
            },
        },
    })
}

/// A plaintext listener, `entrance`, where `/NAME/..` goes to the cluster of that name.
pub fn entrance(clusters: &[&str]) -> Value {
    let routes: Vec<Value> = clusters
        .iter()
        .map(|name| json!({"match": {"prefix": format!("/{name}/")}, "route": {"cluster": name, "timeout": "15s"}}))
        .collect();
    listener("entrance", json!([{"filters": [manager("entrance", routes)]}]))
}

/// A plaintext listener whose connections all go to a cluster.
pub fn opaque_entrance(cluster: &str) -> Value {
    listener(
        cluster,
        json!([{"filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": format!("{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": cluster,
                "cluster": cluster,
            },
        }]}]),
    )
}

/// A mutual TLS listener that answers every request with 200 and who it thinks is asking.
pub fn answering(name: &str, tls: &Tls) -> Value {
    listener(name, json!([chain(name, tls, json!({}))]))
}

/// The same as Istio's sidecars have it under PERMISSIVE: mesh traffic is known by its ALPN, all else is not TLS.
pub fn answering_as_istio(name: &str, tls: &Tls) -> Value {
    let istio = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
    let meant = json!({"transport_protocol": "tls", "application_protocols": istio});
    let mut plain = chain(name, tls, json!({"transport_protocol": "raw_buffer"}));
    plain["transport_socket"] = Value::Null;
    let mut both = listener(name, json!([chain(name, tls, meant), plain]));
    both["listener_filters"] = json!([{
        "name": "envoy.filters.listener.tls_inspector",
        "typed_config": {"@type": format!("{TYPES}.filters.listener.tls_inspector.v3.TlsInspector")},
    }]);
    both
}

fn chain(name: &str, tls: &Tls, meant: Value) -> Value {
    let direct = json!({
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "by envoy"}},
        "response_headers_to_add": [
            {"header": {"key": "x-peer", "value": "%DOWNSTREAM_PEER_URI_SAN%"}},
            {"header": {"key": "x-protocol", "value": "%PROTOCOL%"}},
        ],
    });
    json!({
        "filter_chain_match": meant,
        "filters": [manager(name, vec![direct])],
        "transport_socket": tls.downstream(),
    })
}

fn listener(name: &str, chains: Value) -> Value {
    let anywhere = socket_address(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    json!({"name": name, "address": anywhere, "filter_chains": chains})
}

fn manager(name: &str, routes: Vec<Value>) -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": name,
            "codec_type": "AUTO",
            "route_config": {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": format!("{TYPES}.filters.http.router.v3.Router")},
            }],
        },
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}
