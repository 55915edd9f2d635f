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
    /// `spiffe:unix:///path`: a SPIFFE Workload API; `spiffe:` alone: the one that `SPIFFE_ENDPOINT_SOCKET` names. Of several
    /// SVIDs, `?hint=NAME` at the end takes the one of that hint. Followed as it streams.
    Spiffe(WorkloadApi),
}

/// Where a Workload API is, and which of its SVIDs is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadApi {
    /// Of its socket; `None`: as `SPIFFE_ENDPOINT_SOCKET` says.
    pub path: Option<PathBuf>,
    /// Of the SVID; `None`: the workload's own, else the first.
    pub hint: Option<String>,
}

/// The variable that names a Workload API (SPIFFE Workload Endpoint, section 4).
pub(super) const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// The path of `unix:///path` or `unix:/path`. Nothing else: keys come over it, and only a local socket tells the API who
/// asks.
pub(super) fn socket_path(endpoint: &str) -> Option<PathBuf> {
    let path = endpoint.strip_prefix("unix:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    (path.starts_with('/') && path.len() > 1).then(|| path.into())
}

/// Why a text is not a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no identity source: expected files:DIR, dev:DIR, spiffe:unix:///path or spiffe: alone")]
pub struct InvalidSource(String);

impl FromStr for Source {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        match text.split_once(':') {
            Some(("files", dir)) if !dir.is_empty() => Ok(Self::Files(dir.into())),
            Some(("dev", dir)) if !dir.is_empty() => Ok(Self::Dev(dir.into())),
            Some(("spiffe", endpoint)) => {
                workload_api(endpoint).map(Self::Spiffe).ok_or_else(|| InvalidSource(text.to_owned()))
            }
            _ => Err(InvalidSource(text.to_owned())),
        }
    }
}

fn workload_api(endpoint: &str) -> Option<WorkloadApi> {
    let (endpoint, query) =
        endpoint.split_once('?').map_or((endpoint, None), |(at, query)| (at, Some(query)));
    let hint = match query {
        Some(query) => Some(query.strip_prefix("hint=").filter(|hint| !hint.is_empty())?.to_owned()),
        None => None,
    };
    let path = if endpoint.is_empty() { None } else { Some(socket_path(endpoint)?) };
    Some(WorkloadApi { path, hint })
}

impl fmt::Display for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "unix://{}", path.display())?;
        }
        match &self.hint {
            Some(hint) => write!(f, "?hint={hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(dir) => write!(f, "files:{}", dir.display()),
            Self::Dev(dir) => write!(f, "dev:{}", dir.display()),
            Self::Spiffe(api) => write!(f, "spiffe:{api}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_and_written_alike() {
        for text in [
            "files:/var/run/certs",
            "dev:./x",
            "spiffe:unix:///run/spire/agent.sock",
            "spiffe:unix:///run/spire/agent.sock?hint=internal",
            "spiffe:",
            "spiffe:?hint=internal",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn others_are_named_in_the_error() {
        for text in [
            "",
            "files:",
            "/var/run/certs",
            "spiffe:tcp://1.2.3.4",
            "spiffe:unix:x",
            "spiffe:?x=y",
            "vault:x",
        ] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
