//! networking.istio.io: DestinationRule.

use std::collections::BTreeMap;
use std::time::Duration;

use super::read::{At, Fields};
use super::traffic::ExportTo;
use super::{Meta, Resource, text};

/// A DestinationRule.
#[derive(Debug)]
pub(crate) struct DestinationRule {
    /// As written, in lower case; a short name is looked for in the namespace of the rule.
    pub(crate) host: Option<String>,
    pub(crate) export_to: ExportTo,
    /// Labels of the clients it is for.
    pub(crate) clients: Option<BTreeMap<String, String>>,
    pub(crate) policy: TrafficPolicy,
    /// By service port; such a policy replaces the general one.
    pub(crate) ports: BTreeMap<u16, TrafficPolicy>,
}

/// What of a trafficPolicy is in force.
#[derive(Debug, Default)]
pub(crate) struct TrafficPolicy {
    pub(crate) tls: Tls,
    pub(crate) connect_timeout: Option<Duration>,
}

/// `trafficPolicy.tls`.
#[derive(Debug, Default)]
pub(crate) enum Tls {
    /// Not mentioned.
    #[default]
    Auto,
    Set(TlsSettings),
    /// Written and not understood: no connection at all is better than one in the wrong way.
    Unreadable,
}

/// `trafficPolicy.tls` as written; which files and Secrets there are is seen when it is compiled.
#[derive(Debug)]
pub(crate) struct TlsSettings {
    pub(crate) mode: TlsMode,
    pub(crate) sni: Option<String>,
    /// `subjectAltNames`.
    pub(crate) sans: Vec<String>,
    /// Path of `caCertificates`.
    pub(crate) ca_file: Option<String>,
    /// Paths of `clientCertificate` and `privateKey`.
    pub(crate) client_files: Option<(String, String)>,
    /// `credentialName`. Istio's sidecars follow it only in rules with a `workloadSelector`; here it always counts.
    pub(crate) credential: Option<String>,
    /// Where it stands, for what is wrong with what it names.
    pub(crate) field: String,
    pub(crate) line: u32,
}

/// `trafficPolicy.tls.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsMode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

/// Reads a DestinationRule.
pub(crate) fn destination_rule(_: &Meta, object: Fields<'_>) -> Resource {
    let mut rule = DestinationRule {
        host: None,
        export_to: ExportTo::default(),
        clients: None,
        policy: TrafficPolicy::default(),
        ports: BTreeMap::new(),
    };
    read_destination_rule(object, &mut rule);
    Resource::DestinationRule(rule)
}

fn read_destination_rule(object: Fields<'_>, rule: &mut DestinationRule) -> Option<()> {
    let spec = object.require("spec")?.fields(&[
        "host",
        "trafficPolicy",
        "subsets",
        "exportTo",
        "workloadSelector",
    ])?;
    rule.host = spec.require("host").and_then(text::host);
    rule.export_to = ExportTo::read(spec.get("exportTo"));
    rule.clients = spec.get("workloadSelector").and_then(text::selector);
    if let Some(subsets) = spec.get("subsets") {
        subsets.items().for_each(|at| {
            subset(at);
        });
        subsets
            .warn("accepted, not in force yet: an HTTPRoute names Services, so give each version a Service");
    }
    let Some(at) = spec.get("trafficPolicy") else { return Some(()) };
    let known = [
        "tls",
        "connectionPool",
        "loadBalancer",
        "outlierDetection",
        "portLevelSettings",
        "tunnel",
        "proxyProtocol",
        "retryBudget",
    ];
    let Some(fields) = at.fields(&known) else {
        rule.policy.tls = Tls::Unreadable;
        return None;
    };
    fields.not_in_force(&["tunnel", "proxyProtocol", "retryBudget"]);
    rule.policy = traffic_policy(fields);
    for at in fields.get("portLevelSettings").into_iter().flat_map(|at| at.items()) {
        let Some(fields) = at.fields(&["port", "tls", "connectionPool", "loadBalancer", "outlierDetection"])
        else {
            continue;
        };
        let policy = traffic_policy(fields);
        let port = fields.require("port").and_then(|at| at.fields(&["number"])?.require("number")?.port());
        if let Some(port) = port {
            rule.ports.insert(port, policy);
        }
    }
    Some(())
}

fn subset(at: At<'_>) -> Option<()> {
    let fields = at.fields(&["name", "labels", "trafficPolicy"])?;
    fields.require("name")?.text();
    fields.get("labels").map(At::string_map);
    Some(())
}

fn traffic_policy(fields: Fields<'_>) -> TrafficPolicy {
    fields.not_in_force(&["loadBalancer", "outlierDetection"]);
    let mut policy = TrafficPolicy::default();
    if let Some(at) = fields.get("tls") {
        policy.tls = tls(at).map_or(Tls::Unreadable, Tls::Set);
    }
    if let Some(pool) = fields.get("connectionPool").and_then(|at| at.fields(&["tcp", "http"])) {
        pool.not_in_force(&["http"]);
        let known =
            ["connectTimeout", "maxConnections", "tcpKeepalive", "maxConnectionDuration", "idleTimeout"];
        if let Some(tcp) = pool.get("tcp").and_then(|at| at.fields(&known)) {
            tcp.not_in_force(&known[1..]);
            policy.connect_timeout = tcp.get("connectTimeout").and_then(connect_timeout);
        }
    }
    policy
}

fn connect_timeout(at: At<'_>) -> Option<Duration> {
    let timeout = text::go_duration(at)?;
    if timeout.is_zero() {
        at.error("must be longer than nothing");
        return None;
    }
    Some(timeout)
}

/// `None` when any field of it is wrong.
fn tls(at: At<'_>) -> Option<TlsSettings> {
    let known = [
        "mode",
        "clientCertificate",
        "privateKey",
        "caCertificates",
        "credentialName",
        "subjectAltNames",
        "sni",
        "insecureSkipVerify",
        "caCrl",
    ];
    let fields = at.fields(&known)?;
    let modes = [
        ("DISABLE", TlsMode::Disable),
        ("SIMPLE", TlsMode::Simple),
        ("MUTUAL", TlsMode::Mutual),
        ("ISTIO_MUTUAL", TlsMode::IstioMutual),
    ];
    // Istio's default, DISABLE, is too quiet for a field left out.
    let mode = fields.require("mode").and_then(|at| at.one_of(&modes));
    let mut refused = false;
    if let Some(at) = fields.get("caCrl") {
        at.error("not supported yet: a certificate that was revoked would be taken");
        refused = true;
    }
    if let Some(at) = fields.get("insecureSkipVerify")
        && at.bool() != Some(false)
    {
        at.error(
            "not supported: a server that nobody verified could be anyone; name its roots in caCertificates",
        );
        refused = true;
    }
    let text =
        |name| fields.get(name).map(|at: At<'_>| at.text()).map_or(Ok(None), |text| text.map(Some).ok_or(()));
    let settings = TlsSettings {
        mode: mode?,
        sni: text("sni").ok()?,
        sans: fields
            .get("subjectAltNames")
            .map_or(Some(Vec::new()), |at| at.items().map(At::text).collect())?,
        ca_file: text("caCertificates").ok()?,
        client_files: match (text("clientCertificate").ok()?, text("privateKey").ok()?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                at.error("clientCertificate and privateKey belong together");
                return None;
            }
        },
        credential: text("credentialName").ok()?,
        field: at.field(),
        line: at.line(),
    };
    let names_files = settings.ca_file.is_some() || settings.client_files.is_some();
    let wrong = match settings.mode {
        TlsMode::IstioMutual if names_files || settings.credential.is_some() => {
            "ISTIO_MUTUAL uses the workload's own certificate; name no files"
        }
        _ if names_files && settings.credential.is_some() => "either credentialName or files, not both",
        TlsMode::Mutual if settings.client_files.is_none() && settings.credential.is_none() => {
            "MUTUAL needs clientCertificate and privateKey, or credentialName"
        }
        _ if refused => return None,
        _ => return Some(settings),
    };
    at.error(wrong);
    None
}

#[cfg(test)]
mod tests {
    use super::super::tests::only;
    use super::*;

    fn read(spec: &str) -> (std::sync::Arc<super::super::Object>, Vec<String>) {
        only(&format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: x, namespace: n}}\nspec: {spec}\n"
        ))
    }

    #[test]
    fn destination_rules() {
        let tls = |spec: &str| {
            let (object, found) = read(spec);
            let Resource::DestinationRule(rule) = &object.resource else { panic!() };
            (object.good, format!("{:?}", rule.policy.tls), found)
        };
        for (spec, wanted) in [
            ("{mode: DISABLE}", "mode: Disable"),
            ("{mode: ISTIO_MUTUAL, subjectAltNames: [x]}", r#"sans: ["x"]"#),
            ("{mode: SIMPLE}", "mode: Simple"),
            ("{mode: MUTUAL, credentialName: c}", r#"credential: Some("c")"#),
            ("{mode: MUTUAL, clientCertificate: c, privateKey: k}", r#"client_files: Some(("c", "k"))"#),
        ] {
            let (good, tls, found) = tls(&format!("{{host: a, trafficPolicy: {{tls: {spec}}}}}"));
            assert!(good && found.is_empty(), "{found:?}");
            assert!(tls.contains(wanted) && tls.contains("trafficPolicy.tls"), "{tls}");
        }
        for spec in [
            "{host: a, trafficPolicy: {tls: {mode: SIMPEL}}}",
            "{host: a, trafficPolicy: {tls: {}}}",
            "{host: a, trafficPolicy: {tls: {mode: MUTUAL}}}",
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}}",
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, caCrl: /crl}}}",
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, sni: 1}}}",
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, subjectAltNames: [1]}}}",
            "{host: a, trafficPolicy: {tls: {mode: MUTUAL, privateKey: k}}}",
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /ca, credentialName: c}}}",
            "{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, credentialName: c}}}",
            "{host: a, trafficPolicy: 1}",
        ] {
            let (good, tls, _) = tls(spec);
            assert!(!good && tls == "Unreadable", "{spec}: {tls}");
        }
    }

    #[test]
    fn what_is_not_in_force_is_said() {
        let (object, found) = read(
            "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM}, outlierDetection: {}, connectionPool: {tcp: {connectTimeout: 1.5s, maxConnections: 3}, http: {}}}, subsets: [{name: v1, labels: {v: '1'}}]}",
        );
        assert!(object.good);
        assert_eq!(found.len(), 5, "{found:?}");
        let Resource::DestinationRule(rule) = &object.resource else { panic!() };
        assert_eq!(rule.policy.connect_timeout, Some(Duration::from_millis(1500)));
    }
}
