//! Every version, suite and group that the binary has, as its peers and its records name them.

use std::fmt;
use std::process::Command;

use fips::ca::KeyType;

use serde_json::Value;
use tests::program::{Finished, writ};

use super::house::KEYS;

/// The `suites` or `groups` that the binary under test says it has, by the names of records.
pub fn attested(what: &str) -> Vec<String> {
    let said = attestation();
    let all = said[what].as_array().unwrap();
    all.iter().map(|each| each["name"].as_str().unwrap().to_owned()).collect()
}

/// Whether the binary under test runs an approved module.
pub fn is_approved() -> bool {
    attestation()["flavour"] == "fips"
}

fn attestation() -> Value {
    let said = Finished::of(Command::new(writ()).args(["attest", "--json"])).well();
    serde_json::from_str(&said).unwrap()
}

/// Something that both sides are made to agree on.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// As records have it: `1.2` or `1.3`.
    pub version: &'static str,
    /// Under TLS 1.2: OpenSSL's and BoringSSL's name, and the record's. Under TLS 1.3 peers choose.
    pub suite: Option<(&'static str, &'static str)>,
    /// OpenSSL's and BoringSSL's name, and the record's.
    pub group: (&'static str, &'static str),
    /// Of the server's certificate, which the suite needs.
    pub key: KeyType,
}

/// The groups; the last is for TLS 1.3 alone.
const GROUPS: [(&str, &str); 4] = [
    ("X25519", "x25519"),
    ("P-256", "secp256r1"),
    ("P-384", "secp384r1"),
    ("X25519MLKEM768", "X25519MLKEM768"),
];

/// The suites of TLS 1.2.
const SUITES: [(&str, &str); 4] = [
    ("ECDHE-ECDSA-AES256-GCM-SHA384", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
    ("ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
    ("ECDHE-RSA-AES128-GCM-SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
];

impl Choice {
    /// All that the binary has and a peer might.
    pub fn all() -> Vec<Self> {
        let [classic @ .., _] = GROUPS;
        let old = SUITES.into_iter().flat_map(|suite| {
            classic.map(|group| Self {
                version: "1.2",
                suite: Some(suite),
                group,
                key: match group.0 {
                    _ if suite.0.contains("RSA-AES") && !suite.0.contains("ECDSA") => KeyType::Rsa2048,
                    "P-384" => KeyType::P384,
                    _ => KeyType::P256,
                },
            })
        });
        let new = GROUPS
            .into_iter()
            .flat_map(|group| KEYS.map(|key| Self { version: "1.3", suite: None, group, key }));
        let (suites, groups) = (attested("suites"), attested("groups"));
        let has = |names: &[String], name: &str| names.iter().any(|has| has == name);
        old.chain(new)
            .filter(|choice| has(&groups, choice.group.1))
            .filter(|choice| choice.suite.is_none_or(|(_, named)| has(&suites, named)))
            .collect()
    }

    /// The groups that a peer has for this to be chosen, the other side having all. Under TLS 1.2 they are also those that an ECDSA
    /// certificate may be of (RFC 8422, section 5.1.1).
    pub fn groups(&self) -> Vec<&'static str> {
        let certificate = (self.version == "1.2" && self.key == KeyType::P256).then_some("P-256");
        let mut groups = vec![self.group.0];
        groups.extend(certificate.filter(|group| *group != self.group.0));
        groups
    }

    /// Whether a record says that this was agreed.
    pub fn is(&self, [version, suite, group]: [&str; 3]) -> bool {
        let suites = ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"];
        let as_chosen = self.suite.map_or_else(|| suites.contains(&suite), |(_, named)| named == suite);
        version == self.version && group == self.group.1 && as_chosen
    }
}

/// A name for it of letters, digits and `-`.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version.replace('.', "");
        let suite = self.suite.map_or("any", |(suite, _)| suite).to_lowercase();
        let (group, key) = (self.group.0.to_lowercase(), format!("{:?}", self.key).to_lowercase());
        write!(f, "tls{version}-{suite}-{group}-{key}")
    }
}
