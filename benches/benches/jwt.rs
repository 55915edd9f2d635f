//! What end-user authentication costs: a token that was seen before, and a new one beside the bare verification of its
//! signature by the same key in the same crypto module. The ratio is of one run, so that the machine's mood cancels out.
//!
//! `cargo bench -p benches --bench jwt`

#![expect(
    clippy::expect_used,
    reason = "the inputs are written below, and a benchmark has no caller to tell"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_client::jwks::KeySet;
use control_client::snapshot::{JwtRule, KeySource, ObjectRef, Policy, RequestAuthentication, TokenLocation};
use fips::jws::{Algorithm, PublicNumbers, SigningKey};
use http::{HeaderValue, Request};
use proxy::jwks::{Options, Store};
use proxy::jwt::{Outcome, Tokens};
use proxy::tables::Tables;
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds, in each of which all three are measured, one after the other. Short and many: what else the machine does spoils
/// some of them, and the median is of the others.
const ROUNDS: usize = 200;
/// New tokens in one round.
const TOKENS: usize = 40;
/// Requests with a token that was seen before, in one round.
const SEEN: usize = 10_000;
const NOW: i64 = 1_800_000_000;

fn main() {
    fips::install();
    let issuer = Issuer::new();
    let keys = issuer.keys();
    let tables = tables(&keys);
    let rules = tables.authentication();
    let (mut seen, mut new, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let tokens: Vec<_> = (0..TOKENS).map(|number| issuer.token(round * TOKENS + number)).collect();
        let mut requests: Vec<_> = tokens.iter().map(request).collect();
        // A worker's own, as it is after a start.
        let verifier = Tokens::new(Store::new(Options::default()));
        let ask = |request: &mut Request<()>| {
            let outcome = verifier.authenticate(rules, request, NOW);
            assert!(matches!(black_box(outcome), Outcome::Verified(..)), "the token is good");
        };
        new.push(each(TOKENS, || requests.iter_mut().for_each(ask)));
        let last = requests.last_mut().expect("there are some");
        seen.push(each(SEEN, || (0..SEEN).for_each(|_| ask(last))));
        bare.push(each(TOKENS, || tokens.iter().for_each(|token| verify(&keys, token))));
    }
    let [seen, new, bare] = [seen, new, bare].map(median);
    println!("a token seen before            {seen:>10.2?}");
    println!("a new token, ES256             {new:>10.2?}");
    println!("bare verification, ES256       {bare:>10.2?}");
    println!("new / bare                     {:>9.3}x", new.as_secs_f64() / bare.as_secs_f64());
}

fn each(count: usize, work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed() / count as u32
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// What no verifier can do without.
fn verify(keys: &KeySet, token: &Token) {
    let key = keys.candidates(Some("k"), Algorithm::Es256).next().expect("it is there");
    assert!(key.verify(Algorithm::Es256, token.signed.as_bytes(), &token.signature), "the signature is good");
}

struct Token {
    signed: String,
    signature: Vec<u8>,
}

struct Issuer(SigningKey);

impl Issuer {
    fn new() -> Self {
        Self(SigningKey::generate(Algorithm::Es256).expect("a key"))
    }

    fn keys(&self) -> Arc<KeySet> {
        let PublicNumbers::Ec(curve, x, y) = self.0.public() else { unreachable!("it is of ES256") };
        let jwk = json!({"kty": "EC", "kid": "k", "crv": curve, "x": text(&x), "y": text(&y)});
        Arc::new(KeySet::parse(json!({"keys": [jwk]}).to_string().as_bytes()).expect("a set"))
    }

    /// As an OpenID provider makes them: some ten claims, one of them a list.
    fn token(&self, number: usize) -> Token {
        let header = json!({"alg": "ES256", "kid": "k", "typ": "at+jwt"});
        let claims = json!({
            "iss": "https://issuer.example", "sub": format!("user-{number}"), "aud": ["ratings", "reviews"],
            "exp": NOW + 600, "iat": NOW, "jti": format!("{number:032x}"), "client_id": "web",
            "scope": "openid profile read write", "groups": ["users", "editors", "admins"],
            "email": format!("user-{number}@example.com"),
        });
        let signed =
            format!("{}.{}", text(header.to_string().as_bytes()), text(claims.to_string().as_bytes()));
        let signature = self.0.sign(signed.as_bytes()).expect("a signature");
        Token { signed, signature }
    }
}

fn tables(keys: &Arc<KeySet>) -> Tables {
    let rule = JwtRule {
        index: 0,
        issuer: "https://issuer.example".into(),
        audiences: vec!["ratings".into()],
        keys: KeySource::Inline(Arc::clone(keys)),
        locations: TokenLocation::defaults(),
        // So that a request can be asked about again.
        forward_original: true,
        payload_header: None,
        claim_headers: Vec::new(),
    };
    let object = ObjectRef {
        kind: "RequestAuthentication".into(),
        namespace: "bench".into(),
        name: "users".into(),
        digest: "sha256:00".into(),
    };
    let request_authentication =
        vec![RequestAuthentication { object: 0, rules: vec![rule], quarantined: false }];
    let policy = Policy { objects: vec![object], request_authentication, ..Policy::default() };
    Tables::compile(&policy, &[]).expect("the policy is one that compiles")
}

/// As browsers send them, with the token among other headers.
fn request(token: &Token) -> Request<()> {
    let mut request = Request::new(());
    let bearer = format!("Bearer {}.{}", token.signed, text(&token.signature));
    for (name, value) in [("accept", "*/*"), ("user-agent", "bench/1"), ("authorization", &bearer)] {
        let value = HeaderValue::from_str(value).expect("a value");
        request.headers_mut().insert(name, value);
    }
    request
}

/// Base64url (RFC 4648 section 5).
fn text(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let symbols = (0..=chunk.len()).map(|at| ALPHABET[(bits >> (18 - 6 * at)) as usize & 63]);
        text.extend(symbols.map(char::from));
    }
    text
}
