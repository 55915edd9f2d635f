//! The Open Policy Agent with its Envoy plugin: answers `envoy.service.auth.v3.Authorization/Check` by a policy in Rego.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::program::Program;

use crate::spire::free_port;
use crate::tls::house::installed;

/// A running OPA.
pub struct Opa {
    program: Program,
    /// Of its gRPC service. Not 127.0.0.1, which is the address of a workload here that is spoken to by mutual TLS only.
    pub address: SocketAddr,
}

impl Opa {
    /// Decides by `data.mesh.decision` of a policy. `None`: the test can't run.
    pub fn start(test: &str, policy: &Path) -> Option<Self> {
        let program = installed(test, "opa/bin/opa-envoy-plugin")?;
        let address = SocketAddr::from(([127, 0, 0, 2], free_port()));
        let mut run = Command::new(program);
        run.args(["run", "--server", "--addr=127.0.0.1:0", "--disable-telemetry"]);
        run.arg(format!("--set=plugins.envoy_ext_authz_grpc.addr={address}"));
        run.args([
            "--set=plugins.envoy_ext_authz_grpc.path=mesh/decision",
            "--set=decision_logs.console=true",
        ]);
        let program = Program::start("OPA", run.arg(policy));
        program.error_line(|line| line.contains("Starting gRPC server"));
        Some(Self { program, address })
    }

    /// What it decided about a path, as its decision log says: `input` and `result`.
    pub fn decided(&self, path: &str) -> Value {
        let about = |line: &str| {
            let logged: Value = serde_json::from_str(line).ok()?;
            let of = logged.pointer("/input/attributes/request/http/path")?.as_str()? == path;
            of.then_some(logged)
        };
        about(&self.program.error_line(|line| about(line).is_some())).unwrap()
    }
}
