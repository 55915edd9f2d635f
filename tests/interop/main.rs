//! Tests against the real kernel and real peers: the `writ` binary in network namespaces behind redirection rules, with
//! curl, plain servers and gRPC's own implementation on the other ends. Needs what `tests/peers.sh` installs.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod federation;
mod five_checks;
mod grpc;
mod interception;
mod limits;
mod load;
mod mesh;
mod namespace;
mod oidc;
mod opa;
mod opaque;
mod rbac;
mod records;
mod requests;
mod rotation;
mod spire;
mod tls;
mod wire;

/// Says aloud that a test could not run here; where nothing may be skipped that is a failure.
pub fn skipped(test: &str, wants: &str) {
    let strict = std::env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1");
    assert!(!strict, "{test} needs {wants}");
    // Past the capture of the test harness, which shows nothing of tests that end well.
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("SKIPPED: {test} needs {wants}\n").as_bytes(),
    );
}

/// Whether all of these programs are here; else says so as [`skipped`] does.
pub fn installed(test: &str, programs: &[&str]) -> bool {
    let lacks = |program: &&&str| {
        let asked = std::process::Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
        !asked.is_ok_and(|output| output.status.success())
    };
    let Some(lacking) = programs.iter().find(lacks) else { return true };
    skipped(test, &format!("{lacking}, which tests/peers.sh installs"));
    false
}
