//! The Envoy filters that Istio makes of its own policies (`istio/cases.json`), in a real Envoy, as the oracle: what they
//! allow of generated requests, the policies allow here.
//!
//! Whole, most of these policies can match nothing (they name every field once), so each is also taken in slices: some of
//! its fields with some of their values, and the same of the filter. What is left out is what Writ refuses to read:
//! `experimental.envoy.filters.*` conditions. Addresses are moved into 127.0.0.0/8, and ports to those that are there.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use control_client::Workload;
use fips::ca::Profile;
use http::{HeaderMap, HeaderValue};
use proxy::decision::Outcome;
use proxy::tables::{ConnectionAttributes, RequestAttributes, UserAttributes};
use rustls::pki_types::ServerName;
use serde_json::{Map, Value, json};
use tests::program::{Program, beside};
use tests::{Caller, Directory, Explainer, Pki, TlsClient, soon};
use tokio::net::{TcpSocket, TcpStream};

use crate::skipped;

/// Slices of the large policy.
const SLICES: usize = 140;
/// Connections to try a case on, and requests on each.
const CONNECTIONS: usize = 4;
const REQUESTS: usize = 6;

#[tokio::test]
async fn an_envoy_with_istios_filter_decides_as_the_policy_does_here() {
    let test = "an_envoy_with_istios_filter_decides_as_the_policy_does_here";
    let Some(envoy) = envoy(test) else { return };
    let mut dice = Dice(0x05ee_d0f1_5710);
    let ports = Ports::reserve();
    let cases = cases(&mut dice, &ports);
    let mesh = Envoy::start(&envoy, &ports, &cases);
    let mut seen = Seen::default();
    for (number, case) in cases.iter().enumerate() {
        let here = case.explainer();
        for _ in 0..CONNECTIONS {
            let connection = case.connection(&mut dice, &ports);
            let mut client = mesh.connect(&connection).await;
            for _ in 0..REQUESTS {
                let request = case.request(&mut dice);
                let there = client.allows(number, &request).await;
                let decided = connection.decided(&here, &request);
                assert_eq!(decided, there, "{}: {connection:?} {request:?}\n{:#}", case.name, case.policy);
                seen.note(there);
            }
        }
    }
    let all = cases.len() * CONNECTIONS * REQUESTS;
    assert!(seen.allowed > all / 10 && seen.refused > all / 10, "{seen:?} say little");
}

#[derive(Debug, Default)]
struct Seen {
    allowed: usize,
    refused: usize,
}

impl Seen {
    fn note(&mut self, allowed: bool) {
        *(if allowed { &mut self.allowed } else { &mut self.refused }) += 1;
    }
}

/// The binary that `benches/peers.sh` installs.
fn envoy(test: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("WRIT_CACHE").map_or_else(|| beside("../.cache"), PathBuf::from);
    let envoy = cache.join("peers/envoy");
    if !envoy.exists() {
        skipped(test, "an Envoy, which benches/peers.sh installs");
        return None;
    }
    Some(envoy)
}

/// A policy, the filter that Istio makes of it, and what is worth trying on both.
struct Case {
    name: String,
    policy: Value,
    trust_domain: &'static str,
    aliases: &'static [&'static str],
    /// `rules.policies` of the filter.
    filter: Value,
    /// Values that it names, by the attribute that they are of.
    words: Vec<(Attribute, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attribute {
    Identity,
    Namespace,
    SourceIp,
    RemoteIp,
    DestinationIp,
    Port,
    Sni,
    Host,
    Method,
    Path,
    Header,
    RequestPrincipal,
    Audience,
    Presenter,
    Issuer,
    Nested,
}

use Attribute as A;

/// Fields of the large policy in the order in which the filter's `permissions` have them: key of the policy, its negation,
/// and what they are of.
const PERMISSIONS: &[(&str, &str, Attribute)] = &[
    ("hosts", "notHosts", A::Host),
    ("methods", "notMethods", A::Method),
    ("paths", "notPaths", A::Path),
    ("ports", "notPorts", A::Port),
    ("when destination.ip", "when", A::DestinationIp),
    ("when destination.port", "when", A::Port),
    ("when connection.sni", "when", A::Sni),
    ("when experimental.envoy.filters.a.b[c]", "when", A::Header),
];
/// The same of its `principals`.
const PRINCIPALS: &[(&str, &str, Attribute)] = &[
    ("principals", "notPrincipals", A::Identity),
    ("requestPrincipals", "notRequestPrincipals", A::RequestPrincipal),
    ("namespaces", "notNamespaces", A::Namespace),
    ("remoteIpBlocks", "notRemoteIpBlocks", A::RemoteIp),
    ("ipBlocks", "notIpBlocks", A::SourceIp),
    ("when request.headers[X-header]", "when", A::Header),
    ("when source.ip", "when", A::SourceIp),
    ("when remote.ip", "when", A::RemoteIp),
    ("when source.namespace", "when", A::Namespace),
    ("when source.principal", "when", A::Identity),
    ("when request.auth.principal", "when", A::RequestPrincipal),
    ("when request.auth.audiences", "when", A::Audience),
    ("when request.auth.presenter", "when", A::Presenter),
    ("when request.auth.claims[iss]", "when", A::Issuer),
    ("when request.auth.claims[nested1][nested2]", "when", A::Nested),
];

/// One field of the policy with its values, and the element of the filter that stands for it.
struct Unit {
    /// `hosts`, or `when KEY`.
    field: &'static str,
    negative: bool,
    attribute: Attribute,
    values: Vec<String>,
    element: Value,
    permission: bool,
}

fn pair(name: &str) -> Value {
    let cases: Value = serde_json::from_str(include_str!("../istio/cases.json")).unwrap();
    cases["pairs"].as_array().unwrap().iter().find(|pair| pair["name"] == name).unwrap().clone()
}

fn cases(dice: &mut Dice, ports: &Ports) -> Vec<Case> {
    let mut cases = vec![
        whole("http/simple-policy-td-aliases", "td1", &["cluster.local"]),
        whole("http/simple-policy-multiple-td-aliases", "td1", &["cluster.local", "some-td"]),
        whole("http/allow-host-before-111", "cluster.local", &[]),
    ];
    let large = here(&pair("http/allow-full-rule"), ports);
    let rules = &large["rbac"]["typedConfig"]["rules"]["policies"];
    // Rule 0 as it is: service accounts.
    let mut policy = large["policies"][0].clone();
    policy["spec"]["rules"].as_array_mut().unwrap().truncate(1);
    cases.push(Case {
        name: "http/allow-full-rule, rule 0".into(),
        policy,
        trust_domain: "cluster.local",
        aliases: &[],
        filter: json!({ "rule": rules["ns[foo]-policy[httpbin-1]-rule[0]"] }),
        words: vec![(A::Identity, "cluster.local/ns/my-ns/sa/my-sa".into())],
    });
    let units = units(&large["policies"][0]["spec"]["rules"][1], &rules["ns[foo]-policy[httpbin-1]-rule[1]"]);
    cases.extend((0..SLICES).map(|number| slice(number, &units, &large["policies"][0], dice)));
    cases
}

fn whole(name: &str, trust_domain: &'static str, aliases: &'static [&'static str]) -> Case {
    // Brackets stand neither in methods nor in SPIFFE IDs; in the filter's expressions they are escaped.
    let text = pair(name).to_string();
    let text = text.replace(r"\\[", "-").replace(r"\\]", "");
    let plain = |text: String| {
        ["[0]", "[1]"].iter().fold(text, |text, index| text.replace(index, &format!("-{}", &index[1..2])))
    };
    let pair: Value = serde_json::from_str(&plain(text)).unwrap();
    Case {
        name: name.into(),
        policy: pair["policies"][0].clone(),
        trust_domain,
        aliases,
        filter: pair["rbac"]["typedConfig"]["rules"]["policies"].clone(),
        words: ["rule-0-to-0-method-0", "rule-1-to-0-method-0"]
            .map(|method| (A::Method, method.into()))
            .into(),
    }
}

/// The pair with addresses and ports that are here.
fn here(pair: &Value, ports: &Ports) -> Value {
    const ADDRESSES: [(&str, &str); 8] = [
        ("90.10.10.10", "127.90.10.10"),
        ("90.168.10.0", "127.90.168.0"),
        ("192.168.10.0", "127.168.10.0"),
        ("10.10.10.10", "127.10.10.10"),
        ("1.2.3.4", "127.1.2.3"),
        ("5.6.0.0", "127.6.0.0"),
        ("9.0.0.1", "127.9.0.1"),
        ("9.2.0.0", "127.92.0.0"),
    ];
    let quoted = |address: &str, end: &str| format!("\"{address}{end}");
    let mut text = pair.to_string();
    for (theirs, ours) in ADDRESSES {
        for end in ["\"", "/"] {
            text = text.replace(&quoted(theirs, end), &quoted(ours, end));
        }
    }
    for (theirs, ours) in [(80, 0), (90, 1), (91, 0), (92, 1)] {
        let ours = ports.http[ours];
        text = text.replace(&format!("\"{theirs}\""), &format!("\"{ours}\""));
        text = text
            .replace(&format!("\"destinationPort\":{theirs}}}"), &format!("\"destinationPort\":{ours}}}"));
    }
    serde_json::from_str(&text).unwrap()
}

/// The rule and the filter's policy taken apart, field by field.
fn units(rule: &Value, policy: &Value) -> Vec<Unit> {
    let mut units = Vec::new();
    let permissions = policy["permissions"][0]["andRules"]["rules"].as_array().unwrap();
    let principals = policy["principals"][0]["andIds"]["ids"].as_array().unwrap();
    for (fields, elements, permission) in [(PERMISSIONS, permissions, true), (PRINCIPALS, principals, false)]
    {
        assert_eq!(elements.len(), 2 * fields.len(), "each field and its negation");
        for (at, (field, not_field, attribute)) in fields.iter().enumerate() {
            for negative in [false, true] {
                let values = match field.strip_prefix("when ") {
                    Some(key) => {
                        let all = rule["when"].as_array().unwrap();
                        let when = all.iter().find(|when| when["key"] == key).unwrap();
                        &when[if negative { "notValues" } else { "values" }]
                    }
                    None => {
                        let key = if negative { not_field } else { field };
                        let (source, operation) = (&rule["from"][0]["source"], &rule["to"][0]["operation"]);
                        source.get(key).or_else(|| operation.get(key)).unwrap()
                    }
                };
                let values =
                    values.as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned());
                units.push(Unit {
                    field,
                    negative,
                    attribute: *attribute,
                    values: values.collect(),
                    element: elements[2 * at + usize::from(negative)].clone(),
                    permission,
                });
            }
        }
    }
    units.retain(|unit| !unit.field.contains("experimental"));
    units
}

/// Some fields with some of their values; the same of the filter.
fn slice(number: usize, units: &[Unit], policy: &Value, dice: &mut Dice) -> Case {
    // Each field comes, and then some others with it.
    let mut chosen = vec![&units[number % units.len()]];
    for _ in 0..dice.below(3) {
        let unit = &units[dice.below(units.len())];
        if chosen.iter().all(|other| (other.field, other.negative) != (unit.field, unit.negative)) {
            chosen.push(unit);
        }
    }
    let (mut source, mut operation, mut when) = (Map::new(), Map::new(), Vec::new());
    let (mut permissions, mut principals, mut words) = (Vec::new(), Vec::new(), Vec::new());
    for unit in chosen {
        let mut kept: Vec<usize> = (0..unit.values.len()).filter(|_| dice.percent(60)).collect();
        // `*` among others decides alone: it comes seldom.
        kept.retain(|at| unit.values[*at] != "*" || dice.percent(25));
        if kept.is_empty() {
            kept.push(0);
        }
        let values: Vec<_> = kept.iter().map(|at| unit.values[*at].clone()).collect();
        words.extend(values.iter().map(|value| (unit.attribute, value.clone())));
        let mut element = unit.element.clone();
        assert!(keep(&mut element, unit.values.len(), &kept), "{}: {element:#}", unit.field);
        if unit.permission { &mut permissions } else { &mut principals }.push(element);
        match unit.field.strip_prefix("when ") {
            Some(key) => {
                when.push(json!({ "key": key, (if unit.negative { "notValues" } else { "values" }): values }))
            }
            None => {
                let negated = PERMISSIONS.iter().chain(PRINCIPALS).find(|(field, ..)| *field == unit.field);
                let key = if unit.negative { negated.unwrap().1 } else { unit.field };
                let into = if unit.permission { &mut operation } else { &mut source };
                into.insert(key.into(), json!(values));
            }
        }
    }
    let mut rule = json!({});
    if !source.is_empty() {
        rule["from"] = json!([{ "source": source }]);
    }
    if !operation.is_empty() {
        rule["to"] = json!([{ "operation": operation }]);
    }
    if !when.is_empty() {
        rule["when"] = json!(when);
    }
    let mut policy = policy.clone();
    policy["spec"]["rules"] = json!([rule]);
    let any = |elements: &Vec<Value>| elements.is_empty().then(|| json!({ "any": true }));
    let (any_permission, any_principal) = (any(&permissions), any(&principals));
    permissions.extend(any_permission);
    principals.extend(any_principal);
    let filter = json!({ "rule": {
        "permissions": [{ "andRules": { "rules": permissions } }],
        "principals": [{ "andIds": { "ids": principals } }],
    }});
    let (trust_domain, aliases) = ("cluster.local", &[][..]);
    Case { name: format!("slice {number}"), policy, trust_domain, aliases, filter, words }
}

/// Keeps some of the alternatives of an element: of the lists that have one element for each value.
fn keep(element: &mut Value, values: usize, kept: &[usize]) -> bool {
    match element {
        Value::Object(members) => members.iter_mut().fold(false, |found, (name, member)| match member {
            Value::Array(list)
                if ["rules", "ids", "valueMatchers"].contains(&name.as_str()) && list.len() == values =>
            {
                let mut some: Vec<_> = kept.iter().map(|at| list[*at].clone()).collect();
                if name == "valueMatchers" && some.len() == 1 {
                    // An Envoy takes no list of fewer than two here.
                    some.push(some[0].clone());
                }
                *list = some;
                true
            }
            member => keep(member, values, kept) || found,
        }),
        // In each of them, not only the first.
        Value::Array(list) => list.iter_mut().map(|each| keep(each, values, kept)).max().unwrap_or_default(),
        _ => false,
    }
}

fn workload(trust_domain: &str) -> Workload {
    Workload {
        namespace: "foo".into(),
        name: "httpbin".into(),
        labels: [("app".into(), "httpbin".into()), ("version".into(), "v1".into())].into(),
        trust_domain: trust_domain.into(),
        ..Workload::default()
    }
}

impl Case {
    fn explainer(&self) -> Explainer {
        let settings = json!({
            "apiVersion": "writ.dev/v1alpha1", "kind": "MeshSettings", "metadata": { "name": "mesh" },
            "spec": { "trustDomainAliases": self.aliases },
        });
        let yaml = format!("{}\n---\n{settings}\n", self.policy);
        Explainer::of_yaml(&yaml, &workload(self.trust_domain))
    }

    /// A text for an attribute: what the policy asks for, or near it, or something else.
    fn word(&self, attribute: Attribute, others: &[&str], dice: &mut Dice) -> String {
        let named: Vec<_> = self.words.iter().filter(|(of, _)| *of == attribute).collect();
        if named.is_empty() || dice.percent(25) {
            return (*dice.one(others)).to_owned();
        }
        let text = dice.one(&named).1.clone();
        let filled = match text.strip_prefix('*') {
            Some("") => "any".into(),
            Some(suffix) => format!("x{suffix}"),
            None => match text.strip_suffix('*') {
                Some(prefix) => format!("{prefix}x"),
                None => text.replace("{**}", "x/y").replace("{*}", "x"),
            },
        };
        if dice.percent(15) { format!("{filled}z") } else { filled }
    }

    fn connection(&self, dice: &mut Dice, ports: &Ports) -> Connection {
        let address = |attribute, dice: &mut Dice| -> Ipv4Addr {
            let word = self.word(attribute, ADDRESSES, dice);
            // Of a block, an address within; of one that was changed, another.
            let word = word.split('/').next().unwrap().trim_end_matches('z');
            word.parse().unwrap_or(Ipv4Addr::LOCALHOST)
        };
        let wanted = self.words.iter().any(|(attribute, _)| [A::Identity, A::Namespace].contains(attribute));
        let identity = if wanted { self.identity(dice) } else { dice.one(IDENTITIES) };
        let sni = self.word(A::Sni, SNIS, dice);
        Connection {
            identity,
            source: address(A::SourceIp, dice),
            destination: address(A::DestinationIp, dice),
            port: *dice.one(&ports.http),
            sni: (sni != "none").then_some(sni),
        }
    }

    /// One that the policy names, more often than not.
    fn identity(&self, dice: &mut Dice) -> &'static str {
        let stem = |text: &str| text.trim_matches('*').trim_start_matches("cluster.local/").to_owned();
        let stems: Vec<_> =
            self.words.iter().map(|(_, text)| stem(text)).filter(|stem| !stem.is_empty()).collect();
        let near = |id: &&str| stems.iter().any(|stem| id.contains(stem.as_str()));
        let near: Vec<&'static str> = IDENTITIES.iter().copied().filter(near).collect();
        let among = if near.is_empty() || dice.percent(30) { IDENTITIES } else { &near };
        among[dice.below(among.len())]
    }

    fn request(&self, dice: &mut Dice) -> Request {
        let path =
            self.word(A::Path, &["/", "/exact", "/not-exact", "/prefix/a", "/a/suffix", "/other"], dice);
        let asks_user = self.words.iter().any(|(of, _)| {
            [A::RequestPrincipal, A::Audience, A::Presenter, A::Issuer, A::Nested].contains(of)
        });
        Request {
            method: self.word(A::Method, &["GET", "method", "not-method", "POST"], dice),
            host: self.word(A::Host, &["exact.com", "EXACT.com", "not-exact.com", "other:8080"], dice),
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            header: dice.percent(75).then(|| self.word(A::Header, &["header", "not-header", "other"], dice)),
            remote: dice.percent(70).then(|| {
                let word = self.word(A::RemoteIp, ADDRESSES, dice);
                let word = word.split('/').next().unwrap().trim_end_matches('z').to_owned();
                word.parse().unwrap_or(Ipv4Addr::LOCALHOST)
            }),
            user: (asks_user && dice.percent(80)).then(|| self.user(dice)),
        }
    }

    fn user(&self, dice: &mut Dice) -> Value {
        let mut claims = json!({});
        let principal = self.word(A::RequestPrincipal, &["iss/sub", "other/sub"], dice);
        let (issuer, subject) = principal.rsplit_once('/').unwrap_or((&principal, ""));
        let issuer = if self.words.iter().any(|(of, _)| *of == A::Issuer) {
            self.word(A::Issuer, &["iss", "not-iss"], dice)
        } else {
            issuer.to_owned()
        };
        claims["iss"] = json!(issuer);
        // A suffix form asks for any issuer and this end of the subject.
        let subject =
            if subject.is_empty() && dice.percent(60) { principal.clone() } else { subject.to_owned() };
        claims["sub"] = json!(subject);
        if dice.percent(80) {
            let audience = self.word(A::Audience, &["aud", "audiences"], dice);
            claims["aud"] = if dice.percent(50) { json!([audience, "second"]) } else { json!(audience) };
        }
        if dice.percent(80) {
            claims["azp"] = json!(self.word(A::Presenter, &["azp", "presenter"], dice));
        }
        if dice.percent(80) {
            let nested = self.word(A::Nested, &["nested", "other"], dice);
            let nested = if dice.percent(50) { json!([nested, 7]) } else { json!(nested) };
            claims["nested1"] = json!({ "nested2": nested });
        }
        claims
    }
}

const IDENTITIES: &[&str] = &[
    "",
    "spiffe://principal",
    "spiffe://principal-prefix-x",
    "spiffe://x-suffix-principal",
    "spiffe://not-principal",
    "spiffe://not-principal-prefix-x",
    "spiffe://x-not-suffix-principal",
    "spiffe://cluster.local/ns/ns/sa/a",
    "spiffe://cluster.local/ns/ns-prefix-x/sa/a",
    "spiffe://cluster.local/ns/x-ns-suffix/sa/a",
    "spiffe://cluster.local/ns/not-ns/sa/a",
    "spiffe://cluster.local/ns/not-ns-prefix-x/sa/a",
    "spiffe://cluster.local/ns/x-not-ns-suffix/sa/a",
    "spiffe://cluster.local/ns/my-ns/sa/my-sa",
    "spiffe://cluster.local/ns/my-ns/sa/my-sa-not",
    "spiffe://td1/ns/foo/sa/sa-only",
    "spiffe://cluster.local/ns/foo/sa/sa-not-only",
    "spiffe://cluster.local/region/eu/ns/my-ns/x/sa/my-sa/extra",
    "spiffe://td1/ns/rule-0/sa/from-0-principal-0",
    "spiffe://cluster.local/ns/rule-0/sa/from-0-principal-0",
    "spiffe://some-td/ns/rule-0/sa/from-0-principal-0",
    "spiffe://td1/ns/rule-0-from-1-ns-0/sa/from-1-principal-0",
    "spiffe://td1/ns/rule-0/sa/from-1-principal-1",
    "spiffe://cluster.local/ns/rule-1/sa/from-0-principal-0",
    "spiffe://elsewhere/ns/rule-1/sa/from-0-principal-0",
];
const ADDRESSES: &[&str] =
    &["127.0.0.1", "127.1.2.3", "127.6.1.1", "127.9.0.1", "127.10.10.10", "127.90.168.7"];
const SNIS: &[&str] = &["none", "exact.com", "a.suffix.com", "prefix.x", "not-exact.com", "a.not-suffix.com"];

/// Who calls what, by which name.
#[derive(Debug)]
struct Connection {
    /// Empty: no certificate.
    identity: &'static str,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    port: u16,
    sni: Option<String>,
}

#[derive(Debug)]
struct Request {
    method: String,
    host: String,
    path: String,
    header: Option<String>,
    remote: Option<Ipv4Addr>,
    /// Claims of a verified token.
    user: Option<Value>,
}

impl Connection {
    /// What is decided here.
    fn decided(&self, here: &Explainer, request: &Request) -> bool {
        let connection = ConnectionAttributes {
            source_identity: (!self.identity.is_empty()).then_some(self.identity),
            source_ip: self.source.into(),
            remote_ip: self.source.into(),
            destination_ip: self.destination.into(),
            destination_port: self.port,
            sni: self.sni.as_deref(),
        };
        let remainder = here.tables().admit(&connection);
        let mut headers = HeaderMap::new();
        if let Some(header) = &request.header {
            headers.insert("x-header", HeaderValue::from_str(header).unwrap());
        }
        let user = request.user.as_ref().map(user);
        let attributes = RequestAttributes {
            method: &request.method,
            host: Some(&request.host),
            path: &request.path,
            headers: &headers,
            remote_ip: Some(IpAddr::from(request.remote.unwrap_or(self.source))),
            user: user.as_ref(),
        };
        here.tables().authorize(&remainder, &attributes).outcome == Outcome::Allow
    }
}

fn user(claims: &Value) -> UserAttributes {
    let text = |name: &str| claims[name].as_str().map(str::to_owned);
    let audiences = match &claims["aud"] {
        Value::Array(list) => list.iter().map(|each| each.as_str().unwrap().to_owned()).collect(),
        other => other.as_str().map(str::to_owned).into_iter().collect(),
    };
    UserAttributes {
        issuer: text("iss").unwrap_or_default(),
        subject: text("sub").unwrap_or_default(),
        audiences,
        presenter: text("azp"),
        claims: claims.as_object().unwrap().clone(),
    }
}

/// Ports that stay ours until an Envoy listens on them.
struct Ports {
    http: [u16; 3],
    _held: [socket2::Socket; 3],
}

impl Ports {
    fn reserve() -> Self {
        let held = [held(), held(), held()];
        let http = held.each_ref().map(|held| held.local_addr().unwrap().as_socket().unwrap().port());
        Self { http, _held: held }
    }
}

/// Bound and not listening; Envoy's sockets may be bound beside it.
fn held() -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()).unwrap();
    socket
}

/// A running Envoy, and callers that it trusts.
struct Envoy {
    callers: HashMap<&'static str, Caller>,
    _program: Program,
    _directory: Directory,
}

const TYPES: &str = "type.googleapis.com/envoy.extensions";

impl Envoy {
    fn start(envoy: &PathBuf, ports: &Ports, cases: &[Case]) -> Self {
        let directory = Directory::new();
        let pki = Pki::new();
        let lifetime = std::time::Duration::from_secs(3600);
        let caller = |id: &str| pki.caller_with(&Profile::workload(id, lifetime)).offering(&["http/1.1"]);
        let server = Profile::workload("spiffe://cluster.local/ns/foo/sa/httpbin", lifetime);
        let server = pki.authority().issue(&server).unwrap();
        directory.write("tls.crt", &server.certificate_pem);
        directory.write("tls.key", &server.key_pem);
        directory.write("ca.crt", pki.authority().certificate_pem());
        let named = IDENTITIES.iter().filter(|id| !id.is_empty());
        let mut callers: HashMap<_, _> = named.map(|id| (*id, caller(id))).collect();
        callers.insert("", Caller::anonymous().offering(&["http/1.1"]));

        let manager = manager(cases);
        let listeners: Vec<_> = ports
            .http
            .iter()
            .map(|port| listener(&format!("http-{port}"), *port, json!([manager.clone()]), &directory))
            .collect();
        let bootstrap = json!({
            "node": { "id": "oracle", "cluster": "oracle" },
            "static_resources": { "listeners": listeners },
        });
        directory.write("envoy.json", &bootstrap.to_string());
        let mut command = Command::new(envoy);
        command.arg("-c").arg(directory.path().join("envoy.json"));
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "info"]);
        let program = Program::start("envoy", &mut command);
        program.error_line(|line| line.contains("starting main dispatch loop"));
        Self { callers, _program: program, _directory: directory }
    }

    async fn connect(&self, connection: &Connection) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((connection.source, 0).into()).unwrap();
        let to = SocketAddr::from((connection.destination, connection.port));
        let socket: TcpStream = soon("a connection", socket.connect(to)).await.unwrap();
        let name = match &connection.sni {
            Some(sni) => ServerName::try_from(sni.clone()).unwrap(),
            // Of an address, none is sent.
            None => ServerName::IpAddress(IpAddr::from(connection.destination).into()),
        };
        Client(self.callers[connection.identity].connect_over(socket, name).await)
    }
}

struct Client(TlsClient);

impl Client {
    /// Whether the filter of a case lets a request through.
    async fn allows(&mut self, case: usize, request: &Request) -> bool {
        let Request { method, host, path, .. } = request;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nx-case: {case}\r\n");
        if let Some(header) = &request.header {
            head += &format!("x-header: {header}\r\n");
        }
        if let Some(remote) = request.remote {
            head += &format!("x-forwarded-for: {remote}\r\n");
        }
        if let Some(user) = &request.user {
            head += &format!("x-user: {}\r\n", base64(&protobuf(user)));
        }
        self.0.send(format!("{head}\r\n")).await;
        match self.0.reply().await.status {
            200 => true,
            403 => false,
            status => panic!("{status} for {request:?}"),
        }
    }
}

fn listener(name: &str, port: u16, filters: Value, directory: &Directory) -> Value {
    let file = |name: &str| json!({ "filename": directory.path().join(name) });
    json!({
        "name": name,
        "address": { "socket_address": { "address": "0.0.0.0", "port_value": port } },
        "listener_filters": [{
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": { "@type": format!("{TYPES}.filters.listener.tls_inspector.v3.TlsInspector") },
        }],
        "filter_chains": [{
            "filters": filters,
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
                    "common_tls_context": {
                        "tls_certificates": [{ "certificate_chain": file("tls.crt"), "private_key": file("tls.key") }],
                        "validation_context": { "trusted_ca": file("ca.crt") },
                    },
                },
            },
        }],
    })
}

/// Answers 200 to all, a route with a filter of its own for each case; `x-user` stands for a verified token.
fn manager(cases: &[Case]) -> Value {
    let routes: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(number, case)| {
            let matches = json!([{ "name": "x-case", "string_match": { "exact": number.to_string() } }]);
            json!({
                "match": { "prefix": "/", "headers": matches },
                "direct_response": { "status": 200 },
                "typed_per_filter_config": { "envoy.filters.http.rbac": {
                    "@type": format!("{TYPES}.filters.http.rbac.v3.RBACPerRoute"),
                    "rbac": { "rules": { "action": "ALLOW", "policies": case.filter } },
                }},
            })
        })
        .collect();
    let user = json!({
        "header": "x-user",
        "on_header_present": {
            "metadata_namespace": "envoy.filters.http.jwt_authn", "key": "payload",
            "type": "PROTOBUF_VALUE", "encode": "BASE64",
        },
        "remove": true,
    });
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "oracle",
            "http_protocol_options": { "allow_custom_methods": true },
            "route_config": { "name": "cases", "virtual_hosts": [{ "name": "cases", "domains": ["*"], "routes": routes }] },
            "http_filters": [
                { "name": "envoy.filters.http.header_to_metadata", "typed_config": {
                    "@type": format!("{TYPES}.filters.http.header_to_metadata.v3.Config"), "request_rules": [user] } },
                { "name": "envoy.filters.http.rbac", "typed_config": {
                    "@type": format!("{TYPES}.filters.http.rbac.v3.RBAC") } },
                { "name": "envoy.filters.http.router", "typed_config": {
                    "@type": format!("{TYPES}.filters.http.router.v3.Router") } },
            ],
        },
    })
}

/// JSON as a `google.protobuf.Value` on the wire.
fn protobuf(value: &Value) -> Vec<u8> {
    fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![tag << 3 | 2];
        let mut length = bytes.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(bytes);
        out
    }
    match value {
        Value::Number(number) => {
            let mut out = vec![2 << 3 | 1];
            out.extend_from_slice(&number.as_f64().unwrap().to_le_bytes());
            out
        }
        Value::String(text) => field(3, text.as_bytes()),
        Value::Object(members) => {
            let entries = members.iter().map(|(name, member)| {
                let entry = [field(1, name.as_bytes()), field(2, &protobuf(member))].concat();
                field(1, &entry)
            });
            field(5, &entries.collect::<Vec<_>>().concat())
        }
        Value::Array(elements) => {
            let elements = elements.iter().map(|element| field(1, &protobuf(element)));
            field(6, &elements.collect::<Vec<_>>().concat())
        }
        other => panic!("no claim is {other}"),
    }
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let chunks = bytes.chunks(3).map(|chunk| {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let digit = |at: usize| {
            if at <= chunk.len() { ALPHABET[(bits >> (18 - 6 * at)) as usize & 63] } else { b'=' }
        };
        String::from_utf8((0..4).map(digit).collect()).unwrap()
    });
    chunks.collect()
}

/// SplitMix64: the same requests every time.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}
