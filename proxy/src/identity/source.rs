//! [`Source`]: where the current certificate comes from, as `--identity` says.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where the current certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `files:DIR`: `tls.crt`, `tls.key` and `ca.crt`, or SPIFFE helper's `svid.pem`, `svid_key.pem` and
    /// `svid_bundle.pem`; besides, `TRUST-DOMAIN.bundle.pem` for each federated domain. Followed as they change.
    Files(PathBuf),
    /// `dev:DIR`: a throw-away authority kept in DIR, shared by all who name it, signs for the workload's own id.
    Dev(PathBuf),
    /// `spiffe:unix:///path`: a SPIFFE Workload API.
    Spiffe(String),
}

/// Why a text is not a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no identity source: expected files:DIR, dev:DIR or spiffe:unix:///path")]
pub struct InvalidSource(String);

impl FromStr for Source {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        match text.split_once(':') {
            Some(("files", dir)) if !dir.is_empty() => Ok(Self::Files(dir.into())),
            Some(("dev", dir)) if !dir.is_empty() => Ok(Self::Dev(dir.into())),
            Some(("spiffe", endpoint)) if endpoint.starts_with("unix:") => Ok(Self::Spiffe(endpoint.into())),
            _ => Err(InvalidSource(text.to_owned())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(dir) => write!(f, "files:{}", dir.display()),
            Self::Dev(dir) => write!(f, "dev:{}", dir.display()),
            Self::Spiffe(endpoint) => write!(f, "spiffe:{endpoint}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_and_written_alike() {
        for text in ["files:/var/run/certs", "dev:./x", "spiffe:unix:///run/spire/agent.sock"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn others_are_named_in_the_error() {
        for text in ["", "files:", "/var/run/certs", "spiffe:tcp://1.2.3.4", "vault:x"] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
