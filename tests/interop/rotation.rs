//! Certificates that are renewed while requests go on: by SPIRE, whose agent comes and goes, and in files.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fips::ca::KeyType;

use serde_json::Value;

use crate::load::{Load, application};
use crate::records::{Records, check, text};
use crate::spire::{Domain, spire, workload};
use crate::tls::house::{House, Sidecar, id};

/// SVIDs of SPIRE are valid for so long; agents renew at half. `WRIT_SPIRE_MINUTES=N` goes on for that long, with SVIDs of
/// a minute.
const TTL_SECONDS: u64 = 16;
/// Each side must have shown so many certificates.
const CERTIFICATES: usize = 4;
/// Files are renewed so often; `WRIT_ROTATION_SECONDS=N` goes on for that long.
const RENEWED_EVERY: Duration = Duration::from_secs(5);

#[test]
fn svids_of_spire_are_renewed_under_load_and_the_agent_restarts() {
    let Some(programs) = spire("svids_of_spire_are_renewed_under_load_and_the_agent_restarts") else {
        return;
    };
    let soak = from_environment("WRIT_SPIRE_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
    let house = House::new();
    let ttl = if soak.is_some() { 60 } else { TTL_SECONDS };
    let mut domain = Domain::start(&programs, &house, "cluster.local", ttl);
    let [server, caller] = ["server", "caller"].map(|account| {
        let program = workload(&house, account);
        domain.register(account, &program);
        program
    });
    domain.start_agent();
    let source = format!("spiffe:unix://{}", domain.socket().display());
    let served = house.serving_by(&server, &source, application());
    let servers = BTreeMap::from([("server".to_owned(), served.address)]);
    let calling = house.calling_by(&caller, &source, &servers);

    let mut traffic = Traffic::start(&calling, &served);
    let limit = Duration::from_secs(ttl * 15) + soak.unwrap_or_default();
    let mut restarted = false;
    loop {
        traffic.pulse();
        let proven = traffic.proven();
        // Half of the certificates before the restart, half after it.
        if !restarted && proven >= CERTIFICATES / 2 {
            domain.stop_agent();
            traffic.pulse();
            domain.restart_agent();
            restarted = true;
        }
        if proven >= CERTIFICATES && soak.is_none_or(|soak| traffic.begun.elapsed() > soak) {
            break;
        }
        assert!(traffic.begun.elapsed() < limit, "only {proven} certificates were proven");
        std::thread::sleep(Duration::from_secs(if soak.is_some() { 10 } else { 1 }));
    }
    traffic.end();
}

#[test]
fn certificates_in_files_are_renewed_every_few_seconds_under_load() {
    let duration = Duration::from_secs(from_environment("WRIT_ROTATION_SECONDS").unwrap_or(15));
    let house = House::new();
    let renew = || ["server", "caller"].map(|account| house.identity(account, KeyType::P256));
    let [server, caller] = renew();
    let served = house.serving(&server, application());
    let servers = BTreeMap::from([("server".to_owned(), served.address)]);
    let calling = house.calling(&caller, &servers);

    let mut traffic = Traffic::start(&calling, &served);
    let mut renewals = 0;
    while traffic.begun.elapsed() < duration {
        renew();
        renewals += 1;
        // Each must have been taken by the time the next one comes.
        let next = Instant::now() + RENEWED_EVERY;
        while Instant::now() < next {
            traffic.pulse();
            std::thread::sleep(RENEWED_EVERY / 5);
        }
    }
    // A machine with other things to do may see two as one.
    let proven = traffic.proven();
    assert!(proven > renewals / 2, "{proven} certificates were proven after {renewals} renewals");
    traffic.end();
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap())
}

/// Requests from one sidecar to another, and what their records say.
struct Traffic<'s> {
    entrance: &'s Sidecar,
    load: Load,
    outbound: Records<'s>,
    inbound: Records<'s>,
    begun: Instant,
    at_once: usize,
    asked: usize,
    failures: Vec<String>,
}

impl<'s> Traffic<'s> {
    fn start(calling: &'s Sidecar, served: &'s Sidecar) -> Self {
        Self {
            entrance: calling,
            load: Load::start(calling.address, "server.shop", 4),
            outbound: calling.records(),
            inbound: served.records(),
            begun: Instant::now(),
            at_once: 6,
            asked: 0,
            failures: Vec::new(),
        }
    }

    /// One more at once than ever: so that there is one handshake at least.
    fn pulse(&mut self) {
        self.at_once += 1;
        self.asked += self.at_once;
        self.failures.extend(Load::pulse(self.entrance.address, "server.shop", self.at_once));
    }

    /// How many certificates each side has proven, by the records.
    fn proven(&self) -> usize {
        let serials = |records: &Records<'_>| {
            let serial = |record: &Value| {
                text(&check(record, "service-authentication")["evidence"], "/serial").to_owned()
            };
            records.wait(self.asked, held).iter().map(serial).collect::<BTreeSet<_>>().len()
        };
        serials(&self.inbound).min(serials(&self.outbound))
    }

    /// Every request was answered, and every record says by whom it was asked and what allowed it.
    fn end(mut self) {
        let (answered, failures) = self.load.stop();
        self.failures.extend(failures);
        let all = answered + self.asked;
        assert!(self.failures.is_empty(), "{} of {all} failed: {:?}", self.failures.len(), self.failures);
        assert!(answered > 100, "only {answered}");
        for record in self.inbound.wait(self.asked, held) {
            assert_eq!(text(&record, "/source/identity"), id("caller"), "{record:#}");
            assert_eq!(text(&record, "/decision/policy/name"), "callers", "{record:#}");
        }
    }
}

fn held(record: &Value) -> bool {
    text(record, "/request/path") == "/hold/1"
}
