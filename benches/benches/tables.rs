//! Cost of the look-ups that every request makes, with few and with many policies and routes.
//!
//! `cargo bench --profile fast -p benches --bench tables`

#![expect(
    clippy::expect_used,
    reason = "the inputs are written below, and a benchmark has no caller to tell"
)]

use std::net::IpAddr;
use std::time::Duration;

use control_client::snapshot::*;
use divan::{Bencher, black_box};
use http::{HeaderMap, HeaderValue, Method};
use proxy::limits::{InForce, Rate, Wanted};
use proxy::tables::{
    BackendId, ConnectionAttributes, LimitPhase, RequestAttributes, RouteAttributes, Split, SplitState,
    Tables, UserAttributes, normalize,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SIZES: [usize; 2] = [10, 10_000];
const KNOWN: &str = "spiffe://cluster.local/ns/ns-0/sa/app-0";
const UNKNOWN: &str = "spiffe://cluster.local/ns/nowhere/sa/nobody";

fn main() {
    divan::main();
}

/// A quarter allows an exact principal, a quarter a path prefix, a quarter asks for headers or for what must not be, and a
/// quarter for claims.
fn policies(count: usize) -> Policy {
    let authorization = (0..count).map(|n| {
        let (action, rule) = match n % 8 {
            0 | 1 => (AuthorizationAction::Allow, principal(n)),
            2 | 3 => (AuthorizationAction::Allow, when(prefix("to.paths", format!("/api/v{n}/")))),
            4 => (AuthorizationAction::Allow, when(header("x-tenant", exact(format!("tenant-{n}")), vec![]))),
            5 => (AuthorizationAction::Deny, when(header("x-region", vec![], region(n)))),
            6 => (AuthorizationAction::Allow, when(claim("team", format!("team-{n}")))),
            _ => (
                AuthorizationAction::Allow,
                when(request_principal(format!("https://issuer.example/user-{n}"))),
            ),
        };
        AuthorizationPolicy {
            object: n as u32,
            action,
            rules: vec![rule],
            dry_run: false,
            quarantined: false,
            expires: None,
            provider: None,
        }
    });
    let object = |n: usize| ObjectRef {
        kind: "AuthorizationPolicy".into(),
        namespace: "bench".into(),
        name: format!("policy-{n:05}"),
        digest: "sha256:00".into(),
    };
    Policy {
        objects: (0..count).map(object).collect(),
        authorization: authorization.collect(),
        ..Policy::default()
    }
}

fn exact(text: String) -> Vec<ValueMatch> {
    vec![ValueMatch::Exact(text)]
}

/// Every DENY excepts the region that is asked from, and one of its own.
fn region(n: usize) -> Vec<ValueMatch> {
    vec![ValueMatch::Exact("eu".into()), ValueMatch::Exact(format!("region-{n}"))]
}

fn condition(attribute: Attribute, field: &str, values: Vec<ValueMatch>) -> Condition {
    Condition { attribute, field: field.into(), values, not_values: Vec::new() }
}

fn principal(n: usize) -> AuthorizationRule {
    let name = exact(format!("cluster.local/ns/ns-{n}/sa/app-{n}"));
    let from = vec![vec![condition(Attribute::SourcePrincipal, "from.principals", name)]];
    AuthorizationRule { from, ..AuthorizationRule::default() }
}

fn prefix(field: &str, text: String) -> Condition {
    condition(Attribute::Path, field, vec![ValueMatch::Prefix(text)])
}

fn header(name: &str, values: Vec<ValueMatch>, not_values: Vec<ValueMatch>) -> Condition {
    Condition { not_values, ..condition(Attribute::Header(name.into()), "when[request.headers]", values) }
}

fn claim(name: &str, text: String) -> Condition {
    condition(Attribute::RequestClaim(vec![name.into()]), "when[request.auth.claims]", exact(text))
}

fn request_principal(text: String) -> Condition {
    condition(Attribute::RequestPrincipal, "from.requestPrincipals", exact(text))
}

fn when(condition: Condition) -> AuthorizationRule {
    AuthorizationRule { when: vec![condition], ..AuthorizationRule::default() }
}

fn compile(policy: &Policy) -> Tables {
    let ids: Vec<_> = (0..policy.backends.len() as u32).map(BackendId).collect();
    Tables::compile(policy, &ids).expect("the policy is one that compiles")
}

fn connection(identity: &str) -> ConnectionAttributes<'_> {
    ConnectionAttributes {
        source_identity: Some(identity),
        source_ip: IpAddr::from([10, 1, 0, 7]),
        remote_ip: IpAddr::from([10, 1, 0, 7]),
        destination_ip: IpAddr::from([10, 1, 0, 9]),
        destination_port: 9080,
        sni: Some("outbound_.9080_._.ratings.bookinfo.svc.cluster.local"),
    }
}

/// What a browser behind two proxies sends.
fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "ratings:9080"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "text/html,application/xhtml+xml"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("cookie", "session=0123456789abcdef"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-request-id", "8c2f0e0e-6f0e-4a3b-9a55-b8f1a7a0ad53"),
        ("x-region", "eu"),
        ("x-tenant", "none"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
}

/// Of no team that a policy names.
fn user() -> UserAttributes {
    let claims = serde_json::json!({
        "iss": "https://issuer.example", "sub": "alice", "aud": "ratings", "azp": "browser", "exp": 1_900_000_000,
        "iat": 1_800_000_000, "team": "none", "groups": ["readers", "writers"], "realm": { "roles": ["user"] },
    });
    UserAttributes {
        issuer: "https://issuer.example".into(),
        subject: "alice".into(),
        audiences: vec!["ratings".into()],
        presenter: Some("browser".into()),
        claims: claims.as_object().cloned().unwrap_or_default(),
    }
}

fn request<'a>(
    path: &'a str,
    headers: &'a HeaderMap,
    user: Option<&'a UserAttributes>,
) -> RequestAttributes<'a> {
    RequestAttributes { method: "GET", host: Some("ratings:9080"), path, headers, remote_ip: None, user }
}

fn authorize(bencher: Bencher<'_, '_>, count: usize, identity: &str, path: &str, user: &UserAttributes) {
    let tables = compile(&policies(count));
    let remainder = tables.admit(&connection(identity));
    let headers = headers();
    let request = request(path, &headers, Some(user));
    bencher.bench_local(|| tables.authorize(black_box(&remainder), black_box(&request)));
}

#[divan::bench(args = SIZES)]
fn authorize_by_principal(bencher: Bencher<'_, '_>, count: usize) {
    authorize(bencher, count, KNOWN, "/ratings/1", &user());
}

#[divan::bench(args = SIZES)]
fn authorize_by_path(bencher: Bencher<'_, '_>, count: usize) {
    authorize(bencher, count, UNKNOWN, "/api/v2/items", &user());
}

#[divan::bench(args = SIZES)]
fn authorize_by_claim(bencher: Bencher<'_, '_>, count: usize) {
    let mut user = user();
    user.claims.insert("team".into(), "team-6".into());
    authorize(bencher, count, UNKNOWN, "/ratings/1", &user);
}

#[divan::bench(args = SIZES)]
fn authorize_nothing_matches(bencher: Bencher<'_, '_>, count: usize) {
    authorize(bencher, count, UNKNOWN, "/ratings/1", &user());
}

#[divan::bench(args = SIZES, sample_count = 10)]
fn consider_nothing_matched(bencher: Bencher<'_, '_>, count: usize) {
    let tables = compile(&policies(count));
    let headers = headers();
    let user = user();
    let request = request("/ratings/1", &headers, Some(&user));
    bencher.bench_local(|| tables.consider(&connection(UNKNOWN), Some(black_box(&request)), 8));
}

#[divan::bench(args = SIZES)]
fn admit_a_known_kind(bencher: Bencher<'_, '_>, count: usize) {
    let tables = compile(&policies(count));
    bencher.bench_local(|| tables.admit(black_box(&connection(KNOWN))));
}

#[divan::bench(args = SIZES)]
fn admit_a_new_kind(bencher: Bencher<'_, '_>, count: usize) {
    let tables = compile(&policies(count));
    let mut number = 0;
    bencher
        .with_inputs(|| {
            number += 1;
            format!("spiffe://cluster.local/ns/new/sa/app-{number}")
        })
        .bench_local_refs(|identity| tables.admit(&connection(identity)));
}

#[divan::bench(args = SIZES, sample_count = 10)]
fn compile_policies(bencher: Bencher<'_, '_>, count: usize) {
    let policy = policies(count);
    bencher.bench_local(|| compile(black_box(&policy)));
}

/// Prefixes on one service, every tenth rule with a header besides.
fn routes(count: usize) -> Policy {
    let rule = |n: usize| {
        let header = ("x-tenant".to_owned(), TextMatch::Exact(format!("tenant-{n}")));
        let each = RouteMatch {
            path: PathMatch::Prefix(format!("/api/v{n}")),
            headers: if n.is_multiple_of(10) { vec![header] } else { Vec::new() },
            ..RouteMatch::default()
        };
        let backend =
            WeightedBackend { backend: Some(0), name: "ratings:9080".into(), weight: 1, filters: Vec::new() };
        RouteRule {
            object: 0,
            rule: n as u16,
            created: Some(0),
            matches: vec![each],
            filters: Vec::new(),
            backends: vec![backend],
            request_timeout: None,
            backend_timeout: None,
            retry: None,
        }
    };
    let port = ServicePort { port: 9080, protocol: None, routes: (0..count).map(rule).collect(), backend: 0 };
    let service = Service {
        host: "ratings.bookinfo.svc.cluster.local".into(),
        names: vec!["ratings".into()],
        addresses: vec![IpAddr::from([10, 96, 0, 1])],
        object: None,
        ports: vec![port],
    };
    let backend = Backend {
        id: "ratings:9080".into(),
        name: "ratings:9080".into(),
        protocol: None,
        tls: BackendTls::Auto,
        object: None,
        mtls_required: false,
        connect_timeout: Duration::from_secs(10),
    };
    let object = ObjectRef {
        kind: "HTTPRoute".into(),
        namespace: "bench".into(),
        name: "routes".into(),
        digest: "sha256:00".into(),
    };
    Policy { objects: vec![object], services: vec![service], backends: vec![backend], ..Policy::default() }
}

#[divan::bench(args = SIZES)]
fn match_route(bencher: Bencher<'_, '_>, count: usize) {
    let tables = compile(&routes(count));
    let headers = headers();
    let id = tables.service_by_authority("ratings", 9080).expect("the service is there");
    let path = format!("/api/v{}/items", count - 1);
    let request = RouteAttributes { method: &Method::GET, path: &path, query: None, headers: &headers };
    bencher.bench_local(|| match tables.match_route(black_box(id), black_box(&request)) {
        proxy::tables::RouteChoice::Rule(rule) => rule.policy,
        _ => unreachable!("the last rule matches"),
    });
}

#[divan::bench(args = SIZES, sample_count = 10)]
fn compile_routes(bencher: Bencher<'_, '_>, count: usize) {
    let policy = routes(count);
    bencher.bench_local(|| compile(black_box(&policy)));
}

/// By whom a request is, and for whom it says that it is.
fn limited() -> Tables {
    let part = |name: &str, attribute| KeyPart { name: name.into(), attribute };
    let rule = RateLimitRule {
        matches: AuthorizationRule::default(),
        name: None,
        key: vec![
            part("source.principal", Attribute::SourcePrincipal),
            part("request.headers[x-tenant]", Attribute::Header("x-tenant".into())),
        ],
        local: Some(LocalLimit { requests: 1_000_000, per: Duration::from_secs(1), burst: 1_000_000 }),
        global: None,
    };
    let rate_limits = vec![RateLimit { object: 0, rules: vec![rule], quarantined: false }];
    compile(&Policy { rate_limits, ..Policy::default() })
}

/// All that one local limit costs a request: which limits count it, by what, the time, and its bucket among others.
#[divan::bench(args = [1, 10_000])]
fn take_a_local_limit(bencher: Bencher<'_, '_>, keys: u32) {
    let tables = limited();
    let limits = tables.rate_limits();
    let rate = Rate::new(1_000_000, Duration::from_secs(1), 1_000_000);
    let in_force = InForce::first(std::iter::once(Wanted { id: "limit", rate, keyed: true }));
    let now = in_force.now();
    for key in 1..u64::from(keys) {
        in_force.buckets(0).take(key.wrapping_mul(0x9e37_79b9_7f4a_7c15), now);
    }
    let (connection, headers) = (connection(KNOWN), headers());
    let (on, request) = (limits.on(&connection), request("/ratings/1", &headers, None));
    bencher.bench_local(|| {
        let counting = limits.counting(&on, LimitPhase::BeforeAuthentication, black_box(&request));
        let key = counting[0].hash(&connection, Some(&request), in_force.hasher());
        in_force.buckets(0).take(key, in_force.now())
    });
}

#[divan::bench]
fn service_by_authority(bencher: Bencher<'_, '_>) {
    let tables = compile(&routes(10));
    bencher
        .bench_local(|| tables.service_by_authority(black_box("ratings.bookinfo.svc.cluster.local"), 9080));
}

#[divan::bench(args = [&[90u32, 10][..], &[1, 1, 1], &[999_999, 1]])]
fn split(bencher: Bencher<'_, '_>, weights: &[u32]) {
    let split = Split::new(weights);
    let mut state = SplitState::default();
    bencher.bench_local(|| state.choose(black_box(&split)));
}

#[divan::bench]
fn normalize_path(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| {
        normalize::path(black_box("/api/v1/items/12345"), PathNormalization::MergeSlashes).is_ok()
    });
}
