//! Global limits by Envoy's own rate limit service, which counts in Redis for two sidecars that know nothing of each other.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use fips::ca::KeyType;
use tests::App;
use tests::program::{Program, writ};

use crate::records::text;
use crate::spire::free_port;
use crate::tls::house::{Application, House, Sidecar, curl, installed};

/// The service at work.
struct RateLimit {
    _redis: Program,
    _service: Program,
    /// Not 127.0.0.1, which is the address of a workload here that is spoken to by mutual TLS only.
    address: SocketAddr,
}

/// What it counts: three a day for each tenant, and none of one that is shut out.
const CONFIG: &str = "
domain: shop
descriptors:
- key: request.headers[x-tenant]
  rate_limit: {unit: day, requests_per_unit: 3}
- key: request.headers[x-tenant]
  value: unwanted
  rate_limit: {unit: day, requests_per_unit: 0}
";

impl RateLimit {
    /// `None`: the test can't run.
    fn start(test: &str, house: &House) -> Option<Self> {
        let program = installed(test, "ratelimit/bin/service_cmd")?;
        if Command::new("redis-server").arg("--version").output().is_err() {
            crate::skipped(test, "redis-server");
            return None;
        }
        let [redis, grpc, http, debug] = std::array::from_fn(|_| free_port());
        let mut run = Command::new("redis-server");
        run.args(["--bind", "127.0.0.1", "--port", &redis.to_string(), "--save", "", "--appendonly", "no"]);
        let running = Program::start("Redis", &mut run);
        running.line(|line| line.contains("Ready to accept connections"));
        let config = house.file("ratelimit/shop/config");
        fs::create_dir_all(&config).unwrap();
        fs::write(config.join("shop.yaml"), CONFIG).unwrap();
        let mut run = Command::new(program);
        run.env("RUNTIME_ROOT", house.file("ratelimit")).envs([
            ("RUNTIME_SUBDIRECTORY", "shop"),
            ("RUNTIME_WATCH_ROOT", "false"),
            ("USE_STATSD", "false"),
            ("REDIS_SOCKET_TYPE", "tcp"),
            ("GRPC_HOST", "127.0.0.2"),
            ("HOST", "127.0.0.2"),
            ("DEBUG_HOST", "127.0.0.2"),
        ]);
        run.env("REDIS_URL", format!("127.0.0.1:{redis}")).env("GRPC_PORT", grpc.to_string());
        run.env("PORT", http.to_string()).env("DEBUG_PORT", debug.to_string());
        let service = Program::start("ratelimit", &mut run);
        service.error_line(|line| line.contains("Listening for gRPC"));
        let address = SocketAddr::from(([127, 0, 0, 2], grpc));
        // It says so before it does.
        let patience = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < patience, "{address} is not listened to");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { _redis: running, _service: service, address })
    }
}

#[test]
fn envoys_rate_limit_service_counts_for_all_proxies() {
    let test = "envoys_rate_limit_service_counts_for_all_proxies";
    let house = House::new();
    let Some(service) = RateLimit::start(test, &house) else { return };
    let app = Application::start(App::echo);
    house.configure("limits.yaml", &limits(service.address));
    let identity = format!("files:{}", house.identity("server", KeyType::P256).dir.display());
    let serve = || house.serving_with(writ(), &identity, app.address(), &[]);
    let sidecars = [serve(), serve()];

    for (number, status) in ["200", "200", "200", "429", "429"].into_iter().enumerate() {
        assert_eq!(ask(&sidecars[number % 2], "/one", "one").0, status, "{number}");
    }
    let (status, headers) = ask(&sidecars[0], "/two", "two");
    assert_eq!(status, "200");
    assert!(headers.contains("ratelimit-policy: \"tenants\";q=3;w=86400"), "{headers}");
    assert!(headers.contains("ratelimit: \"tenants\";r=2;t="), "{headers}");
    let (status, headers) = ask(&sidecars[1], "/unwanted", "unwanted");
    assert_eq!(status, "429");
    assert!(headers.contains("retry-after: "), "{headers}");
    // Without the header as well: nobody escapes by leaving it out.
    let none: Vec<_> = (0..4).map(|number| ask(&sidecars[number % 2], "/none", "").0).collect();
    assert_eq!(none, ["200", "200", "200", "429"]);
    assert_eq!(app.requests(), 3 + 1 + 3);

    let records = sidecars[1].records();
    let record = records.wait(1, |record| record["request"]["path"] == "/unwanted").remove(0);
    assert_eq!(text(&record, "/decision/reason"), "limit-exceeded", "{record:#}");
    assert_eq!(text(&record, "/decision/policy/name"), "tenants", "{record:#}");
    assert_eq!(text(&record, "/limits/0/provider"), "limiter", "{record:#}");
}

/// The status, and the headers.
fn ask(sidecar: &Sidecar, path: &str, tenant: &str) -> (String, String) {
    let header = format!("X-Tenant: {tenant}");
    let url = format!("http://{}{path}", sidecar.address);
    let mut arguments = vec!["--dump-header", "-", "--output", "/dev/null", "--write-out", "%{http_code}"];
    if !tenant.is_empty() {
        arguments.extend(["--header", &header]);
    }
    arguments.push(&url);
    let said = curl(&arguments).stdout;
    let (headers, status) = said.split_at(said.len().saturating_sub(3));
    (status.to_owned(), headers.to_ascii_lowercase())
}

fn limits(service: SocketAddr) -> String {
    let (host, port) = (service.ip(), service.port());
    format!(
        "apiVersion: writ.dev/v1alpha1
kind: RateLimit
metadata: {{name: tenants, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  rules: [{{name: tenants, key: ['request.headers[x-tenant]'], global: {{provider: limiter, domain: shop}}}}]
---
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {{name: mesh}}
spec:
  extensionProviders:
  - {{name: limiter, envoyRateLimitGrpc: {{service: limiter.shop.svc.cluster.local, port: 8081, timeout: 5s}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: limiter, namespace: shop}}
spec: {{ports: [{{name: grpc, port: 8081, targetPort: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: limiter, namespace: shop, labels: {{kubernetes.io/service-name: limiter}}}}
addressType: IPv4
ports: [{{name: grpc, port: {port}}}]
endpoints: [{{addresses: ['{host}']}}]
"
    )
}
