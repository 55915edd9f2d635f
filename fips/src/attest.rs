//! What crypto this process runs: asked of the linked module, not of build flags.

use std::fmt;

use rustls::NamedGroup;
use rustls::crypto::CryptoProvider;
use serde::Serialize;

/// What crypto this process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attestation {
    /// `AWS-LC`, or `AWS-LC FIPS` when the linked library is the module built for validation.
    pub module: &'static str,
    /// Version that the linked library reports.
    pub module_version: &'static str,
    /// `standard` or `fips`: which of the two the build links.
    pub flavour: &'static str,
    /// The module's known-answer tests, run as this process started.
    pub self_test: SelfTest,
    /// Cipher suites offered and accepted, IANA names, in order of preference.
    pub suites: Vec<String>,
    /// Key exchange groups offered and accepted, IANA names, in order of preference.
    pub groups: Vec<String>,
    /// True only if the module is in FIPS mode, its self-test passed, and every suite, group and signature algorithm is an
    /// approved one. It says nothing about a certificate: whether this version has one is for the assessor to look up.
    pub fips: bool,
}

/// How the module's known-answer tests came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelfTest {
    /// All gave the known answers.
    Passed,
    /// One did not: the module must not be used.
    Failed,
}

impl SelfTest {
    /// The word in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
        }
    }
}

impl Attestation {
    /// Asks the linked module, and lists what `provider` offers.
    pub(crate) fn of(provider: &CryptoProvider) -> Self {
        let approved_mode = aws_lc_rs::try_fips_mode().is_ok();
        let self_test = match aws_lc_rs::try_fips_self_test() {
            Ok(()) => SelfTest::Passed,
            Err(_) => SelfTest::Failed,
        };
        Self {
            module: if approved_mode { "AWS-LC FIPS" } else { "AWS-LC" },
            module_version: aws_lc_rs::awslc_version(),
            flavour: if approved_mode { "fips" } else { "standard" },
            self_test,
            suites: provider.cipher_suites.iter().map(|suite| iana_suite(suite.suite())).collect(),
            groups: provider.kx_groups.iter().map(|group| iana_group(group.name())).collect(),
            fips: approved_mode && self_test == SelfTest::Passed && provider.fips(),
        }
    }
}

impl fmt::Display for Attestation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let self_test = self.self_test.as_str();
        write!(f, "{} {} ({}; self-test {self_test})", self.module, self.module_version, self.flavour)
    }
}

/// rustls writes `TLS13_` where IANA writes `TLS_`.
fn iana_suite(suite: rustls::CipherSuite) -> String {
    format!("{suite:?}").replacen("TLS13_", "TLS_", 1)
}

fn iana_group(group: NamedGroup) -> String {
    match group {
        NamedGroup::X25519 => "x25519".to_owned(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_flavour_does_not_claim_fips() {
        let attestation = crate::install();
        assert_eq!(attestation.flavour, "standard");
        assert!(!attestation.fips);
        assert_eq!(attestation.self_test, SelfTest::Passed);
        assert!(attestation.module_version.starts_with(|c: char| c.is_ascii_digit()));
    }

    #[test]
    fn names_are_those_of_iana() {
        let attestation = crate::install();
        assert_eq!(attestation.suites[0], "TLS_AES_256_GCM_SHA384");
        assert_eq!(attestation.groups, ["X25519MLKEM768", "x25519", "secp256r1", "secp384r1"]);
    }
}
