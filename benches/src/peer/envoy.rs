//! A pair of Envoys by static bootstrap: the same split, identities, rules and logging as the other peers.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Pair, PairSpec, Peer, Ports, WEIGHTS};
use crate::child::Child;
use crate::load::Protocol;
use crate::pki::{self, Identity};
use crate::world::World;

const TYPES: &str = "type.googleapis.com/envoy.extensions";

pub(super) fn start(world: &World, spec: PairSpec, ports: Ports, dir: &Path) -> Result<Pair> {
    let log_of = |name: &str| spec.records.then(|| dir.join(format!("{name}.jsonl")));
    let (inbound_log, outbound_log) = (log_of("envoy-inbound"), log_of("envoy-outbound"));
    let inbound = inbound(spec, ports, &world.pki.server, inbound_log.as_deref());
    let outbound = outbound(spec, ports, &world.pki.client, outbound_log.as_deref());
    Ok(Pair {
        inbound: run(world, "envoy-inbound", &inbound, dir)?,
        outbound: run(world, "envoy-outbound", &outbound, dir)?,
        entry: ports.outbound,
        mtls_entry: ports.inbound[0],
        // Its access log is flushed every ten seconds: nothing to count at the end of a short run.
        records: Vec::new(),
    })
}

/// A listener that asks for no certificate.
pub(super) fn start_server_only(
    world: &World,
    listen: SocketAddr,
    tickets: bool,
    dir: &Path,
) -> Result<Child> {
    let route = json!({"match": {"prefix": "/"}, "direct_response": {"status": 200}});
    let manager = manager("alone", &["*"], route, vec![], None);
    let mut tls = downstream_tls(&world.pki.server, Protocol::Http1);
    let config = &mut tls["typed_config"];
    config["require_client_certificate"] = json!(false);
    // Its default, of two tickets, is left as it is.
    config["disable_stateless_session_resumption"] = json!(!tickets);
    config["disable_stateful_session_resumption"] = json!(!tickets);
    config["common_tls_context"]["validation_context"] = Value::Null;
    let bootstrap = bootstrap(vec![listener("alone", listen, manager, Some(tls))], vec![]);
    run(world, "envoy", &bootstrap, dir)
}

fn run(world: &World, name: &str, bootstrap: &Value, dir: &Path) -> Result<Child> {
    let path = dir.join(format!("{name}.json"));
    serde_json::to_writer_pretty(File::create(&path)?, bootstrap).context("write the bootstrap")?;
    let mut command = Command::new(world.program(Peer::Envoy)?);
    command.arg("-c").arg(&path).args([
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "warning",
    ]);
    Child::start(name, &mut command, world.cores, &dir.join(format!("{name}.log")))
}

/// One plaintext listener; weighted clusters that are reached over mutual TLS.
fn outbound(spec: PairSpec, ports: Ports, identity: &Identity, log: Option<&Path>) -> Value {
    let weighted: Vec<Value> = ["v1", "v2"]
        .iter()
        .zip(WEIGHTS)
        .map(|(version, weight)| json!({"name": format!("ratings-{version}"), "weight": weight}))
        .collect();
    let route = json!({"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": weighted}, "timeout": "0s"}});
    let manager = manager("outbound", &["ratings:9080", "ratings"], route, vec![], log);
    let clusters: Vec<Value> = ["v1", "v2"]
        .iter()
        .zip(ports.inbound)
        .map(|(version, address)| {
            let mut cluster = cluster(&format!("ratings-{version}"), address, spec.protocol);
            cluster["transport_socket"] = upstream_tls(identity, spec.protocol);
            cluster
        })
        .collect();
    bootstrap(vec![listener("outbound", ports.outbound, manager, None)], clusters)
}

/// A mutual TLS listener for each version; the rules; the application in plaintext.
fn inbound(spec: PairSpec, ports: Ports, identity: &Identity, log: Option<&Path>) -> Value {
    let mut listeners = Vec::new();
    let mut clusters = Vec::new();
    for (version, (listen, application)) in
        ["v1", "v2"].iter().zip(ports.inbound.into_iter().zip(ports.applications))
    {
        let name = format!("app-{version}");
        let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}});
        let mut manager = manager(&name, &["*"], route, vec![authorization()], log);
        manager["typed_config"]["forward_client_cert_details"] = json!("SANITIZE_SET");
        manager["typed_config"]["set_current_client_cert_details"] = json!({"subject": true, "uri": true});
        listeners.push(listener(&name, listen, manager, Some(downstream_tls(identity, spec.protocol))));
        clusters.push(cluster(&name, application, spec.protocol));
    }
    bootstrap(listeners, clusters)
}

fn bootstrap(listeners: Vec<Value>, clusters: Vec<Value>) -> Value {
    json!({
        "node": {"id": "compare", "cluster": "compare"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn listener(name: &str, address: SocketAddr, manager: Value, tls: Option<Value>) -> Value {
    let mut chain = json!({"filters": [manager]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({"name": name, "address": socket_address(address), "filter_chains": [chain]})
}

fn manager(name: &str, domains: &[&str], route: Value, mut filters: Vec<Value>, log: Option<&Path>) -> Value {
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": format!("{TYPES}.filters.http.router.v3.Router")},
    }));
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": name,
            "codec_type": "AUTO",
            "normalize_path": true,
            "access_log": log.map(access_log).into_iter().collect::<Vec<_>>(),
            "route_config": {"name": name, "virtual_hosts": [{"name": name, "domains": domains, "routes": [route]}]},
            "http_filters": filters,
        },
    })
}

/// Istio's JSON fields, near enough.
fn access_log(path: &Path) -> Value {
    json!({
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": format!("{TYPES}.access_loggers.file.v3.FileAccessLog"),
            "path": path,
            "log_format": {"json_format": {
                "start_time": "%START_TIME%", "method": "%REQ(:METHOD)%", "path": "%REQ(:PATH)%",
                "protocol": "%PROTOCOL%", "response_code": "%RESPONSE_CODE%", "response_flags": "%RESPONSE_FLAGS%",
                "response_code_details": "%RESPONSE_CODE_DETAILS%", "bytes_received": "%BYTES_RECEIVED%",
                "bytes_sent": "%BYTES_SENT%", "duration": "%DURATION%", "authority": "%REQ(:AUTHORITY)%",
                "user_agent": "%REQ(USER-AGENT)%", "request_id": "%REQ(X-REQUEST-ID)%",
                "upstream_host": "%UPSTREAM_HOST%", "upstream_cluster": "%UPSTREAM_CLUSTER%",
                "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%", "route_name": "%ROUTE_NAME%",
                "downstream_peer_uri_san": "%DOWNSTREAM_PEER_URI_SAN%",
                "downstream_tls_version": "%DOWNSTREAM_TLS_VERSION%",
            }},
        },
    })
}

/// Caller, method, path and header.
fn authorization() -> Value {
    let viewer = json!({
        "principals": [{"authenticated": {"principal_name": {"exact": pki::CLIENT}}}],
        "permissions": [{"and_rules": {"rules": [
            {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
            {"url_path": {"path": {"prefix": "/ratings/"}}},
            {"header": {"name": "x-tenant", "string_match": {"exact": "blue"}}},
        ]}}],
    });
    json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": format!("{TYPES}.filters.http.rbac.v3.RBAC"),
            "rules": {"action": "ALLOW", "policies": {"ratings-viewer": viewer}},
        },
    })
}

fn cluster(name: &str, address: SocketAddr, protocol: Protocol) -> Value {
    let options = match protocol {
        Protocol::Http1 => json!({"http_protocol_options": {}}),
        Protocol::Http2 => json!({"http2_protocol_options": {}}),
    };
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(address)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": options,
            },
        },
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}

fn upstream_tls(identity: &Identity, protocol: Protocol) -> Value {
    let mut common = common_tls(identity, protocol);
    common["validation_context"]["match_typed_subject_alt_names"] =
        json!([{"san_type": "URI", "matcher": {"exact": pki::SERVER}}]);
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
            "common_tls_context": common,
        },
    })
}

fn downstream_tls(identity: &Identity, protocol: Protocol) -> Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": true,
            // Nobody resumes here, so nobody pays for tickets.
            "disable_stateless_session_resumption": true,
            "disable_stateful_session_resumption": true,
            "common_tls_context": common_tls(identity, protocol),
        },
    })
}

/// TLS 1.3, which Envoy would not use upstream unasked; suites are left to its defaults, groups are those that Writ has.
fn common_tls(identity: &Identity, protocol: Protocol) -> Value {
    let alpn = match protocol {
        Protocol::Http1 => "http/1.1",
        Protocol::Http2 => "h2",
    };
    let file = |path: PathBuf| json!({"filename": path});
    json!({
        "alpn_protocols": [alpn],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": ["X25519MLKEM768", "X25519", "P-256", "P-384"],
        },
        "tls_certificates": [{"certificate_chain": file(identity.certificate()), "private_key": file(identity.key())}],
        "validation_context": {"trusted_ca": file(identity.roots())},
    })
}
