//! What the proxy would decide about a request or an opaque connection, by the code that decides, without traffic: for
//! `writ explain` and the admin's `/explain`.

mod arrival;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, Request, Uri};
use serde_json::Value;

use crate::body::Body;
use crate::decision::Reason;
use crate::generation::{Generation, Held};
use crate::http::{consult, limit, pipeline};
use crate::identity::SpiffeId;
use crate::jwks;
use crate::jwt::{Tokens, Verified};
use crate::memory::Memory;
use crate::peer::{self, Peer};
use crate::stages::{self, Application, Target};
use crate::tables::ProviderPhase;
use crate::tcp;
use crate::telemetry::{ConnectionFacts, ProxyFacts, Record, Shard, Side, TlsEvidence};
use crate::upstream::Registry;

/// A request, or an opaque connection, to be explained.
#[derive(Debug, Clone)]
pub struct Query {
    /// How the record names what an opaque connection carries, `tcp` or `tls`; `None`: an HTTP request.
    pub opaque: Option<&'static str>,
    /// Inbound, outbound or gateway.
    pub side: Side,
    /// A verified mTLS peer's identity; `None`: plaintext.
    pub from: Option<SpiffeId>,
    /// The caller's address.
    pub source: SocketAddr,
    /// The client that a trusted caller asks for.
    pub remote: Option<IpAddr>,
    /// The workload's address and port (inbound; `None`: those behind the service that the URL names), a port of the
    /// Gateway's, or the original destination (outbound, when known).
    pub destination: Option<SocketAddr>,
    /// Server name of the ClientHello.
    pub sni: Option<String>,
    /// Method.
    pub method: Method,
    /// `http://host[:port]/path[?query]`, at a Gateway also `https://..`.
    pub url: Uri,
    /// Headers beside Host.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Query {
    /// Reads the parameters that `writ explain` and `/explain?..` share: `side`, `from`, `method`, `url`, `header`
    /// (`name=value`, repeatable), `protocol`, `sni`, `source`, `remote`,
    /// `destination`.
    ///
    /// # Errors
    /// Names the parameter and what it should be.
    pub fn parse<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut query = Self {
            opaque: None,
            side: Side::Inbound,
            from: None,
            source: ([127, 0, 0, 1], 0).into(),
            remote: None,
            destination: None,
            sni: None,
            method: Method::GET,
            url: Uri::default(),
            headers: Vec::new(),
        };
        let mut headers = 0;
        for (name, value) in parameters {
            headers += usize::from(name == "header");
            query.set(name, value).map_err(|why| match (name, header_name_end(value)) {
                // What a header holds may be a secret.
                ("header", Some(end)) => format!("header={}: {why}", &value[..end]),
                ("header", None) => format!("header (number {headers} of them): {why}"),
                _ => format!("{name}={value}: {why}"),
            })?;
        }
        match (query.opaque, query.destination) {
            (None, _) if query.url.authority().is_none() => {
                Err("url is missing; expected http://HOST[:PORT]/PATH".into())
            }
            (None, _) if query.is_https() && query.side != Side::Gateway => {
                Err("url: https is terminated at a Gateway alone; expected http://HOST[:PORT]/PATH".into())
            }
            (Some(_), _) if query.side == Side::Gateway => {
                Err("protocol: at a Gateway there are requests only; expected http".into())
            }
            (Some(_), None) => {
                Err("destination is missing; an opaque connection says nothing else of where it goes".into())
            }
            _ => Ok(query),
        }
    }

    /// The parameters of what a record is about. Headers and the query of a path are not in records: give them beside.
    pub fn of_record(record: &Value) -> Vec<(&'static str, String)> {
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
        let authority = text("/request/authority").or_else(|| text("/destination/address"));
        let url = authority.zip(text("/request/path"));
        let encrypted = record.pointer("/decision/checks/0/evidence/tls").is_some();
        let scheme = match text("/proxy/side") {
            Some("gateway") if encrypted => "https",
            _ => "http",
        };
        let url = url.map(|(authority, path)| format!("{scheme}://{authority}{path}"));
        let sni = record.pointer("/decision/checks/0/evidence/sni").and_then(Value::as_str);
        let inbound = text("/proxy/side") != Some("outbound");
        let parameters = [
            ("side", text("/proxy/side")),
            ("from", text("/source/identity")),
            ("source", text("/source/address")),
            ("remote", text("/request/remote")),
            ("destination", text("/destination/address").filter(|_| !went_by_authority(record))),
            ("protocol", text("/request/protocol").filter(|protocol| matches!(*protocol, "tcp" | "tls"))),
            ("method", text("/request/method")),
            // Outbound, the evidence is of the hop to the server.
            ("sni", sni.filter(|_| inbound)),
            ("url", url.as_deref()),
        ];
        parameters.into_iter().filter_map(|(name, value)| Some((name, value?.to_owned()))).collect()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let address =
            || value.parse::<SocketAddr>().map_err(|error| format!("{error}; expected ADDRESS:PORT"));
        match name {
            "side" => {
                self.side = match value {
                    "inbound" => Side::Inbound,
                    "outbound" => Side::Outbound,
                    "gateway" => Side::Gateway,
                    _ => return Err("expected inbound, outbound or gateway".into()),
                }
            }
            // As well as policies write it.
            "from" if !value.contains("://") && value.contains("/ns/") => {
                return self.set(name, &format!("spiffe://{value}"));
            }
            "from" => self.from = Some(value.parse().map_err(|error| format!("{error}"))?),
            "source" => self.source = address()?,
            "remote" => {
                self.remote = Some(value.parse().map_err(|error| format!("{error}; expected ADDRESS"))?)
            }
            "destination" => self.destination = Some(address()?),
            "protocol" => {
                self.opaque = match value {
                    "http" => None,
                    "tcp" => Some("tcp"),
                    "tls" => Some("tls"),
                    _ => return Err("expected http, tcp or tls".into()),
                }
            }
            "sni" => self.sni = Some(value.into()),
            "method" => self.method = value.parse().map_err(|_| "not a method".to_owned())?,
            "url" => {
                let url = value.parse::<Uri>().ok();
                let known = |url: &Uri| {
                    matches!(url.scheme_str(), Some("http" | "https")) && url.authority().is_some()
                };
                self.url = url.filter(known).ok_or("expected http://HOST[:PORT]/PATH")?;
            }
            "header" => {
                let end = header_name_end(value).ok_or("expected NAME=VALUE or NAME: VALUE")?;
                let name = value[..end].trim().parse::<HeaderName>().map_err(|error| error.to_string())?;
                let value =
                    HeaderValue::from_str(value[end + 1..].trim()).map_err(|error| error.to_string())?;
                self.headers.push((name, value));
            }
            _ => return Err("no such parameter".into()),
        }
        Ok(())
    }

    fn is_https(&self) -> bool {
        self.url.scheme_str() == Some("https")
    }

    fn request(&self) -> Request<Body> {
        let mut request = Request::new(Body::Empty);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.url.clone();
        for (name, value) in &self.headers {
            request.headers_mut().append(name, value.clone());
        }
        request
    }

    fn facts(&self) -> ConnectionFacts {
        let port = self.url.port_u16().unwrap_or(if self.is_https() { 443 } else { 80 });
        let host = self.url.host().filter(|_| self.is_https());
        let destination = self.destination.unwrap_or_else(|| ([127, 0, 0, 1], port).into());
        ConnectionFacts {
            source_identity: self.from.as_ref().map(SpiffeId::to_shared),
            // Of a handshake that did not happen only the name is known; the rest is left out of the record.
            tls: self.sni.as_deref().or(host).map(|sni| TlsEvidence {
                version: "",
                suite: "",
                group: "",
                fips: false,
                sni: Some(sni.into()),
            }),
            // However the caller said so, it was believed.
            proxied: self.remote,
            ..ConnectionFacts::new(self.side, self.source, destination)
        }
    }

    fn call(&self) -> Call {
        Call {
            connection: self.facts(),
            destination: self.destination,
            request: self.opaque.is_none().then(|| self.request()),
            opaque: self.opaque.unwrap_or_default(),
        }
    }
}

/// What is to be decided about.
pub struct Call {
    /// The caller's connection.
    pub connection: ConnectionFacts,
    /// Where it wants to go; `None`: wherever the request's authority says, or to the workload itself.
    pub destination: Option<SocketAddr>,
    /// The request; `None`: the connection is opaque.
    pub request: Option<Request<Body>>,
    /// The word for an opaque connection in its record.
    pub opaque: &'static str,
}

impl Call {
    /// As `conn` finds it.
    fn target(&self, held: &Held, registry: &Registry) -> Target {
        let address = self.connection.destination;
        let of_service = || held.tables.service_by_address(address.ip(), address.port()).is_some();
        let of_pod = || registry.endpoint_at(address.ip()).is_some_and(|endpoint| endpoint.mesh_tls);
        match self.connection.side {
            Side::Gateway => Target::Gateway(address),
            Side::Inbound => Target::Application(Application { address, intercepted: false }),
            _ if self.destination.is_none() => Target::Authority(address),
            _ if !of_service() && of_pod() => Target::Pod(address),
            _ => Target::Destination(address),
        }
    }
}

/// Whether the request of a record was sent to the outbound listener itself, whose address then stands as the
/// destination. What was redirected there had an address that is neither loopback nor of another port than its service.
fn went_by_authority(record: &Value) -> bool {
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
    let Some(address) = text("/destination/address").and_then(|address| address.parse::<SocketAddr>().ok())
    else {
        return false;
    };
    let service_port = text("/destination/service").and_then(|service| service.rsplit(':').next());
    text("/proxy/side") == Some("outbound")
        && (address.ip().is_loopback() || service_port.is_some_and(|port| port != address.port().to_string()))
}

/// The record that the proxy would leave, with the whole list of what was considered when nothing allowed, and `doubt`
/// where the question may not be the one that was meant.
pub fn explain(
    generation: Arc<Generation>,
    registry: &Registry,
    keys: &Arc<jwks::Store>,
    proxy: &ProxyFacts,
    query: &Query,
) -> Result<Value, String> {
    let mut call = query.call();
    let mut doubt = None;
    if query.side == Side::Inbound && query.destination.is_none() {
        let arrival = arrival::of(&query.url, &generation.tables, registry, &proxy.workload);
        call.connection.destination = arrival.address;
        doubt = arrival.doubt;
    }
    let (record, request) = decide(Arc::clone(&generation), registry, keys, proxy, call);
    let mut value: Value = serde_json::from_str(&record.render()).map_err(|error| error.to_string())?;
    if record.decision.reason == Reason::NoAllowMatched {
        let attributes = request.as_ref().map(|(request, user)| {
            pipeline::attributes(request, &record, user.as_deref().map(|user| &*user.attributes))
        });
        let connection = peer::attributes(&record.connection);
        let considered = generation.tables.consider(&connection, attributes.as_ref(), usize::MAX);
        value["considered"] = considered.to_json(generation.tables.objects());
    }
    if let Some(doubt) = doubt {
        value["doubt"] = doubt.into();
    }
    Ok(value)
}

/// Decides by a generation that need not be in force: the record, and the request as policies saw it.
pub fn decide(
    generation: Arc<Generation>,
    registry: &Registry,
    keys: &Arc<jwks::Store>,
    proxy: &ProxyFacts,
    call: Call,
) -> (Box<Record>, Option<Seen>) {
    let held = Held::of(generation);
    let target = call.target(&held, registry);
    let peer = Peer::new(Rc::new(call.connection), None, None);
    let mut record = Record::begin(&Shard::detached(proxy), &held.config, &peer.facts);
    let request = match call.request {
        Some(asked) => {
            let tokens = Tokens::new(Arc::clone(keys));
            Some(request(&peer, target, &held, &tokens, &mut record, asked))
        }
        None => {
            connection(&peer, target, &held, &mut record, call.opaque);
            None
        }
    };
    (record, request)
}

/// A request as policies saw it, with its user.
pub type Seen = (Request<Body>, Option<Rc<Verified>>);

/// Decides about a request. Nobody is asked: who would be is written down, and taken to allow it.
fn request(
    peer: &Peer,
    target: Target,
    held: &Held,
    tokens: &Tokens,
    record: &mut Record,
    mut request: Request<Body>,
) -> Seen {
    pipeline::asked(record, &request);
    let mut verified = None;
    let decided = pipeline::enter(peer, target, held, &mut request, record).and_then(|()| {
        limit::would_take(peer, target, None, held, &request, record)?;
        consult::would_ask(ProviderPhase::BeforeAuthentication, peer, target, None, held, &request, record);
        let user = pipeline::user(target, held, tokens, &mut request, record);
        verified = user.verified().cloned();
        limit::would_take(peer, target, Some(&user), held, &request, record)?;
        let chosen = pipeline::choose(peer, target, held, user, &request, record, &Memory::default())?;
        let (phase, user) = (ProviderPhase::AfterAuthorization, chosen.user());
        consult::would_ask(phase, peer, target, user, held, &request, record);
        stages::consulted(record);
        Ok(())
    });
    if let Err(reject) = decided {
        let response = pipeline::refused(&reject, false, record);
        record.status = response.status().as_u16();
    }
    (request, verified)
}

/// Decides about an opaque connection.
fn connection(peer: &Peer, target: Target, held: &Held, record: &mut Record, protocol: &'static str) {
    record.protocol = protocol;
    if let Err(reject) = tcp::explain(peer, target, held, record) {
        stages::ended(&reject, record);
    }
}

/// Where the name of a header ends, in `NAME=VALUE` or `NAME: VALUE`: neither is part of a name.
fn header_name_end(header: &str) -> Option<usize> {
    header.find(['=', ':'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reload::tests::generation_of;

    const DEMO: &str = include_str!("cli/demo/config.yaml");

    fn explained(parameters: &[(&str, &str)]) -> Value {
        let proxy = ProxyFacts {
            role: "sidecar".into(),
            workload: "bookinfo/ratings-v1".into(),
            identity: None,
            version: "0".into(),
        };
        let query = Query::parse(parameters.iter().copied()).unwrap();
        let keys = jwks::Store::new(jwks::Options::default());
        explain(Arc::new(generation_of(1, DEMO)), &Registry::new(), &keys, &proxy, &query).unwrap()
    }

    #[test]
    fn a_query_is_read_and_what_is_wrong_with_it_is_said() {
        let query = Query::parse([
            ("side", "outbound"),
            ("from", "spiffe://a/ns/b/sa/c"),
            ("method", "PUT"),
            ("header", "X-A=1=2"),
            ("destination", "10.0.0.1:80"),
            ("url", "http://ratings:9080/ratings/1?a=b"),
        ])
        .unwrap();
        assert_eq!(
            (query.side, query.method.as_str(), query.url.path()),
            (Side::Outbound, "PUT", "/ratings/1")
        );
        assert_eq!(query.headers, [("x-a".parse().unwrap(), "1=2".parse().unwrap())]);
        assert_eq!(query.from.unwrap().as_str(), "spiffe://a/ns/b/sa/c");
        for (parameter, said) in [
            (("side", "left"), "inbound, outbound or gateway"),
            (("from", "http://a"), "from=http://a"),
            (("destination", "here"), "ADDRESS:PORT"),
            (("header", "x"), "NAME=VALUE"),
            (("colour", "red"), "no such parameter"),
            (("method", "GET"), "url is missing"),
            (("protocol", "udp"), "http, tcp or tls"),
            (("protocol", "tcp"), "destination is missing"),
        ] {
            let wrong = Query::parse([parameter]).unwrap_err();
            assert!(wrong.contains(said), "{parameter:?}: {wrong}");
        }
    }

    #[test]
    fn an_opaque_connection_is_explained_too() {
        let caller = ("from", "spiffe://cluster.local/ns/bookinfo/sa/productpage");
        let opaque = [("protocol", "tcp"), ("destination", "10.0.0.1:9080"), caller];
        let refused = explained(&opaque);
        assert_eq!(refused["request"]["protocol"], "tcp");
        assert_eq!(refused["decision"]["reason"], "matched-deny", "without what it asks of HTTP it is wider");
        assert_eq!(refused["ended"]["stage"], "authorize");
        let plaintext = explained(&opaque[..2]);
        assert_eq!(plaintext["decision"]["reason"], "plaintext-under-strict");
        assert!(plaintext.get("considered").is_none());
        let outbound = explained(&[opaque[0], opaque[1], ("side", "outbound")]);
        assert_eq!(outbound["decision"]["reason"], "no-policy", "no service owns the address");
    }

    #[test]
    fn what_is_explained_is_what_policies_decide() {
        const CALLER: (&str, &str) = ("from", "spiffe://cluster.local/ns/bookinfo/sa/productpage");
        let allowed = explained(&[CALLER, ("url", "http://ratings:9080/ratings/1")]);
        assert_eq!(allowed["decision"]["policy"]["name"], "ratings-viewer");
        let denied = explained(&[CALLER, ("url", "http://ratings:9080/other")]);
        assert_eq!(denied["response"]["status"], 403);
        assert_eq!(denied["considered"]["policies"][0]["name"], "ratings-viewer");
        let plaintext = explained(&[("url", "http://ratings:9080/%zz")]);
        assert_eq!(plaintext["decision"]["reason"], "plaintext-under-strict", "before the path is looked at");
        let malformed = explained(&[CALLER, ("url", "http://ratings:9080/%zz")]);
        assert_eq!(malformed["decision"]["reason"], "malformed-request");
        assert_eq!(malformed["decision"]["checks"][0]["outcome"], "pass", "of the connection");
        let outbound = explained(&[("side", "outbound"), ("url", "http://ratings:9080/ratings/1")]);
        assert_eq!(outbound["route"]["policy"]["name"], "ratings");
    }
}
