//! Running the tools that speak to the kernel's packet filter.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

/// A tool that couldn't be run or said no.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It isn't there.
    #[error("`{0}` isn't installed")]
    Missing(String),
    /// It couldn't be started or spoken to.
    #[error("can't run `{0}`: {1}")]
    Io(String, io::Error),
    /// It ended with an error.
    #[error("`{command}` failed: {stderr}")]
    Refused {
        /// As one would type it.
        command: String,
        /// What it said, in one line.
        stderr: String,
    },
}

impl Failure {
    /// Whether it means that there can be no rules by this tool: it isn't installed, or the kernel doesn't know what it
    /// speaks to. The tools tell this in words only.
    fn means_absent(&self) -> bool {
        const WORDS: [&str; 4] =
            ["Protocol not supported", "Operation not supported", "Table does not exist", "Invalid argument"];
        match self {
            Self::Missing(_) => true,
            Self::Io(..) => false,
            Self::Refused { stderr, .. } => WORDS.iter().any(|words| stderr.contains(words)),
        }
    }
}

/// Runs a tool that lists rules; `None` if it can have none.
pub(super) fn list(program: &str, arguments: &[&str]) -> Result<Option<String>, Failure> {
    match run(program, arguments, "") {
        Ok(listing) => Ok(Some(listing)),
        Err(failure) if failure.means_absent() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Runs a tool with `input`; what it prints.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, Failure> {
    let named = || [&[program], arguments].concat().join(" ");
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Failure::Missing(program.to_owned()),
        _ => Failure::Io(named(), error),
    };
    let mut child = Command::new(program)
        .args(arguments)
        // Often not on the path of an ordinary user or a minimal image's init.
        .env("PATH", path())
        // Their messages are looked at by people, and listings by us.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that refuses early closes its input; its own message says more than the broken pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let stderr = if lines.is_empty() { output.status.to_string() } else { lines.join("; ") };
    Err(Failure::Refused { command: named(), stderr })
}

fn path() -> String {
    let sbin = "/usr/local/sbin:/usr/sbin:/sbin";
    std::env::var("PATH").map_or_else(|_| format!("{sbin}:/usr/bin:/bin"), |path| format!("{path}:{sbin}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_without_kernel_support_has_no_rules() {
        assert_eq!(list("writ-no-such-tool", &[]).unwrap(), None);
        let old_kernel = "echo 'Failed to initialize nft: Protocol not supported' >&2; exit 1";
        assert_eq!(list("sh", &["-c", old_kernel]).unwrap(), None);
        assert!(list("sh", &["-c", "echo 'Operation not permitted' >&2; exit 4"]).is_err());
    }

    #[test]
    fn failures_say_what_failed() {
        assert!(matches!(run("writ-no-such-tool", &[], ""), Err(Failure::Missing(_))));
        let refused = run("sh", &["-c", "echo first >&2; echo second >&2; exit 3"], "").unwrap_err();
        assert!(refused.to_string().ends_with("failed: first; second"), "{refused}");
        assert_eq!(run("cat", &[], "through").unwrap(), "through");
    }
}
