//! Istio's own tables of requests and whether its policies allow them (`istio/cases.json`), decided by the code that decides
//! here. Where the suite computes an expectation, the meaning is written out below.

use control_client::Workload;
use serde_json::Value;
use tests::{Explainer, Record};

const ALLOWED: &str = "spiffe://cluster.local/ns/allowed/sa/caller";
const DENIED: &str = "spiffe://cluster.local/ns/denied/sa/caller";
const ALLOWED_ADDRESS: &str = "10.1.0.10:40000";
const DENIED_ADDRESS: &str = "10.1.0.20:40000";

fn cases() -> Value {
    serde_json::from_str(include_str!("../istio/cases.json")).unwrap()
}

/// What the templates ask for, of a server `b` in namespace `default` with the ports of Istio's echo application.
const VALUES: &[(&str, &str)] = &[
    (".To.ServiceName", "b"),
    (".To.NamespaceName", "default"),
    (".To.ClusterLocalFQDN", "b.default.svc.cluster.local"),
    (".To.MustWorkloads.Addresses|toJson", r#"["10.1.0.1"]"#),
    ("(.To.PortForName`http`).WorkloadPort", "18080"),
    ("(.To.PortForName`http2`).WorkloadPort", "18085"),
    ("(.To.PortForName`grpc`).WorkloadPort", "17070"),
    ("(.To.PortForName`tcp`).WorkloadPort", "19090"),
    ("(.To.PortForName\"http\").ServicePort", "80"),
    (".Allowed.NamespaceName", "allowed"),
    (".Allowed.SpiffeIdentity", "cluster.local/ns/allowed/sa/caller"),
    (".Allowed.MustWorkloads.Addresses|toJson", r#"["10.1.0.10"]"#),
    (".Denied.NamespaceName", "denied"),
    (".Denied.SpiffeIdentity", "cluster.local/ns/denied/sa/caller"),
    (".Denied.MustWorkloads.Addresses|toJson", r#"["10.1.0.20"]"#),
    (".SystemNamespace.Name", "istio-system"),
    (".GatewayIstioLabel|default\"istio-ingressgateway\"", "istio-ingressgateway"),
    (".GatewayIstioLabel|default\"ingressgateway\"", "ingressgateway"),
    (".Provider.Name", "provider"),
];

fn render(template: &str) -> String {
    let mut parts = template.split("{{");
    let mut text = parts.next().unwrap().to_owned();
    for part in parts {
        let (asked, rest) = part.split_once("}}").unwrap();
        let asked: String = asked.split_whitespace().collect();
        let value = VALUES.iter().find(|(name, _)| *name == asked);
        text += value.unwrap_or_else(|| panic!("no value for {asked}")).1;
        text += rest;
    }
    text
}

/// The server's proxy, with these templates in force.
fn server(cases: &Value, policies: &[&str]) -> Explainer {
    let documents: Vec<_> = policies
        .iter()
        .map(|name| {
            let text = render(cases["templates"][name].as_str().unwrap_or_else(|| panic!("no {name}")));
            match *name {
                // The suite applies it in the system namespace.
                "testdata/authz/deny-global.yaml.tmpl" => {
                    text.replace("metadata:\n", "metadata:\n  namespace: istio-system\n")
                }
                _ => text,
            }
        })
        .collect();
    Explainer::of_yaml(&documents.join("\n---\n"), &workload("default", "b", "b"))
}

fn workload(namespace: &str, name: &str, app: &str) -> Workload {
    Workload {
        namespace: namespace.into(),
        name: name.into(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        ..Workload::default()
    }
}

/// A call to one of the server's ports.
struct Call<'c> {
    from: &'c str,
    source: &'c str,
    port: u16,
    method: &'c str,
    host: &'c str,
    path: &'c str,
    headers: &'c [&'c str],
}

const CALL: Call<'_> = Call {
    from: ALLOWED,
    source: ALLOWED_ADDRESS,
    port: 18080,
    method: "GET",
    host: "b",
    path: "/",
    headers: &[],
};

impl Call<'_> {
    fn explained(&self, server: &Explainer) -> Record {
        let (destination, url) =
            (format!("10.1.0.1:{}", self.port), format!("http://{}{}", self.host, self.path));
        let mut parameters = vec![
            ("source", self.source),
            ("destination", &destination),
            ("sni", "outbound_.80_._.b.default.svc.cluster.local"),
            ("method", self.method),
            ("url", &url),
        ];
        if !self.from.is_empty() {
            parameters.push(("from", self.from));
        }
        parameters.extend(self.headers.iter().map(|header| ("header", *header)));
        server.explain(parameters)
    }

    #[track_caller]
    fn is(&self, server: &Explainer, allowed: bool) {
        let record = self.explained(server);
        let said = record.text("/decision/outcome");
        let what = format!("{} {} {} from {}", self.method, self.host, self.path, self.from);
        assert_eq!(said == "allow", allowed, "{what}: {record:?}");
    }
}

#[test]
fn every_static_expectation_holds() {
    let cases = cases();
    let mut asked = 0;
    for request in cases["requests"].as_array().unwrap() {
        if request["dynamic"] == true {
            continue;
        }
        let policies: Vec<_> =
            request["policies"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let path = request["case"]["path"].as_str().unwrap();
        let allowed = request["case"]["allow"].as_bool().unwrap();
        Call { path, ..CALL }.is(&server(&cases, &policies), allowed);
        asked += 1;
    }
    assert_eq!(asked, 47);
}

#[test]
fn namespaces_allow_and_deny() {
    let cases = cases();
    const ALLOW: &str = "testdata/authz/allow-namespace.yaml.tmpl";
    const DENY: [&str; 2] =
        ["testdata/authz/deny-namespace.yaml.tmpl", "testdata/authz/deny-global.yaml.tmpl"];
    const ECHO: &str = "/proto.EchoTestService/Echo";
    let (allow, deny) = (server(&cases, &[ALLOW]), server(&cases, &DENY));
    for (from, allowed) in [(ALLOWED, true), (DENIED, false)] {
        for port in [18080, 18085] {
            let call = |path| Call { from, port, path, ..CALL };
            for path in ["/allow", "/allow?param=value"] {
                call(path).is(&allow, allowed);
                call(path).is(&deny, true);
            }
            for path in ["/deny", "/deny?param=value"] {
                call(path).is(&allow, false);
                call(path).is(&deny, allowed);
            }
            for (path, allowed) in
                [("/deny/allow", true), ("/global-deny", false), ("/global-deny/allow", true)]
            {
                call(path).is(&deny, allowed);
            }
        }
        let grpc = Call { from, port: 17070, method: "POST", path: ECHO, ..CALL };
        grpc.is(&allow, allowed);
        grpc.is(&deny, allowed);
        for server in [&allow, &deny] {
            let opaque = [("protocol", "tcp"), ("from", from), ("destination", "10.1.0.1:19090")];
            let said = server.explain(opaque);
            assert_eq!(said.text("/decision/outcome") == "allow", allowed, "{said:?}");
        }
    }
}

#[test]
fn what_is_excluded_is_not_matched() {
    let cases = cases();
    let server = |name: &str| server(&cases, &[&format!("testdata/authz/{name}.yaml.tmpl")]);
    for (host, allowed) in [("allow.b.com", true), ("deny.b.com", false), ("DENY.b.com", false)] {
        Call { host, ..CALL }.is(&server("not-host"), allowed);
    }
    for port in [18080, 18085] {
        Call { port, ..CALL }.is(&server("not-method"), true);
        Call { port, method: "PUT", ..CALL }.is(&server("not-method"), false);
        Call { port, ..CALL }.is(&server("not-port"), port == 18080);
    }
}

#[test]
fn conditions_on_callers_and_headers() {
    let cases = cases();
    let server = server(&cases, &["testdata/authz/conditions.yaml.tmpl", "testdata/authz/mtls.yaml.tmpl"]);
    for path in [
        "/source-ip",
        "/source-ip-notValues",
        "/source-namespace",
        "/source-namespace-notValues",
        "/source-principal",
        "/source-principal-notValues",
    ] {
        Call { path, ..CALL }.is(&server, true);
        Call { path, from: DENIED, source: DENIED_ADDRESS, ..CALL }.is(&server, false);
        Call { path, from: "", ..CALL }.is(&server, false);
    }
    for (path, allowed) in [("/request-headers", "x-foo=foo"), ("/request-headers-notValues", "x-foo=foo")] {
        Call { path, headers: &[allowed], ..CALL }.is(&server, true);
        Call { path, headers: &["x-foo=bar"], ..CALL }.is(&server, false);
    }
}

/// What the table says of an ingress gateway, of a workload with its labels; the caller's own address is the remote one.
#[test]
fn a_policy_of_the_system_namespace_finds_its_workload() {
    let cases = cases();
    let policy = render(cases["templates"]["testdata/authz/ingress-gateway.yaml.tmpl"].as_str().unwrap());
    let gateway = Explainer::of_yaml(&policy, &workload("istio-system", "gateway", "istio-ingressgateway"));
    let elsewhere = Explainer::of_yaml(&policy, &workload("istio-system", "other", "other"));
    let mut asked = 0;
    for request in cases["requests"].as_array().unwrap() {
        if request["test"] != "TestAuthz_IngressGateway" {
            continue;
        }
        let case = &request["case"];
        let host = case["host"]["$expr"].as_str().unwrap();
        let host = host.trim_start_matches("host(\"").trim_end_matches("\")").replace("%s", "b");
        let source = format!("{}:40000", case["ip"].as_str().unwrap_or("172.16.0.1"));
        let call = Call {
            from: "",
            source: &source,
            host: &host,
            path: case["path"].as_str().unwrap_or("/"),
            ..CALL
        };
        call.is(&gateway, case["allow"].as_bool().unwrap());
        call.is(&elsewhere, true);
        asked += 1;
    }
    assert_eq!(asked, 22);
}

#[test]
fn several_providers_that_nobody_configured_deny_what_they_are_asked_about() {
    let cases = cases();
    let pair = pair(&cases, "http/custom-bad-multiple-providers");
    let httpbin = Workload {
        namespace: "foo".into(),
        name: "httpbin".into(),
        labels: [("app".into(), "httpbin".into()), ("version".into(), "v1".into())].into(),
        ..Workload::default()
    };
    let server = Explainer::of_yaml(&yaml(pair), &httpbin);
    for (path, allowed) in [("/httpbin1", false), ("/httpbin2", false), ("/other", true)] {
        Call { path, ..CALL }.is(&server, allowed);
    }
}

#[test]
fn an_allow_policy_of_http_alone_denies_opaque_connections() {
    let cases = cases();
    let pair = pair(&cases, "tcp/allow-only-http");
    let server = Explainer::of_yaml(&yaml(pair), &workload("foo", "a", "a"));
    for from in [ALLOWED, "spiffe://cluster.local/ns/ns-1/sa/x"] {
        let said = server.explain([("protocol", "tcp"), ("from", from), ("destination", "10.1.0.1:90")]);
        assert_eq!(said.decision(), "deny at authorize: no-allow-matched");
    }
}

fn pair<'c>(cases: &'c Value, name: &str) -> &'c Value {
    cases["pairs"].as_array().unwrap().iter().find(|pair| pair["name"] == name).unwrap()
}

/// The policies of a pair; JSON is YAML.
fn yaml(pair: &Value) -> String {
    let policies = pair["policies"].as_array().unwrap();
    policies.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n")
}
