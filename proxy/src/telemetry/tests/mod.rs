//! What holds for telemetry as a whole: shape of the line, counts, and that nothing is lost unnoticed.

mod counting;
mod delivery;
mod shape;

use std::rc::Rc;
use std::sync::Arc;

use super::{ConfigFacts, ConnectionFacts, ProxyFacts, Record, Shard, Side};
use crate::decision::{Check, CheckOutcome, CheckResult, Object, Objects, PolicyRef, Reason, Stage};

fn proxy() -> ProxyFacts {
    ProxyFacts {
        role: "sidecar".into(),
        workload: "bookinfo/ratings-v1".into(),
        identity: Some("spiffe://cluster.local/ns/bookinfo/sa/ratings".into()),
        version: "0.1.0".into(),
    }
}

fn object(kind: &str, namespace: &str, name: &str, digest: &str) -> Object {
    let text = |text: &str| serde_json::to_string(text).unwrap();
    Object {
        kind: kind.into(),
        namespace: namespace.into(),
        name: name.into(),
        digest: digest.into(),
        json: format!(r#""kind":{},"namespace":{},"name":{}"#, text(kind), text(namespace), text(name)),
        problem: None,
    }
}

const VIEWER: u32 = 0;
const STRICT: u32 = 1;
const ROUTE: u32 = 2;

fn config(version: u64) -> Arc<ConfigFacts> {
    Arc::new(ConfigFacts {
        version,
        digest: "sha256:9f".into(),
        revision: Some("git:1c0ffee".into()),
        stale: false,
        objects: Objects(Arc::new([
            object("AuthorizationPolicy", "bookinfo", "ratings-viewer", "sha256:77"),
            object("PeerAuthentication", "istio-system", "default", "sha256:88"),
            object("HTTPRoute", "bookinfo", "ratings", "sha256:99"),
        ])),
        rendered: Default::default(),
    })
}

fn connection(side: Side) -> Rc<ConnectionFacts> {
    Rc::new(ConnectionFacts::new(side, "10.1.0.7:41234".parse().unwrap(), "10.1.0.9:9080".parse().unwrap()))
}

/// A request that the ratings-viewer policy allows.
fn allowed(shard: &Rc<Shard>, config: &Arc<ConfigFacts>, connection: &Rc<ConnectionFacts>) -> Box<Record> {
    use {Check::*, CheckOutcome::*, Reason::*};
    let mut record = Record::begin(shard, config, connection);
    let viewer = PolicyRef::rule(VIEWER, 0);
    let decision = &mut record.decision;
    decision.check(Encryption, CheckResult::new(Pass, Mtls, PolicyRef::object(STRICT)));
    decision.check(ServiceAuthentication, CheckResult::new(Pass, SvidVerified, PolicyRef::NONE));
    decision.check(ServiceAuthorization, CheckResult::new(Pass, MatchedAllow, viewer));
    decision
        .check(UserAuthentication, CheckResult::new(NotRequired, NoRequestAuthentication, PolicyRef::NONE));
    decision.check(UserAuthorization, CheckResult::new(NotRequired, NoUserCondition, PolicyRef::NONE));
    decision.allow(Stage::Authorize, MatchedAllow, viewer);
    record.protocol = "HTTP/1.1";
    record.method = Some(http::Method::GET);
    record.authority = Some("ratings:9080".into());
    record.path = Some("/ratings/1".into());
    (record.status, record.response_bytes) = (200, 48);
    record.ended = Some((Stage::Relay, Complete));
    record
}
