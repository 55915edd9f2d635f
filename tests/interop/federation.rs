//! Two trust domains of SPIRE that begin to trust each other while a sidecar runs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use tests::PATIENCE;
use tests::program::Finished;

use crate::load::application;
use crate::records::{check, text};
use crate::spire::{Domain, spire, workload};
use crate::tls::house::{House, installed};

const LIFETIME_SECONDS: u64 = 600;

const PARTNERS: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: partners, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [partner.test/ns/shop/sa/caller]}}]
";

#[test]
fn a_trust_domain_that_is_federated_live_is_trusted_from_then_on() {
    let test = "a_trust_domain_that_is_federated_live_is_trusted_from_then_on";
    let (Some(programs), Some(go)) = (spire(test), installed(test, "go/peer")) else { return };
    let house = House::new();
    let [mut home, mut partner] = ["cluster.local", "partner.test"]
        .map(|name| Domain::start(&programs, &house, name, LIFETIME_SECONDS));
    let program = workload(&house, "server");
    let entry = home.register("server", &program);
    // The agent's own command is the partner's workload: it writes its SVID into files.
    let fetching = fs::canonicalize(programs.join("spire-agent")).unwrap();
    partner.register("caller", &fetching);
    home.start_agent();
    partner.start_agent();
    house.configure("partners.yaml", PARTNERS);
    let source = format!("spiffe:unix://{}", home.socket().display());
    let server = house.serving_by(&program, &source, application());
    let records = server.records();
    let identity = house.file("fetched");
    fetch(&fetching, &partner.socket(), &identity);
    fs::write(identity.join("ca.crt"), home.bundle("pem")).unwrap();
    let call = || {
        let mut call = Command::new(&go);
        call.arg("call").arg("-dir").arg(&identity).args(["-expect", &home.id("server")]);
        Finished::of(call.args(["-url", &format!("https://{}/1", server.address)]))
    };

    call().code(1);
    let refused = records.one(|record| text(record, "/decision/outcome") == "deny");
    assert_eq!(check(&refused, "service-authentication")["outcome"], "fail", "{refused:#}");
    assert_eq!(text(&refused, "/decision/reason"), "untrusted-root", "{refused:#}");

    home.federate(&partner, &entry, "server", &program);
    let begun = Instant::now();
    while !call().status.success() {
        assert!(begun.elapsed() < 2 * PATIENCE, "not trusted yet");
    }
    let allowed = records.one(|record| text(record, "/decision/outcome") == "allow");
    assert_eq!(text(&allowed, "/source/identity"), partner.id("caller"), "{allowed:#}");
    assert_eq!(text(&allowed, "/decision/policy/name"), "partners", "{allowed:#}");
    let evidence = &check(&allowed, "service-authentication")["evidence"];
    assert_eq!(evidence["trust_domain"], "partner.test", "{allowed:#}");
}

/// Once the agent has heard from its server.
fn fetch(agent: &Path, socket: &Path, into: &Path) {
    fs::create_dir(into).unwrap();
    let fetch = || {
        let mut fetch = Command::new(agent);
        fetch.args(["api", "fetch", "x509", "-socketPath"]).arg(socket).arg("-write").arg(into);
        Finished::of(&mut fetch)
    };
    let begun = Instant::now();
    loop {
        let said = fetch();
        if said.status.success() {
            break;
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "{said:?}");
    }
    fs::rename(into.join("svid.0.pem"), into.join("tls.crt")).unwrap();
    fs::rename(into.join("svid.0.key"), into.join("tls.key")).unwrap();
}
