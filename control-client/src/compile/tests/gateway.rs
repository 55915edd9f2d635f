//! Gateways: listeners, what they show, and the routes attached to them.

use std::time::Duration;

use fips::ca::{Authority, Issued, Profile};

use super::*;
use crate::snapshot::{Gateway, ListenerTls};

const BACKEND: &str = "rules: [{backendRefs: [{name: app, port: 80}]}]";

fn service() -> String {
    object("Service", "app", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}")
}

fn edge(listeners: &str) -> String {
    object("Gateway", "edge", &format!("{{gatewayClassName: writ, listeners: [{listeners}]}}"))
}

fn route(name: &str, hostnames: &str, parent: &str) -> String {
    let spec = format!("{{parentRefs: [{{name: edge{parent}}}], hostnames: [{hostnames}], {BACKEND}}}");
    object("HTTPRoute", name, &spec)
}

fn issued() -> Issued {
    let authority = Authority::generate("cluster.local", Duration::from_secs(600)).unwrap();
    authority.issue(&Profile::server(&["a.example"], Duration::from_secs(600))).unwrap()
}

fn secret(name: &str, certificate: &str, key: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("foo", name));
    let block = |text: &str| text.replace('\n', "\n    ");
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\nstringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n",
        block(certificate),
        block(key)
    )
}

/// As the proxy that serves Gateway `foo/edge`.
fn served(yaml: &str) -> Loaded {
    load_str(yaml, &Workload { gateway: Some("edge".into()), ..me() })
}

fn gateway(loaded: &Loaded) -> &Gateway {
    loaded.snapshot.policy.gateway.as_ref().unwrap()
}

/// `listener host: routes`.
fn hosts(loaded: &Loaded) -> Vec<String> {
    let policy = &loaded.snapshot.policy;
    let listeners = &gateway(loaded).listeners;
    let host = |name: &str, host: &crate::snapshot::VirtualHost| {
        let routes: Vec<_> = host.routes.iter().map(|rule| object_name(policy, Some(rule.object))).collect();
        format!("{name} {}: {}", host.hostname.as_deref().unwrap_or("any"), routes.join(" "))
    };
    listeners.iter().flat_map(|each| each.hosts.iter().map(|vhost| host(&each.name, vhost))).collect()
}

const WEB: &str = "{name: web, port: 80, protocol: HTTP}";

#[test]
fn routes_are_attached_where_their_hosts_and_parents_say() {
    let listeners = format!("{WEB}, {{name: sub, port: 80, protocol: HTTP, hostname: '*.example.com'}}");
    let loaded = served(
        &[
            service(),
            edge(&listeners),
            route("all", "", ""),
            route("both", "a.example.com, b.test", ""),
            route("named", "'*.example.com'", ", sectionName: sub"),
        ]
        .concat(),
    );
    assert_eq!(texts(&loaded), [] as [String; 0]);
    assert_eq!(
        hosts(&loaded),
        [
            "web any: all",
            "web a.example.com: both",
            "web b.test: both",
            "sub *.example.com: all named",
            "sub a.example.com: both"
        ]
    );
    assert_eq!(object_name(&loaded.snapshot.policy, Some(gateway(&loaded).object)), "edge");
    // A sidecar has none, and no route of a Gateway is one of a Service.
    let beside = load(&[service(), edge(WEB), route("all", "", "")].concat());
    assert!(beside.snapshot.policy.gateway.is_none());
    assert!(beside.snapshot.policy.services.iter().all(|each| each.ports[0].routes.is_empty()));
}

#[test]
fn a_route_that_is_not_attached_is_told_why() {
    let closed = "{name: sub, port: 80, protocol: HTTP, hostname: '*.example.com', \
                  allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}}";
    let with = |gateway: &str, route: &str| {
        let namespaces = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: foo, labels: {team: a}}\n";
        let loaded = served(&[&service(), namespaces, gateway, route].concat());
        let attached = loaded.snapshot.policy.gateway.as_ref().is_some_and(|_| !hosts(&loaded).is_empty());
        (attached, texts(&loaded).join("\n"))
    };
    assert_eq!(with(&edge(closed), &route("r", "a.example.com", "")), (true, String::new()));
    let elsewhere =
        object("HTTPRoute", "bar/r", &format!("{{parentRefs: [{{name: edge, namespace: foo}}], {BACKEND}}}"));
    for (gateway, route, wanted) in [
        (
            edge(WEB),
            object("HTTPRoute", "r", &format!("{{parentRefs: [{{name: gone}}], {BACKEND}}}")),
            "no Gateway foo/gone",
        ),
        (edge(WEB), route("r", "", ", sectionName: tls"), "no such listener, only web"),
        (edge(WEB), route("r", "", ", port: 81"), "no such listener, only web"),
        (edge(closed), route("r", "example.com", ""), "none of its hostnames"),
        (edge(closed), elsewhere.clone(), "takes no routes of namespace bar"),
        (edge(WEB), elsewhere, "takes no routes of namespace bar"),
        (
            edge("{name: web, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: GRPCRoute}]}}"),
            route("r", "", ""),
            "takes no HTTPRoutes",
        ),
    ] {
        let (attached, found) = with(&gateway, &route);
        assert!(!attached && found.contains(wanted) && found.contains("not attached"), "{wanted}: {found}");
    }
}

#[test]
fn listeners_that_can_not_be_beside_each_other_are_not_opened() {
    let issued = issued();
    let tls = "{name: tls, port: 80, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}";
    let again = "{name: again, port: 80, protocol: HTTP}";
    let yaml =
        [edge(&format!("{WEB}, {tls}, {again}")), secret("c", &issued.certificate_pem, &issued.key_pem)];
    let loaded = served(&yaml.concat());
    let names: Vec<_> = gateway(&loaded).listeners.iter().map(|each| each.name.as_str()).collect();
    assert_eq!(names, ["web"]);
    let found = texts(&loaded);
    assert!(
        found[0].contains("spec.listeners[1]: port 80 speaks another protocol for listener web"),
        "{found:?}"
    );
    assert!(found[1].contains("spec.listeners[2]: listener web has this port and host name"), "{found:?}");
}

#[test]
fn what_a_listener_shows() {
    let (one, other) = (issued(), issued());
    let tls =
        "{name: tls, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c, namespace: certs}]}}";
    let shown = |parts: &[&str]| {
        let loaded = served(&parts.concat());
        let tls = gateway(&loaded).listeners[0].tls.clone().unwrap();
        (tls, texts(&loaded).join("\n"))
    };
    let good = secret("certs/c", &one.certificate_pem, &one.key_pem);
    let grant = object(
        "ReferenceGrant",
        "certs/g",
        "{from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: foo}], to: [{group: '', kind: Secret}]}",
    );
    let (tls_shown, found) = shown(&[&edge(tls), &good, &grant]);
    assert_eq!(found, "");
    assert!(matches!(&*tls_shown, ListenerTls::Certificates { pairs, tickets: true } if pairs.len() == 1));
    let crossed = secret("certs/c", &one.certificate_pem, &other.key_pem);
    for (parts, wanted) in [
        (vec![edge(tls), good.clone()], "no ReferenceGrant in certs"),
        (vec![edge(tls), grant.clone()], "no Secret certs/c"),
        (vec![edge(tls), grant.clone(), crossed], "Secret certs/c: the key is not that of the certificate"),
    ] {
        let (tls_shown, found) = shown(&parts.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(matches!(&*tls_shown, ListenerTls::Unusable(why) if why.contains(wanted)), "{wanted}");
        assert!(found.contains("spec.listeners[0].tls.certificateRefs[0]"), "{found}");
    }
}

#[test]
fn policies_reach_the_gateway_that_they_name() {
    let policy = |target: &str| object("AuthorizationPolicy", "p", &format!("{{targetRefs: [{target}]}}"));
    let reaches = |target: &str| {
        let yaml = [service(), edge(WEB), route("r", "", ""), policy(target)].concat();
        let at_edge = served(&yaml);
        let beside = load(&yaml);
        let policies = |loaded: &Loaded| {
            loaded.snapshot.policy.authorization.iter().map(|each| each.quarantined).collect::<Vec<_>>()
        };
        (policies(&at_edge), policies(&beside), texts(&at_edge).join("\n"))
    };
    let group = "group: gateway.networking.k8s.io";
    let gateway = format!("{{{group}, kind: Gateway, name: edge}}");
    assert_eq!(reaches(&gateway), (vec![false], vec![], String::new()));
    let (at_edge, _, found) = reaches(&format!("{{{group}, kind: Gateway, name: gone}}"));
    assert!(at_edge.is_empty() && found.contains("no Gateway foo/gone"), "{found}");
    let (at_edge, beside, found) = reaches(&format!("{{{group}, kind: HTTPRoute, name: r}}"));
    assert_eq!((at_edge, beside), (vec![], vec![]));
    assert!(found.contains("that route is not served"), "{found}");
    let (at_edge, beside, found) = reaches(&format!("{{{group}, kind: GatewayClass, name: writ}}"));
    assert_eq!((at_edge, beside), (vec![true], vec![]));
    assert!(found.contains("root namespace"), "{found}");
}

#[test]
fn what_serves_a_gateway_has_its_label_and_those_of_its_pod() {
    let of = |name: &str, selector: &str| {
        object("AuthorizationPolicy", name, &format!("{{selector: {{matchLabels: {{{selector}}}}}}}"))
    };
    let policies =
        [edge(WEB), of("named", "gateway.networking.k8s.io/gateway-name: edge"), of("tier", "tier: edge")]
            .concat();
    let pod = |name: &str, labels: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: foo, labels: {{{labels}}}}}\n"
        )
    };
    let unlabelled = Workload { gateway: Some("edge".into()), labels: BTreeMap::new(), ..me() };
    let selected = |yaml: &str| {
        let loaded = load_str(yaml, &unlabelled);
        let policy = &loaded.snapshot.policy;
        let names = policy
            .authorization
            .iter()
            .map(|each| (object_name(policy, Some(each.object)), each.quarantined));
        (names.collect::<Vec<_>>(), loaded.workload_known)
    };
    let named = |closed: bool| vec![("named".to_owned(), false), ("tier".to_owned(), closed)];
    assert_eq!(
        selected(&policies),
        (vec![named(false)[0].clone()], false),
        "asked, not served: of what is not known nothing is said"
    );
    assert_eq!(selected(&(policies.clone() + &pod("me", "tier: edge"))), (named(false), true));
    let serving = pod("edge-7d9c4-x2x", "tier: edge, gateway.networking.k8s.io/gateway-name: edge");
    assert_eq!(selected(&(policies + &serving)), (named(false), true));
}

#[test]
fn what_is_no_longer_granted_is_no_longer_shown() {
    let issued = issued();
    let tls =
        "{name: tls, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c, namespace: certs}]}}";
    let secret = secret("certs/c", &issued.certificate_pem, &issued.key_pem);
    let grant = object(
        "ReferenceGrant",
        "certs/g",
        "{from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: foo}], to: [{group: '', kind: Secret}]}",
    );
    let workload = Workload { gateway: Some("edge".into()), ..me() };
    let granted = load_str(&[&edge(tls), &*secret, &grant].concat(), &workload);
    let before =
        crate::compile::Previous { policy: Some(granted.snapshot.policy.clone()), ..Default::default() };
    let shown = |yaml: &str| {
        let file = resource::read_file(&Arc::from("a.yaml"), yaml);
        let files = crate::keep::Files::from([(Arc::from("a.yaml"), Arc::new(file))]);
        let objects = crate::keep::update(&crate::keep::Objects::new(), &files);
        let compiled = crate::compile::compile(&objects, &workload, false, 0, &before);
        compiled.policy.gateway.as_ref().unwrap().listeners[0].tls.clone().unwrap()
    };
    let broken = secret.replace("-----BEGIN PRIVATE KEY-----", "-----BEGIN NOTHING-----");
    assert!(matches!(&*shown(&[&edge(tls), &*broken, &grant].concat()), ListenerTls::Certificates { .. }));
    assert!(
        matches!(&*shown(&[&edge(tls), &*secret].concat()), ListenerTls::Unusable(why) if why.contains("no ReferenceGrant"))
    );
    let other = edge(&tls.replace("name: tls", "name: new"));
    assert!(
        matches!(&*shown(&[&other, &*broken, &grant].concat()), ListenerTls::Unusable(_)),
        "another listener"
    );
}
