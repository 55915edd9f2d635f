//! What crypto this process runs: asked of the linked module, not of build flags.

use std::fmt;

use rustls::NamedGroup;
use rustls::crypto::CryptoProvider;
use serde::Serialize;

mod certificate;

pub use certificate::Validation;

/// What crypto this process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attestation {
    /// `AWS-LC`, or `AWS-LC FIPS` when the linked library is the module built for validation.
    pub module: &'static str,
    /// Version that the linked library reports.
    pub module_version: &'static str,
    /// Branch of the module that was submitted for validation, of `AWS-LC FIPS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module_branch: Option<u32>,
    /// `standard` or `fips`: which of the two the build links.
    pub flavour: &'static str,
    /// What is known of the module's validation.
    pub validation: Validation,
    /// The same in a sentence, which claims no more than that.
    pub statement: String,
    /// The module's known-answer tests.
    pub self_test: SelfTest,
    /// When they ran: `on-demand`, for this answer; or `at-load`, by a module that runs them before the process's
    /// first instruction, ends it when one fails, and can't be asked again.
    pub self_test_run: &'static str,
    /// Cipher suites offered and accepted, IANA names, in order of preference.
    pub suites: Vec<Offered>,
    /// Key exchange groups offered and accepted, IANA names, in order of preference.
    pub groups: Vec<Offered>,
    /// Whether the process takes approved crypto only.
    pub required: bool,
    /// TLS configurations made so far.
    pub live: Vec<crate::LiveConfig>,
    /// True only if the module is in its approved mode, its self-test passed, and every suite, group and signature
    /// algorithm is an approved one.
    pub fips: bool,
}

/// A suite or a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Offered {
    /// As IANA registers it.
    pub name: String,
    /// Whether the module runs it as an approved service.
    pub approved: bool,
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
        let approved_mode = crate::provider::approved_mode();
        let module_version = aws_lc_rs::awslc_version();
        let module_branch = aws_lc_rs::fips_version();
        let validation = match module_branch {
            Some(branch) if approved_mode => Validation::of_branch(branch),
            _ => Validation::None,
        };
        let (self_test, self_test_run) = self_test();
        Self {
            module: if approved_mode { "AWS-LC FIPS" } else { "AWS-LC" },
            module_version,
            module_branch,
            flavour: if approved_mode { "fips" } else { "standard" },
            validation,
            statement: validation.statement(module_version),
            self_test,
            self_test_run,
            suites: provider
                .cipher_suites
                .iter()
                .map(|suite| Offered { name: suite_name(suite.suite()), approved: suite.fips() })
                .collect(),
            groups: provider
                .kx_groups
                .iter()
                .map(|group| Offered { name: group_name(group.name()), approved: group.fips() })
                .collect(),
            required: crate::required(),
            live: crate::live_configs(),
            fips: approved_mode && self_test == SelfTest::Passed && provider.fips(),
        }
    }

    /// Why the module can't be used where the approved one is required; `None` when it can.
    pub fn not_approved(&self) -> Option<String> {
        if self.self_test == SelfTest::Failed {
            return Some(format!("{} {} failed its self-test", self.module, self.module_version));
        }
        if self.flavour != "fips" {
            return Some(format!(
                "this build links {} {}, which has no approved mode; the build that has it is that of fips/certified",
                self.module, self.module_version
            ));
        }
        let offered = self.suites.iter().chain(&self.groups).find(|offered| !offered.approved);
        match offered {
            Some(offered) => Some(format!("{} is offered, and not approved", offered.name)),
            None => (!self.fips).then(|| "a signature algorithm is offered that is not approved".to_owned()),
        }
    }
}

/// Asks the module to run its known-answer tests. The module with the certificate takes no such request through its
/// Rust interface: it has run them at load, and a process in which one failed does not get here.
fn self_test() -> (SelfTest, &'static str) {
    #[cfg(feature = "certified")]
    let (passed, run) = (crate::provider::approved_mode(), "at-load");
    #[cfg(not(feature = "certified"))]
    let (passed, run) = (aws_lc_rs::try_fips_self_test().is_ok(), "on-demand");
    (if passed { SelfTest::Passed } else { SelfTest::Failed }, run)
}

impl fmt::Display for Attestation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let self_test = self.self_test.as_str();
        write!(f, "{} {} ({}; self-test {self_test})", self.module, self.module_version, self.flavour)
    }
}

/// A suite's name as IANA registers it: rustls writes `TLS13_` for the `TLS_` of TLS 1.3.
pub fn suite_name(suite: rustls::CipherSuite) -> String {
    format!("{suite:?}").replacen("TLS13_", "TLS_", 1)
}

/// A group's name as IANA registers it.
pub fn group_name(group: NamedGroup) -> String {
    match group {
        NamedGroup::X25519 => "x25519".to_owned(),
        NamedGroup::secp256r1MLKEM768 => "SecP256r1MLKEM768".to_owned(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFIED: bool = cfg!(feature = "certified");

    #[test]
    fn only_the_module_built_for_validation_claims_it() {
        let attestation = crate::install();
        assert_eq!(attestation.flavour, if CERTIFIED { "fips" } else { "standard" });
        assert_eq!(attestation.fips, CERTIFIED);
        assert_eq!(attestation.self_test, SelfTest::Passed);
        assert_eq!(attestation.self_test_run, if CERTIFIED { "at-load" } else { "on-demand" });
        assert!(attestation.module_version.starts_with(|c: char| c.is_ascii_digit()));
        if !CERTIFIED {
            assert_eq!(attestation.validation, Validation::None);
            assert!(attestation.not_approved().unwrap().contains("no approved mode"));
        } else {
            assert_eq!(attestation.not_approved(), None);
            assert!(attestation.statement.contains("#5314"), "{}", attestation.statement);
        }
        assert_eq!(attestation.statement.contains("validated module"), CERTIFIED);
    }

    #[test]
    fn names_are_those_of_iana() {
        let attestation = crate::install();
        assert_eq!(attestation.suites[0].name, "TLS_AES_128_GCM_SHA256");
        let groups: Vec<_> = attestation.groups.iter().map(|group| group.name.as_str()).collect();
        let expected: &[&str] = if CERTIFIED {
            &["SecP256r1MLKEM768", "secp256r1", "X25519MLKEM768", "secp384r1"]
        } else {
            &["X25519MLKEM768", "x25519", "secp256r1", "secp384r1", "SecP256r1MLKEM768"]
        };
        assert_eq!(groups, expected);
    }

    #[test]
    fn what_is_not_approved_is_named() {
        let mut attestation = crate::install().clone();
        attestation.flavour = "fips";
        attestation
            .suites
            .iter_mut()
            .chain(&mut attestation.groups)
            .for_each(|offered| offered.approved = true);
        attestation.fips = true;
        assert_eq!(attestation.not_approved(), None);
        attestation.groups[1].approved = false;
        let named = attestation.groups[1].name.clone();
        assert_eq!(attestation.not_approved().unwrap(), format!("{named} is offered, and not approved"));
        attestation.groups[1].approved = true;
        attestation.fips = false;
        assert!(attestation.not_approved().unwrap().contains("signature algorithm"));
        attestation.self_test = SelfTest::Failed;
        assert!(attestation.not_approved().unwrap().contains("failed its self-test"));
    }
}
