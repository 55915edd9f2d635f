//! What is known of the modules' certificates: maintained by hand, since a module can't know it of itself and a
//! certificate can be withdrawn.

use serde::{Serialize, Serializer};

/// The certificates of AWS-LC FIPS as static library, which is how it is linked here, by branch, as of
/// [`AS_OF`]. <https://github.com/aws/aws-lc/blob/main/crypto/fipsmodule/FIPS.md>
const CERTIFICATES: &[(u32, Validation)] = &[
    (3, Validation::Certificate { number: 5314, standard: "FIPS 140-3", level: 1, version: "3.1.0" }),
    (4, Validation::InProcess),
];

/// When the table was last looked over.
pub(super) const AS_OF: &str = "2026-11";

/// What is known of the validation of the linked module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validation {
    /// There is a certificate for its branch.
    Certificate {
        /// Of the Cryptographic Module Validation Program.
        number: u32,
        /// What was validated against.
        standard: &'static str,
        /// Security level.
        level: u8,
        /// The version that the security policy names; later ones of the branch have fixes that it does not.
        version: &'static str,
    },
    /// Submitted, and on the list of modules in process.
    InProcess,
    /// Built for validation, of a branch that the table doesn't know.
    Unknown,
    /// Not built for validation.
    None,
}

impl Validation {
    pub(super) fn of_branch(branch: u32) -> Self {
        let found = CERTIFICATES.iter().find(|(of, _)| *of == branch);
        found.map_or(Self::Unknown, |(_, validation)| *validation)
    }

    /// The word in JSON and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate { .. } => "certificate",
            Self::InProcess => "in-process",
            Self::Unknown => "unknown",
            Self::None => "none",
        }
    }

    /// The certificate's number, or nothing.
    pub const fn certificate(self) -> Option<u32> {
        match self {
            Self::Certificate { number, .. } => Some(number),
            _ => None,
        }
    }

    /// For people: no more than is known.
    pub(super) fn statement(self, linked: &str) -> String {
        match self {
            Self::Certificate { number, standard, level, version } => format!(
                "uses a {standard} validated module (AWS-LC, cert #{number}, level {level}, as of {AS_OF}): {linked} is built \
                 from the branch of that certificate, whose security policy names {version}; whether a deployment is covered is \
                 for its assessor to say"
            ),
            Self::InProcess => format!(
                "AWS-LC FIPS {linked} is a module in process (as of {AS_OF}): submitted for validation, without a certificate"
            ),
            Self::Unknown => {
                format!("nothing is known here of a certificate for AWS-LC FIPS {linked} (as of {AS_OF})")
            }
            Self::None => format!("AWS-LC {linked} is not a module built for FIPS 140 validation"),
        }
    }
}

impl Serialize for Validation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written {
            status: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            certificate: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            standard: Option<&'static str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            level: Option<u8>,
            #[serde(skip_serializing_if = "Option::is_none")]
            validated_version: Option<&'static str>,
            as_of: &'static str,
        }
        let mut written = Written {
            status: self.as_str(),
            certificate: self.certificate(),
            standard: None,
            level: None,
            validated_version: None,
            as_of: AS_OF,
        };
        if let Self::Certificate { standard, level, version, .. } = *self {
            (written.standard, written.level, written.validated_version) =
                (Some(standard), Some(level), Some(version));
        }
        written.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certificate_is_called_validated() {
        for (branch, word) in [(3, "certificate"), (4, "in-process"), (5, "unknown")] {
            let validation = Validation::of_branch(branch);
            assert_eq!(validation.as_str(), word);
            assert_eq!(validation.certificate().is_some(), branch == 3);
            let says = validation.statement("9.9.9").contains("validated module");
            assert_eq!(says, branch == 3, "{validation:?}");
        }
        assert!(!Validation::None.statement("9.9.9").contains("validated module"));
    }
}
