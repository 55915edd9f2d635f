//! What the proxy would decide about a request, by the code that decides, without traffic: for `writ explain` and the
//! admin's `/explain`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, Request, Uri};
use serde_json::Value;

use crate::body::Body;
use crate::decision::Reason;
use crate::generation::{Generation, Held};
use crate::http::pipeline;
use crate::identity::SpiffeId;
use crate::memory::Memory;
use crate::peer::{self, Peer};
use crate::stages::{Application, Target};
use crate::telemetry::{ConnectionFacts, ProxyFacts, Record, Shard, Side, TlsEvidence};

/// A request to be explained.
#[derive(Debug, Clone)]
pub struct Query {
    /// Inbound or outbound.
    pub side: Side,
    /// A verified mTLS peer's identity; `None`: plaintext.
    pub from: Option<SpiffeId>,
    /// The caller's address.
    pub source: SocketAddr,
    /// The workload's address and port (inbound), or the original destination (outbound, when known).
    pub destination: Option<SocketAddr>,
    /// Server name of the ClientHello.
    pub sni: Option<String>,
    /// Method.
    pub method: Method,
    /// `http://host[:port]/path[?query]`.
    pub url: Uri,
    /// Headers beside Host.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Query {
    /// Reads the parameters that `writ explain` and `/explain?..` share: `side`, `from`, `method`, `url`, `header`
    /// (`name=value`, repeatable), `sni`, `source`, `destination`.
    ///
    /// # Errors
    /// Names the parameter and what it should be.
    pub fn parse<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut query = Self {
            side: Side::Inbound,
            from: None,
            source: ([127, 0, 0, 1], 0).into(),
            destination: None,
            sni: None,
            method: Method::GET,
            url: Uri::default(),
            headers: Vec::new(),
        };
        for (name, value) in parameters {
            query.set(name, value).map_err(|why| format!("{name}={value}: {why}"))?;
        }
        if query.url.authority().is_none() {
            return Err("url is missing: http://HOST[:PORT]/PATH".into());
        }
        Ok(query)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let address =
            || value.parse::<SocketAddr>().map_err(|error| format!("{error}; expected ADDRESS:PORT"));
        match name {
            "side" => {
                self.side = match value {
                    "inbound" => Side::Inbound,
                    "outbound" => Side::Outbound,
                    _ => return Err("expected inbound or outbound".into()),
                }
            }
            "from" => self.from = Some(value.parse().map_err(|error| format!("{error}"))?),
            "source" => self.source = address()?,
            "destination" => self.destination = Some(address()?),
            "sni" => self.sni = Some(value.into()),
            "method" => self.method = value.parse().map_err(|_| "not a method".to_owned())?,
            "url" => self.url = value.parse().map_err(|error| format!("{error}"))?,
            "header" => {
                let (name, value) = value.split_once('=').ok_or("expected NAME=VALUE")?;
                let name = name.trim().parse::<HeaderName>().map_err(|error| error.to_string())?;
                let value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
                self.headers.push((name, value));
            }
            _ => return Err("no such parameter".into()),
        }
        Ok(())
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
        let port = self.url.port_u16().unwrap_or(80);
        let destination = self.destination.unwrap_or_else(|| ([127, 0, 0, 1], port).into());
        ConnectionFacts {
            source_identity: self.from.as_ref().map(SpiffeId::to_shared),
            // Of a handshake that did not happen only the name is known; the rest is left out of the record.
            tls: self.sni.as_deref().map(|sni| TlsEvidence {
                version: "",
                suite: "",
                group: "",
                fips: false,
                sni: Some(sni.into()),
            }),
            ..ConnectionFacts::new(self.side, self.source, destination)
        }
    }

    fn target(&self, destination: SocketAddr) -> Target {
        match (self.side, self.destination) {
            (Side::Inbound, _) => {
                Target::Application(Application { address: destination, intercepted: false })
            }
            (_, Some(destination)) => Target::Destination(destination),
            (_, None) => Target::Authority(destination),
        }
    }
}

/// The record that the proxy would leave, with the whole list of what was considered when nothing allowed.
pub fn explain(generation: Arc<Generation>, proxy: &ProxyFacts, query: &Query) -> Result<Value, String> {
    let held = Held::of(generation);
    let shard = Shard::detached(proxy);
    let peer = Peer::new(Rc::new(query.facts()), None, None);
    let mut record = Record::begin(&shard, &held.config, &peer.facts);
    let mut request = query.request();
    pipeline::asked(&mut record, &request);
    let target = query.target(peer.facts.destination);
    let decided = pipeline::decide(&peer, target, &held, &mut request, &mut record, &Memory::default());
    let refused = match decided {
        Ok(_) => None,
        Err(reject) => {
            let response = pipeline::refused(&reject, false, &mut record);
            record.status = response.status().as_u16();
            Some(reject.reason)
        }
    };
    let mut value: Value = serde_json::from_str(&record.render()).map_err(|error| error.to_string())?;
    if refused == Some(Reason::NoAllowMatched) {
        let attributes = pipeline::attributes(&request, &record);
        let considered = held.tables.consider(&peer::attributes(&peer.facts), Some(&attributes), usize::MAX);
        value["considered"] = considered.to_json(held.tables.objects());
    }
    Ok(value)
}
